"""Resizing and cutting of images with boxes and masks, beside torchvision's rules and Pillow; and buckets."""

import dataclasses
import io
import itertools
import json
import pathlib
import pickle

import numpy as np
import PIL.Image
import pytest
from conftest import REPOSITORY, encode, picture
from dense_cases import SIZES, write_coco

from vision_jax.data import order
from vision_jax.data.boxes import DenseSubset
from vision_jax.data.coco import CocoSource
from vision_jax.data.dense import NO_BOX, DenseTransform
from vision_jax.data.dense_sizes import scale_boxes
from vision_jax.data.loader import Loader
from vision_jax.data.made_up import MadeUpSource
from vision_jax.data.resizing import Resizing, bucket_indices
from vision_jax.data.workers import create_loader
from vision_jax.errors import ConfigError, DataError

CANVASES = ((40, 64), (64, 40))
FIT = Resizing("fit", (40,), 64)


def apply(transform: DenseTransform, *records: dict, visit: int = 0) -> dict[str, np.ndarray]:
    fields = transform.fields()
    out = {name: np.full((len(records), *f.shape), 77, f.dtype) for name, f in fields.items()}
    numbers = np.arange(len(records))
    transform(records, numbers, np.full(len(records), visit), out)
    return out


def record(height: int, width: int, boxes: np.ndarray | list, mask: np.ndarray | None = None, **fields) -> dict:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    image = np.repeat(mask[..., None], 3, axis=2) if mask is not None else picture(height, width, 0)
    encoded = io.BytesIO()
    PIL.Image.fromarray(np.asarray(image)).save(encoded, "PNG")
    found = {
        "image": encoded.getvalue(),
        "image_id": 5,
        "size": (height, width),
        "boxes": boxes,
        "box_labels": np.arange(len(boxes), dtype=np.int32),
        "crowd": np.zeros(len(boxes), bool),
        "area": np.zeros(len(boxes)),
    }
    return {**found, **fields} if mask is None else {**found, "mask": mask, **fields}


def rectangles(random: np.random.RandomState, height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of whole pixels that do not overlap, one above another, and the mask with 1, 2, ... in them."""
    mask, boxes = np.zeros((height, width), np.uint8), []
    band = height // count
    for i in range(count):
        top = i * band + random.randint(0, band // 3)
        bottom = (i + 1) * band - random.randint(0, band // 3)
        left, right = random.randint(0, width // 2), random.randint(width // 2 + 2, width + 1)
        mask[top:bottom, left:right] = i + 1
        boxes.append((left, top, right, bottom))
    return np.asarray(boxes, np.float32), mask


REFERENCE = REPOSITORY / "tests/references/dense/detection_resize.npz"


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    # By torchvision's GeneralizedRCNNTransform at 800 and 1333: floor(side * scale), in float64.
    [(334, 500, (799, 1197)), (500, 334, (1197, 799)), (300, 1000, (399, 1333)), (480, 640, (800, 1066)),
     (427, 640, (800, 1199)), (640, 480, (1066, 800)), (800, 800, (800, 800))],
)  # fmt: skip
def test_sizes_are_torchvisions(height: int, width: int, expected: tuple[int, int]):
    assert Resizing().size(height, width, (1344, 1344), 0.5) == expected
    box = np.asarray([[1, 2, 30, 40]], np.float32)
    vertical, horizontal = expected[0] / height, expected[1] / width
    scaled = np.asarray([[horizontal, 2 * vertical, 30 * horizontal, 40 * vertical]])
    np.testing.assert_allclose(scale_boxes(box, (height, width), expected), scaled, rtol=1e-6)


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference is not there")
def test_sizes_and_boxes_are_those_of_the_reference():
    with np.load(REFERENCE, allow_pickle=False) as arrays:
        rows = json.loads(str(arrays["rows"]))
    for row in rows:
        height, width = row["size"]
        new = Resizing().size(height, width, (1344, 1344), 0)
        assert list(new) == row["resized"]
        boxes = scale_boxes(np.asarray(row["boxes"], np.float32), (height, width), new)
        np.testing.assert_array_equal(boxes, np.asarray(row["resized_boxes"], np.float32))


def test_ranges_and_choices():
    uniforms = np.linspace(0, 0.999, 200)
    several = Resizing("fit", (32, 48, 40), 64)
    assert {min(several.size(100, 120, (64, 64), u)) for u in uniforms} == {32, 48, 40}
    drawn = {Resizing("range", (20, 40), None).size(50, 100, (32, 32), u) for u in uniforms}
    assert drawn == {(side, 2 * side) for side in range(20, 41)}
    sizes = [Resizing("jitter", jitter=(0.1, 2.0)).size(100, 50, (64, 64), u) for u in uniforms]
    assert (min(sizes), max(sizes)) == ((6, 3), (127, 63))
    assert Resizing("squash").size(100, 50, (64, 32), 0.5) == (64, 32)
    # An image that stands for another, of another canvas, is made to fit.
    assert FIT.size(100, 160, (64, 40), 0) == (25, 40)


def test_pixels_are_bilinear_and_padded():
    """Beside the formula: pixel centers, no antialiasing, in float64."""
    image = picture(30, 50, 3)
    transform = DenseTransform(Resizing("fit", (20,), 64), ((40, 64), (64, 40)), canvas=(40, 64))
    encoded = io.BytesIO()
    PIL.Image.fromarray(image).save(encoded, "PNG")
    out = apply(transform, {"image": encoded.getvalue()})
    assert (out["size"][0].tolist(), out["original"][0].tolist(), out["index"][0]) == ([20, 33], [30, 50], 0)

    def weights(new: int, old: int) -> np.ndarray:
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(np.floor(at).astype(int), old - 2)
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low], matrix[np.arange(new), low + 1] = 1 - (at - low), at - low
        return matrix

    expected = np.einsum("yi,xj,ijc->yxc", weights(20, 30), weights(33, 50), image)
    assert np.abs(out["image"][0, :20, :33] - expected).max() <= 1
    assert not out["image"][0, 20:].any()
    assert not out["image"][0, :, 33:].any()


@pytest.mark.parametrize("resizing", [FIT, Resizing("jitter"), Resizing("squash")], ids=["fit", "jitter", "squash"])
def test_grayscale_is_a_channel_of_gray_colors(resizing: Resizing):
    canvases = CANVASES if resizing.kind == "fit" else ((40, 64),)
    gray = np.repeat(picture(50, 70, 1)[..., :1], 3, axis=2)
    encoded = io.BytesIO()
    PIL.Image.fromarray(gray).save(encoded, "PNG")
    written = [apply(DenseTransform(resizing, canvases, channels=c), {"image": encoded.getvalue()}) for c in (1, 3)]
    np.testing.assert_array_equal(written[0]["image"][..., 0], written[1]["image"][..., 0])


def test_masks_are_resized_as_by_pillow():
    mask = np.random.RandomState(0).randint(0, 5, (30, 50)).astype(np.uint8)
    transform = DenseTransform(Resizing("fit", (20,), 64), ((40, 64), (64, 40)), masks=True, canvas=(40, 64))
    out = apply(transform, record(30, 50, [], mask))
    expected = np.asarray(PIL.Image.fromarray(mask).resize((33, 20), PIL.Image.Resampling.NEAREST))
    np.testing.assert_array_equal(out["segmentation"][0, :20, :33], expected)
    assert (out["segmentation"][0, 20:] == 255).all()
    assert (out["segmentation"][0, :, 33:] == 255).all()


@pytest.mark.parametrize(
    "resizing",
    [FIT, Resizing("range", (30, 90), None), Resizing("jitter"), Resizing("squash"), Resizing("fit", (20, 30, 40), 64)],
    ids=["fit", "range", "jitter", "squash", "multi-scale"],
)
def test_boxes_stay_around_what_the_mask_shows(resizing: Resizing):
    """The box of each object in the resized and cut mask is the resized and cut box, within a pixel."""
    random = np.random.RandomState(0)
    canvases = CANVASES if resizing.kind == "fit" else ((48, 48),)
    transform = DenseTransform(resizing, canvases, boxes=True, masks=True, max_boxes=4, canvas=None)
    seen = dropped = 0
    for visit in range(40):
        height, width = random.randint(40, 120, 2).tolist()
        boxes, mask = rectangles(random, height, width, 3)
        written = apply(transform, record(height, width, boxes, mask), visit=visit)
        out = {name: rows[0] for name, rows in written.items()}
        h, w = out["size"]
        kept = out["box_labels"] != NO_BOX
        assert not out["boxes"][~kept].any()
        dropped += 3 - kept.sum()
        for box, label in zip(out["boxes"][kept], out["box_labels"][kept], strict=True):
            assert 0 <= box[0] < box[2] <= w
            assert 0 <= box[1] < box[3] <= h
            rows, columns = np.nonzero(out["segmentation"] == label + 1)
            if len(rows) == 0:  # less than a pixel of it is left
                assert min(box[2] - box[0], box[3] - box[1]) < 1.01
                continue
            around = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(box, around, atol=1.01)
            seen += 1
        there = set(np.unique(out["segmentation"][:h, :w])) - {0, 255}
        assert there <= set(out["box_labels"][kept] + 1)
    assert seen > 40
    assert (dropped > 0) == resizing.cuts


def test_crops_depend_on_seed_visit_and_record_alone():
    transform = DenseTransform(Resizing("jitter"), ((48, 48),), boxes=True, max_boxes=4, seed=1)
    item = record(80, 100, [[10, 10, 60, 70]])
    first, again = apply(transform, item, item), apply(transform, item, item)
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, again[name])
    assert (first["size"][0] != first["size"][1]).any()  # another number, another crop
    seeded = dataclasses.replace(transform, seed=2)
    for other in (apply(transform, item, visit=1), apply(seeded, item)):
        assert (other["size"][0] != first["size"][0]).any() or (other["boxes"][0] != first["boxes"][0]).any()


def test_crowds_are_dropped_and_too_many_boxes_are_refused():
    boxes = [[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 3, 3]]
    transform = DenseTransform(FIT, CANVASES, boxes=True, max_boxes=2, canvas=CANVASES[0])
    out = apply(transform, record(20, 32, boxes, crowd=np.asarray([False, True, False])))
    assert out["box_labels"][0].tolist() == [0, 2]
    with pytest.raises(DataError, match=r"Image 5 \(record 0\) has 3 boxes, more than data.dense.max_boxes=2"):
        apply(transform, record(20, 32, boxes))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fits"}, "data.dense.resize is 'fits': did you mean fit"),
        ({"shorter": ()}, "data.dense.shorter"),
        ({"kind": "range", "shorter": (40,)}, "for a range"),
        ({"longer": 700}, "less than"),
        ({"longer": None}, "data.dense.longer is not set"),
        ({"jitter": (0.0, 1.0)}, "data.dense.jitter"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Resizing(**fields)


@pytest.mark.parametrize(
    ("resizing", "canvases", "message"),
    [
        (FIT, ((40, 64),), r"none of which holds 64x40"),
        (FIT, (), "height, width"),
        (FIT, (*CANVASES, (40, 64)), "give each canvas once"),
        (Resizing("jitter"), CANVASES, "takes one canvas"),
    ],
)
def test_canvases_that_do_not_hold_all_are_refused(resizing: Resizing, canvases: tuple, message: str):
    with pytest.raises(ConfigError, match=message):
        DenseTransform(resizing, canvases)


def test_each_record_has_the_least_canvas_that_holds_it():
    sizes = np.random.RandomState(0).randint(20, 200, (300, 2))
    canvases = (*CANVASES, (44, 44))
    found = FIT.canvases_of(sizes, canvases)
    for (height, width), number in zip(sizes.tolist(), found.tolist(), strict=True):
        new = FIT.size(height, width, (999, 999), 0)
        holding = [c for c in canvases if new[0] <= c[0] and new[1] <= c[1]]
        assert canvases[number] == min(holding, key=lambda c: c[0] * c[1])
    parts = bucket_indices(sizes, FIT, canvases)
    assert sorted(np.concatenate([indices for _, indices in parts]).tolist()) == list(range(300))
    for canvas, indices in parts:
        assert {canvases[number] for number in found[indices]} == {canvas}


def test_canvases_of_records_and_what_none_holds():
    assert FIT.canvases_of(np.zeros((0, 2), np.int32), CANVASES).shape == (0,)
    assert Resizing("squash").canvases_of(np.array([[9, 9], [5, 70]]), ((8, 8),)).tolist() == [0, 0]
    with pytest.raises(ConfigError, match="holds an image of 50x20 pixels, height first, that becomes 64x25"):
        FIT.canvases_of(np.array([[20, 50], [50, 20], [60, 20]]), ((40, 64),))


def test_made_up_images_and_parts_of_data_know_their_sizes():
    source = MadeUpSource(40, 5, seed=3)
    assert source.sizes.dtype == np.int32
    assert [tuple(size) for size in source.sizes.tolist()] == [source.image_size(index) for index in range(40)]
    part = DenseSubset(source, np.array([7, 2, 30]))
    assert [tuple(size) for size in part.sizes.tolist()] == [source.image_size(index) for index in (7, 2, 30)]


@pytest.mark.parametrize("counts", [(50, 31, 19), (100, 0, 0), (7, 7, 7), (3, 3, 3)])
def test_a_bucket_order_visits_each_record_at_most_once_an_epoch(counts: tuple[int, ...]):
    numbers = np.repeat(np.arange(3), counts)
    np.random.RandomState(0).shuffle(numbers)
    canvases = ((1, 3), (3, 1), (2, 2))
    batches = order.BucketOrder(numbers, canvases, batch_size=8, seed=3)
    steps = len(numbers) // 8
    assert batches.steps_per_epoch == steps
    orders = []
    for epoch in range(2):
        records = [batches.records(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        kinds = [batches.canvas(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        seen = np.concatenate(records)
        assert len(set(seen.tolist())) == len(seen) == 8 * steps
        for rows, canvas in zip(records, kinds, strict=True):
            if canvas in canvases:
                assert {canvases[number] for number in numbers[rows]} == {canvas}
            else:
                assert canvas == (3, 3)
        assert [kinds.count(canvas) for canvas in canvases] == [count // 8 for count in counts]
        assert {int(visit) for visit in batches.visits(epoch * steps)} == {epoch}
        orders.append(records)
    if steps > 2:
        assert any((a != b).any() for a, b in zip(*orders, strict=True))


def test_batches_of_an_epoch_are_shuffled_and_other_orders_keep_their_canvas():
    batches = order.BucketOrder(np.arange(400) % 2, CANVASES, batch_size=4, seed=0)
    kinds = [batches.canvas(step) for step in range(100)]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    assert 30 < changes < 70
    moved = order.OffsetOrder(order.ReplayOrder(batches, 2), 4)
    assert [moved.canvas(step) for step in range(20)] == [batches.canvas((step + 4) // 2) for step in range(20)]
    again = pickle.loads(pickle.dumps(batches))
    assert [again.canvas(step) for step in range(100)] == kinds


@pytest.fixture
def source(tmp_path: pathlib.Path) -> CocoSource:
    return CocoSource(write_coco(tmp_path), "train2017", masks=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaded_batches_have_the_canvas_of_their_step(source: CocoSource, num_workers: int):
    numbers = FIT.canvases_of(source.sizes, CANVASES)
    batches = order.BucketOrder(numbers, CANVASES, batch_size=2, seed=0)
    transform = DenseTransform(FIT, CANVASES, boxes=True, masks=True, max_boxes=5).following(batches)
    shapes = {t.fields()["image"].shape for t in transform.shapes()}
    assert shapes == {(40, 64, 3), (64, 40, 3), (64, 64, 3)}
    assert transform.largest().fields()["image"].shape == (64, 64, 3)
    with create_loader(source, batches, transform, np.arange(2), num_workers=num_workers, num_threads=2) as loader:
        for step in range(4):
            batch = loader.start(step)()
            assert batch["image"].shape == (2, *batches.canvas(step), 3)
            assert batch["index"].tolist() == batches.records(step).tolist()
            for row, index in enumerate(batch["index"]):
                objects = source.annotations(int(index))
                kept = batch["box_labels"][row] != NO_BOX
                assert batch["box_labels"][row][kept].tolist() == objects["box_labels"][~objects["crowd"]].tolist()
                assert batch["original"][row].tolist() == list(source.image_size(int(index)))
                expected = scale_boxes(objects["boxes"], source.image_size(int(index)), tuple(batch["size"][row]))
                limit = np.tile(batch["size"][row][::-1], 2)
                np.testing.assert_allclose(batch["boxes"][row][kept], np.minimum(expected, limit)[~objects["crowd"]])
            batch.release()


def test_a_damaged_image_is_replaced_whatever_its_canvas(source: CocoSource, tmp_path: pathlib.Path):
    (tmp_path / "train2017" / "0003.jpg").write_bytes(encode(picture(*SIZES[3], 3))[:300])
    batches = order.BucketOrder(FIT.canvases_of(source.sizes, CANVASES), CANVASES, batch_size=2, seed=0)
    transform = DenseTransform(FIT, CANVASES, boxes=True, masks=True, max_boxes=5).following(batches)
    with Loader(source, batches, transform, np.arange(2), 1, max_bad_records=1) as loader:
        replaced = 0
        for step in range(8):
            batch = loader.start(step)()
            height, width = batches.canvas(step)
            assert (batch["size"] <= [height, width]).all()
            replaced += int(batch["replaced"].sum())
        assert replaced

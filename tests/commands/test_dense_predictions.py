"""The commands with detectors and segmenters: what they write, and which refuse them."""

import importlib
import json
import pathlib

import numpy as np
import PIL.Image
import pycocotools.coco
import pycocotools.cocoeval
import pytest
from conftest import encode, picture
from stored_features import store
from test_predict_dense import bold

from vision_jax import build
from vision_jax.commands import coco_results, common, dense_predictions, predict
from vision_jax.commands.coco_results import CocoIds
from vision_jax.data.images import ImageSource
from vision_jax.errors import DataError
from vision_jax.predict_dense import Boxes, DensePrediction, DensePredictor


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(encode(picture(40, 60, seed=1), "PNG"))
    (folder / "b.jpg").write_bytes(b"\xff\xd8nothing")
    (folder / "more" / "a.jpg").write_bytes(encode(picture(64, 64, seed=2)))
    return folder


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_masks_and_overlays(
    dense_runs: dict[str, pathlib.Path],
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
):
    drawn, output = tmp_path / "drawn", tmp_path / "found.jsonl"
    arguments = [f"--workdir={dense_runs['masks']}", f"--draw={drawn}", f"--output={output}", str(images)]
    assert predict.main(arguments) == 3
    first, damaged, second = lines(output.read_text())
    assert damaged.keys() == {"image", "error"}
    assert first["size"] == [40, 60]
    assert sum(each["share"] for each in first["classes"]) == pytest.approx(1, abs=1e-4)
    assert sorted(path.name for path in drawn.iterdir()) == [
        *("a-2.overlay.png", "a-2.png", "a.overlay.png", "a.png")  # two images have the same name
    ]
    assert second["mask"] == str(drawn / "a-2.png")
    mask = np.asarray(PIL.Image.open(first["mask"]))
    shares = {each["class"]: each["share"] for each in first["classes"]}
    assert shares == {n: pytest.approx((mask == n).mean(), abs=1e-6) for n in np.unique(mask).tolist()}
    names = ["background", *map(str, range(10))]
    assert [each["name"] for each in first["classes"]] == [names[each["class"]] for each in first["classes"]]
    assert PIL.Image.open(first["overlay"]).size == (60, 40)
    # What is there is not replaced, and images themselves never are.
    capsys.readouterr()
    assert predict.main([*arguments[:2], str(images)]) == 1
    assert "a folder with files" in capsys.readouterr().err
    assert predict.main([arguments[0], f"--draw={images}", "--overwrite", str(images / "a.png")]) == 1
    assert "is one of the images themselves" in capsys.readouterr().err


@pytest.fixture
def listed(images: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A file of COCO's kind that lists the images, and categories in another order than that of the classes."""
    names = ("more/a.jpg", "b.jpg", "a.png")
    content = {
        "images": [{"id": 7 * number, "file_name": name} for number, name in enumerate(names, 1)],
        "categories": [{"id": 3 * digit + 5, "name": str(digit)} for digit in reversed(range(10))],
    }
    path = tmp_path / "image_info.json"
    path.write_text(json.dumps(content))
    return path


def test_results_for_coco(
    dense_runs: dict[str, pathlib.Path],
    images: pathlib.Path,
    listed: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The ids are those of the file, and pycocotools counts as precise what it is told to be the truth."""
    trained = bold(build.from_workdir(dense_runs["boxes"]))
    monkeypatch.setattr(common, "load_model", lambda *_, **__: trained)
    output = tmp_path / "found.json"
    flags = [f"--workdir={dense_runs['boxes']}", f"--annotations={listed}", f"--output={output}", str(images)]
    assert predict.main(flags) == 3
    rows = json.loads(output.read_text())
    expected = [
        {
            "image_id": {"a.png": 21, "a.jpg": 7}[pathlib.Path(prediction.path).name],
            "category_id": 3 * label + 5,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for prediction in DensePredictor(trained).stream(ImageSource.find([str(images)]))
        if prediction.boxes is not None
        for (x1, y1, x2, y2), label, score in zip(
            prediction.boxes.boxes.tolist(),
            prediction.boxes.labels.tolist(),
            prediction.boxes.scores.tolist(),
            strict=True,
        )
    ]
    assert rows == expected
    assert {row["image_id"] for row in rows} == {7, 21}

    best = max(rows, key=lambda row: row["score"])
    truth = pycocotools.coco.COCO()
    truth.dataset = json.loads(listed.read_text())
    truth.dataset["annotations"] = [{**best, "id": 1, "area": best["bbox"][2] * best["bbox"][3], "iscrowd": 0}]
    truth.createIndex()
    evaluation = pycocotools.cocoeval.COCOeval(truth, truth.loadRes(str(output)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "b.jpg is no image of"),
        ({"categories": [{"id": 1, "name": "cat"}]}, "has no category '0', which the model finds"),
        ({"images": [{"id": 1}]}, "need an id and a file_name"),
        ({"categories": [{"id": 1, "name": "0"}, {"id": 2, "name": "0"}]}, "has two categories with the name '0'"),
        ({"images": []}, "has no list of images"),
    ],
)
def test_lists_that_do_not_fit(images: pathlib.Path, listed: pathlib.Path, change: dict, message: str):
    listed.write_text(json.dumps(json.loads(listed.read_text()) | change))
    with pytest.raises(DataError, match=message):
        CocoIds(listed, ImageSource.find([str(images)]), [str(digit) for digit in range(10)])


def test_a_list_is_there_once_it_is_whole(tmp_path: pathlib.Path):
    output = tmp_path / "found.json"
    output.write_text("before")

    def stop() -> None:
        with coco_results.writing(output) as write:
            write({"image_id": 1})
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    assert output.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    with coco_results.writing(output):
        pass
    assert json.loads(output.read_text()) == []


def test_boxes_as_json_and_pictures(
    dense_runs: dict[str, pathlib.Path], images: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
    drawn = tmp_path / "drawn"
    arguments = [f"--workdir={dense_runs['boxes']}", "--threshold=0", f"--draw={drawn}", str(images / "a.png")]
    assert predict.main(arguments) == 0
    (found,) = lines(capsys.readouterr().out)
    assert found.keys() == {"image", "boxes", "scores", "labels", "names", "picture"}
    assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) == len(found["names"])
    assert PIL.Image.open(found["picture"]).size == (480, 320)


def test_what_a_line_of_boxes_has():
    boxes = Boxes(
        np.array([[1, 2, 3.456, 4], [5, 6, 7, 8]], np.float32),
        np.array([0.9, 0.25], np.float32),
        np.array([1, 0], np.int32),
    )
    found = dense_predictions.as_dict(DensePrediction("a.jpg", boxes=boxes), ["cat", "dog"], 0.3)
    assert found == {
        "image": "a.jpg",
        "boxes": [[1.0, 2.0, 3.46, 4.0]],
        "scores": [0.9],
        "labels": [1],
        "names": ["dog"],
    }


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("boxes", ["--threshold=2"], "--threshold is 2: give a score, from 0 to 1."),
        ("masks", ["--threshold=0.5"], "--threshold is 0.5, which is for detectors."),
        ("boxes", ["--topk=3"], "--topk is 3, which is for classes of whole images."),
        ("boxes", ["--format=csv"], "The format is csv, and boxes are written as JSON lines: --format=jsonl."),
        (
            "boxes",
            ["--format=coco"],
            "--annotations=FILE, whose ids they have, and COCO's results go together: --output=FILE.json, or "
            "--format=coco and another --output.",
        ),
        (
            "boxes",
            ["--annotations=a.json", "--format=coco"],
            "COCO's results are a file: name it by --output=FILE.json.",
        ),
    ],
)
def test_flags_that_do_not_fit(
    kind: str,
    flags: list[str],
    message: str,
    dense_runs: dict[str, pathlib.Path],
    images: pathlib.Path,
    capsys: pytest.CaptureFixture,
):
    assert predict.main([f"--workdir={dense_runs[kind]}", *flags, str(images)]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("features", ["IMAGES", "--output=OUT"]),
        ("explain", ["IMAGES", "--output=OUT"]),
        ("search", ["--index=FEATURES", "IMAGES"]),
        ("zero_shot", ["IMAGES", "--classes=CLASSES"]),
        ("serve", []),
        ("compress", ["--output=OUT"]),
    ],
)
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_commands_for_whole_images_refuse(
    kind: str,
    verb: str,
    arguments: list[str],
    dense_runs: dict[str, pathlib.Path],
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
):
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog\n")
    places = {"IMAGES": str(images / "a.png"), "OUT": str(tmp_path / "out"), "CLASSES": str(classes)}
    places["FEATURES"] = str(tmp_path / "features")
    store(tmp_path / "features", np.eye(4, dtype=np.float32))
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    main = importlib.import_module(f"vision_jax.commands.{verb}").main
    assert main([*arguments, f"--workdir={dense_runs[kind]}"]) == 1
    error = capsys.readouterr().err
    assert f"is a model of {kind}, and this command is for models of whole images" in error
    assert error.count("\n") == 1
    assert error.startswith("error: ")


def test_classifiers_refuse_what_is_for_boxes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    """The flag is checked where the model is known; here it is one that cannot be read."""
    (tmp_path / "a.png").write_bytes(encode(picture(8, 8), "PNG"))
    arguments = ["--model=resnet18", "--pretrained=nowhere.safetensors", f"--draw={tmp_path}", str(tmp_path / "a.png")]
    assert predict.main(arguments) == 1
    assert "a folder with files" in capsys.readouterr().err

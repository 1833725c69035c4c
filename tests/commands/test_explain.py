"""The command explain, and its parts: what it writes is compared with the methods' own functions."""

import html.parser
import json
import math
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from conftest import picture

import vision_jax
from vision_jax import explain, explanations, pretrained
from vision_jax.commands import common
from vision_jax.commands import explain as command
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError
from vision_jax.explain import METHODS
from vision_jax.explain.curves import deletion, insertion
from vision_jax.explanations import files, overlays, page
from vision_jax.explanations.faithfulness import RANDOM, Curves, Means
from vision_jax.models import registry
from vision_jax.predict import Predictor
from vision_jax.runtime import writers

SIZE = 28
MODEL = vision_jax.create_model("lenet5", num_classes=10)
SPEC = registry.entry("lenet5").input
NAMES = ["zero", "<b>one", "Two of them", *(f"digit {i}" for i in range(3, 10))]
METHODS_ASKED = {"saliency": "saliency", "ig:steps=4": "ig-steps-4", "gradcam": "gradcam"}
GOOD = ("0.png", "1.png", "3.png")  # 2.png is damaged


@pytest.fixture(scope="module")
def variables() -> dict:
    initial = jax.jit(lambda: MODEL.init(jax.random.key(1), jnp.zeros((1, SIZE, SIZE, 1)), train=False))()
    return jax.tree.map(lambda x: 1.5 * x, dict(initial))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        PIL.Image.fromarray(picture(SIZE, SIZE, seed=i)[:, :, 0]).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder


@pytest.fixture(scope="module")
def model_flags(variables: dict, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("weights") / "lenet5.safetensors"
    names = {"class_names": json.dumps(NAMES)}
    safetensors.numpy.save_file(pretrained.to_torch("lenet5", jax.device_get(variables)), path, names)
    return ["--model=lenet5", f"--pretrained={path}"]


@pytest.fixture(scope="module")
def done(model_flags: list[str], photos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a command with three methods and curves; its images and flags are those above."""
    output = tmp_path_factory.mktemp("explained") / "out"
    flags = [f"--method={','.join(METHODS_ASKED)}", "--curves", "--curve_step=196", "--topk=3"]
    assert command.main([*model_flags, str(photos), f"--output={output}", *flags]) == common.DAMAGED
    return output


@pytest.fixture(scope="module")
def found(done: pathlib.Path) -> dict:
    return json.loads((done / "explanations.json").read_text())


def pixels(photos: pathlib.Path) -> np.ndarray:
    """Returns the images that are not damaged, (images, height, width, 1) uint8."""
    return np.stack([np.asarray(PIL.Image.open(photos / name))[:, :, None] for name in GOOD])


def logits(variables: dict, images: np.ndarray) -> np.ndarray:
    normalized = (images.astype(np.float32) / 255 - SPEC.mean) / SPEC.std
    return np.asarray(MODEL.apply(variables, jnp.asarray(normalized), train=False))


def entries(found: dict) -> list[dict]:
    return [entry for entry in found["images"] if "error" not in entry]


def test_predictions_and_targets(found: dict, variables: dict, photos: pathlib.Path):
    assert [entry["image"] for entry in found["images"]] == [f"{photos}/{i}.png" for i in range(4)]
    assert found["images"][2].keys() == {"image", "error"}
    assert (found["seed"], found["target"], found["model"]["name"]) == (0, None, "lenet5")
    for entry, row in zip(entries(found), logits(variables, pixels(photos)), strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        best = int(row.argmax())
        assert entry["prediction"] == entry["target"] == entry["classes"][0]
        assert (entry["target"]["number"], entry["target"]["name"]) == (best, NAMES[best])
        assert entry["target"]["probability"] == pytest.approx(probabilities[best], rel=1e-4)
        assert entry["score"] == pytest.approx(row[best], rel=1e-4, abs=1e-5)
        assert [each["number"] for each in entry["classes"]] == np.argsort(-row)[:3].tolist()


def test_maps_are_those_of_the_methods(found: dict, done: pathlib.Path, variables: dict, photos: pathlib.Path):
    images = pixels(photos)
    targets = logits(variables, images).argmax(-1)
    for name in METHODS_ASKED:
        method = explain.parse_method(name)
        explainer = jax.jit(explain.make_explainer(MODEL, method, mean=SPEC.mean, std=SPEC.std))
        expected = explainer(variables, images.astype(np.float32) / 255, targets)
        for entry, values in zip(entries(found), np.asarray(expected), strict=True):
            written = np.load(done / entry["maps"][name]["map"])
            assert (written.shape, written.dtype) == ((SIZE, SIZE), np.float32)
            np.testing.assert_allclose(written, values, rtol=1e-3, atol=1e-4 * np.abs(values).max())
            assert entry["maps"][name]["least"] == written.min()
            assert entry["maps"][name]["largest"] == written.max()
    assert found["methods"]["ig:steps=4"]["name"] == "integrated_gradients"
    assert found["methods"]["ig:steps=4"]["options"]["steps"] == 4
    assert found["methods"]["gradcam"]["options"] == {"layer": MODEL.gradcam_layer}


def test_files_and_their_sizes(found: dict, done: pathlib.Path, photos: pathlib.Path):
    written = {path.relative_to(done).as_posix() for path in done.rglob("*") if path.is_file()}
    named = {"index.html", "explanations.json", "contact_sheet.png"}
    for number, entry in zip((0, 1, 3), entries(found), strict=True):
        base = f"{number:05d}_{number}"
        assert entry["input"] == f"images/{base}.png"
        for name, slug in METHODS_ASKED.items():
            assert entry["maps"][name]["overlay"] == f"overlays/{base}.{slug}.png"
            assert entry["maps"][name]["map"] == f"maps/{base}.{slug}.npy"
            with PIL.Image.open(done / entry["maps"][name]["overlay"]) as overlay:
                assert (overlay.size, overlay.mode) == ((224, 224), "RGB")  # eight pixels for each
            named |= {entry["maps"][name]["overlay"], entry["maps"][name]["map"]}
        named.add(entry["input"])
        seen = np.asarray(PIL.Image.open(done / entry["input"]))
        np.testing.assert_array_equal(
            seen, np.asarray(PIL.Image.open(photos / f"{number}.png"))[..., None].repeat(3, 2)
        )
    assert written == named
    with PIL.Image.open(done / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * (160 + 6) + 6, 3 * (18 + 160 + 16 + 6) + 6)


def test_curves_say_which_method_is_faithful(found: dict, variables: dict, photos: pathlib.Path, done: pathlib.Path):
    images = pixels(photos).astype(np.float32) / 255
    targets = jnp.asarray(logits(variables, pixels(photos)).argmax(-1))

    def apply(x: jax.Array) -> jax.Array:
        return MODEL.apply(variables, (x - jnp.asarray(SPEC.mean)) / jnp.asarray(SPEC.std), train=False)

    for name in METHODS_ASKED:
        maps = np.stack([np.load(done / entry["maps"][name]["map"]) for entry in entries(found)])
        deleted = np.asarray(deletion(apply, images, maps, targets, step=196, baseline=np.float32(SPEC.mean)).auc)
        inserted = np.asarray(insertion(apply, images, maps, targets, step=196).auc)
        of_images = [[entry["maps"][name][f"{kind}_auc"] for entry in entries(found)] for kind in KINDS]
        np.testing.assert_allclose(of_images, [deleted, inserted], rtol=1e-3)
        means = found["faithfulness"][name]
        assert [means[f"{kind}_auc"] for kind in KINDS] == pytest.approx([deleted.mean(), inserted.mean()], rel=1e-3)
        assert means["overall"] == pytest.approx(inserted.mean() - deleted.mean(), abs=1e-4)
        assert means["images"] == 3
        assert len(means["deletion_curve"]) == 784 / 196 + 1
    assert found["faithfulness"].keys() == {*METHODS_ASKED, RANDOM}
    overall = [each["overall"] for each in found["faithfulness"].values()]
    assert overall == sorted(overall, reverse=True)


KINDS = ("deletion", "insertion")


class Page(html.parser.HTMLParser):
    """The elements of a page and its text, by the id of the element that it is in; all elements are closed."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.source = path.read_text(encoding="ascii")
        self.elements: list[tuple[str, dict]] = []
        self.within: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "br"):
            self._open.append((tag, dict(attributes).get("id")))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, name in self._open:
            if name:
                self.within[name] = self.within.get(name, "") + data


def test_the_page(done: pathlib.Path, found: dict, photos: pathlib.Path):
    shown = Page(done / "index.html")
    tags = [tag for tag, _ in shown.elements]
    images = [attributes for tag, attributes in shown.elements if tag == "img"]
    assert len(images) == 2 + 3 * (1 + len(METHODS_ASKED))  # with the colors of both kinds of maps
    assert all(each["src"].startswith("data:image/") and each["alt"] for each in images)
    assert not {"script", "link", "b", "iframe"} & set(tags)
    assert "http" not in shown.source.replace(str(photos), "")
    assert not re.search(r"url\((?!#)|@import", shown.source)
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for number, entry in zip((0, 1, 3), entries(found), strict=True):
        text = shown.within[f"image{number}"]
        assert text.startswith(f"{photos}/{number}.png")
        assert f"Predicted: {entry['prediction']['name']} {entry['prediction']['probability']:.1%}" in text
        for name in METHODS_ASKED:
            assert f"{name} for {entry['target']['name']}" in text
            assert f"deletion {entry['maps'][name]['deletion_auc']:.3f}" in text
    assert "damaged: " in shown.within["image2"]
    best = next(iter(found["faithfulness"]))
    best_said = "No method is better" if best == RANDOM else f"{best} is the most faithful of these"
    assert shown.within["faithful"].startswith(f"Faithfulness{best_said}")
    for each in found["faithfulness"].values():
        assert f"{each['deletion_auc']:.4f}" in shown.within["faithful"]
    assert "arXiv:1703.01365" in shown.within["methods"]
    assert "steps=4, baseline=0.0, rule=midpoint" in shown.within["methods"]


def test_every_method_is_described():
    assert set(page.ABOUT) == {kind().name for kind in METHODS.values()}


def test_neither_the_batch_nor_the_devices_change_maps(variables: dict, photos: pathlib.Path):
    one = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    placed = sharding.place(variables, sharding.replicated(one))
    paths, method = [photos / name for name in GOOD], "smoothgrad:samples=2"
    alone = explanations.explain_images(
        Predictor(MODEL, placed, mesh=one), paths, method, target="7", batch_size=2, seed=3
    )
    predictor = Predictor(MODEL, variables)
    among = explanations.explain_images(predictor, paths, method, target="7", seed=3)
    other = explanations.explain_images(predictor, paths, method, target="7", seed=4)
    for row in range(3):
        maps, same = alone[row].maps[method], among[row].maps[method]
        np.testing.assert_allclose(maps, same, rtol=1e-3, atol=1e-4 * np.abs(maps).max())
        assert np.abs(maps - other[row].maps[method]).max() > 0.01 * np.abs(maps).max()
        assert (among[row].target.number, among[row].target.name) == (7, "7")


def test_a_target_by_name(model_flags: list[str], photos: pathlib.Path, tmp_path: pathlib.Path):
    flags = [*model_flags, str(photos / "0.png"), "--method=saliency", "--target=two of THEM"]
    assert command.main([*flags, f"--output={tmp_path / 'out'}"]) == 0
    written = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert written["images"][0]["target"]["number"] == 2
    assert "faithfulness" not in written
    assert "Explained: Two of them" in Page(tmp_path / "out" / "index.html").within["image0"]


def test_what_is_there_is_replaced_only_if_asked(
    model_flags: list[str], photos: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path, capsys
):
    output = tmp_path / "out"
    shutil.copytree(done, output)
    flags = [*model_flags, str(photos / "1.png"), "--method=saliency", f"--output={output}"]
    assert command.main(flags) == 1
    assert "There are explanations in" in capsys.readouterr().err
    assert (output / "overlays" / "00000_0.gradcam.png").exists()
    (output / "mine.txt").touch()
    assert command.main([*flags, "--overwrite"]) == 1
    assert "which has other files, such as mine.txt: give another folder" in capsys.readouterr().err
    (output / "mine.txt").unlink()
    mine = tmp_path / "pictures" / "images" / "00000_0.png"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert command.main([*flags[:-1], f"--output={tmp_path / 'pictures'}", "--overwrite"]) == 1
    assert "pictures, which has other files, such as images: give another folder" in capsys.readouterr().err
    assert mine.exists()
    with writers.open_workdir(output):
        assert command.main([*flags, "--overwrite"]) == 1
    assert "Another run is using" in capsys.readouterr().err
    assert (output / "overlays" / "00000_0.gradcam.png").exists()
    assert command.main([*flags, "--overwrite"]) == 0
    assert [path.name for path in (output / "overlays").iterdir()] == ["00000_1.saliency.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target=digit"], "There is no class 'digit': did you mean digit 3 or digit 4 or digit 5?"),
        (["--target=tow of them"], "There is no class 'tow of them': did you mean Two of them?"),
        (["--target=10"], "There is no class '10': there are: zero, "),
        (["--method=gradcm"], "The method is 'gradcm': "),
        (["--method=ig:stepz=3"], "The method ig has no option 'stepz': it takes steps"),
        (["--method=ig:steps=0"], "The option steps of integrated_gradients is 0"),
        (["--method=,"], "The methods are ',': give one, such as gradcam"),
        (["--method=ig,gradcam,integrated_gradients"], "The method integrated_gradients is there twice"),
        (["--method=gradcam:layer=layer4"], "The layer 'layer4' is not there: the model has "),
        (["--method=rollout"], "attention"),
        (["--output=FILE"], "which is a file: give a folder"),
        (["--output=nowhere/out"], "but there is no folder nowhere"),
        (["--output=gs://bucket/out"], "URLs are not supported here"),
        (["--batch_size=0"], "--batch_size is 0: give 1 or more."),
        (["--curve_step=0", "--curves"], "--curve_step is 0: give 1 or more."),
        (["--curve_step=9"], "--curve_step is 9, which is for --curves alone."),
        (["--seed=-1"], "--seed is -1: give a number from 0"),
        (["IMAGE=nowhere.png"], "There is no nowhere.png: give image files, folders or archives."),
        (["--workdir=x"], "Which model?"),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str],
    message: str,
    model_flags: list[str],
    photos: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    image = next((flag.removeprefix("IMAGE=") for flag in flags if flag.startswith("IMAGE=")), str(photos / "0.png"))
    flags = [flag.replace("FILE", "file") for flag in flags if not flag.startswith("IMAGE=")]
    assert command.main([*model_flags, image, "--output=out", *flags]) == 1
    out, error = capsys.readouterr()
    assert message in error.splitlines()[-1]
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    assert not out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_images_that_are_all_no_images(model_flags: list[str], tmp_path: pathlib.Path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    flags = [*model_flags, str(tmp_path / "text.jpg"), "--method=saliency", "--curves", f"--output={tmp_path / 'out'}"]
    assert command.main(flags) == common.DAMAGED
    error = capsys.readouterr().err
    assert "text.jpg: it is not an image of a known format" in error
    assert "1 of 1 images are damaged, as named above." in error
    assert not (tmp_path / "out" / "contact_sheet.png").exists()
    assert "damaged: it is not an image" in Page(tmp_path / "out" / "index.html").within["image0"]


def test_a_model_without_a_layer_of_its_own(variables: dict):
    class Nameless(type(MODEL)):
        @property
        def gradcam_layer(self):
            raise NotImplementedError

    model = Nameless(num_classes=10, in_channels=1)
    predictor = Predictor(MODEL, variables)
    predictor.model = model
    with pytest.raises(ConfigError, match=r"a Nameless, has no default: give one, as in gradcam:layer=NAME\.$"):
        explanations.ImageExplainer(predictor, explanations.parse_methods("gradcam"))


def test_logits_and_maps_that_are_not_finite(variables: dict, photos: pathlib.Path, tmp_path: pathlib.Path):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    one = explanations.explain_images(Predictor(MODEL, broken), [photos / "0.png"], "saliency")[0]
    assert one.error == "the model's logits are not finite"
    assert (one.classes, one.target, one.maps) == ((), None, {})


def test_the_page_and_the_sheet_end_where_people_would(tmp_path: pathlib.Path, variables: dict, photos, monkeypatch):
    monkeypatch.setattr(files, "MOST_SHOWN", 1)
    shown = explanations.explain_images(Predictor(MODEL, variables), [photos / name for name in GOOD], "saliency")
    folder = explanations.Folder(tmp_path / "out", explanations.parse_methods("saliency"))
    for explanation in shown:
        folder.add(explanation)
    folder.finish("Title", {"model": {"name": "a model", "origin": "here"}})
    text = Page(tmp_path / "out" / "index.html").source
    assert "Here: the first 1 of 3 images." in text
    assert "image1" not in text
    assert len(json.loads((tmp_path / "out" / "explanations.json").read_text())["images"]) == 3


def test_colors():
    values = np.array([[0.0, 1.0], [2.0, 4.0]])
    scaled = overlays.scaled(values, signed=False)
    assert (scaled[0, 0], scaled[1, 1]) == (0, 1)
    assert scaled[0, 1] == pytest.approx(1 / np.percentile(values, 99))
    assert overlays.scaled(values - 10, signed=False)[0, 0] == 0
    signed = overlays.scaled(np.array([[-8.0, 0.0], [2.0, 4.0]]), signed=True)
    assert (signed[0, 0], signed[0, 1]) == (-1, 0)
    assert not overlays.scaled(np.zeros((2, 2)), signed=True).any()
    against, none, _, favor = overlays.colored(signed, True).reshape(-1, 3).astype(int)
    assert against[2] > against[0] + 50  # blue
    assert favor[0] > favor[2] + 20  # reddish
    assert none.min() > 240  # nearly white
    # The lightness of what is not signed grows with the value.
    light = overlays.scale_of_colors(False)[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > -0.5).all()
    image = np.full((2, 2, 1), 100, np.uint8)
    drawn = overlays.overlay(image, values, False)
    assert (drawn.shape, drawn.dtype) == ((2, 2, 3), np.uint8)
    np.testing.assert_array_equal(drawn[0, 0], np.round(0.6 * overlays.scale_of_colors(False)[0, 0] + 40))


def test_sizes_of_pictures():
    assert overlays.enlarged(np.zeros((28, 28, 3), np.uint8)).shape == (224, 224, 3)
    assert overlays.enlarged(np.zeros((100, 100, 3), np.uint8)).shape == (300, 300, 3)
    assert overlays.enlarged(np.zeros((384, 384, 3), np.uint8)).shape == (384, 384, 3)
    assert overlays.resized(np.zeros((384, 384, 1), np.uint8), 160).shape == (160, 160, 1)


def test_means_of_curves():
    means = Means()
    means.add({"a": Curves(np.array([1, 0.5, 0]), np.array([0, 0.5, 1]))})
    means.add({"a": Curves(np.array([1, 0, 0]), np.array([0, 1, 1])), "b": Curves(np.ones(3), np.ones(3))})
    found = means.results()
    assert list(found) == ["a", "b"]
    assert (found["a"].images, found["b"].images) == (2, 1)
    assert found["a"].deletion == pytest.approx((1 / 2 + 0.25 + 0) / 2)
    assert found["a"].insertion == pytest.approx((0 + 0.75 + 1 / 2) / 2)
    assert math.isclose(found["b"].overall, 0)

"""The most confident mistakes on miniatures of the sets, worked out by hand, and what is written of them."""

import json
import pathlib

import evaluation_sets
import numpy as np
import pytest
from evaluation_sets import FAR, VALIDATION, WNIDS

from vision_jax import pretrained
from vision_jax.commands import common
from vision_jax.commands import suite as command
from vision_jax.evaluators.suites import IMAGENET_A_CLASSES
from vision_jax.suite.mistakes import judge
from vision_jax.suite.sets import Outputs


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    model = evaluation_sets.trained()
    monkeypatch.setattr(common, "load_model", lambda arguments: model)
    monkeypatch.setattr(common, "check_model_arguments", lambda arguments: None)

    def run(data: pathlib.Path, output: pathlib.Path, *flags: str) -> int:
        return command.main([f"--data={data}", f"--output={output}", "--batch_size=8", *flags])

    return run


def sets(output: pathlib.Path) -> dict:
    return json.loads((output / "suite.json").read_text())["sets"]


def written(output: pathlib.Path, name: str) -> dict:
    return json.loads((output / "mistakes" / name / "explanations.json").read_text())


def test_mistakes_are_explained(tmp_path: pathlib.Path, run, capsys: pytest.CaptureFixture):
    data, out = evaluation_sets.write_folders(tmp_path / "data"), tmp_path / "out"
    assert run(data, out, "--sets=val,real,a,objectnet", "--explain=saliency", "--mistakes=2") == 0
    words = pretrained.display_names(WNIDS)
    # Of the validation images 11 is taken for 10, the nearest, with less confidence than 999 and 1 for FAR.
    found = written(out, "val")
    assert (found["set"], found["model"]["name"]) == ("val", "colors")
    assert [(e["prediction"]["name"], e["label"]) for e in found["images"]] == [
        (words[FAR], words[1]),
        (words[FAR], words[999]),
    ]
    assert all(entry["target"] == entry["prediction"] for entry in found["images"])
    names = {
        f"ILSVRC2012_val_{number:08d}.JPEG" for number, (_, color) in VALIDATION.items() if (color == [5, 0, 0]).all()
    }
    assert {entry["image"].rpartition("/")[2] for entry in found["images"]} == names
    maps = np.load(out / "mistakes" / "val" / found["images"][0]["maps"]["saliency"]["map"])
    np.testing.assert_allclose(maps, maps[0, 0], rtol=1e-5)  # every pixel counts alike in the mean color
    assert maps[0, 0] > 0
    # Among ImageNet-A's classes 11 is the nearest to what looks like 10, and 15 is none: what is explained competes.
    (one,) = written(out, "a")["images"]
    assert one["label"] == words[15]
    assert one["prediction"]["name"] == words[FAR]
    assert one["target"]["number"] in IMAGENET_A_CLASSES
    # The banana is taken for a class that ObjectNet does not have.
    (one,) = written(out, "objectnet")["images"]
    assert (one["prediction"]["name"], one["label"]) == (words[FAR], "banana")
    entries = sets(out)
    said = {"methods": ["saliency"], "number": 2}
    assert entries["val"]["mistakes"] == {**said, "page": "mistakes/val/index.html"}
    assert "mistakes" not in entries["real"]
    text = (out / "mistakes" / "val" / "index.html").read_text()
    assert "Most confident mistakes: val" in text
    assert f"Label: <strong>{words[999]}</strong>" in text

    # What is there is not made again, and what is asked for otherwise is.
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (out / "mistakes").rglob("*.npy")}
    assert run(data, out, "--sets=val,a", "--explain=saliency", "--mistakes=2") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(data, out, "--sets=val", "--explain=saliency", "--mistakes=1") == 0
    assert capsys.readouterr().out.count("measured before") == 4 + 3
    assert len(written(out, "val")["images"]) == 1
    assert sets(out)["val"]["mistakes"]["number"] == 1
    assert sets(out)["val"]["top1"] == 50


def test_a_set_without_mistakes(tmp_path: pathlib.Path, run):
    evaluation_sets.write(
        tmp_path / "data", {f"imagenet-a/{WNIDS[6]}/0.png": evaluation_sets.png(evaluation_sets.right(6))}
    )
    assert run(tmp_path / "data", tmp_path / "out", "--explain=saliency") == 0
    assert sets(tmp_path / "out")["a"]["mistakes"] == {"methods": ["saliency"], "number": 16, "page": None}
    assert not (tmp_path / "out" / "mistakes").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--explain=gradcm"], "The method is 'gradcm': "),
        (["--explain=gradcam"], "gradcam needs a layer, and the model, a Colors, has no default: give one, as in "),
        (["--explain=rollout"], "attention"),
        (["--explain=saliency", "--mistakes=0"], "--mistakes is 0: give 1 or more."),
    ],
)
def test_what_cannot_be_explained_is_told_first(flags, message, tmp_path: pathlib.Path, run, capsys):
    evaluation_sets.write(tmp_path / "data", evaluation_sets.members(evaluation_sets.A, "imagenet-a"))
    assert run(tmp_path / "data", tmp_path / "out", *flags) == 1
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert error.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_judging_by_hand():
    outputs = Outputs(
        label=np.array([6, 11, 15]),
        index=np.arange(3),
        number=np.zeros(3, int),
        best=np.array([[6, 1], [10, 11], [-1, -1]]),
        best_a=np.array([[0, 1], [1, 0], [-1, -1]]),
        best_r=np.array([[0, 1], [1, 0], [-1, -1]]),
        confidence=np.array([0.9, 0.5, np.nan]),
        confidence_a=np.array([0.8, 0.7, np.nan]),
        confidence_r=np.array([0.6, 0.4, np.nan]),
    )
    val = judge("val", outputs)
    assert val.is_wrong.tolist() == [False, True, True]
    assert val.most_confident_mistakes(5).tolist() == [1]  # what has no prediction is left out
    a = judge("a", outputs)
    assert a.prediction.tolist() == [6, 11, -1]  # the first two of ImageNet-A's classes
    assert a.confidence.tolist()[:2] == [0.8, 0.7]
    assert a.most_confident_mistakes(5).tolist() == []

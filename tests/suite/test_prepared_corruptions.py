"""What `prepare --corrupt` writes, as the suite reads it: of ImageNet's classes, and of a model's own."""

import json
import pathlib

import evaluation_sets
import pytest
from evaluation_sets import WNIDS, png

from vision_jax.commands import common, prepare
from vision_jax.commands import suite as command

pytestmark = pytest.mark.usefixtures("in_process")


def prepared(directory: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
    """Corrupts pictures of the classes 0, 5 and 100 in ways that keep a picture of one color as it is."""
    for number in (0, 5, 100):
        color = evaluation_sets.right(number)
        evaluation_sets.write(directory / "val", {f"{names[number]}/{n}.png": png(color, 40) for n in range(2)})
    wrong = {f"{names[5]}/wrong.png": png(evaluation_sets.right(100), 40)}
    evaluation_sets.write(directory / "val", wrong)
    flags = ("--corrupt=zoom_blur:1,pixelate", "--short_side=40", "--crop=32", "--encoding=raw")
    assert prepare.main([str(directory), str(directory.parent / "sets" / "mine"), *flags]) == 0
    return directory.parent / "sets"


def measure(monkeypatch: pytest.MonkeyPatch, trained: object, data: pathlib.Path, output: pathlib.Path) -> dict:
    monkeypatch.setattr(common, "load_model", lambda arguments: trained)
    monkeypatch.setattr(common, "check_model_arguments", lambda arguments: None)
    assert command.main([f"--data={data}", f"--output={output}", "--batch_size=8", "--sets=c"]) == 0
    return json.loads((output / "suite.json").read_text())["sets"]


def test_of_imagenets_classes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    data = prepared(tmp_path / "input", WNIDS)
    found = measure(monkeypatch, evaluation_sets.trained(), data, tmp_path / "out")
    assert list(found) == ["c", "c/zoom_blur/1", *(f"c/pixelate/{severity}" for severity in range(1, 6))]
    for name in list(found)[1:]:
        assert found[name]["top1"] == pytest.approx(600 / 7)
        assert (found[name]["count"], found[name]["expected"]) == (7, 50_000)
    assert found["c"]["error"] == pytest.approx(100 / 7)
    # An unfinished one is told, and the others stay.
    (data / "mine" / "zoom_blur" / "2" / "incomplete").mkdir(parents=True)
    assert command.main([f"--data={data}", f"--output={tmp_path / 'out'}", "--batch_size=8"]) == 1
    failed = json.loads((tmp_path / "out" / "suite.json").read_text())["failed"]
    assert "is not finished: run the command that prepares it again" in failed["c/zoom_blur/2"]


def test_of_own_classes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    names = tuple(f"thing {number:04}" for number in range(1000))
    data = prepared(tmp_path / "input", names)
    found = measure(monkeypatch, evaluation_sets.trained(names), data, tmp_path / "out")
    assert found["c/pixelate/5"]["top1"] == pytest.approx(600 / 7)
    assert found["c/pixelate/5"]["expected"] == 7
    assert "mce" not in found["c"]
    assert "No mCE: AlexNet's errors, by which it divides, are those on ImageNet." in capsys.readouterr().out
    # Of other classes than the model's.
    others = tuple(f"other {number}" for number in range(1000))
    monkeypatch.setattr(common, "load_model", lambda arguments: evaluation_sets.trained(others))
    assert command.main([f"--data={data}", f"--output={tmp_path / 'others'}", "--batch_size=8", "--sets=c"]) == 1
    assert "has classes that are none of the model's: thing 0000, thing 0005, thing 0100" in capsys.readouterr().err

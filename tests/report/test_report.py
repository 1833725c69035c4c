"""The page of a small run: what it says is compared with the files of the run, scikit-learn and plain loops."""

import base64
import html.parser
import io
import itertools
import json
import logging
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
import rotation
import sklearn.metrics
from conftest import Command, encode, picture, records
from ml_collections import ConfigDict

from vision_jax import build, explanations, train
from vision_jax import config as config_lib
from vision_jax.commands import report as command_report
from vision_jax.data.transforms import EvalTransform
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.evaluators import per_class
from vision_jax.explain import make_explainer
from vision_jax.objectives.rotation import ANGLES
from vision_jax.report import curves, drawing, evaluation, figures, program, runs, samples
from vision_jax.report.classes import ClassTable
from vision_jax.runtime.checkpoint import Checkpointer
from vision_jax.runtime.writers import ProgressHandler

NAMES = ["<script>alert(1)", 'b & "b"', "cat $x$ \N{SNOWMAN}"]
SECTIONS = ["results", "curves", "time", "configuration", "classes", "calibration", "mistakes", "explained"]
SECTIONS += ["uncertain", "samples"]


class Page(html.parser.HTMLParser):
    """The elements of a page, its text, and the text within each element that has an id."""

    VOID = ("img", "meta", "link", "br")

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.source = path.read_text()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.within: dict[str, str] = {}
        self.data: dict[str, list[str]] = {}  # the exact numbers in each
        self._open: list[tuple[str, str | None]] = []
        self.feed(self.source)
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "data":
            for _, name in self._open:
                self.data.setdefault(name or "", []).append(str(dict(attributes)["value"]))
        if tag not in self.VOID:
            self._open.append((tag, dict(attributes).get("id")))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] != "style":
            self.text += data
            for _, name in self._open:
                if name:
                    self.within[name] = self.within.get(name, "") + f"{data}\n"

    def attributes(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.elements if name in attributes]

    @property
    def sections(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.elements if tag == "section"]


def write_folder(root: pathlib.Path) -> pathlib.Path:
    """Class folders with names that are markup; six training and five validation images each."""
    for split, count in (("train", 6), ("validation", 5)):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                data = encode(picture(20 + i, 24 - i, seed=100 * label + i + 50 * (split == "train")))
                (root / split / name / f"{i}.jpg").write_bytes(data)
    return root


def make_config(data: pathlib.Path) -> ConfigDict:
    config = config_lib.default_config()
    config.model.name, config.batch_size, config.total_steps, config.ema_decay = "lenet5", 8, 4, 0.5
    config.data.update({"source": "folder", "dir": str(data), "image_size": 16, "eval_resize": 18})
    config.augment.mixup = 1.0
    config.schedule.warmup_epochs, config.eval.every_steps, config.eval.batch_size = 0.0, 2, 8
    config.optimizer.learning_rate = 0.05
    config.log.update({"every_steps": 1, "tensorboard": False})
    with config.unlocked():
        config.evals.per_class = ConfigDict({"kind": "per_class"})
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run; its data is beside it. No test changes either."""
    root = tmp_path_factory.mktemp("report")
    train.train_and_evaluate(make_config(write_folder(root / "data")), root / "a run")
    return root / "a run"


@pytest.fixture(scope="module")
def page(workdir: pathlib.Path) -> Page:
    output = workdir.parent / "report.html"
    assert program.write_report([workdir], output) == []
    return Page(output)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command configures the logging of its process."""
    levels = {name: logging.getLogger(name).level for name in (None, "vision_jax", "absl", "asyncio")}
    hook = sys.unraisablehook
    yield
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, ProgressHandler):
            logging.getLogger().removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    sys.unraisablehook = hook


@pytest.fixture
def copied(workdir: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the run, without its checkpoints, and with few metrics, as drawing takes time."""
    shutil.copytree(workdir, tmp_path / "copied", ignore=shutil.ignore_patterns("checkpoints"))
    kept = ("step", "train/loss", "val/top1", "val/ema_top1", "val/count")
    lines = [{name: line[name] for name in kept if name in line} for line in records(workdir)]
    (tmp_path / "copied" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "copied"


def make_page(*arguments: Any, output: pathlib.Path) -> Page:
    assert command_report.main([*map(str, arguments), f"--output={output}"]) == 0
    return Page(output)


def test_every_section_is_there_and_nothing_comes_from_elsewhere(page: Page):
    assert page.sections == [*SECTIONS, "environment"]
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert "http" not in page.source
    assert not re.search(r"url\((?!#)|@import", page.source)
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)
    references = [href for href in page.attributes("href") if not href.startswith("data:")]
    assert {reference.removeprefix("#") for reference in references} <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg")
    assert {"header", "nav", "main", "footer"} <= tags
    assert len(page.source) < 2_000_000
    assert page.source.isascii()


def test_names_are_text(page: Page):
    """What is markup in the name of a class is no element, nor an attribute, of the page or a figure."""
    for name in NAMES:
        assert name in page.within["classes"]
        assert any(name in alt for alt in page.attributes("alt"))
    assert "<script" not in page.source


def test_results_are_those_of_the_files(page: Page, workdir: pathlib.Path):
    lines = records(workdir)
    last = next(line for line in reversed(lines) if "val/top1" in line)
    for name, value in last.items():
        if "/" in name:
            assert repr(float(value)) in page.data["results"], name
    best = max(line["val/top1"] for line in lines if "val/top1" in line)
    assert repr(best) in page.data["results"]
    goodput = json.loads((workdir / "goodput.json").read_text())
    for seconds in goodput["seconds"].values():
        assert repr(seconds) in page.data["time"]
    assert "optimizer.learning_rate\n0.1\n0.05" in page.within["configuration"]
    assert "jax (last checkpoint)" in page.within["environment"]


def predict_one_by_one(workdir: pathlib.Path, step: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Returns labels, logits of the EMA and images of the validation split, by the order of its files."""
    checkpointer = Checkpointer(workdir / "checkpoints")
    config = config_lib.from_dict(checkpointer.about(step)["config"])
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    objective, variables = build.restore_variables(checkpointer, step, config, mesh)
    transform, labels, logits, images = EvalTransform(16, 18, 3), [], [], []
    for label, name in enumerate(NAMES):
        for file in sorted((workdir.parent / "data" / "validation" / name).iterdir()):
            out = {"image": np.empty((1, 16, 16, 3), np.uint8), "label": np.empty(1, np.int32)}
            transform([{"image": file.read_bytes(), "label": label}], np.zeros(1, int), np.zeros(1, int), out)
            pixels = (out["image"] / 255 - np.array(config.data.mean)) / np.array(config.data.std)
            model = objective.setup.model
            scores = model.apply(variables["ema_"], pixels.astype(np.float32), train=False)
            labels.append(label)
            logits.append(np.asarray(scores, np.float64)[0])
            images.append(out["image"][0])
    return np.array(labels), np.array(logits), images


def test_predictions_against_scikit_learn_and_loops(page: Page, workdir: pathlib.Path):
    run = runs.read_run(workdir, "run")
    candidates, choice = evaluation.choose(run, None)
    lines = [line for line in records(workdir) if "val/top1" in line]
    assert candidates[0] == max(lines, key=lambda line: line["val/top1"])["step"]
    assert choice == "the best by val/top1"
    found = evaluation.evaluate_run(run, candidates, choice)
    assert found is not None
    assert found.is_ema
    labels, logits, images = predict_one_by_one(workdir, found.step)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predictions, confidence = logits.argmax(1), probabilities.max(1)

    matrix = np.zeros((3, 3), int)
    for label, prediction, count in found.classes.confusion.tolist():
        matrix[label, prediction] = count
    assert (matrix == sklearn.metrics.confusion_matrix(labels, predictions, labels=range(3))).all()
    for mean in ("macro", "micro", "weighted"):
        expected = sklearn.metrics.precision_recall_fscore_support(labels, predictions, average=mean, zero_division=0)
        assert list(found.averages[mean].values()) == pytest.approx(expected[:3])
    accuracy = float((predictions == labels).mean())
    assert found.accuracy == pytest.approx(accuracy)
    assert repr(found.accuracy) in page.data["classes"]
    gaps = 0.0
    for low in range(15):
        inside = [i for i in range(15) if low / 15 <= confidence[i] < (low + 1) / 15]
        gaps += abs(sum(float(predictions[i] == labels[i]) - confidence[i] for i in inside)) / 15
    assert found.errors["ece"] == pytest.approx(gaps, rel=1e-4)
    assert f"ECE {found.errors['ece']:.4f}, in 15 bins" in page.within["calibration"]

    wrong = sorted((i for i in range(15) if predictions[i] != labels[i]), key=lambda i: -confidence[i])
    assert wrong, "all is correct, so that this says nothing of mistakes"
    assert [shown.confidence for shown in found.mistakes] == pytest.approx([confidence[i] for i in wrong], rel=1e-4)
    worst = found.mistakes[0]
    assert (worst.label, worst.prediction) == (NAMES[labels[wrong[0]]], NAMES[predictions[wrong[0]]])
    assert (worst.image == images[wrong[0]]).all()
    assert worst.description.endswith(f"{NAMES[labels[wrong[0]]]}/{wrong[0] % 5}.jpg")
    assert [shown.confidence for shown in found.uncertain] == pytest.approx(sorted(confidence), rel=1e-4)
    shown = next(attributes for tag, attributes in page.elements if tag == "img")
    pixels = PIL.Image.open(io.BytesIO(base64.b64decode(str(shown["src"]).partition(",")[2])))
    assert (np.asarray(pixels) == images[wrong[0]]).all()
    assert shown["alt"] == f"Wrong: {worst.label}, predicted as {worst.prediction}."


def test_mistakes_are_explained(page: Page, workdir: pathlib.Path):
    """For the prediction and for the label, by the method's own function; and one leads to the other."""
    labels, logits, images = predict_one_by_one(workdir, 4)
    run, methods = runs.read_run(workdir, "run"), explanations.parse_methods("gradcam,saliency")
    found = evaluation.evaluate_run(run, [4], "", examples=3, methods=methods)
    assert found is not None
    assert found.unexplained is None
    checkpointer = Checkpointer(workdir / "checkpoints")
    config = config_lib.from_dict(checkpointer.about(4)["config"])
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    objective, variables = build.restore_variables(checkpointer, 4, config, mesh)
    options = {"mean": config.data.mean, "std": config.data.std}
    explain = [jax.jit(make_explainer(objective.setup.model, method, **options)) for method in methods.values()]
    predictions, confidence = logits.argmax(1), (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    wrong = sorted((i for i in range(15) if predictions[i] != labels[i]), key=lambda i: -confidence[i])[:3]
    for example, i in zip(found.mistakes, wrong, strict=True):
        assert (example.image == images[i]).all()
        classes = (predictions[i], labels[i])
        expected = [(name, NAMES[number]) for name in methods for number in classes]
        assert [(each.method, each.target) for each in example.maps] == expected
        for each, (maps, number) in zip(example.maps, itertools.product(explain, classes), strict=True):
            values = maps(variables["ema_"], images[i][None].astype(np.float32) / 255, np.array([number]))[0]
            drawn = explanations.overlay(images[i], np.asarray(values), signed=False)
            assert np.abs(drawn.astype(int) - each.overlay).max() <= 2
    places = {name for name in page.attributes("id") if re.fullmatch(r"explained-run0-\d+", name)}
    assert places
    assert {f"#{name}" for name in places} <= set(page.attributes("href"))
    assert {f"#{name.replace('explained', 'mistake')}" for name in places} <= set(page.attributes("href"))
    assert any(f"gradcam\n for {name}\n" in page.within["explained-run0-0"] for name in NAMES)


def test_models_that_cannot_be_explained_are_told(
    workdir: pathlib.Path, copied: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
):
    (copied / "checkpoints").symlink_to(workdir / "checkpoints")
    page = make_page(copied, "--explain=rollout", output=tmp_path / "report.html")
    assert "explained" not in page.sections
    assert "mistakes" in page.sections
    assert "copied: Mistakes are not explained: " in page.text
    assert "attention" in page.text
    assert "Missing in the report: copied: Mistakes are not explained: " in capsys.readouterr().err
    assert {f"#{name}" for name in page.sections} <= set(page.attributes("href"))


def test_predictions_that_are_not_defined():
    """NaN among the logits: no prediction, an error of the class, and no part of calibration."""
    rows = {
        "label": np.array([0, 1, 1, 2]),
        "prediction": np.array([0, -1, 1, 1]),
        "confidence": np.array([0.9, np.nan, 0.5, 0.7]),
    }
    found = evaluation.measure(rows, ["a", "b", "c"])
    assert (found["accuracy"], found["count"], found["undefined"]) == (0.5, 4, 1)
    assert found["classes"].support.tolist() == [1, 2, 1]
    assert found["classes"].scores["recall"].tolist() == [1, 0.5, 0]
    assert found["errors"]["ece"] == pytest.approx((0.1 + 0.5 + 0.7) / 3)
    assert evaluation.most_confident_mistakes(rows, 5).tolist() == [3]
    assert evaluation.least_confident(rows, 5).tolist() == [2, 3, 0]


def test_training_samples_are_mixed_as_their_targets_say(workdir: pathlib.Path):
    """Each image is the share of its target of what the loader gives, and the rest of its partner, the mirror image."""
    run = runs.read_run(workdir, "run")
    run.config["augment"]["flip"], run.config["label_smoothing"] = 0.0, 0.0
    shown = samples.first_batch(run, number=8)
    config = config_lib.from_dict(run.config)
    source = build.create_source(config, train=True)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with build.make_train_loader(config, config_lib.make_plan(config, len(source)), mesh, source) as loader:
        batch = loader.start(0)()
        images, labels = batch["image"].astype(float), batch["label"].copy()
        batch.release()
    mixed = 0
    for i, sample in enumerate(shown):
        partner, shares = 7 - i, dict(sample.shares)
        if labels[i] == labels[partner]:
            assert shares == {NAMES[labels[i]]: pytest.approx(1)}
            continue
        share = shares.get(NAMES[labels[i]], 0.0)
        assert sum(shares.values()) == pytest.approx(1, abs=0.05)
        expected = share * images[i] + (1 - share) * images[partner]
        assert np.abs(sample.images[0] - expected).max() < 255 * 0.05 + 1.5  # shares below 5 % are not shown
        mixed += 1
    assert mixed > 1
    few = samples.first_batch(run, number=4)
    assert all((few[i].images == shown[j].images).all() for i, j in enumerate((0, 1, 6, 7)))


def test_a_configuration_of_other_types_is_told(copied: pathlib.Path):
    run = runs.read_run(copied, "run")
    run.config["seed"] = "many"
    with pytest.raises(ConfigError, match=r"copied is damaged: .*(seed|many)"):
        samples.first_batch(run)


def test_several_runs(workdir: pathlib.Path, copied: pathlib.Path, tmp_path: pathlib.Path, command: Command):
    """Side by side, from the files alone: no device is started, as others may be using them."""
    config = json.loads((copied / "config.json").read_text())
    config["optimizer"]["learning_rate"] = 0.125
    (copied / "config.json").write_text(json.dumps(config))
    changed = [{**line, "val/top1": 0.12345} if "val/top1" in line else line for line in records(copied)]
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    output = tmp_path / "report.html"
    arguments = ("report", str(workdir), str(copied), f"--output={output}", "--no-evaluate")
    printed = command(*arguments, module="vision_jax", JAX_PLATFORMS="none_such")
    assert "Missing" not in printed
    page = Page(output)
    assert page.sections == [s for s in SECTIONS if s in ("results", "curves", "time", "configuration", "classes")] + [
        "environment"
    ]
    assert "Fields that differ between the runs: 1\n" in page.within["configuration"]
    assert "optimizer.learning_rate\n0.1\n0.05\n0.125" in page.within["configuration"]
    assert {"0.12345", repr(records(workdir)[-1]["val/top1"])} <= set(page.data["results"])
    table = json.loads((workdir / "tables.jsonl").read_text().splitlines()[-1])["per_class/ema_classes"]
    assert "tables.jsonl\n: per_class/ema_classes at step 4." in page.within["classes"]
    for scores in (table["precision"], table["recall"], table["f1"]):
        assert {repr(float(score)) for score in scores} <= set(page.data["classes"])


def test_damaged_files(copied: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    """What can be read is shown, and what cannot is told, in the page and on stderr."""
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "mode": "eval", "val/top1": 0.4321, "val/loss": null}\n')
        file.write('{"step": 3, "train/loss": null, "train/new_metric": "x"}\n{"step": 9, "train/lo')
    (copied / "goodput.json").write_text('{"seconds": {"steps": 1')
    (copied / "config.json").unlink()
    (copied / "tables.jsonl").write_text('{"step": 2, "val/classes": {"classes": ["a"], "support": [1, 2]}}\n')
    page = make_page(copied, "--no-evaluate", output=tmp_path / "report.html")
    assert "time" not in page.sections
    assert "0.4321" in page.data["results"]
    errors = capsys.readouterr().err
    for what in ("goodput.json cannot be read", "config.json cannot be read", "A table of classes is damaged"):
        assert what in page.text
        assert what in errors
    assert "Traceback" not in errors


def test_data_that_is_gone(
    workdir: pathlib.Path, copied: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
    """The classes are then those of the table that training wrote."""
    (copied / "checkpoints").symlink_to(workdir / "checkpoints")
    data, hidden = workdir.parent / "data", workdir.parent / "hidden"
    data.rename(hidden)
    try:
        page = make_page(copied, output=tmp_path / "report.html")
    finally:
        hidden.rename(data)
    assert not {"mistakes", "uncertain", "samples", "calibration"} & set(page.sections)
    assert "tables.jsonl" in page.within["classes"]
    errors = capsys.readouterr().err
    for what in ("What it predicts is not shown: ", "Training samples are not shown: "):
        line = next(line for line in errors.splitlines() if what in line)
        assert " Missing in the report: copied: " in line
        assert f"data.dir is '{data}', and there is no such directory" in line
        assert line.partition("report: ")[2] in page.text


def test_an_objective_without_classes(tmp_path: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    config = rotation.get_config()
    config.total_steps, config.eval.every_steps, config.schedule.warmup_epochs = 2, 2, 0.0
    train.train_and_evaluate(config, tmp_path / "run")
    page = make_page(tmp_path / "run", output=tmp_path / "report.html")
    assert page.sections == ["results", "curves", "time", "configuration", "samples", "environment"]
    assert sum(tag == "img" for tag, _ in page.elements) == 16 * ANGLES


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "mine.html").write_text("<!doctype html><title>mine</title>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.jsonl").write_text('{"step": 1, "tr')
    yield tmp_path
    assert (tmp_path / "mine.html").read_text() == "<!doctype html><title>mine</title>"
    assert not (tmp_path / "new.html").exists()


@pytest.mark.parametrize(
    ("workdirs", "output", "message"),
    [
        (["RUN"], "folder.html", "folder.html, which is a folder: give a file."),
        (["RUN"], "nowhere/new.html", "but there is no folder"),
        (["RUN"], "mine.html", "mine.html, which is there already and is no report: give another name."),
        (["RUN"], "new.png", "new.png: a report is HTML, so its name must end with .html."),
        (["RUN", "RUN"], "new.html", "A workdir is named twice"),
        (["gone"], "new.html", "gone: it does not exist."),
        (["file"], "new.html", "file: it is no folder."),
        (["empty"], "new.html", "empty has no metrics.jsonl: it is no workdir of a run"),
        (["begun"], "new.html", "begun has no metrics: it is no workdir of a run"),
        (["RUN", "empty"], "new.html", "empty has no metrics.jsonl"),
        (["gs://bucket/run"], "new.html", "WORKDIR is 'gs://bucket/run': URLs are not supported here"),
        (["RUN", "--step=3"], "new.html", "There is no checkpoint of step 3"),
        (["RUN", "--explain=gradcm"], "new.html", "The method is 'gradcm': "),
    ],
)
def test_wrong_input_is_one_line(
    workdirs: list[str], output: str, message: str, workdir: pathlib.Path, outputs: pathlib.Path, capsys: Any
):
    paths = [
        name if name.startswith(("-", "gs:")) else str(workdir if name == "RUN" else outputs / name)
        for name in workdirs
    ]
    assert command_report.main([*paths, f"--output={outputs / output}"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]
    assert len([line for line in errors if "Line 1 of " not in line]) == 1


def test_a_report_is_replaced_and_matplotlib_may_be_missing(
    copied: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "report.html"
    output.write_text("")
    program.write_report([copied], output, evaluate=False)
    first = output.read_text()
    program.write_report([copied], output, evaluate=False)
    assert re.sub("Made by.*", "", first) == re.sub("Made by.*", "", output.read_text())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'vision_jax\[report\]'"):
        program.write_report([copied], output, evaluate=False)


def test_long_lines_are_thinned():
    series = runs.Series(np.arange(1, 8), np.array([1.0, 3, np.nan, 5, np.nan, np.nan, 9]))
    steps, values, low, high = curves.thin(series, 4)
    assert steps.tolist() == [1.5, 3.5, 5.5, 7]
    assert values.tolist()[:2] == [2, 5]
    assert np.isnan(values[2])
    assert (values[3], low[0], high[0]) == (9, 1, 3)
    assert series.best(higher=False) == (1, 1.0)
    assert runs.Series(np.arange(2), np.full(2, np.nan)).best(higher=True) is None


def test_panels_join_what_belongs_together(workdir: pathlib.Path):
    found = {panel.title: panel for panel in curves.panels([runs.read_run(workdir, "run")])}
    assert found["Loss"] == curves.Panel("Loss", "train/loss", "val/loss", "val/ema_loss")
    assert found["per_class: macro f1"].group == "per_class"
    shown = [name for panel in found.values() for name in (panel.training, panel.weights, panel.ema) if name]
    assert len(shown) == len(set(shown))
    assert {"train/learning_rate", "train/grad_norm", "val/top5", "per_class/ema_macro_f1"} <= set(shown)


def many_classes(number: int, wrong: list[tuple[int, int, int]]) -> dict[str, Any]:
    confusion = 10 * np.eye(number, dtype=int)
    for label, prediction, count in wrong:
        confusion[label, prediction] = count
    return per_class.class_table([f"class {i}" for i in range(number)], confusion, confusion.sum(1), 5)


def test_pictures_of_tables():
    tables = {"val/classes": many_classes(3, [(0, 1, 4)]), "val/ema_classes": many_classes(60, []), "val/other": {}}
    images = figures.table_images(tables)
    assert list(images) == [
        *("val/confusion_matrix", "val/class_scores", "val/ema_confusion_matrix", "val/ema_class_scores")
    ]
    for data in images.values():
        picture = PIL.Image.open(io.BytesIO(data))
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert np.asarray(picture)[0, 0, :3].tolist() == [255, 255, 255]
    with pytest.raises(DataError, match="A table of classes is damaged"):
        figures.table_images({"val/classes": {"classes": ["a"]}})


def test_of_many_classes_the_most_confused_are_shown():
    table = ClassTable.from_json(many_classes(1000, [(7, 400, 5), (400, 7, 3), (999, 2, 4)]))
    assert table.confusions(2) == [(7, 400, 5), (999, 2, 4)]
    assert table.most_confused(4).tolist() == [2, 7, 400, 999]
    assert table.ranked()[0] == 7  # 10 of 15 are found, and 10 of 13 predictions are correct
    assert table.scores["f1"][7] == pytest.approx(20 / 28)
    drawn = drawing.svg(figures.confusion_matrix(table, most=4), "m", "alt")
    shown = re.findall(r">([^<>]+)</text>", drawn)
    assert [text for text in shown if text.startswith("class ")] == [f"class {i}" for i in (2, 7, 400, 999)] * 2
    assert sorted(text for text in shown if text.isdigit()) == sorted(["10"] * 4 + ["5", "3", "4"])
    assert "4 of 1000 classes: the most confused ones" in shown


def test_tables_without_predictions_can_be_drawn():
    """Such as of a model whose logits are all NaN."""
    table = per_class.class_table(("a", "b"), np.zeros((2, 2), int), np.array([3, 0]), 5)
    assert len(figures.table_images({"val/classes": table})) == 2

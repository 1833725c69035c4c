"""Robust accuracy in the suite: of a linear model of colors, whose nearest boundaries are known, and of others."""

import csv
import dataclasses
import functools
import json
import pathlib

import attack_cases
import evaluation_sets
import jax
import numpy as np
import pytest
from conftest import Command, launch
from evaluation_sets import WNIDS, png
from stored_features import random_model

from vision_jax import attacks, build, features
from vision_jax.attacks.evaluation import evaluate_robustness
from vision_jax.commands import common
from vision_jax.commands import suite as command
from vision_jax.errors import CheckpointError, ConfigError, DataError
from vision_jax.runtime import writers
from vision_jax.suite import adversarial, attacked, tables
from vision_jax.suite.adversarial import Attack, Plan
from vision_jax.suite.attack_programs import Programs
from vision_jax.suite.find import Found, find_sets
from vision_jax.suite.images import Images, of_source, open_validation
from vision_jax.suite.run import Options, run_suite
from vision_jax.suite.selection import Selection, listed


@pytest.fixture(scope="module")
def colors():
    return evaluation_sets.trained()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    """Lets the command use a model."""

    def use(trained) -> None:
        monkeypatch.setattr(common, "load_model", lambda arguments: trained)
        monkeypatch.setattr(common, "check_model_arguments", lambda arguments: None)

    return use


@pytest.fixture
def validation(tmp_path: pathlib.Path) -> pathlib.Path:
    evaluation_sets.write(tmp_path / "sets" / "val", evaluation_sets.validation_files())
    return tmp_path / "sets"


def run(output: pathlib.Path, *flags: str) -> int:
    return command.main([f"--output={output}", "--sets=adversarial", "--batch_size=8", *flags])


def entries(output: pathlib.Path) -> dict[str, dict]:
    return json.loads((output / "suite.json").read_text())["sets"]


def lines(output: pathlib.Path, entry: dict) -> list[dict]:
    return [json.loads(line) for line in (output / entry["file"]).read_text().splitlines()]


def test_robust_accuracy_is_that_of_the_boundaries(
    validation: pathlib.Path, tmp_path: pathlib.Path, use, colors, capsys: pytest.CaptureFixture
):
    """Colors of neighboring classes are 25 levels apart, so the boundary is 12.5 away, in linf as in any channel."""
    use(colors)
    flags = (f"--data={validation}", "--attack=pgd-3", "--eps=12/255,13/255")
    assert run(tmp_path / "out", *flags) == 0
    found = entries(tmp_path / "out")
    near, far = found["adversarial/pgd-3 linf 12/255"], found["adversarial/pgd-3 linf 13/255"]
    assert (near["clean"], near["robust"], near["count"], near["expected"]) == (50, 50, 6, 50_000)
    assert (far["clean"], far["robust"], far["after"]) == (50, 0, {"pgd-3": 0})
    assert near["incomplete"] == ["6 of 50,000 images"]
    # By image: its name, label, and what it is taken for.
    rows = {line["image"]: line for line in lines(tmp_path / "out", far)}
    assert len(rows) == 6
    right = rows[f"{WNIDS[6]}/ILSVRC2012_val_00000002.JPEG"]
    assert (right["label"], right["predicted"], right["fooled_by"], right["passes"]) == (6, 6, "pgd-3", 1)
    assert right["taken_for"] != 6
    assert right["distance"] == pytest.approx(13 / 255, abs=1e-6)
    wrong = rows[f"{WNIDS[11]}/ILSVRC2012_val_00000001.JPEG"]
    assert (wrong["label"], wrong["predicted"], wrong["fooled_by"], wrong["passes"]) == (11, 10, "clean", 0)
    (untouched,) = [line for line in lines(tmp_path / "out", near) if line["image"] == right["image"]]
    assert (untouched["fooled_by"], untouched["taken_for"]) == (None, 6)
    with (tmp_path / "out" / "suite.csv").open() as file:
        table = {row["set"]: row for row in csv.DictReader(file)}
    assert table["adversarial/pgd-3 linf 13/255"]["robust"] == "0.0000"
    assert table["adversarial/pgd-3 linf 13/255"]["top1"] == ""
    out = capsys.readouterr().out
    assert "eps: linf radius 0.0470588 of pixels in [0, 1] (12/255)" in out
    assert "pgd-3 linf 12/255 *                   50.000   50.000       6 of 50,000" in out
    # Run again, nothing is measured; and another seed is another measurement.
    assert run(tmp_path / "out", *flags) == 0
    assert capsys.readouterr().out.count("measured before") == 2
    assert run(tmp_path / "out", f"--data={validation}", "--attack=pgd-3", "--eps=13/255", "--seed=1") == 0
    assert "measured before" not in capsys.readouterr().out


def test_images_are_chosen(validation: pathlib.Path, tmp_path: pathlib.Path, use, colors):
    use(colors)
    # As RobustBench's list: the order is not that of the files, and three are no wrong ones.
    names = [f"{WNIDS[15]}/ILSVRC2012_val_00000005.JPEG", "ILSVRC2012_val_00000002.JPEG", "x/n01440764/"]
    path = tmp_path / "robust.txt"
    path.write_text("\n".join(names[:2]) + "\n\n")
    flags = (f"--data={validation}", "--attack=fgsm", "--eps=12")
    assert run(tmp_path / "out", *flags, f"--image_list={path}") == 0
    entry = entries(tmp_path / "out")["adversarial/fgsm linf 12/255"]
    assert (entry["clean"], entry["robust"], entry["count"], entry["expected"]) == (100, 100, 2, 2)
    assert entry["which"] == "those that robust.txt names"
    assert entry["incomplete"] == []
    # Other images replace the results, and leave the file of the old ones.
    assert run(tmp_path / "out", *flags, "--examples=first:4") == 0
    entry = entries(tmp_path / "out")["adversarial/fgsm linf 12/255"]
    assert (entry["count"], entry["which"]) == (4, "the first 4 of 6")
    assert len(list((tmp_path / "out" / "adversarial").iterdir())) == 2


def test_lists_of_images_are_checked(validation: pathlib.Path, tmp_path: pathlib.Path):
    images = open_validation(find_sets(validation).validation)
    path = tmp_path / "list"

    def rows(*names: str) -> list[int]:
        path.write_text("\n".join(names))
        return listed(images, path).tolist()

    sorted_names = [images.name(row) for row in range(6)]
    assert rows(*reversed(sorted_names)) == [0, 1, 2, 3, 4, 5]
    name = "ILSVRC2012_val_00000002.JPEG"
    assert rows(f"anything/{WNIDS[6]}/{name}") == rows(name) == [sorted_names.index(f"{WNIDS[6]}/{name}")]
    with pytest.raises(DataError, match=rf"2 images that .*list names, 1 cannot be taken: {WNIDS[7]}/{name} \(is not"):
        rows(f"{WNIDS[7]}/{name}", "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match=r"\(is named twice, also as ILSVRC"):
        rows(name, f"{WNIDS[6]}/{name}")
    with pytest.raises(DataError, match="names no image"):
        rows("", " ")
    trained = random_digits()
    synthetic = of_source(features.Images.of_split(trained.config, "validation").source, "it", list("0123456789"))
    with pytest.raises(DataError, match="have lost the names of their files"):
        listed(synthetic, path.with_name("list") if path.write_text(name) else path)
    subset = Selection(examples=3).of(images)
    assert set(subset.rows) < set(Selection(examples=5).of(images).rows)
    with pytest.raises(ConfigError, match="--examples is 7, and there are 6 images"):
        Selection(examples=7).of(images)


def own(trained, examples: int, *given: Attack, **options) -> tuple[Found, list[str], Options]:
    """Returns arguments of `run_suite` that attack a model on the data of its configuration."""
    plan = Plan(given, Selection(examples=examples), split="validation")
    return Found(pathlib.Path()), ["adversarial"], Options(batch_size=16, plan=plan, **options)


def random_digits() -> build.TrainedModel:
    """LeNet-5 with random weights, which is right by chance, and images of ten classes."""
    trained = random_model(scale=4.0)
    trained.config.model.num_classes = 10
    return trained


PGD, TARGETED = Attack("pgd-2-2", "linf", 0.1), Attack("apgd-t", "l2", 0.2)


def test_the_suite_finds_what_functions_find(tmp_path: pathlib.Path):
    """The model is divided over eight devices in the one case, and is on one in the other."""
    trained = random_digits()
    found, wanted, options = own(trained, 80, PGD)
    assert run_suite(trained, found, wanted, tmp_path, options)
    (entry,) = entries(tmp_path).values()
    source = features.Images.of_split(trained.config, "validation").source
    images = Images(source, [str(number) for number in range(10)])
    transform = trained.preprocessing.transform
    rows = options.plan.selection.of(images).rows
    pixels = np.zeros((len(images), transform.size, transform.size, 1), np.uint8)
    transform([images[row] for row in rows], rows, rows, {"image": pixels[: len(rows)]})
    pixels[rows] = pixels[: len(rows)].copy()  # an image's random numbers go with its number in the set
    labels = np.asarray([images[row]["label"] if row in rows else -1 for row in range(len(images))])
    variables = jax.device_get(dict(trained.variables))
    apply = attacks.classifier(trained.model, variables, (0.3,), (0.35,))
    stages = attacks.find_stages("pgd-2-2", 10)
    expected = evaluate_robustness(apply, pixels, labels, jax.random.key(0), stages, eps=0.1, batch_size=64)
    outcome = {-2: None, -1: "clean", 0: "pgd-2-2"}
    assert [line["fooled_by"] for line in lines(tmp_path, entry)] == [outcome[x] for x in expected.fooled_by[rows]]
    assert len(set(expected.fooled_by[rows])) > 1


def test_the_runs_own_data_is_attacked_without_a_folder(tmp_path: pathlib.Path, use, capsys: pytest.CaptureFixture):
    use(random_digits())
    flags = ("--attack=fgsm", "--eps=0.05", "--examples=first:40", "--batch_size=40", "--config.data.source=synthetic")
    assert command.main([f"--output={tmp_path}", "--sets=adversarial", *flags]) == 0
    entry = entries(tmp_path)["adversarial/fgsm linf 0.05"]
    assert (entry["count"], entry["expected"], entry["own_classes"]) == (40, 40, True)
    assert entry["clean"] > entry["robust"]
    # Of 40 images few are right, for which smaller batches do, of a multiple of the eight devices.
    right = round(entry["clean"] * 40 / 100)
    err = capsys.readouterr().err
    assert "look, of 40 images at once, was compiled" in err
    assert f"fgsm linf, of {8 if right <= 8 else 16} images at once, was compiled" in err
    assert right <= 16


@pytest.mark.exhaustive
def test_an_attack_goes_on_where_it_was_ended(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    trained = random_digits()
    found, wanted, options = own(trained, 80, TARGETED)
    few = attacks.Stage("apgd-t", functools.partial(attacks.apgd, loss="dlr-targeted", steps=2), targets=4)
    monkeypatch.setattr(attacks, "find_stages", lambda name, classes: (few,))
    assert run_suite(trained, found, wanted, tmp_path / "whole", options)
    monkeypatch.setattr(attacked, "_SECONDS", 0.0)
    calls: list[int] = []
    attack = Programs.attack

    def counted(self, stage, norm, eps, number, rank):
        run = attack(self, stage, norm, eps, number, rank)

        def count(batch):
            calls.append(rank)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return run(batch)

        return count

    monkeypatch.setattr(Programs, "attack", counted)
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        run_suite(trained, found, wanted, tmp_path / "ended", options)
    (path,) = (tmp_path / "ended" / "adversarial").iterdir()
    done = [json.loads(line)["passes"] for line in path.read_text().splitlines()]
    assert sum(passes > 0 for passes in done) > 0
    assert max(done) < 4
    stop, before = 0, len(calls)
    assert run_suite(trained, found, wanted, tmp_path / "ended", options)
    assert calls[before] > 0  # it did not begin with the first target
    whole, ended = (next(iter(entries(tmp_path / name).values())) for name in ("whole", "ended"))
    assert lines(tmp_path / "whole", whole) == lines(tmp_path / "ended", ended)
    assert whole["after"] == ended["after"]
    # What was found on fewer images does not cost what was found on all.
    fewer = dataclasses.replace(options, plan=dataclasses.replace(options.plan, selection=Selection(8)))
    kept = path.read_text()
    assert run_suite(trained, found, wanted, tmp_path / "ended", fewer)
    assert path.read_text() == kept
    before = len(calls)
    assert run_suite(trained, found, wanted, tmp_path / "ended", options)
    assert len(calls) == before
    assert next(iter(entries(tmp_path / "ended").values()))["after"] == whole["after"]
    with writers.open_workdir(tmp_path / "ended"), pytest.raises(CheckpointError, match="Another run is using"):
        run_suite(trained, found, wanted, tmp_path / "ended", options)
    # What is no such file is not used.
    path.write_text("{}\n")
    store = attacked.Store(path, ["apgd-t"])
    assert store.read([0]) is None


def test_signs_of_masked_gradients_are_in_the_table(tmp_path: pathlib.Path, use, capsys: pytest.CaptureFixture):
    """Logits so large that the cross-entropy has no gradient, of a model that is right by the labels' own choice."""
    trained = evaluation_sets.trained(class_names=())
    scaled = jax.tree.map(lambda x: 1e6 * x, dict(trained.variables))
    use(dataclasses.replace(trained, variables=scaled))
    evaluation_sets.write(tmp_path / "sets" / "val", evaluation_sets.validation_files())
    flags = (f"--data={tmp_path / 'sets'}", "--attack=square,pgd-3", "--eps=14", "--examples=first:3")
    with pytest.MonkeyPatch.context() as patch:
        quick = attacks.Stage("square", lambda *a, **k: attacks.square(*a, **k, queries=30), black_box=True)
        find = attacks.find_stages
        patch.setattr(attacks, "find_stages", lambda name, n: (quick,) if name == "square" else find(name, n))
        assert run(tmp_path / "out", *flags) == 0
    found = entries(tmp_path / "out")
    pgd, square = found["adversarial/pgd-3 linf 14/255"], found["adversarial/square linf 14/255"]
    assert pgd["robust"] == pgd["clean"] > square["robust"]
    (warning,) = pgd["warnings"]
    right = round(pgd["clean"] * 3 / 100)
    assert warning.startswith(f"The gradient of the cross-entropy is zero for {right} of {right} images")
    out, err = capsys.readouterr()
    assert f"  warning: {warning}" in out
    assert "adversarial/square linf 14/255 leaves" in err
    assert "Square uses no gradients, so these may be masked" in err
    assert adversarial.compared({"a": {**square, "robust": pgd["robust"]}, "b": pgd}) == []


def test_damaged_images_are_left_out_as_far_as_allowed(
    validation: pathlib.Path, tmp_path: pathlib.Path, use, colors, capsys: pytest.CaptureFixture
):
    use(colors)
    damaged = validation / "val" / WNIDS[6] / "ILSVRC2012_val_00000002.JPEG"
    damaged.write_bytes(png(evaluation_sets.right(6))[:60])
    flags = (f"--data={validation}", "--attack=fgsm", "--eps=12")
    assert run(tmp_path / "out", *flags) == 1
    assert f"adversarial/fgsm linf 12/255: 1 of 6 images are damaged: {damaged}" in capsys.readouterr().err
    assert run(tmp_path / "out", *flags, "--max_bad=1") == 0
    entry = entries(tmp_path / "out")["adversarial/fgsm linf 12/255"]
    assert (entry["clean"], entry["count"], entry["damaged"]) == (40, 5, 1)
    assert entry["incomplete"] == ["5 of 50,000 images", "1 left out, as damaged"]
    path = tmp_path / "list"
    path.write_text("ILSVRC2012_val_00000002.JPEG")
    assert run(tmp_path / "out", *flags, "--max_bad=1", f"--image_list={path}") == 1
    assert f"All 1 images are damaged, such as {damaged}" in capsys.readouterr().err


def test_own_data_in_a_folder(tmp_path: pathlib.Path):
    """Class folders are found by the names of the model's classes, whatever their number."""
    trained = dataclasses.replace(evaluation_sets.trained(), class_names=tuple(f"c{n}" for n in range(1000)))
    files = {f"c{number}/a.png": png(evaluation_sets.right(number)) for number in (5, 15)}
    evaluation_sets.write(tmp_path / "sets" / "test", files)
    found = find_sets(tmp_path / "sets")
    assert found.choose(["adversarial"]) == ["adversarial"]
    options = Options(batch_size=8, plan=Plan((Attack("fgsm", "linf", 12 / 255),)))
    assert run_suite(trained, found, ["adversarial"], tmp_path / "out", options)
    (entry,) = entries(tmp_path / "out").values()
    assert (entry["clean"], entry["robust"], entry["count"], entry["expected"]) == (100, 100, 2, 2)
    assert entry["own_classes"]
    assert not Found(tmp_path).sets()
    with pytest.raises(ConfigError, match="adversarial, not found in"):
        find_sets(tmp_path / "out").choose(["adversarial"])


def test_flags_are_checked_before_the_model_is_loaded(tmp_path: pathlib.Path, use, capsys: pytest.CaptureFixture):
    use(None)

    def said(*flags: str) -> str:
        assert run(tmp_path / "out", *flags) == 1
        return capsys.readouterr().err

    assert "--attack is missing: give fgsm, mi-fgsm, pgd-STEPS, " in said()
    assert "The attack is 'pgd-': " in said("--attack=pgd-")
    assert "The norm is 'l3'" in said("--attack=fgsm", "--norm=l3")
    assert "The attack mi-fgsm is one in linf, and the norm is l2" in said("--attack=mifgsm", "--norm=l2", "--eps=1")
    assert "--eps is missing: give the radius in l2" in said("--attack=pgd-3", "--norm=l2")
    assert "which is 4 of pixels" in said("--attack=fgsm", "--eps=4.0")
    assert "The radius is ''" in said("--attack=fgsm", "--eps=")
    assert "--explain is 'gradcam', for the mistakes on sets" in said("--attack=fgsm", "--explain=gradcam")
    assert "--seed is -1: give a number from 0" in said("--attack=fgsm", "--seed=-1")
    assert "--examples is 'all': give a number, such as 1000, or first:1000" in said("--attack=fgsm", "--examples=all")
    assert "give one of them" in said("--attack=fgsm", "--examples=3", "--image_list=x")
    assert "--image_list is x, which is no file" in said("--attack=fgsm", "--image_list=x")
    assert "--split is 'test', of a run's own data" in said("--attack=fgsm", "--split=test", f"--data={tmp_path}")
    assert "Which images? Give --data" in said("--attack=fgsm", "--model=resnet18")
    assert command.main([f"--output={tmp_path / 'out'}", "--attack=fgsm", "--data=x"]) == 1
    assert "--attack is 'fgsm', which is for --sets=adversarial" in capsys.readouterr().err
    assert command.main([f"--output={tmp_path / 'out'}"]) == 1
    assert "--data is missing" in capsys.readouterr().err
    assert command.main([f"--output={tmp_path / 'out'}", "--sets=val,adversarial", "--attack=fgsm"]) == 1
    assert "needs --data, the folder with the sets" in capsys.readouterr().err


def test_rows_are_in_order():
    names = [
        *(f"adversarial/{x}" for x in ("pgd-20 linf 8/255", "fgsm linf 0.05", "fgsm linf 8/255")),
        "c/fog/1",
        "c",
        "val",
    ]
    assert tables.in_order(names) == ["val", "c", "c/fog/1", names[2], names[0], names[1]]
    assert Attack("pgd-20", "linf", 8 / 255).row == names[0]
    assert Attack("pgd-20", "linf", 0.2).title == "pgd-20 linf 0.2"
    assert Attack("square", "l2", 3.0).title == "square l2 3"


def test_a_model_without_a_classifier_is_refused(tmp_path: pathlib.Path):
    trained = random_model(objective="rotation")
    found, wanted, options = own(trained, 4, PGD)
    with pytest.raises(ConfigError, match="has no classifier: attacks need one"):
        run_suite(trained, found, wanted, tmp_path, options)


@pytest.mark.exhaustive
def test_two_processes_find_what_one_does(command: Command, tmp_path: pathlib.Path):
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    launch(command, "attack_cases", f"--directory={tmp_path / 'two'}", devices=1, timeout=280)
    expected = attack_cases.attacked(tmp_path / "one")

    def distances(results: dict) -> list[float]:
        """Takes out what differs by rounding: distances, and targets, of which several are equally near to a class."""
        for line in results[attack_cases.TARGETED.row]["images"]:
            line.update({"distance": 0, "taken_for": None})
        rows = [line for name, entry in results.items() if name != "done" for line in entry["images"]]
        return [line.pop("distance") or 0 for line in rows]

    far = distances(expected)
    assert max(far) > 0
    for process in range(2):
        found = json.loads((tmp_path / "two" / f"process_{process}.json").read_text())
        assert distances(found) == pytest.approx(far, rel=1e-3)
        assert found == expected
    assert expected["done"]
    assert expected[attack_cases.ATTACKS[0].row]["damaged"] == 1

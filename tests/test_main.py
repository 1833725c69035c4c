"""The command as a user runs it: what it prints, its exit status, and what bad input leads to."""

import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from conftest import REPOSITORY, Command, encode, picture, records

from vision_jax import evaluate, main
from vision_jax.data import tfds_format
from vision_jax.devices import backend
from vision_jax.errors import CheckpointError

TINY = (
    "--config=configs/quickstart.py",
    "--config.total_steps=6",
    "--config.schedule.warmup_epochs=0",
    "--config.eval.every_steps=3",
    "--config.log.every_steps=1",
    "--config.log.tensorboard=False",
)


@pytest.mark.slow
def test_quickstart_learns_the_digits(command: Command, tmp_path: pathlib.Path):
    printed = command("--config=configs/quickstart.py", f"--workdir={tmp_path}")
    last = records(tmp_path)[-1]
    assert last["step"] == 1320
    assert last["val/count"] == 360
    assert last["val/top1"] >= 0.985
    assert last["val/ema_top1"] >= 0.985
    assert f"{last['val/top1']:.2%}" in printed
    for phrase in ("44,426", "was compiled in", "GFLOP per step", "images/s=", "input_wait=", "left: loss="):
        assert phrase in printed


@pytest.mark.slow
def test_a_finished_run_is_evaluated_to_the_same_numbers(command: Command, tmp_path: pathlib.Path):
    workdir = f"--workdir={tmp_path}"
    command(*TINY, workdir)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "metrics.jsonl", "goodput.json", "checkpoints"}
    lines = records(tmp_path)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    trained = {line["step"]: line for line in lines if "val/top1" in line}  # no other has been evaluated yet
    assert list(trained) == [3, 6]

    assert "The training is complete" in command(*TINY, workdir)
    assert records(tmp_path) == lines

    best = max(trained.values(), key=lambda line: line["val/top1"])["step"]
    for step, arguments in ((6, ()), (best, ("--step=best",))):
        printed = command("--mode=eval", workdir, *arguments)
        assert printed.count(f"step {step} of") == 1
        assert f"{trained[step]['val/top1']:.2%}" in printed
        assert records(tmp_path)[-1] == {"mode": "eval", **trained[step]}
    with pytest.raises(CheckpointError, match="no checkpoint of step 4"):
        evaluate.evaluate_checkpoint(tmp_path, 4)
    assert "give a number or best" in command("--mode=eval", workdir, "--step=last", status=1)

    # Another configuration is refused, and nothing is touched.
    before = sorted(tmp_path.rglob("*"))
    printed = command(*TINY, workdir, "--config.optimizer.learning_rate=0.01", status=1)
    assert "optimizer.learning_rate: 0.05 -> 0.01" in printed
    # Nor does one that is allowed to differ but cannot go on change anything.
    allowed = (*TINY, workdir, "--allow_config_change")
    assert "at step 6 already" in command(*allowed, "--config.total_steps=4", status=1)
    assert sorted(tmp_path.rglob("*")) == before

    # With a damaged newest checkpoint the run goes on from the one before it, and ends as it did.
    shutil.rmtree(tmp_path / "checkpoints" / "6" / "model" / "d")
    printed = command("--mode=eval", workdir)
    assert "GOING BACK" in printed
    assert "Traceback" not in printed
    assert "step 3 of" in printed
    with pytest.raises(CheckpointError, match="is damaged"):
        evaluate.evaluate_checkpoint(tmp_path, 6)
    printed = command(*TINY, workdir)
    assert "GOING BACK" in printed
    assert "Traceback" not in printed
    assert "Going on from step 3 of 6" in printed
    assert records(tmp_path)[-1] == trained[6]

    # A batch twice as large makes it another place in the training, and this is said.
    printed = command(*allowed, "--config.batch_size=128", "--config.total_steps=7")
    assert "Step 6 was epoch 0.272727 and is epoch 0.545455 now; the learning rate was 0 and is " in printed


@pytest.mark.exhaustive
@pytest.mark.slow
def test_resnet_recipe_takes_steps_without_data(command: Command, tmp_path: pathlib.Path):
    """Of a smaller network, because ResNet-50 takes long to compile; its own step is traced in test_configs.py."""
    printed = command(
        "--config=configs/resnet50.py",
        "--config.model.name=resnet18",
        "--config.data.source=synthetic",
        "--config.batch_size=2",
        "--config.total_steps=2",
        "--config.schedule.warmup_epochs=0",
        "--config.log.every_steps=1",
        "--config.data.synthetic_val_examples=2",
        "--config.data.image_size=64",
        f"--workdir={tmp_path}",
    )
    assert "11,689,512" in printed
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 2]


def test_a_folder_of_images(command: Command, tmp_path: pathlib.Path, image_folder: pathlib.Path):
    """Its run does not go on with other classes, whose labels would be those of others."""
    arguments = (
        *TINY,
        "--config.data.source=folder",
        f"--config.data.dir={image_folder}",
        "--config.batch_size=8",
        f"--workdir={tmp_path / 'w'}",
    )
    command(*arguments, "--config.total_steps=3")
    assert records(tmp_path / "w")[-1]["val/count"] == 9
    for split in ("train", "validation"):
        (image_folder / split / "ant").rename(image_folder / split / "wasp")
    printed = command(*arguments, "--config.total_steps=4", "--allow_config_change", status=1)
    assert "has 3 classes, and they are not the 3 of the checkpoint: without ant and with wasp." in printed
    for split in ("train", "validation"):
        (image_folder / split / "wasp").rename(image_folder / split / "ant")
    command(*arguments, "--config.total_steps=4", "--allow_config_change")


def test_a_command_whose_reader_has_read_enough():
    script = f"{sys.executable} -m vision_jax models | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", str(128 + signal.SIGPIPE))


def test_help_and_import_are_quick_and_never_import_tensorflow(command: Command, tmp_path: pathlib.Path):
    """A package that pretends to be TensorFlow fails whatever imports it."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise AssertionError('TensorFlow was imported')")
    path = f"{command.environment['PYTHONPATH']}:{tmp_path}"
    start = time.monotonic()
    assert "--workdir" in command("--help", PYTHONPATH=path)
    assert time.monotonic() - start < 3
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import vision_jax"], check=True, env=command.environment)
    assert time.monotonic() - start < 3
    command(*TINY, f"--workdir={tmp_path / 'w'}", PYTHONPATH=path)
    command("--mode=eval", f"--workdir={tmp_path / 'w'}", PYTHONPATH=path)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--config.modle.name=x"], 2, 'Did you mean "model" instead of "modle"?'),
        (["--config.model.nam=x"], 2, 'Did you mean "name" instead of "nam"?'),
        (["--config.batch_size=many"], 2, "--config.batch_size=many"),
        (["--wrkdir=x"], 2, "Did you mean: workdir"),
        (["configs/quickstart.py"], 2, "not flags: configs/quickstart.py"),
        (["--config.model.name=resnet5"], 1, "model.name: There is no model 'resnet5': did you mean resnet50"),
        (["--config.data.source=folder", "--config.data.dir=/nowhere"], 1, "data.dir is '/nowhere'"),
        pytest.param(["--config.batch_size=2000"], 1, "more than the 1437 examples", marks=pytest.mark.exhaustive),
        pytest.param(
            ["--config.model.num_classes=3"],
            1,
            "model.num_classes is 3, but the data has 10 classes",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            ["--config.data.image_size=8", "--config.data.eval_resize=8"],
            1,
            "lenet5 cannot take images of",
            marks=pytest.mark.exhaustive,
        ),
        (["--workdir=/dev/null/x"], 1, "Cannot use the workdir /dev/null/x: /dev/null is not a directory"),
        (["--workdir=gs://bucket/run"], 1, "--workdir is 'gs://bucket/run': URLs are not supported here; mount"),
        pytest.param(["--config.optimizer.accumulate=0"], 1, "optimizer.accumulate is 0", marks=pytest.mark.exhaustive),
        pytest.param(
            ["--config.epochs=1e30"],
            1,
            "epochs is 1e+30, which is more than 1,000,000,000",
            marks=pytest.mark.exhaustive,
        ),
        (["--config.data.views=2x28:0.5-1"], 1, "data.views is '2x28:0.5-1', and the objective classification takes"),
        pytest.param(
            ["--config.data.views=1x14"],
            1,
            "of data.image_size=28 pixels: 1x28, or with a range of areas, 1x28:0.2-1.",
            marks=pytest.mark.exhaustive,
        ),
        (["--workdir="], 1, "--workdir is empty: name a folder"),
        (["--mode=dry_run", "--json=/tmp"], 1, "--json is /tmp, which is a folder: give a file."),
        (["--step=best"], 1, "--step is 'best', which is for --mode=eval alone."),
        (["--topology=v5e:2x2"], 1, "--topology is 'v5e:2x2', which is for --mode=dry_run alone"),
        (
            ["--mode=dry_run", "--json=/nowhere/x.json"],
            1,
            "--json is /nowhere/x.json, but there is no folder /nowhere.",
        ),
        (["--config.data.dir=s3://bucket/data"], 1, "data.dir is 's3://bucket/data': URLs are not supported here"),
    ],
)
def test_bad_input_is_one_message(
    command: Command, tmp_path: pathlib.Path, arguments: list[str], status: int, message: str
):
    printed = command(*TINY, f"--workdir={tmp_path / 'w'}", *arguments, status=status)
    assert message in printed
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed
    assert not (tmp_path / "w").exists()
    assert not any((REPOSITORY / name).exists() for name in ("gs:", "s3:"))


@pytest.mark.skipif(any(pathlib.Path("/dev").glob("nvidia*")), reason="there may be a GPU")
def test_a_platform_that_is_not_there(command: Command, tmp_path: pathlib.Path):
    printed = command(*TINY, f"--workdir={tmp_path / 'w'}", status=1, JAX_PLATFORMS="cuda")
    assert printed.startswith("error: JAX_PLATFORMS is 'cuda', which JAX cannot use: ")
    assert printed.count("\n") == 1
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("directory", [None, "FILE/x"])
def test_compiled_programs_need_no_cache(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    directory: str | None,
):
    """With none that can be made, a run says so and goes on."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    before = jax.config.jax_compilation_cache_dir
    backend.enable_compilation_cache(directory and directory.replace("FILE", str(file)))
    assert "The compilation cache is not used: " in caplog.text
    assert str(file) in caplog.text
    assert jax.config.jax_compilation_cache_dir == before


def test_streams_that_are_closed(command: Command, tmp_path: pathlib.Path):
    """And no file gets the number of one of them, so that nothing is printed into it."""
    program = (sys.executable, "-m", "vision_jax.main", *TINY, f"--workdir={tmp_path / 'w'}")
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    done = subprocess.run([*closed, *program], env=command.environment, cwd=REPOSITORY)
    assert done.returncode == 0
    assert [line["step"] for line in records(tmp_path / "w")] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_what_is_said_after_ctrl_c(tmp_path: pathlib.Path):
    assert main._what_is_saved(None) == ""
    checkpoints = tmp_path / "checkpoints"
    nothing = f": no step is saved in {checkpoints}, so the same command begins anew"
    assert main._what_is_saved(tmp_path) == nothing
    (checkpoints / "30.orbax-checkpoint-tmp").mkdir(parents=True)
    assert main._what_is_saved(tmp_path) == nothing
    for step in (9, 12):
        (checkpoints / str(step)).mkdir()
    expected = f": the same command goes on from step 12, which is saved in {checkpoints}"
    assert main._what_is_saved(tmp_path) == expected
    (tmp_path / "loop").symlink_to("loop")
    assert main._what_is_saved(tmp_path / "loop").endswith("cannot be seen (Too many levels of symbolic links)")


def test_runs_are_called_as_their_config_files():
    for config in ("deit", "deit:small", "configs/deit.py", "../configs/deit.py:small"):
        assert main._default_workdir(config) == pathlib.Path("runs/deit")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--config=list"], "*"),
        (["--workdir=w", "-config", "list:res*"], "res*"),
        (["--config=list:"], "*"),
        (["--config=listing.py"], None),
        (["--workdir=list", "--config=quickstart"], None),
        (["--config.data.train_list=list"], None),
    ],
)
def test_when_recipes_are_listed(arguments: list[str], pattern: str | None):
    assert main._listed(["main.py", *arguments]) == pattern


def test_config_files_that_cannot_be_used(command: Command, tmp_path: pathlib.Path):
    assert "nowhere.py" in command("--config=nowhere.py", status=2)
    assert "--config is missing" in command(f"--workdir={tmp_path}", status=1)
    assert "needs --config=FILE" in command("--config.batch_size=3", status=2)
    (tmp_path / "config.py").write_text(
        "from vision_jax.config import default_config\n"
        "def get_config():\n  config = default_config()\n  config.batchsize = 3\n  return config\n"
    )
    printed = command(f"--config={tmp_path / 'config.py'}", status=2)
    assert 'Did you mean "batch_size" instead of "batchsize"? (' in printed
    assert "config.py, line 4)" in printed
    assert "Traceback" not in printed
    (tmp_path / "config.py").write_text("def get_config():\n  return {'batch_size': 3}\n")
    printed = command(f"--config={tmp_path / 'config.py'}", "--config.batch_size=3", "--workdir=gs://b", status=2)
    assert printed.startswith(f"error: get_config() of {tmp_path / 'config.py'} returns a dict, not a ConfigDict. A ")
    assert printed.count("\n") == 2  # the other one says how to get help
    assert "Neither --config nor --workdir" in command(status=1)


def test_evaluating_nothing(command: Command, tmp_path: pathlib.Path):
    assert "There is no checkpoint" in command("--mode=eval", f"--workdir={tmp_path}", status=1)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        pytest.param((encode(picture(20, 20))[:200], 0), "Cannot decode record", id="corrupt"),
        pytest.param((encode(picture(20, 20)), 3), "has the label 3", id="label", marks=pytest.mark.exhaustive),
    ],
)
def test_bad_records_are_named(command: Command, tmp_path: pathlib.Path, example: tuple[bytes, int], message: str):
    good = [(encode(picture(20, 20, seed=i)), i % 3) for i in range(7)]
    directory = tmp_path / "data"
    directory.mkdir()
    tfds_format.write_dataset(directory, "mine", {"train": [*good, example], "validation": good}, ["a", "b", "c"])
    arguments = ("--config.data.source=tfds", f"--config.data.dir={directory}", "--config.batch_size=8")
    printed = command(*TINY, *arguments, f"--workdir={tmp_path / 'w'}", status=1)
    assert message in printed
    assert "record 7 of the split 'train'" in printed
    assert "Traceback" not in printed


@pytest.mark.exhaustive
def test_too_many_skipped_steps_stop_the_run(command: Command, tmp_path: pathlib.Path):
    arguments = (
        *("--config.optimizer.learning_rate=1e30", "--config.checkpoint.every_steps=1"),
        *("--config.guard.nonfinite=skip", "--config.guard.max_skips=3"),
    )
    printed = command(*TINY, *arguments, f"--workdir={tmp_path}", status=80)
    assert printed.count("is skipped: its loss is") == 2
    assert "3 steps in a row were skipped" in printed


def test_a_dry_run_prints_what_would_be_trained(command: Command, tmp_path: pathlib.Path):
    arguments = (
        *("--config=configs/quickstart.py", "--config.optimizer.name=lamb", "--config.optimizer.learning_rate=0.01"),
        *("--config.optimizer.momentum=None", "--config.optimizer.nesterov=None"),  # which LAMB has not
        *("--config.optimizer.frozen=('^conv1/',)", "--config.optimizer.multipliers=(('^fc3/', 10.0),)"),
        *("--config.mesh.fsdp=2", "--config.mesh.fsdp_min_size=4000"),
    )
    printed = command("--mode=dry_run", *arguments, f"--workdir={tmp_path / 'w'}", devices=2)
    lines = [line.split() for line in printed.splitlines()]
    assert ["66", "0.01"] in lines  # the warm-up ends
    assert ["conv1/kernel", "5x5x1x6", "no", "frozen", "-,-,-,-", "600"] in lines
    assert ["fc1/kernel", "256x120", "yes", "x", "1", "fsdp,-", "61,440"] in lines
    assert ["fc3/kernel", "84x10", "yes", "x", "10", "-,-", "3,360"] in lines
    assert ["fc3/bias", "10", "no", "x", "10", "-", "40"] in lines
    assert "44,270 of 44,426 parameters are trained, and 44,040 decay." in printed
    whole, divided = 4 * (44_426 - 256 * 120 - 120 * 84), 2 * (256 * 120 + 120 * 84)
    assert ["parameters", f"{(whole + divided) / 2**20:.2f}"] in lines
    assert re.search(r"each of a device's 32 examples about [\d.]+ MiB", printed)
    assert not (tmp_path / "w").exists()
    assert "has no variant 'lam'" in command("--mode=dry_run", "--config=configs/quickstart.py:lam", status=2)
    assert "has no field 'beta'" in command(arguments[0], "--config.optimizer.beta=4", status=2)
    assert "options of evaluations" in command(arguments[0], "--config.evals.val.k=4", status=2)


def test_a_loss_that_is_not_finite_stops_the_run(command: Command, tmp_path: pathlib.Path):
    arguments = ("--config.optimizer.learning_rate=1e30", "--config.checkpoint.every_steps=1")
    guard = ("--config.guard.spike_deviations=8",)  # which skips spikes; this is none
    printed = command(*TINY, *arguments, *guard, f"--workdir={tmp_path}", status=80)
    assert "the loss is nan" in printed or "the loss is inf" in printed
    assert "The last good checkpoint is step 1" in printed
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]

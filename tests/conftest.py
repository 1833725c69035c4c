"""Eight simulated devices for all tests of this process, and helpers that several of them use."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what tests take: LLVM's optimization is left out, which makes what is compiled slower.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# And what is compiled is kept: for the other test processes, for the commands that they run, and for the next time.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.expanduser(
    os.environ.get("VISION_JAX_TEST_CACHE") or "~/.cache/vision_jax_tests"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import contextlib
import ctypes
import fcntl
import gc
import io
import json
import logging
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vision_jax.data.loader import batch_fields
from vision_jax.data.sources import digest_of
from vision_jax.data.transforms import EvalTransform
from vision_jax.data.views import Field

REPOSITORY = pathlib.Path(__file__).parent.parent
COMPILED = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
COMPILED.mkdir(mode=0o700, parents=True, exist_ok=True)
# Of these files, one process runs all tests: they share a run or compiled programs.
ONE_PROCESS_EACH = (
    "tests/augment/test_ops.py",
    "tests/commands/test_explain.py",
    "tests/compress/test_compress.py",
    "tests/evaluators/test_dense_measures.py",
    "tests/evaluators/test_frozen.py",
    "tests/explain/test_cam.py",
    "tests/explain/test_gradients.py",
    "tests/objectives/test_linear_probe.py",
    "tests/optim/test_pruned_runs.py",
    "tests/references/test_explanations.py",
    "tests/report/test_report.py",
    "tests/test_bad_inputs.py",
    "tests/test_predict_dense.py",
    "tests/test_processes.py",
    "tests/test_recipes.py",
    "tests/test_resume.py",
    "tests/test_rewind.py",
    "tests/test_steps.py",
)
# These, by the beginnings of their names, take time by the clock: one process runs all, so that no two run at once.
BY_THE_CLOCK = (
    "tests/runtime/test_barriers.py",
    "tests/runtime/test_checkpoint.py::test_a_slow_save_is_told",
    "tests/runtime/test_checkpoint.py::test_slow_storage_is_no_hang",
    "tests/runtime/test_watchdog.py",
    "tests/runtime/test_writers.py::test_no_step_waits_for_slow_storage",
    "tests/test_main.py::test_help_and_import_are_quick_and_never_import_tensorflow",
)
# Of the quickstart: two steps, then an evaluation of half a million examples, which would take minutes.
LONG_EVALUATION = (
    "--config.data.source=synthetic",
    "--config.model.num_classes=10",
    "--config.data.synthetic_train_examples=128",
    "--config.data.synthetic_val_examples=500000",
    "--config.total_steps=4",
    "--config.eval.every_steps=2",
    "--config.schedule.warmup_epochs=0",
)


def encode(pixels: np.ndarray, image_format: str = "JPEG", **options: object) -> bytes:
    """Encodes (height, width[, channels]) uint8 with Pillow."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random (height, width, 3) uint8 picture, which JPEG keeps well."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC))


def image_fields(size: int, *, replaces: bool = False) -> dict[str, Field]:
    """Returns the fields of a batch of RGB images with labels."""
    return batch_fields(EvalTransform(size, size, 3), replaces=replaces)


class Pictures:
    """A source of square pictures with the given labels."""

    class_names: tuple[str, ...] = ()

    def __init__(self, labels: list[int], size: int, num_classes: int):
        self.num_classes = num_classes
        self.records = [(encode(picture(size, size, seed=i)), label) for i, label in enumerate(labels)]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.records[index]
        return {"image": image, "label": label}

    def describe(self, index: int) -> str:
        return f"picture {index}"

    def fingerprint(self) -> str:
        return digest_of(self.records)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A cache directory of vision_jax for all tests, with the digits and compiled programs in it."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"  # one for all processes
    (directory / "vision_jax").mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        (directory / "vision_jax" / "compiled").symlink_to(COMPILED)
    return directory


@pytest.fixture(scope="session")
def dense_runs(cache: pathlib.Path) -> dict[str, pathlib.Path]:
    """The workdirs of a detector ("boxes") and a segmenter ("masks"), trained for two steps on made-up images.

    The first test process that needs them trains them for all.
    """
    with (cache / "dense.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = {kind: cache / "dense" / kind for kind in ("boxes", "masks")}
        done = cache / "dense" / "done"
        if not done.exists():
            _train_dense(cache / "dense", runs)
            done.touch()
    return runs


def _train_dense(directory: pathlib.Path, runs: dict[str, pathlib.Path]) -> None:
    from vision_jax import recipes, train

    directory.mkdir(exist_ok=True)
    for kind, name, options in (("boxes", "retinanet", {"channels": 16}), ("masks", "segmentation", {"aux": False})):
        config = recipes.scenes("resnet18", name, **options)
        config.data.dir = str(directory)
        config.data.dense.canvases = ((64, 64),)
        config.data.val_split = "validation[:16]"
        config.total_steps, config.batch_size, config.eval.batch_size = 2, 8, 8
        config.schedule.warmup_epochs = 0.0
        train.train_and_evaluate(config, runs[kind])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """`prepare` writes shards in this process, which is quicker, and what it logs is not on stderr.

    A command that another test has run in this process may have left its handler there.
    """
    from vision_jax.commands import prepare
    from vision_jax.preparation import shards
    from vision_jax.runtime.writers import ProgressHandler

    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, ProgressHandler)]:
        root.removeHandler(handler)
    caplog.set_level(logging.INFO, "vision_jax")
    monkeypatch.setattr(prepare.console, "configure_logging", lambda: None)
    monkeypatch.setattr(
        shards, "write_shards", lambda job, todo, workers, progress: (job.write(s, lambda: None) for s in todo)
    )


@pytest.fixture
def image_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder data set of 3 classes with 8 training and 3 validation images each."""
    root = tmp_path / "images"
    for split, count in (("train", 8), ("validation", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                data = encode(picture(40 + i, 50 - i, seed=100 * label + i))
                (root / split / name / f"{name}{i}.jpg").write_bytes(data)
    return root


def records(workdir: pathlib.Path) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


class Command:
    """Runs `python -m vision_jax.main`, or another module, as a user would."""

    def __init__(self, cache: pathlib.Path):
        self.environment = {
            **os.environ,
            "XLA_FLAGS": "",
            "XDG_CACHE_HOME": str(cache),
            "PYTHONPATH": str(REPOSITORY),
        }
        del self.environment["JAX_COMPILATION_CACHE_DIR"]  # the command chooses one: that of `cache`, or none
        self._started: list[subprocess.Popen] = []

    def start(
        self,
        *arguments: str,
        module: str = "vision_jax.main",
        devices: int = 1,
        start_new_session: bool = False,
        **environment: str,
    ) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**self.environment, "JAX_NUM_CPU_DEVICES": str(devices), **environment},
            cwd=REPOSITORY,
            start_new_session=start_new_session,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Ends what a test that failed has left, so that others do not fail by it."""
        for process in self._started:
            process.kill()  # which leaves alone what has ended
            process.wait()
            for pipe in (process.stdout, process.stderr):
                pipe.close()

    def __call__(self, *arguments: str, status: int = 0, **options: Any) -> str:
        """Returns what was printed, after checking the exit status; options as for `start`."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=240)
        assert process.returncode == status, f"exit status {process.returncode}, not {status}:\n{out}\n{err}"
        return out + err


def launch(command: Command, module: str, *arguments: str, devices: int, timeout: float, **environment: str) -> None:
    """Runs a module of cases, see launched.py, in two processes with so many devices each."""
    launcher = ("launch/local.py", "--processes=2", f"--devices={devices}", f"--module={module}", "--")
    paths = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "JAX_COMPILATION_CACHE_DIR": str(COMPILED)}
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=REPOSITORY,
        env={**command.environment, **paths, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for_handler(process: subprocess.Popen) -> None:
    """Waits until a process handles SIGTERM, which it does before it imports JAX."""
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        if int(mask, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)


@pytest.fixture
def command(cache: pathlib.Path) -> Iterator[Command]:
    command = Command(cache)
    yield command
    command.close()


MOST_MEMORY = 2_500_000_000  # bytes of a test process, at the end of a file


def resident() -> int:
    """Returns the bytes of memory that this process has, as far as the system says so."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:  # macOS
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    """Forgets compiled programs once they fill much of the memory: there are thousands, and several test processes."""
    yield
    if resident() > MOST_MEMORY:
        import jax  # here, since some tests are of processes without it

        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # what is free is given back, where the C library can
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Checks the names above, and removes compiled programs of over a week ago: most are of code that has changed."""
    if hasattr(session.config, "workerinput"):
        return  # the process that started this one has done it
    for name in (*ONE_PROCESS_EACH, *BY_THE_CLOCK):
        file, _, test = name.partition("::")
        if f"def {test or 'test_'}" not in (REPOSITORY / file).read_text():
            raise pytest.UsageError(f"tests/conftest.py names {name}, and there is no such test.")
    for path in COMPILED.glob("*-cache"):
        if time.time() - path.stat().st_mtime > 7 * 24 * 3600:
            path.unlink()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with what takes long and waits for processes, so that no test process is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    # Tracing makes many objects, of which few are garbage, and what has been imported never is.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distributes the tests as said above: with pytest 9, pytest-xdist 3.8 does not see its own marks for this."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(BY_THE_CLOCK):
                return "by the clock"
            return next((file for file in ONE_PROCESS_EACH if nodeid.startswith(file)), nodeid)

    return Scheduling(config, log)

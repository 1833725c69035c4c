"""A small training that profiles itself twice, and leaves traces, an account, private files and no open port."""

import json
import os
import pathlib
import signal

import jax
import pytest
from conftest import records

from vision_jax import config as config_lib
from vision_jax import train
from vision_jax.devices import backend, flops, sharding
from vision_jax.errors import ConfigError
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.profiling import Profiler


def listening_sockets() -> set[str]:
    """Returns the addresses at which this process listens, as /proc writes them."""
    own = set()
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        try:
            own.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
        except OSError:  # it was that of the folder, which is closed by now
            continue
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in pathlib.Path(f"/proc/self/net/{name}").read_text().splitlines()
    ]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in own}


def test_listening_sockets_are_found():
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        assert not listening_sockets()
        server.listen()
        assert listening_sockets() == {f"0100007F:{server.getsockname()[1]:04X}"}


class Watching(Preemption):
    """Never stops, but looks for open ports at each step, and asks for a profile at the sixth."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.asked = -1

    def should_stop(self) -> bool:
        self.found |= listening_sockets()
        self.asked += 1
        if self.asked == 6:
            os.kill(os.getpid(), signal.SIGUSR1)
        return False


def test_a_run_that_profiles_itself(
    image_folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    mesh = sharding.make_mesh(config_lib.default_config().mesh, jax.devices()[:1])  # for eight devices XLA takes longer
    monkeypatch.setattr(sharding, "make_mesh", lambda sizes: mesh)
    monkeypatch.setattr(flops, "CHIPS", (flops.Chip(("cpu",), 1.0, 1.0, "this test"),))
    config = config_lib.default_config()
    config.model.name, config.batch_size, config.schedule.warmup_epochs = "lenet5", 8, 0.0
    config.total_steps, config.log.every_steps, config.eval.every_steps = 8, 2, 8
    config.data.update({"source": "folder", "dir": str(image_folder), "image_size": 28, "eval_resize": 28})
    config.log.profile_steps = (2, 3)
    watching = Watching()
    workdir = tmp_path / "w"
    with caplog.at_level("INFO"):
        train.train_and_evaluate(config, workdir, preemption=watching)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL

    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("Profiling")] == [
        "Profiling steps 2 to 3.",
        "Profiling steps 7 to 16.",  # of which the training does two
    ]
    traces = sorted(path.read_bytes() for path in workdir.glob("profile/**/*.xplane.pb"))
    assert len(traces) >= 1  # the second is in the same folder if it began in the same second
    assert any(b"train" in trace for trace in traces)

    lines = records(workdir)
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == [2, 4, 6, 8]
    for line in trained:
        rate = line["train/images_per_second"]
        assert line["train/images_per_second_per_device"] == pytest.approx(rate / jax.device_count())
        operations = line["train/mfu"] * 1e12 / rate
        assert operations == pytest.approx(2 * 3 * LENET5 - 2 * LENET5_STEM, rel=1e-6)

    account = json.loads((workdir / "goodput.json").read_text())
    counted = [line["goodput/productive"] * line["goodput/seconds"] for line in trained]
    assert 0 < counted[0] < counted[1] < counted[2] < counted[3] <= account["seconds"]["steps"] + 1e-6
    assert trained[-1]["goodput/seconds"] < sum(account["seconds"].values())
    for category in ("startup", "compilation", "steps", "evaluation", "saves"):
        assert account["seconds"][category] > 0, category
    assert account["seconds"]["lost"] == 0
    assert "in 1 attempt went into steps that were kept" in caplog.text

    assert not watching.found
    for path in (workdir, workdir / "profile", workdir / "checkpoints"):
        assert path.stat().st_mode & 0o777 == 0o700, path
    assert {path.parent for path in workdir.glob("**/events.out.tfevents.*")} == {workdir}


# Of an image of 28 pixels: two convolutions and three layers of products.
LENET5_STEM = 24 * 24 * 5 * 5 * 3 * 6
LENET5 = LENET5_STEM + 8 * 8 * 5 * 5 * 6 * 16 + 256 * 120 + 120 * 84 + 84 * 3


@pytest.mark.parametrize("directory", [None, "mine"])
def test_caches_are_private(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, directory: str | None):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        backend.enable_compilation_cache(directory and str(tmp_path / directory))
        made = pathlib.Path(jax.config.jax_compilation_cache_dir)
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    assert made == tmp_path / (directory or "vision_jax/compiled")
    while made != tmp_path:
        assert made.stat().st_mode & 0o777 == 0o700, made
        made = made.parent


def test_a_profile_is_not_begun_twice(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with Profiler(tmp_path / "profile", (3, 6)) as profiler:
        for step in [*range(4, 6), *range(2, 40)]:  # goes on within the range, and goes back once
            with profiler.step(step):
                calls.append(str(step))
                if step in (5, 20, 24):  # the first and the last come during a profile
                    os.kill(os.getpid(), signal.SIGUSR1)
            profiler.after_step(step, None)
    begun = [calls[i + 1] for i, call in enumerate(calls) if call == "start"]
    ended = [calls[i - 1] for i, call in enumerate(calls) if call == "stop"]
    assert (begun, ended) == (["4", "21"], ["6", "30"])


def test_storage_that_fails_does_not_end_the_training(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "profile").write_text("a file")
    with Profiler(tmp_path / "profile", (1, 2)) as profiler, profiler.step(1):
        pass
    assert "Steps 1 to 2 cannot be profiled" in caplog.text


@pytest.mark.parametrize("steps", [(3,), (0, 2), (5, 4), (1.5, 2)])
def test_ranges_that_cannot_be_profiled(steps: tuple):
    config = config_lib.default_config()
    config.data.source, config.log.profile_steps = "synthetic", steps
    with pytest.raises(ConfigError, match=r"log.profile_steps is .* it takes \(first, last\)"):
        config_lib.validate(config_lib.resolve(config), 1)

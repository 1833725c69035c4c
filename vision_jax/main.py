"""Trains or evaluates: `python -m vision_jax.main --config=configs/resnet50.py --workdir=runs/resnet50`.

Exit status: 0 done; 75 saved after SIGTERM, run the same command again; 79 a hang, found by the watchdog;
1 failed; 2 wrong flags; 130 Ctrl-C.
"""

import contextlib
import logging
import os
import pathlib
import signal
import sys
import time
import traceback
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vision_jax.devices import cluster
from vision_jax.errors import STATUS_PREEMPTED, ConfigError, Interrupted, Preempted, VisionJaxError
from vision_jax.runtime.preemption import Preemption


class _OrNone(flags.ArgumentParser):
    """Reads a field of the configuration; None unsets what a recipe has set."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


_PARSERS: dict[type, flags.ArgumentParser] = {
    **{float: flags.FloatParser(), int: flags.IntegerParser(), str: flags.ArgumentParser()},
    bool: flags.BooleanParser(),
}
for _type, _parser in _PARSERS.items():
    config_flags.register_flag_parser_for_type(_type, _OrNone(_parser))

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file such as configs/resnet50.py; --config.FIELD=VALUE overrides a field of it.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/ and the name of the config file.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "dry_run"],
    "train: begin or continue; eval: evaluate a checkpoint of the workdir, or if it has none, config.model.pretrained; "
    "dry_run: print what would be trained, parameter by parameter, and do nothing.",
)
_STEP = flags.DEFINE_string("step", None, "--mode=eval: which checkpoint, a number or `best`; default: the latest.")
_ALLOW_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Continue a workdir that another configuration made.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Several processes: host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")

log = logging.getLogger("vision_jax.main")

_BEGUN = time.monotonic()


def run() -> int:
    """Does what the flags say and returns the exit status."""
    join = None
    # What asks for a profile would end the process until the training loop handles it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with Preemption() as preemption:
        try:
            workdir = _workdir()
            join = cluster.discover(
                os.environ,
                *(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value),
                tpu_metadata=cluster.read_tpu_metadata,
            )
            if join is not None:
                from vision_jax.devices import distributed  # imports JAX, which takes seconds that --help should not

                topology = distributed.start(join)
                preemption.hand_over()
            _configure_logging()
            if join is not None:
                log.info("%s", topology)
            if _MODE.value == "eval":
                return _evaluate(_CONFIG.value, workdir, preemption)
            if _CONFIG.value is None:
                raise ConfigError("--config is missing: pass a file, such as --config=configs/quickstart.py.")
            if _MODE.value == "dry_run":
                return _dry_run(_CONFIG.value)
            return _train(_CONFIG.value, workdir, preemption)
        except VisionJaxError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
            status = 130
        except Exception:
            if join is None:
                raise
            traceback.print_exc()
            print("error: this process ends. If a connection is to blame, another ended before it.", file=sys.stderr)
            status = 1
    if join is not None:
        # The others wait for this process in a collective, and an orderly exit would wait for them.
        sys.stderr.flush()
        os._exit(status)
    return status


def _dry_run(config: ConfigDict) -> int:
    import jax

    from vision_jax import dry_run

    _enable_compilation_cache(config.compilation_cache)
    text = dry_run.describe(config)
    if jax.process_index() == 0:
        print(text)
    return 0


def _train(config: ConfigDict, workdir: pathlib.Path, preemption: Preemption) -> int:
    from vision_jax import train

    _enable_compilation_cache(config.compilation_cache)
    try:
        train.train_and_evaluate(
            config, workdir, allow_config_change=_ALLOW_CHANGE.value, preemption=preemption, begun=_BEGUN
        )
    except Preempted as stop:
        log.warning("%s.", stop)
        return STATUS_PREEMPTED
    log.info("The run is in %s.", workdir)
    return 0


def _evaluate(config: ConfigDict | None, workdir: pathlib.Path, preemption: Preemption) -> int:
    import jax

    from vision_jax import evaluate
    from vision_jax.devices import distributed

    fields = config.to_dict() if config is not None else {}
    distributed.check_agreement(
        {**fields, "--mode": "eval", "--step": _STEP.value, "the workdir": str(workdir.absolute())}
    )
    _enable_compilation_cache(config.compilation_cache if config is not None else None)
    try:
        if config is not None and config.model.pretrained and not (workdir / "checkpoints").exists():
            what = config.model.pretrained
            results = evaluate.evaluate_pretrained(config, preemption=preemption)
        else:
            step, results = evaluate.evaluate_checkpoint(workdir, _STEP.value, config, preemption=preemption)
            what = f"step {step} of {workdir}"
    except Interrupted:
        log.warning("Stopped by SIGTERM: run the same command again.")
        return STATUS_PREEMPTED
    if jax.process_index() == 0:
        print(f"{what}\n{evaluate.format_results(results)}")
    return 0


def _workdir() -> pathlib.Path:
    """Returns the workdir that the flags name."""
    if _STEP.value is not None and _STEP.value != "best" and not _STEP.value.isdigit():
        raise ConfigError(f"--step is {_STEP.value!r}: give a number or best.")
    if _WORKDIR.value is not None:
        return pathlib.Path(_WORKDIR.value).expanduser()
    if _CONFIG.value is None:
        raise ConfigError("Neither --config nor --workdir is given: pass --config=configs/quickstart.py, say.")
    filename = config_flags.get_config_filename(flags.FLAGS["config"])
    return pathlib.Path("runs") / pathlib.Path(filename).stem


def _enable_compilation_cache(directory: str | None) -> None:
    """Keeps compiled programs between runs: in `directory`, by default vision_jax's cache; nowhere if it is empty."""
    import jax

    from vision_jax.data.cache import cache_dir

    if directory == "":
        return
    path = pathlib.Path(directory).expanduser() if directory else cache_dir() / "compiled"
    # Before anything is compiled; a folder that cannot be written to costs warnings, not the run.
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # private to the user; JAX would not see to that
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _configure_logging() -> None:
    """Shows this package's messages of the first process, and every warning; other libraries' only from warnings on."""
    import jax

    from vision_jax.runtime.writers import ProgressHandler

    handler = ProgressHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("vision_jax").setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
    # Orbax logs the traceback of what it raises anyway, and asyncio that of each array of a damaged checkpoint.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable


def _report_unraisable(unraisable: Any) -> None:
    """Prints an error that nobody can catch, as Python does, but not what Orbax gave up after the first error.

    When an array of a checkpoint cannot be read or written, an error says so; all the others end later, without the
    event loop or the coroutine that waited for them.
    """
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    if code is not None and f"{os.sep}orbax{os.sep}" in code.co_filename:
        return
    if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(unraisable)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them or with the config file is said in one line."""
    if {"--help", "-help", "-h"} & set(argv):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)  # absl's own handling ends with status 1
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"there are arguments that are not flags: {' '.join(rest[1:])}")
        if _CONFIG.value is not None and not isinstance(_CONFIG.value.lock(), ConfigDict):  # lock() raises load errors
            raise flags.Error("the config file does not return a ConfigDict.")
        return rest
    except flags.Error as error:
        message = str(error)
        if "config." in message and not any(a.startswith(("--config=", "-config=")) for a in argv):
            message += " --config.FIELD needs --config=FILE before it."
    except Exception as error:  # the config file is the user's program, and may raise anything
        message = _config_file_problem(error)
    print(f"error: {message}\nSee `python -m vision_jax.main --help`.", file=sys.stderr)
    sys.exit(2)


def _config_file_problem(error: Exception) -> str:
    """Returns what went wrong in the config file, or with a field that is set by a flag, and where."""
    lines = str(error).replace("\\n", "\n").strip("\"'").splitlines()
    hint = next((line for line in lines if line.startswith("Did you mean")), None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "get_config"]
    if isinstance(error, ConfigError):
        what = str(error)
    elif isinstance(error, AttributeError) and not frames and hint is None:
        what = f"the configuration has no field {lines[0]!r}; vision_jax/config.py lists all of them."
    elif hint is not None:
        what = f"unknown field of the configuration. {hint.rstrip(chr(34) + chr(39))}"
    elif isinstance(error, OSError):
        what = f"cannot load the config file: {lines[-1].strip()}"
    else:
        what = f"{type(error).__name__} in the config file: {lines[0] if lines else 'no message'}"
    return what + (f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else "")


def main(argv: list[str]) -> None:
    """The entry point for absl."""
    del argv
    status = run()
    if (loader := sys.modules.get("vision_jax.data.loader")) and loader.hanging_threads():
        # An orderly exit would wait for them, for ever.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)

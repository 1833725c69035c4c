"""Trains or evaluates: `python -m vision_jax.main --config=configs/resnet50.py --workdir=runs/resnet50`.

Exit status: 0 done; 75 saved after SIGTERM, run the same command again; 1 failed; 2 wrong flags; 130 Ctrl-C.
"""

import logging
import os
import pathlib
import re
import sys
import warnings

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vision_jax.errors import ConfigError, Preempted, VisionJaxError
from vision_jax.preemption import Preemption

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file such as configs/resnet50.py; --config.FIELD=VALUE overrides a field of it.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/ and the name of the config file.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (or continue), or evaluate a checkpoint of the workdir.")
_STEP = flags.DEFINE_string("step", None, "--mode=eval: which checkpoint, a number or `best`; default: the latest.")
_ALLOW_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Continue a workdir that another configuration made.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Several processes: host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")

log = logging.getLogger("vision_jax.main")


def run() -> int:
    """Does what the flags say and returns the exit status."""
    try:
        config, workdir = _CONFIG.value, _workdir()
        with Preemption() as preemption:
            from vision_jax import sharding  # imports JAX, which takes seconds that --help should not

            sharding.initialize_distributed(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
            _configure_logging()
            if _MODE.value == "eval":
                _evaluate(config, workdir)
            else:
                _train(config, workdir, preemption)
    except Preempted as stop:
        log.warning("%s.", stop)
        return 75
    except VisionJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _train(config: ConfigDict | None, workdir: pathlib.Path, preemption: Preemption) -> None:
    from vision_jax import train

    if config is None:
        raise ConfigError("--config is missing: pass a file, such as --config=configs/quickstart.py.")
    _enable_compilation_cache(config.compilation_cache)
    train.train_and_evaluate(config, workdir, allow_config_change=_ALLOW_CHANGE.value, preemption=preemption)
    log.info("The run is in %s.", workdir)


def _evaluate(config: ConfigDict | None, workdir: pathlib.Path) -> None:
    import jax

    from vision_jax import evaluate

    _enable_compilation_cache(config.compilation_cache if config is not None else None)
    step, results = evaluate.evaluate_checkpoint(workdir, _STEP.value, config)
    if jax.process_index() == 0:
        print(f"step {step} of {workdir}\n{evaluate.format_results(results)}")


def _workdir() -> pathlib.Path:
    """Returns the workdir that the flags name."""
    if _STEP.value is not None and _STEP.value != "best" and not _STEP.value.isdigit():
        raise ConfigError(f"--step is {_STEP.value!r}: give a number or best.")
    if _WORKDIR.value is not None:
        return pathlib.Path(_WORKDIR.value).expanduser()
    filename = config_flags.get_config_filename(flags.FLAGS["config"])
    if filename is None:
        raise ConfigError("Neither --config nor --workdir is given: pass --config=configs/quickstart.py, say.")
    return pathlib.Path("runs") / pathlib.Path(filename).stem


def _enable_compilation_cache(directory: str | None) -> None:
    """Keeps compiled programs between runs: in `directory`, by default vision_jax's cache; nowhere if it is empty."""
    import jax

    from vision_jax.data.sources import cache_dir

    if directory == "":
        return
    jax.config.update("jax_compilation_cache_dir", directory or os.fspath(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _configure_logging() -> None:
    """Shows this package's messages of the first process, and every warning; other libraries' only from warnings on."""
    import jax

    from vision_jax.writers import ProgressHandler

    handler = ProgressHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("vision_jax").setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them or with the config file is said in one line."""
    if {"--help", "-help", "-h"} & set(argv):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)  # absl's own handling ends with status 1
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"there are arguments that are not flags: {' '.join(rest[1:])}")
        if _CONFIG.value is not None:
            _CONFIG.value.lock()  # raises what went wrong when the file was loaded
        return rest
    except flags.Error as error:
        message = str(error)
        if "config." in message and not any(a.startswith(("--config=", "-config=")) for a in argv):
            message += " --config.FIELD needs --config=FILE before it."
    except (AttributeError, KeyError) as error:  # a field that does not exist, in a flag or in the config file
        message = "unknown field of the configuration: " + re.sub(r"[\"']?\\?'(\w+)\\?'\\n", r"\1. ", str(error)).strip("\"'")
    except OSError as error:
        message = f"cannot load the config file: {str(error).splitlines()[-1].strip()}"
    print(f"error: {message}\nSee `python -m vision_jax.main --help`.", file=sys.stderr)
    sys.exit(2)


def main(argv: list[str]) -> None:
    """The entry point for absl."""
    del argv
    sys.exit(run())


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*os.fork.*")
    app.run(main, flags_parser=_parse_flags)

"""Trains or evaluates: `python -m vision_jax.main --config=configs/resnet50.py --workdir=runs/resnet50`.

--config=FILE is Python with a function get_config(); FILE:VARIANT passes it a variant. --config=resnet50 is the recipe
of that name that is installed with the package, and --config=list prints all of them with their published results
(--config='list:resnet*': some of them).

--config.FIELD=VALUE changes a field, and comes after --config:

    --config.batch_size=256 --config.optimizer.learning_rate=0.2   numbers
    --config.data.dir=/data --config.optimizer.nesterov=False      texts, True and False
    "--config.augment.color_jitter=(0.4, 0.4, 0.4)"                tuples, in quotes for the shell
    --config.ema_decay=None                                        unsets a field that the recipe sets

Evaluations, and options of evaluations and of the objective, are set in a file of your own: docs/recipes.md.
--mode=dry_run says what a configuration amounts to, and trains nothing.

The same command again resumes a run. SIGTERM and Ctrl-C save it after the step; a second Ctrl-C does not wait for that.
Exit status: 0 done; 75 saved after SIGTERM, run the same command again; 79 a hang, found by the watchdog;
80 the loss or the gradients are not finite, or spike, beyond what `guard` allows; 1 failed; 2 wrong flags; 130 Ctrl-C.
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vision_jax.config import catalog, command_line, fields
from vision_jax.devices import cluster
from vision_jax.errors import (
    STATUS_DIVERGED,
    STATUS_PREEMPTED,
    CheckpointError,
    ConfigError,
    Interrupted,
    NonFiniteError,
    Preempted,
    VisionJaxError,
    check_no_url,
    check_output,
)
from vision_jax.runtime import console
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.streams import open_closed_streams, status_of

_CONFIG = command_line.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/ and the name of the config file.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "dry_run"],
    "train: start or resume; eval: evaluate a checkpoint of the workdir, or if it has none, config.model.pretrained; "
    "dry_run: print what would be trained, parameter by parameter, and do nothing.",
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "--mode=dry_run: TPU slices or GPUs that are not here, such as v5e:4x4 or h100:8; default: the devices there are.",
)
_JSON = flags.DEFINE_string("json", None, "--mode=dry_run: a file for the cost of a step, as JSON.")
_STEP = flags.DEFINE_string("step", None, "--mode=eval: which checkpoint, a number or `best`; default: the latest.")
_ALLOW_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Resume despite a changed configuration.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Several processes: host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")

log = logging.getLogger("vision_jax.main")

_BEGUN = time.monotonic()


def run() -> int:
    """Does what the flags say and returns the exit status."""
    spec = workdir = None
    # What asks for a profile would end the process until the training loop handles it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with Preemption() as preemption:
        try:
            workdir = _workdir()
            _check_start(_CONFIG.value)
            if _TOPOLOGY.value is not None:
                from vision_jax.devices import backend

                backend.leave_devices_free()
            console.configure_logging()
            spec = cluster.discover(
                os.environ,
                *(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value),
                tpu_metadata=cluster.read_tpu_metadata,
            )
            if spec is not None:
                from vision_jax.devices import distributed  # imports JAX, which takes seconds that --help should not

                topology = distributed.start(spec)
                preemption.hand_over()
            else:
                from vision_jax.devices import backend

                backend.start()
            _quiet_other_processes()
            if spec is not None:
                log.info("%s", topology)
            if _MODE.value == "eval":
                return _evaluate(_CONFIG.value, workdir, preemption)
            if _MODE.value == "dry_run":
                return _dry_run(_CONFIG.value)
            return _train(_CONFIG.value, workdir, preemption)
        except VisionJaxError as error:
            print(f"error: {error}", file=sys.stderr)
            status = STATUS_DIVERGED if isinstance(error, NonFiniteError) else 1
        except KeyboardInterrupt:
            print(f"interrupted{_what_is_saved(workdir) if _MODE.value == 'train' else ''}", file=sys.stderr)
            status = 130
        except Exception:
            if spec is None:
                raise
            traceback.print_exc()
            print("error: this process ends. If a connection is to blame, another ended before it.", file=sys.stderr)
            status = 1
    if spec is not None:
        # The others wait for this process in a collective, and an orderly exit would wait for them.
        sys.stderr.flush()
        os._exit(status)
    return status


def _dry_run(config: ConfigDict) -> int:
    import jax

    from vision_jax import dry_run
    from vision_jax.devices import backend

    if _TOPOLOGY.value is None:  # JAX cannot read what it has kept of programs for devices that are not here
        backend.enable_compilation_cache(config.compilation_cache)
    text, cost = dry_run.describe(config, _TOPOLOGY.value)
    if jax.process_index() > 0:
        return 0
    print(text)
    if _JSON.value is not None:
        if cost is None:
            raise ConfigError("--json: the compiler for this device does not report the cost of a step.")
        try:
            pathlib.Path(_JSON.value).write_text(json.dumps(dataclasses.asdict(cost), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(
                f"--json is {_JSON.value!r}, which cannot be written: {error.strerror}. Give another."
            ) from error
    return 0


def _train(config: ConfigDict, workdir: pathlib.Path, preemption: Preemption) -> int:
    from vision_jax import train
    from vision_jax.devices import backend

    backend.enable_compilation_cache(config.compilation_cache)
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
    from vision_jax.devices import backend, distributed

    given = config.to_dict() if config is not None else {}
    distributed.check_agreement(
        {**given, "--mode": "eval", "--step": _STEP.value, "the workdir": str(workdir.absolute())}
    )
    backend.enable_compilation_cache(config.compilation_cache if config is not None else None)
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


def _check_start(config: ConfigDict | None) -> None:
    """Checks what can be checked before JAX is started, which takes seconds and, on a TPU, keeps others from it."""
    only = {"--topology": (_TOPOLOGY, "dry_run"), "--json": (_JSON, "dry_run"), "--step": (_STEP, "eval")}
    for name, (flag, mode) in only.items():
        if flag.value is not None and _MODE.value != mode:
            raise ConfigError(f"{name} is {flag.value!r}, which is for --mode={mode} alone.")
    if _JSON.value is not None:
        check_no_url("--json", _JSON.value)
        check_output("--json", pathlib.Path(_JSON.value))
    if config is None:
        if _MODE.value != "eval":
            raise ConfigError(
                "--config is missing: pass a file, or the name of a recipe, such as --config=quickstart; --config=list "
                "prints all of them."
            )
        return
    from vision_jax.config import check_urls

    check_urls(config)


def _what_is_saved(workdir: pathlib.Path | None) -> str:
    """Returns what to print after Ctrl-C on how to go on."""
    if workdir is None:
        return ""
    checkpoints = workdir / "checkpoints"
    try:
        steps = [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()]
    except (FileNotFoundError, NotADirectoryError):
        steps = []
    except OSError as error:
        return f": whether a step is saved in {checkpoints} cannot be seen ({error.strerror})"
    if not steps:
        return f": no step is saved in {checkpoints}, so the same command begins anew"
    return f": the same command goes on from step {max(steps)}, which is saved in {checkpoints}"


def _workdir() -> pathlib.Path:
    """Returns the workdir that the flags name.

    Raises:
        ConfigError: if it is a URL, or none is named.
        CheckpointError: if it is, or lies in, what is not a directory.
    """
    if _STEP.value is not None and _STEP.value != "best" and not _STEP.value.isdigit():
        raise ConfigError(f"--step is {_STEP.value!r}: give a number or best.")
    if _WORKDIR.value is not None:
        if not _WORKDIR.value:
            raise ConfigError("--workdir is empty: name a folder, or leave it out for runs/ and the config's name.")
        check_no_url("--workdir", _WORKDIR.value)
        workdir = pathlib.Path(_WORKDIR.value).expanduser()
        # `Path.exists` raises where a folder may not be read, which is not the question here.
        nearest = next(path for path in (workdir, *workdir.absolute().parents) if os.path.exists(path))
        if not nearest.is_dir():
            raise CheckpointError(
                f"Cannot use the workdir {workdir}: {nearest} is not a directory. Give another --workdir."
            )
        if os.path.isdir(workdir) and not os.access(workdir, os.R_OK | os.X_OK):
            raise CheckpointError(
                f"{workdir} cannot be read: permission denied. Ask its owner, or give another --workdir."
            )
        return workdir
    if _CONFIG.value is None:
        raise ConfigError(
            "Neither --config nor --workdir is given: pass --config=quickstart, say; --config=list prints all recipes."
        )
    return _default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))


def _default_workdir(config: str) -> pathlib.Path:
    """Returns the workdir of a config file, FILE or FILE:VARIANT, where none is named."""
    return pathlib.Path("runs") / pathlib.Path(config.partition(":")[0]).stem


def _quiet_other_processes() -> None:
    """Leaves the messages of this package that are no warnings to the first process."""
    import jax

    if jax.process_index() > 0:
        logging.getLogger("vision_jax").setLevel(logging.WARNING)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them or with the config file is said in one line."""
    if {"--help", "-help", "-h"} & set(argv):
        where = f"All fields, with their defaults and what they mean: {fields.__file__}"
        _end_with(lambda: app.usage(shorthelp=True, writeto_stdout=True, detailed_error=where))
    if (pattern := _listed(argv)) is not None:
        _end_with(lambda: print(catalog.describe(pattern)))
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"there are arguments that are not flags: {' '.join(rest[1:])}")
        return rest
    except flags.Error as error:
        message = command_line.flag_problem(error)
        if "config." in message and not any(a.startswith(("--config=", "-config=")) for a in argv):
            message += " --config.FIELD needs --config=FILE before it."
    except ConfigError as error:  # of the config file
        message = str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of a field that a flag sets
        message = command_line.field_problem(error)
    print(f"error: {message}\nSee `python -m vision_jax.main --help`.", file=sys.stderr)
    sys.exit(2)


def _listed(argv: list[str]) -> str | None:
    """Returns which recipes --config=list asks for, a pattern; None: it is not there."""
    # A flag's value may be the next argument.
    found = re.search(r"^--?config[=\n]list(?::(.*))?$", "\n".join(argv), re.MULTILINE)
    return None if found is None else found[1] or "*"


def _end_with(show: Callable[[], object]) -> NoReturn:
    """Prints something and ends the process."""

    def run() -> int:
        try:
            show()
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    sys.exit(status_of(run))


def _hanging_threads(module: str) -> list[str]:
    """Returns the threads that a module has left behind, without importing it."""
    return sys.modules[module].hanging_threads() if module in sys.modules else []


def main(argv: list[str]) -> None:
    """The entry point for absl."""
    del argv
    status = status_of(run)
    if any(_hanging_threads(module) for module in ("vision_jax.data.loader", "vision_jax.runtime.experiments")):
        # An orderly exit would wait for them, for ever.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    open_closed_streams()
    app.run(main, flags_parser=_parse_flags)

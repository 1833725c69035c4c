"""What the commands that use a trained model share: its flags, starting on the devices, and errors."""

import argparse
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from vision_jax.errors import STATUS_DAMAGED, ConfigError, VisionJaxError, check_no_url, reason
from vision_jax.runtime import console

if TYPE_CHECKING:
    from vision_jax.build import TrainedModel

T = TypeVar("T")

DAMAGED = STATUS_DAMAGED


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which model: a checkpoint of a run, or published weights."""
    group = parser.add_argument_group(
        "the model",
        "A checkpoint of a run, or a file of weights. --config.FIELD=VALUE changes a field of its configuration, "
        "such as --config.data.eval_size=288, --config.data.eval_crop=1.0, --config.dtype=bfloat16.",
    )
    group.add_argument("--workdir", help="of a run")
    group.add_argument("--step", help="of its checkpoint, a number or `best`; default: the latest")
    group.add_argument("--weights", choices=("raw", "ema"), help="default: the moving average, if there is one")
    group.add_argument("--model", help="name of a model (`python -m vision_jax models`), with --pretrained")
    group.add_argument("--pretrained", help="its weights: safetensors, npz or torch file, or hf://OWNER/NAME")
    group.add_argument("--classes", help="a file with the names of its classes, one per line, or `imagenet`")
    add_config_argument(group)


def add_config_argument(parser: argparse._ActionsContainer) -> None:
    """Adds the flag by which what a config file registers is known; see `read_config`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a config file that registers a model, an objective, an evaluation or a data source which the run has: "
        "it is read for that alone, and the configuration is that of the checkpoint",
    )


def read_config(arguments: argparse.Namespace) -> None:
    """Reads the file of --config, if it was given, so that what it registers is known.

    Raises:
        ConfigError: if it cannot be read.
    """
    from vision_jax.config import loading

    if arguments.config is not None:
        loading.load(arguments.config)


def integers(text: str) -> tuple[int, ...]:
    """Reads the value of a flag, integers with commas."""
    return _numbers(text, int, "an integer")


def floats(text: str) -> tuple[float, ...]:
    """Reads the value of a flag, numbers with commas."""
    return _numbers(text, float, "a number")


def _numbers(text: str, kind: Callable[[str], T], words: str) -> tuple[T, ...]:
    """Returns what `kind` makes of the parts between commas, of which there is at least one."""
    found = []
    for part in [part for part in text.split(",") if part] or [text]:
        try:
            found.append(kind(part))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{part!r} is not {words}: give one, or several with commas") from error
    return tuple(found)


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags by which several processes share the work."""
    group = parser.add_argument_group(
        "several processes", "By default, what SLURM, Kubernetes, MPI or a TPU slice says."
    )
    group.add_argument("--coordinator_address", help="host:port of process 0")
    group.add_argument("--num_processes", type=int, help="how many")
    group.add_argument("--process_id", type=int, help="which one this is, from 0")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses flags; those of the form --config.FIELD=VALUE become the list `overrides`."""
    arguments, unknown = parser.parse_known_args(argv)
    arguments.overrides = [text for text in unknown if text.startswith("--config.")]
    if others := [text for text in unknown if text not in arguments.overrides]:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return arguments


def check_model_arguments(arguments: argparse.Namespace, more: Sequence[str] = ("classes",)) -> None:
    """Checks the flags of `add_model_arguments`, before JAX is started.

    Args:
        arguments: the flags.
        more: names of others that are for `--model` alone.

    Raises:
        ConfigError: if they do not say which model.
    """
    if (arguments.workdir is None) == (arguments.model is None):
        raise ConfigError("Which model? Give --workdir=DIR of a run, or --model=NAME with --pretrained=FILE.")
    if arguments.model is not None and not arguments.pretrained:
        raise ConfigError(f"--model={arguments.model} needs its weights: --pretrained=FILE, or hf://OWNER/NAME.")
    of_workdir = {"--step": arguments.step, "--weights": arguments.weights}
    of_weights = {f"--{name}": getattr(arguments, name) for name in ("pretrained", *more)}
    for name, value in (of_weights if arguments.workdir else of_workdir).items():
        if value is not None:
            raise ConfigError(f"{name} is {value!r}, which is for {'--model' if arguments.workdir else '--workdir'}.")
    if arguments.step is not None and arguments.step != "best" and not arguments.step.isdigit():
        raise ConfigError(f"--step is {arguments.step!r}: give a number or best.")
    if arguments.workdir is not None:
        check_no_url("--workdir", arguments.workdir)
        if not (pathlib.Path(arguments.workdir).expanduser() / "checkpoints").is_dir():
            raise ConfigError(
                f"--workdir is {arguments.workdir}, which is not the workdir of a run, with checkpoints/: give one."
            )


def refuse(arguments: argparse.Namespace, names: Sequence[str], instead: str) -> None:
    """Checks that flags were not given.

    Raises:
        ConfigError: if one was; `instead` says what it is for.
    """
    for name in names:
        if value := getattr(arguments, name):
            flag = "IMAGE" if name == "paths" else f"--{name}"
            raise ConfigError(f"{flag} is {value!r}, which is {instead}.")


def keep_compiled() -> None:
    """Keeps compiled programs for the next time, where JAX's own variable or vision_jax's cache says."""
    from vision_jax.devices import backend

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        backend.enable_compilation_cache(None)


def load_model(
    arguments: argparse.Namespace, *, classifier: bool = True, needs_data: bool = True, dense: bool = False
) -> "TrainedModel":
    """Loads the model that the flags of `add_model_arguments` name.

    Args:
        arguments: the flags.
        classifier, needs_data: as for `build.from_file` and `build.from_workdir`.
        dense: whether it may be a detector or segmenter.

    Raises:
        ConfigError: if it is one and may not be.
    """
    trained = _load_model(arguments, classifier, needs_data)
    if trained.dense and not dense:
        raise ConfigError(
            f"{arguments.workdir or arguments.model} is a model of {trained.dense}, and this command is for models of "
            "whole images: for such a one there are predict, export, suite --sets=val, report, and --mode=eval of main."
        )
    return trained


def is_dense(arguments: argparse.Namespace) -> bool:
    """Returns whether the flags of `add_model_arguments` name a detector or segmenter, before it is loaded."""
    from vision_jax.assembly import dense_files
    from vision_jax.assembly.trained import finds_of_workdir

    read_config(arguments)
    if arguments.workdir is None:
        return arguments.model in dense_files.NAMES
    return bool(finds_of_workdir(arguments.workdir, arguments.step))


def _load_model(arguments: argparse.Namespace, classifier: bool, needs_data: bool) -> "TrainedModel":
    from vision_jax import build, pretrained
    from vision_jax.devices import backend

    read_config(arguments)
    backend.start()
    keep_compiled()
    if arguments.workdir is not None:
        return build.from_workdir(
            arguments.workdir, arguments.step, arguments.weights, arguments.overrides, needs_data=needs_data
        )
    names = pretrained.read_class_names(arguments.classes)
    return build.from_file(arguments.model, arguments.pretrained, names, arguments.overrides, classifier=classifier)


def write_json(path: str | None, results: Any) -> None:
    """Writes results to the file of --json, if it was given.

    Raises:
        ConfigError: if it cannot be written.
    """
    if path is None:
        return
    try:
        pathlib.Path(path).write_text(json.dumps(results, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--json is {path!r}, which cannot be written: {reason(error)}. Give another.") from error


def run(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status; an error of this package is one line and the status 1.

    Ctrl-C is left to `python -m vision_jax`.
    """
    console.configure_logging()
    try:
        return command()
    except VisionJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run_in_processes(arguments: argparse.Namespace, command: Callable[[], int]) -> int:
    """Like `run`, of a command that several processes share; flags are those of `add_process_arguments`."""
    from vision_jax.devices import cluster

    console.configure_logging()
    spec = None
    try:
        spec = cluster.discover(
            os.environ,
            *(arguments.coordinator_address, arguments.num_processes, arguments.process_id),
            tpu_metadata=cluster.read_tpu_metadata,
        )
        if spec is None:
            return run(command)
        from vision_jax.devices import distributed

        logging.getLogger(__name__).info("%s", distributed.start(spec))
        return command()
    except VisionJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        if spec is None:
            return 1
        # The others wait for this process in a collective, and an orderly exit would wait for them.
        sys.stderr.flush()
        os._exit(1)

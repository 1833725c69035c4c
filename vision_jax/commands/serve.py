"""Serves a model over HTTP: `python -m vision_jax serve --workdir=runs/resnet50`.

`curl --data-binary @cat.jpg http://127.0.0.1:8000/predict` then answers with its classes, and the page at
http://127.0.0.1:8000/ takes images that are dropped on it. Images that come together are computed together. It listens
on 127.0.0.1 unless told otherwise, and has neither encryption nor passwords: before it is reachable from elsewhere, put
a proxy in front. SIGTERM and Ctrl-C end it when all that was asked has been answered. Exit status: 0 done; 1 failed, 2
wrong flags.
"""

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vision_jax.commands import common
from vision_jax.errors import ConfigError, check_no_url

if TYPE_CHECKING:
    from vision_jax.serve.backends import Backend

_OF_MODEL = ("workdir", "step", "weights", "model", "pretrained", "classes", "overrides")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "(default: %(default)s)"
    parser.add_argument("--host", default="127.0.0.1", help=f"0.0.0.0: all interfaces {default}")
    parser.add_argument("--port", type=int, default=8000, help=f"0: one that is free {default}")
    parser.add_argument("--topk", type=int, default=5, help=f"classes of an answer, at most {default}")
    parser.add_argument("--max_batch", type=int, default=32, help=f"images computed at once, at most {default}")
    parser.add_argument("--max_delay_ms", type=float, default=5, help=f"that an image waits for others {default}")
    parser.add_argument("--max_waiting", type=int, default=256, help=f"images; more are answered 503 {default}")
    parser.add_argument("--max_bytes", type=int, default=20 << 20, help=f"of a body; more are answered 413 {default}")
    parser.add_argument(
        "--max_pixels", type=int, default=50_000_000, help=f"of an image; more are answered 422 {default}"
    )
    parser.add_argument("--max_seconds", type=float, default=30, help=f"for a body to come; else 408 {default}")
    parser.add_argument("--max_connections", type=int, default=1000, help=f"more are answered 503 {default}")
    parser.add_argument(
        "--drain_seconds", type=float, default=1, help=f"after SIGTERM in which connections are accepted {default}"
    )
    parser.add_argument("--onnx", help="a file of `export --format=onnx`, instead of --workdir or --model")
    common.add_model_arguments(parser)
    arguments = common.parse(parser, argv)
    return common.run(lambda: serve(arguments))


def serve(arguments: argparse.Namespace) -> int:
    """Serves until a signal; returns the exit status.

    Raises:
        ConfigError: for flags that cannot work, or if a library is missing.
        DataError, CheckpointError: if weights cannot be read.
    """
    if arguments.onnx is None:
        common.check_model_arguments(arguments)
    else:
        common.refuse(arguments, _OF_MODEL, "of a model in JAX, and --onnx is given")
    _check_numbers(arguments)
    try:
        from vision_jax.serve.app import Options
        from vision_jax.serve.program import Address, serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'vision_jax[serve]'.") from error
    from vision_jax.data.loader import usable_cores
    from vision_jax.serve.batching import Limits

    backend = _backend(arguments)
    limits = Limits(arguments.max_batch, arguments.max_delay_ms / 1000, arguments.max_waiting)
    options = Options(limits, arguments.max_bytes, arguments.max_seconds, usable_cores())
    serve(backend, options, Address(arguments.host, arguments.port, arguments.drain_seconds, arguments.max_connections))
    return 0


def _backend(arguments: argparse.Namespace) -> "Backend":
    from vision_jax.export.onnx_model import OnnxModel
    from vision_jax.predict import Predictor
    from vision_jax.serve.backends import JaxBackend, OnnxBackend

    if arguments.onnx is not None:
        check_no_url("--onnx", arguments.onnx)
        model = OnnxModel.open(pathlib.Path(arguments.onnx).expanduser())
        return OnnxBackend(model, arguments.topk, arguments.max_pixels)
    trained = common.load_model(arguments)
    return JaxBackend(trained.name, Predictor.of(trained, topk=arguments.topk), arguments.max_pixels)


def _check_numbers(arguments: argparse.Namespace) -> None:
    for name in ("topk", "max_batch", "max_waiting", "max_bytes", "max_pixels", "max_connections"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: give 1 or more.")
    for name in ("max_delay_ms", "max_seconds", "drain_seconds"):
        value = getattr(arguments, name)
        if not (math.isfinite(value) and value >= 0) or (name == "max_seconds" and not value):
            raise ConfigError(f"--{name} is {value:g}: give a number of 0 or more.")
    if not 0 <= arguments.port < 65536:
        raise ConfigError(f"--port is {arguments.port}: give 0 to 65535.")

"""Writes smaller ONNX files of a model: `python -m vision_jax compress --workdir=runs/resnet50 --output=runs/smaller`.

`float16`: weights and computing in float16. `weights8`: weights stored in int8, computing in float32. `int8`: computing
in int8, with ranges taken from images of the training split. Beside each stands its accuracy on the validation split
and its latency on this machine, compared with float32.onnx; and below, how many weights of the model are zero. Exit
status: 0 done, 1 failed, 2 wrong flags.
"""

import argparse
import pathlib
from collections.abc import Sequence

from vision_jax.commands import common
from vision_jax.compress import CALIBRATIONS, METHODS
from vision_jax.errors import ConfigError, check_no_url, suggest


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax compress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "(default: %(default)s)"
    parser.add_argument("--output", required=True, help="a folder for the files; it is made")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"with commas {default}")
    parser.add_argument("--calibration", choices=CALIBRATIONS, default="percentile", help=f"of ranges {default}")
    parser.add_argument("--calibration_images", type=int, default=256, help=f"of the training split {default}")
    parser.add_argument("--examples", type=int, help="of the validation split; default: all")
    parser.add_argument("--batch_size", type=int, default=64, help=f"of measuring {default}")
    parser.add_argument("--overwrite", action="store_true", help="replace files of the folder")
    common.add_model_arguments(parser)
    arguments = common.parse(parser, argv)
    return common.run(lambda: compress(arguments))


def compress(arguments: argparse.Namespace) -> int:
    """Writes and measures what the flags say; returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        DataError, CheckpointError: if images or weights cannot be read, or files cannot be written.
    """
    common.check_model_arguments(arguments)
    check_no_url("--output", arguments.output)
    output = pathlib.Path(arguments.output).expanduser()
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"Cannot make the folder {output}: {path} is a file. Give another --output.")
    methods = tuple(dict.fromkeys(arguments.methods.split(",")))
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"--methods has {method!r}: {suggest(method, METHODS)}")
    for name in ("calibration_images", "examples", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}: give 1 or more.")

    from vision_jax.compress import program, sparsity
    from vision_jax.export import onnx_file

    onnx_file.import_onnx()  # before a model is loaded
    trained = common.load_model(arguments)
    options = program.Options(
        methods,
        arguments.calibration,
        arguments.calibration_images,
        arguments.examples,
        arguments.batch_size,
        arguments.overwrite,
        None if arguments.workdir is None else pathlib.Path(arguments.workdir),
    )
    rows, zeros = program.compress(trained, output, options)
    print(f"{program.table(rows)}\n\n{sparsity.text(zeros)}")
    return 0

"""The commands `python -m vision_jax benchmark input`, `step`, `predict` and `corruptions`, with --help.

Exit status: 0 done, 1 failed, 2 wrong flags, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from vision_jax.benchmark import corruptions as corruption_benchmark
from vision_jax.benchmark import input as input_benchmark
from vision_jax.benchmark import prediction as prediction_benchmark
from vision_jax.benchmark import step as step_benchmark
from vision_jax.errors import VisionJaxError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a benchmark and returns the exit status.

    Args:
        argv: the arguments; None: those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m vision_jax benchmark", description="Measures, and prints a table.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, measurement: Any, help: str, description: str) -> None:
        command = commands.add_parser(name, help=help, description=description)
        measurement.add_arguments(command)
        command.set_defaults(run=measurement.run)

    add(
        "input",
        input_benchmark,
        help="our loader beside tf.data, DALI, Grain, torch and Pillow",
        description="Images/s of our loader beside those of tf.data, DALI, Grain, torch and Pillow, as far as they are "
        "installed: the same crops of the same bytes on the same cores, in one run. Then the time of each step of "
        "ours. All records are in memory (the page cache): the speed of a disk is not part of it.",
    )
    add(
        "step",
        step_benchmark,
        help="the training step of configurations, beside torch's; or what it costs on TPUs that are not here",
        description="Times the training step of configurations on the devices that there are, with random images "
        "(images/s, MFU, memory, time to compile), beside torch with timm's model where they are installed and there "
        "is a GPU. With --topology: compiles it for TPUs that are not here, and shows what it reads and writes, by "
        "the part of the step.",
    )
    add(
        "predict",
        prediction_benchmark,
        help="predicting image files, beside loading them alone",
        description="Images/s of `python -m vision_jax predict` beside those of its loader alone, on made-up JPEGs of "
        "ImageNet's sizes: how near the command comes to what decoding allows.",
    )
    add(
        "corruptions",
        corruption_benchmark,
        help="ImageNet-C's corruptions, beside imagecorruptions",
        description="CPU time of each of ImageNet-C's corruptions, beside those of imagecorruptions where it is "
        "installed, on the same made-up photos. Its elastic transform is another one, and its frost is from pictures.",
    )
    arguments, unknown = parser.parse_known_args(argv)
    if "overrides" in arguments:
        arguments.overrides = [text for text in unknown if text.startswith("--config.")]
        unknown = [text for text in unknown if text not in arguments.overrides]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started and written goes away
    run = vars(arguments).pop("run")
    try:
        run(arguments)
    except VisionJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0

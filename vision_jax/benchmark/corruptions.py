"""The benchmark of corruptions: ours beside those of imagecorruptions, where it is installed, on the same images."""

import argparse
import importlib
import io
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL.Image

from vision_jax.augment.corruptions import CORRUPTIONS, MIN_SIDE, SEVERITIES, corrupt, random_state
from vision_jax.benchmark import photos
from vision_jax.benchmark.common import positive, span, versions
from vision_jax.errors import ConfigError, check_no_url, check_output, suggest
from vision_jax.runtime.writers import write_atomically

PEER = "imagecorruptions"
_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "scipy", PEER, f"{PEER}-imaug", "scikit-image")
Corrupt = Callable[[np.ndarray, str, int], np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `corruptions`."""
    add = parser.add_argument
    add("--names", help="of the corruptions, with commas; default: all")
    add("--severity", type=int, default=3, choices=SEVERITIES, help="default: %(default)s")
    add("--size", type=positive(int), default=224, help="height and width of the images; default: %(default)s")
    add("--images", type=positive(int), default=8, help="in each round; default: %(default)s")
    add("--rounds", type=positive(int), default=5, help="measurements of each; default: %(default)s")
    add("--json", metavar="FILE", help="write the results there, too")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints a table, and writes --json.

    Raises:
        ConfigError: if a flag cannot work.
    """
    names = list(CORRUPTIONS) if arguments.names is None else arguments.names.split(",")
    for name in names:
        if name not in CORRUPTIONS:
            raise ConfigError(f"--names has {name!r}: {suggest(name, CORRUPTIONS)}")
    if arguments.size < MIN_SIDE:
        raise ConfigError(f"--size is {arguments.size}, and corruptions need {MIN_SIDE} pixels.")
    if arguments.json is not None:
        check_no_url("--json", arguments.json)
        check_output("--json", pathlib.Path(arguments.json))
    images = []
    for data, _ in photos.make(arguments.images, seed=0):
        image = PIL.Image.open(io.BytesIO(data)).resize((arguments.size, arguments.size))
        images.append(np.asarray(image))
    peer, problem = _find_peer()
    print(
        f"{len(images)} images of {arguments.size}x{arguments.size} pixels at severity {arguments.severity}, in one "
        f"thread: milliseconds of CPU time for an image, the median of {arguments.rounds} rounds, and their range"
    )
    print(f"{'':<20}{'vision_jax':>11} {'(rounds)':<16}{PEER:>17} {'(rounds)':<18}{'its/ours':>9}", flush=True)
    found = {}
    for name in names:
        found[name] = times = _measure(name, arguments.severity, images, peer, arguments.rounds)
        line = f"{name:<20}{statistics.median(times['vision_jax']):11.2f} {span(times['vision_jax'], 2):<16}"
        if PEER in times:
            ratios = [its / ours for its, ours in zip(times[PEER], times["vision_jax"], strict=True)]
            line += f"{statistics.median(times[PEER]):17.2f} {span(times[PEER], 2):<18}{statistics.median(ratios):9.1f}"
        print(line.rstrip(), flush=True)
    if problem:
        print(f"{PEER}: {problem}")
    if arguments.json is not None:
        result = {"flags": vars(arguments), "versions": versions(_PACKAGES), "milliseconds": found, "problem": problem}
        write_atomically(pathlib.Path(arguments.json), json.dumps(result, indent=2) + "\n")


def _find_peer() -> tuple[Corrupt | None, str]:
    """Returns the function of imagecorruptions, and what is wrong with it if it cannot be used."""
    try:
        module = importlib.import_module(PEER)
        return (lambda image, name, severity: module.corrupt(image, severity, name)), ""
    except ModuleNotFoundError as error:
        if error.name == PEER:
            return None, f"not installed (pip install {PEER}-imaug)"
        return None, f"cannot be imported: {error}"
    except Exception as error:  # what a release for other versions of NumPy raises
        return None, f"cannot be imported: {type(error).__name__}: {error}"


def _measure(
    name: str, severity: int, images: list[np.ndarray], peer: Corrupt | None, rounds: int
) -> dict[str, list[float]]:
    """Returns the milliseconds of CPU time for an image, by round, of ours and of the peer."""
    random = random_state(0, name, severity, b"")
    functions: dict[str, Corrupt] = {"vision_jax": lambda image, name, severity: corrupt(image, name, severity, random)}
    if peer is not None:
        functions[PEER] = peer
    times: dict[str, list[float]] = {key: [] for key in functions}
    for number in range(-1, rounds):  # the first is for warming up
        for key, function in functions.items():
            start = time.process_time()
            for image in images:
                function(image, name, severity)
            if number >= 0:
                times[key].append(1e3 * (time.process_time() - start) / len(images))
    return times

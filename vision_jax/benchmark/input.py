"""The input benchmark: our loader beside the others that are installed, in one run, and where our time goes."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import platform
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision_jax.benchmark import budget, dense_input, photos
from vision_jax.benchmark.common import positive, span, versions
from vision_jax.benchmark.loaders import LOADERS, Job
from vision_jax.benchmark.rounds import LoaderFailed, Measurement, Worker
from vision_jax.data.views import View, parse_views
from vision_jax.errors import ConfigError, DataError, VisionJaxError, check_no_url, check_output, reason, suggest
from vision_jax.runtime.writers import write_atomically

OURS = "vision_jax"

_LEGEND = """
Loaders, on the same cores with the same crops; records are in memory (the page cache):
{loaders}
Columns: images/s, the median of the rounds, and their range
  /core     by the cores that the loader may use
  ours/its  our images/s/core by its, in the same round: median and range
  /CPU s    images by second of CPU time; and ours by its. Other programs on the machine disturb it least
  error     mean absolute difference of its crops from Pillow's antialiased ones, in levels of 255"""


@dataclasses.dataclass
class Result:
    """A line of the table.

    Attributes:
        cores: that the loader could use.
        rounds: its measurements; empty if `problem`.
        error: mean absolute difference of its crops from Pillow's antialiased ones, in levels of 255; nan of a loader
            that changes their pixels, too.
        problem: why it could not be measured.
    """

    cores: int
    rounds: list[Measurement] = dataclasses.field(default_factory=list)
    error: float = math.nan
    problem: str = ""

    @property
    def rates(self) -> list[float]:
        """Images/s of each round."""
        return [m.images / m.seconds for m in self.rounds]

    @property
    def rate(self) -> float:
        """Median of the images/s."""
        return statistics.median(self.rates)

    @property
    def per_cpu_second(self) -> float:
        """Images by second of CPU time, over all rounds: what other programs on the machine disturb least."""
        return sum(m.images for m in self.rounds) / max(1e-9, sum(m.cpu_seconds for m in self.rounds))

    def ratios(self, ours: "Result") -> list[float]:
        """Our images/s/core divided by its, round by round."""
        return [a / ours.cores / (b / self.cores) for a, b in zip(ours.rates, self.rates, strict=True)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `input`."""
    add = parser.add_argument
    add("--data", metavar="DIR", help="in tfds' layout, or DIR/SPLIT/CLASS/IMAGE; default: made up")
    add("--split", default="train", help="of --data; default: %(default)s")
    add("--images", type=positive(int), default=512, help="made up, or copied out of --data; default: %(default)s")
    add(
        "--encoding",
        choices=[*photos.ENCODINGS, "all"],
        help="as they are, or with a short side of 256 as JPEG with or without (plain256) restart markers, or as raw "
        "pixels; default: original with --data, else all",
    )
    add("--image_size", type=positive(int), default=224, help="height and width of the crops; default: %(default)s")
    add(
        "--views",
        metavar="VIEWS",
        help="crops of one decoding as [NAME=]COUNTxSIZE[:MIN-MAX], such as DINO's 2x224:0.14-1,8x96:0.05-0.14; "
        "default: one of --image_size",
    )
    add("--filter", choices=["bilinear", "bicubic"], default="bilinear", help="of the crops; default: %(default)s")
    add("--batch_size", type=positive(int), default=128, help="default: %(default)s")
    add("--threads", type=positive(int), help="cores, and decoding threads; default: all usable cores")
    add("--rounds", type=positive(int), default=5, help="measurements of each loader; default: %(default)s")
    add("--seconds", type=positive(float), default=3.0, help="of each measurement; default: %(default)s")
    add(
        "--dense",
        metavar="KINDS",
        help=f"instead of crops, images with boxes or masks on canvases, with our loader alone: all, or some of "
        f"{', '.join(dense_input.KINDS)}, separated by commas",
    )
    add("--loaders", default=",".join(LOADERS), help="which to compare; default: %(default)s")
    add("--seed", type=int, default=0, help="of the made-up images and of the crops; default: %(default)s")
    add("--json", metavar="FILE", help="write the results there, too")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables, and writes --json.

    Raises:
        VisionJaxError: if a flag cannot work, there is no such data, or our own loader fails.
    """
    for name in ("data", "json"):
        if (path := getattr(arguments, name)) is not None:
            check_no_url(f"--{name}", path)
            setattr(arguments, name, pathlib.Path(path))
    names = arguments.loaders.split(",")
    for name in names:
        if name not in LOADERS:
            raise ConfigError(f"--loaders has {name!r}: {suggest(name, list(LOADERS))}")
    if OURS not in names:
        raise ConfigError(f"--loaders is {arguments.loaders}: the others are compared to {OURS}, which must be there.")
    usable = sorted(os.sched_getaffinity(0))
    threads = arguments.threads or len(usable)
    if threads > len(usable):
        raise ConfigError(f"--threads is {threads}, but this process may use only {len(usable)} cores.")
    if arguments.json:
        check_output("--json", arguments.json)
    views: tuple[View, ...] = (View(size=arguments.image_size),)
    if arguments.views is not None:
        try:
            views = parse_views(arguments.views)
        except ConfigError as error:
            raise ConfigError(f"--views: {error}") from error
    encodings = [arguments.encoding or ("original" if arguments.data else "all")]
    if encodings == ["all"]:
        encodings = list(photos.ENCODINGS)

    kinds = _dense_kinds(arguments.dense) if arguments.dense else []
    environment = _describe_environment(threads)
    print("\n".join(f"{key}: {value}" for key, value in environment.items()))
    if kinds:
        with _on_cores(usable[:threads]):
            measured = _run_dense(arguments, kinds, threads)
        if arguments.json:
            _write_report(arguments, {"environment": environment, "dense": measured})
        return
    print(_LEGEND.format(loaders="\n".join(f"  {name}: {LOADERS[name].summary}" for name in names)), flush=True)
    runs = []
    with _on_cores(usable[:threads]), tempfile.TemporaryDirectory(prefix="vision_jax.benchmark.") as temporary:
        if arguments.data:
            examples = photos.sample(arguments.data, arguments.split, arguments.images)
        else:
            examples = photos.make(arguments.images, arguments.seed)
        batch_size = min(arguments.batch_size, len(examples))
        examples = examples[: len(examples) // batch_size * batch_size]
        for encoding in encodings:
            try:
                dataset = photos.write(pathlib.Path(temporary) / encoding, examples, encoding, views, arguments.seed)
            except OSError as error:
                raise DataError(
                    f"Cannot write the images to {temporary}: {reason(error, path=True)}. Set TMPDIR to another folder."
                ) from error
            job = Job(dataset, batch_size, threads, arguments.seed, arguments.filter)
            runs.append(_run_encoding(job, encoding, names, arguments.rounds, arguments.seconds))
            shutil.rmtree(dataset.directory)
    if arguments.json:
        _write_report(arguments, {"environment": environment, "encodings": runs})


def _write_report(arguments: argparse.Namespace, measured: dict[str, Any]) -> None:
    """Writes --json: what was measured, and the flags."""
    report = {**measured, "flags": vars(arguments)}
    write_atomically(arguments.json, json.dumps(report, indent=2, default=os.fspath) + "\n")


def _dense_kinds(text: str) -> list[str]:
    """Returns the kinds that --dense names."""
    names = list(dense_input.KINDS) if text == "all" else text.split(",")
    for name in names:
        if name not in dense_input.KINDS:
            raise ConfigError(f"--dense has {name!r}: {suggest(name, list(dense_input.KINDS))}")
    return names


def _run_dense(arguments: argparse.Namespace, kinds: Sequence[str], threads: int) -> dict[str, Any]:
    """Measures our loader on images with boxes or masks; prints the table and returns it for JSON."""
    if arguments.data:
        examples = photos.sample(arguments.data, arguments.split, arguments.images)
    else:
        examples = photos.make(arguments.images, arguments.seed)
    images = [data for data, _ in examples]
    batch_size = min(arguments.batch_size, len(images))
    print(f"\n{len(images)} images, batches of {batch_size}, {threads} threads", flush=True)
    results = {
        kind: dense_input.measure(
            images,
            kind,
            batch_size=batch_size,
            threads=threads,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            seed=arguments.seed,
        )
        for kind in kinds
    }
    print(dense_input.format_table(results, threads), flush=True)
    return {kind: dataclasses.asdict(result) for kind, result in results.items()}


@contextlib.contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Keeps this process, and those that it starts, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _describe_environment(threads: int) -> dict[str, str]:
    """Returns what the speeds depend on besides the code."""
    model = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    packages = [name for loader in LOADERS.values() for name in loader.packages]
    packages += ["torchvision", "numpy", "opencv-python-headless", "simplejpeg", "array-record"]
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": f"{threads} used of {os.cpu_count()}; load average {os.getloadavg()[0]:.1f} before the start",
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions(packages).items()),
    }


def _run_encoding(job: Job, encoding: str, names: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Measures all loaders, and the budget of ours, on one data set; prints both and returns them for JSON."""
    height, width = job.dataset.sizes.mean(axis=0)
    print(
        f"\n{encoding}: {len(job.dataset)} images, {width:.0f}x{height:.0f} and {job.dataset.kibibytes:.0f} KiB on "
        f"average; {_crops(job)}, batches of {job.batch_size}, {job.threads} threads, "
        f"{rounds} rounds of {seconds:g} s",
        flush=True,
    )
    results = compare(job, encoding, names, rounds, seconds)
    print(_format_table(results), flush=True)
    measured = budget.measure(job, seconds)
    print(_format_budget(measured), flush=True)
    return {
        "encoding": encoding,
        "images": len(job.dataset),
        "mean_height": height,
        "mean_width": width,
        "mean_kibibytes": job.dataset.kibibytes,
        "loaders": {name: _as_dict(result, results[OURS]) for name, result in results.items()},
        "budget": {**dataclasses.asdict(measured), "lock": measured.lock, "ceiling": measured.ceiling},
    }


def _crops(job: Job) -> str:
    """Returns what is cut out, such as "2 crops of 224x224"."""
    views = [f"{view.count} crop{'s' * (view.count > 1)} of {view.size}x{view.size}" for view in job.dataset.views]
    return f"{' and '.join(views)} ({job.filter})"


def compare(job: Job, encoding: str, names: list[str], rounds: int, seconds: float) -> dict[str, Result]:
    """Starts the loaders that can be started, warms them up, and measures them in turn, round after round.

    Args:
        job: what each is given.
        encoding: of the data.
        names: of the loaders.
        rounds: measurements of each.
        seconds: of each measurement, and of the warm-up.

    Raises:
        VisionJaxError: if it is ours that fails. The others' failures are results.
    """
    results, workers = {}, {}
    with contextlib.ExitStack() as stack:
        for name in names:
            loader = LOADERS[name]
            results[name] = result = Result(cores=1 if loader.single_core else job.threads)
            if not loader.is_installed():
                result.problem = f"not installed (pip install {loader.packages[0]})"
            elif encoding not in loader.encodings:
                result.problem = f"cannot decode {encoding}"
            elif not loader.all_views and (len(job.dataset.crop_sizes) > 1 or job.filter != "bilinear"):
                result.problem = "is compared with one bilinear crop alone"
            else:
                with _failures_noted(name, result):
                    workers[name] = stack.enter_context(Worker(name, job))
                    if loader.augments:
                        continue
                    expected = photos.reference(job.dataset, workers[name].records.tolist(), job.filter)
                    differences = [
                        np.abs(crop.astype(np.int16) - right).ravel()
                        for crop, right in zip(workers[name].crops, expected, strict=True)
                    ]
                    result.error = float(np.concatenate(differences).mean())
        for number in range(-1, rounds):  # the first is for warming up
            for name, worker in workers.items():
                if not results[name].problem:
                    with _failures_noted(name, results[name]):
                        measurement = worker.measure(seconds)
                        if number >= 0:
                            results[name].rounds.append(measurement)
    return results


@contextlib.contextmanager
def _failures_noted(name: str, result: Result) -> Iterator[None]:
    """Makes the failure of a peer a result, and that of our own loader an error."""
    try:
        yield
    except LoaderFailed as error:
        if name == OURS:
            raise VisionJaxError(f"The loader of vision_jax failed: {error}") from error
        result.problem = f"failed: {error}"


def _as_dict(result: Result, ours: Result) -> dict[str, Any]:
    """Returns a result for JSON."""
    if result.problem:
        return {"problem": result.problem}
    return {
        "images_per_second": result.rate,
        "cores": result.cores,
        "images_per_second_per_core": result.rate / result.cores,
        "ratio": statistics.median(result.ratios(ours)),
        "images_per_cpu_second": result.per_cpu_second,
        "cpu_ratio": ours.per_cpu_second / result.per_cpu_second,
        "error": None if math.isnan(result.error) else result.error,
        "rounds": [dataclasses.asdict(measurement) for measurement in result.rounds],
    }


def _format_table(results: dict[str, Result]) -> str:
    """Returns the comparison, a line for each loader."""
    ours = results[OURS]
    lines = [
        f"{'loader':<14}{'images/s':>9} {'(rounds)':<14}{'/core':>7}{'ours/its':>10} {'(rounds)':<13}"
        f"{'/CPU s':>7}{'ours/its':>10}{'error':>7}"
    ]
    for name, result in results.items():
        if result.problem:
            lines.append(f"{name:<14}{result.problem}")
            continue
        ratios = result.ratios(ours)
        error = "-" if math.isnan(result.error) else f"{result.error:.2f}"
        lines.append(
            f"{name:<14}{result.rate:9.0f} {span(result.rates, 0):<14}{result.rate / result.cores:7.0f}"
            f"{statistics.median(ratios):10.2f} {span(ratios, 2):<13}{result.per_cpu_second:7.0f}"
            f"{ours.per_cpu_second / result.per_cpu_second:10.2f}{error:>7}"
        )
    return "\n".join(lines)


def _format_budget(measured: budget.Budget) -> str:
    """Returns the budget, a line for each step."""
    lines = ["vision_jax, one thread, microseconds of CPU time an image:"]
    for step, microseconds in {**measured.steps, "whole": measured.whole}.items():
        lines.append(f"  {step:<12}{microseconds:8.1f}{microseconds / measured.whole:7.1%}")
    calls = " and ".join(measured.without_lock)
    lines += [
        f"{measured.threads} threads: {measured.cpu:.0f} microseconds of CPU time an image, {measured.busy:.2f} cores",
        f"Python's lock: up to {measured.lock:.0f} microseconds an image, all but {calls}; so about",
        f"{measured.ceiling:,.0f} images/s from one process at best, and {measured.simulated_rate:,.0f} measured with "
        f"{budget.SIMULATED_CORES} threads in which waits stand for these calls",
    ]
    return "\n".join(lines)

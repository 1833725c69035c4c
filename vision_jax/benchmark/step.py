"""The benchmark of the training step: on the devices that there are, beside torch, or as compiled for other TPUs."""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vision_jax.benchmark import torch_step
from vision_jax.benchmark.common import positive, span, versions
from vision_jax.errors import ConfigError, check_no_url, check_output, suggest
from vision_jax.runtime.writers import write_atomically

if TYPE_CHECKING:  # it imports JAX, which takes seconds that --help should not
    from vision_jax.benchmark import train_step

Keep = Callable[[dict[str, Any]], None]  # of a result, for JSON

STEPS, ROUNDS = 20, 5
_WARM_UP = 3  # steps before the first round
_ATTACKS = ("pgd", "apgd")

_LEGEND = """
Columns: ms/step, the median of the rounds, and their range; images/s at the median
  MFU      model FLOPs utilization (vision_jax/devices/flops.py); -: the peak of this device is not known
  compile  seconds to trace and compile the step; torch: to compile the model and do a first step
  memory   GiB of a device: measured by its allocator (a), or planned by the compiler (c)
  ours/its our images/s divided by torch's, in the same round: median and range
  attack   a step of it on the same model and batch, of calls of ten steps: images/s/step, and how much of the time of
           a training step it takes, in the same round"""

_TOPOLOGY_LEGEND = """
Columns, of one chip: what it reads and writes for an image, as its compiler counts; memory besides state and batch;
  how long products, memory and communication take at peak rates; seconds to trace and compile the step.
Shares of what is read and written, by the part of the step; copies are those that the compiler has added, mostly
  between the chip's HBM and its on-chip memory."""


@dataclasses.dataclass
class TorchResult:
    """What torch needs for a step of the same model.

    Attributes:
        seconds: of a step, by round.
        compile_seconds: to make the model, and compile it in a first step.
        memory_bytes: the most that was allocated on the device.
        problem: why it could not be measured; "": it could.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float = 0.0
    memory_bytes: int | None = None
    problem: str = ""


@dataclasses.dataclass
class AttackResult:
    """What a step of an attack on the same model takes.

    Attributes:
        kind: its name.
        flops: of a step.
        seconds: of a step, by round.
        compile_seconds: to trace and compile the attack.
    """

    kind: str
    flops: int
    compile_seconds: float
    seconds: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Result:
    """What a step of a configuration takes.

    Attributes:
        batch_size: of the global batch.
        flops: of a step.
        peak_flops: of all devices, per second; None: not known.
        compile_seconds: to trace and compile it.
        seconds: of a step, by round.
        memory_bytes, memory_source: see `train_step.TrainStep.peak_bytes`.
        torch: what it is compared to.
        attack: on the same model; None: none was asked for.
    """

    batch_size: int
    flops: int
    peak_flops: float | None
    compile_seconds: float
    seconds: list[float]
    memory_bytes: int | None
    memory_source: str
    torch: TorchResult
    attack: AttackResult | None = None

    @property
    def median(self) -> float:
        """Median of the seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization; None if the peak is not known."""
        return None if self.peak_flops is None else self.flops / (self.median * self.peak_flops)

    @property
    def ratios(self) -> list[float]:
        """Our images/s divided by torch's, round by round."""
        return [its / ours for ours, its in zip(self.seconds, self.torch.seconds, strict=True)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `step`."""
    add = parser.add_argument
    add(
        "--config",
        action="append",
        default=[],
        metavar="FILE[:VARIANT]",
        help="such as configs/resnet50.py; may be given several times. --config.FIELD=VALUE overrides a field of all "
        "of them. Unless you set data.source, images are synthetic, of 1,000 classes if the configuration does not say "
        "how many; but those of the digits, which need no files",
    )
    add("--batch_size", type=positive(int), help="over all devices; default: the configuration's")
    add(
        "--topology",
        help="compile for TPU slices or GPUs that are not here, such as v5e:2x2 or h100:8; print the table of costs",
    )
    add("--steps", type=positive(int), help=f"in a round; default: {STEPS}")
    add("--rounds", type=positive(int), help=f"default: {ROUNDS}")
    add("--attack", help="pgd or apgd: also measure a step of it on the same model; with --topology, a step of PGD")
    add("--json", metavar="FILE", help="write the results there, too")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table, and writes --json.

    Raises:
        VisionJaxError: if a flag or a configuration cannot work.
    """
    if arguments.json is not None:
        check_no_url("--json", arguments.json)
        arguments.json = pathlib.Path(arguments.json)
        check_output("--json", arguments.json)
    if arguments.attack is not None and arguments.attack not in _ATTACKS:
        raise ConfigError(f"--attack is {arguments.attack!r}: {suggest(arguments.attack, _ATTACKS)}")
    if not arguments.config:
        raise ConfigError("--config is missing: pass a file, such as --config=configs/resnet50.py.")
    if arguments.topology is not None:
        for name in ("steps", "rounds"):
            if (value := getattr(arguments, name)) is not None:
                raise ConfigError(f"--{name} is {value}, but with --topology nothing is timed: leave it out.")
        from vision_jax.devices import backend

        backend.leave_devices_free()
        problem = ""
    else:
        arguments.steps, arguments.rounds = arguments.steps or STEPS, arguments.rounds or ROUNDS
        if not (problem := torch_step.find_problem()):
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX would leave no memory to torch
    from vision_jax.benchmark import attack_step, train_step
    from vision_jax.config import command_line
    from vision_jax.devices import backend, topology

    overrides = list(arguments.overrides)
    if arguments.batch_size is not None:
        overrides.append(f"--config.batch_size={arguments.batch_size}")
    configs = []
    for name in arguments.config:
        config = command_line.load(name, overrides)
        if config.data.source != "digits":
            config = command_line.load(name, ["--config.data.source=synthetic", *overrides])
        configs.append((name, config))
    backend.start()
    if arguments.topology is not None:
        topology.describe(arguments.topology)  # which fails if there is no such thing
    jobs = []
    for name, config in configs:  # all of them first, so that what is wrong with one is said before any is compiled
        with _errors_named(name):
            jobs.append(train_step.trace(name, config, arguments.topology))
            if arguments.attack is not None:
                attack_step.check(jobs[-1])
    environment = _describe_environment(jobs[0])
    print("\n".join(f"{key}: {value}" for key, value in environment.items()))
    results: list[dict[str, Any]] = []

    def keep(result: dict[str, Any]) -> None:
        """Writes the results so far: one that fails, or Ctrl-C, costs none of them."""
        results.append(result)
        if arguments.json is not None:
            report = {"environment": environment, "flags": vars(arguments), "results": results}
            write_atomically(arguments.json, json.dumps(report, indent=2, default=os.fspath) + "\n")

    if arguments.topology is not None:
        _estimate_all(jobs, arguments.attack, keep)
    else:
        _measure_all(jobs, arguments, problem, keep)


@contextlib.contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Says of which configuration an error is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _describe_environment(job: "train_step.Job") -> dict[str, Any]:
    """Returns what the results depend on besides the code."""
    mesh = job.traced.mesh
    return {
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "python": platform.python_version(),
        **versions(("jax", "jaxlib", "libtpu", "flax", "torch", "timm")),
    }


def _width(jobs: Sequence["train_step.Job"]) -> int:
    return max(len("config"), *(len(job.name) for job in jobs))


def _measure_all(jobs: Sequence["train_step.Job"], arguments: argparse.Namespace, problem: str, keep: Keep) -> None:
    """Measures one configuration after another, so that each has all memory; prints a table, and keeps the results."""
    steps, rounds = arguments.steps, arguments.rounds
    print(f"{_LEGEND}\nSteps in a round: {steps}; rounds: {rounds}" + (f"; torch: {problem}\n" if problem else "\n"))
    width = _width(jobs)
    print(
        f"{'config':<{width}}{'batch':>7}{'ms/step':>10} {'(rounds)':<18}{'images/s':>10}{'MFU':>8}{'compile':>9}"
        f"{'memory':>10}",
        flush=True,
    )
    for job in jobs:
        with _errors_named(job.name):
            result = _measure(job, arguments, problem)
        print("\n".join(_format(job.name, result, width, told=bool(problem))), flush=True)
        keep({**job.describe(), **_as_dict(result)})


def _measure(job: "train_step.Job", arguments: argparse.Namespace, problem: str) -> Result:
    """Measures our step, an attack's and torch's in turn, round after round."""
    from vision_jax.benchmark import attack_step, train_step

    steps = arguments.steps
    attack, attacked = None, None
    ours = train_step.TrainStep(job)
    if arguments.attack is not None:
        attack = attack_step.AttackStep(job, arguments.attack)
        attack.run(1)
        attacked = AttackResult(arguments.attack, attack.flops, attack.compile_seconds)
    ours.run(_WARM_UP)
    torch = TorchResult(problem=problem or _find_torch_problem(job))
    theirs, seconds = None, []
    if not torch.problem:
        try:
            theirs = torch_step.TorchStep(_torch_job(job), "cuda")
            theirs.run(_WARM_UP)
        except RuntimeError as error:  # whatever torch cannot do is shown in the table
            torch.problem, theirs = _first_line(error), None
    for _ in range(arguments.rounds):
        seconds.append(ours.run(steps) / steps)
        if attack is not None and attacked is not None:
            attacked.seconds.append(attack.run(-(-steps // attack_step.STEPS)))
        if theirs is not None:
            torch.seconds.append(theirs.run(steps) / steps)
    if theirs is not None:
        torch.compile_seconds, torch.memory_bytes = theirs.compile_seconds, theirs.peak_bytes()
    memory, source = ours.peak_bytes()
    return Result(
        batch_size=job.batch_size,
        flops=job.flops,
        peak_flops=job.peak_flops,
        compile_seconds=ours.compile_seconds,
        seconds=seconds,
        memory_bytes=memory,
        memory_source=source,
        torch=torch,
        attack=attacked,
    )


def _find_torch_problem(job: "train_step.Job") -> str:
    """Returns why torch's step would not be comparable with that of a configuration; "" if it is."""
    from vision_jax.models import registry
    from vision_jax.objectives.classification import Classification

    checked = job.traced.checked
    if job.traced.mesh.size > 1:
        return f"it is compared on one device, and there are {job.traced.mesh.size}: set CUDA_VISIBLE_DEVICES=0"
    if type(checked.objective) is not Classification:
        return f"it is compared in classification alone, not {type(checked.objective).__name__}"
    entry = registry.entry(checked.config.model.name)
    return "" if entry.library == "timm" else f"timm has no {entry.name}"


def _torch_job(job: "train_step.Job") -> torch_step.Job:
    """Returns what torch is to train: the same model, without options such as `model.drop_path_rate`."""
    from vision_jax.models import registry

    config, setup = job.traced.checked.config, job.traced.checked.objective.setup
    model: Any = setup.model
    return torch_step.Job(
        model=registry.entry(config.model.name).name,
        image_shape=setup.image_shape,
        fixed_size="img_size" in registry.option_names(config.model.name),
        num_classes=model.num_classes,
        batch_size=job.batch_size,
        optimizer=config.optimizer.name,
        bfloat16=job.dtype.itemsize == 2,
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"


def _attack_as_dict(result: Result, attack: AttackResult) -> dict[str, Any]:
    median = statistics.median(attack.seconds)
    ratios = [its / plain for its, plain in zip(attack.seconds, result.seconds, strict=True)]
    return {
        "kind": attack.kind,
        "flops": attack.flops,
        "seconds": attack.seconds,
        "median_seconds": median,
        "images_per_second": result.batch_size / median,
        "mfu": None if result.peak_flops is None else attack.flops / (median * result.peak_flops),
        "compile_seconds": attack.compile_seconds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _as_dict(result: Result) -> dict[str, Any]:
    """Returns a result for JSON."""
    torch = result.torch
    return {
        **({} if result.attack is None else {"attack": _attack_as_dict(result, result.attack)}),
        "seconds": result.seconds,
        "median_seconds": result.median,
        "images_per_second": result.batch_size / result.median,
        "mfu": result.mfu,
        "compile_seconds": result.compile_seconds,
        "memory_bytes": result.memory_bytes,
        "memory_source": result.memory_source,
        "torch": {"problem": torch.problem}
        if torch.problem
        else {
            "seconds": torch.seconds,
            "median_seconds": statistics.median(torch.seconds),
            "images_per_second": result.batch_size / statistics.median(torch.seconds),
            "compile_seconds": torch.compile_seconds,
            "memory_bytes": torch.memory_bytes,
            "ratio": statistics.median(result.ratios),
            "ratios": result.ratios,
        },
    }


def _format(name: str, result: Result, width: int, *, told: bool) -> list[str]:
    """Returns the line of a configuration, and those of torch, or why there are none unless that is `told` already."""
    torch = result.torch

    def line(name: str, batch: str, seconds: list[float], mfu: str, compiled: float, memory: str) -> str:
        milliseconds = [1e3 * value for value in seconds]
        median = statistics.median(milliseconds)
        rate = 1e3 * result.batch_size / median
        return (
            f"{name:<{width}}{batch:>7}{median:10.2f} {span(milliseconds, 2):<18}{rate:10.1f}"
            f"{mfu:>8}{compiled:9.1f}{memory:>10}"
        )

    mfu = "-" if result.mfu is None else f"{result.mfu:.1%}"
    memory = f"{_gibibytes(result.memory_bytes)} {result.memory_source[0]}"
    lines = [line(name, str(result.batch_size), result.seconds, mfu, result.compile_seconds, memory)]
    if result.attack is not None:
        of = _attack_as_dict(result, result.attack)
        used = "-" if of["mfu"] is None else f"{of['mfu']:.1%}"
        lines.append(line(f"  {of['kind']}", "", of["seconds"], used, of["compile_seconds"], ""))
        lines.append(f"  {of['kind']}/training: {of['ratio']:.2f} {span(of['ratios'], 2)}")
    if torch.problem:
        return lines if told else [*lines, f"  torch: {torch.problem}"]
    its = line("  torch", "", torch.seconds, "", torch.compile_seconds, f"{_gibibytes(torch.memory_bytes)} a")
    ratios = result.ratios
    return [*lines, its, f"  ours/its: {statistics.median(ratios):.2f} {span(ratios, 2)}"]


def _gibibytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 2**30:.2f}"


def _estimate_all(jobs: Sequence["train_step.Job"], attack: str | None, keep: Keep) -> None:
    """Compiles one configuration after another, and a step of an attack on its model; prints a table, and keeps all."""
    from vision_jax.benchmark import attack_step, train_step

    width = _width(jobs)
    times = ("products", "memory", "interconnect")
    print(f"{_TOPOLOGY_LEGEND}\n")
    print(
        f"{'':<{width}}{'images':>8}{'MB an':>9}{'temporaries':>13}{'ms at peak rates':>30}{'compile':>9}\n"
        f"{'config':<{width}}{'a chip':>8}{'image':>9}{'GiB':>13}"
        + "".join(f"{name:>{width}}" for name, width in zip(times, (9, 8, 13), strict=True))
        + f"{'s':>9}",
        flush=True,
    )
    estimates = []

    def show(name: str, found: "train_step.Estimate") -> dict[str, Any]:
        milliseconds = [f"{1e3 * found.seconds[kind]:.2f}" if kind in found.seconds else "-" for kind in times]
        print(
            f"{name:<{width}}{found.cost.images:8g}{found.cost.bytes_accessed / found.cost.images / 1e6:9.1f}"
            f"{found.cost.temp_bytes / 2**30:13.2f}{milliseconds[0]:>9}{milliseconds[1]:>8}{milliseconds[2]:>13}"
            f"{found.compile_seconds:9.1f}",
            flush=True,
        )
        estimates.append((name, found))
        return {
            "cost": dataclasses.asdict(found.cost),
            "bytes_an_image": found.cost.bytes_accessed / found.cost.images,
            "seconds": dict(found.seconds),
            "shares": dict(found.shares),
            "compile_seconds": found.compile_seconds,
        }

    for job in jobs:
        with _errors_named(job.name):
            result = show(job.name, train_step.estimate(job))
            if attack is not None:
                result["attack"] = show("  pgd", attack_step.estimate(job))
        keep({**job.describe(), **result})
    print(f"\n{'config':<{width}}" + "".join(f"{part:>14}" for part in train_step.PARTS))
    for name, found in estimates:
        print(f"{name:<{width}}" + "".join(f"{found.shares[part]:14.1%}" for part in train_step.PARTS))

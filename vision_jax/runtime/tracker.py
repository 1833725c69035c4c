"""The metrics of training steps: fetched while later steps run, checked, shown and written."""

import collections
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping

import jax

from vision_jax.data.loader import Prefetcher
from vision_jax.errors import NonFiniteError
from vision_jax.runtime import writers
from vision_jax.runtime.checkpoint import Checkpointer
from vision_jax.runtime.goodput import Goodput

log = logging.getLogger(__name__)

# Steps between dispatching a step and reading its metrics: devices stay busy while the host pauses for less than these.
LAG = 4


class Rewind(Exception):
    """The loss or gradients of a step are bad, and the run is to continue from the last checkpoint.

    Attributes:
        step: the number of updates, including the bad one.
    """

    def __init__(self, step: int):
        super().__init__(f"the loss or gradients of step {step} are bad")
        self.step = step


@dataclasses.dataclass(frozen=True)
class BadNumbers:
    """What to do on NaN, infinity and spikes.

    Attributes:
        nonfinite: "stop", "skip" or "rewind", if the loss or gradients are not finite.
        spikes: the same, if they are far above those of the steps before.
        max_skips: this many skipped steps in a row end the run.
        max_rewinds: maximum number of rewinds.
    """

    nonfinite: str = "stop"
    spikes: str = "skip"
    max_skips: int = 20
    max_rewinds: int = 3


@dataclasses.dataclass(frozen=True)
class Counts:
    """The sizes of a run.

    Attributes:
        batch_size: examples per step, over all processes.
        steps_per_epoch, total_steps: of the run.
        log_every: steps between lines of metrics.jsonl.
    """

    batch_size: int
    steps_per_epoch: int
    total_steps: int
    log_every: int


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where metrics go, and the other parts of a run that contribute some.

    Attributes:
        writer: gets a line every `log_every` steps.
        progress: updated at each step.
        batches: its `seconds_waited` is the time that the loop has waited for input.
        checkpointer: knows the last good checkpoint, and the number of failed saves.
        goodput: contributes its metrics to each line.
    """

    writer: writers.MetricWriter
    progress: writers.Progress
    batches: Prefetcher
    checkpointer: Checkpointer
    goodput: Goodput


class Tracker:
    """Fetches the metrics of each step while later ones run; checks, shows and writes them.

    Args:
        counts: the sizes of the run.
        outputs: where the metrics go.
        policy: what to do on NaN, infinity and spikes.
        rewinds: number of rewinds so far.
        ideal_step_seconds: see `compilation.make_ideal_step_seconds`; None: MFU is not reported.
    """

    def __init__(
        self,
        counts: Counts,
        outputs: Outputs,
        policy: BadNumbers,
        *,
        rewinds: int = 0,
        ideal_step_seconds: Callable[[int], float] | None = None,
    ):
        self._counts, self._outputs, self._policy = counts, outputs, policy
        self._rewinds, self._ideal_step_seconds = rewinds, ideal_step_seconds
        self._pending: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        self._replaced: float | None = None  # records, since the last line
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restarts the measurement of rates, after a pause in training."""
        self._since, self._waited, self._steps = time.perf_counter(), self._outputs.batches.seconds_waited, 0
        self._ideal = 0.0  # seconds

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Queues the metrics of a step that has just been dispatched, and processes those of `LAG` steps before."""
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append((step, metrics))
        while len(self._pending) > LAG:
            self._take()

    def settle(self) -> None:
        """Waits for all queued steps, and processes their metrics.

        Raises:
            NonFiniteError: if a step is bad, and the policy is to stop.
            Rewind: if the run is to rewind.
        """
        while self._pending:
            self._take()

    def _take(self) -> None:
        """Processes the metrics of the oldest queued step."""
        step, arrays = self._pending.popleft()
        metrics = {name: float(value) for name, value in jax.device_get(dict(arrays)).items()}
        try:
            self._check(step, metrics)
        except (NonFiniteError, Rewind):
            self._pending.clear()  # later steps continued from the bad one
            raise
        self._steps += 1
        if self._ideal_step_seconds is not None:
            self._ideal += self._ideal_step_seconds(step)
        if (replaced := metrics.pop("replaced_records", None)) is not None:
            self._replaced = (self._replaced or 0) + replaced
        elapsed = time.perf_counter() - self._since
        rate = self._steps * self._counts.batch_size / elapsed
        input_wait = min(1.0, (self._outputs.batches.seconds_waited - self._waited) / elapsed)
        shown = {"loss": f"{metrics['loss']:.3f}"}
        if "top1" in metrics:
            shown["top1"] = f"{metrics['top1']:.1%}"
        self._outputs.progress.update({**shown, "images/s": f"{rate:.4g}", "input_wait": f"{input_wait:.0%}"})
        if step % self._counts.log_every == 0 or step == self._counts.total_steps:
            self._write(step, metrics, rate, input_wait, elapsed)
            self.restart_clock()

    def _write(self, step: int, metrics: dict[str, float], rate: float, input_wait: float, elapsed: float) -> None:
        """Writes a line: the metrics of this step alone, and the rates since the last line."""
        values = {f"train/{name}": value for name, value in metrics.items()}
        values["train/epoch"] = step / self._counts.steps_per_epoch
        if self._replaced is not None:
            values["train/replaced_records"], self._replaced = self._replaced, None
        values |= {"train/images_per_second": rate, "train/input_wait": input_wait}
        values["train/images_per_second_per_device"] = rate / jax.device_count()
        if self._ideal_step_seconds is not None:
            values["train/mfu"] = self._ideal / elapsed
        if self._rewinds:
            values["train/rewinds"] = float(self._rewinds)
        if self._outputs.checkpointer.failed_saves:
            values["train/failed_saves"] = float(self._outputs.checkpointer.failed_saves)
        self._outputs.goodput.mark(step)
        self._outputs.writer.write(step, {**values, **self._outputs.goodput.metrics()})

    def _check(self, step: int, metrics: dict[str, float]) -> None:
        """Raises NonFiniteError or Rewind if a step is bad and was not skipped, or too many were skipped in a row."""
        policy, skips = self._policy, metrics.pop("skipped_in_a_row", 0.0)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        if finite and not skips:
            return
        choice = policy.spikes if finite else policy.nonfinite
        if choice == "skip" and 0 < skips < policy.max_skips:
            log.warning(
                "Step %d is skipped: its loss is %.6g and its gradient norm %.6g.",
                *(step, metrics["loss"], metrics["grad_norm"]),
            )
            return
        checkpointer = self._outputs.checkpointer
        checkpointer.settle()
        what = f"At step {step} the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}"
        if choice == "rewind" and self._rewinds < policy.max_rewinds:
            log.warning("%s.", what)
            raise Rewind(step)
        good = checkpointer.steps()
        reason = {
            "skip": f"{skips:.0f} steps in a row were skipped, and guard.max_skips allows fewer. ",
            "rewind": f"The run has been rewound {self._rewinds} times, and guard.max_rewinds allows no more. ",
            "stop": "",
        }[choice]
        raise NonFiniteError(
            what
            + (", far above those of the steps before (guard.spike_deviations). " if finite else ". ")
            + reason
            + (f"The last good checkpoint is step {good[-1]}" if good else "There is no checkpoint yet")
            + f", in {checkpointer.directory}. Lower optimizer.learning_rate, lengthen the warm-up, set "
            "optimizer.clip_global_norm, or compute in float32"
            + ("." if reason else f", or skip such steps with guard.{'spikes' if finite else 'nonfinite'}=skip.")
        )

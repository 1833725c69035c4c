"""The metrics of training steps: fetched while the next step runs, checked, shown and written."""

import logging
import math
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from vision_jax import steps
from vision_jax.config import Plan
from vision_jax.data.loader import Prefetcher
from vision_jax.errors import NonFiniteError
from vision_jax.runtime import writers
from vision_jax.runtime.checkpoint import Checkpointer
from vision_jax.runtime.goodput import Goodput

log = logging.getLogger(__name__)


class Rewind(Exception):
    """The numbers of a step are bad, and the run is to go on from the last checkpoint.

    Attributes:
        step: the number of updates, with the bad one.
    """

    def __init__(self, step: int):
        super().__init__(f"the numbers of step {step} are bad")
        self.step = step


class Tracker:
    """Fetches the metrics of each step while the next one runs; checks, shows and writes them.

    Args:
        config, plan: of the run.
        writer: gets a line every `log.every_steps` steps.
        progress: shown at each step.
        batches: knows how long the loop has waited for input.
        checkpointer: knows which checkpoint is the last good one, and how many saves have failed.
        goodput: the account of time, of which a line tells.
        rewinds: how often the training has gone back.
        ideal_step_seconds: see `compilation.make_ideal_step_seconds`; None: there is no MFU.
    """

    def __init__(
        self,
        config: ConfigDict,
        plan: Plan,
        writer: writers.MetricWriter,
        progress: writers.Progress,
        batches: Prefetcher,
        checkpointer: Checkpointer,
        goodput: Goodput,
        *,
        rewinds: int = 0,
        ideal_step_seconds: Callable[[int], float] | None = None,
    ):
        self._config, self._plan, self._writer, self._progress = config, plan, writer, progress
        self._batches, self._checkpointer = batches, checkpointer
        self._goodput, self._rewinds, self._ideal_step_seconds = goodput, rewinds, ideal_step_seconds
        self._pending: tuple[int, steps.Metrics] | None = None
        self._replaced: float | None = None  # records, since the last line
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begins to measure the rate anew, after a pause that is not training."""
        self._since, self._waited, self._steps = time.perf_counter(), self._batches.seconds_waited, 0
        self._at_peak = 0.0  # seconds

    def add(self, step: int, metrics: steps.Metrics) -> None:
        """Takes the metrics of a step that has just been dispatched, and deals with those of the one before."""
        self.settle()
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Waits for the last step that was added, and deals with its metrics.

        Raises:
            NonFiniteError: if its numbers are bad and the configuration does not say how to go on.
            Rewind: if it is to go back.
        """
        if self._pending is None:
            return
        step, metrics = self._pending[0], {name: float(v) for name, v in jax.device_get(self._pending[1]).items()}
        self._pending = None
        self._check(step, metrics)
        self._steps += 1
        if self._ideal_step_seconds is not None:
            self._at_peak += self._ideal_step_seconds(step)
        if (replaced := metrics.pop("replaced_records", None)) is not None:
            self._replaced = (self._replaced or 0) + replaced
        elapsed = time.perf_counter() - self._since
        rate = self._steps * self._config.batch_size / elapsed
        input_wait = min(1.0, (self._batches.seconds_waited - self._waited) / elapsed)
        self._progress.update(
            {
                "loss": f"{metrics['loss']:.3f}",
                "top1": f"{metrics['top1']:.1%}",
                "images/s": f"{rate:.4g}",
                "input_wait": f"{input_wait:.0%}",
            }
        )
        if step % self._config.log.every_steps == 0 or step == self._plan.total_steps:
            values = {f"train/{name}": value for name, value in metrics.items()}
            values["train/epoch"] = step / self._plan.steps_per_epoch
            if self._replaced is not None:
                values["train/replaced_records"], self._replaced = self._replaced, None
            values |= {"train/images_per_second": rate, "train/input_wait": input_wait}
            values["train/images_per_second_per_device"] = rate / jax.device_count()
            if self._ideal_step_seconds is not None:
                values["train/mfu"] = self._at_peak / elapsed
            if self._rewinds:
                values["train/rewinds"] = float(self._rewinds)
            if self._checkpointer.failed_saves:
                values["train/failed_saves"] = float(self._checkpointer.failed_saves)
            self._goodput.mark(step)
            self._writer.write(step, {**values, **self._goodput.metrics()})
            self.restart_clock()

    def _check(self, step: int, metrics: dict[str, float]) -> None:
        """Raises NonFiniteError or Rewind if numbers went wrong and were not left out, or too often."""
        guard, skips = self._config.guard, metrics.pop("skipped_in_a_row", 0.0)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        if finite and not skips:
            return
        policy = guard.spikes if finite else guard.nonfinite
        if policy == "skip" and 0 < skips < guard.max_skips:
            log.warning(
                "Step %d is skipped: its loss is %.6g and the norm of its gradients %.6g.",
                *(step, metrics["loss"], metrics["grad_norm"]),
            )
            return
        self._checkpointer.settle()
        what = f"At step {step} the loss is {metrics['loss']} and the norm of the gradients {metrics['grad_norm']}"
        if policy == "rewind" and self._rewinds < guard.max_rewinds:
            log.warning("%s.", what)
            raise Rewind(step)
        good = self._checkpointer.steps()
        reason = {
            "skip": f"{skips:.0f} steps in a row were skipped, and guard.max_skips allows fewer. ",
            "rewind": f"The training went back {self._rewinds} times, and guard.max_rewinds allows no more. ",
            "stop": "",
        }[policy]
        raise NonFiniteError(
            what
            + (", far above those before (guard.spike_deviations). " if finite else ". ")
            + reason
            + (f"The last good checkpoint is step {good[-1]}" if good else "There is no checkpoint yet")
            + f", in {self._checkpointer.directory}. Lower optimizer.learning_rate, lengthen the warm-up, set "
            "optimizer.clip_global_norm, or compute in float32"
            + ("." if reason else f", or let guard.{'spikes' if finite else 'nonfinite'}=skip leave out such steps.")
        )

"""The search itself: trial after trial, as long as there are some that no other process runs."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING

from vision_jax.errors import CheckpointError, ConfigError, reason
from vision_jax.sweep import claims, results
from vision_jax.sweep import study as studies
from vision_jax.sweep.plan import Search, Values, check_same, describe, grid
from vision_jax.sweep.results import Results, trial_workdir
from vision_jax.sweep.trial import Ending, Job, Outcome, run

if TYPE_CHECKING:
    import optuna
    from optuna.trial import Trial

log = logging.getLogger(__name__)

LOCK = "sweep.lock"  # keeps other processes from choosing trials, and from writing results
_MOST_HELD = 5  # trials that fail before their first step, in a search of which none has made one


@dataclasses.dataclass(frozen=True)
class _Claimed:
    """A trial that this process alone runs.

    Attributes:
        trial: of the study.
        values: of the fields.
        workdir: of its run.
        lock: the descriptor that says whose it is.
        pruned: it was being ended early when the process that ran it ended.
    """

    trial: "Trial"
    values: Values
    workdir: pathlib.Path
    lock: int
    pruned: bool

    def release(self) -> None:
        os.close(self.lock)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search in its workdir.

    Args:
        search: what is searched.
        workdir: holds all of it.
        stops: returns whether to end now, and go on later.
        poll_seconds: between looks at a run.
    """

    search: Search
    workdir: pathlib.Path
    stops: Callable[[], bool]
    poll_seconds: float = 0.2

    def run(self) -> Results:
        """Runs trials until all are done or run elsewhere, or until it is to stop, and returns all results.

        Raises:
            ConfigError: for what makes all trials fail. Those that it has made fail are begun again the next time.
            CheckpointError: if the workdir cannot be used, or holds another search.
        """
        self._make_workdir()
        with self._exclusive():
            study = studies.open_study(self.workdir, self.search)
        held: list[tuple[_Claimed, Outcome]] = []
        try:
            while (claimed := self._next(study, {one.trial.number for one, _ in held})) is not None:
                try:
                    # Again: the config file may have been changed meanwhile.
                    check_same(studies.identity(study), self.search, self.workdir)
                    outcome = self._run(claimed)
                except BaseException:
                    claimed.release()
                    raise
                if outcome.ending is Ending.STOPPED:
                    claimed.release()
                    break
                held.append((claimed, outcome))
                if outcome.ending is not Ending.FAILED or outcome.trained or self._has_trained(study):
                    self._settle(study, held)
                else:
                    log.warning("Trial %d has not begun to train: %s", claimed.trial.number, outcome.reason)
                    _check_shared(held)
            if held and not self.stops():
                if not self._has_trained(study):
                    raise ConfigError(_describe_shared(held))
                self._settle(study, held)
        finally:
            for claimed, _ in held:
                claimed.release()
        return self._write(study, with_importance=True)

    def _make_workdir(self) -> None:
        try:
            (self.workdir / "trials").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"Cannot use the workdir {self.workdir}: {reason(error)}. Give another --workdir."
            ) from error

    def _exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from choosing trials."""
        return claims.exclusive(self.workdir / LOCK)

    def _next(self, study: "optuna.Study", mine: Container[int]) -> _Claimed | None:
        """Returns the next trial to run: one whose process has ended, or a new one; None: there is none.

        Args:
            study: of the search.
            mine: numbers of those that this process holds already.
        """
        said = False
        while not self.stops():
            with self._exclusive():
                claimed, waits = self._choose(study, mine)
            if not waits:
                return claimed
            if not said:
                log.info("The process of a trial has ended, and its run is saving its state: waiting for it.")
            said = True
            time.sleep(self.poll_seconds)
        return None

    def _choose(self, study: "optuna.Study", mine: Container[int]) -> tuple[_Claimed | None, bool]:
        """Returns what `_next` does, and whether it is to wait for a run that is about to end."""
        trials = study.get_trials(deepcopy=False)
        begun = [trial for trial in trials if trial.state.name != "WAITING"]
        for known in begun:
            if known.state.is_finished() or known.number in mine:
                continue
            lock = claims.try_lock(self._lock(known.number))
            if lock is None:
                continue
            if claims.is_locked(trial_workdir(self.workdir, known.number)):
                os.close(lock)
                return None, True
            return self._claim(studies.reopen(study, self.search, known.number), lock), False
        total = len(grid(self.search.space)) if self.search.sampler == "grid" else self.search.trials
        if len(begun) >= total:
            return None, False
        lock = claims.try_lock(self._lock(len(begun)))
        if lock is None:
            raise CheckpointError(
                f"{self._lock(len(begun))} is locked, and there is no such trial: give another --workdir."
            )
        return self._claim(studies.ask(study, self.search, len(begun)), lock), False

    def _claim(self, trial: "Trial", lock: int) -> _Claimed:
        values = studies.suggest(trial, self.search.space)
        return _Claimed(trial, values, trial_workdir(self.workdir, trial.number), lock, "pruned" in trial.user_attrs)

    def _lock(self, number: int) -> pathlib.Path:
        return trial_workdir(self.workdir, number).with_suffix(".lock")

    def _run(self, claimed: _Claimed) -> Outcome:
        """Runs a trial."""
        trial, resumed = claimed.trial, (claimed.workdir / "checkpoints").exists()
        if claimed.pruned:
            return Outcome(Ending.PRUNED)
        verb = "goes on" if resumed else "begins"
        log.info("Trial %d %s: %s", trial.number, verb, describe(claimed.values))
        return run(
            Job(
                command=self.search.command(claimed.values, claimed.workdir),
                workdir=claimed.workdir,
                log=claimed.workdir.with_suffix(".log"),
                metric=self.search.metric,
                report=lambda point: studies.report(trial, point),
                stops=self.stops,
                poll_seconds=self.poll_seconds,
            )
        )

    def _has_trained(self, study: "optuna.Study") -> bool:
        return studies.has_trained(study.get_trials(deepcopy=False))

    def _settle(self, study: "optuna.Study", held: list[tuple[_Claimed, Outcome]]) -> None:
        """Tells what came out of trials, and forgets them."""
        while held:
            claimed, outcome = held[0]
            studies.tell(study, claimed.trial, outcome, self.search)
            held.pop(0)
            claimed.release()
            self._log_outcome(claimed, outcome)
        self._write(study, with_importance=False)

    def _log_outcome(self, claimed: _Claimed, outcome: Outcome) -> None:
        last = outcome.points[-1] if outcome.points else None
        at = "" if last is None else f", {self.search.metric}={last.value:.5g} at step {last.step}"
        why = f": {results.first_sentence(outcome.reason)}" if outcome.reason else ""
        log.info("Trial %d is %s%s%s", claimed.trial.number, outcome.ending.value, at, why)

    def _write(self, study: "optuna.Study", *, with_importance: bool) -> Results:
        with self._exclusive():
            found = results.collect(self.workdir, study, studies.identity(study), with_importance=with_importance)
            results.write(found)
        return found


def _check_shared(held: list[tuple[_Claimed, Outcome]]) -> None:
    """Checks that trials which have not begun to train do not all have the same reason.

    Raises:
        ConfigError: if two have, or there are too many.
    """
    reasons = [_without_workdir(claimed, outcome) for claimed, outcome in held]
    if reasons[-1] in reasons[:-1] or len(held) == _MOST_HELD:
        raise ConfigError(_describe_shared(held))


def _without_workdir(claimed: _Claimed, outcome: Outcome) -> str:
    """Returns why a trial has failed, in words that do not name it."""
    return outcome.reason.replace(str(claimed.workdir), "WORKDIR")


def _describe_shared(held: list[tuple[_Claimed, Outcome]]) -> str:
    claimed, outcome = held[-1]
    numbers = ", ".join(str(one.trial.number) for one, _ in held)
    return (
        f"No trial has begun to train (tried: {numbers}), and this is why the last one has not: {outcome.reason} (all "
        f"of it is in {claimed.workdir.with_suffix('.log')}). The same command begins them again."
    )


def plan(search: Search, workdir: pathlib.Path) -> Iterator[str]:
    """Yields what would be run, a trial after another: its values, and below them its command."""
    known = studies.samples(search)
    total = len(known) if search.sampler == "grid" else search.trials
    direction = "highest" if search.higher else "lowest"
    yield f"{total} trials in {workdir}, of which the one with the {direction} {search.metric} is the best."
    for number, values in enumerate(known):
        yield f"{number}: {describe(values)}\n   {search.shown(values, trial_workdir(workdir, number))}"
    if total > len(known):
        yield f"The {total - len(known)} others depend on the results of those before them."

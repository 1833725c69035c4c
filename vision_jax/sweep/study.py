"""The search in optuna: its SQLite file, how trials are chosen and pruned, and what is known of each.

Whatever a trial is given depends on the seed, its number and the results before it alone: each gets a sampler of its
own, so that a search that was cut off goes on with other values than those that it has had.
"""

import json
import logging
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vision_jax.errors import CheckpointError, ConfigError
from vision_jax.sweep import DATABASE
from vision_jax.sweep.follow import Point
from vision_jax.sweep.plan import Search, Values, check_same, grid
from vision_jax.sweep.space import Choice, Parameter, Value
from vision_jax.sweep.trial import Ending, Outcome

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

NAME = "sweep"  # of the study in it
RANDOM_TRIALS = 10  # before tpe looks at results
_WAIT_SECONDS = 60  # for other processes that write to the file
_IDENTITY = "identity"


def import_optuna() -> None:
    """Checks that optuna can be imported, and makes it quiet.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("A search needs optuna: pip install 'vision_jax[sweep]', or optuna.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _storage(workdir: pathlib.Path) -> "optuna.storages.RDBStorage":
    import optuna
    import sqlalchemy

    url = sqlalchemy.URL.create("sqlite", database=str((workdir / DATABASE).absolute())).render_as_string()
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _WAIT_SECONDS}})
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:  # RuntimeError: of another version of optuna
        raise CheckpointError(f"Cannot use {workdir / DATABASE}: {' '.join(str(error).split())}") from error


def open_study(workdir: pathlib.Path, search: Search) -> "optuna.Study":
    """Opens the study of a search, or makes one. No other process may do so at the same time.

    Raises:
        ConfigError: if optuna is not installed.
        CheckpointError: if the workdir holds another search, or its file cannot be used.
    """
    import_optuna()
    import optuna

    study = optuna.create_study(
        storage=_storage(workdir),
        study_name=NAME,
        direction="maximize" if search.higher else "minimize",
        pruner=_pruner(search),
        load_if_exists=True,
    )
    if _IDENTITY in study.user_attrs:
        check_same(identity(study), search, workdir)
    else:
        study.set_user_attr(_IDENTITY, json.dumps(search.identity()))
    return study


def identity(study: "optuna.Study") -> dict[str, Any]:
    """Returns the `identity` of the search that a study is of.

    Raises:
        KeyError: if it is of none.
    """
    return json.loads(study.user_attrs[_IDENTITY])


def load_study(workdir: pathlib.Path) -> tuple["optuna.Study", dict[str, Any]]:
    """Opens the study that a workdir holds, to read it, and returns it with the `identity` of its search.

    Raises:
        ConfigError: if optuna is not installed.
        CheckpointError: if there is none, or its file cannot be used.
    """
    import_optuna()
    import optuna

    if not (workdir / DATABASE).is_file():
        raise CheckpointError(f"{workdir} holds no search: there is no {DATABASE}.")
    try:
        study = optuna.load_study(study_name=NAME, storage=_storage(workdir))
        return study, identity(study)
    except KeyError as error:
        raise CheckpointError(f"{workdir / DATABASE} holds no search of this program.") from error


def _pruner(search: Search) -> "optuna.pruners.BasePruner":
    import optuna

    least, reduction = search.min_evaluations, search.reduction
    match search.pruner:
        case "median":
            return optuna.pruners.MedianPruner(n_warmup_steps=least)
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=reduction)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=least, reduction_factor=reduction)
        case _:
            return optuna.pruners.NopPruner()


def _sampler(search: Search, number: int) -> "optuna.samplers.BaseSampler":
    """Returns the sampler of a trial."""
    import optuna

    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)  # of a grid, it has nothing to choose


def ask(study: "optuna.Study", search: Search, number: int) -> "Trial":
    """Begins the next trial, whose number is how many there are. No other process may do so at the same time."""
    study.sampler = _sampler(search, number)
    if search.sampler == "grid" and len(study.get_trials(deepcopy=False)) == number:
        study.enqueue_trial(grid(search.space)[number])
    return study.ask()


def reopen(study: "optuna.Study", search: Search, number: int) -> "Trial":
    """Returns a trial that was begun, and has not ended."""
    import optuna

    study.sampler = _sampler(search, number)
    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def suggest(trial: "Trial", space: Sequence[Parameter]) -> Values:
    """Returns the values of a trial: those that it has had before, if it was begun before."""
    values: dict[str, Value] = {}
    for one in space:
        if isinstance(one, Choice):
            values[one.field] = trial.suggest_categorical(one.field, one.values)
        elif one.kind == "int":
            values[one.field] = trial.suggest_int(one.field, int(one.low), int(one.high), step=one.step)
        else:
            values[one.field] = trial.suggest_float(one.field, one.low, one.high, log=one.kind == "log")
    return values


def samples(search: Search) -> list[Values]:
    """Returns the values of the trials that are known before there is any result."""
    import_optuna()
    import optuna

    if search.sampler == "grid":
        return list(grid(search.space))
    study = optuna.create_study(study_name=NAME)
    count = min(search.trials, RANDOM_TRIALS) if search.sampler == "tpe" else search.trials
    return [suggest(ask(study, search, number), search.space) for number in range(count)]


def report(trial: "Trial", point: Point) -> bool:
    """Tells a value of the metric, unless it has been told before; returns whether the trial is pruned there."""
    if point.number in trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
        return False
    trial.report(point.value, point.number)
    if not trial.should_prune():
        return False
    trial.set_user_attr("pruned", point.number)  # so that it is not resumed, if it cannot be told below
    return True


def tell(study: "optuna.Study", trial: "Trial", outcome: Outcome, search: Search) -> None:
    """Ends a trial.

    One that diverged is told as one that was pruned at a value that is not finite, which is how optuna's samplers take
    it for one of the worst; of one that failed they learn nothing.
    """
    from optuna.trial import TrialState

    trial.set_user_attr("ending", outcome.ending.value)
    trial.set_user_attr("reason", outcome.reason)
    trial.set_user_attr("trained", outcome.trained)
    if outcome.ending is Ending.COMPLETE:
        point = summarize(outcome.points, search)
        study.tell(trial.number, point.value)
    elif outcome.ending is Ending.FAILED:
        study.tell(trial.number, state=TrialState.FAIL)
    else:
        if outcome.ending is Ending.DIVERGED:
            trial.report(float("nan"), len(outcome.points) + 1)
        study.tell(trial.number, state=TrialState.PRUNED)


def summarize(points: Sequence[Point], search: Search) -> Point:
    """Returns the point whose value is that of a run; of several that are the best, the first."""
    if search.summary == "last":
        return points[-1]
    finite = [point for point in points if np.isfinite(point.value)]
    return (max if search.higher else min)(finite, key=lambda point: point.value)


def has_trained(trials: Sequence["FrozenTrial"]) -> bool:
    """Returns whether a trial of a search has come so far that it wrote of a step."""
    return any(trial.intermediate_values or trial.user_attrs.get("trained") for trial in trials)

"""Schedules of the learning rate, and of other numbers, as functions of the step.

A schedule is `peak` times a share of it. In the formulas below, t is the number of updates done, T `total_steps`, w
`warmup_steps`, e `end_factor`, and s the step at which the decay starts: w, or 0 with `overlap_warmup`.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vision_jax.errors import ConfigError, suggest

Share = Callable[[jax.Array], Any]


def scale_learning_rate(base: float, batch_size: int, base_batch_size: int, rule: str = "linear") -> float:
    """Returns the learning rate for a batch size, given that for another one.

    linear:  base * batch_size / base_batch_size          for SGD (Goyal et al. 2017, arXiv:1706.02677)
    sqrt:    base * sqrt(batch_size / base_batch_size)    for adaptive methods (Malladi et al. 2022, arXiv:2205.10287)

    Raises:
        ConfigError: for another rule.
    """
    ratio = batch_size / base_batch_size
    if rule == "linear":
        return base * ratio
    if rule == "sqrt":
        return base * math.sqrt(ratio)
    raise ConfigError(f"There is no rule {rule!r} for the learning rate: {suggest(rule, ['linear', 'sqrt'])}")


def _left(t: jax.Array, start: float, end: float) -> jax.Array:
    """Returns the remaining share: 1 up to the start, 0 from the end on.

    Unlike 1 - (t - start) / (end - start), it keeps its relative precision in the last steps.
    """
    return jnp.clip((end - t) / (end - start), 0, 1)


def _constant(*, start: int, total: int, end: float) -> Share:
    """1"""
    return lambda t: 1.0


def _cosine(*, start: int, total: int, end: float) -> Share:
    """e + (1 - e) * (1 + cos(pi * (t - s) / (T - s))) / 2"""
    # (1 + cos(pi x)) / 2 = sin(pi (1 - x) / 2)^2, which has no cancellation at the end.
    return lambda t: end + (1 - end) * jnp.sin(jnp.pi / 2 * _left(t, start, total)) ** 2


def _linear(*, start: int, total: int, end: float) -> Share:
    """e + (1 - e) * (1 - (t - s) / (T - s))"""
    return _polynomial(start=start, total=total, end=end, power=1.0)


def _polynomial(*, start: int, total: int, end: float, power: float = 2.0) -> Share:
    """e + (1 - e) * (1 - (t - s) / (T - s)) ** power"""
    return lambda t: end + (1 - end) * _left(t, start, total) ** power


def _step(
    *,
    start: int,
    total: int,
    end: float,
    factor: float = 0.1,
    every: float | None = None,
    milestones: Sequence[float] = (),
) -> Share:
    """max(e, factor ** (how many milestones, or multiples of `every`, are at most t))"""
    if (every is None) == (not milestones):
        raise ConfigError("The schedule 'step' takes either `every` or `milestones`.")
    if every is not None:
        if every <= 0:
            raise ConfigError(f"`every` is {every}: it must be above 0.")
        # Counted here, because dividing by what is no power of two may round to below a whole number.
        milestones = (np.arange(1, math.floor(total / every) + 1) * every).tolist()
    bounds = jnp.asarray(sorted(milestones), jnp.float32)
    # In a table, because float32 would lose digits in high powers.
    shares = jnp.asarray([max(end, factor**n) for n in range(len(milestones) + 1)], jnp.float32)
    return lambda t: shares[jnp.searchsorted(bounds, t, side="right")]


def _exponential(*, start: int, total: int, end: float, every: float, factor: float, staircase: bool = False) -> Share:
    """max(e, factor ** (t / every)), with the exponent rounded down for a `staircase`"""
    if every <= 0:
        raise ConfigError(f"`every` is {every}: it must be above 0.")
    if staircase:
        return _step(start=start, total=total, end=end, factor=factor, every=every)
    return lambda t: jnp.maximum(end, factor ** (t / every))


def _rsqrt(*, start: int, total: int, end: float, timescale: float = 10_000) -> Share:
    """max(e, 1 / sqrt(1 + (t - s) / timescale))"""
    return lambda t: jnp.maximum(end, jax.lax.rsqrt(1 + jnp.maximum(t - start, 0) / timescale))


def _piecewise(*, start: int, total: int, end: float, points: Sequence[tuple[float, float]] = ()) -> Share:
    """on straight lines through `points`, pairs of a step and a share of the peak; level outside of them"""
    steps, shares = np.asarray(points, np.float32).reshape(-1, 2).T
    if not len(steps) or (np.diff(steps) <= 0).any():
        raise ConfigError(
            f"The schedule 'piecewise' has the points {list(points)}: their steps must rise, and there must be one."
        )
    return lambda t: jnp.interp(t, jnp.asarray(steps), jnp.asarray(shares))


def _wsd(*, start: int, total: int, end: float, decay_steps: int, decay: str = "linear") -> Share:
    """1, then e + (1 - e) * (1 - q, 1 - sqrt(q) or (1 + cos(pi q)) / 2) with q from 0 to 1 over `decay_steps`"""
    curves: dict[str, Share] = {
        "linear": lambda left: left,
        "sqrt": lambda left: 1 - jnp.sqrt(1 - left),
        "cosine": lambda left: jnp.sin(jnp.pi / 2 * left) ** 2,
    }
    if decay not in curves:
        raise ConfigError(f"There is no decay {decay!r}: {suggest(decay, list(curves))}")
    if not 0 < decay_steps <= total - start:
        raise ConfigError(f"decay_steps is {decay_steps}: it must be between 1 and the {total - start} after warm-up.")
    return lambda t: end + (1 - end) * curves[decay](_left(t, total - decay_steps, total))


_SHARES: dict[str, Callable[..., Share]] = {
    "constant": _constant,
    "cosine": _cosine,
    "exponential": _exponential,
    "linear": _linear,
    "piecewise": _piecewise,
    "polynomial": _polynomial,
    "rsqrt": _rsqrt,
    "step": _step,
    "wsd": _wsd,
}


def list_schedules() -> list[str]:
    """Returns the sorted names that `create_schedule` knows."""
    return sorted(_SHARES)


def schedule_arguments(name: str) -> list[str]:
    """Returns the names of the further arguments that `create_schedule` takes for a schedule.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in _SHARES:
        raise ConfigError(f"There is no schedule {name!r}: {suggest(name, list(_SHARES))}")
    return [key for key in inspect.signature(_SHARES[name]).parameters if key not in ("start", "total", "end")]


def create_schedule(
    name: str,
    peak: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
    end_factor: float = 0.0,
    cooldown_steps: int = 0,
    per_epoch: int | None = None,
    overlap_warmup: bool = False,
    warmup_reaches_peak: bool = False,
    **kwargs: Any,
) -> optax.Schedule:
    """Returns a function from the number t of updates done to a number, such as the learning rate.

    With f = warmup_factor it is peak * (f + (1 - f) * t / w) for t < w, and from there on peak times

        constant:     1
        cosine:       e + (1 - e) * (1 + cos(pi * (t - s) / (T - s))) / 2      (Loshchilov and Hutter 2016,
                      arXiv:1608.03983)
        linear:       e + (1 - e) * (1 - (t - s) / (T - s))
        polynomial:   e + (1 - e) * (1 - (t - s) / (T - s)) ** power           (`power` is 2 if not given)
        step:         max(e, factor ** n), where n counts which of `milestones`, or which multiples of `every`, are at
                      most t; `factor` is 0.1 if not given
        exponential:  max(e, factor ** (t / every)), with a whole exponent, rounded down, for `staircase=True`
        rsqrt:        max(e, 1 / sqrt(1 + (t - s) / timescale))                (Zhai et al. 2021, arXiv:2106.04560;
                      `timescale` is 10,000 if not given)
        piecewise:    what lies on straight lines through `points`, pairs of a step and a share of the peak
        wsd:          1, and over the last `decay_steps`, with q from 0 to 1, e + (1 - e) * (1 - q); with
                      `decay="sqrt"` or "cosine" 1 - sqrt(q) or (1 + cos(pi q)) / 2 in the place of 1 - q
                      (Hu et al. 2024, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392)

    Steps of `milestones`, `every` and `points` count from the beginning, not from the end of the warm-up. All of it is
    multiplied by min(1, (T - t) / cooldown_steps) if there is a cooldown.

    Args:
        name: one of `list_schedules()`.
        peak: the largest value.
        total_steps: updates in the whole training.
        warmup_steps: updates during which it rises linearly; fewer than `total_steps`.
        warmup_factor: where the warm-up begins, as a share of the peak.
        end_factor: the last value as a share of the peak; above 1, it rises, as a weight decay may.
        cooldown_steps: last updates, during which it falls linearly to zero, whatever it is otherwise.
        per_epoch: updates in an epoch: the value changes at the beginning of an epoch only, as where torch schedulers
            are stepped after each epoch (timm, torchvision). None: with every update.
        overlap_warmup: the decay begins with the training, hidden by the warm-up, as timm has it by default; False: it
            begins after the warm-up, as optax and torchvision have it.
        warmup_reaches_peak: the last update of the warm-up has the peak already, as if it were one shorter, and so has
            the first one after it: t / (w - 1) in the place of t / w, as in the code of DINO and SwAV.
        **kwargs: those named in the formulas.

    Raises:
        ConfigError: for an unknown name or argument, or steps that do not fit into the training.
    """
    allowed = schedule_arguments(name)
    for key in kwargs:
        if key not in allowed:
            takes = f"it takes {', '.join(allowed)}." if allowed else "it takes no further ones."
            raise ConfigError(f"The schedule {name!r} has no argument {key!r}: {takes}")
    if not 0 <= warmup_steps < total_steps:
        raise ConfigError(f"The warm-up of {warmup_steps} steps must be shorter than the training of {total_steps}.")
    if not 0 <= cooldown_steps <= total_steps - warmup_steps:
        raise ConfigError(
            f"The warm-up of {warmup_steps} and the cooldown of {cooldown_steps} steps must fit into the training of "
            f"{total_steps}."
        )
    if per_epoch is not None and per_epoch < 1:
        raise ConfigError(f"per_epoch is {per_epoch}: there is at least one update in an epoch.")
    try:
        share = _SHARES[name](
            start=0 if overlap_warmup else warmup_steps, total=total_steps, end=float(end_factor), **kwargs
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The schedule {name!r} does not take these arguments: {error}") from error

    def schedule(step: Any) -> jax.Array:
        t = jnp.asarray(step)
        if per_epoch is not None:
            t = t // per_epoch * per_epoch
        t = t.astype(jnp.float32)
        value = jnp.asarray(share(t), jnp.float32)
        if warmup_steps:
            rise = t / max(1, warmup_steps - warmup_reaches_peak)
            value = jnp.where(t < warmup_steps, warmup_factor + (1 - warmup_factor) * rise, value)
        if cooldown_steps:
            value *= jnp.clip((total_steps - t) / cooldown_steps, 0, 1)
        return jnp.broadcast_to(peak * value, t.shape)

    return schedule


def interpolate_cosine(first: float, last: float, total_steps: int) -> optax.Schedule:
    """Returns last + (first - last) * (1 + cos(pi * t / total_steps)) / 2.

    Unlike `create_schedule`, it may rise, also from zero, as weight decays do in DINO (Caron et al. 2021,
    arXiv:2104.14294).
    """
    share = _cosine(start=0, total=total_steps, end=0.0)
    return lambda step: jnp.asarray(last + (first - last) * share(jnp.asarray(step, jnp.float32)), jnp.float32)


def shift_schedule(value: optax.ScalarOrSchedule, steps: int) -> optax.ScalarOrSchedule:
    """Returns a schedule whose first value is that of this one after so many updates; a number stays what it is."""
    return (lambda step: value(step + steps)) if callable(value) and steps else value

"""Learning rates as functions of the step."""

import optax


def create_schedule(
    name: str, peak: float, *, total_steps: int, warmup_steps: int = 0, end_factor: float = 0.0
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates done.

    With w = warmup_steps, T = total_steps and e = end_factor, it is peak * t / w for t < w, and after that

        constant:  peak
        cosine:    peak * (e + (1 - e) * (1 + cos(pi * (t - w) / (T - w))) / 2)    (Loshchilov and Hutter 2017)

    Args:
        name: "cosine" or "constant".
        peak: the largest learning rate.
        total_steps: updates in the whole training.
        warmup_steps: updates during which it rises linearly from zero; fewer than `total_steps`.
        end_factor: the last learning rate as a share of the peak.

    Raises:
        ValueError: for an unknown name or a warm-up that is not shorter than the training.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"The warm-up of {warmup_steps} steps must be shorter than the training of {total_steps}.")
    if name == "cosine":
        decay = optax.cosine_decay_schedule(peak, total_steps - warmup_steps, alpha=end_factor)
    elif name == "constant":
        decay = optax.constant_schedule(peak)
    else:
        raise ValueError(f"There is no schedule {name!r}: there are cosine and constant.")
    if not warmup_steps:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), decay], [warmup_steps])

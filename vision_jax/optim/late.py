"""Parameters that are frozen at first, as the last layer of DINO and the prototypes of SwAV are."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vision_jax.optim.groups import merge, split_tree


class LateState(NamedTuple):
    """The state of `begin_late`.

    Attributes:
        step: () int32, the number of updates done.
        inner: the state of the optimizer for the parameters of each start, ascending.
    """

    step: jax.Array
    inner: tuple[Any, ...]


def begin_late(
    create: Callable[[int], optax.GradientTransformation], starts: Mapping[str, int]
) -> optax.GradientTransformation:
    """Returns an optimizer that leaves some parameters alone for a number of updates.

    Until then, these have no update, no decay, and no moments; from then on, they are trained as if the optimizer began
    with that step, but for its schedules. This is what torch's optimizers do if there are no gradients at first.
    Gradients of zero would differ: moments of zero would be corrected as if there had been many updates, so that the
    first steps of Adam would be several times as long.

    Parameters with the same start have an optimizer of their own. So what adds up over all parameters within it, such
    as LAMB's own clipping, adds up over those of one start; clip before it.

    Args:
        create: from the number of updates before its first one, by which its schedules are shifted, to an optimizer.
        starts: by the path of a parameter, the number of updates before its first one.
    """
    order = sorted(set(starts.values()))
    if order in ([], [0]):
        return create(0)
    optimizers = [optax.with_extra_args_support(create(start)) for start in order]

    def parts(tree: Any) -> list[Any]:
        """Returns what a tree has for the parameters of each start."""
        found = []
        for start in order[:-1]:

            def later(path: str, _: Any) -> bool:
                return starts[path] != start  # noqa: B023

            one, tree = split_tree(tree, later, "")
            found.append(one)
        return [*found, tree]

    def join(trees: list[Any]) -> Any:
        joined: Any = {}
        for tree in trees:
            joined = merge(joined, tree)
        return joined

    def init(params: Any) -> LateState:
        inner = tuple(optimizer.init(part) for optimizer, part in zip(optimizers, parts(params), strict=True))
        return LateState(jnp.zeros((), jnp.int32), inner)

    def update(grads: Any, state: LateState, params: Any = None, **extra: Any) -> tuple[Any, LateState]:
        of_params = [None] * len(order) if params is None else parts(params)
        loss = extra.pop("obj_fn", None)
        updates, inner = [], []
        for number, (start, optimizer, part) in enumerate(zip(order, optimizers, parts(grads), strict=True)):
            more = dict(extra)
            if loss is not None:  # it takes all parameters
                others = [*of_params[:number], *of_params[number + 1 :]]
                more["obj_fn"] = lambda part, others=others: loss(join([part, *others]))
            moved, new = optimizer.update(part, state.inner[number], of_params[number], **more)
            if start:
                begun = state.step >= start
                moved = jax.tree.map(lambda u: jnp.where(begun, u, jnp.zeros_like(u)), moved)  # noqa: B023
                new = jax.tree.map(lambda a, b: jnp.where(begun, a, b), new, state.inner[number])  # noqa: B023
            updates.append(moved)
            inner.append(new)
        return join(updates), LateState(optax.safe_increment(state.step), tuple(inner))

    return optax.GradientTransformationExtraArgs(init, update)

"""Pruning while training: masks of small weights, which are made anew on a schedule and live in the optimizer's state.

Zhu and Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
arXiv:1710.01878. A step first updates the weights as if there were no masks; when it is due, masks are made of the
magnitudes of what results; then masked weights are set to zero. So masks depend on the state and the step alone.

What becomes of a masked weight until the last masks are made is a choice of `Pruning.masked`:

- zero: it stays zero. Masks only ever grow, and nothing has to be remembered.
- held: its value is kept aside, without updates, and counts in the next masks: it comes back when those that are kept
  have become smaller. This is what Zhu and Gupta do.
- updated: its value is kept aside, and gets the updates that the gradient of the pruned network has at its place. So it
  comes back when it is needed (Lin et al. 2020, "Dynamic model pruning with feedback", arXiv:2006.07253).

In the first two, masked weights have no gradient either: it counts in no clipping of gradients, and in no moments.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vision_jax.errors import ConfigError, suggest
from vision_jax.optim import magnitude
from vision_jax.optim.groups import split_tree
from vision_jax.optim.masks import STEM, all_paths, block_paths, check_patterns, is_stacked, matches

SCOPES = ("array", "global")
MASKED = ("zero", "held", "updated")
LARGEST_GROUP = 64  # each weight of a group is compared with all others of it


class PruneState(NamedTuple):
    """The optimizer's state, and which weights are kept.

    Attributes:
        inner: the optimizer's state.
        step: () int32: updates so far.
        masks: a bool array for each kernel that is pruned, in the tree of the parameters: True where it is kept.
        hidden: what masked weights would be, and 0 at the places of the others; None if they are zero for good.
    """

    inner: Any
    step: jax.Array
    masks: Any
    hidden: Any


@dataclasses.dataclass(frozen=True)
class Pruning:
    """When, how far and what to prune.

    Attributes:
        sparsity: the share of the weights of pruned kernels that are zero at the end.
        begin, end: the updates after which masks are first and last made; with the same number, all at once. If it
            begins with 0, masks are made before the first step too, of the weights that the training begins with.
        every: updates between masks; they are also made at the end.
        initial: the sparsity at the beginning.
        scope: "array", each kernel by itself; "global", by one threshold over all of them.
        pattern: (n, m): at most n of m consecutive inputs are not zero, see `magnitude.keep_n_of_m`; None: any.
        exclude: regular expressions of kernels that stay dense.
        spared: paths of kernels that stay dense too, such as the classifier's.
        masked: of MASKED, see the top of this file.
    """

    sparsity: float
    begin: int = 0
    end: int = 0
    every: int = 100
    initial: float = 0.0
    scope: str = "array"
    pattern: tuple[int, int] | None = None
    exclude: tuple[str, ...] = (STEM,)
    spared: tuple[str, ...] = ()
    masked: str = "zero"

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.sparsity < 1:
            raise ConfigError(
                f"Pruning goes from a sparsity of {self.initial} to {self.sparsity}: it takes 0 <= the first <= the "
                "second < 1."
            )
        if not 0 <= self.begin <= self.end or self.every < 1:
            raise ConfigError(
                f"Pruning begins at step {self.begin}, ends at {self.end} and makes masks every {self.every}: it takes "
                "0 <= begin <= end, and 1 or more."
            )
        for pattern in self.exclude:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"prune.exclude has {pattern!r}, no regular expression: {error}") from error
        for name, allowed in (("scope", SCOPES), ("masked", MASKED)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} of pruning is {getattr(self, name)!r}: {suggest(getattr(self, name), allowed)}"
                )

    def sparsity_at(self, step: jax.Array | int) -> jax.Array:
        """Returns the sparsity after so many updates, () float32, if masks are made there.

        s_t = s_f + (s_i - s_f) * (1 - (t - t_0) / (n dt))^3 from t_0 = begin to t_0 + n dt = end, s_f from there on
        (Zhu and Gupta).
        """
        share = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / max(1, self.end - self.begin), 0, 1)
        share = jnp.where(jnp.asarray(step) >= self.end, 1.0, share)
        return jnp.float32(self.sparsity) + jnp.float32(self.initial - self.sparsity) * (1 - share) ** 3

    def is_due(self, step: jax.Array) -> jax.Array:
        """Returns whether masks are made after so many updates, () bool."""
        inside = (step >= self.begin) & (step < self.end) & ((step - self.begin) % self.every == 0)
        return inside | (step == self.end)

    def paths(self, params: Any) -> tuple[list[str], list[str]]:
        """Returns the paths of the kernels that are pruned, and of those that stay dense.

        Dense are those that `exclude` or `spared` has, those of a single input to each output, as of depthwise
        convolutions, and with a pattern, those whose inputs m does not divide.

        Args:
            params: arrays, or their shapes, of the trained parameters.

        Raises:
            ConfigError: if a pattern of `exclude`, other than the default, matches nothing, or only some blocks of a
                stack; if no kernel is left; or if there are too many weights for one threshold.
        """
        named = [pattern for pattern in self.exclude if pattern != STEM]
        check_patterns("prune.exclude", named, all_paths(params))
        pruned, dense, sizes = [], [], []
        for path, x in _leaves(params):
            if not re.search(r"(^|/)kernel$", path):
                continue
            excluded = {matches(name, self.exclude) for name in block_paths(path, x.shape)}
            if len(excluded) > 1:
                raise ConfigError(
                    f"prune.exclude matches only some of the blocks stacked in {path}, of which all must be pruned or "
                    "none: change the pattern, or set model.scan_blocks to False."
                )
            fits = x.shape[-2] > 1 and (self.pattern is None or x.shape[-2] % self.pattern[1] == 0)
            if excluded.pop() or path in self.spared or not fits:
                dense.append(path)
                continue
            pruned.append(path)
            sizes.append(x.size)
        if not pruned:
            groups = "" if self.pattern is None else f", or have inputs that {self.pattern[1]} does not divide"
            raise ConfigError(
                f"There is nothing to prune: all of the {len(dense)} kernels that are trained are excluded{groups}. "
                "Change prune.exclude or prune.pattern."
            )
        most = sum(sizes) if self.scope == "global" else max(sizes)
        if self.pattern is None and most > magnitude.LARGEST:
            raise ConfigError(f"{most:,} weights are too many for one threshold: prune.scope=array, or a pattern.")
        return pruned, dense

    def select(self, tree: Any) -> Any:
        """Returns what a tree of the trained parameters has for the kernels that are pruned."""
        pruned = set(self.paths(tree)[0])
        return split_tree(tree, lambda path, _: path not in pruned, "")[0]

    def make_masks(self, kernels: Any, sparsity: jax.Array | float) -> Any:
        """Returns masks of kernels, as `select` returns them, by their magnitudes.

        With a pattern (n, m), m - floor(m * sparsity) of m are kept, so that groups become sparse one by one.
        """
        leaves = _leaves(kernels)
        values = [x for _, x in leaves]
        if self.pattern is not None:
            m = self.pattern[1]
            kept = m - jnp.floor(m * jnp.float32(sparsity) + 1e-4).astype(jnp.int32)
            found = [magnitude.keep_n_of_m(x, m, kept) for x in values]
        else:
            stacked = [is_stacked(path) for path, _ in leaves]
            found = magnitude.keep_largest(values, sparsity, stacked=stacked, together=self.scope == "global")
        return jax.tree.unflatten(jax.tree.structure(kernels), found)


def prune(optimizer: optax.GradientTransformation, pruning: Pruning) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer with pruning: after its updates, masked weights are exactly zero.

    Parameters that it is initialized with are not changed: apply the masks of the state to them, see `masks_of`.

    Args:
        optimizer: the optimizer to wrap.
        pruning: when, how far and what to prune.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> PruneState:
        kernels = pruning.select(params)
        if pruning.begin == 0:
            masks = pruning.make_masks(kernels, pruning.sparsity_at(0))
        else:
            masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), kernels)
        hidden = None if pruning.masked == "zero" else jax.tree.map(_hide, kernels, masks)
        return PruneState(inner.init(params), jnp.zeros((), jnp.int32), masks, hidden)

    def update(grads: Any, state: PruneState, params: Any, **extra: Any) -> tuple[Any, PruneState]:
        before = state.masks
        if pruning.masked == "updated":
            full = overlay(params, jax.tree.map(jnp.where, before, pruning.select(params), state.hidden))
            if (loss := extra.pop("obj_fn", None)) is not None:
                extra["obj_fn"] = lambda params: loss(apply_masks(params, before))
        else:
            full, grads = params, apply_masks(grads, before)
        updates, new = inner.update(grads, state.inner, full, **extra)
        moved, old = pruning.select(optax.apply_updates(full, updates)), pruning.select(params)
        if pruning.masked == "zero":
            moved = apply_masks(moved, before)
        elif pruning.masked == "held":
            moved = jax.tree.map(jnp.where, before, moved, state.hidden)
        done = optax.safe_increment(state.step)
        masks = jax.lax.cond(
            pruning.is_due(done),
            lambda kernels, _: pruning.make_masks(kernels, pruning.sparsity_at(done)),
            lambda _, masks: masks,
            *(moved, before),
        )

        def difference(update: jax.Array, old: jax.Array, moved: jax.Array, was: jax.Array, kept: jax.Array) -> Any:
            """Returns what leads from the old weights to the new ones, without rounding."""
            return jnp.where(kept, jnp.where(was, update, moved), -old)

        changed = jax.tree.map(difference, pruning.select(updates), old, moved, before, masks)
        hidden = None if state.hidden is None else jax.tree.map(_hide, moved, masks)
        return overlay(updates, changed), PruneState(new, done, masks, hidden)

    return optax.GradientTransformationExtraArgs(init, update)


def _hide(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, jnp.zeros_like(values), values)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns paths and arrays, in the order of `jax.tree.leaves`."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in found]


def masks_of(opt_state: Any) -> Any:
    """Returns the masks of an optimizer's state, also of one within a guard; None: it does not prune."""
    for state in (opt_state, getattr(opt_state, "inner", None)):
        if isinstance(state, PruneState):
            return state.masks
    return None


def apply_masks(tree: Any, masks: Any) -> Any:
    """Returns a tree with zeros where masks are False; what has no mask is as it was. Masks of None change nothing.

    Args:
        tree: nested dicts of arrays.
        masks: the same, of some of them.
    """
    if masks is None:
        return tree
    if not isinstance(masks, Mapping):
        return jnp.where(masks, tree, jnp.zeros_like(tree))
    return {name: apply_masks(value, masks[name]) if name in masks else value for name, value in tree.items()}


def overlay(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree with those leaves replaced that another one has too."""
    return {
        name: value if name not in other else overlay(value, other[name]) if isinstance(value, Mapping) else other[name]
        for name, value in tree.items()
    }


def sparsity_of(masks: Any) -> jax.Array:
    """Returns the share of the weights with a mask that are masked, () float32."""
    leaves = jax.tree.leaves(masks)
    kept = sum(x.sum(dtype=jnp.int32).astype(jnp.float32) for x in leaves)
    return jnp.float32(1) - jnp.asarray(kept, jnp.float32) / sum(x.size for x in leaves)

"""Parameter groups: weight decay, learning-rate multipliers and freezing by rules on parameter paths.

Patterns are regular expressions, searched for in paths such as `layer1/0/conv1/kernel`; `^` and `$` anchor them.
Parameters of blocks stacked by a scan have one path per block, `blocks/0/attn/qkv/kernel` and so on, so that the same
rules hold for a model built either way.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from vision_jax.errors import ConfigError
from vision_jax.optim import masks

_PREVIOUS = 1_000_000_000  # sorts after all blocks of a stage
# The position of a parameter in a model: a pattern that the path starts with, an ordinal, and more ordinals, which
# follow the captured groups. They are the layers of timm's layer-wise decay, for all families at once, since paths are
# timm's names. Entries that end with _PREVIOUS belong to the layer before; paths that no pattern matches are the head.
_LAYERS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    (r"(cls_token|dist_token|reg_token|pos_embed|patch_embed)", 0, ()),  # vision transformers, Swin
    (r"(stem|conv_stem|conv1|bn1|maxpool|prep|embed)(/|$)", 0, ()),
    (r"features/((conv|norm|pool)[012]|0)/", 0, ()),  # DenseNet; VGG and others that count their layers
    (r"Conv2d_[12]", 0, ()),  # Inception
    (r"Conv2d_[34]", 1, (0,)),
    (r"Mixed_(\d)([a-z])", 1, ()),
    (r"inception(\d)([a-z])", 1, ()),  # GoogLeNet
    (r"layers/(\d+)/downsample", 1, (0,)),  # Swin
    (r"layers/(\d+)/\w+/(\d+)", 1, ()),
    (r"stages/(\d+)/downsample", 1, (0,)),  # ConvNeXt
    (r"stages/(\d+)/blocks/(\d+)", 1, ()),  # and ResNetV2
    (r"layer(\d+)/(?:res\d|0/(?:conv|bn)/)", 1, ()),  # ResNet-9, whose stages are its blocks
    (r"layer(\d+)/(\d+)", 1, ()),  # ResNet
    (r"s(\d+)/b(\d+)", 1, ()),  # RegNet
    (r"stage(\d+)/(\d+)", 1, ()),  # ShuffleNet
    (r"conv(\d)/", 1, ()),  # of GoogLeNet and ShuffleNet, which number them among the stages
    (r"features/denseblock(\d+)/denselayer(\d+)", 1, ()),
    (r"features/transition(\d+)", 1, (_PREVIOUS,)),
    (r"features/(\d+)", 1, ()),
    (r"patch(\d)/", 1, ()),  # the small network of patches
    (r"blocks/(\d+)/(\d+)", 1, ()),  # EfficientNet, MobileNet
    (r"blocks/(\d+)", 1, ()),  # vision transformers, Mixer
    (r"norm/", 1, (_PREVIOUS,)),
)
# EfficientNet counts these to the last block; MobileNetV3, which has no such norm, to the head.
_LAST_CONV = r"(conv_head|bn2)/"


def layer_ids(paths: Sequence[str], layers: Sequence[str] | None = None) -> list[int]:
    """Returns the layer number of each parameter: 0 for the stem, then one for each block, the last for the head.

    Args:
        paths: of all parameters of a model.
        layers: patterns from the first layer to the last; parameters that match the same pattern are ordered by its
            captured groups, numerically if these are numbers. Paths that match none are the head. None: the patterns
            for the families in `vision_jax.models`, with timm's layers.

    Raises:
        ConfigError: if no pattern matches, or only the first ones.
    """
    if layers is None:
        table = list(_LAYERS)
        if any(path.startswith("bn2/") for path in paths):
            table.append((_LAST_CONV, 1, (_PREVIOUS,)))
        compiled = [(re.compile("^" + pattern), ordinal, more) for pattern, ordinal, more in table]
    else:
        compiled = [(re.compile(pattern), ordinal, ()) for ordinal, pattern in enumerate(layers)]

    def place(path: str) -> tuple[float, ...]:
        for pattern, ordinal, more in compiled:
            if match := pattern.search(path):
                captured = [] if layers is None and ordinal == 0 else [group for group in match.groups() if group]
                # Letters count as their codes do: stages may be called a, b, c.
                numbers = [float(g) if g.isdigit() else float(sum(ord(c) for c in g)) for g in captured]
                return (float(ordinal), *numbers, *(float(number) for number in more))
        return (float("inf"),)

    places = [place(path) for path in paths]
    ids: dict[tuple[float, ...], int] = {}
    for key in sorted(set(places)):
        ids[key] = max(0, len(set(ids.values())) - (key[-1] == _PREVIOUS))
    if len(set(ids.values())) < 3:
        raise ConfigError(
            "The layers of this model are not known, so its learning rate cannot decay by layer: pass `layers`, path "
            "patterns from the first layer to the last."
        )
    return [ids[key] for key in places]


@dataclasses.dataclass(frozen=True)
class Row:
    """The rules that apply to one parameter.

    Attributes:
        path: its path.
        shape: its shape.
        decays: whether weight decay applies.
        multiplier: learning-rate multiplier; for stacked blocks, one per block if they differ.
        frozen: whether it is frozen.
        layer: its layer, if the learning rate decays by layer; for stacked blocks, one per block.
        begins: the number of updates before it has its first one.
        constant: whether its learning rate is the peak in every step.
    """

    path: str
    shape: tuple[int, ...]
    decays: bool
    multiplier: float | tuple[float, ...]
    frozen: bool
    layer: int | tuple[int, ...] | None
    begins: int = 0
    constant: bool = False


@dataclasses.dataclass(frozen=True)
class GroupRules:
    """Rules that assign weight decay, learning rates and freezing to parameters.

    Attributes:
        decay: "kernels", "all", "timm" or "not_norms", as in `decay_mask`.
        no_decay: patterns of parameters exempt from decay.
        multipliers: (pattern, factor) pairs of the learning rate; if several match, their factors are multiplied.
        layer_decay: ratio of each layer's learning rate to that of the next one; the head's is not reduced (Clark et
            al. 2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254); None: all layers have the same.
        min_layer_factor: lower bound of the resulting factors.
        layers: see `layer_ids`.
        frozen: patterns of frozen parameters: they have no update, no decay and no optimizer state. Running statistics
            are not parameters and keep being updated.
        frozen_until: (pattern, steps) pairs: parameters that are frozen for so many updates, and then trained as if
            the optimizer began; see `begin_late`. If several match, the last to begin counts.
        constant_rate: patterns of parameters whose learning rate does not follow the schedule.
        no_clip_adaptive: patterns of parameters exempt from adaptive clipping.

    Every pattern must match at least one path, except for the default of `no_clip_adaptive`: a rule that matches
    nothing is a mistake.
    """

    decay: str = "kernels"
    no_decay: tuple[str, ...] = ()
    multipliers: tuple[tuple[str, float], ...] = ()
    layer_decay: float | None = None
    min_layer_factor: float = 0.0
    layers: tuple[str, ...] | None = None
    frozen: tuple[str, ...] = ()
    frozen_until: tuple[tuple[str, int], ...] = ()
    constant_rate: tuple[str, ...] = ()
    no_clip_adaptive: tuple[str, ...] = (masks.CLASSIFIER,)

    def __post_init__(self) -> None:
        if self.decay not in masks.DECAY_RULES:
            masks.decay_mask({}, self.decay)
        for pattern in (*itertools.chain(*self._patterns().values()), *(self.layers or ())):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"The pattern {pattern!r} is not a regular expression: {error}") from error
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay is {self.layer_decay}: it must be above 0 and at most 1.")
        for pattern, factor in self.multipliers:
            if factor < 0:
                raise ConfigError(f"The multiplier of {pattern!r} is {factor}: it must not be negative.")

    def _patterns(self) -> dict[str, tuple[str, ...]]:
        """Returns the patterns of each field."""
        multiplied = tuple(pattern for pattern, _ in self.multipliers)
        return {
            "no_decay": self.no_decay,
            "multipliers": multiplied,
            "frozen": self.frozen,
            "frozen_until": tuple(pattern for pattern, _ in self.frozen_until),
            "constant_rate": self.constant_rate,
            "no_clip_adaptive": self.no_clip_adaptive,
        }

    def check(self, params: Any) -> None:
        """Checks that each pattern matches the path of a parameter.

        Args:
            params: arrays or their shapes, of all parameters, frozen ones too.

        Raises:
            ConfigError: if one does not; the message names the field and the pattern.
        """
        paths = masks.all_paths(params)
        for field, patterns in self._patterns().items():
            named = [pattern for pattern in patterns if (field, pattern) != ("no_clip_adaptive", masks.CLASSIFIER)]
            masks.check_patterns(f"optimizer.{field}", named, paths)
        masks.check_patterns("optimizer.layers", self.layers or (), paths)

    def table(self, params: Any) -> list[Row]:
        """Returns the rules that apply to each parameter, in the order of `jax.tree.leaves`.

        Args:
            params: arrays, or their shapes.

        Raises:
            ConfigError: if a pattern matches nothing, or only some of the blocks of a stack that must agree.
        """
        leaves = [(masks.path_string(path), x) for path, x in jax.tree_util.tree_leaves_with_path(params)]
        paths = [masks.block_paths(path, x.shape) for path, x in leaves]
        flat = [path for several in paths for path in several]
        self.check(params)
        ids = dict(zip(flat, layer_ids(flat, self.layers), strict=True)) if self.layer_decay is not None else {}
        decays = jax.tree.leaves(masks.decay_mask(params, self.decay))
        return [
            self._row(path, x.shape, decay, several, ids)
            for (path, x), decay, several in zip(leaves, decays, paths, strict=True)
        ]

    def _row(self, path: str, shape: tuple[int, ...], decays: bool, paths: list[str], ids: dict[str, int]) -> Row:
        multipliers, frozen = [], [masks.matches(name, self.frozen) for name in paths]
        for name, is_frozen in zip(paths, frozen, strict=True):
            factor = 1.0
            for pattern, other in self.multipliers:
                factor *= other if re.search(pattern, name) else 1
            if self.layer_decay is not None:
                factor *= max(self.min_layer_factor, self.layer_decay ** (max(ids.values()) - ids[name]))
            # If only some of the stacked blocks are frozen, those have state, and a factor of zero.
            multipliers.append(0.0 if is_frozen else factor)
        spared = {masks.matches(name, self.no_decay) for name in paths}
        if decays and len(spared) > 1:
            raise ConfigError(
                f"no_decay matches only some of the blocks stacked in {path}, of which all must decay or none: change "
                "the pattern, or set scan_blocks to False."
            )
        starts = {max((n for p, n in self.frozen_until if re.search(p, name)), default=0) for name in paths}
        if len(starts) > 1:
            raise ConfigError(
                f"frozen_until matches only some of the blocks stacked in {path}, of which all must begin at once: "
                "change the pattern, or set scan_blocks to False."
            )
        constant = {masks.matches(name, self.constant_rate) for name in paths}
        if len(constant) > 1:
            raise ConfigError(
                f"constant_rate matches only some of the blocks stacked in {path}, of which all must have the same: "
                "change the pattern, or set scan_blocks to False."
            )
        layers = tuple(ids[name] for name in paths) if ids else None
        stacked = masks.is_stacked(path)
        return Row(
            path=path,
            shape=tuple(shape),
            decays=decays and not spared.pop() and not all(frozen),
            multiplier=tuple(multipliers) if len(set(multipliers)) > 1 else multipliers[0],
            frozen=all(frozen),
            layer=layers if layers is None or stacked else layers[0],
            begins=starts.pop(),
            constant=constant.pop(),
        )

    def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Splits parameters into trained and frozen ones; `merge` is the inverse.

        Only the trained ones are then differentiated, clipped, guarded and updated. If only some blocks of a stack are
        frozen, they are trained with a factor of zero, since an array cannot be split here.

        Args:
            params: nested dicts of arrays or of their shapes, of all parameters.

        Returns:
            (trained, frozen), nested dicts without the leaves of the other one, and without dicts that become empty.

        Raises:
            ConfigError: if a pattern of `frozen` matches nothing.
        """
        masks.check_patterns("optimizer.frozen", self.frozen, masks.all_paths(params))
        return split_tree(params, self._is_frozen, "")

    def _is_frozen(self, path: str, x: Any) -> bool:
        return all(masks.matches(name, self.frozen) for name in masks.block_paths(path, x.shape))

    def rates(self, params: Any) -> Any:
        """Returns a tree of labels for `optax.partition`: "constant" or, if its rate has a schedule, "scheduled"."""

        def label(path: Any, x: Any) -> str:
            paths = masks.block_paths(masks.path_string(path), x.shape)
            return "constant" if any(masks.matches(name, self.constant_rate) for name in paths) else "scheduled"

        return jax.tree_util.tree_map_with_path(label, params)

    def clip_adaptive_mask(self, params: Any) -> Any:
        """Returns a tree of booleans for `create_optimizer`: which parameters are clipped adaptively."""
        return masks.decay_mask(params, "all", self.no_clip_adaptive)

    def decay_mask(self, params: Any) -> Any:
        """Returns a tree of booleans for `create_optimizer`: which parameters decay."""

        # The tree may lack frozen parameters, so that a pattern may match nothing in it: hence no `table`.
        def decays(path: Any, decays: bool, x: Any) -> bool:
            paths = masks.block_paths(masks.path_string(path), x.shape)
            return decays and not any(masks.matches(name, self.no_decay) for name in paths)

        return jax.tree_util.tree_map_with_path(decays, masks.decay_mask(params, self.decay), params)

    def wrap(self, optimizer: optax.GradientTransformation, params: Any) -> optax.GradientTransformation:
        """Returns the optimizer with the multipliers applied, for the trained parameters.

        The whole update is multiplied, including decay: multipliers scale the learning rate. The optimizer should be
        created with `decay_mask=rules.decay_mask`.

        Args:
            optimizer: the optimizer to wrap.
            params: arrays, or their shapes, of all parameters, since layers are counted in the whole model. The result
                is initialized and called with the trained ones only, as `split` returns them.

        Raises:
            ConfigError: as `table`.
        """
        rows = {row.path: row for row in self.table(params)}
        if all(row.multiplier == 1 for row in rows.values()):
            return optimizer
        inner = optax.with_extra_args_support(optimizer)
        # Stands for frozen parameters in the state, and so in checkpoints. The optimizer does not see it.
        nothing = jax.tree.map(lambda _: optax.MaskedNode(), self.split(params)[1])

        def trained(tree: Any) -> dict[str, Any]:
            return split_tree(tree, lambda path, _: rows[path].frozen, "")[0]

        def init(params: Any) -> Any:
            return inner.init(merge(params, nothing))

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            if (loss := extra.pop("obj_fn", None)) is not None:
                extra["obj_fn"] = lambda params: loss(trained(params))
            params = None if params is None else merge(params, nothing)
            updates, state = inner.update(merge(grads, nothing), state, params, **extra)

            def scaled(path: Any, update: Any) -> Any:
                factor = np.asarray(rows[masks.path_string(path)].multiplier, np.float32)
                if (factor == 1).all():
                    return update
                return update * factor.reshape(-1, *[1] * (update.ndim - 1) if factor.ndim else ()).astype(update.dtype)

            return jax.tree_util.tree_map_with_path(scaled, trained(updates)), state

        return optax.GradientTransformationExtraArgs(init, update)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two nested dicts without common leaves, such as those that `GroupRules.split` returns.

    Raises:
        ValueError: if both have the same leaf, or one has a leaf where the other has a dict.
    """
    merged = dict(first)
    for name, value in second.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, Mapping) and isinstance(merged[name], Mapping):
            merged[name] = merge(merged[name], value)
        else:
            raise ValueError(f"both trees have a leaf at {name!r}: they are not the result of one split")
    return merged


def split_tree(
    tree: Mapping[str, Any], leaves_second: Callable[[str, Any], bool], prefix: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a tree into the leaves for which a function of path and leaf is False, and those for which it is True."""
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(value, Mapping):
            (second if leaves_second(prefix + name, value) else first)[name] = value
            continue
        one, other = split_tree(value, leaves_second, f"{prefix}{name}/")
        if one or not other:  # dicts that were empty before stay
            first[name] = one
        if other:
            second[name] = other
    return first, second


def format_table(rows: Sequence[Row], more: Mapping[str, Sequence[str]] | None = None) -> str:
    """Returns the rows as an aligned table, followed by how many parameters are trained and decay.

    `more` holds the cells of additional columns, by heading.
    """
    more = more or {}
    lines = [("parameter", "shape", "decay", "learning rate", "layer", *more)]
    for row, further in zip(rows, zip(*more.values(), strict=True) if more else [()] * len(rows), strict=True):
        numbers = row.multiplier if isinstance(row.multiplier, tuple) else (row.multiplier,)
        layers = row.layer if isinstance(row.layer, tuple) else (row.layer,)
        lines.append(
            (
                row.path,
                "x".join(str(size) for size in row.shape),
                "yes" if row.decays else "no",
                "frozen"
                if row.frozen
                else " to ".join(f"x {x:.4g}" for x in dict.fromkeys((numbers[0], numbers[-1])))
                + (", constant" if row.constant else "")
                + (f" from step {row.begins}" if row.begins else ""),
                "" if layers[0] is None else " to ".join(str(x) for x in dict.fromkeys((layers[0], layers[-1]))),
                *further,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    sizes = [(row, int(np.prod(row.shape))) for row in rows]
    total = sum(size for _, size in sizes)
    trained = sum(size for row, size in sizes if not row.frozen)
    decayed = sum(size for row, size in sizes if row.decays)
    return "\n".join([*text, f"{trained:,} of {total:,} parameters are trained, and {decayed:,} decay."])

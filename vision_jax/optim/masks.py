"""Parameter paths, and weight decay masks.

A path joins the names that lead to a parameter with "/": `layer1/0/conv1/kernel`. If a model scans over its blocks,
their parameters are stacked along the first axis, and the path has no number: `blocks/attn/qkv/kernel`.

The backbone is the root of the tree, and other heads are next to its children: `projector/0/kernel`,
`decoder/blocks/0/attn/qkv/kernel`. So rules for the backbone work whatever is trained with it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vision_jax.errors import ConfigError, suggest

Mask = Callable[[Any], Any] | Any

# Blocks of the backbone, or of a head with its own blocks, such as a decoder.
_STACKED = re.compile(r"(?:[^/]+/)?blocks/(?!\d+/)")
_NOT_DECAYED = re.compile(r"(^|/)(bias|pos_embed|cls_token|dist_token|reg_token|relative_position_bias_table)$")
# The first convolution of any family; `config.prune.exclude` begins as this.
STEM = r"^(visual/)?(stem|conv_stem|patch_embed|prep|conv1|Conv2d_1a_3x3|features/(0|conv0))/"
CLASSIFIER = r"^(head|head_dist|fc|classifier)/"  # of any family
DECAY_RULES = ("kernels", "all", "timm", "not_norms")


def path_string(path: Sequence[Any]) -> str:
    """Returns a path of `jax.tree_util` as a string, such as `blocks/0/attn/qkv/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def is_stacked(path: str) -> bool:
    """Returns whether a path is that of a parameter of all blocks, stacked along the first axis."""
    return _STACKED.match(path) is not None


def block_paths(path: str, shape: Sequence[int]) -> list[str]:
    """Returns the path of a parameter of this shape; for a stacked one, that of each block."""
    if (stacked := _STACKED.match(path)) is None:
        return [path]
    return [f"{stacked[0]}{i}/{path[stacked.end() :]}" for i in range(shape[0])]


def all_paths(params: Any) -> list[str]:
    """Returns the path of each parameter, or shape, in a tree; for stacked ones, that of each block."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [name for path, x in leaves for name in block_paths(path_string(path), x.shape)]


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Returns whether one of the regular expressions matches anywhere in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


def check_patterns(field: str, patterns: Sequence[str], paths: Sequence[str]) -> None:
    """Checks that each of the regular expressions matches one of the paths.

    Raises:
        ConfigError: if one does not, naming the field: a rule that matches nothing is probably misspelled.
    """
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ConfigError(
                f"{field}: the pattern {pattern!r} matches no parameter; there are such as {', '.join(paths[:1])}."
            )


def decay_mask(params: Any, rule: str = "kernels", exclude: Sequence[str] = ()) -> Any:
    """Returns a tree of booleans: True for parameters that decay.

    kernels:    parameters called kernel; not norms, biases, positions, tokens and LayerScale
    all:        everything, the default of torch's optimizers
    timm:       everything but vectors, biases, position embeddings, tokens and relative position tables
    not_norms:  everything but scales and biases of norms, as with torchvision's `--norm-weight-decay 0`

    Args:
        params: the parameters, or a tree of the same structure.
        rule: one of these names.
        exclude: regular expressions; parameters whose paths match one do not decay.

    Raises:
        ConfigError: for an unknown rule.
    """
    if rule not in DECAY_RULES:
        raise ConfigError(f"There is no rule {rule!r} for what decays: {suggest(rule, DECAY_RULES)}")
    scales: set[str] = set()
    if rule == "not_norms":
        paths = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        scales = {path.removesuffix("scale") for path in paths if path.endswith("scale")}

    def decays(key_path: Sequence[Any], x: Any) -> bool:
        path = path_string(key_path)
        module, name = path[: path.rfind("/") + 1], path[path.rfind("/") + 1 :]
        if matches(path, exclude):
            return False
        if rule == "kernels":
            return name == "kernel"
        if rule == "timm":
            return x.ndim - is_stacked(path) > 1 and not _NOT_DECAYED.search(path)
        return rule == "all" or not (name in ("scale", "bias") and module in scales)

    return jax.tree_util.tree_map_with_path(decays, params)

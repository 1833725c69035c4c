"""Paths of parameters, and which of them decay.

A path is the names on the way to a parameter, joined by "/": `layer1/0/conv1/kernel`. Where a model is built by a scan
over its blocks, their parameters are stacked along a first axis, and the number is missing: `blocks/attn/qkv/kernel`.

The backbone is the root of the tree, and other heads stand beside its children: `projector/0/kernel`,
`decoder/blocks/0/attn/qkv/kernel`. So rules that are written for the backbone hold whatever is trained with it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vision_jax.errors import ConfigError, suggest

Mask = Callable[[Any], Any] | Any

# Of the backbone, or of a head that has blocks of its own, such as a decoder.
_STACKED = re.compile(r"(?:[^/]+/)?blocks/(?!\d+/)")
_NOT_DECAYED = re.compile(r"(^|/)(bias|pos_embed|cls_token|dist_token|reg_token|relative_position_bias_table)$")
CLASSIFIER = r"^(head|head_dist|fc|classifier)/"  # of whatever family
DECAY_RULES = ("kernels", "all", "timm", "not_norms")


def path_string(path: Sequence[Any]) -> str:
    """Returns a path of `jax.tree_util` as a string, such as `blocks/0/attn/qkv/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def is_stacked(path: str) -> bool:
    """Returns whether the parameter is those of all blocks, stacked along the first axis."""
    return _STACKED.match(path) is not None


def block_paths(path: str, shape: Sequence[int]) -> list[str]:
    """Returns the path of a parameter of this shape; of stacked ones that of each block."""
    if (stacked := _STACKED.match(path)) is None:
        return [path]
    return [f"{stacked[0]}{i}/{path[stacked.end() :]}" for i in range(shape[0])]


def all_paths(params: Any) -> list[str]:
    """Returns the path of each parameter, or shape, of a tree; of stacked ones, that of each block."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [name for path, x in leaves for name in block_paths(path_string(path), x.shape)]


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Returns whether one of the regular expressions is found in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


def check_patterns(field: str, patterns: Sequence[str], paths: Sequence[str]) -> None:
    """Checks that each of the regular expressions is found in one of the paths.

    Raises:
        ConfigError: naming the field that has them, if one is not: a rule that holds for nothing is a misspelled one.
    """
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ConfigError(
                f"{field}: the pattern {pattern!r} matches no parameter; there are such as {', '.join(paths[:1])}."
            )


def decay_mask(params: Any, rule: str = "kernels", exclude: Sequence[str] = ()) -> Any:
    """Returns a tree of booleans: True for parameters that decay.

    kernels:    what multiplies the signal, by its name; norms, biases, positions, tokens and scales of layers do not
    all:        everything, as torch optimizers by themselves have it
    timm:       everything but vectors, biases, embeddings of positions, tokens and tables of relative positions
    not_norms:  everything but scales and biases of norms, as torchvision's `--norm-weight-decay 0` has it

    Args:
        params: the parameters, or a tree alike.
        rule: one of these names.
        exclude: regular expressions; a parameter where one is found in the path does not decay.

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

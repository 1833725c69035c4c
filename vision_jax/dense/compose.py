"""What detectors and segmenters share: a backbone of `vision_jax.models`, and what stands behind its maps.

The variables of the backbone are the root of those of the network, and `neck`, `head` and `aux_head` stand beside its
children, so that whatever reads an image model's parameters by their paths reads these alike.
"""

import dataclasses
import functools
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError, suggest
from vision_jax.models import intermediates, registry
from vision_jax.models.layers import INTERMEDIATES, ImageModel

Variables = Mapping[str, Any]
NECK, HEAD, AUX_HEAD = "neck", "head", "aux_head"
PARTS = (NECK, HEAD, AUX_HEAD)  # what stands beside the children of the backbone


class Trace:
    """One application of a network's parts: what it was given, and what it collects.

    Attributes:
        stats: the new batch statistics, laid out as the variables are.
        captured: by part, "" for the backbone, the activations that were captured.
    """

    def __init__(
        self, variables: Variables, train: bool, rngs: Mapping[str, jax.Array] | None, collections: Sequence[str] = ()
    ):
        self._variables, self._train, self._rngs = variables, train, dict(rngs or {})
        self._collections = list(collections)
        self.stats: dict[str, Any] = dict(variables.get("batch_stats", {}))
        self.captured: dict[str, Mapping[str, Any]] = {}

    def backbone(self, model: ImageModel, images: jax.Array, method: str, frozen_norms: bool) -> Any:
        """Returns the maps of the backbone."""
        variables: Variables = backbone_variables(self._variables)
        if self._train and frozen_norms:
            variables = _with_frozen_norms(variables)
        train = self._train and not frozen_norms
        maps, updates = self._apply(model, "", variables, images, train=train, method=method)
        self.stats |= updates.get("batch_stats", {})
        return maps

    def part(self, module: nn.Module, name: str, *arguments: Any) -> Any:
        """Returns what a part beside the backbone makes of its arguments."""
        variables = {key: self._variables.get(key, {}).get(name, {}) for key in ("params", "batch_stats")}
        result, updates = self._apply(module, name, variables, *arguments)
        if name in self.stats:
            self.stats[name] = updates.get("batch_stats", self.stats[name])
        return result

    def classifier(self, module: nn.Module, name: str, maps: Sequence[jax.Array]) -> jax.Array:
        """Returns the logits of a head that behaves otherwise in training."""
        return self.part(module, name, maps, self._train)

    def _apply(
        self, module: nn.Module, name: str, variables: Variables, *arguments: Any, **options: Any
    ) -> tuple[Any, Mapping[str, Any]]:
        # Parts have keys of their own: otherwise layers of the same path would drop the same units.
        number = ("", *PARTS).index(name)
        rngs = {kind: jax.random.fold_in(key, number) for kind, key in self._rngs.items()}
        mutable = [*(["batch_stats"] if self._train else []), *self._collections]
        result, updates = module.apply(variables, *arguments, rngs=rngs, mutable=mutable, **options)
        self.captured[name] = updates
        return result, updates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What detectors and segmenters share.

    Attributes:
        kind: the method; one of `DETECTOR_KINDS` or `SEGMENTER_KINDS`.
        backbone: without a classifier.
        backbone_name: by which `vision_jax.pretrained` knows it; "": by none.
        num_classes: logits of each anchor or pixel.
        frozen_norms: also in training, the backbone uses the running statistics of its norms, and its norms' scales and
            biases get no gradients, as torchvision's FrozenBatchNorm2d; and drops nothing. New layers are not affected.
    """

    kind: str
    backbone: ImageModel
    backbone_name: str = ""
    num_classes: int
    frozen_norms: bool = False

    def parts(self) -> dict[str, nn.Module]:
        """Returns what stands beside the backbone, by name."""
        raise NotImplementedError

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Returns initial `params` and `batch_stats`, float32.

        Args:
            key: of the initial values; the backbone's are those that it has by itself.
            images: (batch, height, width, channels), of which only the shape matters.

        Raises:
            ConfigError: if the backbone does not give the maps that are needed.
        """
        raise NotImplementedError

    def _run(self, trace: Trace, images: jax.Array) -> Any:
        raise NotImplementedError

    def apply(
        self, variables: Variables, images: jax.Array, *, train: bool, rngs: Mapping[str, jax.Array] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Applies the network.

        Args:
            variables: `params` and `batch_stats`, as `init` lays them out.
            images: (batch, height, width, channels), normalized.
            train: normalize by batch statistics (but see `frozen_norms`) and update the running ones; apply dropout.
            rngs: keys of what drops units in training, as {"dropout": key}.

        Returns:
            the outputs, and the new batch statistics; those of the variables where `train` is False.
        """
        trace = Trace(variables, train, rngs)
        return self._run(trace, images), trace.stats

    def apply_with_intermediates(
        self,
        variables: Variables,
        images: jax.Array,
        names: Sequence[str],
        *,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Applies the network, and returns some of its activations by name beside its outputs.

        The backbone's have the names of `vision_jax.models.intermediates`; those of what stands behind it begin with
        its own: `neck/p3` and so on of pyramids, `head/cls_logits`, `head/logits`, `aux_head/logits`, `head/aspp`.

        Raises:
            ConfigError: if there is no activation of one of the names.
        """
        collections = {*intermediates.collections(names), INTERMEDIATES}
        trace = Trace(variables, train, rngs, sorted(collections))
        outputs = self._run(trace, images)
        modules: dict[str, Any] = {"": self.backbone, **self.parts()}
        found = {}
        for name in names:
            part, _, rest = name.partition("/")
            if part not in self.parts() or not rest:
                part, rest = "", name
            found[name] = intermediates.pick(modules[part], trace.captured[part], [rest])[rest]
        return outputs, found

    def _init_part(self, module: nn.Module, name: str, key: jax.Array, *arguments: Any) -> tuple[Any, Variables]:
        key = jax.random.fold_in(key, 1 + PARTS.index(name))
        return module.init_with_output({"params": key, "dropout": key}, *arguments)

    def _joined(self, backbone: Variables, parts: Mapping[str, Variables]) -> dict[str, Any]:
        taken = sorted(set(backbone["params"]) & set(PARTS))
        if taken:
            raise ConfigError(
                f"The backbone has a part called {taken[0]!r}, as the network has: make it without a classifier "
                "(num_classes=0)."
            )
        found = {}
        for collection in ("params", "batch_stats"):
            beside = {name: part[collection] for name, part in parts.items() if collection in part}
            found[collection] = {**backbone.get(collection, {}), **beside}
        return found


def backbone_variables(variables: Variables) -> dict[str, Any]:
    """Returns `params` and `batch_stats` of the backbone alone."""
    return {
        collection: {name: tree for name, tree in variables.get(collection, {}).items() if name not in PARTS}
        for collection in ("params", "batch_stats")
    }


def norm_paths(variables: Variables) -> tuple[str, ...]:
    """Returns the paths of the parameters of the backbone's batch norms, such as layer1/0/bn1/scale.

    These are what `frozen_norms` keeps from being trained: an optimizer that decays them should leave them out.
    """
    found = []
    backbone = backbone_variables(variables)
    for path, _ in jax.tree_util.tree_leaves_with_path(backbone["params"]):
        keys = tuple(key.key for key in path)
        if _is_norm(backbone["batch_stats"], keys[:-1]):
            found.append("/".join(keys))
    return tuple(found)


def _is_norm(batch_stats: Any, modules: Sequence[str]) -> bool:
    """Returns whether the module of this path has statistics itself."""
    for name in modules:
        if not isinstance(batch_stats, Mapping) or name not in batch_stats:
            return False
        batch_stats = batch_stats[name]
    return isinstance(batch_stats, Mapping) and "mean" in batch_stats


def _with_frozen_norms(variables: Variables) -> Variables:
    """Returns variables of which those of batch norms get no gradients."""

    def frozen(path: Any, leaf: jax.Array) -> jax.Array:
        is_norm = _is_norm(variables["batch_stats"], [key.key for key in path[:-1]])
        return jax.lax.stop_gradient(leaf) if is_norm else leaf

    return {**variables, "params": jax.tree_util.tree_map_with_path(frozen, variables["params"])}


def method_of(
    name: str, backbone: Any, table: Mapping[str, Any], kinds: tuple[str, ...], what: str
) -> tuple[str, Any, Mapping[str, Any]]:
    """Returns the method, the backbone and the defaults of a name."""
    if name in table:
        kind, own, defaults = table[name]
        if backbone is not None:
            raise ConfigError(
                f"{name} has the backbone {own}, and backbone is set too: for another one, the name is {kind}."
            )
        return kind, own, defaults
    if name not in kinds:
        raise ConfigError(f"There is no {what} {name!r}: {suggest(name, [*table, *kinds])}")
    if backbone is None:
        raise ConfigError(f"{name} is a method, and there is no backbone: set backbone to a model, such as resnet50.")
    return name, backbone, {}


def make_backbone(backbone: str | ImageModel, dtype: Any, options: Mapping[str, Any]) -> tuple[ImageModel, str]:
    """Returns the module without a classifier, and its name."""
    if isinstance(backbone, str):
        if "zero_init_last" in registry.option_names(backbone):  # which torchvision's networks do not do
            options = {"zero_init_last": False, **options}
        model = registry.create_model(backbone, dtype=dtype or jnp.float32, **{**options, "num_classes": 0})
        if not isinstance(model, ImageModel):
            raise ConfigError(f"{backbone} has no maps of features: take another backbone.")
        return model, backbone
    if options:
        raise ConfigError(f"{sorted(options)[0]} is set, and the backbone is a module: set it where that is made.")
    return backbone.clone(num_classes=0, dtype=backbone.dtype if dtype is None else jnp.dtype(dtype)), ""


def check_classes(num_classes: Any) -> None:
    """Raises ConfigError if this is no number of classes."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, numbers.Integral) or num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes!r}: give a whole number of at least 1.")


@functools.lru_cache(maxsize=64)
def map_shapes(model: ImageModel, method: str) -> Any:
    """Returns the shapes of a backbone's maps."""
    size = getattr(model, "img_size", None) or 224
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)

    def maps(images: jax.Array) -> Any:
        return model.init_with_output(jax.random.key(0), images, train=False, method=method)[0]

    return jax.eval_shape(maps, images)

"""The smallest model of every class in the registry, made smaller still, for what is promised of all of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax.commands import models as models_main
from vision_jax.models import registry

# Of those that cannot take 32 pixels.
_SIZES = {"alexnet": 63, "inception_v3": 75, "lenet5": 28, "vit_pico_patch7_28": 28}


@functools.cache
def names() -> list[str]:
    """Returns the name of the smallest model of each class: of those with facts, which models of tests lack."""
    facts = models_main.read_facts()

    def size(name: str) -> tuple[bool, int]:
        return (name not in facts, facts.get(name, {"parameters": 0})["parameters"])

    smallest: dict[type, str] = {}
    for name in vision_jax.list_models():
        kind = type(registry.entry(name).create())
        if kind not in smallest or size(name) < size(smallest[kind]):
            smallest[kind] = name
    return sorted(name for kind, name in smallest.items() if kind.__module__.startswith("vision_jax."))


def cases() -> list[Any]:
    """Returns the names as cases of a test, of which those that trace slowly are left to the exhaustive run."""
    slow = ("googlenet", "inception_v3", "shufflenet_v2_x0_5")
    return [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in slow)) for name in names()]


def create(name: str, **options: Any) -> tuple[Any, int]:
    """Returns a model of the family with few blocks and seven classes, and the height and width of its images."""
    takes, size = registry.option_names(name), _SIZES.get(name, 32)
    if "depths" in takes:
        options.setdefault("depths", (1,) * len(registry.entry(name).create().depths))
    if "depth" in takes:
        options.setdefault("depth", 10 if name.startswith("wrn") else 2)
    if "stages" in takes:  # one block of each stage
        options.setdefault("stages", tuple(stage[:1] for stage in registry.entry(name).create().stages))
    if "img_size" in takes:
        size = options.setdefault("img_size", size)
    return vision_jax.create_model(name, **{"num_classes": 7, **options}), size


@functools.cache
def shapes(name: str) -> tuple[dict[str, Any], jax.ShapeDtypeStruct]:
    """Returns those of the variables and of two images of a model as `create` makes it by default."""
    return abstract(*create(name))


def abstract(model: Any, size: int, batch: int = 2) -> tuple[dict[str, Any], jax.ShapeDtypeStruct]:
    """Returns the shapes of a model's variables as `init` makes them, and of images."""
    images = jax.ShapeDtypeStruct((batch, size, size, model.in_channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images), images


def random(tree: Any, seed: int = 0) -> Any:
    """Returns a tree of numbers for one of shapes: kernels that keep the scale, and whatever else around one half."""
    rng = np.random.default_rng(seed)

    def value(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(x.shape) > 1:
            return rng.normal(0, np.sqrt(1 / np.prod(x.shape[:-1])), x.shape).astype(np.float32)
        return rng.uniform(0.3, 0.7, x.shape).astype(np.float32)

    return jax.tree.map(value, tree)

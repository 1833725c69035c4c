"""Explanations against explain.*.npz: one test for each array; see README.md."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import common, networks

from vision_jax.explain import Network, cam, curves, gradients, occlusion, rollout
from vision_jax.models.intermediates import apply_with_intermediates

OPTIONS = {"sigma", "samples", "steps", "window", "stride", "step", "rank"}
# Of the arrays here, which take minutes on a CPU, the others are left to the exhaustive run.
ALWAYS = {
    "explain.resnet18-64.npz": r"target|logits|gradcam.*/layer4",
    "explain.vit_tiny-64.npz": r"(?!curve|auc|smoothgrad).*|.*/deletion_black",
}


class Case:
    """A file: a network, images of it, and options."""

    def __init__(self, path: pathlib.Path):
        self.file = np.load(path)
        self.meta = json.loads(str(self.file["meta"]))
        unknown = self.meta["options"].keys() - OPTIONS
        assert not unknown, f"there is no reader for the options {unknown}"
        self.images = networks.pictures(self.meta["images"]).astype(np.float32)
        self.targets = jnp.asarray(self.file["target"])
        self.model, self.variables = networks.load(path.parent, self.meta["model"], scan=True)

    def option(self, name: str) -> Any:
        value = self.meta["options"][name]
        return tuple(value) if isinstance(value, list) else value

    def run(self, function: Callable[..., Any], *arguments: Any, loops: bool = False) -> Any:
        """Returns a function of the network, the images, and whatever else is given.

        Args:
            function, arguments: what is compiled and called.
            loops: optimize what is compiled: what other tests leave out saves more time in loops than it takes.
        """

        def call(variables: Any, images: jax.Array, *arguments: Any) -> Any:
            return function(Network(self.model, variables, networks.MEAN, networks.STD), images, *arguments)

        level = {"xla_backend_optimization_level": 3 if loops else 0}
        program = jax.jit(call, compiler_options=level)
        return jax.tree.map(np.asarray, program(self.variables, self.images, *arguments))


load = functools.cache(Case)


@functools.cache
def logits(case: Case) -> np.ndarray:
    return case.run(lambda network, images: network.apply(images))


@functools.cache
def gradient(case: Case) -> np.ndarray:
    return case.run(lambda network, *given: gradients.gradient(network.apply, *given), case.targets)


@functools.cache
def smoothgrad(case: Case, squared: bool) -> np.ndarray:
    shape = np.moveaxis(case.images, -1, 1).shape
    names = [f"noise/{case.meta['model']}/{number}" for number in range(case.option("samples"))]
    noise = np.stack([networks.to_nhwc(common.normal(name, shape)) for name in names])

    def run(network: Network, images: jax.Array, targets: jax.Array, noise: jax.Array) -> jax.Array:
        given = {"sigma": case.option("sigma"), "squared": squared, "noise": noise}
        return gradients.smoothgrad(network.apply, images, targets, **given)

    return case.run(run, case.targets, noise, loops=True)


@functools.cache
def integrated(case: Case) -> np.ndarray:
    def run(network: Network, images: jax.Array, targets: jax.Array) -> jax.Array:
        return gradients.integrated_gradients(network.apply, images, targets, steps=case.option("steps"))

    return case.run(run, case.targets, loops=True)


def baseline_score(case: Case) -> np.ndarray:
    return of_targets(case, case.run(lambda network, images: network.apply(jnp.zeros_like(images))))


def of_targets(case: Case, values: np.ndarray) -> np.ndarray:
    return values[np.arange(len(values)), case.targets]


def occluded(case: Case) -> np.ndarray:
    def run(network: Network, images: jax.Array, targets: jax.Array) -> jax.Array:
        sizes = {name: case.option(name) for name in ("window", "stride")}
        return occlusion.occlusion(network.apply, images, targets, **sizes)

    return case.run(run, case.targets, loops=True)


# Names of layers that timm has others for: a norm with its activation.
LAYERS = {"bn2": "conv_head", "act1": "stem"}


@functools.cache
def cams(case: Case, layer: str) -> dict[str, np.ndarray]:
    layer = LAYERS.get(layer, layer)

    def run(network: Network, images: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        given, shape = (network, images, targets, layer), images.shape[1:]
        plain, plus = cam.gradcam(*given), cam.gradcam_pp(*given)
        return {
            "gradcam": plain,
            "gradcam_full": cam.to_image(plain, shape),
            "gradcam_pp": plus,
            "gradcam_pp_full": cam.to_image(plus, shape),
            "gradcam_pp_eps0": cam.gradcam_pp(*given, epsilon=0.0),
        }

    return case.run(run, case.targets)


@functools.cache
def attention(case: Case, block: int) -> np.ndarray:
    def run(network: Network, images: jax.Array) -> jax.Array:
        name = f"blocks/{block}/attn"
        _, found = apply_with_intermediates(network.model, network.variables, network.normalize(images), [name])
        return found[name][:, :, 0]

    return case.run(run)


@functools.cache
def rollouts(case: Case) -> dict[str, np.ndarray]:
    """All that the file has, by what their names say."""
    options = {}
    for how in [key.removeprefix("rollout/") for key in case.file.files if key.startswith("rollout/")]:
        if parts := re.fullmatch(r"(mean|max|min)?[_/-]?(?:discard([\d.]+))?", how):
            options[how] = {"fusion": parts[1] or "mean", "discard": float(parts[2] or 0)}

    def run(network: Network, images: jax.Array) -> dict[str, jax.Array]:
        return {how: rollout.rollout(network, images, **given) for how, given in options.items()}

    return case.run(run)


@functools.cache
def curve(case: Case, kind: str) -> curves.Curve:
    images = case.images
    rank = case.meta["options"].get("rank", f"rank/{case.meta['model']}")
    maps = np.broadcast_to(ranking_map(rank, images.shape[1]), images.shape[:3])
    function = {"deletion": curves.deletion, "insertion": curves.insertion}[kind.partition("_")[0]]
    baseline = {"black": 0.0, "mean": np.float32(networks.MEAN), "blur": curves.blur(images)}[kind.partition("_")[2]]

    def run(network: Network, images: jax.Array, maps: jax.Array, baseline: jax.Array) -> curves.Curve:
        return function(network.apply, images, maps, step=case.option("step"), baseline=baseline)

    return case.run(run, maps, baseline, loops=True)


def ranking_map(name: str, size: int) -> np.ndarray:
    coarse = np.kron(common.normal(f"{name}/coarse", (8, 8)), np.ones((size // 8, size // 8), np.float32))
    return coarse + np.float32(0.125) * common.normal(f"{name}/fine", (size, size))


def best_and_second(case: Case) -> np.ndarray:
    order = np.argsort(-logits(case))
    return order[np.arange(len(order)), np.arange(len(order))]


def nchw(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values, -1, 1)


# What an array is compared with, by its name.
READERS: dict[str, Callable[..., np.ndarray]] = {
    "target": best_and_second,
    "logits": logits,
    "gradient": lambda case: nchw(gradient(case)),
    "saliency": lambda case: np.abs(gradient(case)).max(-1),
    "gradient_x_input": lambda case: (gradient(case) * case.images).sum(-1),
    "smoothgrad": lambda case: nchw(smoothgrad(case, False)),
    "smoothgrad_sq": lambda case: smoothgrad(case, True).sum(-1),
    "integrated": lambda case: nchw(integrated(case)),
    "integrated/sum": lambda case: integrated(case).astype(np.float64).sum((1, 2, 3)),
    "integrated/score": lambda case: of_targets(case, logits(case)),
    "integrated/baseline_score": baseline_score,
    "occlusion": occluded,
    r"(gradcam(?:_pp)?(?:_full|_eps0)?)/(.+)": lambda case, kind, layer: cams(case, layer)[kind],
    r"attention_block(\d+)_cls": lambda case, block: attention(case, int(block)),
    "rollout/(.+)": lambda case, how: rollouts(case)[how],
    "blur_kernel": lambda case: np.outer(curves.blur_kernel(), curves.blur_kernel()),
    "curve/((?:deletion|insertion)_(?:black|mean|blur))": lambda case, kind: curve(case, kind).scores,
    "auc/((?:deletion|insertion)_(?:black|mean|blur))": lambda case, kind: curve(case, kind).auc,
}


def cases() -> list[Any]:
    given = bool(os.environ.get("VISION_JAX_REFERENCES"))

    def case(path: pathlib.Path, key: str) -> Any:
        always = given or re.fullmatch(ALWAYS.get(path.name, ""), key)
        return pytest.param(path, key, id=f"{path.name}:{key}", marks=() if always else pytest.mark.exhaustive)

    return [
        case(path, key)
        for path in common.files("eval", "explain.*.npz")
        for key in np.load(path).files
        if key != "meta" and not key.endswith("/step")
    ]


@pytest.mark.parametrize(("path", "key"), cases())
def test_explanation(path: pathlib.Path, key: str):
    found = [(read, match) for name, read in READERS.items() if (match := re.fullmatch(name, key))]
    assert found, f"there is no reader for {key}"
    case = load(path)
    (read, match), *_ = found
    expected = common.unpack(case.file, key)
    tolerance = case.meta["tolerance"].get(key, 1e-6)
    common.near_largest(read(case, *match.groups()), expected, tolerance, floor=0)

"""Activations by name, of every family; and classifiers in float32."""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

import vision_jax.models
from vision_jax.errors import ConfigError
from vision_jax.models import intermediates
from vision_jax.models.intermediates import apply_with_intermediates

# On CPUs, optimizing a program takes longer than running it once.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# The logits of these do not come from the pooled features.
BESIDE = ("deit_tiny_distilled_patch16_224", "squeezenet1_1")


def without_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the models what they would be without names for activations."""
    for module in pkgutil.iter_modules(vision_jax.models.__path__, "vision_jax.models."):
        family = importlib.import_module(module.name)
        for name, nothing in (("capture", lambda module, x, *_, **__: x), ("capture_beside", lambda *_: None)):
            if hasattr(family, name):
                monkeypatch.setattr(family, name, nothing)


def programs(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, tuple[str, list[bool]]]:
    """Returns, for each array that a function gives by name, the program that computes it alone, and what it uses."""
    closed, results = jax.make_jaxpr(function, return_shape=True)(*arguments)
    jaxpr = closed.jaxpr  # constants as arguments, so that those of the rest have no names in the text
    inputs, debug_info = [*jaxpr.constvars, *jaxpr.invars], jaxpr.debug_info.with_unknown_names()
    jaxpr = jaxpr.replace(constvars=[], invars=inputs, debug_info=debug_info)
    found = {}
    for i, name in enumerate(sorted(results)):
        alone, used = partial_eval.dce_jaxpr(jaxpr, [i == j for j in range(len(jaxpr.outvars))])
        found[name] = (str(alone), used[len(closed.consts) :])
    return found


@functools.cache
def activation_shapes(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    model, size = families.create(name)
    return intermediates.shapes(model, (size, size, model.in_channels), 2)


@pytest.mark.parametrize("name", families.cases())
def test_names_cost_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    """A step, and the variables, are what they were if activations had no names."""
    model, _ = families.create(name)
    variables, images = families.shapes(name)
    assert set(variables) <= {"params", "batch_stats"}

    def train(variables: Any, images: Any) -> Any:
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    program = str(jax.make_jaxpr(train)(variables, images))
    without_captures(monkeypatch)
    assert str(jax.make_jaxpr(train)(variables, images)) == program


@pytest.mark.parametrize("name", families.cases())
def test_activations_are_those_of_the_forward_pass(name: str):
    """Of each family, as programs: of what a function gives, all that is not needed for it is left out.

    The logits are computed as without names; the maps by stride, the features, and the logits that the classifier makes
    of them, are among the activations; and the logits depend on each of these.
    """
    model, _ = families.create(name)
    variables, images = families.shapes(name)
    shapes = activation_shapes(name)
    assert {model.gradcam_layer, "features", "logits"} <= shapes.keys()
    assert shapes["logits"].shape == (2, 7)

    def others(variables: Any, images: Any) -> dict[str, Any]:
        run = functools.partial(model.apply, variables, train=False)
        maps, features = run(images, method="feature_maps"), run(images, method="features")
        results = {"logits": run(images), "features": features, **{f"map {stride}": x for stride, x in maps.items()}}
        return results if name in BESIDE else {**results, "head": run(features, method="classify")}

    def activations(variables: Any, images: Any) -> dict[str, Any]:
        logits, found = apply_with_intermediates(model, variables, images, list(shapes))
        located = {key: x for key, x in found.items() if x.ndim in (3, 4)}
        maps = {f"map {key}": intermediates.as_map(model, x, images.shape[1:]) for key, x in located.items()}
        return {"result": logits, **found, **maps}

    expected, actual = (
        {key: program for key, (program, _) in programs(function, variables, images).items()}
        for function in (others, activations)
    )
    assert actual["result"] == actual["logits"] == expected["logits"]
    assert actual["features"] == expected["features"]
    assert name in BESIDE or actual["logits"] == expected["head"]
    missing = [key for key, program in expected.items() if key.startswith("map") and program not in actual.values()]
    assert not missing

    perturbed = {key: x for key, x in shapes.items() if not (name in BESIDE and key == "features")}

    def perturbing(perturbations: Any, variables: Any, images: Any) -> dict[str, Any]:
        return {"": apply_with_intermediates(model, variables, images, [], perturbations=perturbations)[0]}

    used = programs(perturbing, perturbed, variables, images)[""][1]
    assert dict(zip(sorted(perturbed), used, strict=False)) == dict.fromkeys(perturbed, True)


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_patch16_224", *BESIDE])
def test_gradients_with_respect_to_activations(name: str):
    """That of a perturbation is what the score changes by along it; the classifier's, that of its kernel."""
    model, _ = families.create(name)
    layer, shapes = model.gradcam_layer, activation_shapes(name)
    variables, images = families.random(families.shapes(name))
    weights = np.random.default_rng(1).normal(size=(2, 7)).astype(np.float32)
    perturbed = [layer] if name in BESIDE else [layer, "features"]

    @quick
    def run(perturbations: dict[str, jax.Array]) -> Any:
        def score(perturbations: dict[str, jax.Array]) -> Any:
            logits, found = apply_with_intermediates(model, variables, images, [layer], perturbations=perturbations)
            return (logits * weights).sum(), found[layer]

        return jax.value_and_grad(score, has_aux=True)(perturbations)

    zeros = {key: np.zeros(shapes[key].shape, np.float32) for key in perturbed}
    (_, activation), gradients = run(zeros)
    direction = gradients[layer] / jnp.abs(gradients[layer]).mean()
    step = 1e-3 * float(jnp.abs(activation).mean())
    ahead, behind = (run({**zeros, layer: sign * step * direction})[0][0] for sign in (1, -1))
    np.testing.assert_allclose((ahead - behind) / (2 * step), (gradients[layer] * direction).sum(), rtol=1e-2)
    if name not in BESIDE:
        kernel = next(variables["params"][key]["kernel"] for key in ("fc", "head") if key in variables["params"])
        np.testing.assert_allclose(gradients["features"], weights @ kernel.T, rtol=1e-5, atol=1e-6)


def vit(**options: Any) -> tuple[Any, dict[str, Any]]:
    """A small vision transformer, and variables of it as they are without a scan."""
    model, size = families.create("deit_tiny_patch16_224", depth=3, embed_dim=32, num_heads=2, **options)
    plain, _ = families.create("deit_tiny_patch16_224", depth=3, embed_dim=32, num_heads=2)
    return model, families.random(families.abstract(plain, size))


def test_scan_and_remat_change_nothing():
    plain, (variables, images) = vit()
    model, _ = vit(scan_blocks=True, remat="full")
    shapes = intermediates.shapes(plain, images.shape[1:], 2)
    assert list(intermediates.shapes(model, images.shape[1:], 2).items()) == list(shapes.items())
    blocks = variables["params"]["blocks"]
    stacked = jax.tree.map(lambda *x: np.stack(x), *(blocks[str(i)] for i in range(3)))
    perturbed = ["blocks/0", "blocks/2/norm1", "blocks/1/attn", "norm", "patch_embed"]
    zeros = {name: jnp.zeros(shapes[name].shape) for name in perturbed}

    def run(model: Any, variables: Any) -> Any:
        def score(perturbations: Any) -> Any:
            logits, found = apply_with_intermediates(model, variables, images, [*shapes], perturbations=perturbations)
            return jnp.square(logits).sum(), found

        return quick(jax.grad(score, has_aux=True))(zeros)

    gradients, found = run(plain, variables)
    others, others_found = run(model, {"params": {**variables["params"], "blocks": stacked}})
    for name in shapes:
        np.testing.assert_allclose(others_found[name], found[name], rtol=2e-5, atol=1e-5)
    for name in perturbed:
        assert np.abs(gradients[name]).max() > 0
        np.testing.assert_allclose(others[name], gradients[name], rtol=1e-4, atol=1e-5)


def test_attention_is_the_softmax_of_products():
    """Of what the norm before it gives; it is there for who asks alone."""
    model, (variables, images) = vit()
    run = functools.partial(apply_with_intermediates, model, names=["blocks/1/attn", "blocks/1/norm1"])
    _, found = quick(run)(variables, images)
    weights = variables["params"]["blocks"]["1"]["attn"]["qkv"]
    values = found["blocks/1/norm1"] @ weights["kernel"] + weights["bias"]
    query, key, _ = np.moveaxis(values.reshape(2, 5, 3, 2, 16), 2, 0)
    products = np.einsum("bqhf,bkhf->bhqk", query, key) / 4
    products = np.exp(products - products.max(-1, keepdims=True))
    np.testing.assert_allclose(found["blocks/1/attn"], products / products.sum(-1, keepdims=True), rtol=1e-4, atol=1e-5)
    apply = functools.partial(model.apply, train=False, mutable=["intermediates"])
    updates = jax.eval_shape(apply, variables, images)[1]
    assert updates.keys() == {"intermediates"}
    with pytest.raises(ConfigError, match="no intermediate 'blocks/1/attn'"):
        intermediates.pick(model, updates, ["blocks/1/attn"])


def test_shifted_windows_have_an_axis_of_their_own():
    model, size = families.create("swin_tiny_patch4_window7_224", depths=(2,), num_heads=(3,), img_size=56)
    variables, images = families.random(families.abstract(model, size))
    name = "layers/0/blocks/1/attn"
    _, found = quick(functools.partial(apply_with_intermediates, model, names=[name]))(variables, images)
    assert found[name].shape == (2, 4, 3, 49, 49)
    np.testing.assert_allclose(found[name].sum(-1), 1, rtol=1e-5)
    # The last window holds what was at two edges: positions of different ones do not see each other.
    assert found[name][:, 3, :, 0, -1].max() < 1e-6
    assert found[name][:, 0].min() > 0


def test_a_training_step_takes_activations_and_statistics():
    model, _ = families.create("resnet18")
    variables, images = families.shapes("resnet18")
    mutable = ["batch_stats", *intermediates.collections(["layer3", "layer4/0"])]
    logits, updates = jax.eval_shape(lambda v, x: model.apply(v, x, train=True, mutable=mutable), variables, images)
    assert jax.tree.map(jnp.shape, updates["batch_stats"]) == jax.tree.map(jnp.shape, variables["batch_stats"])
    found = intermediates.pick(model, updates, ["layer3", "layer4/0"])
    assert {name: x.shape for name, x in found.items()} == {"layer3": (2, 2, 2, 256), "layer4/0": (2, 1, 1, 512)}
    run = functools.partial(apply_with_intermediates, model, names=["layer3"], train=True)
    again, found = jax.eval_shape(lambda v, x: run(variables=v, images=x), variables, images)
    assert (again.shape, found["layer3"].shape) == (logits.shape, (2, 2, 2, 256))


def test_wrong_names():
    model, _ = families.create("squeezenet1_1")

    def run(names: list[str], perturbations: Any) -> None:
        function = functools.partial(apply_with_intermediates, model, names=names)
        jax.eval_shape(lambda v, x: function(v, x, perturbations=perturbations), *families.shapes("squeezenet1_1"))

    with pytest.raises(ConfigError, match="no intermediate 'features/112': did you mean features/12"):
        run(["features/112"], None)
    with pytest.raises(ConfigError, match="no intermediate 'stem'"):
        run([], {"stem": jnp.zeros(())})
    with pytest.raises(ConfigError, match="do not depend on 'features': perturb a layer before it"):
        run([], {"features": jnp.zeros((2, 512))})
    with pytest.raises(ValueError, match="has no positions"):
        intermediates.as_map(model, jnp.zeros((2, 512)), (32, 32))


@pytest.mark.parametrize("name", families.cases())
def test_classifiers_compute_in_float32(name: str):
    """A bfloat16 model's classifier sees and makes float32; where it is a large part of the model, it makes it."""
    model, _ = families.create(name, dtype="bfloat16")
    variables, images = families.shapes(name)
    if name in BESIDE:
        program = str(jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, images))
        found = re.findall(r"(\w+)\[[\d,]*7\] = dot_general", program)
        assert found == ["f32"] * (1 if name == "squeezenet1_1" else 2)
        return
    features = activation_shapes(name)["features"]
    assert features.dtype == jnp.float32
    classify = functools.partial(model.apply, train=False, method="classify")
    assert "bf16" not in str(jax.make_jaxpr(classify)(variables, features))


@pytest.mark.parametrize("name", ["lenet5", *BESIDE])
def test_logits_of_bfloat16_models_have_more_than_eight_bits(name: str):
    """Few of them are numbers of bfloat16, and of a thousand classes few tie, of which a third would."""
    model, size = families.create(name, dtype="bfloat16", num_classes=1000)
    variables, images = families.random(families.abstract(model, size))
    logits = np.asarray(quick(functools.partial(model.apply, train=False))(variables, images))
    rounded = np.asarray(jnp.asarray(logits).astype(jnp.bfloat16).astype(jnp.float32))
    for exact, row in zip(logits, rounded, strict=True):
        kept = exact != 0  # SqueezeNet's are rectified
        assert (exact == row)[kept].mean() < 0.02
        assert len(np.unique(exact[kept])) > 0.95 * kept.sum()
        assert len(np.unique(row[kept])) < 0.75 * kept.sum()

"""Self-supervised methods against losses.npz and heads.npz: one test for each case; see README.md."""

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references.common import Case, near_largest, read_cases, seeded

import vision_jax
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives.simclr import nt_xent

LOSSES, HEADS = read_cases("ssl", "losses*.npz"), read_cases("ssl", "heads*.npz")
LOSS, GRADIENT, HEAD = 1e-5, {"barlow_twins": 1e-4, "vicreg": 1e-4}, 2e-5

# What a method makes of the inputs of a case: its loss, and what else there is to be compared, by name.
Found = tuple[jax.Array, dict[str, Any]]


def simclr_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    loss = nt_xent(x["a"], x["b"], about["temperature"])[0].mean()
    return loss, {"loss_code": 2 * loss}


LOSS_OF: dict[str, Callable[[dict[str, Any], dict[str, jax.Array]], Found]] = {
    "simclr": simclr_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str):
    case = LOSSES[name]
    about = case.about
    inputs = {key: jnp.asarray(case[key]) for key in about["inputs"]}
    online = {key: inputs[key].astype(jnp.float32) for key in about["online"]}
    method = LOSS_OF[about["method"]]

    def loss(online: dict[str, jax.Array]) -> Found:
        return method(about, {**inputs, **online})

    (value, others), grads = jax.value_and_grad(loss, has_aux=True)(online)
    assert float(value) == pytest.approx(float(case["loss"]), rel=LOSS)
    for key, grad in grads.items():
        near_largest(grad, case[f"grad/{key}"], GRADIENT.get(about["method"], 1e-5))
    compared = {"loss", *inputs, *(f"grad/{key}" for key in grads)}
    for key, found in others.items():
        near_largest(found, case[key], HEAD)
        compared.add(key)
    assert compared == set(case.names())


def setup() -> Setup:
    return Setup(vision_jax.create_model("lenet5", num_classes=0), (28, 28, 1), (0.5,), (0.5,))


def widths(about: dict[str, Any]) -> list[int]:
    """The output widths of the linear layers of a stack."""
    return [about["state"][f"{layer[1]}.weight"][0] for layer in about["layers"] if layer[0] == "linear"]


def simclr_head(about: dict[str, Any]) -> nn.Module:
    *hidden, out = widths(about)
    return OBJECTIVES["simclr"](setup=setup(), hidden=tuple(hidden), out=out).heads["projector"]  # type: ignore[call-arg]


HEAD_OF: dict[tuple[str, str], Callable[[dict[str, Any]], nn.Module]] = {
    ("simclr", "projector"): simclr_head,
}


def head_variables(case: Case) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """The variables of a stack of layers; and by the official name of each tensor, the module and leaf that it is."""
    leaves = {"linear": {"weight": "kernel", "bias": "bias"}}
    leaves["batch_norm"] = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    state, places = case.state(), {}
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for number, layer in enumerate(case.about["layers"]):
        for last, leaf in leaves.get(layer[0], {}).items():
            name = f"{layer[1]}.{last}" if len(layer) > 1 else ""
            if name in state:
                collection = "batch_stats" if last.startswith("running") else "params"
                value = state[name].T if leaf == "kernel" else state[name]
                variables[collection].setdefault(str(number), {})[leaf] = jnp.asarray(value)
                places[name] = (str(number), leaf)
    return variables, places


@pytest.mark.parametrize("name", HEADS)
def test_head(name: str):
    case = HEADS[name]
    about = case.about
    head = HEAD_OF[about["method"], about["what"].split()[0].strip(";(")](about)
    variables, places = head_variables(case)
    x, cotangent = case.seeded("x"), case.seeded("cotangent")
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), x, train=False))

    # What the official module has as a constant is no parameter here.
    for key in about.get("constants", {}):
        module, leaf = places.pop(key)
        assert not variables["params"][module].pop(leaf).any()
        if not variables["params"][module]:
            variables["params"].pop(module)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, shapes["params"])

    def apply(params: Any, x: Any) -> Any:
        return head.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])

    out, updates = apply(variables["params"], x)
    near_largest(out, case["out_train"], HEAD)
    near_largest(head.apply(variables, x, train=False), case["out_eval"], HEAD)
    running = {key.removeprefix("running/") for key in case.names() if key.startswith("running/")}
    for key in running:
        module, leaf = places[key]
        near_largest(updates["batch_stats"][module][leaf], case[f"running/{key}"], HEAD)

    grads, of_x = jax.grad(lambda params, x: (apply(params, x)[0] * cotangent).sum(), (0, 1))(variables["params"], x)
    near_largest(of_x, case["grad/x"], HEAD)
    largest = max(norm for norm, _ in about["gradients"].values())
    for key, (norm, product) in about["gradients"].items():
        if key not in places:
            continue
        module, leaf = places[key]
        grad = np.asarray(grads[module][leaf], np.float64)
        grad = grad.T if leaf == "kernel" else grad
        probe = seeded(zlib.crc32(f"probe of {key}".encode()), grad.shape)
        assert np.linalg.norm(grad) == pytest.approx(norm, abs=HEAD * largest)
        assert (grad * probe).sum() == pytest.approx(product, abs=HEAD * largest * np.sqrt(grad.size))
    assert {"out_train", "out_eval", "grad/x", *(f"running/{key}" for key in running)} == set(case.names())

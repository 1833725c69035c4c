"""Heads: those of the objectives, in training, in evaluation, and their gradients."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from references.common import Case, check_summaries, near_largest

import vision_jax
from vision_jax.objectives import OBJECTIVES, Setup

HEAD = 2e-5
LEAVES = {
    "linear": {"weight": "kernel", "bias": "bias"},
    "weight_norm": {"weight_v": "weight_v", "weight_g": "weight_g"},
    "batch_norm": {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"},
}


@dataclasses.dataclass
class Stack:
    """All heads of an objective as one module."""

    objective: Any

    def init(self, key: jax.Array, x: Any, *, train: bool) -> Any:
        collections: dict[str, Any] = {"params": {}, "batch_stats": {}}
        for name, head in self.objective.heads.items():
            made = head.init(key, x, train=train)
            for collection, values in made.items():
                collections[collection][name] = values
            x = head.apply(made, x, train=train)
        return collections

    def apply(self, variables: Any, x: Any, *, train: bool, mutable: Any = None) -> Any:
        out, stats = self.objective.apply_heads(variables["params"], variables["batch_stats"], x, train=train)
        return out if mutable is None else (out, {"batch_stats": stats})


def objective(name: str, **options: Any) -> Any:
    model = vision_jax.create_model("lenet5", num_classes=0)
    return OBJECTIVES[name](setup=Setup(model, (28, 28, 1), (0.5,), (0.5,)), **options)


def head_of(about: dict[str, Any]) -> nn.Module:
    """The head of an objective that a case is of, in the case's widths."""
    method, what = about["method"], about.get("what", "")
    widths = [about["state"][f"{layer[1]}.weight"][0] for layer in about["layers"] if layer[0] == "linear"]
    *hidden, out = widths
    several = {"hidden": tuple(hidden), "out": out}
    one = {"hidden": hidden[0] if hidden else 0, "out": out}
    norms = [layer for layer in about["layers"] if layer[0] == "batch_norm"]
    part = "predictor" if "predictor" in what else "projector"
    match method, part:
        case (("simclr" | "barlow_twins" | "vicreg"), _):
            return objective(method, **several).heads["projector"]
        case "moco_v2", _:
            return objective("mocov2", **one).heads["projector"]
        case "byol", _:
            return objective("byol", **one).heads[part]
        case "simsiam", "projector":
            return objective("simsiam", **several).heads[part]
        case "simsiam", _:
            return objective("simsiam", out=out, bottleneck=hidden[0]).heads[part]
        case "moco_v3", "projector":
            return objective("mocov3", **several).heads[part]
        case "moco_v3", _:
            options = {"predictor_hidden": hidden[0], "out": out, "predictor_norm": len(norms) == 2}
            return objective("mocov3", **options).heads[part]
        case "dino", _:
            options = {**several, "bottleneck": out, "out": about["state"]["last_layer.weight_v"][0]}
            options |= {"head_norm": about["use_bn"], "norm_last_layer": about["norm_last_layer"]}
            return objective("dino", **options).heads["projector"]
        case "swav", _:
            return Stack(objective("swav", hidden=hidden[0], out=hidden[1], prototypes=out))  # type: ignore[return-value]
    raise AssertionError(f"There is no reader for heads of {method}.")


def path_of(about: dict[str, Any], number: int, name: str) -> str:
    """The module that a layer is, given its place in the stack and its official name."""
    if about["method"] == "dino":
        return name if name == "last_layer" else f"mlp/{number}"
    if about["method"] == "swav":
        return name if name == "prototypes" else f"projector/{number}"
    return str(number)


def at(tree: Any, path: str) -> Any:
    """The node of nested dicts at a path."""
    return functools.reduce(lambda node, name: node.setdefault(name, {}), path.split("/"), tree)


def head_variables(case: Case) -> tuple[dict[str, Any], dict[str, tuple[str, str]], dict[str, np.ndarray]]:
    """The variables of a stack of layers; by the official name of each tensor, the module and leaf that it is; and what
    official running means are larger by: a bias that is never trained is here a part of them.
    """
    about, state = case.about, case.state()
    places: dict[str, tuple[str, str]] = {}
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    offset: Any = 0.0
    offsets = {}
    for number, layer in enumerate(about["layers"]):
        for last, leaf in LEAVES.get(layer[0], {}).items():
            name = f"{layer[1]}.{last}"
            if name not in state:
                continue
            value = state.pop(name)
            if last == "running_mean":
                value, offsets[name], offset = value - offset, offset, 0.0
            if name in about["frozen"] and last == "bias":
                offset = value
            elif name in about.get("constants", {}):
                # What the official module has as a constant is no parameter here: an offset of 0, and a scale of 1.
                assert about["constants"][name] == (0 if last == "bias" else 1)
            else:
                place = path_of(about, number, layer[1])
                collection = "batch_stats" if last.startswith("running") else "params"
                at(variables[collection], place)[leaf] = jnp.asarray(value.T if leaf == "kernel" else value)
                places[name] = (place, leaf)
    assert not state, f"No layer of {about['layers']} has {list(state)}."
    return variables, places, offsets


def check(case: Case) -> None:
    about = case.about
    head = head_of(about)
    variables, places, offsets = head_variables(case)
    x, cotangent = case.seeded("x"), case.seeded("cotangent")
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), x, train=False))
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, shapes["params"])

    @jax.jit  # one program compiles sooner than each of its operations
    def run(variables: Any, x: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            out, updates = head.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return (out * cotangent).sum(), (out, updates)

        grads, (out, updates) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return out, updates, head.apply(variables, x, train=False), grads

    out, updates, evaluated, (grads, of_x) = run(variables, x)
    found = {"out_train": out, "out_eval": evaluated}
    for key, (module, leaf) in places.items():
        if leaf in ("mean", "var"):
            found[f"running/{key}"] = at(updates["batch_stats"], module)[leaf] + offsets.get(key, 0)
    if "grad/x" in case.names():  # it is not stored where it is large
        found["grad/x"] = of_x
    assert found.keys() == set(case.names())
    for key, value in found.items():
        near_largest(value, case[key], HEAD)

    of_parameters = {}
    for key, (module, leaf) in places.items():
        if leaf not in ("mean", "var"):
            grad = at(grads, module)[leaf]
            of_parameters[key] = grad.T if leaf == "kernel" else grad
    check_summaries(of_parameters, about["gradients"], HEAD, about.get("constants", {}))

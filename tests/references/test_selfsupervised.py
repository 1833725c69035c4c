"""Self-supervised methods against losses.npz, heads.npz and schedules.npz: one test for each case; see README.md."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references.common import Case, near_largest, read_cases, seeded
from test_recipes import recipe

import vision_jax
from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives.barlow_twins import barlow_twins_loss
from vision_jax.objectives.byol import regression_loss
from vision_jax.objectives.dino import center_and_sharpen, dino_loss, koleo_loss, move_center
from vision_jax.objectives.heads import normalize
from vision_jax.objectives.mae import patch_targets, reconstruction_loss
from vision_jax.objectives.mocov2 import enqueue, queue_loss
from vision_jax.objectives.mocov3 import contrastive_loss
from vision_jax.objectives.simclr import nt_xent
from vision_jax.objectives.simmim import hidden_error
from vision_jax.objectives.simsiam import negative_cosine
from vision_jax.objectives.swav import sinkhorn, swav_loss
from vision_jax.objectives.vicreg import vicreg_terms

LOSSES, HEADS = read_cases("ssl", "losses*.npz"), read_cases("ssl", "heads*.npz")
# Those of other methods are in test_dino_models.py and test_masked.py.
SCHEDULES = {
    name: case
    for name, case in read_cases("ssl", "schedules*.npz").items()
    if case.about["method"] not in ("dino", "mae")
}
LOSS, GRADIENT, HEAD, SCHEDULE = 1e-5, {"barlow_twins": 1e-4, "vicreg": 1e-4}, 2e-5, 1e-6
RECIPES = {
    "barlow_twins": "barlow_twins",
    "byol": "byol:r50_100",
    "moco_v3": "mocov3:r50_100",
    "vicreg": "vicreg:r50_100",
}

# What a method makes of the inputs of a case: its loss, and what else there is to be compared, by name.
Found = tuple[jax.Array, dict[str, Any]]


def simclr_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    loss = nt_xent(x["a"], x["b"], about["temperature"])[0].mean()
    return loss, {"loss_code": 2 * loss}


def mocov2_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    loss = queue_loss(x["q"], x["k"], x["queue"], about["temperature"])[0].mean()
    queue, position = enqueue(x["queue"], jnp.int32(about["ptr"]), normalize(x["k"]))
    assert int(position) == about["ptr_after"]
    return loss, {"queue_after": queue}


def mocov3_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    pairs = [contrastive_loss(x[q], x[k], about["temperature"])[0] for q, k in (("q1", "k2"), ("q2", "k1"))]
    return (pairs[0] + pairs[1]).mean(), {}


def byol_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    return (regression_loss(x["p1"], x["z2"]) + regression_loss(x["p2"], x["z1"])).mean(), {}


def simsiam_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    return (negative_cosine(x["p1"], x["z2"]) + negative_cosine(x["p2"], x["z1"])).mean() / 2, {}


def barlow_twins_value(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    return sum(barlow_twins_loss(x["a"], x["b"], about["lambda"])), {}


def vicreg_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    return sum(w * term for w, term in zip(about["coefficients"], vicreg_terms(x["a"], x["b"]), strict=True)), {}


def dino_value(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    targets = center_and_sharpen(x["teacher"], x["center"], about["teacher_temperature"]).swapaxes(0, 1)
    loss = dino_loss(x["student"].swapaxes(0, 1), targets, about["student_temperature"]).mean()
    return loss, {"center_after": move_center(x["center"], x["teacher"].mean((0, 1)), about["center_momentum"])}


def koleo_value(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    return koleo_loss(x["x"]).mean(), {}


def swav_value(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    """Scores by crop; what is in the queue, if there is one, is assigned together with the batch."""
    if "scores" in x:
        scores = x["scores"]
    else:
        crops, rows, _ = x["z"].shape
        head = objective("swav", prototypes=len(x["prototypes"])).heads["prototypes"]
        params = {"params": {"kernel": x["prototypes"].T}}
        scores = head.apply(params, x["z"].reshape(crops * rows, -1), train=True).reshape(crops, rows, -1)
    queue = x.get("queue_scores")
    assigned = []
    for crop in range(2):
        both = scores[crop] if queue is None else jnp.concatenate([queue[crop], scores[crop]])
        assigned.append(sinkhorn(both, about["epsilon"], about["iterations"])[-scores.shape[1] :])
    assignments = jnp.stack(assigned)
    loss = swav_loss(scores.swapaxes(0, 1), assignments.swapaxes(0, 1), about["temperature"]).mean()
    return loss, {"assignment": assignments}


def mae_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    images = x["image"].transpose(0, 2, 3, 1)
    targets = patch_targets(images, about["patch"], normalize=about["norm_pix"])
    loss = reconstruction_loss(x["pred"], targets, x["mask"]).sum() / x["mask"].sum()
    return loss, {"patches": patch_targets(images, about["patch"], normalize=False)}


def simmim_loss(about: dict[str, Any], x: dict[str, jax.Array]) -> Found:
    differences = (x["reconstruction"] - x["image"]).transpose(0, 2, 3, 1)
    errors, counts = hidden_error(jnp.abs(differences), x["mask"] > 0)
    return errors.sum() / counts.sum(), {}


LOSS_OF: dict[str, Callable[[dict[str, Any], dict[str, jax.Array]], Found]] = {
    "barlow_twins": barlow_twins_value,
    "byol": byol_loss,
    "dino": dino_value,
    "koleo": koleo_value,
    "mae": mae_loss,
    "moco_v2": mocov2_loss,
    "moco_v3": mocov3_loss,
    "simclr": simclr_loss,
    "simmim": simmim_loss,
    "simsiam": simsiam_loss,
    "swav": swav_value,
    "vicreg": vicreg_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str):
    case = LOSSES[name]
    about = case.about
    given = [*about["inputs"], *(key for key in case.names() if key == "queue_scores")]
    inputs = {key: jnp.asarray(case[key]) for key in given}
    online = {key: inputs[key].astype(jnp.float32) for key in about["online"]}
    method = LOSS_OF[about["method"]]

    def loss(online: dict[str, jax.Array]) -> Found:
        return method(about, {**inputs, **online})

    (value, others), grads = jax.value_and_grad(loss, has_aux=True)(online)
    assert float(value) == pytest.approx(float(case["loss"]), rel=LOSS)
    for key, grad in grads.items():
        near_largest(grad, case[f"grad/{key}"], GRADIENT.get(about["method"], 1e-5))
    compared = {"loss", "noise", *inputs, *(f"grad/{key}" for key in grads)}
    for key, found in others.items():
        near_largest(found, case[key], HEAD)
        compared.add(key)
    assert compared - {"noise"} == set(case.names()) - {"noise"}  # of which a mask was made


def setup() -> Setup:
    return Setup(vision_jax.create_model("lenet5", num_classes=0), (28, 28, 1), (0.5,), (0.5,))


def widths(about: dict[str, Any]) -> list[int]:
    """The output widths of the linear layers of a stack."""
    return [about["state"][f"{layer[1]}.weight"][0] for layer in about["layers"] if layer[0] == "linear"]


def head_of(case: Case) -> nn.Module:
    """The head of the project's own objective that a case is of."""
    about = case.about
    method, what = about["method"], about["what"].split()[0].strip(";")
    *hidden, out = widths(about)
    several = {"hidden": tuple(hidden), "out": out}
    one = {"hidden": hidden[0], "out": out}
    norms = [layer for layer in about["layers"] if layer[0] == "batch_norm"]
    match method, what:
        case (("simclr" | "barlow_twins" | "vicreg"), _):
            return objective(method, **several).heads["projector"]
        case "moco_v2", _:
            return objective("mocov2", **one).heads["projector"]
        case "byol", _:
            return objective("byol", **one).heads[what]
        case "simsiam", "projector":
            return objective("simsiam", **several).heads[what]
        case "simsiam", "predictor":
            return objective("simsiam", out=out, bottleneck=hidden[0]).heads[what]
        case "moco_v3", _ if "projector" in about["what"]:
            return objective("mocov3", **several).heads["projector"]
        case "moco_v3", _:
            options = {"predictor_hidden": hidden[0], "out": out, "predictor_norm": len(norms) == 2}
            return objective("mocov3", **options).heads["predictor"]
        case "dino", _:
            options = {**several, "bottleneck": out, "out": about["state"]["last_layer.weight_v"][0]}
            options |= {"head_norm": about["use_bn"], "norm_last_layer": about["norm_last_layer"]}
            return objective("dino", **options).heads["projector"]
        case "swav", _:
            return Stack(objective("swav", hidden=hidden[0], out=hidden[1], prototypes=out))  # type: ignore[return-value]
    raise AssertionError(f"There is no reader for {method}, {what}.")


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


def objective(name: str, **options: Any) -> Any:
    return OBJECTIVES[name](setup=setup(), **options)


def head_variables(case: Case) -> tuple[dict[str, Any], dict[str, tuple[str, str]], dict[str, np.ndarray]]:
    """The variables of a stack of layers; by the official name of each tensor, the module and leaf that it is; and what
    official running means are larger by: a bias that is never trained is here a part of them.
    """
    leaves = {"linear": {"weight": "kernel", "bias": "bias"}}
    leaves["weight_norm"] = {"weight_v": "weight_v", "weight_g": "weight_g"}
    leaves["batch_norm"] = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    state, places = case.state(), {}
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    offset: Any = 0.0
    offsets = {}
    for number, layer in enumerate(case.about["layers"]):
        for last, leaf in leaves.get(layer[0], {}).items():
            name = f"{layer[1]}.{last}" if len(layer) > 1 else ""
            if name in state:
                collection = "batch_stats" if last.startswith("running") else "params"
                value = state[name].T if leaf == "kernel" else state[name]
                if last == "running_mean":
                    value, offsets[name], offset = value - offset, offset, 0.0
                if name in case.about["frozen"] and last == "bias":
                    offset = value
                    continue
                place = path_of(case.about, number, layer[1])
                at(variables[collection], place)[leaf] = jnp.asarray(value)
                places[name] = (place, leaf)
    return variables, places, offsets


@pytest.mark.parametrize("name", HEADS)
def test_head(name: str):
    case = HEADS[name]
    about = case.about
    head = head_of(case)
    variables, places, offsets = head_variables(case)
    x, cotangent = case.seeded("x"), case.seeded("cotangent")
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), x, train=False))

    # What the official module has as a constant is no parameter here.
    for key in about.get("constants", {}):
        module, leaf = places.pop(key)
        at(variables["params"], module).pop(leaf)
        if not at(variables["params"], module):
            variables["params"].pop(module)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, shapes["params"])

    @jax.jit  # one program compiles sooner than each of its operations
    def run(variables: Any, x: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            out, updates = head.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return (out * cotangent).sum(), (out, updates)

        grads, (out, updates) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return out, updates, head.apply(variables, x, train=False), grads

    out, updates, evaluated, (grads, of_x) = run(variables, x)
    near_largest(out, case["out_train"], HEAD)
    near_largest(evaluated, case["out_eval"], HEAD)
    running = {key.removeprefix("running/") for key in case.names() if key.startswith("running/")}
    for key in running:
        module, leaf = places[key]
        near_largest(at(updates["batch_stats"], module)[leaf] + offsets.get(key, 0), case[f"running/{key}"], HEAD)

    compared = {"out_train", "out_eval", *(f"running/{key}" for key in running)}
    if "grad/x" in case.names():  # it is not stored where it is large
        near_largest(of_x, case["grad/x"], HEAD)
        compared.add("grad/x")
    largest = max(norm for norm, _ in about["gradients"].values())
    for key, (norm, product) in about["gradients"].items():
        if key in about.get("constants", {}):
            continue
        module, leaf = places[key]
        grad = np.asarray(at(grads, module)[leaf], np.float64)
        grad = grad.T if leaf == "kernel" else grad
        probe = seeded(zlib.crc32(f"probe of {key}".encode()), grad.shape)
        assert np.linalg.norm(grad) == pytest.approx(norm, abs=HEAD * largest)
        assert (grad * probe).sum() == pytest.approx(product, abs=HEAD * largest * np.sqrt(grad.size))
    assert compared == set(case.names())


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name: str):
    """That of the recipes, with the case's numbers."""
    case = SCHEDULES[name]
    about = case.about
    config = recipe(RECIPES[about["method"]])
    config.batch_size = about.get("batch_size", 256)
    if (total := about.get("total_steps")) is not None:
        per_epoch, steps = 1, case["steps"]
        config.epochs, config.schedule.warmup_epochs = float(total), float(about.get("warmup_steps", 0))
    else:
        per_epoch, unit = about.get("iterations_per_epoch", 100), about["unit"].partition(" ")[0]
        steps = case["steps"] if unit == "iteration" else np.rint(per_epoch * case["steps"]).astype(int)
        config.epochs, config.schedule.warmup_epochs = float(about["epochs"]), float(about.get("warmup_epochs", 0))
    if about["kind"] != "teacher_momentum":
        config.optimizer.learning_rate = about.get("base") or about["base_weights"]
    plan = config_lib.make_plan(config, per_epoch * config.batch_size)
    if about["kind"] == "teacher_momentum":
        config.objective.momentum = about["base"]
        mine = build.make_objective(config, 1000, plan)
        # BYOL's teacher moves after the update, that of MoCo before the keys of the next step.
        after = steps if about["method"] == "moco_v3" else steps + 1
        found = [mine.ema_decay(mine.progress(jnp.int32(step))) for step in after]
    else:
        found = build.make_schedule(config, plan)(steps)
    if about["kind"].endswith("1-D parameters"):
        assert (config.optimizer.learning_rate, about["base_1d"]) == (0.2, 0.0048)
        params = {"conv1": {"kernel": np.zeros((2, 2))}, "bn1": {"scale": np.zeros(2), "bias": np.zeros(2)}}
        multipliers = {row.path: row.multiplier for row in build.make_rules(config, plan).table(params)}
        assert multipliers["bn1/scale"] == multipliers["bn1/bias"]
        found = np.stack([found * multipliers[path] for path in ("conv1/kernel", "bn1/bias")], 1)
    near_largest(np.asarray(found, np.float64), case["values"], SCHEDULE)

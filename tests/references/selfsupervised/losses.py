"""Losses: those of the objectives, with networks that say what a case gives."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from references.common import Case, near_largest

import vision_jax
from vision_jax.data.views import View
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives.dino import koleo_loss
from vision_jax.objectives.mae import patch_targets
from vision_jax.objectives.masked import reconstruction_out
from vision_jax.objectives.simmim import hidden_error
from vision_jax.objectives.swav import Prototypes, swav_loss

LOSS, GRADIENT, OTHERS = 1e-5, {"barlow_twins": 1e-4, "vicreg": 1e-4}, 2e-5
KEY = jax.random.key(0)
EMPTY: Mapping[str, Any] = {"params": {}, "batch_stats": {}}

About = dict[str, Any]
Inputs = dict[str, jax.Array]
# What a method makes of the inputs of a case: its loss, and what else there is to be compared, by name.
Found = tuple[jax.Array, dict[str, Any]]


class Same(nn.Module):
    """A backbone, or a head, that gives back what it is given."""

    dtype: Any = jnp.float32

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return images


class InTurn(nn.Module):
    """A head that says what it has among its statistics: first what is for the first crop, then for the second."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        rest: Any = self.variable("batch_stats", "rest", jnp.zeros, (2, *x.shape))
        said, rest.value = rest.value[0], jnp.roll(rest.value, -1, axis=0)
        return said


def objective(name: str, small: int = 0, heads: Mapping[str, nn.Module] | None = None, **options: Any) -> Any:
    """An objective of embeddings in place of crops, and with no heads, or others, behind them."""
    kind = type("Given", (OBJECTIVES[name],), {"heads": property(lambda self: dict(heads or {}))})
    views = (View(size=1, count=2), *([View("small", size=1, count=small)] if small else []))
    return kind(setup=Setup(Same(), (1, 1, 1), (0.5,), (0.5,), inputs=views), **options)


def pair(first: jax.Array, second: jax.Array) -> dict[str, jax.Array]:
    return {"image": jnp.stack([first, second], 1), "mask": jnp.ones(len(first))}


def crops(embeddings: jax.Array) -> dict[str, jax.Array]:
    """The two large crops and the small ones of embeddings (crops, rows, dim)."""
    rows = embeddings.swapaxes(0, 1)
    small = {"small": rows[:, 2:]} if len(embeddings) > 2 else {}
    return {"image": rows[:, :2], **small, "mask": jnp.ones(len(rows))}


def apply(mine: Any, views: Any, targets: Any = (), variables: Mapping[str, Any] = EMPTY) -> tuple[jax.Array, Any]:
    """The loss, as a step of training has it, and the whole result."""
    out = mine.loss(variables, views, targets, KEY, mine.progress(0), train=True)
    return out.loss / out.weight, out


def taught(mine: Any, views: Any, extra: Any = ()) -> Any:
    """What a teacher, which is no network either, makes of its views."""
    return mine.targets(EMPTY, EMPTY, extra, {}, views, KEY, mine.progress(0))


def simclr(about: About, x: Inputs) -> Found:
    options = {"temperature": about["temperature"]}
    loss, _ = apply(objective("simclr", **options), pair(x["a"], x["b"]))
    code, _ = apply(objective("simclr", **options, scale=2.0), pair(x["a"], x["b"]))
    return loss, {"loss_code": code}


def moco_v2(about: About, x: Inputs) -> Found:
    length, out = x["queue"].shape
    mine = objective("mocov2", queue=length, out=out, temperature=about["temperature"])
    extra = {"queue": x["queue"], "position": jnp.int32(about["ptr"])}
    views = pair(x["q"], x["k"])
    loss, result = apply(mine, views, taught(mine, views, extra))
    after = mine.after({}, extra, (), result.rows, mine.progress(1))
    return loss, {"queue_after": after["queue"], "ptr_after": after["position"]}


def moco_v3(about: About, x: Inputs) -> Found:
    mine = objective("mocov3", temperature=about["temperature"])
    return apply(mine, pair(x["q1"], x["q2"]), taught(mine, pair(x["k1"], x["k2"])))[0], {}


def byol(about: About, x: Inputs) -> Found:
    mine = objective("byol")
    return apply(mine, pair(x["p1"], x["p2"]), taught(mine, pair(x["z1"], x["z2"])))[0], {}


def simsiam(about: About, x: Inputs) -> Found:
    mine = objective("simsiam", heads={"projector": Same(), "predictor": InTurn()})
    predictions = {"predictor": {"rest": jnp.stack([x["p1"], x["p2"]])}}
    variables = {"params": {"projector": {}, "predictor": {}}, "batch_stats": predictions}
    return apply(mine, pair(x["z1"], x["z2"]), (), variables)[0], {}


def barlow_twins(about: About, x: Inputs) -> Found:
    return apply(objective("barlow_twins", off_diagonal=about["lambda"]), pair(x["a"], x["b"]))[0], {}


def vicreg(about: About, x: Inputs) -> Found:
    weights = dict(zip(("invariance", "variance", "covariance"), about["coefficients"], strict=True))
    return apply(objective("vicreg", **weights), pair(x["a"], x["b"]))[0], {}


def dino(about: About, x: Inputs) -> Found:
    mine = objective(
        "dino",
        small=len(x["student"]) - 2,
        student_temperature=about["student_temperature"],
        teacher_temperature=about["teacher_temperature"],
        teacher_temperature_start=about["teacher_temperature"],
        center_momentum=about["center_momentum"],
    )
    extra = {"center": x["center"]}
    loss, result = apply(mine, crops(x["student"]), taught(mine, crops(x["teacher"]), extra))
    after = mine.after({}, extra, result.sums, (), mine.progress(1))
    return loss, {"center_after": after["center"]}


def koleo(about: About, x: Inputs) -> Found:
    return koleo_loss(x["x"]).mean(), {}


def swav(about: About, x: Inputs) -> Found:
    """Scores, or embeddings and prototypes; what is in the queue, if there is one, is assigned together with them."""
    embeddings, queue = x.get("z"), x.get("queue_scores")
    number = (x["scores"] if embeddings is None else x["prototypes"].T).shape[-1]
    heads = {"projector": Same(), "prototypes": Prototypes(number)}
    shared = {"prototypes": number, "temperature": about["temperature"]}
    shared |= {"epsilon": about["epsilon"], "iterations": about["iterations"]}
    mine = objective("swav", small=sum(about["crops"]) - 2, heads=heads, **shared)
    params = {"projector": {}}
    if embeddings is None:
        scores = x["scores"]
    else:
        params["prototypes"] = {"kernel": x["prototypes"].T}
        scores = heads["prototypes"].apply({"params": params["prototypes"]}, embeddings, train=True)
    earlier = [None, None] if queue is None else [(part, jnp.int32(len(part))) for part in queue]
    assignments = jnp.stack([mine.assign(scores[i], None, earlier[i]) for i in range(2)])
    if embeddings is None or queue is not None:  # it has embeddings in its queue
        loss = swav_loss(scores.swapaxes(0, 1), assignments.swapaxes(0, 1), about["temperature"]).mean()
    else:
        loss, _ = apply(mine, crops(embeddings), {}, {"params": params, "batch_stats": {}})
    return loss, {"assignment": assignments}


def mae(about: About, x: Inputs) -> Found:
    images, patch = x["image"].transpose(0, 2, 3, 1), about["patch"]

    class Given(OBJECTIVES["mae"]):  # type: ignore[misc, valid-type]
        def reconstruct(self, variables: Any, images: Any, order: Any, key: Any, *, train: bool) -> Any:
            return variables["params"]["said"], x["mask"], {}

    size = images.shape[1]
    model = vision_jax.create_model("vit_tiny_patch16_224", num_classes=0, img_size=size, patch_size=patch)
    setup = Setup(model, images.shape[1:], (0.5,) * 3, (0.5,) * 3)
    mine = Given(setup=setup, mask_ratio=0.5, normalize_pixels=about["norm_pix"])
    views = {"image": images, "order": None, "mask": jnp.ones(len(images))}
    loss, _ = apply(mine, views, (), {"params": {"said": x["pred"]}, "batch_stats": {}})
    return loss, {"patches": patch_targets(images, patch, normalize=False)}


def simmim(about: About, x: Inputs) -> Found:
    height, width = x["mask"].shape[1:]
    assert x["image"].shape[2:] == (height * about["patch"], width * about["patch"])
    differences = (x["reconstruction"] - x["image"]).transpose(0, 2, 3, 1)
    errors, counts = hidden_error(jnp.abs(differences), x["mask"] > 0)
    out = reconstruction_out(errors, (errors, errors), counts, None, {})
    return out.loss / out.weight, {}


METHODS: dict[str, Callable[[About, Inputs], Found]] = {
    "barlow_twins": barlow_twins,
    "byol": byol,
    "dino": dino,
    "koleo": koleo,
    "mae": mae,
    "moco_v2": moco_v2,
    "moco_v3": moco_v3,
    "simclr": simclr,
    "simmim": simmim,
    "simsiam": simsiam,
    "swav": swav,
    "vicreg": vicreg,
}


def check(case: Case) -> None:
    about = case.about
    assert about["method"] in METHODS, f"There is no reader for losses of {about['method']}."
    given = [*about["inputs"], *(key for key in case.names() if key == "queue_scores")]
    inputs = {key: jnp.asarray(case[key]) for key in given}
    online = {key: inputs[key] for key in about["online"]}

    @jax.jit  # one program compiles sooner than each of its operations
    def run(online: Inputs, others: Inputs) -> Any:
        def loss(online: Inputs) -> Found:
            return METHODS[about["method"]](about, {**others, **online})

        return jax.value_and_grad(loss, has_aux=True)(online)

    (value, found), grads = run(online, inputs)
    # Means of cosines cancel: they have the errors of numbers that are larger than they are.
    near_largest(value, case["loss"], LOSS, floor=1e-2)
    if "ptr_after" in about:
        assert int(found.pop("ptr_after")) == about["ptr_after"]
    for key, grad in grads.items():
        near_largest(grad, case[f"grad/{key}"], GRADIENT.get(about["method"], 1e-5))
    for key, result in found.items():
        near_largest(result, case[key], OTHERS)
    compared = {"loss", *inputs, *found, *(f"grad/{key}" for key in grads)}
    if "noise" in case.names():  # of which the mask was made: what it has the most of is removed
        kept = np.asarray(case["mask"] == 0).sum(1, keepdims=True)
        assert np.array_equal(np.argsort(np.argsort(case["noise"], 1), 1) >= kept, case["mask"])
        compared.add("noise")
    assert compared == set(case.names())

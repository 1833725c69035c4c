"""Attacks against attack.*.npz and attack_parts.json: one test for each case; see README.md."""

import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import common, networks
from references.networks import to_nhwc

from vision_jax import attacks
from vision_jax.attacks import base, losses, projections
from vision_jax.attacks.square import share, side
from vision_jax.losses import softmax_cross_entropy

# Of the cases here, which take long on a CPU, the others are left to the exhaustive run.
ALWAYS = ("attack.pgd_start.vit_tiny.npz",)


class Case:
    """A case of a file, with images as (batch, height, width, channels)."""

    def __init__(self, path: pathlib.Path):
        self.file = np.load(path)
        self.meta = json.loads(str(self.file["meta"]))
        self.arguments = dict(self.meta["arguments"])
        self.images = networks.pictures(self.meta["images"])
        self.labels = jnp.asarray(self.file["labels"])

    @property
    def norm(self) -> str:
        if self.meta["attack"] == "pgd_l2":
            return "l2"
        return self.arguments.get("norm", "Linf").lower()

    @property
    def eps(self) -> float:
        return self.radius("eps")

    def radius(self, name: str) -> float:
        """A radius or a step: in 1/255 for linf, absolute for l2 and l1."""
        value = self.arguments[name]
        return value / 255 if self.norm == "linf" else value

    def delta(self, name: str) -> np.ndarray:
        return to_nhwc(common.unpack(self.file, name))

    def noise(self) -> np.ndarray | None:
        """The numbers of the start, uniform in [-1, 1)."""
        if "start" not in self.arguments:
            return None
        shape = np.moveaxis(self.images, -1, 1).shape
        return to_nhwc(common.uniform(self.arguments["start"], shape))


@functools.cache
def network(folder: pathlib.Path, name: str) -> attacks.Apply:
    return attacks.classifier(*networks.load(folder, name), networks.MEAN, networks.STD)


@functools.cache
def program(attack: Callable[..., attacks.Attacked], **static: Any) -> Callable[..., attacks.Attacked]:
    """Compiles an attack with the optimization that other tests leave out: it saves minutes of convolutions."""

    def run(apply: attacks.Apply, images: jax.Array, labels: jax.Array, options: dict[str, Any]) -> attacks.Attacked:
        return attack(apply, images, labels, jax.random.key(0), **static, **options)

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 3})


def check(case: Case, apply: attacks.Apply, found: attacks.Attacked, loss: Any, suffix: str = "") -> None:
    """Compares an attack with a reference, as closely as two float32 runs of the sources agree."""
    tolerance, delta = case.meta["tolerance"], case.delta(f"delta{suffix}")
    images = np.asarray(found.images, np.float64)
    assert images.min() >= 0
    assert images.max() <= 1
    expected = case.file[f"loss{suffix}"]
    logits = jax.jit(lambda apply, images: apply(images))(apply, found.images)
    np.testing.assert_array_equal(np.argmax(logits, 1) != case.labels, found.fooled)
    error = np.abs(loss(logits) - expected) / np.maximum(np.abs(expected), 0.05)
    assert error.max() <= tolerance["loss"]
    if not suffix:
        np.testing.assert_array_equal(found.fooled, case.file["success"])
    sizes = np.asarray(base.size(jnp.asarray(images - case.images), case.norm))
    assert (np.abs(sizes - case.file["distance"]) <= tolerance["norm"] * case.file["distance"]).all()
    if case.meta["attack"] == "fab":
        return
    difference = np.abs(images - case.images - delta)
    apart = np.linalg.norm(difference.reshape(len(images), -1), axis=1)
    assert (apart / np.linalg.norm(delta.reshape(len(images), -1), axis=1)).max() <= tolerance["distance"]
    if "equal" in tolerance:
        assert (difference <= 0.02 * case.eps).mean() >= tolerance["equal"]


def check_ascent(case: Case, apply: attacks.Apply) -> None:
    """FGSM, PGD and MI-FGSM."""
    given, noise = case.arguments, case.noise()
    start = case.images if noise is None else np.clip(case.images + case.eps * noise, 0, 1)
    options = {"eps": case.eps}
    if case.meta["attack"] == "fgsm":
        run = program(attacks.fgsm)
    else:
        options |= {"steps": given["steps"], "step_size": case.radius("alpha")}
        if case.meta["attack"] == "mifgsm":
            run = program(attacks.mi_fgsm)
            options["decay"] = given["decay"]
        else:
            run = program(attacks.pgd, norm=case.norm, random_start=False)
            options["start"] = start
    found = run(apply, case.images.astype(np.float32), case.labels, options)
    cross_entropy = functools.partial(softmax_cross_entropy, targets=case.labels)
    np.testing.assert_allclose(found.loss, case.file["losses"][-1], case.meta["tolerance"]["loss"])
    check(case, apply, found, cross_entropy)


def check_apgd(case: Case, apply: attacks.Apply) -> None:
    """APGD, with the first step's loss compared as in the code of the authors or as in their paper."""
    given, noise = case.arguments, case.noise()
    noise = np.asarray(base.unit(jnp.asarray(noise, jnp.float32), case.norm))
    options = {"eps": case.eps, "start": np.clip(case.images + case.eps * noise, 0, 1)}
    if given["loss"] == "dlr-targeted":
        options["target"] = case.file["target"]
        order = base.others_by_logit(jnp.asarray(case.file["clean_logits"]), case.labels, given["rank"] - 1)
        np.testing.assert_array_equal(order[:, -1], case.file["target"])
    run = program(attacks.apgd, norm=case.norm, steps=given["steps"], loss=given["loss"], best_loss=True)
    found = run(apply, case.images.astype(np.float32), case.labels, options)

    def loss(logits: jax.Array) -> jax.Array:
        return losses.LOSSES[given["loss"]](logits, case.labels, options.get("target", case.labels))

    try:
        check(case, apply, found, loss)
    except AssertionError:
        if "delta_paper" not in case.file:
            raise
        check(case, apply, found, loss, "_paper")


def check_fab(case: Case, apply: attacks.Apply) -> None:
    run = program(attacks.fab_t, norm=case.norm, targets=case.arguments["targets"])
    options = {"eps": case.eps, "steps": case.arguments["steps"]}
    images = case.images.astype(np.float32)
    found = run(apply, images, case.labels, options)
    # The source gives the clean image back where what it found is too far away.
    found = base.prefer(found.fooled, found, base.nothing_yet(jnp.asarray(images)))
    check(case, apply, found, functools.partial(softmax_cross_entropy, targets=case.labels))


CHECKS: dict[str, Callable[[Case, attacks.Apply], None]] = {
    **dict.fromkeys(("fgsm", "pgd", "pgd_l2", "mifgsm"), check_ascent),
    "apgd": check_apgd,
    "fab": check_fab,
}


def cases() -> list[Any]:
    given = bool(os.environ.get("VISION_JAX_REFERENCES"))
    return [
        pytest.param(path, id=path.name, marks=() if given or path.name in ALWAYS else pytest.mark.exhaustive)
        for path in common.files("eval", "attack.*.npz")
    ]


@pytest.mark.parametrize("path", cases())
def test_attack(path: pathlib.Path):
    case = Case(path)
    kind = case.meta["attack"]
    assert kind in CHECKS, f"there is no reader for {kind}"
    CHECKS[kind](case, network(path.parent, case.meta["model"]))


PARTS = {
    f"{path.name}:{name}": (name, content)
    for path in common.files("eval", "attack_parts*.json")
    for content in [json.loads(path.read_text())]
    for name in content.keys() - {"logits", "labels", "targets", "dlr_gradient", "dlr_targeted_gradient"}
}


def check_dlr(content: dict[str, Any], name: str) -> None:
    logits, labels, targets = (jnp.asarray(content[key]) for key in ("logits", "labels", "targets"))

    def loss(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = losses.LOSSES["dlr-targeted" if name == "dlr_targeted" else name](logits, labels, targets)
        return each.sum(), each

    gradient, values = jax.jit(jax.grad(loss, has_aux=True))(logits)
    common.near(values, content[name], 1e-5)
    common.near(gradient, content[f"{name}_gradient"], 1e-4)


def check_square(schedules: list[dict[str, Any]]) -> None:
    for case in schedules:
        shares = [share(number, case["queries"], case["rescale"]) for number in case["iterations"]]
        common.near(shares, case["p"], 1e-12)
        for size, sides in case["side"].items():
            assert [side(p, int(size), int(size)) for p in shares] == sides


def check_projection(case: dict[str, Any]) -> None:
    x, w = (np.array(case[key]) for key in "xw")
    aim = np.array(case["b"]) - (x * w).sum(1)
    for norm in case.keys() & set(projections.NORMS):
        arguments = (jnp.asarray(values, jnp.float32) for values in (x, w, aim))
        found = np.asarray(projections.to_hyperplane(*arguments, norm), np.float64)
        common.near(base.size(jnp.asarray(found), norm), case[f"{norm}_norm"], 1e-5)
        assert ((x + found > -1e-6) & (x + found < 1 + 1e-6)).all()
        common.near((w * found).sum(1), (w * np.array(case[norm])).sum(1), 1e-4)  # it need not reach the hyperplane


def check_part(name: str, content: dict[str, Any]) -> None:
    if name in ("dlr", "dlr_targeted"):
        check_dlr(content, name)
    elif name == "square":
        check_square(content[name])
    elif name == "projection":
        check_projection(content[name])
    else:
        pytest.fail(f"there is no reader for {name}")


@pytest.mark.parametrize("part", sorted(PARTS))
def test_part(part: str):
    check_part(*PARTS[part])

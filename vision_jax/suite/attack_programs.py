"""The compiled programs by which the suite attacks a model: clean images, attacks, and a check of what these found."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from vision_jax import attacks
from vision_jax.attacks import evaluation, signs
from vision_jax.attacks.base import Apply
from vision_jax.attacks.stages import Stage
from vision_jax.devices import sharding

log = logging.getLogger(__name__)

Batch = Mapping[str, jax.Array]
_NO_CLASS = -1  # the label of padding, which is fooled from the start, so that no attack goes on for its sake


@dataclasses.dataclass(frozen=True)
class Logits:
    """The logits of images in [0, 1], as a model is evaluated; equal ones share compiled programs.

    Attributes:
        model: a Flax module.
        mean, std: of its normalization.
        flip: whether logits are averaged with those of the mirrored image.
        columns: which logits count, in their order; None: all.
    """

    model: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    columns: tuple[int, ...] | None = None

    def __call__(self, variables: Mapping[str, Any], images: jax.Array, *key: jax.Array) -> jax.Array:
        """Returns (batch, classes); `key`, which attacks on random models give, is not used."""
        apply = attacks.classifier(self.model, variables, self.mean, self.std)
        logits = apply(images)
        if self.flip:
            logits = (logits + apply(images[:, :, ::-1])) / 2
        return logits if self.columns is None else logits[:, np.asarray(self.columns)]


class Programs:
    """Programs of one model. Each is compiled when it is first called with a batch size, and serves all radii.

    A batch has `image` (uint8), `label`, `index`, `target` and `mask`; results are replicated.

    Args:
        mesh: of the model's devices.
        logits: of the model.
        variables: of the model, on the devices.
        seed: of random numbers.
    """

    def __init__(self, mesh: Mesh, logits: Logits, variables: Any, seed: int):
        self._mesh, self._logits = mesh, logits
        self._everywhere = sharding.replicated(mesh)
        self._given = {"variables": variables, **sharding.place({"seed": np.uint32(seed)}, self._everywhere)}
        self._compiled: dict[tuple[tuple[str, ...], int], Any] = {}

    def look(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the fields of `signs.Look`, `index`, `label` and `mask` of clean images."""
        return self._run(("look",), self._look, self._given, batch, self._everywhere)

    def attack(self, stage: Stage, norm: str, eps: float, number: int, rank: int) -> Callable[[Batch], Any]:
        """Returns a function of a batch that attacks it; its results are those of `evaluation.check`, `index`, `mask`.

        Args:
            stage: the attack.
            norm: linf or l2.
            eps: the radius.
            number: of the attack in its row.
            rank: of the target.
        """
        numbers = {"eps": np.float32(eps), "number": np.int32(number), "rank": np.int32(rank)}
        given = {**self._given, **sharding.place(numbers, self._everywhere)}
        perturb, check = functools.partial(self._perturb, stage, norm), functools.partial(self._check, norm)

        def run(batch: Batch) -> Any:
            found = self._run((stage.name, norm), perturb, given, batch, sharding.along_batch(self._mesh))
            # A program of its own, so that what counts is a plain forward pass.
            return self._run(("check", norm), check, given, {**batch, "perturbed": found}, self._everywhere)

        return run

    def _run(
        self,
        name: tuple[str, ...],
        function: Callable[[Any, Batch], Any],
        given: Any,
        batch: Batch,
        layout: NamedSharding,
    ) -> Any:
        key = name, len(batch["image"])
        if key not in self._compiled:
            start = time.perf_counter()
            jitted = jax.jit(function, out_shardings=layout)
            self._compiled[key] = sharding.compile_on(self._mesh, jitted, given, batch)
            seconds = time.perf_counter() - start
            log.info("%s, of %d images at once, was compiled in %.1f s.", " ".join(name), key[1], seconds)
        return self._compiled[key](given, batch)

    def _attacked(self, given: Any, batch: Batch) -> tuple[Apply, jax.Array, jax.Array]:
        """Returns the attacked function, images in [0, 1], and labels."""
        apply = jax.tree_util.Partial(self._logits, given["variables"])
        labels = jnp.where(batch["mask"] > 0, batch["label"], _NO_CLASS)
        return apply, batch["image"].astype(jnp.float32) / 255, labels

    def _look(self, given: Any, batch: Batch) -> dict[str, jax.Array]:
        seen = signs.look(*self._attacked(given, batch))
        return {**seen._asdict(), **{name: batch[name] for name in ("index", "label", "mask")}}

    def _perturb(self, stage: Stage, norm: str, given: Any, batch: Batch) -> jax.Array:
        key = jax.random.key(given["seed"])
        keys = evaluation.keys_of_pass(key, given["number"], given["rank"], batch["index"])
        target = {"target": batch["target"]} if stage.targets else {}
        found = stage.run(*self._attacked(given, batch), keys, eps=given["eps"], norm=norm, **target)
        return found.images

    def _check(self, norm: str, given: Any, batch: Batch) -> dict[str, jax.Array]:
        apply, images, labels = self._attacked(given, batch)
        verdict = evaluation.check(apply, images, batch["perturbed"], labels, given["eps"], norm=norm)
        return {**verdict._asdict(), **{name: batch[name] for name in ("index", "mask")}}

"""Classes by their names, of a model that learns from pairs of images and texts."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import augment
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError
from vision_jax.evaluators.base import Evaluator, Prefixed, Step, run_pass
from vision_jax.metrics import classification_sums
from vision_jax.models.clip import class_weights
from vision_jax.objectives.base import Objective
from vision_jax.objectives.pairs import Pairs, to_clip
from vision_jax.text import prompts

_TEXTS = 256  # that are computed at once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ZeroShot(Evaluator):
    """Top-1, top-5 and cross-entropy, where the weights of each class are made of sentences with its name.

    Attributes:
        words: what the classes are called, in the order of their labels; (): as the objective says.
        templates: sentences with a place for it, {}; (): those of the objective.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True, "loss": False}

    words: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(template.count("{}") != 1 for template in self.templates):
            raise ConfigError(f"templates is {self.templates}: each has {{}} once, for the name of the class.")

    def weights(self, objective: Pairs, variables: Prefixed) -> dict[str, jax.Array]:
        """Returns the weights of the classes, (features, classes), by prefix."""
        words = self.words or objective.class_words(tuple(self.context.source.class_names))
        tokens = prompts.table(objective.open_tokenizer(), words, self.templates or objective.templates)
        rows = tokens.reshape(-1, tokens.shape[-1])
        size = min(_TEXTS, len(rows))
        mesh = self.context.mesh
        everywhere = sharding.replicated(mesh)

        def embed(values: Any, tokens: jax.Array) -> jax.Array:
            embeddings: Any = objective.clip.apply(to_clip(values), tokens, train=False, method="encode_texts")
            return embeddings

        jitted = jax.jit(embed, out_shardings=everywhere)
        some = jax.ShapeDtypeStruct((size, rows.shape[1]), np.int32, sharding=everywhere)
        with self.context.watchdog.suspended():
            compiled = sharding.compile_on(mesh, jitted, variables[next(iter(variables))], some)
        found = {}
        for prefix, values in variables.items():
            parts = []
            for first in range(0, len(rows), size):
                part = np.resize(rows[first : first + size], (size, rows.shape[1]))
                embedded = compiled(values, sharding.place(part, everywhere))
                parts.append(np.asarray(embedded)[: len(rows) - first])
                self.context.watchdog.beat()
            embeddings = np.concatenate(parts).reshape(*tokens.shape[:2], -1)
            found[prefix] = sharding.place(np.asarray(class_weights(jnp.asarray(embeddings))), everywhere)
        return found

    def make_step(self, objective: Objective) -> Step:
        """Returns ((variables, weights) by prefix, batch) -> sums over the examples, () each, under prefix + name."""
        assert isinstance(objective, Pairs)  # the configuration has been checked

        def step(arguments: tuple[Prefixed, Mapping[str, jax.Array]], batch: Any) -> dict[str, jax.Array]:
            variables, weights = arguments
            images = augment.normalize(batch["image"], self.context.mean, self.context.std)
            sums = {}
            for prefix, values in variables.items():
                model, own = objective.clip, to_clip(values)
                features = model.apply(own, images, train=False, method="encode_images")
                logits: Any = model.apply(own, features, weights[prefix], method="logits_of_classes")
                for name, value in classification_sums(logits, batch["label"], batch["mask"]).items():
                    sums[prefix + name] = value
            return sums

        return step

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float]:
        assert isinstance(objective, Pairs)
        arguments = dict(variables), self.weights(objective, variables)
        sums = run_pass(self.context, self.compiled(objective, self.make_step, arguments), arguments)
        results: dict[str, float] = {}
        for prefix in variables:
            count = self.check_count(int(sums[f"{prefix}count"]))
            results |= {prefix + name: float(sums[prefix + name]) / count for name in self.metrics}
            results["count"] = count
        return results

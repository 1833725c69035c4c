"""Pairs of images and texts: CLIP (Radford et al. 2021, arXiv:2103.00020) and SigLIP (Zhai et al. 2023, 2303.15343).

With the tower for images frozen, and from weights, it is locked-image tuning (Zhai et al. 2022, arXiv:2111.07991):
`config.optimizer.frozen` has the patterns of the backbone's parameters, or `^(?!text/|image_head/|logit_)` for all.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vision_jax import losses
from vision_jax.errors import ConfigError
from vision_jax.models import clip
from vision_jax.models.layers import ACTIVATIONS
from vision_jax.objectives.base import Objective, Out, Progress, Rows, Variables, Views, check_ranges, total
from vision_jax.text import Tokenizer, open_tokenizer

# Of `params`, what is not the backbone's.
HEADS = ("text", "image_head", "logit_scale", "logit_bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Objective):
    """What the objectives of pairs have in common: the model without its classifier, a tower for texts, projections.

    Texts are captions of the data, or of its classes: each in one of `templates`. All pairs of the global batch are
    compared. `top1` is the share of images whose own text fits best among those of the batch; with texts of classes,
    several fit equally well.

    Attributes:
        tokenizer: "bytes", or clip:FILE, siglip:FILE; see `text.open_tokenizer`.
        vocab_size: number of different tokens, at least the tokenizer's.
        context_length: tokens of each text.
        embed_dim: length of the embeddings.
        text_width, text_depth, text_heads: features, blocks and heads of the tower for texts.
        activation: of its MLPs.
        words: what the classes of the data are called in texts, in the order of their labels; (): as the data has it.
        templates: sentences with a place for the name of a class, {}.
        initial_scale: of the cosines.
    """

    couples: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "top1": True}
    # Of the tower for texts.
    causal: ClassVar[bool] = True
    pool: ClassVar[str] = "argmax"
    epsilon: ClassVar[float] = clip.CLIP_EPSILON
    biased: ClassVar[bool] = False
    initial_bias: ClassVar[float | None] = None

    tokenizer: str = "bytes"
    vocab_size: int = 258
    context_length: int = 77
    embed_dim: int = 512
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    activation: str = "gelu"
    words: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)
    initial_scale: float = 1 / 0.07

    def __post_init__(self) -> None:
        numbers = ("vocab_size", "context_length", "embed_dim", "text_width", "text_depth", "text_heads")
        check_ranges(self, positive=(*numbers, "initial_scale"))
        if self.text_width % self.text_heads:
            raise ConfigError(
                f"objective.text_heads is {self.text_heads}, which does not divide text_width={self.text_width}."
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"objective.activation is {self.activation!r}: there are {', '.join(ACTIVATIONS)}.")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise ConfigError(
                f"objective.templates is {self.templates}: each has {{}} once, for the name of the class."
            )
        if len(set(self.words)) < len(self.words) or not all(word.strip() for word in self.words):
            raise ConfigError(f"objective.words is {self.words}, where a name is empty, or there twice.")

    @property
    def clip(self) -> clip.Clip:
        """The model of images and words, of which the backbone is a part; `to_clip` gives its variables."""
        model: Any = self.setup.model
        blocks = clip.Transformer(
            self.text_depth, self.text_heads, 4 * self.text_width, self.activation, self.epsilon, dtype=model.dtype
        )
        text = clip.TextTower(
            self.vocab_size,
            self.context_length,
            self.text_width,
            blocks,
            self.embed_dim,
            causal=self.causal,
            pool=self.pool,
            head_bias=self.biased,
            dtype=model.dtype,
        )
        visual = clip.Projected(model.clone(parent=None), self.embed_dim, self.setup.image_shape[0])
        return clip.Clip(visual, text, initial_scale=self.initial_scale, initial_bias=self.initial_bias)

    def open_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of texts.

        Raises:
            ConfigError: if it has more tokens than `vocab_size`, or there is no such one.
            DataError: if its file cannot be read.
        """
        tokenizer = open_tokenizer(self.tokenizer, self.context_length)
        if tokenizer.vocab_size > self.vocab_size:
            raise ConfigError(
                f"objective.vocab_size is {self.vocab_size}, and {self.tokenizer} has {tokenizer.vocab_size} tokens: "
                "give that."
            )
        return tokenizer

    def class_words(self, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """Returns what the classes of the data are called in texts.

        Raises:
            ConfigError: if that is unknown, or there are names of other classes.
        """
        words = self.words or class_names
        if not words:
            raise ConfigError(
                "The classes of the data have no names, of which texts could be made: set objective.words."
            )
        if class_names and len(words) != len(class_names):
            raise ConfigError(f"objective.words has {len(words)} names, and the data has {len(class_names)} classes.")
        return words

    def init(self, key: jax.Array, inputs: Rows) -> dict[str, Any]:
        images = jnp.zeros((1, *self.setup.image_shape), jnp.float32)
        tokens = jnp.zeros((1, self.context_length), jnp.int32)
        return from_clip(dict(self.clip.init(key, images, tokens, train=False)))

    def views(self, keys: jax.Array, rows: Rows) -> Views:
        return {"image": self.augment(keys, rows["image"]), "tokens": rows["tokens"], "mask": rows["mask"]}

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        (images, texts), updates = self.clip.apply(
            to_clip(variables),
            views["image"],
            views["tokens"],
            train=train,
            method="encode",
            mutable=["batch_stats"] if train else [],
            rngs={"dropout": key},
        )
        mask = None if train else views["mask"]
        params = variables["params"]
        cosines = jnp.matmul(clip.unit(images), clip.unit(texts).T, precision="highest")
        cosines = cosines if mask is None else jnp.where(mask > 0, cosines, -jnp.inf)
        found = (jnp.argmax(cosines, 1) == jnp.arange(cosines.shape[0])).astype(jnp.float32)
        value, weight = total(self.pair_loss(images, texts, params, mask), mask)
        return Out(value, weight, from_clip(updates), {"top1": total(found, mask)})

    def pair_loss(self, images: jax.Array, texts: jax.Array, params: Any, mask: jax.Array | None) -> jax.Array:
        """Returns the loss of each pair of embeddings, (batch,) float32."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Pairs):
    """CLIP: of each image, which text of the batch is its own, and the other way round; see `losses.clip_loss`."""

    def pair_loss(self, images: jax.Array, texts: jax.Array, params: Any, mask: jax.Array | None) -> jax.Array:
        return losses.clip_loss(images, texts, params["logit_scale"], mask)

    def constrain(self, params: Any) -> Any:
        """Keeps the scale below 100, as the paper does (section 2.5)."""
        if "logit_scale" not in params:  # it is frozen
            return params
        return {**params, "logit_scale": jnp.minimum(params["logit_scale"], clip.MAX_LOG_SCALE)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLip(Pairs):
    """SigLIP: of each image and each text of the batch, whether they belong together; see `losses.siglip_loss`."""

    causal: ClassVar[bool] = False
    pool: ClassVar[str] = "last"
    epsilon: ClassVar[float] = clip.SIGLIP_EPSILON
    biased: ClassVar[bool] = True
    initial_bias: ClassVar[float | None] = -10.0

    context_length: int = 64
    activation: str = "gelu_tanh"
    initial_scale: float = 10.0

    def pair_loss(self, images: jax.Array, texts: jax.Array, params: Any, mask: jax.Array | None) -> jax.Array:
        return losses.siglip_loss(images, texts, params["logit_scale"], params["logit_bias"], mask)


def to_clip(variables: Variables) -> dict[str, Any]:
    """Returns the variables of `Pairs.clip` of those of a training, whose root is the backbone."""
    params = variables["params"]
    backbone = {name: value for name, value in params.items() if name not in HEADS}
    heads = {name: params[name] for name in HEADS if name in params and name != "image_head"}
    found: dict[str, Any] = {"params": {"visual": {"backbone": backbone, "head": params["image_head"]}, **heads}}
    if stats := variables.get("batch_stats"):
        found["batch_stats"] = {"visual": {"backbone": stats}}
    return found


def from_clip(variables: Variables) -> dict[str, Any]:
    """The inverse of `to_clip`; collections that are not there are left out."""
    found: dict[str, Any] = {}
    if "params" in variables:
        params = dict(variables["params"])
        visual = params.pop("visual")
        found["params"] = {**visual["backbone"], "image_head": visual["head"], **params}
    if "batch_stats" in variables:
        found["batch_stats"] = variables["batch_stats"]["visual"]["backbone"]
    return found

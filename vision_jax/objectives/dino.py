"""DINO (Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino): what would a teacher say of the whole image?"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError
from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total
from vision_jax.objectives.heads import Layer, Mlp, normalize, spread
from vision_jax.objectives.teachers import TeacherObjective
from vision_jax.pretrained import OfficialNames


def center_and_sharpen(outputs: jax.Array, center: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Returns the teacher's probabilities softmax((outputs - center) / temperature), float32."""
    return jax.nn.softmax((outputs.astype(jnp.float32) - center) / temperature)


def dino_loss(student: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Returns the cross-entropy between what the teacher says of a crop and the student of all others.

    It is the mean over all pairs of a teacher's crop g and another crop v of the student of

    -sum_k p_gk log softmax(s_v / temperature)_k

    Args:
        student: (n, crops, out), outputs for all crops; the first ones are the teacher's.
        targets: (n, teacher's crops, out), probabilities.
        temperature: of the student.

    Returns:
        (n,) float32.
    """
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    crops, taught = student.shape[1], targets.shape[1]
    values = jnp.zeros(len(student), jnp.float32)
    for v in range(crops):
        others = [targets[:, g] for g in range(taught) if g != v]
        values -= (sum(others[1:], others[0]) * log_p[:, v]).sum(-1)
    return values / (taught * (crops - 1))


def move_center(center: jax.Array, mean: jax.Array, momentum: float) -> jax.Array:
    """Returns momentum * center + (1 - momentum) * mean, where the mean is that of the teacher's outputs."""
    return momentum * center + (1 - momentum) * mean


def koleo_loss(x: jax.Array, mask: jax.Array | None = None, epsilon: float = 1e-8) -> jax.Array:
    """Returns what keeps features apart (Kozachenko and Leonenko; Sablayrolles et al. 2018, arXiv:1806.03198).

    It is -log(|x_i - x_j| + epsilon) of each normalized row and its nearest neighbor j, the choice of which has no
    gradient, as in DINOv2 (Oquab et al. 2023, arXiv:2304.07193).

    Args:
        x: (n, dim).
        mask: (n,), 0 for rows that are no neighbors; None: all are.
        epsilon: see above.

    Returns:
        (n,) float32.
    """
    x = normalize(x, epsilon)
    excluded = jnp.eye(len(x), dtype=bool) if mask is None else jnp.eye(len(x), dtype=bool) | (mask == 0)
    similar = jnp.where(excluded, -jnp.inf, jnp.matmul(x, x.T, precision="highest"))
    nearest = x[jnp.argmax(jax.lax.stop_gradient(similar), 1)]
    # The source adds it to the difference too, which then has a derivative where rows are equal.
    return -jnp.log(jnp.sqrt(jnp.square(x - nearest + epsilon).sum(-1)) + epsilon)


class WeightNormed(nn.Module):
    """A dense layer without bias, whose weight is g v / |v| for each output (Salimans and Kingma 2016,
    arXiv:1602.07868).

    Parameters have the names and layout of torch's `weight_norm`: `weight_v`, (features, inputs), and, if it is
    trained, `weight_g`, (features, 1).

    Attributes:
        features: outputs.
        scale: whether g is trained; otherwise it is 1.
        dtype: of the product; the result is float32.
    """

    features: int
    scale: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=1, out_axis=0)  # torch's default
        v = self.param("weight_v", init, (self.features, x.shape[-1]), jnp.float32)
        weight = v / jnp.linalg.norm(v, axis=1, keepdims=True)
        if self.scale:
            weight *= self.param("weight_g", nn.initializers.ones, (self.features, 1), jnp.float32)
        return jnp.matmul(x.astype(self.dtype), weight.astype(self.dtype).T, preferred_element_type=jnp.float32)


class DinoHead(nn.Module):
    """An MLP, normalization of its result, and a weight-normalized layer.

    Attributes:
        hidden: widths of the MLP's hidden layers.
        bottleneck: width of its result.
        out: outputs.
        norm: whether the hidden layers have batch norm.
        scale: see `WeightNormed`.
        dtype: it computes in; the result is float32.
    """

    hidden: tuple[int, ...]
    bottleneck: int
    out: int
    norm: bool
    scale: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns (n, out) float32 of x, (n, features)."""
        norm = "affine" if self.norm else ""
        layers = (
            *(Layer(width, bias=True, norm=norm, activation="gelu") for width in self.hidden),
            Layer(self.bottleneck, bias=True, norm="", activation=""),
        )
        x = Mlp(layers, dtype=self.dtype, kernel_init="truncated_0.02", name="mlp")(x, train=train)
        return WeightNormed(self.out, self.scale, self.dtype, name="last_layer")(normalize(x))


# The norms of the last layer's weights in official files, which are 1 if they are not trained.
_FIXED_NORMS = ("student.head.last_layer.weight_g", "teacher.head.last_layer.weight_g")


class _Taught(NamedTuple):
    """What the teacher says: probabilities (rows, crops, out); the sum of its outputs, and its batch statistics."""

    probabilities: jax.Array
    outputs: jax.Array
    stats: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dino(TeacherObjective):
    """DINO. The teacher sees the two crops of the first view, the student all crops: of each view in one forward pass.

    The loss of an evaluation is of two crops, with a center of zero, by the network itself as its own teacher: so it is
    not to be compared with that of training.

    The last layer, `projector/last_layer`, is frozen in the first epoch (`optimizer.frozen_until`).

    Attributes:
        hidden, bottleneck: widths of the projector's hidden layers, and of what is normalized.
        out: number of outputs.
        head_norm: batch norm in the projector.
        norm_last_layer: the weights of each output have norm 1; otherwise their norm is trained, which is better for
            small models, and may be unstable for larger ones.
        student_temperature: of the student.
        teacher_temperature: of the teacher, after its warm-up.
        teacher_temperature_start: of the teacher in the first epoch, from which it rises linearly.
        teacher_temperature_epochs: length of that warm-up; 0: none.
        center_momentum: of the mean of the teacher's outputs, which is subtracted from them.
        koleo: weight of `koleo_loss` of the features of both large crops, 0.1 in DINOv2. The neighbors are those of the
            batch, or of a micro-batch.
    """

    local_crops: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {
        **{"loss": False, "cross_entropy": False, "teacher_entropy": False, "spread": True}
    }

    hidden: tuple[int, ...] = (2048, 2048)
    bottleneck: int = 256
    out: int = 65536
    head_norm: bool = False
    norm_last_layer: bool = True
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    teacher_temperature_start: float = 0.04
    teacher_temperature_epochs: int = 0
    center_momentum: float = 0.9
    koleo: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        temperatures = ("student_temperature", "teacher_temperature", "teacher_temperature_start")
        check_ranges(
            self,
            positive=(*temperatures, "hidden", "bottleneck", "out"),
            not_negative=("teacher_temperature_epochs", "koleo"),
            shares=("center_momentum",),
        )

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """The projector, which the teacher has too."""
        model: Any = self.setup.model
        scale = not self.norm_last_layer
        return {
            "projector": DinoHead(tuple(self.hidden), self.bottleneck, self.out, self.head_norm, scale, model.dtype)
        }

    @property
    def official(self) -> OfficialNames:
        # A projector of one layer is no sequence of layers there.
        single = {} if self.hidden else {"projector.mlp.0.": "student.head.mlp."}
        return OfficialNames(
            {**single, "projector.": "student.head."},
            ("student.", "teacher."),
            ("dino_loss.center", *(_FIXED_NORMS if self.norm_last_layer else ())),
        )

    def from_official(self, given: dict[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
        for name in _FIXED_NORMS:
            if name in state and not (state[name] == 1).all():
                raise DataError(
                    f"{name} is between {state[name].min():.4g} and {state[name].max():.4g}: these weights come from a "
                    "training of the norms of the last layer. Set objective.norm_last_layer=False."
                )
        return {**given, "extra": {"center": state["dino_loss.center"].reshape(-1)}}

    def init_extra(self, variables: Variables) -> Any:
        del variables
        return {"center": jnp.zeros((self.out,), jnp.float32)}

    def teacher_temperature_at(self, progress: Progress) -> jax.Array:
        """Returns the temperature of the teacher, which changes with the epoch."""
        epochs = self.teacher_temperature_epochs
        table = [
            *np.linspace(self.teacher_temperature_start, self.teacher_temperature, epochs),
            self.teacher_temperature,
        ]
        epoch = progress.step // self.setup.steps_per_epoch  # in whole numbers, as a quotient could be rounded down
        return jnp.asarray(table, jnp.float32)[jnp.minimum(epoch, epochs)]

    def targets(
        self,
        variables: Variables,
        average: Variables | None,
        extra: Any,
        frozen: Mapping[str, Any],
        views: Views,
        key: jax.Array,
        progress: Progress,
        *,
        train: bool = True,
    ) -> _Taught:
        assert average is not None  # it is the teacher
        crops = views["image"]
        images = crops.reshape(-1, *crops.shape[2:])
        out, stats = self.embed(average, images, train=train, key=key, model=self.teacher_model)
        out = out.reshape(*crops.shape[:2], -1)
        p = center_and_sharpen(out, extra["center"], self.teacher_temperature_at(progress))
        return _Taught(p, out.sum((0, 1)), stats)

    def loss(
        self, variables: Variables, views: Views, targets: _Taught, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        features, stats = self.encode_views(variables, views, train=train, key=key)
        rows, crops, _ = features.shape
        out, stats = self.apply_heads(variables["params"], stats, features.reshape(rows * crops, -1), train=train)
        mask = None if train else views["mask"]
        values = dino_loss(out.reshape(rows, crops, -1), targets.probabilities, self.student_temperature)
        metrics = {
            "cross_entropy": total(values, mask),
            "teacher_entropy": total(jax.scipy.special.entr(targets.probabilities).sum(-1).mean(1), mask),
            "spread": (spread(features[:, 0], mask), jnp.float32(1)),
        }
        if self.koleo:
            values += self.koleo * (koleo_loss(features[:, 0], mask) + koleo_loss(features[:, 1], mask))
        taught = targets.probabilities.shape[1]
        return Out(
            *total(values, mask),
            {"batch_stats": stats},
            metrics,
            sums={"outputs": targets.outputs, "count": jnp.float32(rows * taught)},
            average_stats=targets.stats,
        )

    def after(self, params: Any, extra: Any, sums: Any, rows: Any, progress: Progress) -> Any:
        return {"center": move_center(extra["center"], sums["outputs"] / sums["count"], self.center_momentum)}

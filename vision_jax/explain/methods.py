"""Methods of explanation as a person names them, with their options, and as functions of a batch of images."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.explain import cam, gradients, occlusion, rollout
from vision_jax.explain.base import Network, check_targets, color
from vision_jax.explain.variants import BATCH_SIZE
from vision_jax.models.intermediates import shapes
from vision_jax.models.layers import ImageModel

Explainer = Callable[[Mapping[str, Any], jax.Array, jax.Array, jax.Array | None], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method of explanation; its fields are its options.

    Attributes:
        signed: whether its maps may be negative, where the image speaks against the class.
        of_class: whether they depend on the class.
        random: whether they depend on a random key.
    """

    signed: ClassVar[bool] = False
    of_class: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def check(self, model: ImageModel, image_shape: tuple[int, int, int]) -> None:
        """Checks that the method can explain a model; nothing is computed.

        Raises:
            ConfigError: if it cannot.
        """

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        """Returns the maps, (batch, height, width) float32; arguments as of what `make_explainer` returns."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The name, and the options that are not as by default, as `parse_method` reads them."""
        options = [
            f":{field.name}={value}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return self.name + "".join(options)

    @property
    def name(self) -> str:
        """The name that `METHODS` has it under."""
        return next(name for name, kind in METHODS.items() if kind is type(self))

    def at_least(self, **least: float) -> None:
        """Checks options that have a lower limit.

        Raises:
            ConfigError: if one is below.
        """
        for name, limit in least.items():
            if not getattr(self, name) >= limit:
                raise ConfigError(f"The option {name} of {self.name} is {getattr(self, name)}: give {limit} or more.")

    def one_of(self, name: str, known: Iterable[str]) -> None:
        """Checks an option that is a name.

        Raises:
            ConfigError: if it is unknown.
        """
        if getattr(self, name) not in known:
            raise ConfigError(
                f"The option {name} of {self.name} is {getattr(self, name)!r}: there are {', '.join(known)}."
            )

    def check_color(self, name: str) -> None:
        """Checks an option that is a color.

        Raises:
            ConfigError: if it is neither a number in [0, 1] nor "mean".
        """
        value = getattr(self, name)
        if value != "mean" and (isinstance(value, str) or not 0 <= value <= 1):
            raise ConfigError(f"The option {name} of {self.name} is {value!r}: give a number from 0 to 1, or mean.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradient(Method):
    """The gradient of the score, added up over channels."""

    signed: ClassVar[bool] = True

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        return gradients.gradient(network.apply, images, targets).sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saliency(Method):
    """The size of the gradient, the largest of the channels."""

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        return jnp.abs(gradients.gradient(network.apply, images, targets)).max(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientXInput(Method):
    """The gradient times the image, added up over channels: pixels that are 0 have none."""

    signed: ClassVar[bool] = True

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        return (gradients.gradient(network.apply, images, targets) * images).sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothGrad(Method):
    """The mean gradient of noisy images, added up over channels; see `gradients.smoothgrad`.

    Attributes:
        sigma: of the noise, where pixels are in [0, 1].
        samples: noisy images.
        squared: average squares of gradients instead.
    """

    signed: ClassVar[bool] = True
    random: ClassVar[bool] = True

    sigma: float = 0.15
    samples: int = 25
    squared: bool = False

    def __post_init__(self) -> None:
        self.at_least(sigma=0, samples=1)

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        found = gradients.smoothgrad(
            network.apply, images, targets, key, sigma=self.sigma, samples=self.samples, squared=self.squared
        )
        return found.sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Method):
    """Integrated gradients, added up over channels; see there in `gradients`.

    Attributes:
        steps: gradients along the path.
        baseline: the color where it begins: a number in [0, 1], or "mean".
        rule: "midpoint" or "gauss-legendre".
    """

    signed: ClassVar[bool] = True

    steps: int = 50
    baseline: float | str = 0.0
    rule: str = "midpoint"

    def __post_init__(self) -> None:
        self.at_least(steps=1)
        self.one_of("rule", gradients.RULES)
        self.check_color("baseline")

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        baseline = color(self.baseline, network.mean)
        found = gradients.integrated_gradients(
            network.apply, images, targets, steps=self.steps, baseline=baseline, rule=self.rule
        )
        return found.sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradCam(Method):
    """Grad-CAM, enlarged and scaled as jacobgil/pytorch-grad-cam does it.

    Attributes:
        layer: a name of `vision_jax.models.intermediates`; None: the model's `gradcam_layer`.
    """

    function: ClassVar[Callable[..., jax.Array]] = staticmethod(cam.gradcam)

    layer: str | None = None

    def check(self, model: ImageModel, image_shape: tuple[int, int, int]) -> None:
        cam.find_layer(model, self.layer, shapes(model, image_shape))

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        return cam.to_image(self.function(network, images, targets, self.layer), images.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradCamPP(GradCam):
    """Grad-CAM++, in the same way; its options are those of `GradCam`."""

    function: ClassVar[Callable[..., jax.Array]] = staticmethod(cam.gradcam_pp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout(Method):
    """Attention rollout, enlarged; see `rollout.product`. It is the same for all classes.

    Attributes:
        fusion: of the heads: "mean", "max" or "min".
        discard: the share of the smallest attention that is set to zero.
    """

    of_class: ClassVar[bool] = False

    fusion: str = "mean"
    discard: float = 0.0

    def __post_init__(self) -> None:
        self.one_of("fusion", rollout.FUSIONS)
        self.at_least(discard=0)
        if self.discard >= 1:
            raise ConfigError(f"The option discard of rollout is {self.discard}: give a share below 1.")

    def check(self, model: ImageModel, image_shape: tuple[int, int, int]) -> None:
        rollout.attention_names(model, shapes(model, image_shape))

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        found = rollout.rollout(network, images, fusion=self.fusion, discard=self.discard)
        return cam.enlarge(found, images.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Occlusion(Method):
    """What the score loses by a window over each pixel; see `occlusion.occlusion`.

    Attributes:
        window: its height and width in pixels; 0: a seventh of the image's height, which is 32 of 224.
        stride: from one to the next; 0: half a window.
        baseline: the color of the window: a number in [0, 1], or "mean".
        batch_size: images in one forward pass.
    """

    signed: ClassVar[bool] = True

    window: int = 0
    stride: int = 0
    baseline: float | str = 0.0
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        self.at_least(window=0, stride=0, batch_size=1)
        self.check_color("baseline")
        if self.window and self.stride > self.window:
            raise ConfigError(
                f"The option stride of occlusion is {self.stride}: give {self.window} or less, which is its window, so "
                "that each pixel is covered."
            )

    def sizes(self, height: int) -> tuple[int, int]:
        """Returns the window and the stride in pixels of images of a height."""
        window = self.window or max(1, height // 7)
        return window, self.stride or max(1, window // 2)

    def check(self, model: ImageModel, image_shape: tuple[int, int, int]) -> None:
        window, stride = self.sizes(image_shape[0])
        if window > min(image_shape[:2]) or stride > window:
            raise ConfigError(
                f"Occlusion has a window of {window} pixels and a stride of {stride}, of images of {image_shape[0]} x "
                f"{image_shape[1]}: give a window within them, and a stride that is not larger."
            )

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        self.check(network.model, (images.shape[1], images.shape[2], images.shape[3]))
        window, stride = self.sizes(images.shape[1])
        return occlusion.occlusion(
            network.apply,
            images,
            targets,
            window=window,
            stride=stride,
            baseline=color(self.baseline, network.mean),
            batch_size=self.batch_size,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rise(Method):
    """RISE with the paper's numbers; see `occlusion.rise`.

    Attributes:
        masks: how many; of a few hundred, the map is a rough one.
        cells: of a mask, in each direction.
        share: of them that are visible.
        baseline: the color of what is hidden: "mean", as published, or a number in [0, 1].
        batch_size: images in one forward pass.
    """

    random: ClassVar[bool] = True

    masks: int = 8000
    cells: int = 7
    share: float = 0.5
    baseline: float | str = "mean"
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        self.at_least(masks=1, cells=1, batch_size=1)
        self.check_color("baseline")
        if not 0 < self.share < 1:
            raise ConfigError(f"The option share of rise is {self.share}: give one above 0 and below 1.")

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None:
            raise ConfigError("RISE masks images randomly: give it a random key.")
        return occlusion.rise(
            network.apply,
            images,
            targets,
            key,
            masks=self.masks,
            cells=self.cells,
            share=self.share,
            baseline=color(self.baseline, network.mean),
            batch_size=self.batch_size,
        )


METHODS: Mapping[str, type[Method]] = {
    "gradient": Gradient,
    "saliency": Saliency,
    "gradient_x_input": GradientXInput,
    "smoothgrad": SmoothGrad,
    "integrated_gradients": IntegratedGradients,
    "ig": IntegratedGradients,
    "gradcam": GradCam,
    "gradcam_pp": GradCamPP,
    "rollout": Rollout,
    "occlusion": Occlusion,
    "rise": Rise,
}


def parse_method(text: str) -> Method:
    """Reads a method: its name, and options as in `gradcam:layer=layer3` and `smoothgrad:samples=50:sigma=0.1`.

    Raises:
        ConfigError: if the name, an option or its value is not known.
    """
    name, *options = (part.strip() for part in text.split(":"))
    if name not in METHODS:
        raise ConfigError(f"The method is {name!r}: there are {', '.join(METHODS)}.")
    kind = METHODS[name]
    types = {field.name: typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if key not in types:
            known = f"it takes {', '.join(types)}, as in {name}:{next(iter(types))}=..." if types else "it takes none"
            raise ConfigError(f"The method {name} has no option {key!r}: {known}.")
        if not equals or key in given:
            raise ConfigError(f"The option {key} of {name} is given {'twice' if equals else 'without a value'}: {text}")
        given[key] = _value(name, key, value, types[key])
    return kind(**given)


def _value(method: str, option: str, text: str, kind: Any) -> Any:
    """Returns the value of an option, of a type such as `int` or `float | str`."""
    allowed = typing.get_args(kind) or (kind,)
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in allowed:
            try:
                value = number(text)
            except ValueError:
                continue
            if math.isfinite(value):
                return value
    if str in allowed and text:
        return text
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}
    wanted = " or ".join(words for one, words in names.items() if one in allowed)
    raise ConfigError(f"The option {option} of {method} is {text!r}: give {wanted}.")


def make_explainer(
    model: ImageModel, method: Method, *, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
) -> Explainer:
    """Returns a method's maps as a pure function of (variables, images, targets, key), to be compiled by `jax.jit`.

    It takes

    - the model's variables: `params`, and `batch_stats` if it has them;
    - images, (batch, height, width, channels) float32 in [0, 1], that are not normalized;
    - targets, (batch,) integers: the classes whose logits are explained. One that does not exist is an error, but
      within a compiled function, where it is not known; the map is then that of a constant. See `check_targets`;
    - a random key, or one for each image; None where the method has nothing random.

    and returns (batch, height, width) float32. Each image is explained for itself, whatever else is in the batch.

    Args:
        model: with a classifier.
        method: such as `parse_method` gives.
        mean, std: of the normalization of images, one number or one for each channel; the model's preprocessing.

    Raises:
        ConfigError: if the model has no classifier. The function raises it where `check` does, and for images of
            integers.
    """
    if not model.num_classes:
        raise ConfigError("The model has no classes, whose scores are explained: it needs num_classes above 0.")

    def explain(
        variables: Mapping[str, Any], images: jax.Array, targets: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        if not isinstance(targets, jax.core.Tracer):
            check_targets(targets, model.num_classes)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ConfigError(f"The images are {images.dtype}: give floating-point numbers in [0, 1].")
        network = Network(model, variables, tuple(map(float, mean)), tuple(map(float, std)))
        return method.maps(network, jnp.asarray(images, jnp.float32), jnp.asarray(targets), key)

    return explain


def check(model: ImageModel, method: Method, image_shape: tuple[int, int, int]) -> None:
    """Checks that a method can explain a model: that there is the layer, or the attention, that it needs.

    Nothing is computed. It is also checked when maps are made.

    Args:
        model: the module.
        method: such as `parse_method` gives.
        image_shape: (height, width, channels) of its images.

    Raises:
        ConfigError: if it cannot.
    """
    method.check(model, image_shape)

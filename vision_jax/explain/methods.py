"""Methods of explanation as a person names them, with their options, and as functions of a batch of images."""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.explain import cam, gradients
from vision_jax.explain.base import Network, check_targets
from vision_jax.models.intermediates import shapes
from vision_jax.models.layers import ImageModel

Explainer = Callable[[Mapping[str, Any], jax.Array, jax.Array, jax.Array | None], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method of explanation; its fields are its options.

    Attributes:
        signed: whether its maps are negative where the image speaks against the class.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradient(Method):
    """The gradient of the score, added up over channels."""

    signed: ClassVar[bool] = True

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        return gradients.gradient(network.apply, images, targets).sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradCam(Method):
    """Grad-CAM, as jacobgil/pytorch-grad-cam enlarges and scales it.

    Attributes:
        layer: a name of `vision_jax.models.intermediates`; None: the model's `gradcam_layer`.
    """

    layer: str | None = None

    def check(self, model: ImageModel, image_shape: tuple[int, int, int]) -> None:
        cam.find_layer(model, self.layer, shapes(model, image_shape))

    def maps(self, network: Network, images: jax.Array, targets: jax.Array, key: jax.Array | None) -> jax.Array:
        return cam.to_image(cam.gradcam(network, images, targets, self.layer), images.shape[1:])


METHODS: Mapping[str, type[Method]] = {
    "gradient": Gradient,
    "gradcam": GradCam,
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
                return number(text)
            except ValueError:
                continue
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
        ConfigError: if the model has no classifier. The function raises it where `check` does.
    """
    if not model.num_classes:
        raise ConfigError("The model has no classes, whose scores are explained: it needs num_classes above 0.")

    def explain(
        variables: Mapping[str, Any], images: jax.Array, targets: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        if not isinstance(targets, jax.core.Tracer):
            check_targets(targets, model.num_classes)
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

"""Starting JAX on the devices that it is told to use."""

import os

import jax

from vision_jax.errors import ConfigError


def start() -> None:
    """Makes JAX find its devices, as its first use would.

    Raises:
        ConfigError: if it finds none of the platforms that it is told to use, or cannot start one.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # for a platform without devices it is the former, and is empty
        said = str(error).partition(" (set JAX_PLATFORMS")[0] or "it finds no device of such a platform"
        said = " ".join(said.split()).rstrip(".")
        if platforms := os.environ.get("JAX_PLATFORMS"):
            raise ConfigError(
                f"JAX_PLATFORMS is {platforms!r}, which JAX cannot use: {said}. Unset it to use the devices that there "
                "are, or see to the driver and to JAX's package for them (`pip install jax[cuda12]`, `jax[tpu]`)."
            ) from error
        raise ConfigError(f"JAX cannot use the devices of this machine: {said}.") from error

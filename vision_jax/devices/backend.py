"""Starting JAX on the requested devices."""

import os

import jax

from vision_jax.errors import ConfigError


def start() -> None:
    """Initializes JAX's backend, as its first use would.

    Raises:
        ConfigError: if JAX finds no device of the requested platforms, or cannot initialize one.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # for a platform without devices, the former, without a message
        said = str(error).partition(" (set JAX_PLATFORMS")[0] or "it finds no device of such a platform"
        said = " ".join(said.split()).rstrip(".")
        if platforms := os.environ.get("JAX_PLATFORMS"):
            raise ConfigError(
                f"JAX_PLATFORMS is {platforms!r}, which JAX cannot use: {said}. Unset it to use the available devices, "
                "or check the driver and JAX's package for it (`pip install jax[cuda12]`, `jax[tpu]`)."
            ) from error
        raise ConfigError(f"JAX cannot use the devices of this machine: {said}.") from error

"""Starting JAX on the requested devices, and keeping what it compiles."""

import functools
import logging
import os
import pathlib
import re
import subprocess
import sys

import jax

from vision_jax.data.cache import cache_dir
from vision_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def start() -> None:
    """Initializes JAX's backend, as its first use would.

    Raises:
        ConfigError: if JAX finds no device of the requested platforms, or cannot initialize one.
    """
    check_xla_flags()
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


@functools.cache
def check_xla_flags() -> None:
    """Checks XLA_FLAGS of the environment: for a wrong one XLA ends the process, with pages about all there are.

    Another process reads them, which takes a fifth of a second where there are any.

    Raises:
        ConfigError: for a flag that XLA does not have, or a value that it does not take.
    """
    if not (flags := os.environ.get("XLA_FLAGS", "").strip()):
        return
    read = "from jaxlib import xla_client; xla_client.CompileOptions()"
    done = subprocess.run([sys.executable, "-c", read], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    said = re.search(r"^[EF]\d{4} [^\]]*\] (.*?)\.?$", done.stderr.decode(errors="replace"), re.MULTILINE)
    if done.returncode and said is not None:  # whatever else may be wrong there, JAX itself says better
        raise ConfigError(f"XLA_FLAGS is {flags!r}, which XLA cannot use: {said[1]}. Correct or unset it.")


def leave_devices_free() -> None:
    """Makes JAX start on the CPU alone, for programs that are only compiled; before its backend is initialized."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # of processes that this one starts
    jax.config.update("jax_platforms", "cpu")  # a config file may have imported JAX, which then has read the variable


def enable_compilation_cache(directory: str | None) -> None:
    """Keeps compiled programs between runs: in `directory`, by default vision_jax's cache; nowhere if it is empty."""
    if directory == "":
        return
    try:
        path = pathlib.Path(directory).expanduser() if directory else cache_dir() / "compiled"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # private to the user; JAX would not see to that
    except (OSError, DataError) as error:
        log.warning("The compilation cache is not used: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

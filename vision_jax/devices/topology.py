"""TPU slices that are not here: XLA's compiler for TPUs needs none, so a program's cost can be known without one."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from vision_jax.errors import ConfigError

# Each generation, and the dimensions of its network.
GENERATIONS = {"v2": 2, "v3": 2, "v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_NAME = re.compile(r"(?:(?P<slices>[1-9]\d*)x)?(?P<generation>\w+):(?P<shape>[1-9]\d*(?:x[1-9]\d*)*)")
# Without these, libtpu looks for TPUs, asks a server of Google's cloud what it is part of, and lets one process at a
# time use it.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def describe(name: str) -> Sequence[jax.Device]:
    """Returns the devices of TPU slices as the compiler sees them; nothing can be put on them.

    Args:
        name: the generation and the number of chips along each dimension of its network, such as v5e:4x4 or v5p:2x2x4;
            several slices as 2xv5e:4x4.

    Raises:
        ConfigError: if there is no such slice, or libtpu is not installed.
    """
    known = ", ".join(f"{generation}:{'x'.join(['4'] * rank)}" for generation, rank in GENERATIONS.items())
    help_text = f"Give chips along each dimension, such as {known}; several slices as 2xv5e:4x4."
    match = _NAME.fullmatch(name)
    if match is None or (rank := GENERATIONS.get(match["generation"])) is None:
        raise ConfigError(f"The topology {name!r} is not known. {help_text}")
    shape = [int(size) for size in match["shape"].split("x")]
    if len(shape) != rank:
        raise ConfigError(f"The topology {name!r} has {len(shape)} dimensions, and a {match['generation']} {rank}.")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"The topology {name!r} needs XLA's compiler for TPUs, libtpu, which is not installed: "
            "pip install -e '.[tpu]'"
        )
    for variable, value in _ALONE.items():
        os.environ.setdefault(variable, value)
    options: dict[str, object] = {}
    if (slices := int(match["slices"] or 1)) > 1:
        options["num_slices"] = slices
    if match["generation"] == "v4":  # the two cores of a chip are one device, as where there are chips
        options["chip_config_name"] = "megacore"
    if math.prod(shape) < 4:  # a host has four chips, unless one says that it has fewer
        options["chips_per_host_bounds"] = tuple(shape + [1] * (3 - rank))
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{match['generation']}:{match['shape']}", **options
        )
        return description.devices
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError(f"XLA does not know the topology {name!r}: {said}. {help_text}") from error

"""What the modules of cases begin with that several processes run, such as mesh_cases; tests start them by `launch`.

It imports nothing of pytest's: conftest would set the devices of the process that runs the cases.
"""

import argparse
import os
import pathlib

from vision_jax.commands import common
from vision_jax.devices import cluster, distributed


def start(cases: bool = True) -> argparse.Namespace:
    """Connects this process with the others, and returns `directory` and, unless there are none, names of `cases`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=pathlib.Path)
    common.add_process_arguments(parser)
    if cases:
        parser.add_argument("cases", nargs="+")
    arguments = parser.parse_args()
    address, number, index = arguments.coordinator_address, arguments.num_processes, arguments.process_id
    distributed.start(cluster.discover(os.environ, address, number, index))
    return arguments

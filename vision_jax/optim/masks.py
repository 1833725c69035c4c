"""Which parameters an option of an optimizer applies to."""

from typing import Any

import jax


def decay_mask(params: Any) -> Any:
    """Returns a tree of booleans: True for kernels, False for norms and biases, which do not decay.

    What is named `kernel` multiplies the signal and decays; all else (`bias`, `scale`) shifts or rescales it.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

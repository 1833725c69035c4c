"""Devices: the mesh, and how arrays are laid out on it.

Everything is one program over one mesh with named axes (axis types Auto): the compiler inserts the communication.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict


def wait_for_all(what: str) -> None:
    """Waits until every process has come to this point; `what` names it, the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"vision_jax: {what}")


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh that `config.mesh` describes, of all devices unless some are given."""
    devices = jax.devices() if devices is None else devices
    size = len(devices) if config.mesh.data == -1 else config.mesh.data
    return jax.make_mesh((size,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout in which every device holds all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """Returns the layout of batches: the first dimension is divided over the `data` axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def abstract(tree: Any, sharding: NamedSharding) -> Any:
    """Returns the tree with shapes, dtypes and the given layout in place of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def abstract_batch(
    mesh: Mesh, batch_size: int, image_shape: tuple[int, int, int], *, replaces: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and layout of a global batch of uint8 images (height, width, channels).

    `replaces` says whether it tells which rows stand for damaged records.
    """
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *image_shape), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "mask": jax.ShapeDtypeStruct((batch_size,), np.float32),
    }
    if replaces:
        batch["replaced"] = jax.ShapeDtypeStruct((batch_size,), np.float32)
    return abstract(batch, along_batch(mesh))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the sorted positions in a global batch that the devices of this process hold, (n,) int64."""
    indices = along_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def batch_placer(mesh: Mesh, batch_size: int) -> Callable[[str, np.ndarray], jax.Array]:
    """Returns a function that makes a global array of this process's rows, in the order of `local_rows`.

    It returns when the rows have been copied, so that they may be written to again.
    """
    sharding = along_batch(mesh)
    rows = local_rows(mesh, batch_size)
    # On a CPU, an array of JAX could otherwise be the same memory.
    copies = mesh.devices.flat[0].platform == "cpu"

    def place(key: str, values: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (index[0] if index else slice(None)).indices(batch_size)
            first = int(np.searchsorted(rows, start))
            part = values[first : first + stop - start]
            return part.copy() if copies else part

        array = jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, shard)
        return jax.block_until_ready(array)

    return place

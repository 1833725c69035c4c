"""Devices: the mesh, and how arrays are laid out on it.

Everything is one program over one mesh with named axes (axis types Auto): the compiler inserts the communication.
"""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vision_jax.data.views import Field
from vision_jax.errors import ConfigError

# From the one that may cross the slowest network to the one that needs the fastest.
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def wait_for_all(what: str) -> None:
    """Waits until every process has come to this point; `what` names it, the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"vision_jax: {what}")


def mesh_axes(mesh: Mapping[str, Any], num_devices: int) -> dict[str, int]:
    """Returns the sizes of the axes of the mesh, from the slowest network to the fastest, with -1 filled in.

    Args:
        mesh: the wanted size of each of `AXES`, as in `config.mesh`; one of them may be -1: what is left.
        num_devices: of all processes.

    Raises:
        ConfigError: if they do not make up the devices.
    """
    sizes = {name: mesh[name] for name in AXES}
    text = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    left = [name for name, size in sizes.items() if size == -1]
    if len(left) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(f"{text}: sizes are positive, and one of them may be -1, for what is left.")
    given = math.prod(size for size in sizes.values() if size != -1)
    if left and num_devices % given == 0:
        return sizes | {left[0]: num_devices // given}
    if left or given != num_devices:
        raise ConfigError(
            f"{text} make {'a multiple of ' if left else ''}{given} devices, but there are {num_devices}: "
            + ("make the sizes divide them." if left else "give one of the axes -1, for what is left.")
        )
    return sizes


def make_mesh(sizes: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of these sizes (see `mesh_axes`), of all devices unless some are given.

    Where devices are in several slices of TPUs, or several hosts with GPUs, the last axes stay within one as far as
    they fit: they communicate the most.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(device_array(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_array(sizes: Mapping[str, Any], devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the devices in the shape of the mesh; see `make_mesh`."""
    shape = tuple(mesh_axes(sizes, len(devices)).values())
    granules = collections.Counter(_granule(device) for device in devices)
    if len(granules) == 1 or len(set(granules.values())) > 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within, across = split_axes(shape, len(granules))
    by_process = not hasattr(devices[0], "slice_index")
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, process_is_granule=by_process, allow_split_physical_axes=True
    )


def _granule(device: jax.Device) -> int:
    """Returns the number of the slice, or else of the host process, within which communication is fast."""
    return getattr(device, "slice_index", device.process_index)


def split_axes(shape: Sequence[int], granules: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Splits the sizes of axes into those within a granule (a slice or host) and those across: the first axes cross.

    Raises:
        ConfigError: if granules do not divide the first axes.
    """
    across = []
    left = granules
    for size in shape:
        factor = math.gcd(size, left)
        across.append(factor)
        left //= factor
    if left > 1:
        raise ConfigError(
            f"A mesh of {' x '.join(map(str, shape))} devices cannot be made of {granules} slices or hosts of "
            f"{math.prod(shape) // granules}: choose axes that are multiples or divisors of these."
        )
    return tuple(size // factor for size, factor in zip(shape, across, strict=True)), tuple(across)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout in which every device holds all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """Returns the layout of batches: the first dimension is divided over the axes `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts that a batch is divided into."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def abstract(tree: Any, layout: Any) -> Any:
    """Returns the tree with shapes, dtypes and layouts in place of arrays.

    `layout` is one for all, or a tree of one for each.
    """
    layouts = jax.tree.map(lambda _: layout, tree) if isinstance(layout, NamedSharding) else layout
    return jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y), tree, layouts)


def place(tree: Any, layouts: Any) -> Any:
    """Returns a tree of arrays in the memory of the host as arrays on the devices.

    All processes have the same values: each places what its own devices hold. `jax.device_put` would compare every
    array over all processes, by a collective each.

    Args:
        tree: of arrays that nobody writes to any more, as those on CPUs may be the same memory.
        layouts: one for all, or a tree of one for each.
    """
    layouts = jax.tree.map(lambda _: layouts, tree) if isinstance(layouts, NamedSharding) else layouts

    def place_one(x: Any, layout: NamedSharding) -> jax.Array:
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, layout, lambda index: values[index])

    return jax.tree.map(place_one, tree, layouts)


def abstract_batch(mesh: Mesh, batch_size: int, fields: Mapping[str, Field]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and layout of a global batch that has the given fields a row."""
    batch = {name: jax.ShapeDtypeStruct((batch_size, *field.shape), field.dtype) for name, field in fields.items()}
    return abstract(batch, along_batch(mesh))


def compile_on(mesh: Mesh, jitted: Any, *arguments: Any) -> jax.stages.Compiled:
    """Compiles a jitted function for arguments, or their shapes and layouts, with `mesh` as the mesh in use."""
    with jax.set_mesh(mesh):
        return jitted.lower(*arguments).compile()


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the sorted positions in a global batch that the devices of this process hold, (n,) int64."""
    indices = along_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def batch_placer(mesh: Mesh, batch_size: int) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """Returns a function that makes a global batch of this process's rows, which are in the order of `local_rows`.

    It begins to copy all fields, and returns when they have been copied, so that the rows may be written to again.
    """
    sharding = along_batch(mesh)
    rows = local_rows(mesh, batch_size)
    # On a CPU, an array of JAX could otherwise be the same memory.
    copies = mesh.devices.flat[0].platform == "cpu"

    def place(values: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (index[0] if index else slice(None)).indices(batch_size)
            first = int(np.searchsorted(rows, start))
            part = values[first : first + stop - start]
            return part.copy() if copies else part

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, shard)

    return lambda batch: jax.block_until_ready({name: place(values) for name, values in batch.items()})

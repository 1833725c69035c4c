"""The device mesh, and how arrays are sharded over it.

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

# From the one that tolerates the slowest network to the one that needs the fastest.
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def wait_for_all(what: str) -> None:
    """Waits until every process has reached this point, which `what` names, the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"vision_jax: {what}")


def mesh_axes(mesh: Mapping[str, Any], num_devices: int) -> dict[str, int]:
    """Returns the sizes of the axes of the mesh, from the slowest network to the fastest, with -1 filled in.

    Args:
        mesh: the size of each of `AXES`, as in `config.mesh`; one of them may be -1, for all that remain.
        num_devices: of all processes.

    Raises:
        ConfigError: if they do not multiply to the number of devices.
    """
    sizes = {name: mesh[name] for name in AXES}
    text = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    left = [name for name, size in sizes.items() if size == -1]
    if len(left) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(f"{text}: sizes must be positive, except for one of -1, for all that remain.")
    given = math.prod(size for size in sizes.values() if size != -1)
    if left and num_devices % given == 0:
        return sizes | {left[0]: num_devices // given}
    if left or given != num_devices:
        raise ConfigError(
            f"{text} make {'a multiple of ' if left else ''}{given} devices, but there are {num_devices}: "
            + ("make the sizes divide them." if left else "set one of the axes to -1, for all that remain.")
        )
    return sizes


def make_mesh(sizes: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of these sizes (see `mesh_axes`), over all devices unless some are given.

    If the devices are in several TPU slices, or several hosts with GPUs, the last axes, which communicate the most,
    stay within one as far as they fit.
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
    # A TPU that is only described (`topology.py`) has a number only if there are several slices.
    return getattr(device, "slice_index", 0 if device.platform == "tpu" else device.process_index)


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
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: the first dimension over the axes `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of shards of a batch."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def abstract(tree: Any, layout: Any) -> Any:
    """Returns the tree with shapes, dtypes and shardings in place of arrays.

    `layout` is one sharding for all, or a tree of shardings.
    """
    layouts = jax.tree.map(lambda _: layout, tree) if isinstance(layout, NamedSharding) else layout
    return jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y), tree, layouts)


def place(tree: Any, layouts: Any) -> Any:
    """Moves a tree of arrays from host memory to the devices.

    All processes must have the same values; each places the shards of its own devices. `jax.device_put` would compare
    every array across processes, with one collective each.

    Args:
        tree: of arrays that are not modified any more, since on CPUs the memory may be shared.
        layouts: one sharding for all, or a tree of shardings.
    """
    layouts = jax.tree.map(lambda _: layouts, tree) if isinstance(layouts, NamedSharding) else layouts

    def place_one(x: Any, layout: NamedSharding) -> jax.Array:
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, layout, lambda index: values[index])

    return jax.tree.map(place_one, tree, layouts)


def abstract_batch(mesh: Mesh, batch_size: int, fields: Mapping[str, Field]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and sharding of a global batch with these fields per row."""
    batch = {name: jax.ShapeDtypeStruct((batch_size, *field.shape), field.dtype) for name, field in fields.items()}
    return abstract(batch, along_batch(mesh))


def compile_on(mesh: Mesh, jitted: Any, *arguments: Any) -> jax.stages.Compiled:
    """Compiles a jitted function for arguments, or their shapes and shardings, with `mesh` as the current mesh."""
    with jax.set_mesh(mesh):
        return jitted.lower(*arguments).compile()


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the sorted positions in a global batch of the rows on this process's devices, (n,) int64."""
    indices = along_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def batch_placer(mesh: Mesh, batch_size: int) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """Returns a function that makes a global batch from this process's rows, in the order of `local_rows`.

    It starts the copies of all fields, and returns when they are done, so that the rows may be overwritten.
    """
    sharding = along_batch(mesh)
    rows = local_rows(mesh, batch_size)
    # On a CPU, a JAX array could otherwise share the memory.
    copies = mesh.devices.flat[0].platform == "cpu"

    def place(values: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (index[0] if index else slice(None)).indices(batch_size)
            first = int(np.searchsorted(rows, start))
            part = values[first : first + stop - start]
            return part.copy() if copies else part

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, shard)

    return lambda batch: jax.block_until_ready({name: place(values) for name, values in batch.items()})

"""Starting `jax.distributed`, and checking that all processes run the same thing.

`start` joins the processes and tests their connection with one collective, both within a time limit. `check_agreement`
stops all of them if their configurations, software or data differ. `from_first` is for reading files that one process
writes, which the others may not see yet.
"""

import collections
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vision_jax
from vision_jax import errors
from vision_jax.devices import backend
from vision_jax.devices.cluster import ClusterSpec
from vision_jax.errors import DistributedError

# How long processes wait for each other at the start: the machines of one job may be allocated minutes apart.
START_SECONDS = 300
# A process without a heartbeat for this long is considered dead, and jax.distributed ends the others. Since processes
# send two heartbeats in this time, a dead one is detected after 25 to 50 s: within a minute.
HEARTBEAT_SECONDS = 50
# The packages that results depend on.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu", "jax-cuda12-plugin")


def start(
    spec: ClusterSpec, *, seconds: float = START_SECONDS, initialize: Callable[..., None] = jax.distributed.initialize
) -> str:
    """Joins this process to the others and tests their connection. Call it before JAX is used.

    Args:
        spec: see `vision_jax.devices.cluster`.
        seconds: how long to wait for the others.
        initialize: replaces `jax.distributed.initialize` in tests.

    Returns:
        a sentence on the topology: processes, hosts, devices and slices.

    Raises:
        DistributedError: if the others cannot be reached or are not there in time, or the first collective fails.
        ConfigError: if XLA_FLAGS cannot be used.
    """
    backend.check_xla_flags()
    print(f"Joining the other processes: {spec}.", file=sys.stderr, flush=True)
    # On a timeout of its own, JAX aborts the process with a C++ stack trace: ours must come first.
    limits = {"initialization_timeout": int(seconds) + 60, "heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    try:
        _within(seconds, lambda: initialize(**_arguments(spec), **limits), f"The processes have not met ({spec})")
    except jax.errors.JaxRuntimeError as error:
        raise DistributedError(f"Cannot join the other processes ({spec}): {error}") from error
    # This is also the first query of the other processes' devices, which can hang as well.
    counted, hosts = _within(seconds, lambda: (_count_devices(), gather(platform.node())), "The first collective hangs")
    if counted != jax.device_count():
        raise DistributedError(
            f"The first collective counted {counted} devices instead of {jax.device_count()}: the devices or the "
            "network between them are faulty."
        )
    return describe_topology(jax.devices(), hosts)


def _arguments(spec: ClusterSpec) -> dict[str, Any]:
    """Returns the arguments for `jax.distributed.initialize`."""
    if spec.coordinator_address is None:
        return {}
    host, port = spec.coordinator_address.rsplit(":", 1)
    arguments = {
        "coordinator_address": spec.coordinator_address,
        "num_processes": spec.num_processes,
        "process_id": spec.process_id,
        "local_device_ids": spec.local_device_ids,
        "cluster_detection_method": "deactivate",
    }
    if host in ("127.0.0.1", "localhost", "[::1]"):
        # By default process 0 listens on all network interfaces.
        arguments["coordinator_bind_address"] = f"{'127.0.0.1' if host == 'localhost' else host}:{port}"
    return arguments


def _within(seconds: float, function: Callable[[], Any], what: str) -> Any:
    """Returns the result of a function, or raises DistributedError after a time limit, leaving it running."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="distributed", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise DistributedError(
            f"{what} after {seconds:g} s. Check that each of them is running (see the output of all), and that their "
            "number is right; that the name of process 0's host resolves, and that its port is free there and open to "
            "the others. With GPUs, NCCL_DEBUG=INFO shows which network is used."
        )
    if errors:
        raise errors[0]
    return results[0]


def _count_devices() -> int:
    """Returns the number of devices, as a sum of one from each."""
    backend.start()
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    ones = jax.make_array_from_callback(
        (jax.device_count(),), NamedSharding(mesh, PartitionSpec("all")), lambda index: np.ones(1, np.int32)
    )
    return int(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones))


def describe_topology(devices: Sequence[Any], hosts: Sequence[str]) -> str:
    """Returns a sentence on processes, their hosts, devices and slices, such as `2 processes on 2 hosts, …`."""
    each = sorted(set(collections.Counter(device.process_index for device in devices).values()))
    kinds = sorted({device.device_kind for device in devices})
    slices = len({getattr(device, "slice_index", None) for device in devices})
    return (
        f"{len(hosts)} processes on {_count(len(set(hosts)), 'host')}, {' or '.join(map(str, each))} of "
        f"{_count(len(devices), 'device')} each ({', '.join(kinds)}), in {_count(slices, 'slice')}; "
        "a test collective over all of them succeeded."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in order. Every process must call it. Values are passed as JSON."""
    data = _encode(value)
    if jax.process_count() == 1:
        return [_decode(data)]
    sizes = multihost_utils.process_allgather(np.array([data.size], np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [_decode(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def from_first(compute: Callable[[], Any]) -> Any:
    """Returns, in all processes, the result of `compute` in process 0. Every process must call it.

    The value is passed as JSON, even if there is only one process: tuples become lists, and keys strings.

    Raises:
        the exception of `compute` in process 0; in the others the same one if it is an error of this package, otherwise
            DistributedError.
    """
    if jax.process_count() == 1:
        return _decode(_encode(compute()))
    message, error = {}, None
    if jax.process_index() == 0:
        try:
            message = {"value": compute()}
        except Exception as caught:  # raised again, once the others know
            error, message = caught, {"error": type(caught).__name__, "text": str(caught)}
    data = _encode(message)
    size = int(multihost_utils.broadcast_one_to_all(np.array(data.size, np.int32)))
    padded = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        padded[:] = data
    message = _decode(np.asarray(multihost_utils.broadcast_one_to_all(padded)))
    if error is not None:
        raise error
    if "error" in message:
        kind = getattr(errors, message["error"], None)
        if kind is None:
            raise DistributedError(f"Process 0 failed with {message['error']}: {message['text']}")
        raise kind(message["text"])
    return message["value"]


def _encode(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _decode(data: np.ndarray) -> Any:
    return json.loads(data.tobytes())


class Readable(Protocol):
    """The properties of a source of records that are compared; also `fingerprint() -> str`, if it has one."""

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...


def check_agreement(facts: Mapping[str, Any], sources: Mapping[str, Readable] | None = None) -> None:
    """Checks that all processes have the same facts, code, packages, number of devices, and data.

    Args:
        facts: JSON values that must be the same in all; mappings may be nested.
        sources: the data that the processes read, by names such as "training data".

    Raises:
        DistributedError: in all processes, if something differs; the message says what, and in which processes.
    """
    if jax.process_count() == 1:
        return
    versions = {
        **{"the version of Python": platform.python_version(), "the code of vision_jax": code_version()},
        **{f"the version of {name}": version for name in _PACKAGES if (version := _version(name)) is not None},
        "the number of local devices": jax.local_device_count(),
        "the kind of devices": jax.local_devices()[0].device_kind,
    }
    data = [describe_source(name, source) for name, source in (sources or {}).items()]
    everything = gather([{**facts, **versions}, {name: value for each in data for name, value in each.items()}])
    if lines := differences([each for each, _ in everything]):
        raise DistributedError(
            "The processes were started differently:\n  "
            + "\n  ".join(lines)
            + "\nStart all of them with the same command and in the same environment."
        )
    if lines := differences([each for _, each in everything]):
        raise DistributedError(
            "The processes do not see the same data:\n  "
            + "\n  ".join(lines)
            + "\nAll processes must see the same files in data.dir: use a shared file system, or copy the whole data "
            "set to every host again."
        )


def describe_source(name: str, source: Readable) -> dict[str, Any]:
    """Returns the facts by which a source is compared: its length, classes, and fingerprint if it has one."""
    classes = hashlib.sha256(json.dumps([source.num_classes, *source.class_names]).encode()).hexdigest()[:12]
    described = {
        f"the number of records in the {name}": len(source),
        f"the hash of the class names of the {name}": f"{classes}, of {source.num_classes} classes",
    }
    if (fingerprint := getattr(source, "fingerprint", None)) is not None:
        described[f"the fingerprint of the {name}"] = fingerprint()
    return described


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each fact that differs between processes.

    For example, `optimizer.learning_rate is 0.1 in processes 0, 1 and 0.2 in process 2`.
    """
    flat = [_flatten(each) for each in facts]
    lines = []
    for name in dict.fromkeys(name for each in flat for name in each):
        holders: dict[str, list[int]] = {}
        for process, each in enumerate(flat):
            text = json.dumps(each[name]) if name in each else "absent"
            holders.setdefault(text, []).append(process)
        if len(holders) > 1:
            lines.append(f"{name} is " + " and ".join(f"{text} in {_processes(who)}" for text, who in holders.items()))
    return lines


def _flatten(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _processes(numbers: Sequence[int]) -> str:
    """Returns the sorted numbers in words: `process 2`, `processes 0, 1`, `processes 0 to 62, 64`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(texts)}"


def code_version() -> str:
    """Returns 12 hexadecimal digits of the SHA-256 of this package's Python files and their names."""
    root = pathlib.Path(vision_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

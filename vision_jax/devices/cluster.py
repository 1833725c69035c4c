"""Cluster detection: from flags, or from the environment of SLURM, Cloud TPU, Kubernetes or Open MPI.

`discover` is a pure function of its arguments and does not import JAX. On Cloud TPU, JAX's own detection is used.
Elsewhere it has problems that this one avoids: it restricts each process of SLURM and Open MPI to the GPU of its local
rank, which leaves all but one GPU unused if a task has a whole node, and does not exist if a task sees only its own; it
drops everything after the first bracket in a SLURM node name; and it queries the Kubernetes API, for which a pod needs
permissions.
"""

import glob
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vision_jax.errors import DistributedError

_FLAGS = ("--coordinator_address", "--num_processes", "--process_id")
_METADATA_URL = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


@dataclass(frozen=True)
class ClusterSpec:
    """How a process joins the others.

    Attributes:
        found_by: where this comes from, for messages.
        coordinator_address: host:port of process 0. None, like all that follow: JAX detects it.
        num_processes: number of processes.
        process_id: of this one, from 0.
        local_device_ids: the GPUs that this process uses, as indices into those it sees; None: all.
    """

    found_by: str
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.coordinator_address is None:
            return f"{self.found_by} (found by JAX)"
        return f"process {self.process_id} of {self.num_processes} at {self.coordinator_address}, by {self.found_by}"


def discover(
    environment: Mapping[str, str],
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    tpu_metadata: Callable[[str], str | None] = lambda name: None,
) -> ClusterSpec | None:
    """Returns how this process joins others, or None if it is the only one.

    The first of these that applies: the three flags; a SLURM step of several tasks; a Cloud TPU slice of several hosts,
    or several slices; Kubernetes with NUM_PROCESSES; Open MPI's `mpirun` with several processes.

    Args:
        environment: the environment variables.
        coordinator_address, num_processes, process_id: the flags.
        tpu_metadata: returns an attribute of a Cloud TPU VM; see `read_tpu_metadata`.

    Raises:
        DistributedError: if the values are incomplete or inconsistent.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in given):
        return _check(ClusterSpec("flags", *given), _FLAGS)
    for find in (_slurm, lambda e: _cloud_tpu(e, tpu_metadata), _kubernetes, _open_mpi):
        if (spec := find(environment)) is not None:
            return spec
    return None


def _check(spec: ClusterSpec, names: tuple[str, str, str]) -> ClusterSpec:
    """Returns the spec if it is complete; `names` are those of its three values, for the message."""
    given = (spec.coordinator_address, spec.num_processes, spec.process_id)
    if None in given:
        raise DistributedError(
            f"Several processes need all of {names[0]}, {names[1]} and {names[2]}; "
            f"these are {given[0]}, {given[1]} and {given[2]}."
        )
    if not re.fullmatch(r".+:\d+", str(given[0])):
        raise DistributedError(f"{names[0]} is {given[0]!r}: give HOST:PORT.")
    if (given[1] or 0) < 1:
        raise DistributedError(f"{names[1]} is {given[1]}: there is at least one.")
    if not 0 <= (given[2] or 0) < (given[1] or 0):
        raise DistributedError(f"{names[2]} is {given[2]} with {names[1]}={given[1]}: it counts from 0.")
    return spec


def _slurm(environment: Mapping[str, str]) -> ClusterSpec | None:
    """SLURM, within `srun`: a batch script, or the shell of `salloc`, is not a step of several tasks."""
    tasks = _integer(environment, "SLURM_STEP_NUM_TASKS") or 1
    if tasks == 1:
        return None
    nodes, job = environment.get("SLURM_STEP_NODELIST"), _integer(environment, "SLURM_JOB_ID")
    rank, local = _integer(environment, "SLURM_PROCID"), _integer(environment, "SLURM_LOCALID")
    if nodes is None or job is None or rank is None or local is None:
        raise DistributedError(
            f"This is a SLURM step of {tasks} tasks without all of SLURM_STEP_NODELIST, SLURM_JOB_ID, SLURM_PROCID and "
            "SLURM_LOCALID: start it with srun and its whole environment (--export=ALL)."
        )
    port = _given_port(environment) or _port(job + (_integer(environment, "SLURM_STEP_ID") or 0))
    if not (host := first_host(nodes)):
        raise DistributedError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no node: start it with srun.")
    on_node = _tasks_on_node(environment)
    # If SLURM has bound GPUs to tasks, a task sees only its own.
    bound = bool(environment.keys() & {"SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"})
    devices = None if bound else _share_of_gpus(environment, local, on_node)
    names = ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    return _check(ClusterSpec("SLURM", f"{host}:{port}", tasks, rank, devices), names)


def first_host(nodes: str) -> str:
    """Returns the first of SLURM's list of nodes, such as `rack[2-3]node[01,05-09],login`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else "")


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Returns how many tasks of a SLURM step are on this node: SLURM writes `2(x3),1` for nodes of 2, 2, 2 and 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = _integer(environment, "SLURM_NODEID") or 0
    return counts[node] if node < len(counts) else 1


def _share_of_gpus(environment: Mapping[str, str], local_rank: int, on_node: int) -> tuple[int, ...] | None:
    """Returns the indices of a process's own GPUs among those it sees, if the processes of a node share them."""
    if on_node == 1:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return (local_rank,)  # as in JAX: one GPU per process
    count = len([name for name in visible.split(",") if name])
    if count <= 1:
        return None  # its own already, or it has none
    if count % on_node:
        raise DistributedError(
            f"The {on_node} processes of this node see {count} GPUs (CUDA_VISIBLE_DEVICES={visible}), which cannot be "
            "divided among them: start one process per node or per GPU, or bind GPUs to tasks (--gpus-per-task)."
        )
    each = count // on_node
    return tuple(range(local_rank * each, (local_rank + 1) * each))


def _cloud_tpu(environment: Mapping[str, str], metadata: Callable[[str], str | None]) -> ClusterSpec | None:
    """Cloud TPU: the numbers of hosts and slices come from the environment in GKE, from the metadata server on VMs."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    slices = environment.get("MEGASCALE_NUM_SLICES")
    if hosts is None:
        hosts = metadata("worker-network-endpoints")
        described = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", metadata("tpu-env") or "")
        slices = slices or (described[1] if described else None)
    if hosts is None or (len(hosts.split(",")) == 1 and int(slices or 1) == 1):
        return None
    return ClusterSpec("Cloud TPU")


def read_tpu_metadata(name: str) -> str | None:
    """Returns an attribute of this Cloud TPU VM from its metadata server; None, without a request, if it has no TPU."""
    # The chips of the first generations are /dev/accel0, …, those of later ones /dev/vfio/0, …
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")) or importlib.util.find_spec("libtpu") is None:
        return None
    import urllib.error
    import urllib.request  # slower to import than everything else that `--help` needs

    request = urllib.request.Request(_METADATA_URL + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:  # a VM with TPUs that is not part of a pod
            return None
        raise


def _kubernetes(environment: Mapping[str, str]) -> ClusterSpec | None:
    """Kubernetes: variables set by the manifest, as in launch/gke/; the index is that of an indexed Job."""
    if "KUBERNETES_SERVICE_HOST" not in environment or (_integer(environment, "NUM_PROCESSES") or 1) == 1:
        return None
    index = "PROCESS_ID" if "PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
    spec = ClusterSpec(
        "Kubernetes",
        environment.get("COORDINATOR_ADDRESS"),
        _integer(environment, "NUM_PROCESSES"),
        _integer(environment, index),
    )
    return _check(spec, ("COORDINATOR_ADDRESS", "NUM_PROCESSES", f"PROCESS_ID or {index}"))


def _open_mpi(environment: Mapping[str, str]) -> ClusterSpec | None:
    """Open MPI: `mpirun` sets the ranks, and up to version 4 its address; later, COORDINATOR_ADDRESS must be set."""
    size = _integer(environment, "OMPI_COMM_WORLD_SIZE") or 1
    if size == 1:
        return None
    address = environment.get("COORDINATOR_ADDRESS") or _address_of_mpirun(environment)
    if address is None:
        raise DistributedError(
            f"mpirun started {size} processes, but the address of the first one is unknown: "
            "pass `-x COORDINATOR_ADDRESS=HOST:PORT`, with its host and any free port."
        )
    rank, local = _integer(environment, "OMPI_COMM_WORLD_RANK"), _integer(environment, "OMPI_COMM_WORLD_LOCAL_RANK")
    devices = _share_of_gpus(environment, local or 0, _integer(environment, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1)
    names = ("COORDINATOR_ADDRESS", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    return _check(ClusterSpec("Open MPI", address, size, rank, devices), names)


def _address_of_mpirun(environment: Mapping[str, str]) -> str | None:
    """Returns mpirun's host, and a port from its job number, of `1531576320.0;tcp://10.96.0.1,10.148.0.1:34911`."""
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    found = re.search(r"^(\d+)\..*?tcp(?:://(?P<v4>[^,:]+)|6://\[(?P<v6>[^,\]]+))", uri)
    if found is None:
        return None
    port = _given_port(environment) or _port(int(found[1]) // 2**12)  # job numbers are multiples of 2^12
    return f"{found['v4']}:{port}" if found["v4"] else f"[{found['v6']}]:{port}"


def _port(number: int) -> int:
    """Returns one of the highest 4,096 ports, by a number that jobs on one machine seldom share, as in JAX."""
    return 65536 - 2**12 + number % 2**12


def _given_port(environment: Mapping[str, str]) -> int | None:
    """Returns the port that JAX's own variable names, or None if it is not set."""
    if not environment.get("JAX_COORDINATOR_PORT"):
        return None
    port = _integer(environment, "JAX_COORDINATOR_PORT")
    if not 0 < (port or 0) < 2**16:
        raise DistributedError(f"JAX_COORDINATOR_PORT is {port}: give a port from 1 to {2**16 - 1}, or unset it.")
    return port


def _integer(environment: Mapping[str, str], name: str) -> int | None:
    """Returns the number that a variable holds, or None if it is not set."""
    if (text := environment.get(name)) is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise DistributedError(f"The environment has {name}={text!r}, which is not a number: correct or unset it.")
    return int(text)

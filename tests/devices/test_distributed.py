"""How processes find each other, and what happens if they do not, or were started with different things."""

import threading
import types

import pytest

from vision_jax.devices import cluster, distributed
from vision_jax.errors import DistributedError

SLURM = {
    **{
        "SLURM_JOB_ID": "4096",
        "SLURM_NTASKS": "4",
        "SLURM_NODELIST": "node[01-02]",
    },  # a job has these, in a step or not
    **{"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "node[01-02]"},
    **{"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_PROCID": "3", "SLURM_NODEID": "1", "SLURM_LOCALID": "1"},
}
NODES = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
NODES |= {"SLURM_LOCALID": "0"}
KUBERNETES = {
    **{"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
    **{"COORDINATOR_ADDRESS": "run-workers-0-0.run:1234", "NUM_PROCESSES": "2"},
}
MPI = {
    **{"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    **{"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
    "OMPI_MCA_orte_hnp_uri": f"{(61440 + 5) * 4096}.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911",
}
V6 = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::b9b:ac5d:9cf0:b858,2620:10d:c083:150e::3000:2]:43370"}
FOUR_GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
TPU_VM = {"worker-network-endpoints": "10.0.0.2,10.0.0.3", "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '1'\n"}
ONE_HOST = {"worker-network-endpoints": "unknown:unknown:10.0.0.2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, ("SLURM", "node01:61440", 4, 3, (1,))),  # without a list of GPUs: one each, as JAX does
        (SLURM | FOUR_GPUS, ("SLURM", "node01:61440", 4, 3, (2, 3))),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0"}, ("SLURM", "node01:61440", 4, 3, None)),  # bound to its own
        (SLURM | FOUR_GPUS | {"SLURM_GPUS_PER_TASK": "4"}, ("SLURM", "node01:61440", 4, 3, None)),
        (SLURM | {"SLURM_STEP_ID": "7"}, ("SLURM", "node01:61447", 4, 3, (1,))),  # steps of a job share no port
        (NODES | FOUR_GPUS, ("SLURM", "node01:61440", 2, 1, None)),  # a task a node has all of its GPUs
        (SLURM | {"JAX_COORDINATOR_PORT": "1234"}, ("SLURM", "node01:1234", 4, 3, (1,))),
        (SLURM | KUBERNETES, ("SLURM", "node01:61440", 4, 3, (1,))),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # the shell of salloc may be a step of one task
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, None),  # the batch script itself
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"} | KUBERNETES, ("Cloud TPU", None, None, None, None)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, ("Cloud TPU", None, None, None, None)),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (KUBERNETES, ("Kubernetes", "run-workers-0-0.run:1234", 2, 1, None)),
        (KUBERNETES | {"PROCESS_ID": "0"}, ("Kubernetes", "run-workers-0-0.run:1234", 2, 0, None)),
        (KUBERNETES | {"NUM_PROCESSES": "1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, None),  # a job of separate runs
        (MPI, ("Open MPI", "10.96.0.1:61445", 2, 1, (1,))),
        (MPI | V6, ("Open MPI", "[fe80::b9b:ac5d:9cf0:b858]:61441", 2, 1, (1,))),
        (MPI | {"COORDINATOR_ADDRESS": "head:1234"}, ("Open MPI", "head:1234", 2, 1, (1,))),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ],
)
def test_discovery(environment: dict, expected: tuple | None):
    assert cluster.discover(environment) == (None if expected is None else cluster.ClusterSpec(*expected))


@pytest.mark.parametrize(
    ("metadata", "several"),
    [
        ({}, False),
        (TPU_VM, True),
        (ONE_HOST, False),
        (ONE_HOST | {"tpu-env": "A: 'b'\nMEGASCALE_NUM_SLICES: '2'\n"}, True),
    ],
)
def test_tpu_vms_are_found_by_their_metadata(metadata: dict, several: bool):
    found = cluster.discover({}, tpu_metadata=metadata.get)
    assert found == (cluster.ClusterSpec("Cloud TPU") if several else None)


def test_flags_come_first():
    assert cluster.discover(SLURM, "a:1", 2, 0) == cluster.ClusterSpec("flags", "a:1", 2, 0)


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, (None, 2, None), "need all of --coordinator_address, --num_processes and --process_id; these are None, 2"),
        ({}, ("a:1", 0, 0), "--num_processes is 0: there is at least one"),
        ({}, ("a:1", 2, 2), "--process_id is 2 with --num_processes=2"),
        ({}, ("a", 2, 1), "--coordinator_address is 'a': give HOST:PORT"),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, (), "2 processes of this node see 3 GPUs"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}, (), "start it with srun"),
        ({k: v for k, v in KUBERNETES.items() if k != "COORDINATOR_ADDRESS"}, (), "COORDINATOR_ADDRESS, NUM_PROCESSES"),
        (KUBERNETES | {"NUM_PROCESSES": "two"}, (), "NUM_PROCESSES='two'"),
        ({k: v for k, v in MPI.items() if "uri" not in k}, (), "-x COORDINATOR_ADDRESS=HOST:PORT"),
    ],
)
def test_what_is_incomplete_is_named(environment: dict, flags: tuple, message: str):
    with pytest.raises(DistributedError, match=message):
        cluster.discover(environment, *flags)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,other", "node1"),
        ("node[001-015],other", "node001"),
        ("node[7,9-10]", "node7"),
        ("rack[2-3]node[01,05-09].local,login", "rack2node01.local"),
    ],
)
def test_first_host_of_slurm(nodes: str, first: str):
    assert cluster.first_host(nodes) == first


def test_processes_that_do_not_meet_end_with_a_message():
    """JAX itself would abort the process; it is given more time than we take."""
    given, release = {}, threading.Event()

    def initialize(**arguments: object) -> None:
        given.update(arguments)
        release.wait(60)

    join = cluster.ClusterSpec("flags", "127.0.0.1:9", 2, 1)
    with pytest.raises(
        DistributedError, match=r"process 1 of 2 at 127\.0\.0\.1:9, by flags.* after 0\.05 s.*its port is free there"
    ):
        distributed.start(join, seconds=0.05, initialize=initialize)
    release.set()
    assert given["initialization_timeout"] > 1
    assert given["heartbeat_timeout_seconds"] < 60
    assert given["coordinator_bind_address"] == "127.0.0.1:9"  # and not all networks


def test_topology_in_words():
    def device(process: int, part: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(process_index=process, device_kind="TPU v5e", slice_index=part)

    devices = [device(process, process // 2) for process in range(4) for _ in range(4)]
    text = distributed.describe_topology(devices, ["a", "b", "c", "c"])
    assert text.startswith("4 processes on 3 hosts, 4 of 16 devices each (TPU v5e), in 2 slices")


def test_differences_name_the_fact_and_the_processes():
    def facts(rate: float, **more: object) -> dict:
        return {"optimizer": {"learning_rate": rate, "name": "sgd"}, "the workdir": "/w", **more}

    assert distributed.differences([facts(0.1)] * 3) == []
    assert distributed.differences([facts(0.1), facts(0.1), facts(0.2)]) == [
        "optimizer.learning_rate is 0.1 in processes 0, 1 and 0.2 in process 2"
    ]
    assert distributed.differences([facts(0.1)] * 4 + [facts(0.1, seed=1)] + [facts(0.1)]) == [
        "seed is absent in processes 0 to 3, 5 and 1 in process 4"
    ]


def test_code_version_changes_with_any_file(tmp_path, monkeypatch: pytest.MonkeyPatch):
    before = distributed.code_version()
    assert before == distributed.code_version()
    for name, content in (("__init__.py", ""), ("a/b.py", "x = 1\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(distributed.vision_jax, "__file__", str(tmp_path / "__init__.py"))
    first = distributed.code_version()
    (tmp_path / "a/b.py").write_text("x = 2\n")
    assert len({before, first, distributed.code_version()}) == 3

"""Variables of the environment that say nonsense or contradict each other, and a system that has no room."""

from typing import Any

from bad_inputs.case import TRAIN, Case, finished, image, training

_SLURM = {
    **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"},
    **{"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
}
_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "NUM_PROCESSES": "2", "COORDINATOR_ADDRESS": "a:1", "PROCESS_ID": "0"}


def _environment(name: str, value: str, remedy: str, variables: dict[str, str], **options: Any) -> Case:
    """Returns a case of a training with such variables."""
    return training(name, value=value, remedy=remedy, environment=variables, **options)


CASES = (
    _environment("an unknown platform", "'zebra'", "Unset it", {"JAX_PLATFORMS": "zebra"}),
    _environment("an unknown flag of XLA", "XLA_FLAGS.*--xla_zebra=1", "unset it", {"XLA_FLAGS": "--xla_zebra=1"}),
    _environment(
        "a flag of XLA with a bad value",
        "XLA_FLAGS.*many",
        "unset it",
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=many"},
    ),
    _environment("SLURM without ranks", "2 tasks", "srun", {"SLURM_STEP_NUM_TASKS": "2"}),
    _environment("SLURM with a word", "'x'", "unset it", _SLURM | {"SLURM_STEP_NUM_TASKS": "x"}),
    _environment("SLURM with a rank beyond the last", "SLURM_PROCID is 5", "from 0", _SLURM | {"SLURM_PROCID": "5"}),
    _environment(
        "SLURM with a bad port", "JAX_COORDINATOR_PORT.*zebra", "unset it", _SLURM | {"JAX_COORDINATOR_PORT": "zebra"}
    ),
    _environment("SLURM without nodes", "SLURM_STEP_NODELIST", "srun", _SLURM | {"SLURM_STEP_NODELIST": "["}),
    _environment(
        "SLURM whose GPUs do not divide",
        "3 GPUs",
        "--gpus-per-task",
        _SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1,2"},
    ),
    _environment("MPI without an address", "2 processes", "-x COORDINATOR_ADDRESS", _MPI),
    _environment(
        "MPI with a rank beyond the last",
        "OMPI_COMM_WORLD_RANK is 2",
        "counts from 0",
        _MPI | {"COORDINATOR_ADDRESS": "a:1", "OMPI_COMM_WORLD_RANK": "2"},
    ),
    _environment(
        "a pod without an index", "None", "JOB_COMPLETION_INDEX", _POD | {"PROCESS_ID": "", "JOB_COMPLETION_INDEX": ""}
    ),
    _environment("a pod with an address without a port", "'a'", "HOST:PORT", _POD | {"COORDINATOR_ADDRESS": "a"}),
    _environment("a pod of no number", "'two'", "unset it", _POD | {"NUM_PROCESSES": "two"}),
    _environment("a cache below a file", "/dev/null/x", "XDG_CACHE_HOME", {"XDG_CACHE_HOME": "/dev/null/x"}),
    _environment(
        "a home that cannot be written", "/proc/x", "XDG_CACHE_HOME", {"XDG_CACHE_HOME": "", "HOME": "/proc/x"}
    ),
    Case("a full disk for what is printed", ("models",), "No space left", "Make room", output="/dev/full"),
    Case(
        "a full disk for predictions",
        ("predict", "a.jpg", "--workdir=w"),
        "No space left",
        "Make room",
        output="/dev/full",
        before=(finished(), image("a.jpg")),
    ),
    Case("a full disk for a dry run", (*TRAIN, "--mode=dry_run"), "No space left", "Make room", output="/dev/full"),
    Case(
        "a full disk for an evaluation",
        ("main", "--mode=eval", "--workdir=w"),
        "No space left",
        "Make room",
        output="/dev/full",
        before=(finished(),),
        made=("w/metrics.jsonl",),
    ),
    Case("a full disk for help", ("main", "--help"), "No space left", "Make room", output="/dev/full"),
    Case(
        "a file for which there is no room",
        ("predict", "a.jpg", "--workdir=w", "--output=/dev/full", "--format=csv"),
        "/dev/full",
        "give another",
        before=(finished(), image("a.jpg")),
    ),
)

"""The launchers, with stand-ins for what they start: statuses, signals, starting again, and what they are made of."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY, Command

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *LAUNCH.glob("presets/*.env")])
# Process i notes its start, and does what the i-th argument says: end with a status, die of a signal, or wait for one.
STAND_IN = """
    import os, pathlib, signal, sys, time

    flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
    index = int(flags["process_id"])
    acts = sys.argv[1].split(",")
    starts = len(list(pathlib.Path().glob(f"start-{index}-*")))
    def stop(number, frame):
        print("got", signal.Signals(number).name)
        os._exit(75)
    if acts[index] == "waits":
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
    print("up", file=sys.stderr)
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    pathlib.Path(f"start-{index}-{starts}").write_text(flags["coordinator_address"] + " " + devices)
    if acts[index] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while acts[index] in ("waits", "hangs"):
        time.sleep(0.01)
    time.sleep(0.2 * index)
    os._exit(int(acts[index].split("/")[starts]))
"""


def start_local(folder: pathlib.Path, acts: str, *options: str, **environment: str) -> subprocess.Popen:
    (folder / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    processes = f"--processes={len(acts.split(','))}"
    command = [sys.executable, LAUNCH / "local.py", "--module=stand_in", processes, *options, "--", acts]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **pipes)


def run_local(folder: pathlib.Path, acts: str, *options: str, **environment: str) -> tuple[int, str, str]:
    process = start_local(folder, acts, *options, **environment)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def wait_for(*paths: pathlib.Path) -> None:
    deadline = time.monotonic() + 20
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, f"not there: {paths}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("acts", "status"),
    [("0,0", 0), ("75,75", 75), ("0,75", 75), ("75,3", 3), ("0,killed", 137)],
)
def test_local_status(tmp_path: pathlib.Path, acts: str, status: int):
    assert run_local(tmp_path, acts, "--devices=2")[0] == status
    assert (tmp_path / "start-1-0").read_text().endswith(" 2")


def test_local_ends_what_goes_on_after_a_failure(tmp_path: pathlib.Path):
    """The status is that of the first that failed, not of what was killed because of it."""
    before = time.monotonic()
    status, _, err = run_local(tmp_path, "hangs,4", "--grace=0.3")
    assert status == 4
    assert 0.3 < time.monotonic() - before < 10
    assert "Process 0 did not end within 0.3 s of the first failure and is killed." in err
    assert "[0] up\n" in err
    assert "[1] up\n" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on_and_then_does_not_start_again(tmp_path: pathlib.Path, number: signal.Signals):
    process = start_local(tmp_path, "waits,waits", "--requeue=3")
    wait_for(tmp_path / "start-0-0", tmp_path / "start-1-0")
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert sorted(out.splitlines()) == [f"[0] got {number.name}", f"[1] got {number.name}"]
    assert not (tmp_path / "start-0-1").exists()


@pytest.mark.parametrize(
    ("acts", "requeue", "status", "starts"),
    [("75/75/0,75/75/0", 2, 0, 3), ("75/75,75/75", 1, 75, 2), ("75/1,0/0", 5, 1, 2)],
)
def test_local_starts_again(tmp_path: pathlib.Path, acts: str, requeue: int, status: int, starts: int):
    assert run_local(tmp_path, acts, f"--requeue={requeue}")[0] == status
    assert len(list(tmp_path.glob("start-1-*"))) == starts
    ports = {path.read_text() for path in tmp_path.glob("start-1-*")}
    assert len(ports) == starts  # a new port each time: the old one may not be free yet


def test_local_leaves_nothing_behind_when_it_is_killed(tmp_path: pathlib.Path):
    process = start_local(tmp_path, "hangs,hangs")
    wait_for(tmp_path / "start-0-0", tmp_path / "start-1-0")
    process.kill()
    _, err = process.communicate(timeout=10)
    pids = re.findall(r"has pid (\d+)", err)
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(pid: str) -> bool:
    """Whether there is such a process that has not ended; nobody may have taken its status yet."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_local_gives_each_process_a_gpu(tmp_path: pathlib.Path):
    assert run_local(tmp_path, "0,0", "--gpus", CUDA_VISIBLE_DEVICES="4,7")[0] == 0
    assert [(tmp_path / f"start-{i}-0").read_text().split()[1] for i in range(2)] == ["4", "7"]
    status, _, err = run_local(tmp_path, "0,0", "--gpus", CUDA_VISIBLE_DEVICES="4")
    assert status == 2
    assert "--processes=2 with CUDA_VISIBLE_DEVICES=4: too few GPUs" in err


# The command, with another learning rate in each process.
DISAGREE = """
    import sys
    from absl import app
    from vision_jax import main

    index = next(a for a in sys.argv if a.startswith("--process_id=")).split("=")[1]
    sys.argv.append(f"--config.optimizer.learning_rate=0.{1 + int(index)}")
    app.run(main.main, flags_parser=main._parse_flags)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_processes_that_disagree_all_stop_and_say_so(command: Command, tmp_path: pathlib.Path, mode: str):
    (tmp_path / "disagree.py").write_text(textwrap.dedent(DISAGREE))
    launcher = (LAUNCH / "local.py", "--processes=2", "--devices=2", "--module=disagree", "--")
    done = subprocess.run(
        [sys.executable, *launcher, "--config=configs/quickstart.py", f"--mode={mode}", f"--workdir={tmp_path / 'w'}"],
        cwd=REPOSITORY,
        env={**command.environment, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done
    assert re.search(r"^\[0\] .* 2 processes on 1 host, 2 of 4 devices each \(cpu\)", done.stderr, re.MULTILINE)
    for index in range(2):
        assert f"[{index}]   optimizer.learning_rate is 0.1 in process 0 and 0.2 in process 1" in done.stderr
        assert f"process {index} of 2 at 127.0.0.1:" in done.stderr
    assert not (tmp_path / "w").exists()


def stand_in(folder: pathlib.Path, name: str, script: str) -> dict[str, str]:
    """Puts a program in front of PATH and returns the environment with that."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + textwrap.dedent(script))
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{path.parent}:{os.environ['PATH']}"}


def start_slurm(folder: pathlib.Path, srun: str, **environment: str) -> subprocess.Popen:
    stand_in(folder, "scontrol", f'echo "$@" >> {folder}/scontrol')
    variables = stand_in(folder, "srun", f'echo "$@" > {folder}/srun\necho "$XLA_FLAGS" > {folder}/xla\n' + srun)
    variables |= {"SLURM_JOB_ID": "42", "SLURM_SUBMIT_DIR": str(REPOSITORY), **environment}
    # SLURM runs a copy, from elsewhere.
    (folder / "slurm_script").write_text((LAUNCH / "slurm.sbatch").read_text())
    command = ["bash", str(folder / "slurm_script"), "--config=configs/resnet50.py", "--workdir=/w/a b"]
    return subprocess.Popen(command, env=variables, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize(
    ("status", "restarts", "requeues"), [(0, 0, False), (1, 0, False), (137, 0, False), (75, 3, True), (75, 100, False)]
)
def test_slurm_requeues_what_was_saved(tmp_path: pathlib.Path, status: int, restarts: int, requeues: bool):
    process = start_slurm(tmp_path, f"exit {status}", SLURM_RESTART_COUNT=str(restarts))
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == status, printed
    assert (tmp_path / "scontrol").exists() == requeues
    if requeues:
        assert (tmp_path / "scontrol").read_text() == "requeue 42\n"
    command = "python -u -m vision_jax.main --config=configs/resnet50.py --workdir=/w/a b\n"
    assert (tmp_path / "srun").read_text().endswith(command)
    assert "latency_hiding" in (tmp_path / "xla").read_text()


def test_slurm_passes_term_on_and_waits_for_the_save(tmp_path: pathlib.Path):
    srun = f'trap "sleep 0.5; exit 75" TERM\necho up > {tmp_path}/up\nwhile true; do sleep 0.05; done'
    process = start_slurm(tmp_path, srun)
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 75, printed
    assert (tmp_path / "scontrol").read_text() == "requeue 42\n"


@pytest.mark.parametrize(
    ("statuses", "state", "requeue", "status", "made"),
    [
        ("75 75 0", "ACTIVE", 0, 0, 0),  # saved: again
        ("75 1", "ACTIVE", 5, 1, 0),  # an error, and the slice is there
        ("1 0", "SUSPENDED", 0, 1, 0),
        ("1 75 0", "SUSPENDED", 1, 0, 1),  # the slice is gone, and is made anew
    ],
)
def test_tpu_pod_runs_again(tmp_path: pathlib.Path, statuses: str, state: str, requeue: int, status: int, made: int):
    """The stand-in gives one status after the other for training; once a new slice was asked for, it is there."""
    (tmp_path / "statuses").write_text("\n".join(statuses.split()) + "\n")
    (tmp_path / "state").write_text(state)
    script = f"""
        echo "$*" >> {tmp_path}/log
        case "$*" in
            *" describe "*) cat {tmp_path}/state ;;
            *" create "*) echo ACTIVE > {tmp_path}/state ;;
            *vision_jax.main*)
                next=$(head -n 1 {tmp_path}/statuses)
                sed -i 1d {tmp_path}/statuses
                exit "$next" ;;
        esac
    """
    variables = stand_in(tmp_path, "gcloud", script)
    variables |= {"TPU_NAME": "run1", "ZONE": "z", "ACCELERATOR": "v4-32", "RUNTIME": "r", "REPOSITORY": "https://h/r"}
    command = [LAUNCH / "tpu_pod.sh", "run", "--workdir=/w/a b"]
    done = subprocess.run(
        command, env=variables | {"REQUEUE": str(requeue)}, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == status, done
    log = (tmp_path / "log").read_text()
    assert log.count("queued-resources create run1") == log.count("queued-resources delete run1") == made
    assert log.count("pip install") == made
    command = next(line for line in log.splitlines() if "-m vision_jax.main" in line)
    assert "--workdir=/w/a b" in shlex.split(command)  # quoted for the workers' shell
    assert log.count("-m vision_jax.main") == len(statuses.split()) - ((state, requeue) == ("SUSPENDED", 0))


def test_shellcheck():
    for script in SCRIPTS:
        subprocess.run(["shellcheck", "--shell=bash", script], check=True)
    assert len(SCRIPTS) == 5


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_manifests(name: str):
    """Fields and their types by a schema; then what one part of a manifest must have in common with another."""
    manifest = yaml.safe_load((LAUNCH / "gke" / f"{name}.yaml").read_text())
    schema = json.loads((REPOSITORY / "tests/jobset_schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest, schema)

    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert f"source launch/presets/{name}.env && exec python -m vision_jax.main" in container["args"][0]
    if name == "gpu":
        values = {variable["name"]: variable["value"] for variable in container["env"]}
        assert int(values["NUM_PROCESSES"]) == job["parallelism"]
        jobset = manifest["metadata"]["name"]
        port = container["ports"][0]["containerPort"]
        assert values["COORDINATOR_ADDRESS"] == f"{jobset}-{replicated['name']}-0-0.{jobset}:{port}"


def test_presets_keep_what_was_set():
    for preset, variable in (("gpu", "XLA_FLAGS"), ("deterministic", "XLA_FLAGS"), ("tpu", "LIBTPU_INIT_ARGS")):
        script = f"set -eu; export {variable}=--mine; source {LAUNCH}/presets/{preset}.env; printenv {variable}"
        printed = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout
        assert printed.startswith("--mine --xla_")

"""Starts several processes here: `python launch/local.py --processes=2 --devices=2 -- --config=… --workdir=…`.

Each is `python -m vision_jax.main` with what follows `--` and the three flags by which it finds the others, at a free
port of 127.0.0.1. On CPUs each has `--devices` devices; with `--gpus` each has one GPU. A line that process i prints
begins with `[i] `. SIGTERM and SIGINT are passed on to all of them. When one fails, the others get `--grace` seconds
to end by themselves; then they are killed.

Exit status: 0 if all ended with 0; 75 if some ended with 75, which means "saved, start again", and the others with 0;
otherwise that of the first that failed (128 + n if signal n ended it). `--requeue=N` starts all again after 75, up to N
times, unless it was this launcher that was told to stop.

This needs nothing but Python's standard library, and was run on Linux; `--gpus` was not run.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

RUN_AGAIN = 75  # the status of a run that saved its state after SIGTERM; os.EX_TEMPFAIL
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_write_lock = threading.Lock()


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the processes, again if they ask for it, and returns the exit status."""
    options = parse(arguments)
    # A reader of our output that goes away, such as `head`, ends us, and that ends the processes.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: received.append(signum))
    for attempt in range(options.requeue + 1):
        status = run_once(options, received)
        if status != RUN_AGAIN or received or attempt == options.requeue:
            break
        say(f"All processes saved and ended; start {attempt + 2} of at most {options.requeue + 1}.")
    return status


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of this launcher, and in `rest` what follows `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="how many; default: %(default)s")
    parser.add_argument("--devices", type=int, help="CPU devices of each process; default: 1, without --gpus")
    parser.add_argument("--gpus", action="store_true", help="one GPU for each process")
    parser.add_argument("--module", default="vision_jax.main", help="what each runs; default: %(default)s")
    parser.add_argument("--requeue", type=int, default=0, metavar="N", help="starts after status 75; default: 0")
    parser.add_argument("--grace", type=float, default=30.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("rest", nargs="*", help="after `--`: the flags of each process")
    options = parser.parse_args(arguments)
    if options.processes < 1 or options.requeue < 0 or options.grace < 0 or (options.devices or 1) < 1:
        parser.error("--processes and --devices are at least 1, --requeue and --grace at least 0")
    if options.gpus and options.devices:
        parser.error("--devices is of CPUs: give either it or --gpus")
    if options.gpus and len(visible := visible_gpus(os.environ, options.processes)) < options.processes:
        parser.error(f"--processes={options.processes} with CUDA_VISIBLE_DEVICES={','.join(visible)}: too few GPUs")
    return options


def visible_gpus(environment: Mapping[str, str], processes: int) -> list[str]:
    """Returns the names of the GPUs that may be used: all, 0, 1, …, unless CUDA_VISIBLE_DEVICES chooses."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(processes)] if chosen is None else [name for name in chosen.split(",") if name]


def process_environment(options: argparse.Namespace, index: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of one process."""
    result = {**environment, "PYTHONUNBUFFERED": "1"}  # so that lines appear when they are printed
    if options.gpus:
        return {**result, "CUDA_VISIBLE_DEVICES": visible_gpus(environment, options.processes)[index]}
    return {**result, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.devices or 1)}


def process_command(options: argparse.Namespace, index: int, port: int) -> list[str]:
    """Returns the command of one process; one alone needs no flags to find others."""
    command = [sys.executable, "-m", options.module, *options.rest]
    if options.processes == 1:
        return command
    others = (f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={options.processes}")
    return [*command, *others, f"--process_id={index}"]


def run_once(options: argparse.Namespace, received: list[int]) -> int:
    """Starts the processes once and returns the status of them all. `received` grows by the signals to pass on."""
    port = free_port()
    processes: list[subprocess.Popen[bytes]] = []
    for index in range(options.processes):
        process = subprocess.Popen(
            process_command(options, index, port),
            env=process_environment(options, index, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C in a terminal reaches every process of the group: they are to have it from us, once.
            process_group=0,
            # No thread runs yet, which makes this safe. If we are killed, nothing is left behind.
            preexec_fn=_die_with_parent(os.getpid()),
        )
        say(f"Process {index} has pid {process.pid}.")
        processes.append(process)
    threads = [
        threading.Thread(target=prefix_lines, args=(pipe, f"[{index}] ".encode(), out.buffer), daemon=True)
        for index, process in enumerate(processes)
        for pipe, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for thread in threads:
        thread.start()
    status = wait(processes, received, options.grace)
    for thread in threads:
        thread.join(timeout=5)  # a process that they started, and that lives on, may hold a pipe open
    return status


def wait(processes: Sequence["subprocess.Popen[bytes]"], received: list[int], grace: float) -> int:
    """Waits for all processes, passing signals on and ending what does not end after a failure."""
    failed: int | None = None  # the status of the first that failed
    kill_at = float("inf")
    passed = 0
    running = dict(enumerate(processes))
    while running:
        for number in received[passed:]:
            passed += 1
            say(f"Passing {signal.Signals(number).name} on to {len(running)} processes.")
            for process in running.values():
                process.send_signal(number)
        for index, process in list(running.items()):
            if (status := process.poll()) is None:
                continue
            del running[index]
            say(f"Process {index} ended with {describe(status)}.")
            if status not in (0, RUN_AGAIN) and failed is None:
                failed, kill_at = status, time.monotonic() + grace
        if time.monotonic() >= kill_at:
            kill_at = float("inf")
            for index, process in running.items():
                say(f"Process {index} did not end within {grace:g} s of the first failure and is killed.")
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
        time.sleep(_POLL_SECONDS if running else 0)
    if failed is not None:
        return failed if failed > 0 else 128 - failed
    return RUN_AGAIN if any(process.returncode == RUN_AGAIN for process in processes) else 0


def describe(status: int) -> str:
    """Returns a process's status, as subprocess gives it, in words."""
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


def prefix_lines(pipe: IO[bytes], prefix: bytes, out: IO[bytes]) -> None:
    """Copies the lines of a pipe, each behind a prefix and in one piece, until it ends."""
    for line in pipe:
        with _write_lock:
            out.write(prefix + line.removesuffix(b"\n") + b"\n")
            out.flush()


def say(message: str) -> None:
    """Prints a line about the processes."""
    with _write_lock:
        sys.stderr.write(f"[launch] {message}\n")
        sys.stderr.flush()


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Returns what has the kernel kill a new process when the launcher ends, in whatever way."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def set_signal() -> None:
        if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
            os._exit(1)

    return set_signal


if __name__ == "__main__":
    sys.exit(main())

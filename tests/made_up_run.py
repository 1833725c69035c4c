"""A made-up run for tests of searches: `python made_up_run.py --config=FILE --workdir=DIR --config.FIELD=VALUE...`.

It behaves as `vision_jax.main` does in what a search sees: it locks its workdir, writes metrics.jsonl line by line,
goes on where it was ended, ends with 75 after SIGTERM, and has its exit statuses. It needs no JAX. `data.prefetch` says
what goes wrong; its best learning rate is 0.1.
"""

import fcntl
import json
import math
import os
import pathlib
import signal
import sys
import time

EVALUATIONS = 4
WELL, DIVERGES, FAILS_LATE, FAILS_AT_ONCE, IS_KILLED, WRITES_NOTHING, HANGS_ALWAYS, WRONG_FLAGS = range(1, 9)


def value_at(learning_rate: float, evaluation: int) -> float:
    """Returns the accuracy after an evaluation, from 1 on."""
    return max(0.0, 1.0 - abs(math.log10(learning_rate / 0.1)) / 2) * (1 - 0.5**evaluation)


def main() -> int:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
    workdir = pathlib.Path(flags["workdir"])
    learning_rate, behaviour = float(flags["config.optimizer.learning_rate"]), int(flags.get("config.data.prefetch", 1))
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    workdir.mkdir(exist_ok=True)
    lock = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: Another run is using {workdir}")
        return 1
    metrics, starts = workdir / "metrics.jsonl", workdir / "starts.txt"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    begun = len(starts.read_text().splitlines()) if starts.exists() else 0
    with starts.open("a") as file:
        file.write(f"{done}\n")
    if behaviour == FAILS_AT_ONCE:
        print(f"error: There is no data set for {workdir}. Make one.")
        return 1
    if behaviour == WRONG_FLAGS:
        print("error: there are arguments that are not flags: x\nSee `--help`.")
        return 2
    for evaluation in range(done + 1, EVALUATIONS + 1):
        time.sleep(float(os.environ.get("MADE_UP_SECONDS", "0.01")))
        if told:
            return 75
        if evaluation == 2:
            if behaviour == DIVERGES:
                print("error: At step 15 the loss is nan. Lower the learning rate.")
                return 80
            if behaviour == FAILS_LATE:
                print("Traceback (most recent call last):\n  here\nRuntimeError: RESOURCE_EXHAUSTED")
                return 1
            if behaviour == IS_KILLED and begun == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if behaviour == HANGS_ALWAYS:
                return 79
        name = "train/loss" if behaviour == WRITES_NOTHING else "val/top1"
        with metrics.open("a") as file:
            file.write(json.dumps({"step": 10 * evaluation, name: value_at(learning_rate, evaluation)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

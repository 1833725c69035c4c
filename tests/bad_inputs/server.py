"""Runs commands in forks of a process that has imported what they need: a hundred of them would import it for minutes.

Nothing of JAX's backend is initialized here, and none of the modules that are the commands themselves is imported, so
that each fork runs `python -m vision_jax.main` or `python -m vision_jax` from the first line on, with its own
environment, standard streams and exit status. It reads a request a line, JSON as in `Server.run`, and answers with the
status: that of the process, or the negative number of the signal that ended it.
"""

import atexit
import dataclasses
import gc
import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence

_SECONDS = 120  # of a command
# What the commands import; importing any of these takes much longer than running most cases.
_IMPORTED = (
    *("absl.app", "ml_collections", "jax", "flax.linen", "optax", "orbax.checkpoint", "PIL.Image", "sklearn.datasets"),
    *("vision_jax.train", "vision_jax.evaluate", "vision_jax.dry_run", "vision_jax.predict", "vision_jax.search"),
    *("vision_jax.features", "vision_jax.explanations", "vision_jax.suite.run", "vision_jax.zero_shot.program"),
    *("vision_jax.export.program", "vision_jax.compress.program", "vision_jax.report.program"),
    *("vision_jax.preparation.run", "vision_jax.runtime.writers"),
)


class Server:
    """The other end: starts the process and asks it to run commands."""

    def __init__(self, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self,
        arguments: Sequence[str],
        folder: pathlib.Path,
        environment: Mapping[str, str],
        streams: tuple[pathlib.Path, pathlib.Path],
    ) -> int:
        """Returns the status of a command.

        Args:
            arguments: of `python -m`, from the module on.
            folder: it is run in.
            environment: added to the server's; "" removes a variable.
            streams: files for its standard output and errors.
        """
        request = {
            **{"arguments": list(arguments), "folder": str(folder), "environment": dict(environment)},
            "streams": [str(stream) for stream in streams],
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the server ended with {self._process.wait()}"
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(timeout=60)


@dataclasses.dataclass(frozen=True)
class _Request:
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    streams: tuple[str, str]


def _become(request: _Request) -> None:
    """Turns this process, a fork, into the command."""
    signal.alarm(_SECONDS)
    os.setsid()
    os.chdir(request.folder)
    for name, value in request.environment.items():
        os.environ[name] = value
        if not value:
            del os.environ[name]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in enumerate(request.streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if "JAX_PLATFORMS" in request.environment:  # which JAX has read when it was imported
        sys.modules["jax"].config.update("jax_platforms", os.environ.get("JAX_PLATFORMS"))
    module, *arguments = request.arguments
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _finish(request: _Request) -> int:
    """Runs the command and what a program does at its end, and returns the status.

    All but taking down what has been imported, which takes longer than most cases.
    """
    status = 0
    try:
        _become(request)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        traceback.print_exc()
        status = 120
    return status


def _serve() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # so that the forks share the memory of what is imported
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = _Request(**json.loads(line))
        child = os.fork()
        if not child:
            os._exit(_finish(request))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()

"""Becomes another program, which gets SIGTERM when the process that started it ends, in whatever way.

A run then saves its state and ends, so that whoever goes on with the trial loses nothing: `python -m
vision_jax.sweep.child PARENT COMMAND...`, where PARENT is the number of that process.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def main(arguments: Sequence[str]) -> None:
    """Does what is said above.

    Raises:
        OSError: if the program cannot be started.
    """
    parent, *command = arguments
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl has failed")
    if os.getppid() == int(parent):  # it may have ended before
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])

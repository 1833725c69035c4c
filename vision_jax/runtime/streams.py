"""Standard streams that were closed before the program started, as by `2>&-`, and an output that cannot be written."""

import errno
import os
import signal
import sys
from collections.abc import Callable

from vision_jax.errors import STATUS_DAMAGED


def open_closed_streams() -> None:
    """Opens /dev/null as each of stdin, stdout and stderr that is closed. Call it before any file is opened.

    Otherwise the next file to be opened would get the descriptor of the closed stream, and output of C code would go
    into that file; and Python's `sys.stderr` would be None, to which nothing can be written.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115  it stays open


def finish_output(status: int) -> int:
    """Writes what is left of standard output, and returns the exit status of the program.

    At its very end, Python would print lines of its own in place of an error, and choose another status.

    Args:
        status: that the program would have; if it is not 0, what is wrong has been said.

    Returns:
        the same; or 1, after a line of error, if the output cannot be written, as on a full disk; or that of SIGPIPE,
        if its reader has read enough, as of `| head`.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _discard_output()
        if status in (0, STATUS_DAMAGED):
            print(
                f"error: the output cannot be written: {error.strerror}. Make room, or direct it elsewhere.",
                file=sys.stderr,
            )
            return 1
    return status


def no_room(error: OSError) -> bool:
    """Says that there was no room for what a program prints, or for a file; returns whether that was the error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return False
    what = "the output" if error.filename is None else str(error.filename)
    print(f"error: {what} cannot be written: {error.strerror}. Make room, or direct it elsewhere.", file=sys.stderr)
    finish_output(1)
    return True


def status_of(run: Callable[[], int]) -> int:
    """Runs a program that prints, and returns its exit status, or that of what became of its output.

    Args:
        run: the program; it returns its status.
    """
    try:
        return finish_output(run())
    except BrokenPipeError:  # `| head` has read enough
        return finish_output(128 + signal.SIGPIPE)
    except OSError as error:
        if not no_room(error):
            raise
        return 1


def _discard_output() -> None:
    """Lets what is left of standard output go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

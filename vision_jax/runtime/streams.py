"""Standard streams that were closed before the program started, as by `2>&-`."""

import os
import sys


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

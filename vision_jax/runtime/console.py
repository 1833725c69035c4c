"""What the commands print besides their results: log messages, and errors that nobody can catch."""

import logging
import os
import sys
from typing import Any


def configure_logging() -> None:
    """Shows this package's messages and every warning; other libraries' only from warnings on."""
    from vision_jax.runtime.writers import ProgressHandler  # here, because --help should be quick

    handler = ProgressHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("vision_jax").setLevel(logging.INFO)
    # Orbax logs the traceback of what it raises anyway, and asyncio that of each array of a damaged checkpoint.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable


def _report_unraisable(unraisable: Any) -> None:
    """Prints an error that nobody can catch, as Python does, but not what Orbax gave up after the first error.

    When an array of a checkpoint cannot be read or written, an error says so; all the others end later, without the
    event loop or the coroutine that waited for them.
    """
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    if code is not None and f"{os.sep}orbax{os.sep}" in code.co_filename:
        return
    if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(unraisable)

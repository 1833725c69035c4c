"""Errors that end a run with one message: what was wrong, with the value, and what to do; and exit statuses."""

import difflib
import os
import pathlib
import re
from collections.abc import Iterable

STATUS_DAMAGED = 3  # a command is done, but for images that are damaged
STATUS_PREEMPTED = 75  # saved after SIGTERM: sysexits calls it a temporary failure
STATUS_HANG = 79  # ended by the watchdog; sysexits ends with 78, and shells and signals begin at 126
STATUS_DIVERGED = 80  # ended by a NonFiniteError


def printable(text: str) -> str:
    """Returns a text in which what is no UTF-8, as names of files may hold it, is replaced."""
    return text.encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    """Returns a `printable` text, with escapes such as \\n for what moves the cursor or controls a terminal.

    Names of files and of members of archives may hold that too, and are shown within a line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(text))


def reason(error: BaseException, *, path: bool = False) -> str:
    """Returns why something failed, in words: of the operating system's errors, without their number.

    Args:
        error: what was raised.
        path: name the file too, for a message that has not named it.
    """
    if not isinstance(error, OSError) or not error.strerror:  # libraries raise some with a message alone
        return str(error)
    named = path and error.filename is not None
    return f"{error.strerror}: {os.fsdecode(error.filename)}" if named else error.strerror


class VisionJaxError(Exception):
    """The base of the errors below; `main` prints its message without a traceback and exits with status 1.

    After a `NonFiniteError` it exits with `STATUS_DIVERGED`.
    """

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class ConfigError(VisionJaxError):
    """A configuration field, or several together, cannot work."""


class DataError(VisionJaxError):
    """A data set is missing, empty or malformed, or a record of it cannot be read or decoded."""


class CheckpointError(VisionJaxError):
    """A checkpoint is missing, damaged or does not fit, or a workdir cannot be used."""


class DamagedError(CheckpointError):
    """The files of a checkpoint are incomplete or altered."""


class NonFiniteError(VisionJaxError):
    """The loss or the gradients of a step are not finite."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived during an evaluation, or while waiting for data."""


class DistributedError(VisionJaxError):
    """The processes of a run cannot find or reach each other, or do not agree on what they run."""


class Preempted(Exception):
    """A SIGTERM arrived; the state of `step` is saved. Run the same command again to continue.

    Attributes:
        step: the step of the saved state.
    """

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM; step {step} is saved, run the same command again to continue")
        self.step = step


def suggest(value: str, choices: Iterable[str], listed_by: str | None = None) -> str:
    """Returns a phrase that helps whoever wrote `value` for one of `choices`.

    `listed_by` is where all of them are to be found, if they are too many for a message.
    """
    choices = list(choices)
    if near := difflib.get_close_matches(value, choices, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(near)}?"
    return f"there are: {', '.join(choices)}." if listed_by is None else f"{listed_by} lists them all."


def check_output(what: str, path: pathlib.Path) -> None:
    """Checks that a file can be written at `path`, which `what` names for the user, before the work that fills it.

    Raises:
        ConfigError: if it is a folder or a device, or its folder does not exist.
    """
    if path.is_dir():
        raise ConfigError(f"{what} is {path}, which is a folder: give a file.")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{what} is {path}, which is no regular file, and would be replaced: give another.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{what} is {path}, but there is no folder {path.parent}.")


def check_folder(what: str, path: pathlib.Path) -> None:
    """Checks that `path`, which `what` names for the user, is a folder, or that one can be made there.

    Raises:
        ConfigError: if not.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{what} is {path}, which is a file: give a folder.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{what} is {path}, but there is no folder {path.parent}.")


def check_no_url(what: str, value: str) -> None:
    """Checks that `value`, which `what` names for the user, is a path.

    `pathlib` leaves one slash of a URL's two, so that is recognized for the common schemes too.

    Raises:
        ConfigError: if it is a URL such as gs://bucket/run: as a path, that would be a local folder named `gs:`.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|(gs|s3|https?|hdfs|abfss?):/", value):
        raise ConfigError(
            f"{what} is {value!r}: URLs are not supported here; mount the bucket (gcsfuse, s3fs, ...) and give its "
            "path."
        )

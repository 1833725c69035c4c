"""A clock that does not jump, for what measures how long it has waited.

Orbax 0.12 takes the limits of its waits from the time of day: if that jumps forward while a checkpoint is written, by
a correction or after a machine was suspended, a save that nothing disturbs has "timed out".
"""

import importlib
import time
from typing import Any

# Those that use `time.time` for nothing but limits and durations.
_MODULES = tuple(f"orbax.checkpoint._src.futures.{name}" for name in ("future", "signaling_client", "synchronization"))


class _SteadyTime:
    """The module `time`, in which the time of day is replaced by the seconds since some moment."""

    time = staticmethod(time.monotonic)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def use_in_orbax() -> None:
    """Makes Orbax measure its waits by `time.monotonic`."""
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue  # another version of Orbax: a test says whether it needs this, too
        if getattr(module, "time", None) is time:
            module.time = _SteadyTime()  # type: ignore[attr-defined]

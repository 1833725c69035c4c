"""A thread that writes files, so that no step waits for storage."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol, Self

log = logging.getLogger(__name__)


class Worker(Protocol):
    """Runs tasks in the order in which they are submitted."""

    def do(self, task: Callable[[], object]) -> None: ...

    def flush(self) -> None: ...


class Inline:
    """Runs each task at once, in the caller's thread."""

    def do(self, task: Callable[[], object]) -> None:
        task()

    def flush(self) -> None:
        pass


class Background:
    """Runs tasks in a thread of its own, between `__enter__` and `__exit__`, which waits until all are done.

    An exception of a task is raised by the next call of `do` or `flush`; later tasks still run. If the process is
    killed, pending tasks are lost.

    Args:
        limit: maximum number of pending tasks; `do` blocks at the limit.
    """

    def __init__(self, limit: int = 1000):
        self._tasks: queue.Queue[Callable[[], object] | None] = queue.Queue(limit)
        self._error: Exception | None = None  # of the first task that failed, until it is raised
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception as error:  # any error is reported to the loop
                self._error = self._error or error
            finally:
                self._tasks.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def do(self, task: Callable[[], object]) -> None:
        """Submits a task; raises the exception of an earlier one."""
        self._raise()
        self._tasks.put(task)

    def flush(self) -> None:
        """Waits until all tasks are done, and raises the exception of any of them."""
        self._tasks.join()
        self._raise()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._tasks.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
        elif self._error is not None:
            log.error("%s", self._error)  # the exception being handled is the one to propagate

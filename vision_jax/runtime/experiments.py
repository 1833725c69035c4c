"""Experiment trackers: copies of a run's lines and images in Weights & Biases and MLflow.

metrics.jsonl stays the record of a run. Each tracker has a thread of its own (`Feed`), so that whatever its library or
server does, it neither ends the run nor slows a step: a warning says that it fails, and what it did not get is counted.

`tracker.py`, which checks the metrics of steps, is something else.
"""

import collections
import functools
import importlib.util
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from vision_jax.errors import Preempted, suggest
from vision_jax.runtime.experiment_services import Description, Ending, MlflowRun, RunIds, Service, WandbRun
from vision_jax.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)

_SERVICES: dict[str, type[WandbRun] | type[MlflowRun]] = {"wandb": WandbRun, "mlflow": MlflowRun}
# TensorBoard's events are written by `MetricWriter`.
TRACKERS = ("tensorboard", *_SERVICES)

# Seconds that the end of a run may wait for all trackers together. After SIGTERM what started the run may kill it soon:
# Kubernetes does after 30 s, in which the state is saved too.
SECONDS_AT_END = 60.0
SECONDS_WHEN_STOPPED = 10.0
_FINISH_SECONDS = 45.0  # of W&B, which then says what is missing: less than the first of these

_THREAD = "tracker-"


def problems(names: Sequence[str], *, train: bool) -> list[str]:
    """Returns what is wrong with the trackers of a configuration, without importing their libraries.

    Args:
        names: of trackers.
        train: whether they will be used; only then must the libraries be installed.
    """
    found = []
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            found.append(f"{name!r} is no tracker: {suggest(name, TRACKERS)}")
        elif train and name in _SERVICES and not _is_installed(_SERVICES[name].library):
            found.append(f"{name!r} needs the library {name}, which is not installed: pip install 'vision_jax[{name}]'")
    return found


def _is_installed(library: str) -> bool:
    spec = importlib.util.find_spec(library)
    # A mere folder `wandb`, such as the one that W&B leaves in the current directory, is a namespace package.
    return spec is not None and spec.origin is not None


def hanging_threads() -> list[str]:
    """Returns the names of threads that outlived their run because a tracker hangs."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(_THREAD)]


class Feed:
    """Hands lines and images to a service, in a thread of its own; no method waits for it but `join`.

    A service that cannot be opened is tried again, and what has come until then is kept. What fails later is lost, as
    the libraries have already tried several times; so is what comes while too much is waiting. Each time that the
    service stops working there is a warning, and another when it works again.

    Args:
        name: of the tracker.
        service: what it does with them.
        limit: maximum number of lines and sets of images that wait.
        max_bytes: maximum size of the images that wait.
        patience: seconds after which a call that has not returned is warned of.
        pause: seconds between attempts to open the service.
        quiet: seconds after it worked again, in which further failures are counted alone.
    """

    def __init__(
        self,
        name: str,
        service: Service,
        *,
        limit: int = 1000,
        max_bytes: int = 2**26,
        patience: float = 60.0,
        pause: float = 60.0,
        quiet: float = 600.0,
    ):
        self._name, self._service = name, service
        self._limit, self._max_bytes = limit, max_bytes
        self._patience, self._pause, self._quiet = patience, pause, quiet
        self._changed = threading.Condition()  # guards all below
        self._waiting: collections.deque[tuple[Callable[[], object], int]] = collections.deque()
        self._bytes = self._lost = 0
        self._in_hand = 0  # 1 while the service is given a line
        self._since: float | None = None  # when the call under way began
        self._fails, self._quiet_until = False, 0.0
        self._ending: Ending | None = None
        self._thread = threading.Thread(target=self._work, name=f"{_THREAD}{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._put(functools.partial(self._service.write, step, dict(metrics)), 0)

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        size = sum(len(png) for png in images.values())
        self._put(functools.partial(self._service.write_images, step, dict(images)), size)

    def _put(self, task: Callable[[], object], size: int) -> None:
        with self._changed:
            if self._since is not None and time.monotonic() - self._since > self._patience:
                self._fail(f"it has not answered for {self._patience:.0f} s")
            if len(self._waiting) >= self._limit or self._bytes + size > self._max_bytes:
                self._lost += 1
                self._fail("it is too slow, and too much is waiting for it")
                return
            self._waiting.append((task, size))
            self._bytes += size
            self._changed.notify_all()

    def _fail(self, what: str) -> None:
        """Warns that the service does not work, unless that is known."""
        if not self._fails and time.monotonic() >= self._quiet_until:
            self._fails = True
            log.warning(
                "The tracker %s fails: %s. The run goes on; metrics.jsonl has what %s is missing.",
                *(self._name, what, self._name),
            )

    def _work(self) -> None:
        """What the thread does."""
        while not self._attempt(self._open):
            with self._changed:
                if self._ending is not None:
                    return
                self._changed.wait_for(lambda: self._ending is not None, self._pause)
        while (task := self._take()) is not None:
            sent = self._attempt(task)
            with self._changed:
                self._in_hand = 0
                self._lost += not sent
        assert self._ending is not None
        self._quiet_until = 0.0  # what goes wrong now is not said by anything else
        self._attempt(functools.partial(self._service.close, self._ending))

    def _open(self) -> None:
        where = self._service.open()
        log.info("%s: %s", self._name, where)

    def _take(self) -> Callable[[], object] | None:
        """Returns what has waited longest, when there is something; None: nothing more comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending is not None)
            if not self._waiting:
                return None
            task, size = self._waiting.popleft()
            self._bytes -= size
            self._in_hand = 1
            return task

    def _attempt(self, task: Callable[[], object]) -> bool:
        """Does something with the service, and returns whether that worked."""
        with self._changed:
            self._since = time.monotonic()
        error: BaseException | None = None
        try:
            task()
        except BaseException as caught:  # any error of a library is told, and its sys.exit ends no run
            error = caught
        with self._changed:
            self._since = None
            if error is not None:
                self._fail(f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}")
            elif self._fails:
                self._fails, self._quiet_until = False, time.monotonic() + self._quiet
                log.warning("The tracker %s works again. It has lost %s so far.", self._name, _entries(self._lost))
        return error is None

    def end(self, ending: Ending) -> None:
        """Makes the thread send what is waiting, close the service, and end."""
        with self._changed:
            self._ending = ending
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Waits for the thread, and says what the tracker has not got. A thread that hangs is left behind.

        Args:
            seconds: how long to wait at most.
        """
        self._thread.join(max(0.0, seconds))
        with self._changed:
            hangs = self._thread.is_alive()
            missing = self._lost + self._in_hand + len(self._waiting)
        if hangs:
            log.warning("The tracker %s has not finished in time, and is not waited for.", self._name)
        if missing:
            log.warning("The tracker %s is missing %s of this run; see metrics.jsonl.", self._name, _entries(missing))


def _entries(count: int) -> str:
    """Returns the number of lines, a set of images counting as one."""
    return "1 line" if count == 1 else f"{count} lines"


class Experiments:
    """The trackers of a run, between `__enter__` and `__exit__`, which tells them how the run ended.

    Args:
        feeds: of them.
        watchdog: suspended while `__exit__` waits; None: there is none.
        seconds_at_end: how long `__exit__` waits for all of them together.
        seconds_when_stopped: the same after SIGTERM and Ctrl-C.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        *,
        watchdog: Watchdog | None = None,
        seconds_at_end: float = SECONDS_AT_END,
        seconds_when_stopped: float = SECONDS_WHEN_STOPPED,
    ):
        self._feeds, self._watchdog = feeds, watchdog or Watchdog(0)
        self._seconds_at_end, self._seconds_when_stopped = seconds_at_end, seconds_when_stopped

    def __bool__(self) -> bool:
        return bool(self._feeds)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends a line of metrics.jsonl. A step may come again, after a rewind."""
        for feed in self._feeds:
            feed.write(step, metrics)

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Sends images, PNG by name."""
        for feed in self._feeds:
            feed.write_images(step, images)

    def __enter__(self) -> Self:
        for feed in self._feeds:
            feed.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ending = _ending(kind)
        seconds = self._seconds_when_stopped if ending.told_to_stop else self._seconds_at_end
        deadline = time.monotonic() + seconds
        for feed in self._feeds:
            feed.end(ending)
        with self._watchdog.suspended():
            for feed in self._feeds:
                feed.join(deadline - time.monotonic())


def _ending(kind: type[BaseException] | None) -> Ending:
    """Returns how a run ends that raises an exception, or none."""
    if kind is None:
        return Ending.FINISHED
    if issubclass(kind, Preempted):
        return Ending.PREEMPTED
    return Ending.INTERRUPTED if issubclass(kind, KeyboardInterrupt) else Ending.FAILED


def track(
    workdir: pathlib.Path,
    names: Sequence[str],
    config: Mapping[str, Any],
    fields: Mapping[str, object],
    *,
    watchdog: Watchdog | None = None,
    enabled: bool = True,
) -> Experiments:
    """Returns the trackers of a run, of which a resumed run continues those in WORKDIR/trackers.json.

    Args:
        workdir: of the run.
        names: of trackers; TensorBoard is left to `MetricWriter`.
        config: the configuration, as nested dicts.
        fields: the same by path.
        watchdog: suspended while the run waits for its trackers at the end; None: there is none.
        enabled: False has no trackers: one process has them for all.
    """
    services = [name for name in dict.fromkeys(names) if name in _SERVICES]
    if not enabled or not services:
        return Experiments([])
    description, ids = Description(workdir, config, fields), RunIds(workdir / "trackers.json")
    feeds = [Feed(name, _SERVICES[name](description, ids, _FINISH_SECONDS)) for name in services]
    return Experiments(feeds, watchdog=watchdog)

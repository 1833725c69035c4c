"""Processes, as threads with a service between them, meet where they save."""

import collections
import concurrent.futures
import itertools
import threading
from collections.abc import Callable

import jax
import pytest
from jax._src import distributed

from vision_jax.runtime.barriers import Barriers, OtherProcessError


class Service:
    """In the place of the client of `jax.distributed`, for two processes."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._barriers = collections.defaultdict(lambda: threading.Barrier(2))

    def key_value_set(self, key: str, value: str) -> None:
        assert key not in self.values
        self.values[key] = value

    def key_value_delete(self, key: str) -> None:
        del self.values[key]

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.values.copy().items() if key.startswith(prefix)]

    def wait_at_barrier(self, name: str, timeout_ms: int) -> None:
        self._barriers[name].wait(timeout_ms / 1000)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: int(threading.current_thread().name[-1]))
    monkeypatch.setattr(distributed.global_state, "client", service)
    monkeypatch.setattr(Barriers, "_count", itertools.repeat(7))
    return service


def together(*processes: Callable[[Barriers], object]) -> list[BaseException | None]:
    """Runs each in a process of its own, and returns what they raised."""

    def run(process: Callable[[Barriers], object]) -> None:
        process(Barriers())

    pools = [
        concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=f"process {i} of 2: ")
        for i in range(len(processes))
    ]
    for index, pool in enumerate(pools):
        pool.submit(lambda index=index: setattr(threading.current_thread(), "name", f"process {index}")).result()
    return [f.exception(10) for f in [pool.submit(run, p) for pool, p in zip(pools, processes, strict=True)]]


def come_to(*keys: str) -> Callable[[Barriers], None]:
    def process(barriers: Barriers) -> None:
        for key in keys:
            barriers(key=key, timeout_ms=5000)

    return process


def test_all_meet_and_leave_little_behind(service: Service):
    assert together(come_to(*"abca"), come_to(*"abca")) == [None, None]
    assert sorted(service.values) == ["vision_jax/save/7/3/0", "vision_jax/save/7/3/1"]


def test_who_waits_for_a_process_that_failed_is_told(service: Service):
    """One skips two barriers, as Orbax does after an error; and the others learn of it at the one that it comes to."""
    first, second = together(come_to("start", "written", "complete", "end"), come_to("start", "end"))
    assert isinstance(first, OtherProcessError)
    assert isinstance(second, OtherProcessError)


def test_a_failure_before_the_threads_begin(service: Service):
    """The one that fails goes on; at no later barrier does anybody wait."""

    def fails(barriers: Barriers) -> None:
        barriers.fail()
        with pytest.raises(OtherProcessError):
            barriers(key="end", timeout_ms=5000)

    assert [type(error) for error in together(fails, come_to("written"))] == [type(None), OtherProcessError]

"""The thread that writes files."""

import threading
import time

import pytest

from vision_jax.runtime.background import Background


def test_tasks_are_done_in_order_and_before_the_end():
    done, before = [], threading.active_count()
    with Background() as background:
        for number in range(100):
            background.do(lambda number=number: done.append(number))
        background.flush()
        assert done == [*range(100)]
        for number in range(100, 200):
            background.do(lambda number=number: done.append(number))
    assert done == [*range(200)]
    assert threading.active_count() == before


def test_who_gives_too_many_tasks_waits():
    release, given = threading.Event(), []

    def give(background: Background) -> None:
        for number in range(5):
            background.do(release.wait)
            given.append(number)

    with Background(limit=2) as background:
        thread = threading.Thread(target=give, args=(background,))
        thread.start()
        while len(given) < 3:
            time.sleep(0.001)
        time.sleep(0.05)
        assert given == [0, 1, 2]  # one is being done, and two wait
        release.set()
        thread.join()
    assert given == [*range(5)]


def fail(text: str) -> None:
    raise OSError(text)


def test_errors_are_raised_by_the_next_call_and_once():
    done = []

    def give_tasks() -> None:
        with Background() as background:
            background.do(lambda: fail("first"))
            background.do(lambda: done.append("after it"))
            with pytest.raises(OSError, match="first"):
                background.flush()
            assert done == ["after it"]
            background.flush()
            background.do(lambda: fail("second"))
            background._tasks.join()
            with pytest.raises(OSError, match="second"):
                background.do(lambda: done.append("never"))
            background.do(lambda: fail("last"))

    with pytest.raises(OSError, match="last"):
        give_tasks()
    assert done == ["after it"]


def test_an_error_under_way_is_the_one_to_show(caplog: pytest.LogCaptureFixture):
    def give_tasks() -> None:
        with Background() as background:
            background.do(lambda: fail("beside it"))
            raise ValueError("of the loop")

    with pytest.raises(ValueError, match="of the loop"):
        give_tasks()
    assert "beside it" in caplog.text

"""SIGTERM with several processes, by a stand-in for JAX; Ctrl-C. More is in test_resume.py and test_processes.py."""

import signal

import pytest
from jax.experimental import multihost_utils

from vision_jax.runtime import preemption
from vision_jax.runtime.preemption import Preemption


def test_what_was_agreed_on_holds_until_the_end(monkeypatch: pytest.MonkeyPatch):
    """The agreed place comes once. If the state there cannot be saved and the run goes back, it stops at the next."""
    asked: list[int] = []
    monkeypatch.setattr(preemption, "_is_distributed", lambda: True)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda count: asked.append(count) or count == 3
    )
    told = Preemption()
    assert [told.should_stop() for _ in range(5)] == [False, False, True, True, True]
    assert asked == [1, 2, 3, 4, 5]
    assert not told.noticed()  # several processes do not stop anywhere else


def test_ctrl_c_is_told_once_while_there_is_something_to_save(capfd: pytest.CaptureFixture):
    with Preemption() as told:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not told.should_stop()
        with told.saving_on_interrupt():
            signal.raise_signal(signal.SIGINT)
            assert told.interrupted
            assert told.should_stop()
            assert told.noticed()
            assert "once more does not wait for that" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_a_program_handles_is_left_to_it():
    """As that which the shell lets a command in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as told, told.saving_on_interrupt():
            signal.raise_signal(signal.SIGINT)
            assert not told.should_stop()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_of_one_of_several_processes_stops_all_by_sigterm(monkeypatch: pytest.MonkeyPatch):
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))  # JAX's notifier has it
    monkeypatch.setattr(preemption, "_is_distributed", lambda: True)
    try:
        with Preemption() as told, told.saving_on_interrupt():
            signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGTERM]
        assert not told.interrupted  # they end as after SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)

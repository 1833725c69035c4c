"""SIGTERM with several processes, by a stand-in for JAX. Real signals are in test_resume.py and test_processes.py."""

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

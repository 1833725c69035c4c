"""What messages say of the operating system's errors."""

import pathlib

import pytest

from vision_jax.errors import reason


def test_the_systems_errors_are_said_in_words(tmp_path: pathlib.Path):
    with pytest.raises(OSError) as caught:
        (tmp_path / "a").read_bytes()
    assert reason(caught.value) == "No such file or directory"
    assert reason(caught.value, path=True) == f"No such file or directory: {tmp_path}/a"
    assert reason(OSError(28, "No space left on device"), path=True) == "No space left on device"
    assert reason(OSError("cut off")) == "cut off"
    assert reason(ValueError("no image")) == "no image"

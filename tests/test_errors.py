"""What messages say of errors that others have raised."""

import pathlib

import PIL
import PIL.Image
import pytest

from vision_jax.errors import reason


def test_errors_of_the_operating_system_are_words_without_a_number(tmp_path: pathlib.Path):
    path = tmp_path / "none"
    with pytest.raises(FileNotFoundError) as caught:
        path.read_bytes()
    assert reason(caught.value) == "No such file or directory"
    assert reason(caught.value, path=True) == f"No such file or directory: {path}"
    assert reason(OSError(28, "No space left on device"), path=True) == "No space left on device"


def test_other_errors_are_what_they_say(tmp_path: pathlib.Path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(PIL.UnidentifiedImageError) as caught:  # an OSError without a number
        PIL.Image.open(tmp_path / "a.png")
    assert reason(caught.value) == str(caught.value)
    assert reason(ValueError("it is cut off"), path=True) == "it is cut off"

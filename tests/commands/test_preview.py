import pathlib

import numpy as np
import PIL.Image
import pytest
from conftest import picture

from vision_jax.commands import preview


def test_one_policy(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    PIL.Image.fromarray(picture(60, 90)).save(tmp_path / "image.png")
    output = tmp_path / "preview.png"
    arguments = [f"--output={output}", f"--image={tmp_path / 'image.png'}", "--policy=3augment", "--size=40"]
    assert preview.main(arguments) == 0
    assert str(output) in capsys.readouterr().out
    sheet = np.asarray(PIL.Image.open(output))
    assert sheet.shape[1] == 6 * 40 + 7 * 6
    shown = [sheet[24:64, 6 + 46 * i : 46 + 46 * i] for i in range(6)]  # below a margin and a line of text
    image, _ = preview.load_images(str(tmp_path / "image.png"), 40)
    grey = np.asarray(PIL.Image.fromarray(image).convert("L").convert("RGB"))
    solarized = np.where(image < 128, image, 255 - image)
    # The keys are always the same, and with these none of the six is blurred.
    assert {s.tobytes() for s in shown} == {grey.tobytes(), solarized.tobytes()}


def test_the_sheet_shows_every_operation_and_field():
    from dataclasses import fields

    from vision_jax.augment import AugmentConfig, list_policies
    from vision_jax.augment.ops import OPERATIONS

    assert {*preview._ARGUMENTS, "identity", "autocontrast", "equalize", "invert"} == {*OPERATIONS}
    shown = {field for row in preview._FIELDS.values() for field in row} | {"cutout", "policy", "shift", "shift_mode"}
    others = {"color_jitter_prob", "mix_prob", "mix_switch_prob", "mix_group", "mean_color"}
    assert shown | others == {field.name for field in fields(AugmentConfig)}
    same = {"original": "autoaugment", "originalr": "autoaugment", "v0r": "v0", "3a": "3augment"}
    names = {name.split("-")[0] for name in preview._POLICIES}
    assert {same.get(name, name) for name in list_policies()} == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy=nope"], "error: augment.policy is 'nope'"),
        (["--image=/nowhere.png"], "error: Cannot read /nowhere.png"),
        (["--image=https://host/image.png"], "error: --image is 'https://host/image.png': URLs are not supported here"),
        (["--output=gs://bucket/preview.png"], "error: --output is 'gs://bucket/preview.png': URLs are not supported"),
        (["--output=preview.xyz"], "error: The output is 'preview.xyz'"),
        (
            ["--policy=3a", "--output=/nowhere/preview.png"],
            "error: --output is /nowhere/preview.png, but there is no folder /nowhere.",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    assert preview.main(["--size=32", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_wrong_flags(capsys: pytest.CaptureFixture):
    for arguments in (["--size=8"], ["--sizes=64"]):
        with pytest.raises(SystemExit) as stop:
            preview.main(arguments)
        assert stop.value.code == 2
    assert "no integer from 32 to 1024" in capsys.readouterr().err

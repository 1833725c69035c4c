"""`python -m vision_jax benchmark corruptions`. How fast they are, is not tested."""

import json
import pathlib
import sys
import types

import pytest

from vision_jax.augment.corruptions import CORRUPTIONS
from vision_jax.commands import benchmark as command

FLAGS = ("--size=40", "--images=1", "--rounds=2")


def test_both_on_the_same(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    seen = []
    peer = types.ModuleType("imagecorruptions")
    peer.corrupt = lambda image, severity, name: seen.append((image.shape, severity, name))
    monkeypatch.setitem(sys.modules, "imagecorruptions", peer)
    output = tmp_path / "found.json"
    assert command.main(["corruptions", *FLAGS, "--severity=5", "--names=fog,contrast", f"--json={output}"]) == 0
    found = json.loads(output.read_text())["milliseconds"]
    assert {name: {key: len(rounds) for key, rounds in times.items()} for name, times in found.items()} == {
        name: {"vision_jax": 2, "imagecorruptions": 2} for name in ("fog", "contrast")
    }
    assert seen == [((40, 40, 3), 5, name) for name in ("fog", "contrast") for _ in range(3)]
    assert "1 images of 40x40 pixels at severity 5" in capsys.readouterr().out


def test_alone(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert command.main(["corruptions", *FLAGS]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:-1]] == list(CORRUPTIONS)
    assert printed.splitlines()[-1].startswith("imagecorruptions: not installed")


def test_what_is_refused(capsys: pytest.CaptureFixture):
    for flag, message in (("--names=fogg", "--names has 'fogg': did you mean fog"), ("--size=20", "need 32 pixels")):
        assert command.main(["corruptions", flag]) == 1
        assert message in capsys.readouterr().err

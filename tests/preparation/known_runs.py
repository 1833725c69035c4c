"""Running `prepare` on miniatures of known data sets."""

import collections
import dataclasses

import pytest
from known_miniatures import Miniature

from vision_jax.commands import prepare
from vision_jax.preparation import known


def publish(monkeypatch: pytest.MonkeyPatch, name: str, miniature: Miniature) -> None:
    """Makes the sizes of the miniature the published ones; all else of the description stays."""
    examples = {split: len(records) for split, records in miniature.expected.items()}
    if "all" in examples:
        counts = collections.Counter(label for label, _ in miniature.expected["all"])
        draw = known.KNOWN[name].draw
        assert draw is not None
        train = sum(round(draw.share * n) if draw.per_class is None else draw.per_class for n in counts.values())
        examples = {"train": train, "test": examples["all"] - train}
    description = dataclasses.replace(known.KNOWN[name], examples=examples, num_classes=miniature.classes)
    monkeypatch.setattr(known, "KNOWN", {**known.KNOWN, name: description})


def run(*arguments: object) -> int:
    return prepare.main([*map(str, arguments), "--workers=1"])


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Runs the command, which must fail with one line, and returns it."""
    assert run(*arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1, printed
    return printed

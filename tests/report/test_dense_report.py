"""The report on a detector or segmenter."""

import pathlib

import numpy as np
import pytest

from vision_jax.errors import DataError
from vision_jax.report import dense, program
from vision_jax.report.runs import read_run


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_pages_show_what_was_found(kind: str, dense_runs: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    output = tmp_path / "report.html"
    assert program.write_report([dense_runs[kind]], output) == []
    page = output.read_text()
    for heading in ("Truth and what was found", "Classes", "Training samples", "Curves"):
        assert f">{heading}</h2>" in page
    assert {"boxes": "val/AP", "masks": "val/miou"}[kind] in page
    found = page[page.index('id="found"') : page.index('id="samples"')]
    assert found.count("<figure>") == 8
    assert found.count("<img") == 16
    assert {"boxes": "found with a score of 30% or more", "masks": "of the pixels are of the right class"}[
        kind
    ] in found
    columns = {"boxes": "AP50", "masks": "iou"}[kind]
    assert f">{columns}<" in page[page.index('id="classes"') :]
    # Without evaluating, the tables that training wrote are left.
    assert program.write_report([dense_runs[kind]], output, evaluate=False) == []
    page = output.read_text()
    assert 'id="found"' not in page
    assert f">{columns}<" in page


def test_the_images_are_always_the_same(dense_runs: dict[str, pathlib.Path]):
    run = read_run(dense_runs["masks"], "masks")
    assert dense.finds(run) == "masks"
    first, second = (dense.show_run(run, run.steps[::-1], "the latest", examples=3) for _ in range(2))
    assert [pair.description for pair in first.pairs] == [pair.description for pair in second.pairs]
    for one, other in zip(first.pairs, second.pairs, strict=True):
        np.testing.assert_array_equal(one.truth, other.truth)


@pytest.mark.parametrize(
    "values", [{}, {"classes": ["a"]}, {"classes": ["a"], "AP": [1.0, 2.0]}, {"classes": ["a"], "AP": ["x"]}]
)
def test_damaged_tables(values: dict):
    with pytest.raises(DataError, match="is damaged"):
        dense.check_table(values)


def test_tables_without_values():
    table = dense.class_table({"classes": ["<cat>", "dog"], "AP": [None, 0.5], "AR": [-1.0, 0.25], "pixels": [3, 4000]})
    assert "&lt;cat&gt;" in table
    assert table.count(">-</data>") == 2
    assert "4,000" in table

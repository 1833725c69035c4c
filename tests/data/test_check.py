import pathlib

import numpy as np
import pytest
from conftest import Pictures, encode, picture

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.data import check
from vision_jax.errors import DataError


def damaged_pictures(count: int) -> Pictures:
    """150 pictures, of which so many are cut off, and the last one has a label out of range."""
    source = Pictures([0] * 149 + [3], size=16, num_classes=3)
    for index in range(count):
        image, label = source.records[7 * index]
        source.records[7 * index] = (image[: len(image) // 2], label)
    return source


def test_all_damaged_records_are_found_in_order():
    counts: list[int] = []
    found = check.find_damaged(damaged_pictures(3), num_threads=4, progress=counts.append)
    assert [(record.index, record.name) for record in found] == [(i, f"picture {i}") for i in (0, 7, 14, 149)]
    assert found[0].reason == "its header is cut off"
    assert found[-1].reason == "it has the label 3, and there are 3 classes, 0 to 2"
    assert sum(counts) == 150
    assert len(check.find_damaged(damaged_pictures(0), max_pixels=100)) == 150


def test_records_that_cannot_be_read_are_damaged():
    class Failing(Pictures):
        def __getitem__(self, index: int) -> tuple[bytes, int]:
            if index == 5:
                raise OSError("disk on fire")
            return super().__getitem__(index)

    (found,) = check.find_damaged(Failing([0] * 10, size=16, num_classes=1))
    assert (found.index, found.reason) == (5, "it cannot be read: disk on fire")


def test_the_message_names_ten_and_what_helps(caplog: pytest.LogCaptureFixture):
    damaged = check.find_damaged(damaged_pictures(15))
    with pytest.raises(DataError, match="16 of the 150 records of the split 'val' are damaged:") as caught:
        check.refuse_damaged(damaged, 150, 15, "val")
    message = str(caught.value)
    assert message.count("\n  - picture") == 10
    assert "and 6 more" in message
    assert "data.max_bad_eval_records=16" in message
    assert "data.max_bad_records" not in message
    check.refuse_damaged(damaged, 150, 16, "val")
    assert "16 of the 150 records of the split 'val' are damaged and will be left out" in caplog.text
    check.refuse_damaged([], 150, 0, "val")


def test_validation_images_are_checked_before_training_if_asked(image_folder: pathlib.Path):
    path = image_folder / "validation" / "bee" / "bee1.jpg"
    path.write_bytes(encode(picture(40, 40))[:300] + b"\xff\xd9")
    config = config_lib.default_config()
    config.data.source, config.data.dir = "folder", str(image_folder)
    source = build.create_source(config, train=False)
    with pytest.raises(DataError, match=r"1 of the 9 records .*\n  - .*bee1\.jpg: it"):
        build.check_images(config, source)
    config.data.max_bad_eval_records = 1
    build.check_images(config, source)
    assert np.isin(source.labels, range(3)).all()

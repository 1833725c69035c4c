"""Corruptions of small and odd images; that they are ImageNet-C's, tests/references/test_corruptions.py tests."""

import numpy as np
import pytest
from conftest import picture
from numpy.random import RandomState

from vision_jax.augment import frost
from vision_jax.augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt, random_state
from vision_jax.suite import find


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size(name: str):
    for height, width in ((32, 47), (51, 33)):
        image = picture(height, width, seed=1)
        before = image.copy()
        distances = []
        for severity in SEVERITIES:
            found = corrupt(image, name, severity, RandomState(severity))
            assert (found.shape, found.dtype) == (image.shape, np.uint8)
            np.testing.assert_array_equal(found, corrupt(image, name, severity, RandomState(severity)))
            distances.append(np.abs(found.astype(int) - image).mean())
        np.testing.assert_array_equal(image, before)
        # Water may be without a drop on so few pixels, and the severities of saturation have two directions.
        assert distances[-1] > (1 if name == "spatter" else 3)
        if name not in ("spatter", "saturate", "elastic_transform"):
            assert distances[-1] > distances[0]


def test_images_of_one_color():
    for level in (0, 255):
        image = np.full((40, 40, 3), level, np.uint8)
        for name in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "contrast", "pixelate", "saturate"):
            found = corrupt(image, name, 5, RandomState(0)).astype(int)
            assert np.abs(found - level).max() <= 1 or name == "saturate", name
    # Of black, there is no fog: its strength is relative to the brightest value.
    assert corrupt(np.zeros((40, 40, 3), np.uint8), "fog", 5, RandomState(0)).max() == 0


def test_the_names_are_those_of_the_suite():
    assert tuple(CORRUPTIONS) == find.CORRUPTIONS
    assert tuple(name for name, kind in CORRUPTIONS.items() if kind.group == "extra") == find.EXTRA_CORRUPTIONS


def test_random_numbers_depend_on_the_image_alone():
    drawn = {
        key: random_state(*key).random_sample()
        for key in [
            (0, "fog", 1, b"a"),
            (0, "fog", 1, b"b"),
            (0, "fog", 2, b"a"),
            (0, "snow", 1, b"a"),
            (1, "fog", 1, b"a"),
        ]
    }
    assert len(set(drawn.values())) == len(drawn)
    # RandomState's streams never change, so neither does this.
    assert drawn[0, "fog", 1, b"a"] == pytest.approx(0.68200044684988, abs=1e-12)


def test_made_up_frost_has_the_colors_of_the_published_pictures():
    """Means and deviations over crops of 224 x 224 pixels of frost1 to frost5."""
    random = RandomState(0)
    pictures = [frost.made_up(random, 112, 112) for _ in range(20)]
    levels = [one.mean() for one in pictures]
    assert 140 < np.mean(levels) < 185  # 162
    assert np.std(levels) > 20  # 37
    assert 15 < np.mean([one.mean(-1).std() for one in pictures]) < 32  # 23

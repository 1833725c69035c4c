import jax
import jax.numpy as jnp
import numpy as np
from test_ops import QUICK

from vision_jax.augment.erasing import cutout, random_erasing

SIZE = 32
IMAGES = np.full((1000, SIZE, SIZE, 3), 7.0, np.float32)


def erase(probability: float, **options: object) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    run = jax.vmap(lambda key, image: random_erasing(key, image, probability, **options))  # type: ignore[arg-type]
    return np.asarray(jax.jit(run, compiler_options=QUICK)(keys, IMAGES))


def boxes(erased: np.ndarray) -> np.ndarray:
    """Returns top, bottom, left and right of what is erased in each image, after checking that it is a rectangle."""
    found = []
    for mask in erased:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        assert mask[box[0] : box[1], box[2] : box[3]].all()
        found.append(box)
    return np.array(found)


def test_one_rectangle_is_erased_with_the_given_probability():
    result = erase(0.3)
    assert set(np.unique(result)) == {0.0, 7.0}
    erased = (result == 0).all(-1)
    assert ((result == 0).any(-1) == erased).all()  # all channels alike
    touched = erased.any((1, 2))
    assert abs(touched.mean() - 0.3) < 0.04
    top, bottom, left, right = boxes(erased[touched]).T
    shares = (bottom - top) * (right - left) / SIZE**2
    assert 0.01 < shares.min() < 0.05
    assert 0.3 < shares.max() < 0.36
    assert abs(shares.mean() - 0.17) < 0.03  # a little below (0.02 + 1/3) / 2: the largest and longest do not fit
    log_aspects = np.log((bottom - top) / (right - left))
    assert abs(log_aspects.mean()) < 0.1
    assert abs(log_aspects).max() < np.log(1 / 0.3) + 0.4  # of whole pixels
    assert top.min() == left.min() == 0
    assert bottom.max() == right.max() == SIZE


def test_noise_is_normal_and_differs_from_pixel_to_pixel():
    result = erase(1.0, mode="pixel", count=3)
    erased = (result != 7).all(-1)
    values = result[erased]
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.02
    # One, two or three rectangles, that cover as much together as one does.
    assert abs(erased.mean() - 0.16) < 0.03
    rectangles = [mask[np.ix_(mask.any(1), mask.any(0))].all() for mask in erased]
    assert 0.3 < np.mean(rectangles) < 0.6


def test_cutout_erases_a_square_around_any_pixel():
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    result = np.asarray(
        jax.jit(jax.vmap(lambda key, image: cutout(key, image, 8)), compiler_options=QUICK)(keys, IMAGES)
    )
    top, bottom, left, right = boxes((result == 0).all(-1)).T
    assert (bottom - top).max() == (right - left).max() == 8
    assert (bottom - top).min() == (right - left).min() == 4  # half of it, around a pixel of the border
    # The centre is any of 32 rows; the 25 from 4 to 28 have room for all of the square.
    assert abs(((bottom - top) == 8).mean() - 25 / 32) < 0.04
    assert jnp.asarray(top).max() == SIZE - 5

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.dense import iou_metrics
from vision_jax.dense.iou_metrics import agreement, confusion_matrix, join_counts, split_counts


@pytest.mark.parametrize("block", [7, 40, 1 << 16])
def test_pixels_are_counted_by_label_and_prediction(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(iou_metrics, "_BLOCK", block)
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 5, (2, 3, 11, 13)).astype(np.uint8)
    labels[:, 2:4] = 255
    mask = np.array([1, 0, 1])
    kept = (labels != 255) & (mask[:, None, None] > 0)
    expected = np.bincount(5 * labels[kept].astype(int) + predicted[kept], minlength=25).reshape(5, 5)
    found = jax.jit(lambda *arrays: confusion_matrix(arrays[0], arrays[1], 5, arrays[2]))(predicted, labels, mask)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_more_pixels_than_float32_can_count():
    large = jnp.zeros((3, 4096, 2048), jnp.uint8)
    assert large.size > 1 << 24
    odd = large.at[0, 0, 0].set(1)
    np.testing.assert_array_equal(confusion_matrix(odd, large, 2), [[3 * 4096 * 2048 - 1, 1], [0, 0]])


def test_words_add_up_beyond_int32():
    counts = jnp.array([[0, 65535], [65536, 2**31 - 1]])
    words = jax.jit(lambda counts: sum((split_counts(counts) for _ in range(50)), jnp.zeros((2, 2, 2), jnp.int32)))(
        counts
    )
    assert words.dtype == jnp.int32
    np.testing.assert_array_equal(join_counts(words), 50 * np.asarray(counts, np.int64))


def test_measures_of_a_matrix_that_a_person_can_compute():
    found = agreement(np.array([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(found.iou, [3 / 6, 4 / 7, np.nan, np.nan])
    np.testing.assert_allclose(found.class_accuracy, [3 / 4, 4 / 6, np.nan, np.nan])
    assert found.miou == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert found.mean_accuracy == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert found.pixel_accuracy == 0.7


def test_a_class_that_is_only_predicted_has_an_iou_of_zero_and_no_accuracy():
    found = agreement(np.array([[2, 1], [0, 0]]))
    assert found.iou[1] == 0
    assert np.isnan(found.class_accuracy[1])
    assert np.isnan(agreement(np.zeros((2, 2), int)).miou)

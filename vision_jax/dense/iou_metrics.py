"""How well a segmentation agrees with its labels: a confusion matrix, summed up on the devices, and what follows of it.

Counts are exact. Within a block of rows they are products of one-hot vectors, which a chip multiplies fastest, in
float32 sums of less than 2^24; blocks and images are added up as int32, enough for 2 billion pixels in a batch. A split
may have more: `split_counts` gives two int32 words that can be added up over 32,767 batches, and `join_counts` makes
int64 of their sums.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

_WORD = 16  # bits of the lower word
_BLOCK = 1 << 16  # pixels of an image that are counted at once


def confusion_matrix(
    predicted: jax.Array,
    labels: jax.Array,
    num_classes: int,
    mask: jax.Array | None = None,
    *,
    ignored: int = 255,
) -> jax.Array:
    """Returns the number of pixels of each class (rows) that were predicted to be of each class (columns).

    Args:
        predicted: (batch, height, width) integers.
        labels: (batch, height, width) integers. What is not in [0, num_classes) is left out, as is `ignored`.
        num_classes: of the matrix.
        mask: (batch,), 0 for padded examples; None: there are none.
        ignored: the label of pixels that do not count.

    Returns:
        (num_classes, num_classes) int32.
    """
    batch, height, width = labels.shape
    labels = jnp.where(labels == ignored, -1, labels.astype(jnp.int32))
    if mask is not None:
        labels = jnp.where((mask > 0)[:, None, None], labels, -1)
    # The loop goes over blocks of rows and not over images, which may be divided over devices.
    rows = max(1, min(height, _BLOCK // width))
    blocks = -(-height // rows)
    below = ((0, 0), (0, blocks * rows - height), (0, 0))
    labels = jnp.pad(labels, below, constant_values=-1)
    predicted = jnp.pad(predicted.astype(jnp.int32), below, constant_values=-1)

    def count(block: jax.Array, total: jax.Array) -> jax.Array:
        one_hot = [
            jax.nn.one_hot(
                jax.lax.dynamic_slice_in_dim(values, block * rows, rows, 1).reshape(batch, -1),
                num_classes,
                dtype=jnp.bfloat16,
            )
            for values in (labels, predicted)
        ]
        counts = jnp.einsum("bpi,bpj->bij", *one_hot, preferred_element_type=jnp.float32)
        return total + counts.astype(jnp.int32)

    total = jax.lax.fori_loop(0, blocks, count, jnp.zeros((batch, num_classes, num_classes), jnp.int32))
    return jnp.sum(total, 0)


def split_counts(counts: jax.Array) -> jax.Array:
    """Returns int32 counts of any shape as two words, of their lower 16 bits and of the rest: (2, ...) int32."""
    return jnp.stack([counts & ((1 << _WORD) - 1), counts >> _WORD])


def join_counts(words: np.ndarray) -> np.ndarray:
    """Returns the sum that sums of words (2, ...) stand for, int64; see `split_counts`."""
    low, high = np.asarray(words, np.int64)
    return low + (high << _WORD)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What a confusion matrix says. A class without pixels is left out of means; without any, they are NaN.

    Attributes:
        iou: intersection over union of each class, (classes,) float64; NaN for a class neither labelled nor predicted.
        miou: its mean.
        class_accuracy: share of the pixels of each class that are predicted to be of it, (classes,) float64; NaN for
            one that is not labelled.
        mean_accuracy: its mean.
        pixel_accuracy: share of all pixels.
    """

    iou: np.ndarray
    miou: float
    class_accuracy: np.ndarray
    mean_accuracy: float
    pixel_accuracy: float


def agreement(matrix: np.ndarray) -> Agreement:
    """Returns the measures of a confusion matrix (classes, classes), whose rows are labels and columns predictions."""
    matrix = np.asarray(matrix, np.int64)
    right, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    iou, accuracy = _ratio(right, labelled + predicted - right), _ratio(right, labelled)
    pixels = float(_ratio(right.sum()[None], matrix.sum()[None])[0])
    return Agreement(iou, _mean(iou), accuracy, _mean(accuracy), pixels)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")

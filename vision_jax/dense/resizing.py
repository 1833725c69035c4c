"""Float images as torchvision's detectors take them: normalized, resized by bilinear interpolation, and padded.

See `GeneralizedRCNNTransform` (`models/detection/transform.py`). A training prepares uint8 images on the host; this is
for pixels that agree with torchvision's to rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.data.dense_sizes import padded_size, resized_size, scale_boxes

__all__ = ["Prepared", "interpolation", "padded_size", "prepare", "resize_bilinear", "resized_size", "scale_boxes"]


class Prepared(NamedTuple):
    """A batch of images of different sizes.

    Attributes:
        images: (batch, height, width, channels) float32, top left, 0 elsewhere.
        sizes: (batch, 2) int32, height and width of what is not padding.
    """

    images: jax.Array
    sizes: np.ndarray


def interpolation(old: int, new: int) -> np.ndarray:
    """Returns the (new, old) float32 matrix of linear interpolation, without smoothing where it makes smaller.

    The centres of pixels are at halves (`align_corners` is false), and what lies outside is the outermost pixel.
    """
    scale = np.float32(old) / np.float32(new)
    # Rounded once to float32, as torch's kernel computes it: in a large image a position is off by 1e-4 otherwise.
    at = (np.float64(scale) * (np.arange(new) + 0.5) - 0.5).astype(np.float32)
    at = np.maximum(at, np.float32(0))
    low = np.minimum(np.floor(at).astype(int), old - 1)
    high, share = np.minimum(low + 1, old - 1), np.clip(at - low.astype(np.float32), 0, 1)
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), low), 1 - share)
    np.add.at(matrix, (np.arange(new), high), share)
    return matrix


def resize_bilinear(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns images (..., height, width, channels) at another size, by two products of matrices: float32."""
    down, across = interpolation(images.shape[-3], size[0]), interpolation(images.shape[-2], size[1])
    images = jnp.asarray(images, jnp.float32)
    # Two bilinear weights at most are not 0 in a row, so that a product that is exact costs little that matters.
    images = jnp.einsum("ih,...hwc->...iwc", down, images, precision="highest")
    return jnp.einsum("jw,...iwc->...ijc", across, images, precision="highest")


def prepare(
    images: Sequence[np.ndarray],
    *,
    shorter: int = 800,
    longer: int = 1333,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    divisor: int = 32,
) -> Prepared:
    """Returns images normalized, resized and padded to the largest of them, rounded up to multiples of `divisor`.

    Args:
        images: (height, width, channels) float in [0, 1] each.
        shorter, longer: the sizes to reach; see `resized_size`.
        mean, std: by channel.
        divisor: of the sizes of the batch.
    """
    center, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    sizes = [resized_size(image.shape[0], image.shape[1], shorter, longer) for image in images]
    canvas = padded_size(max(height for height, _ in sizes), max(width for _, width in sizes), divisor)
    rows = []
    for image, (height, width) in zip(images, sizes, strict=True):
        resized = resize_bilinear((jnp.asarray(image, jnp.float32) - center) / scale, (height, width))
        rows.append(jnp.pad(resized, ((0, canvas[0] - height), (0, canvas[1] - width), (0, 0))))
    return Prepared(jnp.stack(rows), np.array(sizes, np.int32))

"""What is done with an image before a model of images and words sees it."""

from vision_jax.data.transforms import EvalTransform, Preprocessing, SquareTransform
from vision_jax.models.clip_variants import Variant


def preprocessing(variant: Variant, size: int | None = None) -> Preprocessing:
    """Returns the preprocessing that published weights expect.

    Args:
        variant: of the model.
        size: height and width of its images; None: those of the weights.
    """
    spec = variant.input
    size = size or spec.size
    transform = SquareTransform if variant.square else EvalTransform
    return Preprocessing(transform(size, size, spec.channels, spec.interpolation, copied=()), spec.mean, spec.std)

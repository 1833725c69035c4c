"""What a model has looked at in images of one's own: explained, compared, and shown."""

from vision_jax.explanations.explainer import DEFAULT, PREDICTED, Explanation, ImageExplainer, parse_methods
from vision_jax.explanations.faithfulness import RANDOM, Curves, Faithfulness
from vision_jax.explanations.files import JSON, PAGE, SHEET, Folder, check_output
from vision_jax.explanations.overlays import overlay
from vision_jax.explanations.program import explain_images, find_target, read_images, stream

__all__ = [
    "DEFAULT",
    "JSON",
    "PAGE",
    "PREDICTED",
    "RANDOM",
    "SHEET",
    "Curves",
    "Explanation",
    "Faithfulness",
    "Folder",
    "ImageExplainer",
    "check_output",
    "explain_images",
    "find_target",
    "overlay",
    "parse_methods",
    "read_images",
    "stream",
]

"""Bytes as tokens: what needs no vocabulary, and is enough for short texts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vision_jax.text.cleaning import clean_for_siglip

START, END = 256, 257
VOCABULARY = 258


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Makes the bytes of a text, in UTF-8, its tokens; it is cleaned by `clean_for_siglip`.

    As with CLIP's tokens, one stands before the text and one, with the largest number, behind it; zeros fill it up.

    Attributes:
        context_length: tokens of each text.
    """

    context_length: int
    vocab_size: int = VOCABULARY

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns (texts, context_length) int32; a text that is too long is cut off, and ends with `END`."""
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [START, *clean_for_siglip(text).encode()[: self.context_length - 2], END]
            row[: len(ids)] = ids
        return tokens

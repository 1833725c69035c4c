"""SigLIP's tokens: pieces of sentences (Kudo and Richardson 2018, arXiv:1808.06226)."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vision_jax.errors import ConfigError, DataError
from vision_jax.text.cleaning import clean_for_siglip

END = 1  # of a text; it also fills up what is shorter


@dataclasses.dataclass(frozen=True, eq=False)
class SigLipTokenizer:
    """Makes SigLIP's tokens of texts.

    Attributes:
        pieces: gives the numbers of a clean text's pieces.
        vocab_size: number of different tokens.
        context_length: tokens of each text.
    """

    pieces: Callable[[str], list[int]]
    vocab_size: int
    context_length: int = 64

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, which is cleaned, without its end."""
        return self.pieces(clean_for_siglip(text))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns (texts, context_length) int32; the last token is the end of the text, also of one that is cut off."""
        tokens = np.full((len(texts), self.context_length), END, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = self.encode(text)[: self.context_length - 1]
            row[: len(ids)] = ids
        return tokens


@dataclasses.dataclass(frozen=True, eq=False)
class _Pieces:
    """Gives the numbers of pieces by the library `tokenizers`; unlike a lambda it can be pickled."""

    sentences: Any

    def __call__(self, text: str) -> list[int]:
        return self.sentences.encode(text, add_special_tokens=False).ids


def read_siglip_tokenizer(path: pathlib.Path, context_length: int) -> SigLipTokenizer:
    """Reads SigLIP's tokenizer.

    Args:
        path: `tokenizer.json`, as Hugging Face has it, or a model of sentencepiece.
        context_length: tokens of each text.

    Raises:
        DataError: if it cannot be read.
        ConfigError: if the library that reads it is not installed.
    """
    pieces: Callable[[str], list[int]]
    try:
        if path.suffix == ".json":
            import tokenizers

            sentences = tokenizers.Tokenizer.from_file(str(path))
            sentences.no_padding()
            sentences.no_truncation()
            end, size, pieces = sentences.token_to_id("</s>"), sentences.get_vocab_size(), _Pieces(sentences)
        else:
            import sentencepiece

            model = sentencepiece.SentencePieceProcessor(model_file=str(path))
            end, size, pieces = model.eos_id(), model.vocab_size(), model.encode
    except ImportError as error:
        raise ConfigError(f"{path} is read by {error.name}: pip install 'vision_jax[clip]'.") from error
    except Exception as error:  # both libraries raise plain exceptions
        raise DataError(f"{path} is no tokenizer of sentencepiece, or of the library `tokenizers`: {error}.") from error
    if end != END:
        raise DataError(f"{path} has the number {end} for the end of a text, and SigLIP's is {END}: is it SigLIP's?")
    return SigLipTokenizer(pieces, size, context_length)

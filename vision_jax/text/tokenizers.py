"""Which files hold a tokenizer."""

import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vision_jax.errors import ConfigError, DataError
from vision_jax.text.bpe import read_clip_tokenizer
from vision_jax.text.bytes import ByteTokenizer
from vision_jax.text.sentences import read_siglip_tokenizer

# By kind, what the files are called that weights come with, the first ones preferred.
KINDS = {
    "clip": ("tokenizer.json", "bpe_simple_vocab_16e6.txt.gz", "merges.txt"),
    "siglip": ("tokenizer.json", "spiece.model", "sentencepiece.model"),
}


class Tokenizer(Protocol):
    """Makes tokens of texts."""

    @property
    def context_length(self) -> int:
        """Tokens of each text."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns (texts, context_length) int32."""
        ...


def read_tokenizer(kind: str, path: str | pathlib.Path, context_length: int) -> Tokenizer:
    """Reads a tokenizer.

    Args:
        kind: one of `KINDS`.
        path: of a file; see `read_clip_tokenizer` and `read_siglip_tokenizer`.
        context_length: tokens of each text.

    Raises:
        DataError: if it cannot be read.
        ConfigError: if a library is not installed.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"There is no tokenizer {path}: it is one of the files {', '.join(KINDS[kind])}.")
    if kind == "siglip":
        return read_siglip_tokenizer(path, context_length)
    return read_clip_tokenizer(path, context_length)


def open_tokenizer(name: str, context_length: int) -> Tokenizer:
    """Returns the tokenizer that a configuration names.

    Args:
        name: "bytes", or one of `KINDS` with the file of it, as clip:FILE.
        context_length: tokens of each text.

    Raises:
        ConfigError: for another name, or if a library is not installed.
        DataError: if the file cannot be read.
    """
    kind, _, path = name.partition(":")
    if name == "bytes":
        return ByteTokenizer(context_length)
    if kind not in KINDS or not path:
        raise ConfigError(f"There is no tokenizer {name!r}: it is bytes, clip:FILE or siglip:FILE.")
    return read_tokenizer(kind, path, context_length)

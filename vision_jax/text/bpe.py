"""CLIP's tokens: byte pairs (Sennrich et al. 2016, arXiv:1508.07909) of words, by Hugging Face's `tokenizers`."""

import dataclasses
import gzip
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.errors import ConfigError, DataError, reason
from vision_jax.text.cleaning import clean_for_clip

CONTEXT_LENGTH = 77
# Of the file that OpenAI gives, `bpe_simple_vocab_16e6.txt.gz`, the first so many pairs are used: what is left of
# 49,152 after 256 bytes and two special tokens.
_MERGES = 49152 - 256 - 2
# Parts of a text that no pair reaches across: ends of English contractions, words, single digits, other signs.
_PARTS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_STARTS, _ENDS = ("<|startoftext|>", "<start_of_text>"), ("<|endoftext|>", "<end_of_text>")


@dataclasses.dataclass(frozen=True, eq=False)
class ClipTokenizer:
    """Makes CLIP's tokens of texts.

    Attributes:
        pairs: the `tokenizers.Tokenizer`, without any of the special tokens.
        start, end: numbers of the special tokens at both ends.
        context_length: tokens of each text, with these and the zeros that fill it up.
    """

    pairs: Any
    start: int
    end: int
    context_length: int = CONTEXT_LENGTH

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return max(self.pairs.get_vocab_size(), self.start + 1, self.end + 1)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, which is cleaned, without the special ones."""
        return self.pairs.encode(clean_for_clip(text), add_special_tokens=False).ids

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns (texts, context_length) int32; a text that is too long is cut off, and ends with `end`."""
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [self.start, *self.encode(text)[: self.context_length - 2], self.end]
            row[: len(ids)] = ids
        return tokens


def byte_symbols() -> list[str]:
    """Returns the printable character that stands for each byte, in the order of their tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]


def clip_bpe(
    merges: Mapping[tuple[str, str], int], start: int, end: int, context_length: int = CONTEXT_LENGTH
) -> ClipTokenizer:
    """Returns the tokenizer of pairs of symbols.

    Args:
        merges: the number of the token of each pair, in the order in which they are joined.
        start, end: numbers of the special tokens.
        context_length: tokens of each text.

    Raises:
        ConfigError: if `tokenizers` is not installed.
    """
    library = _library()
    symbols = byte_symbols()
    vocabulary = {symbol: number for number, symbol in enumerate([*symbols, *(f"{s}</w>" for s in symbols)])}
    vocabulary |= {left + right: number for (left, right), number in merges.items()}
    model = library.models.BPE(vocabulary, list(merges), end_of_word_suffix="</w>")
    return ClipTokenizer(_with_parts(library, library.Tokenizer(model)), start, end, context_length)


def read_clip_tokenizer(path: pathlib.Path, context_length: int = CONTEXT_LENGTH) -> ClipTokenizer:
    """Reads CLIP's tokenizer.

    Args:
        path: `tokenizer.json`, as Hugging Face has it; or a list of pairs, `merges.txt` or OpenAI's
            `bpe_simple_vocab_16e6.txt.gz`.
        context_length: tokens of each text.

    Raises:
        DataError: if it cannot be read.
        ConfigError: if `tokenizers` is not installed.
    """
    library = _library()
    if path.suffix == ".json":
        try:
            pairs = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain exceptions
            raise DataError(f"{path} is no tokenizer of the library `tokenizers`: {error}.") from error
        start, end = (_first(pairs, names) for names in (_STARTS, _ENDS))
        if start is None or end is None:
            raise DataError(f"{path} has no {_STARTS[0]} and {_ENDS[0]}: is it the tokenizer of a CLIP?")
        # Texts are cleaned and padded here, as OpenAI's are.
        pairs.no_padding()
        pairs.no_truncation()
        pairs.normalizer = None
        return ClipTokenizer(_with_parts(library, pairs), start, end, context_length)
    try:
        lines = (
            (gzip.decompress(data) if (data := path.read_bytes())[:2] == b"\x1f\x8b" else data).decode().splitlines()
        )
        merges = [tuple(line.split()) for line in lines[1 : 1 + _MERGES]]  # the first line is a version
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    if len(merges) < 1 or any(len(pair) != 2 for pair in merges):
        raise DataError(f"{path} is no list of pairs: a version, then two symbols a line.")
    numbers = {(pair[0], pair[1]): 512 + rank for rank, pair in enumerate(merges)}
    return clip_bpe(numbers, 512 + len(merges), 513 + len(merges), context_length)


def _first(pairs: Any, names: Sequence[str]) -> int | None:
    """Returns the number of the first of some tokens that a tokenizer has."""
    return next((number for name in names if (number := pairs.token_to_id(name)) is not None), None)


def _with_parts(library: Any, pairs: Any) -> Any:
    pairs.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(library.Regex(_PARTS), "removed", invert=True),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return pairs


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError("Texts become tokens by the library tokenizers: pip install 'vision_jax[clip]'.") from error
    return tokenizers

"""Tokenizers from all the files that weights come with; what they make of texts, references/test_clip.py checks."""

import gzip
import pathlib

import numpy as np
import pytest
import sentencepiece
import tokenizers

from vision_jax.errors import DataError
from vision_jax.text import read_tokenizer
from vision_jax.text.bpe import byte_symbols, read_clip_tokenizer

PAIRS = ("a n", "an d</w>", "c a", "ca t</w>", "t h", "th e</w>")
TEXTS = ["The cat AND the  cat", "a&amp;b", "", "cat " * 40]


def write_pairs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The same tokenizer as all files that hold one."""
    text = "\n".join(("#version: 0.2", *PAIRS, ""))
    (folder / "merges.txt").write_text(text)
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(text.encode()))
    pairs = read_clip_tokenizer(folder / "merges.txt").pairs
    pairs.normalizer = tokenizers.normalizers.Lowercase()
    pairs.enable_padding(length=9)
    pairs.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    pairs.save(str(folder / "tokenizer.json"))
    return {name: folder / name for name in ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "tokenizer.json")}


def test_clips_tokens_are_the_same_from_all_files(tmp_path: pathlib.Path):
    files = write_pairs(tmp_path)
    found = [read_tokenizer("clip", path, 16)(TEXTS) for path in files.values()]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    start, end = 512 + len(PAIRS), 513 + len(PAIRS)
    numbers = {symbol: number for number, symbol in enumerate(byte_symbols())}
    the, cat, and_ = 512 + 5, 512 + 3, 512 + 1
    assert found[0][0].tolist() == [start, the, cat, and_, the, cat, end, *[0] * 9]
    assert found[0][1].tolist()[:5] == [start, numbers["a"] + 256, numbers["&"] + 256, numbers["b"] + 256, end]
    assert found[0][2].tolist() == [start, end, *[0] * 14]
    assert found[0][3].tolist() == [start, *[cat] * 14, end]  # cut off


def test_siglips_tokens_are_the_same_from_both_files(tmp_path: pathlib.Path):
    """sentencepiece and tokenizers are two implementations of the same pieces."""
    sentences = ["a photo of the cat", "the dog and a cat", "photos of dogs and of cats", "the number seven"] * 20
    (tmp_path / "sentences.txt").write_text("\n".join(sentences))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "sentences.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=26,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.vocab_size())]
    same = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    same.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    same.save(str(tmp_path / "tokenizer.json"))
    texts = ["A photo of the cat!", "the_number seven", "", "dogs " * 30]
    found = [read_tokenizer("siglip", tmp_path / name, 16)(texts) for name in ("spiece.model", "tokenizer.json")]
    np.testing.assert_array_equal(*found)
    assert model.decode(found[0][0].tolist()) == "a photo of the cat"
    assert (found[0][:, -1] == 1).all()
    assert (found[0][2] == 1).all()


def test_files_that_are_no_tokenizer(tmp_path: pathlib.Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("#version\na b c\n")
    (tmp_path / "spiece.model").write_bytes(b"nothing")
    for kind, name, message in (
        ("clip", "tokenizer.json", "is no tokenizer of the library"),
        ("clip", "merges.txt", "is no list of pairs"),
        ("siglip", "spiece.model", "is no tokenizer of sentencepiece"),
        ("clip", "none.txt", "There is no tokenizer"),
    ):
        with pytest.raises(DataError, match=message):
            read_tokenizer(kind, tmp_path / name, 16)
    files = write_pairs(tmp_path)
    with pytest.raises(DataError, match="is it SigLIP's"):
        read_tokenizer("siglip", files["tokenizer.json"], 16)

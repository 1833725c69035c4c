"""Texts for models of images and words: how they are cleaned, and how they become tokens, on the host."""

from vision_jax.text.bpe import ClipTokenizer, clip_bpe, read_clip_tokenizer
from vision_jax.text.bytes import ByteTokenizer
from vision_jax.text.cleaning import clean_for_clip, clean_for_siglip
from vision_jax.text.sentences import SigLipTokenizer, read_siglip_tokenizer
from vision_jax.text.tokenizers import KINDS, Tokenizer, open_tokenizer, read_tokenizer

__all__ = [
    "KINDS",
    "ByteTokenizer",
    "ClipTokenizer",
    "SigLipTokenizer",
    "Tokenizer",
    "clean_for_clip",
    "clean_for_siglip",
    "clip_bpe",
    "open_tokenizer",
    "read_clip_tokenizer",
    "read_siglip_tokenizer",
    "read_tokenizer",
]

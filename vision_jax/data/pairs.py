"""Images with captions, from a CSV file or from tar files; and tokens for the texts that go with images."""

import csv
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vision_jax.data.archives import Archive, open_archive
from vision_jax.data.pillow import image_suffixes
from vision_jax.data.sources import Record, Source, SubsetSource, digest_of
from vision_jax.errors import DataError, reason

Tokenize = Callable[[Sequence[str]], np.ndarray]


class PairsSource:
    """Records with `image`, `caption` and the label 0; see `vision_jax.data.sources`.

    Args:
        directory: where the split is: as SPLIT.csv, with the columns `image`, a path from the folder of the file, and
            `caption`; or as tar files SPLIT/*.tar, in which KEY.txt has the caption of KEY.jpg, as in webdataset.
        split: its name.

    Raises:
        DataError: if it is missing, empty or malformed.
    """

    num_classes = 1
    class_names: Sequence[str] = ()

    def __init__(self, directory: pathlib.Path, split: str):
        table, folder = directory / f"{split}.csv", directory / split
        # (archive, name of the image, caption or the name of its file) each.
        self._items: list[tuple[Archive | None, str, str]]
        if table.is_file():
            self._items = [(None, str(directory / image), caption) for image, caption in _read_table(table)]
        elif tars := sorted(folder.glob("*.tar")):
            self._items = [(archive, *pair) for archive in map(open_archive, tars) for pair in _pairs_in(archive)]
        else:
            raise DataError(
                f"There is no {table}, and no tar file in {folder}: captions are in SPLIT.csv, with the columns image "
                "and caption, or beside the images in SPLIT/*.tar."
            )
        if not self._items:
            raise DataError(f"{table if table.is_file() else folder} has no image with a caption.")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Record:
        archive, name, caption = self._items[index]
        if archive is None:
            with open(name, "rb") as file:
                return {"image": file.read(), "caption": caption, "label": 0}
        text = archive.read(caption).decode("utf-8", "replace")
        return {"image": archive.read(name), "caption": text, "label": 0}

    def describe(self, index: int) -> str:
        archive, name, _ = self._items[index]
        return name if archive is None else f"{archive.path}/{name}"

    def fingerprint(self) -> str:
        items = [(archive.path.name if archive else "", pathlib.Path(name).name, c) for archive, name, c in self._items]
        return digest_of("pairs", items)


def _read_table(path: pathlib.Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    for number, row in enumerate(rows):
        if not row.get("image") or row.get("caption") is None:
            raise DataError(
                f"{path} has no image or no caption in its row {number + 1}: it has the columns image, caption."
            )
    return [(row["image"], row["caption"]) for row in rows]


def _pairs_in(archive: Archive) -> list[tuple[str, str]]:
    """Returns the names of images and of their captions' files; images without one are left out."""
    texts = {name.removesuffix(".txt"): name for name in archive.names if name.endswith(".txt")}
    pairs = []
    for name in archive.names:
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix}".lower() in image_suffixes() and stem in texts:
            pairs.append((name, texts[stem]))
    return pairs


class CaptionTokens(SubsetSource):
    """The records of another source, with the tokens of their captions as `tokens`.

    Args:
        source: the other one, whose records have `caption`.
        tokenize: makes (texts, length) int32 of texts.
    """

    def __init__(self, source: Source, tokenize: Tokenize):
        super().__init__(source, np.arange(len(source)))
        self._tokenize = tokenize

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        return {**record, "tokens": self._tokenize([record["caption"]])[0]}

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class LabelTokens(SubsetSource):
    """The records of another source, with the tokens of a sentence about their class as `tokens`.

    Which sentence is up to the number of the record.

    Args:
        source: the other one.
        table: (classes, sentences, length) int32, the tokens of each sentence.
    """

    def __init__(self, source: Source, table: np.ndarray):
        super().__init__(source, np.arange(len(source)))
        self._table = table

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        sentences = self._table[record["label"]]
        return {**record, "tokens": sentences[zlib.crc32(str(index).encode()) % len(sentences)]}

    def fingerprint(self) -> str:
        return self.source.fingerprint()

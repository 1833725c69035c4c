"""Random access to ArrayRecord files."""

import bisect
import itertools
import logging
import pathlib
import re
import threading
from collections.abc import Sequence
from typing import Any, Self

from vision_jax.errors import DataError

log = logging.getLogger(__name__)


class ArrayRecordFiles:
    """The records of several ArrayRecord files, numbered through. Reading is safe from many threads.

    It goes to array_record's reader directly: tfds' data source takes three times as long for an image of 30 KB.

    Args:
        paths: of the files, in order.
        lengths: how many records each has, as the data set's metadata say.

    Raises (on reading):
        DataError: if a file is not there, damaged, or of another length.
    """

    def __init__(self, paths: Sequence[pathlib.Path], lengths: Sequence[int]):
        self.paths, self.lengths = list(paths), list(lengths)
        self._ends = list(itertools.accumulate(lengths))
        self._open()

    def _open(self) -> None:
        self._readers: list[Any] = [None] * len(self.paths)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        file = bisect.bisect_right(self._ends, index)
        reader = self._readers[file] or self._reader(file)
        return reader.read([index - self._ends[file] + self.lengths[file]])[0]

    def _reader(self, file: int) -> Any:
        """Opens a file, unless another thread was faster."""
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if self._readers[file] is None:
                path = self.paths[file]
                if not path.is_file():
                    raise DataError(f"{path} is missing: prepare the data set again, or copy the file.")
                # Reading ahead is of no use at random.
                reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0")
                if reader.num_records() != self.lengths[file]:
                    raise DataError(
                        f"{path} has {reader.num_records()} records, and the data set's metadata say "
                        f"{self.lengths[file]}: prepare it again."
                    )
                group = re.search(r"group_size:(\d+)", reader.writer_options_string())
                if group and int(group[1]) > 1:
                    log.warning(
                        "%s was written in groups of %s records, all of which are read for each one: this is slow. "
                        "Write it with group_size:1, as `python -m vision_jax prepare` does.",
                        path,
                        group[1],
                    )
                self._readers[file] = reader
            return self._readers[file]

    def close(self) -> None:
        """Closes the files; they are opened again when they are read again."""
        with self._lock:
            readers, self._readers = self._readers, [None] * len(self.paths)
        for reader in readers:
            if reader is not None:
                reader.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "lengths": self.lengths, "_ends": self._ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

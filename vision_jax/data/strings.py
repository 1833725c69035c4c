"""Many strings in two arrays: a list of millions takes three times the memory, and as many steps to send."""

import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Strings(Sequence[str]):
    """A sequence of strings, such as paths, that pickles as two arrays.

    Args:
        strings: may be names of files that are not UTF-8, as Python decodes them.
    """

    def __init__(self, strings: Iterable[str]):
        encoded = [os.fsencode(text) for text in strings]
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

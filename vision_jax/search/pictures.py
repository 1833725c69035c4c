"""The images themselves, of results that are named: by their record in the data, or by their path."""

import logging
import pathlib

from vision_jax.data import archives
from vision_jax.data.archives import Archive, open_archive
from vision_jax.data.sources import Source
from vision_jax.errors import DataError
from vision_jax.features import Features

log = logging.getLogger(__name__)


class Pictures:
    """Finds the images that features are of.

    Args:
        features: with their names.
        source: of these images, such as their split of a data set; None, or one of other images: they are looked for
            by their names.
    """

    def __init__(self, features: Features, source: Source | None = None):
        self._features = features
        self._source = source
        if source is not None and source.fingerprint() != features.about.fingerprint:
            log.info("The images of this configuration are others than those of %s.", features.directory)
            self._source = None
        self._archives: dict[pathlib.Path, Archive] = {}
        self.missing: set[str] = set()

    def read(self, row: int) -> bytes | None:
        """Returns the encoded image of a row of the features; None if it is not there any more, which is counted."""
        name = self._features.names[row]
        try:
            if self._source is not None:
                return self._source[int(self._features.numbers[row])]["image"]
            return self._read_file(name)
        except (OSError, ValueError, KeyError, DataError):
            self.missing.add(name)
            return None

    def _read_file(self, name: str) -> bytes:
        path = pathlib.Path(name)
        for folder in (*reversed(path.parents), path):
            if folder != path and archives.is_archive(folder) and folder.is_file():
                if folder not in self._archives:
                    self._archives[folder] = open_archive(folder)
                return self._archives[folder].read(path.relative_to(folder).as_posix())
        return path.read_bytes()

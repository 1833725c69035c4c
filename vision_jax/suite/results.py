"""What a suite has measured so far, in `suite.json` and `suite.csv` of its output folder."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vision_jax.errors import ConfigError, check_folder, check_no_url, reason
from vision_jax.runtime.writers import write_atomically
from vision_jax.suite import tables
from vision_jax.suite.corruptions import corruption_entry
from vision_jax.suite.published import Values

JSON, CSV = "suite.json", "suite.csv"
Entry = dict[str, Any]


@dataclasses.dataclass
class Results:
    """The results of one model, of this run and earlier ones.

    Attributes:
        directory: where they are kept.
        about: `model`, of which `identity` tells whether it is the same, `versions` and the like.
        published: what others have measured of the model.
        sets: by row of the table; see `entry_of`.
        failed: what is wrong, by the set or row that failed in this run.
    """

    directory: pathlib.Path
    about: Mapping[str, Any]
    published: Values
    sets: dict[str, Entry] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, directory: pathlib.Path, about: Mapping[str, Any], published: Values, overwrite: bool) -> "Results":
        """Returns the results of this model that a folder has already, and writes to it.

        Args:
            directory: it is made if there is none.
            about, published: see the class.
            overwrite: drop what is there, of whatever model.

        Raises:
            ConfigError: if it has results of another model, or files that are none.
            CheckpointError: if it cannot be written.
        """
        results = cls(directory, about, published)
        path = directory / JSON
        if path.exists() and not overwrite:
            try:
                there = json.loads(path.read_text("utf-8"))
                model, sets = there["model"], dict(there["sets"])
                identity, origin = model["identity"], model["origin"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path} is no result of a suite ({type(error).__name__}: {reason(error)}): give another "
                    "folder, or --overwrite."
                ) from error
            if identity != about["model"]["identity"]:
                this = about["model"]
                raise ConfigError(
                    f"{directory} has the results of another model, or computed in another way: {origin} "
                    f"({identity[:8]}), and this is {this['origin']} ({this['identity'][:8]}). Give another --output, "
                    "or --overwrite."
                )
            results.sets = sets
        results.write()
        return results

    def has(self, row: str, identity: str, max_bad: int) -> bool:
        """Returns whether a row has been measured already, on the same images, of which no more were left out."""
        entry = self.sets.get(row)
        return entry is not None and entry["identity"] == identity and entry["damaged"] <= max_bad

    def put(self, row: str, entry: Entry) -> None:
        """Keeps the entry of a row, with what is published of it, and writes everything."""
        self.sets[row] = self._beside_published(row, entry)
        self.write()

    def add(self, row: str, more: Entry) -> None:
        """Adds something to the entry of a row, if there is one, and writes everything."""
        if row in self.sets:
            self.sets[row] = {**self.sets[row], **more}
            self.write()

    def drop(self, row: str) -> None:
        """Forgets what is about to be measured again."""
        self.sets.pop(row, None)

    def fail(self, name: str, problem: str) -> None:
        """Keeps what is wrong with a set or row, and writes everything."""
        self.failed[name] = problem
        self.write()

    def write(self) -> None:
        """Writes both files.

        Raises:
            CheckpointError: if the storage fails.
        """
        self.sets.pop("c", None)
        if (summary := corruption_entry(self.sets)) is not None:
            self.sets["c"] = self._beside_published("c", summary)
        self.sets = {row: self.sets[row] for row in tables.in_order(self.sets)}
        content = {**self.about, "sets": self.sets, "failed": self.failed}
        write_atomically(self.directory / JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        write_atomically(self.directory / CSV, tables.as_csv(self.sets))

    def _beside_published(self, row: str, entry: Entry) -> Entry:
        known = {measure: value for measure, value in self.published.get(row, {}).items() if measure in entry}
        if not known:
            return entry
        return {**entry, "published": known, "difference": {name: entry[name] - known[name] for name in known}}


def prepare_output(given: str) -> pathlib.Path:
    """Returns the folder for the results, after checking that it is one, or can be made.

    Raises:
        ConfigError: if not.
    """
    check_no_url("--output", given)
    directory = pathlib.Path(given).expanduser()
    check_folder("--output", directory)
    return directory

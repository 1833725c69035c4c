"""Storing configurations, reading them, and comparing them."""

import fnmatch
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vision_jax.config.fields import OPEN_FIELDS, default_config
from vision_jax.errors import CheckpointError, ConfigError, reason
from vision_jax.runtime.writers import write_atomically

log = logging.getLogger(__name__)

# Patterns (fnmatch) of the fields that do not change results beyond rounding: devices and paths, what is written when,
# and what happens if that fails. A run may resume with other values of them. `checkpoint.every_steps` is one of them,
# although `guard.*=rewind` goes back to a checkpoint.
_FREE = (
    *("mesh.*", "data.dir", "data.num_threads", "data.num_workers", "data.prefetch", "log.*"),
    # Where labels are, and what decides whether a run ends because of an image.
    *("data.train_labels", "data.val_labels", "data.max_pixels", "data.check_val_images", "data.max_bad_eval_records"),
    *("checkpoint.every_steps", "checkpoint.keep", "checkpoint.on_error", "compilation_cache", "watchdog_seconds"),
)


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as JSON, sorted and indented, with null for unset fields."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_dict(fields: dict) -> ConfigDict:
    """Returns the configuration of which `to_json` wrote `fields`.

    Raises:
        ConfigError: if there is a field that this version does not have.
    """
    config = default_config()
    known = dict(flatten(config))
    values = dict(flatten(fields))
    open_ = {path for path in values if path.startswith(OPEN_FIELDS)}
    if unknown := sorted(values.keys() - known.keys() - open_):
        raise ConfigError(f"The stored configuration has fields that this version does not know: {', '.join(unknown)}.")
    for path in values.keys() - open_:
        node, name = parent(config, path)
        node[name] = _as(tuple, values[path])
    with config.unlocked():
        for name in ("objective", "evals"):  # which fields they have is up to what they name
            if name in fields:
                config[name] = ConfigDict(_tuples(fields[name]))
    return config


def _tuples(value: Any) -> Any:
    """Returns JSON with tuples in place of lists."""
    if isinstance(value, Mapping):
        return {name: _tuples(v) for name, v in value.items()}
    return _as(tuple, value)


def _as(kind: type, value: object) -> Any:
    """Returns lists and tuples, also those within others, as `kind`; all else as it is."""
    return kind(_as(kind, v) for v in value) if isinstance(value, list | tuple) else value


def parent(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """Returns what holds the field at a path such as `data.image_size`, and the field's name there."""
    *parents, name = path.split(".")
    for parent in parents:
        config = config[parent]
    return config, name


def flatten(config: ConfigDict | dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields (path, value) for every field, with paths such as `data.image_size`."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _as(list, value)


def differences(old: ConfigDict | dict, new: ConfigDict | dict) -> tuple[list[str], list[str]]:
    """Returns a line `field: old -> new` for each field that differs.

    A field that `old` lacks has its default there: an older version did not know it.

    Returns:
        the lines of the fields that change what is computed, and those of the fields that do not.
    """
    before, after = dict(flatten(default_config())) | dict(flatten(old)), dict(flatten(new))
    lines: tuple[list[str], list[str]] = ([], [])
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            free = any(fnmatch.fnmatchcase(path, pattern) for pattern in _FREE)
            lines[free].append(f"{path}: {before.get(path)!r} -> {after.get(path)!r}")
    return lines


def reset_mesh(config: ConfigDict) -> None:
    """Makes the mesh of a stored configuration fit any devices: data parallelism alone."""
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1, "rules": ()})


def check_same_config(workdir: pathlib.Path, config: ConfigDict, *, allow_config_change: bool) -> None:
    """Checks that config.json is `config` in all that changes what is computed, or that it may be another.

    A workdir without checkpoints may be of any configuration.

    Args:
        workdir: of the run.
        config: of the run.
        allow_config_change: let it be another one than that of the checkpoints.

    Raises:
        CheckpointError: if it is another.
    """
    if not any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
        return
    path = workdir / "config.json"
    try:
        changed, free = differences(_read_object(path), json.loads(to_json(config)))
    except (OSError, ValueError, RecursionError) as error:
        problem = f"{workdir} has checkpoints, but its config.json cannot be read: {reason(error)}."
    else:
        if free:
            log.info("Going on with other values of fields that do not change the results:\n%s", _bullets(free))
        if not changed:
            return
        problem = f"{workdir} was made by another configuration:\n{_bullets(changed)}"
    if not allow_config_change:
        separator = "\n" if "\n" in problem else " "
        raise CheckpointError(
            f"{problem}{separator}Give another --workdir, or pass --allow_config_change to continue with the new "
            "values."
        )
    log.warning("%s", problem)


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        OSError, ValueError, RecursionError: if there is none.
    """
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"it holds {value!r:.80}, and no configuration")
    return value


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)


def write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes config.json."""
    write_atomically(workdir / "config.json", to_json(config))

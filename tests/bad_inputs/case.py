"""A row of the table of bad inputs, and what rows set up before the command is run."""

import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from conftest import REPOSITORY, encode, picture

from vision_jax.data import tfds_format

# (folder of the case, workdir of a finished run): makes what the command finds there.
Setup = Callable[[pathlib.Path, pathlib.Path], None]

CONFIG = f"--config={REPOSITORY}/configs/quickstart.py"
# A training of two steps, in the workdir `w`.
TRAIN = (
    *("main", CONFIG, "--workdir=w", "--config.total_steps=2", "--config.schedule.warmup_epochs=0"),
    *("--config.eval.every_steps=2", "--config.log.every_steps=1", "--config.log.tensorboard=False"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A command that cannot work.

    Attributes:
        name: of the test.
        arguments: `main` and its flags, or a verb of `python -m vision_jax` and its arguments.
        value: what is wrong, a regular expression for the line of the message.
        remedy: what to do about it, one for the same line.
        status: of the command.
        before: what is there when it starts.
        environment: added to that of the test; "" removes a variable.
        output: what its standard output is, in place of a file.
        made: patterns (`fnmatch`) of what the command may have written or changed in the folder.
    """

    name: str
    arguments: tuple[str, ...]
    value: str
    remedy: str
    _: dataclasses.KW_ONLY
    status: int = 1
    before: tuple[Setup, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    output: str = ""
    made: tuple[str, ...] = ()


def training(name: str, *more: str, value: str, remedy: str, **options: Any) -> Case:
    """Returns a case of a training with further flags, the last of which hold."""
    return Case(name, (*TRAIN, *more), value, remedy, **options)


def text(name: str, content: str | bytes) -> Setup:
    """Writes a file."""

    def write(folder: pathlib.Path, run: pathlib.Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def directory(name: str) -> Setup:
    """Makes a folder."""
    return lambda folder, run: (folder / name).mkdir(parents=True)


def image(name: str, *, cut: bool = False) -> Setup:
    """Writes a JPEG of 20 x 20 pixels, or a part of one."""
    data = encode(picture(20, 20))
    return text(name, data[: len(data) // 3] if cut else data)


def images(name: str = "data", classes: tuple[str, ...] = ("ant", "bee"), *, splits: tuple[str, ...] = ()) -> Setup:
    """Makes a folder data set with four images of each class in each split."""

    def write(folder: pathlib.Path, run: pathlib.Path) -> None:
        for split in splits or ("train", "validation"):
            for label, each in enumerate(classes):
                for number in range(4):
                    image(f"{name}/{split}/{each}/{label}{number}.jpg")(folder, run)

    return write


def records(name: str = "data", *, labels: int = 3) -> Setup:
    """Makes a data set in tfds' layout with two classes; more labels than these are wrong."""

    def write(folder: pathlib.Path, run: pathlib.Path) -> None:
        good = [(encode(picture(20, 20, seed=i)), i % labels) for i in range(8)]
        (folder / name).mkdir()
        tfds_format.write_dataset(folder / name, "mine", {"train": good, "validation": good}, ["a", "b"])

    return write


def finished(name: str = "w") -> Setup:
    """Copies the finished run."""
    return lambda folder, run: shutil.copytree(run, folder / name)


def changed(name: str, change: Callable[[pathlib.Path], object]) -> Setup:
    """Changes what is there."""

    def do(folder: pathlib.Path, run: pathlib.Path) -> None:
        change(folder / name)

    return do


def cut(path: pathlib.Path) -> None:
    """Leaves the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def cut_all(path: pathlib.Path) -> None:
    """Leaves the first half of each file that holds arrays."""
    for each in path.rglob("d/*"):
        cut(each)


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def locked(path: pathlib.Path) -> None:
    """Locks a folder as a run does, for as long as this process lives."""
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)


def tensors(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Setup:
    """Writes safetensors of zeros."""

    def write(folder: pathlib.Path, run: pathlib.Path) -> None:
        arrays = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
        safetensors.numpy.save_file(arrays, folder / name)

    return write


def as_json(name: str, content: Any) -> Setup:
    """Writes JSON."""
    return text(name, json.dumps(content))

"""Writes a model for another program, checks what was written, and puts it in its place only if it is right."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vision_jax import build
from vision_jax.build import TrainedModel
from vision_jax.data.dense import DenseTransform
from vision_jax.data.images import ImageSource
from vision_jax.data.sources import Source, closing
from vision_jax.data.transforms import DecodeError
from vision_jax.errors import CheckpointError, ConfigError, DataError, reason
from vision_jax.export import card, check, check_detections, onnx_file, stablehlo, subject
from vision_jax.export.check import Difference
from vision_jax.export.jaxpr import trace
from vision_jax.export.optimize import optimize
from vision_jax.export.subject import FoundSubject, Options, Subject

log = logging.getLogger(__name__)

REAL = 8  # images of the validation split that an export is checked with


@dataclasses.dataclass(frozen=True)
class Target:
    """Where an export goes, and how strictly it is checked.

    Attributes:
        path: of the file.
        overwrite: replace files that are there.
        tolerance: the largest difference from JAX, as a part of the logits' spread; None: as `check.TOLERANCES` says.
        license: for the model card; None: to be filled in there.
        workdir: of the run, whose metrics the card quotes; None: there is none.
    """

    path: pathlib.Path
    overwrite: bool = False
    tolerance: float | None = None
    license: str | None = None
    workdir: pathlib.Path | None = None

    @property
    def card(self) -> pathlib.Path:
        """Of the model card."""
        return self.path.with_name(f"{self.path.name}.md")

    def check(self) -> None:
        """Checks that nothing is there that is not to be replaced.

        Raises:
            ConfigError: if there is.
        """
        for folder in self.path.parents:
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"FILE is {self.path}, and {folder} is a file: give another FILE.")
        for path in (self.path, self.card, data_path(self.path)):
            if path.is_dir():
                raise ConfigError(f"{path} is a folder: give a file.")
            if path.exists() and not self.overwrite:
                raise ConfigError(f"{path} is there already: give another name, or --overwrite.")


def data_path(path: pathlib.Path) -> pathlib.Path:
    """Returns where the weights of an ONNX file are, if they are too large for it."""
    return path.with_name(f"{path.name}.data")


def export_onnx(
    trained: TrainedModel,
    target: Target,
    options: Options,
    *,
    opset: int = onnx_file.DEFAULT_OPSET,
    pixels: np.ndarray | None = None,
    largest: int = onnx_file.LARGEST,
) -> list[Difference]:
    """Writes a model as ONNX, with a model card beside it.

    Args:
        trained: the model.
        target: where it goes.
        options: its form.
        opset: the version of ONNX's operators.
        pixels: real images to check it with, see `read_pixels`; None: there are none.
        largest: bytes of weights that a file may have; more are written to `NAME.data`.

    Returns:
        how far onnxruntime's results are from JAX's.

    Raises:
        ConfigError: for an operation that cannot be written, options that cannot work, and files that are there.
        DataError: if what was written does not agree with JAX; then there is no file.
        CheckpointError: if it cannot be written.
    """
    if opset not in onnx_file.OPSETS:
        first, last = onnx_file.OPSETS[0], onnx_file.OPSETS[-1]
        raise ConfigError(f"opset is {opset}: give one from {first} to {last}.")
    if options.dtype not in ("float32", "float16"):
        raise ConfigError(f"dtype is {options.dtype!r}: give float32 or float16 for ONNX.")
    onnx_file.import_onnx()
    target.check()
    made = subject.make(trained, options)
    graph = trace(made, made.shape, made.dtype, opset, trained.name, made.traced)
    optimize(graph)
    packages = card.versions("onnx", "onnxruntime")

    def write(path: pathlib.Path) -> check.Run:
        metadata, external = card.metadata(made, opset, packages), onnx_file.is_large(graph, largest)
        if isinstance(made, FoundSubject):
            return check_detections.write(made, graph, path, metadata, external=external)
        onnx_file.write(graph, path, metadata, external=external)
        return onnx_file.load(path)

    def describe(differences: Sequence[Difference]) -> str:
        sections = card.onnx_sections(made, target.path.name, opset, differences)
        return card.card(trained, target.path.name, sections, measured(trained, target), packages, target.license)

    return _export(made, target, write, describe, pixels)


def export_stablehlo(
    trained: TrainedModel, target: Target, options: Options, *, pixels: np.ndarray | None = None
) -> list[Difference]:
    """Writes a model as StableHLO for all platforms of `stablehlo.PLATFORMS`; arguments as for `export_onnx`.

    Raises:
        ConfigError, DataError, CheckpointError: as for `export_onnx`, and for weights that are too large.
    """
    target.check()
    if options.with_nms:
        raise ConfigError("with_nms is for ONNX: leave it out, or choose that format.")
    made = subject.make(trained, options)
    packages = card.versions("jaxlib")

    def write(path: pathlib.Path) -> check.Run:
        stablehlo.write(made, path)
        return stablehlo.load(path)

    def describe(differences: Sequence[Difference]) -> str:
        sections = card.stablehlo_sections(made, target.path.name, stablehlo.PLATFORMS, differences)
        return card.card(trained, target.path.name, sections, measured(trained, target), packages, target.license)

    return _export(made, target, write, describe, pixels)


def _export(
    made: Subject,
    target: Target,
    write: Callable[[pathlib.Path], check.Run],
    describe: Callable[[Sequence[Difference]], str],
    pixels: np.ndarray | None,
) -> list[Difference]:
    """Writes into a folder of its own, checks, and moves the files to where they belong.

    Raises:
        DataError: if the results do not agree with JAX.
        CheckpointError: if files cannot be written.
    """
    tolerance = check.TOLERANCES[made.options.dtype] if target.tolerance is None else target.tolerance
    with aside(target) as folder:
        differences = check.compare(made, write(folder / target.path.name), pixels)
        units = [check.unit_of(made.trained.dense, with_nms=True)] if made.options.with_nms else []
        check.require(differences, tolerance, str(target.path), *units)
        (folder / target.card.name).write_text(describe(differences), encoding="utf-8")
    return differences


@contextlib.contextmanager
def aside(target: Target) -> Iterator[pathlib.Path]:
    """Gives a folder beside a file, whose files are moved beside it at the end, unless there was an error.

    Raises:
        CheckpointError: if files cannot be written.
    """
    folder = target.path.with_name(f".{target.path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
        # The file itself comes last: with it, everything is there.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == target.path.name):
            path.replace(target.path.with_name(path.name))
    except OSError as error:
        raise CheckpointError(f"Cannot write {target.path}: {reason(error)}. Give another FILE.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measured(trained: TrainedModel, target: Target) -> dict[str, float]:
    """Returns what the run has measured of a model; nothing for one of no run."""
    if target.workdir is None or trained.step is None:
        return {}
    return card.accuracy(target.workdir, trained.step, averaged=trained.averaged)


def read_pixels(
    trained: TrainedModel, paths: Sequence[str] = (), size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """Returns a few real images, preprocessed as in evaluation but not normalized.

    Args:
        trained: the model.
        paths: of images, folders and archives; (): of the run's own validation split, if that can be read.
        size: as in `subject.Options`.

    Returns:
        (count, height, width, channels) uint8; None: there are none.

    Raises:
        DataError: if images that were given cannot be read.
    """
    if paths:
        return _read(trained, ImageSource.find(list(paths)), size)
    if trained.step is None or trained.config.data.source == "synthetic":
        return None
    try:
        return _read(trained, build.create_source(trained.config, train=False), size)
    except DataError as error:
        log.warning("The export is checked with random images alone, as the run's own cannot be read: %s", error)
        return None


def _read(trained: TrainedModel, source: Source, size: tuple[int, int] | None) -> np.ndarray:
    transform: Any = trained.preprocessing.transform if not trained.dense else build.make_eval_transform(trained.config)
    if isinstance(transform, DenseTransform):
        transform = dataclasses.replace(transform, boxes=False, masks=False).on(size or transform.canvases[0])
    with closing(source):
        numbers = np.arange(min(REAL, len(source)))
        fields = transform.fields().items()
        out = {name: np.zeros((len(numbers), *field.shape), field.dtype) for name, field in fields}
        try:
            transform([source[int(number)] for number in numbers], numbers, np.zeros_like(numbers), out)
        except DecodeError as error:
            raise DataError(
                f"An image to check the export with, {source.describe(error.row)}, is damaged: {error}"
            ) from error
    return out["image"]

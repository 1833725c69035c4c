"""How predicted classes of images are written: as text, CSV, JSON lines or Parquet, to the terminal or a file."""

import argparse
import contextlib
import csv
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vision_jax.commands import common
from vision_jax.errors import ConfigError, DataError, check_no_url, check_output, one_line, printable, reason

if TYPE_CHECKING:
    from vision_jax.data.images import ImageSource
    from vision_jax.predict import Prediction, Predictor

    Write = Callable[[Prediction], None]

FORMATS = {".txt": "text", ".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
TOPK, BATCH_SIZE = 5, 128
_ROWS = 4096  # of a row group of Parquet


def add_arguments(parser: argparse.ArgumentParser, formats: Mapping[str, str] = FORMATS) -> None:
    """Adds the flags that say what is written of each image, and where to; `formats` are by the suffix of a file."""
    parser.add_argument("--topk", type=int, default=TOPK, help=f"classes per image (default: {TOPK})")
    parser.add_argument("--output", help="a file; default: the terminal")
    parser.add_argument(
        "--format", choices=sorted(formats.values()), help="default: by the suffix of --output, or text"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")
    parser.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, help=f"images computed at once (default: {BATCH_SIZE})"
    )


def check_arguments(
    arguments: argparse.Namespace, formats: Mapping[str, str] = FORMATS
) -> tuple[pathlib.Path | None, str]:
    """Returns the file to write, None for the terminal, and its format, as the flags of `add_arguments` say.

    Raises:
        ConfigError: for flags that cannot work.
    """
    for name in ("topk", "batch_size"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}: give 1 or more.")
    for path in arguments.paths:
        check_no_url("IMAGE", path)
    output = None if arguments.output is None else pathlib.Path(arguments.output).expanduser()
    kind = _output_format(arguments.format, output, formats)
    if output is not None:
        check_no_url("--output", arguments.output)
        check_output("--output", output)
        if output.exists() and not arguments.overwrite:
            raise ConfigError(f"{output} is there already: give another name, or --overwrite.")
    return output, kind


def write_all(predictor: "Predictor", source: "ImageSource", output: pathlib.Path | None, kind: str, verb: str) -> int:
    """Predicts and writes the classes of all images, and returns the exit status.

    Args:
        predictor: what predicts.
        source: the images.
        output, kind: as `check_arguments` returns them.
        verb: of the command, which stands before its progress.

    Raises:
        DataError: if the output cannot be written.
        ConfigError: if a library is missing.
    """
    from vision_jax.runtime.writers import Progress

    damaged = 0
    with (
        writer(kind, output, predictor.topk) as write,
        Progress(len(source), description=verb, leave=False, enabled=output is not None) as progress,
    ):
        for prediction in predictor.stream(source):
            damaged += prediction.error is not None
            write(prediction)
            progress.update({})
    if damaged:
        print(f"{damaged} of {len(source)} images are damaged, as named above.", file=sys.stderr)
    return common.DAMAGED if damaged else 0


def _output_format(given: str | None, output: pathlib.Path | None, formats: Mapping[str, str]) -> str:
    if output is None:
        if given == "parquet":
            raise ConfigError("--format=parquet is a file of bytes: name it by --output=FILE.parquet.")
        return given or "text"
    if given is None and output.suffix not in formats:
        raise ConfigError(f"--output is {output}: end its name in {', '.join(formats)}, or say its --format.")
    return given or formats[output.suffix]


@contextlib.contextmanager
def writer(kind: str, output: pathlib.Path | None, topk: int) -> Iterator["Write"]:
    """Gives what writes a prediction. A line that is written stays, however the command ends.

    Raises:
        DataError: if the file cannot be written.
        ConfigError: if a library is missing.
    """
    try:
        if kind == "parquet":
            assert output is not None  # it was checked
            with _parquet(output) as write:
                yield write
        elif output is None:
            yield _lines(kind, sys.stdout, topk)
        else:
            with output.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                yield _lines(kind, file, topk)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(
            f"Cannot write {output or 'the predictions'}: {reason(error)}. Make room, or give another --output."
        ) from error


def _lines(kind: str, file: Any, topk: int) -> "Write":
    """Returns what writes a prediction as one line of text, CSV or JSON."""
    if kind == "csv":
        rows = csv.writer(file, lineterminator="\n")
        columns = [f"{name}{rank}" for rank in range(1, topk + 1) for name in ("class", "name", "probability")]
        rows.writerow(["image", *columns, "error"])

    def write(prediction: "Prediction") -> None:
        if kind == "jsonl":
            print(json.dumps(_as_dict(prediction)), file=file)
        elif kind == "csv":
            cells = [cell for c in prediction.classes for cell in (c.number, c.name, f"{c.probability:.6g}")]
            cells += [""] * (3 * topk - len(cells))
            rows.writerow([printable(prediction.path), *cells, prediction.error or ""])
        elif prediction.error is not None:
            print(f"{one_line(prediction.path)}: damaged: {prediction.error}", file=file)
        else:
            classes = ", ".join(f"{c.name} {c.probability:.1%}" for c in prediction.classes)
            print(f"{one_line(prediction.path)}: {classes}", file=file)

    return write


def _as_dict(prediction: "Prediction") -> dict[str, Any]:
    """Returns {"image", "classes": [{"class", "name", "probability"}, ...]}, or {"image", "error"}."""
    if prediction.error is not None:
        return {"image": prediction.path, "error": prediction.error}
    classes = [{"class": c.number, "name": c.name, "probability": c.probability} for c in prediction.classes]
    return {"image": prediction.path, "classes": classes}


@contextlib.contextmanager
def _parquet(output: pathlib.Path) -> Iterator["Write"]:
    """Gives what writes a prediction as a row of a Parquet file, with the columns of `_as_dict`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("--format=parquet needs pyarrow: pip install pyarrow.") from error
    one = pa.struct([("class", pa.int32()), ("name", pa.string()), ("probability", pa.float32())])
    schema = pa.schema([("image", pa.string()), ("classes", pa.list_(one)), ("error", pa.string())])
    pending: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(output, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(pending, schema))
            pending.clear()

        def write(prediction: "Prediction") -> None:
            pending.append(_as_dict(prediction) | {"image": printable(prediction.path)})
            if len(pending) >= _ROWS:
                flush()

        try:
            yield write
        finally:
            flush()

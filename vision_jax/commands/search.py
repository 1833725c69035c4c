"""Finds the most similar images: `python -m vision_jax search --index=FEATURES --workdir=W cat.jpg`.

FEATURES is a folder that `python -m vision_jax features` has written with the same model. Each argument is an image, a
folder or an archive. Without --output, the result is a table. How well images of the same class are found:

    python -m vision_jax search --index=FEATURES --measure [--queries=FEATURES]

Of a run that learned from images and texts, with the objective clip or siglip, words can be searched for:

    python -m vision_jax search --index=FEATURES --workdir=W --words="a photo of the number seven"

Damaged queries are named and left out. Exit status: 0 done; 3 done, but some queries are damaged; 1 failed, 2 wrong
flags, 130 Ctrl-C.
"""

import argparse
import csv
import io
import json
import logging
import pathlib
import sys
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

from vision_jax.commands import common
from vision_jax.errors import ConfigError, DataError, check_no_url, check_output, one_line, printable
from vision_jax.runtime.writers import write_atomically

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from vision_jax.data.sources import Source
    from vision_jax.features import Features
    from vision_jax.search import Found

log = logging.getLogger(__name__)

_FORMATS = {".html": "html", ".txt": "text", ".csv": "csv", ".jsonl": "jsonl"}


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", metavar="IMAGE", nargs="*", help="a query: an image, a folder, or a tar or zip file")
    parser.add_argument("--words", action="append", help="a query in words, in place of IMAGE; may be given again")
    parser.add_argument("--index", required=True, help="the features to search")
    parser.add_argument("--topk", type=int, default=10, help="images to find for each query (default: %(default)s)")
    parser.add_argument("--output", help=f"a file that ends in {', '.join(_FORMATS)}; default: the terminal")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")
    parser.add_argument(
        "--approximate",
        action=argparse.BooleanOptionalAction,
        help="search by an index that may miss some, and is kept beside the features; default: above a million images",
    )
    parser.add_argument("--batch_size", type=int, default=128, help="images computed at once (default: %(default)s)")
    common.add_model_arguments(parser)
    group = parser.add_argument_group("measures of a search, by the labels")
    group.add_argument("--measure", action="store_true", help="print recall@k, mAP and others")
    group.add_argument("--queries", help="features to search by; default: each image of the index, for the others")
    group.add_argument("--ks", type=common.integers, help="of recall@k (default: 1,5,10)")
    group.add_argument("--json", help="a file for the measures")
    arguments = common.parse(parser, argv)
    return common.run(lambda: (measure if arguments.measure else search)(arguments))


def measure(arguments: argparse.Namespace) -> int:
    """Measures what a search finds, prints it and returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        DataError: if the features are missing, damaged, have no labels or do not fit.
    """
    common.refuse(arguments, ("paths", "words", "output", "approximate", "workdir", "model"), "not for --measure")
    ks = arguments.ks or (1, 5, 10)
    if any(k < 1 for k in ks):
        raise ConfigError(f"--ks is {','.join(map(str, ks))}: give numbers from 1.")
    if arguments.json is not None:
        check_no_url("--json", arguments.json)
        check_output("--json", pathlib.Path(arguments.json))

    from vision_jax import features, search
    from vision_jax.devices import backend

    index = features.read(arguments.index)
    queries = None if arguments.queries is None else features.read(arguments.queries)
    backend.start()
    found = search.measure(index, queries, ks)
    print(f"{index.about.model}, {index.about.origin}: {found['queries']:,} queries, {len(index):,} images")
    for name, value in found.items():
        if name != "queries":
            print(f"{name:16}{value:9.2%}")
    common.write_json(arguments.json, {"index": arguments.index, "queries_from": arguments.queries, **found})
    return 0


def search(arguments: argparse.Namespace) -> int:
    """Searches, writes what the flags say and returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        DataError, CheckpointError: if features, images or weights cannot be read, or the output cannot be written.
    """
    common.refuse(arguments, ("queries", "ks", "json"), "for --measure alone")
    common.check_model_arguments(arguments)
    if bool(arguments.paths) == bool(arguments.words):
        raise ConfigError("Similar to what? Give images, folders or archives, or --words, or --measure.")
    if arguments.words:
        common.refuse(arguments, ("approximate",), "for images alone")
    for name in ("topk", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: give 1 or more.")
    for path in (arguments.index, *arguments.paths):
        check_no_url("IMAGE" if path in arguments.paths else "--index", path)
    output, kind = _check_output(arguments)

    from vision_jax import features
    from vision_jax import search as program
    from vision_jax.data.images import ImageSource

    source = ImageSource.find(arguments.paths) if arguments.paths else None
    stored = features.read(arguments.index)
    trained = common.load_model(arguments, classifier=False)
    exact = True
    if source is None:
        found = list(program.find_by_words(trained, arguments.words, stored, topk=arguments.topk))
    else:
        program.check_made_by(trained, stored)
        index = program.open_index(stored, arguments.approximate)
        exact = isinstance(index, program.ExactIndex)
        found = list(program.find(trained, source, stored, index, topk=arguments.topk, batch_size=arguments.batch_size))
    match kind:
        case "html":
            pictures = program.Pictures(stored, _images(trained.config, stored))
            how = "Exact search." if exact else "Approximate search."
            read_query = None if source is None else lambda number: source[number]["image"]
            text = program.make_page(found, stored, pictures, read_query, how)
            _tell_missing(pictures.missing)
        case "csv":
            text = _as_csv(found)
        case "jsonl":
            text = "".join(f"{json.dumps(_as_dict(each))}\n" for each in found)
        case _:
            text = _as_text(found)
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text)
    damaged = sum(each.error is not None for each in found)
    if damaged:
        print(f"{damaged} of {len(found)} queries are damaged, as named above.", file=sys.stderr)
    return common.DAMAGED if damaged else 0


def _check_output(arguments: argparse.Namespace) -> tuple[pathlib.Path | None, str]:
    """Returns the file to write and its format; None: the terminal."""
    if arguments.output is None:
        return None, "text"
    check_no_url("--output", arguments.output)
    output = pathlib.Path(arguments.output).expanduser()
    check_output("--output", output)
    if output.suffix not in _FORMATS:
        raise ConfigError(f"--output is {output}: end its name in {', '.join(_FORMATS)}.")
    if output.exists() and not arguments.overwrite:
        raise ConfigError(f"{output} is there already: give another name, or --overwrite.")
    return output, _FORMATS[output.suffix]


def _images(config: "ConfigDict", stored: "Features") -> "Source | None":
    """Returns the images that features are of, if they are a split that the configuration still leads to."""
    from vision_jax.features import Images

    if not stored.about.split:
        return None
    try:
        return Images.of_split(config, stored.about.split).source
    except DataError as error:
        log.info("The images of %s are looked for by their names. %s", stored.directory, error)
        return None


def _tell_missing(missing: Set[str]) -> None:
    if missing:
        print(
            f"{len(missing)} of the images that were found have no picture, since they are not there any more or "
            f"cannot be read, such as {one_line(min(missing))}.",
            file=sys.stderr,
        )


def _as_text(found: Sequence["Found"]) -> str:
    """Returns a table for each query."""
    lines = []
    for each in found:
        lines.append(one_line(each.query) + ("" if each.error is None else f": damaged: {each.error}"))
        for rank, match in enumerate(each.matches, 1):
            label = "" if match.label is None else f"  [{match.label}]"
            lines.append(f"{rank:6}  {match.cosine:7.4f}  {one_line(match.name)}{label}")
    return "".join(f"{line}\n" for line in lines)


def _as_csv(found: Sequence["Found"]) -> str:
    """Returns a row for each image that was found, and for each damaged query."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["query", "rank", "image", "cosine", "class", "error"])
    for each in found:
        query = printable(each.query)
        for rank, match in enumerate(each.matches, 1):
            rows.writerow([query, rank, printable(match.name), f"{match.cosine:.6f}", match.label or "", ""])
        if each.error is not None:
            rows.writerow([query, "", "", "", "", each.error])
    return file.getvalue()


def _as_dict(found: "Found") -> dict[str, Any]:
    """Returns {"query", "matches": [{"image", "cosine", "class"}, ...]}, or {"query", "error"}."""
    if found.error is not None:
        return {"query": found.query, "error": found.error}
    matches = [{"image": match.name, "cosine": match.cosine, "class": match.label} for match in found.matches]
    return {"query": found.query, "matches": matches}

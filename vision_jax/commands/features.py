"""Writes features of images, and measures them: `python -m vision_jax features --workdir=W --split=train --output=DIR`.

Features are what a model has before its classifier. They are written in shards, and the same command goes on where one
was killed. In place of --split, images, folders and archives can be given. Then, with features of two splits:

    python -m vision_jax features --measure=knn,ridge,logistic,probe --train=DIR --val=DIR

Damaged images are named, and left out as far as --max_bad allows. Exit status: 0 done; 1 failed, 2 wrong flags, 130
Ctrl-C.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vision_jax.commands import common
from vision_jax.errors import ConfigError, check_no_url, check_output

if TYPE_CHECKING:
    from vision_jax.features import Options, Protocols

_EXTRACTION = ("split", "output", "dtype", "shard_size", "batch_size", "max_bad")
_MEASURING = ("train", "val", "k", "temperature", "ridge_l2", "logistic_l2s", "probe_optimizer", "probe_rates", "json")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", metavar="IMAGE", nargs="*", help="images, folders, and tar or zip files; no labels")
    parser.add_argument("--split", help="train or validation, as the configuration has them, or the name of another")
    parser.add_argument("--output", help="the folder to write; one with the same features is gone on with")
    parser.add_argument("--dtype", choices=("float16", "float32"), help="of the files (default: float16)")
    parser.add_argument("--shard_size", type=int, help="images of each shard (default: 16384)")
    parser.add_argument("--batch_size", type=int, help="images computed at once (default: 128)")
    parser.add_argument("--max_bad", type=int, help="damaged images to leave out: data.max_bad_eval_records")
    common.add_model_arguments(parser)
    common.add_process_arguments(parser)
    group = parser.add_argument_group("measures of features that are there")
    group.add_argument("--measure", help="knn, ridge, logistic, probe: one or several, with commas")
    group.add_argument("--train", help="features to fit, or the neighbors")
    group.add_argument("--val", help="features to classify")
    group.add_argument("--k", type=int, help="knn: how many neighbors vote (default: 20)")
    group.add_argument("--temperature", type=float, help="knn: of their votes (default: 0.07)")
    group.add_argument("--ridge_l2", type=float, help="ridge: the penalty (default: 1024)")
    group.add_argument("--logistic_l2s", type=common.floats, help="logistic: penalties to choose from (0.0001, …, 100)")
    group.add_argument("--probe_optimizer", help="probe: sgd (default), or lars, with batch norm before it")
    group.add_argument("--probe_rates", type=common.floats, help="probe: learning rates for batches of 256")
    group.add_argument("--json", help="a file for the results")
    arguments = common.parse(parser, argv)
    if arguments.measure is not None:
        return common.run(lambda: measure(arguments))
    return common.run_in_processes(arguments, lambda: extract(arguments))


def extract(arguments: argparse.Namespace) -> int:
    """Writes features, and returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        DataError, CheckpointError: if images or weights cannot be read, or the output cannot be written.
    """
    common.refuse(arguments, _MEASURING, "for --measure alone")
    common.check_model_arguments(arguments)
    if (arguments.split is None) == (not arguments.paths):
        raise ConfigError("Which images? Give --split=train, validation or another one, or images, folders, archives.")
    if arguments.output is None:
        raise ConfigError("Where to? Give --output=DIR.")
    for name, paths in (("--output", [arguments.output]), ("IMAGE", arguments.paths)):
        for path in paths:
            check_no_url(name, path)
    has_source = any(text.startswith("--config.data.source") for text in arguments.overrides)
    if arguments.model is not None and arguments.split is not None and not has_source:
        raise ConfigError(f"--split={arguments.split} of what? --model needs --config.data.source= and so on.")
    if arguments.max_bad is not None:
        arguments.overrides.append(f"--config.data.max_bad_eval_records={arguments.max_bad}")
    directory = pathlib.Path(arguments.output).expanduser()
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--output is {directory}, which is no folder: give a folder.")
    options = _options(arguments)

    import jax

    from vision_jax import features
    from vision_jax.data.sources import closing

    trained = common.load_model(arguments, classifier=False)
    options = dataclasses.replace(options, max_bad=trained.config.data.max_bad_eval_records)
    images = (
        features.Images.of_split(trained.config, arguments.split)
        if arguments.split is not None
        else features.Images.of_paths(arguments.paths)
    )
    with closing(images.source):
        done = features.extract(trained, images, directory, options)
    if jax.process_index() == 0:
        left_out = f", {done.damaged} damaged ones left out" if done.damaged else ""
        there = "" if done.made else ", all of which had been made"
        print(
            f"{directory}: {done.dim} features of {done.rows:,} images{left_out}; {trained.name}, {trained.origin}; "
            f"{done.shards} shard{'' if done.shards == 1 else 's'}{there}"
        )
    return 0


def _options(arguments: argparse.Namespace) -> "Options":
    from vision_jax.features import Options

    names = ("dtype", "shard_size", "batch_size", "max_bad")
    return Options(**{name: value for name in names if (value := getattr(arguments, name)) is not None})


def measure(arguments: argparse.Namespace) -> int:
    """Measures features, prints a table and returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        DataError: if the features are missing, damaged, or do not fit.
    """
    common.refuse(arguments, ("paths", *_EXTRACTION, "workdir", "model", "overrides"), "not for --measure")
    kinds = [kind for kind in arguments.measure.split(",") if kind]
    if not kinds:
        raise ConfigError(f"--measure is {arguments.measure!r}: give knn, ridge, logistic, probe, or several of them.")
    if not arguments.train or not arguments.val:
        raise ConfigError("--measure needs --train=DIR and --val=DIR, the features of two splits.")
    if arguments.json is not None:
        check_no_url("--json", arguments.json)
        check_output("--json", pathlib.Path(arguments.json))

    from vision_jax import features
    from vision_jax.devices import backend

    features.check_kinds(kinds)
    options = _protocols(arguments)
    train, validation = (features.read(path) for path in (arguments.train, arguments.val))
    backend.start()
    results = features.measure(kinds, train, validation, options)
    print(f"{train.about.model}, {train.about.origin}: {len(train):,} and {len(validation):,} images")
    print(f"{'':12}{'top-1':>9}{'top-5':>9}")
    for kind, found in results.items():
        chosen = {
            name: value for name, value in found.items() if not (name.startswith("top") or isinstance(value, dict))
        }
        settings = ", ".join(f"{name}={value:g}" for name, value in chosen.items())
        print(f"{kind:12}{found['top1']:9.2%}{found['top5']:9.2%}  {settings}")
    common.write_json(arguments.json, {"train": arguments.train, "val": arguments.val, **results})
    return 0


def _protocols(arguments: argparse.Namespace) -> "Protocols":
    from vision_jax.features import Protocols

    names = ("k", "temperature", "ridge_l2", "logistic_l2s", "probe_optimizer", "probe_rates")
    return Protocols(**{name: value for name in names if (value := getattr(arguments, name)) is not None})

"""Measures a classifier on ImageNet's evaluation sets: `python -m vision_jax suite --workdir=W --data=D --output=O`.

--data has the sets as they are downloaded, unpacked or as archives, which are read in place: the validation set,
real.json, ImageNet-V2, -A, -R, -Sketch, -C and ObjectNet. docs/evaluation.md says how they are called and scored. The
results are in suite.csv and suite.json of --output, after each set; run again, the command goes on with the others.
With --zero_shot=CLASSES, a model of images and words is measured, whose classes are these, as for `zero-shot`.
`--explain=gradcam` also writes, in mistakes/SET of --output, what the model looked at in its most confident mistakes.

Robust accuracy (docs/robustness.md) is a set that is asked for by name. Without --data, the run's own data is attacked:

    python -m vision_jax suite --workdir=W --output=O --sets=adversarial --attack=autoattack --eps=4/255 --norm=linf

Detectors and segmenters are measured on the validation split of their own run, by its evaluations (`--sets=val`).

Exit status: 0 done; 1 failed, or a set did, as the others did not; 2 wrong flags, 130 Ctrl-C.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vision_jax.commands import common
from vision_jax.errors import ConfigError, check_no_url

if TYPE_CHECKING:
    from vision_jax.build import TrainedModel
    from vision_jax.suite.adversarial import Attack, Plan
    from vision_jax.suite.selection import Selection

_ADVERSARIAL = "adversarial"
_OF_ATTACKS = ("attack", "eps", "norm", "examples", "image_list", "split", "seed")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="the folder with the sets, up to three folders below it")
    parser.add_argument("--output", required=True, help="a folder for suite.csv and suite.json")
    parser.add_argument(
        "--sets", help="of val,real,v2,a,r,sketch,c,objectnet,adversarial; default: all that are there, but attacks"
    )
    parser.add_argument(
        "--batch_size", type=int, help="images computed at once (default: 128; of detectors and segmenters, the run's)"
    )
    parser.add_argument("--max_bad", type=int, default=0, help="damaged images of a set that are left out (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --output")
    parser.add_argument("--zero_shot", metavar="CLASSES", help="a file of names of classes, one a line behind its id")
    parser.add_argument("--templates", help="with --zero_shot, a file of sentences, as for `zero-shot`")
    parser.add_argument("--tokenizer", help="with --zero_shot, its file; default: it is looked for beside the weights")
    parser.add_argument(
        "--explain", help="explain the most confident mistakes: methods of `python -m vision_jax explain`, with commas"
    )
    parser.add_argument("--mistakes", type=int, default=16, help="explained, of each set (default: %(default)s)")
    group = parser.add_argument_group("attacks, of --sets=adversarial")
    group.add_argument("--attack", help="fgsm, pgd-50-10, autoattack and others, with commas; each is a row")
    group.add_argument("--eps", help="radius of images in [0, 1], such as 4/255 (default in linf), several with commas")
    group.add_argument("--norm", help="linf (default) or l2")
    group.add_argument("--examples", help="a random subset of N images that is always the same; first:N: the first N")
    group.add_argument("--image_list", help="a file that names the images, one a line, such as RobustBench's 5,000")
    group.add_argument("--split", help="without --data: of the run's own data (default: validation)")
    group.add_argument("--seed", type=int, help="of the attacks' random numbers (default: 0)")
    common.add_model_arguments(parser)
    common.add_process_arguments(parser)
    arguments = common.parse(parser, argv)
    return common.run_in_processes(arguments, lambda: suite(arguments))


def suite(arguments: argparse.Namespace) -> int:
    """Measures the model on the sets; see `suite.run.run_suite`."""
    common.check_model_arguments(arguments)
    if (arguments.batch_size is not None and arguments.batch_size < 1) or arguments.max_bad < 0:
        raise ConfigError(
            f"--batch_size is {arguments.batch_size} and --max_bad {arguments.max_bad}: not below 1 and 0."
        )
    if arguments.mistakes < 1:
        raise ConfigError(f"--mistakes is {arguments.mistakes}: give 1 or more.")
    if common.is_dense(arguments):
        return _suite_of_dense(arguments)
    wanted = None if arguments.sets is None else [name.strip() for name in arguments.sets.split(",")]
    plan = _plan(arguments, wanted or ())
    if arguments.explain is not None and wanted == [_ADVERSARIAL]:
        raise ConfigError(
            f"--explain is {arguments.explain!r}, for the mistakes on sets of images: --sets={_ADVERSARIAL} has none."
        )
    if arguments.data is not None:
        check_no_url("--data", arguments.data)
    if not arguments.zero_shot:
        common.refuse(arguments, ("templates", "tokenizer"), "for --zero_shot")

    from vision_jax.suite import run
    from vision_jax.suite.find import Found, find_sets
    from vision_jax.suite.results import prepare_output

    output = prepare_output(arguments.output)
    if arguments.data is None:
        found, chosen = Found(pathlib.Path()), [_ADVERSARIAL]
    else:
        found = find_sets(pathlib.Path(arguments.data).expanduser())
        chosen = found.choose(wanted)
    trained = _load_words(arguments) if arguments.zero_shot else common.load_model(arguments)
    explained = {"explain": arguments.explain, "mistakes": arguments.mistakes}
    options = run.Options(
        arguments.batch_size or 128, arguments.max_bad, arguments.overwrite, arguments.pretrained, plan, **explained
    )
    return 0 if run.run_suite(trained, found, chosen, output, options) else 1


def _suite_of_dense(arguments: argparse.Namespace) -> int:
    """Measures a detector or segmenter on the validation split of its run; see `suite.dense.run_dense`."""
    from vision_jax.suite import dense, run
    from vision_jax.suite.results import prepare_output

    kind = "of models of whole images, and this is a detector or segmenter"
    common.refuse(arguments, ("data", "zero_shot", "templates", "tokenizer", "explain", *_OF_ATTACKS), kind)
    if arguments.sets not in (None, dense.SET):
        raise ConfigError(
            f"--sets is {arguments.sets!r}: detectors and segmenters are measured on the validation split of their "
            f"data alone, --sets={dense.SET}."
        )
    if arguments.model is not None and not any(text.startswith("--config.data.source") for text in arguments.overrides):
        raise ConfigError("Which images? Give --config.data.source=coco, --config.data.dir=DIR and so on.")
    output = prepare_output(arguments.output)
    trained = common.load_model(arguments, dense=True)
    options = run.Options(max_bad=arguments.max_bad, overwrite=arguments.overwrite)
    dense.run_dense(trained, output, options, arguments.batch_size)
    return 0


def _plan(arguments: argparse.Namespace, wanted: Sequence[str]) -> "Plan":
    """Returns what is attacked, from the flags; nothing, if that is not wanted.

    Raises:
        ConfigError: for flags that cannot work.
    """
    from vision_jax.suite.adversarial import Plan

    if _ADVERSARIAL not in wanted:
        common.refuse(arguments, _OF_ATTACKS, "for --sets=adversarial")
        if arguments.data is None:
            raise ConfigError("--data is missing: give the folder with the sets. Only attacks do without.")
        return Plan()
    if arguments.data is None and list(wanted) != [_ADVERSARIAL]:
        raise ConfigError(f"--sets={arguments.sets} needs --data, the folder with the sets: only adversarial does not.")
    if arguments.data is not None and arguments.split is not None:
        raise ConfigError(f"--split is {arguments.split!r}, of a run's own data: leave out --data or --split.")
    has_source = any(text.startswith("--config.data.source") for text in arguments.overrides)
    if arguments.data is None and arguments.model is not None and not has_source:
        raise ConfigError("Which images? Give --data, or --config.data.source=folder and so on for data of your own.")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed is {arguments.seed}: give a number from 0 to {2**32 - 1}.")
    split = (arguments.split or "validation") if arguments.data is None else None
    return Plan(_attacks(arguments), _selection(arguments), arguments.seed or 0, split)


def _attacks(arguments: argparse.Namespace) -> "tuple[Attack, ...]":
    """Returns the attacks of --attack, --eps and --norm."""
    from vision_jax import attacks
    from vision_jax.attacks import names
    from vision_jax.suite.adversarial import Attack

    norm = arguments.norm or "linf"
    if arguments.attack is None:
        raise ConfigError(f"--attack is missing: give {', '.join(names.NAMES)}, or several with commas.")
    found = [name.strip() for name in arguments.attack.split(",")]
    for name in found:
        names.check(name, norm)
    if arguments.eps is None and norm != "linf":
        raise ConfigError(f"--eps is missing: give the radius in {norm}, such as 3.")
    eps = "4/255" if arguments.eps is None else arguments.eps
    radii = [attacks.parse_epsilon(text, norm) for text in eps.split(",")]
    return tuple(
        Attack(names.canonical(name), norm, radius.value, radius.reading) for name in found for radius in radii
    )


def _selection(arguments: argparse.Namespace) -> "Selection":
    """Returns which images --examples and --image_list say."""
    from vision_jax.suite.selection import Selection

    if arguments.image_list is not None:
        if arguments.examples is not None:
            raise ConfigError("--examples and --image_list both say which images: give one of them.")
        check_no_url("--image_list", arguments.image_list)
        path = pathlib.Path(arguments.image_list).expanduser()
        if not path.is_file():
            raise ConfigError(f"--image_list is {path}, which is no file: give one with the name of an image a line.")
        return Selection(image_list=path)
    if arguments.examples is None:
        return Selection()
    kind, _, number = arguments.examples.rpartition(":")
    if kind not in ("", "first") or not number.isdecimal() or not int(number):
        raise ConfigError(f"--examples is {arguments.examples!r}: give a number, such as 1000, or first:1000.")
    return Selection(int(number), first=kind == "first")


def _load_words(arguments: argparse.Namespace) -> "TrainedModel":
    """Loads a model of images and words, and makes it a classifier of the classes of --zero_shot."""
    from vision_jax.text import prompts
    from vision_jax.zero_shot import program

    common.refuse(arguments, ("classes",), "the names of a classifier: --zero_shot has those of the words")
    classes = prompts.read_classes(arguments.zero_shot, "--zero_shot")
    prompts.read_templates(arguments.templates)  # now, before the model is loaded
    if arguments.workdir is not None:
        words = program.of_run(common.load_model(arguments))
    else:
        words = program.load(arguments.model, arguments.pretrained, tokenizer=arguments.tokenizer)
    templates = prompts.read_templates(arguments.templates, words.templates)
    name, origin = arguments.model or "words", arguments.pretrained or arguments.workdir
    return program.as_trained(words, name, origin, classes, templates)

"""Measures a classifier on ImageNet's evaluation sets: `python -m vision_jax suite --workdir=W --data=D --output=O`.

--data has the sets as they are downloaded, unpacked or as archives, which are read in place: the validation set,
real.json, ImageNet-V2, -A, -R, -Sketch, -C and ObjectNet. docs/evaluation.md says how they are called and scored. The
results are in suite.csv and suite.json of --output, after each set; run again, the command goes on with the others.
With --zero_shot=CLASSES, a model of images and words is measured, whose classes are these, as for `zero-shot`.
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


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="the folder with the sets, up to three folders below it")
    parser.add_argument("--output", required=True, help="a folder for suite.csv and suite.json")
    parser.add_argument("--sets", help="of val,real,v2,a,r,sketch,c,objectnet; default: all that are there")
    parser.add_argument("--batch_size", type=int, default=128, help="images computed at once (default: %(default)s)")
    parser.add_argument("--max_bad", type=int, default=0, help="damaged images of a set that are left out (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --output")
    parser.add_argument("--zero_shot", metavar="CLASSES", help="a file of names of classes, one a line behind its id")
    parser.add_argument("--templates", help="with --zero_shot, a file of sentences, as for `zero-shot`")
    parser.add_argument("--tokenizer", help="with --zero_shot, its file; default: it is looked for beside the weights")
    common.add_model_arguments(parser)
    common.add_process_arguments(parser)
    arguments = common.parse(parser, argv)
    return common.run_in_processes(arguments, lambda: suite(arguments))


def suite(arguments: argparse.Namespace) -> int:
    """Measures the model on the sets; see `suite.run.run_suite`."""
    common.check_model_arguments(arguments)
    if arguments.batch_size < 1 or arguments.max_bad < 0:
        raise ConfigError(
            f"--batch_size is {arguments.batch_size} and --max_bad {arguments.max_bad}: not below 1 and 0."
        )
    check_no_url("--data", arguments.data)
    if not arguments.zero_shot:
        common.refuse(arguments, ("templates", "tokenizer"), "for --zero_shot")

    from vision_jax.suite import run
    from vision_jax.suite.find import find_sets
    from vision_jax.suite.results import prepare_output

    output = prepare_output(arguments.output)
    found = find_sets(pathlib.Path(arguments.data).expanduser())
    wanted = found.choose(None if arguments.sets is None else [name.strip() for name in arguments.sets.split(",")])
    trained = _load_words(arguments) if arguments.zero_shot else common.load_model(arguments)
    options = run.Options(arguments.batch_size, arguments.max_bad, arguments.overwrite, arguments.pretrained)
    return 0 if run.run_suite(trained, found, wanted, output, options) else 1


def _load_words(arguments: argparse.Namespace) -> "TrainedModel":
    """Loads a model of images and words, and makes it a classifier of the classes of --zero_shot."""
    from vision_jax.text import prompts
    from vision_jax.zero_shot import program

    common.refuse(arguments, ("classes",), "the names of a classifier: --zero_shot has those of the words")
    classes = prompts.read_classes(arguments.zero_shot)
    prompts.read_templates(arguments.templates)  # now, before the model is loaded
    if arguments.workdir is not None:
        words = program.of_run(common.load_model(arguments))
    else:
        words = program.load(arguments.model, arguments.pretrained, tokenizer=arguments.tokenizer)
    templates = prompts.read_templates(arguments.templates, words.templates)
    name, origin = arguments.model or "words", arguments.pretrained or arguments.workdir
    return program.as_trained(words, name, origin, classes, templates)

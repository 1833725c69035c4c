"""Predicts classes by their names alone: `python -m vision_jax zero-shot --model=ViT-B-32 --pretrained=FILE
--classes="a cat,a dog" cat.jpg photos/`.

A model of images and words, CLIP or SigLIP, compares each image with sentences about the classes; nothing is trained.
Each argument is an image, a folder, of which everything below counts, or a tar or zip file. With --labelled=DIR, a
folder that has one of images for each class, the accuracy is measured instead. Exit status: 0 done; 3 done, but some
images are damaged; 1 failed, 2 wrong flags, 130 Ctrl-C.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vision_jax.commands import common, predictions
from vision_jax.errors import ConfigError, check_no_url

if TYPE_CHECKING:
    from vision_jax.zero_shot.program import WordModel

OF_WEIGHTS = ("tokenizer", "activation", "img_size", "dtype")  # flags that are for published weights alone


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax zero-shot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", metavar="IMAGE", nargs="*", help="an image, a folder, or a tar or zip file")
    parser.add_argument("--classes", help="names with commas between them, or a file with one a line")
    parser.add_argument(
        "--templates",
        help='a file of sentences, one a line, with {} for the name; default: "a photo of a {}.", or the run\'s',
    )
    parser.add_argument("--labelled", help="a folder of labelled images, to measure instead")
    parser.add_argument("--json", help="with --labelled, a file for the accuracy")
    predictions.add_arguments(parser)
    add_model_arguments(parser)
    arguments = common.parse(parser, argv)
    return common.run(lambda: zero_shot(arguments))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which model of images and words."""
    group = parser.add_argument_group(
        "the model",
        "Published weights, or a checkpoint of a run with the objective clip or siglip. --config.FIELD=VALUE changes a "
        "field of the run's configuration.",
    )
    group.add_argument("--model", help="its name, as open_clip has it (--model=list shows all)")
    group.add_argument("--pretrained", help="its weights: safetensors, npz or torch file, or hf://OWNER/NAME")
    group.add_argument("--tokenizer", help="its file; default: it is looked for beside the weights")
    group.add_argument("--activation", help="of the towers, such as gelu_tanh; default: that of the model")
    group.add_argument("--img_size", type=int, help="height and width of the images; default: those of the weights")
    group.add_argument("--dtype", help="what is computed in; default: float32")
    group.add_argument("--workdir", help="of a run")
    group.add_argument("--step", help="of its checkpoint, a number or `best`; default: the latest")
    group.add_argument("--weights", choices=("raw", "ema"), help="default: the moving average, if there is one")
    common.add_config_argument(group)


def zero_shot(arguments: argparse.Namespace) -> int:
    """Predicts or measures, writes what the flags say, and returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        DataError: if images, weights or their tokenizer cannot be read, or the output cannot be written.
    """
    if arguments.model == "list":
        from vision_jax.models.clip_variants import list_clips

        print("\n".join(list_clips()))
        return 0
    common.check_model_arguments(arguments, OF_WEIGHTS)
    if not arguments.classes:
        raise ConfigError("--classes is missing: give names with commas between them, or a file with one a line.")
    if bool(arguments.paths) == bool(arguments.labelled):
        raise ConfigError("What is to be classified? Give images, folders or archives, or --labelled=DIR.")
    if arguments.labelled:
        common.refuse(arguments, ("output", "format"), "for IMAGE: the accuracy is written by --json")
        check_no_url("--labelled", arguments.labelled)
    else:
        common.refuse(arguments, ("json",), "for --labelled")
    output, kind = predictions.check_arguments(arguments)

    from vision_jax.data.images import ImageSource
    from vision_jax.text import prompts
    from vision_jax.zero_shot import program

    names, folders = prompts.read_classes(arguments.classes)
    prompts.read_templates(arguments.templates)  # now, before the model is loaded
    if arguments.labelled:
        source, labels = program.labelled(arguments.labelled, folders)
    else:
        source = ImageSource.find(arguments.paths)
    model = load(arguments)
    templates = prompts.read_templates(arguments.templates, model.templates)
    topk = max(5, arguments.topk) if arguments.labelled else arguments.topk
    predictor = model.predictor(names, templates, topk=topk, batch_size=arguments.batch_size)
    if not arguments.labelled:
        return predictions.write_all(predictor, source, output, kind, "zero-shot")
    found = program.measure(predictor, source, labels)
    print(f"{found.count:,} images, {len(names):,} classes, {len(templates):,} sentences each")
    print(f"top-1 {found.top1:8.2%}\ntop-5 {found.top5:8.2%}")
    common.write_json(arguments.json, dataclasses.asdict(found))
    if found.damaged:
        print(f"{found.damaged} of {len(source)} images are damaged, and left out.", file=sys.stderr)
    return common.DAMAGED if found.damaged else 0


def load(arguments: argparse.Namespace) -> "WordModel":
    """Loads the model of images and words that the flags of `add_model_arguments` name."""
    from vision_jax.devices import backend
    from vision_jax.zero_shot import program

    if arguments.workdir is not None:
        return program.of_run(common.load_model(arguments))
    backend.start()
    common.keep_compiled()
    options = {name: value for name in ("activation", "img_size", "dtype") if (value := getattr(arguments, name))}
    return program.load(arguments.model, arguments.pretrained, tokenizer=arguments.tokenizer, **options)

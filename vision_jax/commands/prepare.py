"""Writes a data set for training: `python -m vision_jax prepare /downloads/imagenet /data/imagenet2012`.

INPUT is one of

- a folder with ImageNet's archives as downloaded: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
  ILSVRC2012_devkit_t12.tar.gz. They are read in place, never extracted;
- a folder of classes: INPUT/train/CLASS/IMAGE and so on, or INPUT/CLASS/IMAGE with --holdout=FRACTION for validation.
  Images of a split that are not in class folders, as INPUT/val/IMAGE, take --labels=val=FILE: a CSV file with a line
  NAME,CLASS for each image, such as ImageNet's LOC_val_solution.csv. In INPUT it is found without the flag, under this
  name and as val.csv or val_labels.csv;
- a folder with the files of a data set that is known, as they were downloaded, archives unpacked or not:
  --dataset=NAME, as in `prepare --dataset=pets /downloads/pets /data/pets`. --datasets lists them, with their files.
  Where the names of the files tell which one it is, the flag may be left out. Its splits are the published ones, and
  their numbers of images are compared with those published; --subset takes what there is. IDX files of another data
  set will do without the flag;
- a folder with COCO's annotations/instances_SPLIT.json and its images, with Pascal VOC's JPEGImages and ImageSets, or
  with images/SPLIT and masks/SPLIT: images keep their bytes, since boxes and masks are in their pixels;
- the folder of a data set that tfds has prepared, in TFRecord or ArrayRecord files;
- tfds:NAME, which tfds downloads and prepares (this needs TensorFlow).

OUTPUT becomes a data set in tfds' layout, of ArrayRecord files: data.dir of the configuration, and what
`tfds.builder_from_directory` reads. A run that was killed goes on when it is started again, and the result is the same
to the byte. `--verify DIR` compares such a folder with its manifest.

With --corrupt=NAME:SEVERITY the images of the validation split, or of the test split where there is none, are corrupted
as in ImageNet-C, and OUTPUT/NAME/SEVERITY becomes the data set. `python -m vision_jax suite --sets=c` reads OUTPUT.

Examples are in a random order that depends on their names alone, so that train[:1%] is a random sample; the order of a
data set of tfds is kept. Exit status: 0 done, 1 failed, 2 wrong flags, 130 Ctrl-C.
"""

import argparse
import dataclasses
import logging
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vision_jax.data.pillow import MAX_PIXELS
from vision_jax.errors import ConfigError, VisionJaxError, check_no_url, reason
from vision_jax.runtime import console

if TYPE_CHECKING:
    from vision_jax.preparation import dense
    from vision_jax.preparation.corrupt import Corruptions

_QUALITY = 90
_SPLITS = ("train", "val", "valid", "validation", "test")  # names of their folders


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m vision_jax prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="INPUT", nargs="?", help="a folder, or tfds:NAME[/CONFIG][:VERSION]")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="the folder of the result, new or unfinished")
    parser.add_argument("--verify", metavar="DIR", help="check a prepared data set, and nothing else")
    parser.add_argument("--datasets", action="store_true", help="list the data sets that are known, and nothing else")
    parser.add_argument("--dataset", metavar="NAME", help="which known data set the files in INPUT are of")
    parser.add_argument(
        "--subset", action="store_true", help="of a known data set, take what there is, whatever is missing"
    )
    parser.add_argument("--name", type=_name, help="of the result; default: that of the data set, or the folder's")
    parser.add_argument(
        "--encoding",
        choices=("jpeg", "raw", "original"),
        help="jpeg: resized JPEGs (default). raw: decoded pixels, for hosts with few cores. original: bytes untouched "
        "(default for known data sets of small images; arrays of pixels, as MNIST's and CIFAR's, become PNGs)",
    )
    parser.add_argument(
        "--short_side",
        metavar="PIXELS",
        type=_integer(0),
        default=256,
        help="of the images, which are never enlarged; 0 keeps every size (default: %(default)s)",
    )
    parser.add_argument(
        "--quality", type=_integer(1, 100), help=f"of JPEGs (default: {_QUALITY}; with --corrupt, 85 as in ImageNet-C)"
    )
    parser.add_argument(
        "--apply_exif_orientation", action="store_true", help="turn images upright; ImageNet is used without"
    )
    parser.add_argument(
        "--max_pixels",
        type=_integer(1),
        default=MAX_PIXELS,
        help="an image with more is refused (default: %(default)s)",
    )
    parser.add_argument(
        "--skip_corrupt",
        metavar="N",
        type=_integer(0),
        default=0,
        help="leave out up to N images that cannot be decoded or are too large; default: the first one ends the run",
    )
    parser.add_argument(
        "--holdout",
        metavar="FRACTION",
        type=_fraction,
        default=0.0,
        help="of each class, for validation, from a folder of classes that has no splits",
    )
    parser.add_argument(
        "--labels",
        metavar="SPLIT=FILE",
        type=_labels,
        action="append",
        default=[],
        help="a CSV file of image names and classes, for images that are not in class folders; once for each split",
    )
    group = parser.add_argument_group("boxes and masks, as in the configuration's data.dense")
    group.add_argument("--masks", action="store_true", help="masks: of COCO besides boxes, of Pascal VOC instead")
    group.add_argument("--categories", metavar="NAMES", help="with commas; voc: those of COCO that Pascal VOC has")
    group.add_argument("--category_ids", action="store_true", help="labels are the ids of categories")
    group.add_argument("--reduce_zero_label", action="store_true", help="of masks: classes begin at 1, 0 is ignored")
    group.add_argument("--skip_bad", action="store_true", help="leave out objects and images that are wrong")
    group = parser.add_argument_group("corrupted images")
    group.add_argument(
        "--corrupt",
        metavar="NAME:SEVERITY",
        help="a corruption of ImageNet-C at a severity from 1 to 5, or at all five without one; several with commas. "
        "noise, blur, weather, digital and extra are its groups, and all the 15 of mCE. The shorter side becomes "
        "--short_side, also of smaller images, and the middle is cut out",
    )
    group.add_argument("--crop", metavar="PIXELS", type=_integer(0), help="of the middle; 0: all (default: 224)")
    group.add_argument(
        "--seed",
        type=_integer(0),
        help="of the random numbers; also of the division of "
        "known data sets that are published without splits (default: 0)",
    )
    group.add_argument("--frost", metavar="DIR", help="the published pictures of frost; default: it is made up")
    parser.add_argument("--shards", type=_integer(1), help="in each split; default: of about 256 MiB")
    parser.add_argument("--workers", type=_integer(1), default=None, help="processes; default: one per usable core")
    return parser


def _integer(least: int, most: int | None = None) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"{value} is not {f'at least {least}' if most is None else f'between {least} and {most}'}"
            )
        return value

    parse.__name__ = "integer"  # what argparse calls it
    return parse


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def _labels(text: str) -> tuple[str, str]:
    split, _, file = text.partition("=")
    if split not in _SPLITS or not file:
        raise argparse.ArgumentTypeError(f"{text!r} is not SPLIT=FILE with one of {', '.join(_SPLITS)}")
    return split, file


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not made of a-z, 0-9 and _, beginning with a letter")
    return text


def _corruptions(flags: argparse.Namespace) -> "Corruptions | None":
    """Returns what the flags of corrupted images say.

    Raises:
        VisionJaxError: if they cannot work.
    """
    if flags.corrupt is None:
        return None
    from vision_jax.augment import frost
    from vision_jax.preparation import corrupt

    wanted = corrupt.parse(flags.corrupt)
    crop = corrupt.CROP if flags.crop is None else flags.crop
    if 0 < flags.short_side < crop:
        raise ConfigError(f"--crop is {crop}, more than --short_side={flags.short_side}: lower it, or raise that.")
    pictures, digest = corrupt.read_frost(flags.frost)
    if any(name == "frost" for name, _ in wanted) and (remark := frost.remark(pictures)):
        logging.getLogger(__name__).warning("%s", remark)
    return corrupt.Corruptions(wanted, crop, flags.seed or 0, pictures, digest)


def _objects(flags: argparse.Namespace) -> "dense.Options | None":
    """Returns what the flags of boxes and masks say; None if there are none."""
    from vision_jax.preparation import dense

    categories = tuple(name.strip() for name in flags.categories.split(",")) if flags.categories else ()
    options = dense.Options(
        flags.masks, categories, flags.category_ids, reduce_zero_label=flags.reduce_zero_label, skip_bad=flags.skip_bad
    )
    return None if options == dense.Options() else options


def verify(directory: pathlib.Path) -> list[str]:
    """Compares a prepared data set with its manifest, prints how many examples there are, and returns the problems."""
    from vision_jax.preparation import manifest
    from vision_jax.preparation import run as preparation
    from vision_jax.runtime.writers import Progress

    content = manifest.read(directory)
    num_files = len(content["metadata"]) + sum(len(values["shards"]) for values in content["splits"].values())
    with Progress(num_files, description="files") as bar:
        problems = manifest.problems(directory, content, lambda: bar.update({}))
    for split, values in content["splits"].items():
        print(f"{split}: {values['examples']:,} examples in {len(values['shards'])} shards")
    for line in preparation.remarks(content):
        print(line)
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = _parser()
    flags = parser.parse_args(argv)
    if flags.datasets:
        from vision_jax.preparation import known

        print(known.overview())
        return 0
    if (flags.verify is None) != (flags.output is not None):
        parser.error("give INPUT and OUTPUT, or --verify DIR alone, or --datasets alone")
    if flags.encoding == "original" and flags.apply_exif_orientation:
        parser.error("--apply_exif_orientation changes images, which --encoding=original does not")
    if flags.corrupt is None:
        for name in ("crop", "frost"):
            if getattr(flags, name) is not None:
                parser.error(f"--{name} is for --corrupt=NAME:SEVERITY")
    elif flags.encoding == "original":
        parser.error("--corrupt changes images, which --encoding=original does not")
    console.configure_logging()
    try:
        given = {"INPUT": flags.input, "OUTPUT": flags.output, "--verify": flags.verify, "--frost": flags.frost}
        for what, value in given.items():
            check_no_url(what, value or "")
        if flags.verify is not None:
            problems = verify(pathlib.Path(flags.verify))
            for problem in problems:
                print(f"error: {problem}", file=sys.stderr)
            print("damaged" if problems else "as it was prepared")
            return 1 if problems else 0
        from vision_jax.preparation import corrupt  # here, because --help should be quick
        from vision_jax.preparation import run as preparation
        from vision_jax.preparation.known_input import Choice

        corruptions = _corruptions(flags)
        if flags.quality is None:
            flags.quality = _QUALITY if corruptions is None else corrupt.QUALITY
        names = [field.name for field in dataclasses.fields(preparation.Options) if field.name != "corruption"]
        options = preparation.Options(**{name: getattr(flags, name) for name in names})
        workers = flags.workers or len(os.sched_getaffinity(0))
        preparation.prepare(
            flags.input,
            pathlib.Path(flags.output),
            options,
            labels=dict(flags.labels),
            skip_corrupt=flags.skip_corrupt,
            workers=workers,
            corruptions=corruptions,
            objects=_objects(flags),
            choice=Choice(flags.dataset, flags.subset, flags.seed),
        )
        return 0
    except (VisionJaxError, OSError) as error:
        print(f"error: {reason(error, path=True)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130

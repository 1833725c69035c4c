"""Predicts classes, boxes or masks: `python -m vision_jax predict --workdir=runs/resnet50 cat.jpg photos/ more.zip`.

Each argument is an image, a folder, of which everything below counts, or a tar or zip file. The result is a line for
each image, in their order; damaged ones are named and left out.

Of detectors and segmenters, a line is JSON: the boxes with their scores and classes, in pixels of the image, or the
share of the pixels that each class has. With `--draw=DIR` there are pictures too: of the boxes, or the mask, a PNG
whose pixels are classes, and the image with the mask over it. `--annotations=FILE --output=FILE.json` writes the boxes
as the list that COCO's evaluation reads. Exit status: 0 done; 3 done, but some images are damaged;
1 failed, 2 wrong flags, 130 Ctrl-C.
"""

import argparse
from collections.abc import Sequence

from vision_jax.commands import common, dense_predictions, predictions
from vision_jax.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", metavar="IMAGE", nargs="+", help="an image, a folder, or a tar or zip file")
    predictions.add_arguments(parser, dense_predictions.FORMATS)
    parser.set_defaults(topk=None, batch_size=None)  # which depend on the model
    dense_predictions.add_arguments(parser)
    common.add_model_arguments(parser)
    arguments = common.parse(parser, argv)
    return common.run(lambda: predict(arguments))


def predict(arguments: argparse.Namespace) -> int:
    """Predicts, and writes what the flags say; returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        DataError, CheckpointError: if images or weights cannot be read, or the output cannot be written.
    """
    common.check_model_arguments(arguments)
    output, kind = predictions.check_arguments(arguments, dense_predictions.FORMATS)
    directory = dense_predictions.check_arguments(arguments)

    from vision_jax.data.images import ImageSource
    from vision_jax.predict import Predictor

    source = ImageSource.find(arguments.paths)
    trained = common.load_model(arguments, dense=True)
    if trained.dense:
        return dense_predictions.predict(trained, source, arguments, output, directory)
    common.refuse(arguments, dense_predictions.FLAGS, "for detectors and segmenters")
    if kind == dense_predictions.COCO:
        raise ConfigError(f"The format {kind} is for the boxes of detectors, and {trained.origin} is a classifier.")
    topk, batch_size = arguments.topk or predictions.TOPK, arguments.batch_size or predictions.BATCH_SIZE
    predictor = Predictor.of(trained, topk=topk, batch_size=batch_size)
    return predictions.write_all(predictor, source, output, kind, "predict")

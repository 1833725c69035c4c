"""Predicts the classes of images: `python -m vision_jax predict --workdir=runs/resnet50 cat.jpg photos/ more.zip`.

Each argument is an image, a folder, of which everything below counts, or a tar or zip file. The result is a line for
each image, in their order; damaged ones are named and left out. Exit status: 0 done; 3 done, but some images are
damaged; 1 failed, 2 wrong flags, 130 Ctrl-C.
"""

import argparse
from collections.abc import Sequence

from vision_jax.commands import common, predictions


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", metavar="IMAGE", nargs="+", help="an image, a folder, or a tar or zip file")
    predictions.add_arguments(parser)
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
    output, kind = predictions.check_arguments(arguments)

    from vision_jax.data.images import ImageSource
    from vision_jax.predict import Predictor

    source = ImageSource.find(arguments.paths)
    trained = common.load_model(arguments)
    predictor = Predictor.of(trained, topk=arguments.topk, batch_size=arguments.batch_size)
    return predictions.write_all(predictor, source, output, kind, "predict")

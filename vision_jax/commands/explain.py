"""Shows what a model looks at: `python -m vision_jax explain --workdir=W cat.jpg --method=gradcam,ig --output=D`.

Each argument is an image, a folder, of which everything below counts, or a tar or zip file. D gets a page, index.html,
with the images, their predictions and the maps side by side; a contact sheet; explanations.json; and of each image what
the model saw, the maps on it as PNG, and the maps as NumPy arrays. docs/explanations.md says what the methods are.
`--curves` also measures which of them is faithful.

Damaged images are named and left out. Exit status: 0 done; 3 done, but some images are damaged; 1 failed, 2 wrong
flags, 130 Ctrl-C.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vision_jax.commands import common
from vision_jax.errors import ConfigError, check_no_url

if TYPE_CHECKING:
    from vision_jax.build import TrainedModel


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax explain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("paths", metavar="IMAGE", nargs="+", help="an image, a folder, or a tar or zip file")
    add("--output", required=True, help="the folder to write")
    add(
        "--method",
        default="gradcam",
        help="one, or several with commas; options follow colons, as in gradcam,ig:steps=64 (default: %(default)s)",
    )
    add("--target", help="the class to explain, by name or number; default: the one that is predicted, for each image")
    add("--curves", action="store_true", help="measure each method by deletion and insertion")
    add("--curve_step", type=int, help="pixels that these replace at once (default: as many as a row has)")
    add("--topk", type=int, default=5, help="classes per image (default: %(default)s)")
    add("--seed", type=int, default=0, help="of methods that draw random numbers (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace explanations in --output")
    add("--batch_size", type=int, default=16, help="images computed at once (default: %(default)s)")
    common.add_model_arguments(parser)
    arguments = common.parse(parser, argv)
    return common.run(lambda: explain(arguments))


def explain(arguments: argparse.Namespace) -> int:
    """Explains, writes what the flags say and returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        DataError, CheckpointError: if images or weights cannot be read, or the output cannot be written.
    """
    common.check_model_arguments(arguments)
    for name in ("topk", "batch_size", "curve_step"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}: give 1 or more.")
    if arguments.curve_step is not None and not arguments.curves:
        raise ConfigError(f"--curve_step is {arguments.curve_step}, which is for --curves alone.")
    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed is {arguments.seed}: give a number from 0 to {2**32 - 1}.")
    for name, path in (("--output", arguments.output), *(("IMAGE", path) for path in arguments.paths)):
        check_no_url(name, path)
    directory = pathlib.Path(arguments.output).expanduser()

    from vision_jax import explanations
    from vision_jax.data.images import ImageSource
    from vision_jax.explanations import faithfulness
    from vision_jax.predict import Predictor
    from vision_jax.report import drawing
    from vision_jax.runtime import writers

    explanations.check_output(directory, arguments.overwrite)
    drawing.check_installed()
    methods = explanations.parse_methods(arguments.method)
    source = ImageSource.find(arguments.paths)
    trained = common.load_model(arguments)
    predictor = Predictor.of(trained, topk=arguments.topk)
    target = explanations.PREDICTED
    if arguments.target is not None:
        target = explanations.find_target(predictor, arguments.target)
    explainer = explanations.ImageExplainer(
        predictor,
        methods,
        batch_size=min(arguments.batch_size, len(source)),
        seed=arguments.seed,
        curves=arguments.curves,
        curve_step=arguments.curve_step,
    )
    damaged = 0
    with writers.open_workdir(directory, flag="--output", mode=0o777):
        explanations.check_output(directory, arguments.overwrite)  # again: another run may have ended meanwhile
        folder = explanations.Folder(directory, explainer.methods)
        with writers.Progress(len(source), description="explain", leave=False) as progress:
            for explanation in explanations.stream(explainer, source, target):
                damaged += explanation.error is not None
                folder.add(explanation)
                progress.update({})
        found = folder.finish("Explanations", _about(trained, arguments))
    if found:
        print(faithfulness.as_text(found))
    print(directory / explanations.PAGE)
    if damaged:
        print(f"{damaged} of {len(source)} images are damaged, as named above.", file=sys.stderr)
    return common.DAMAGED if damaged else 0


def _about(trained: "TrainedModel", arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what explanations.json says of the model, and how it was asked."""
    import jax

    import vision_jax

    model = {"name": trained.name, "origin": trained.origin, "digest": trained.digest, "classes": trained.num_classes}
    versions = {"vision_jax": vision_jax.__version__, "jax": jax.__version__}
    return {"model": model, "versions": versions, "target": arguments.target, "seed": arguments.seed}

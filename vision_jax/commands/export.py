"""Writes a model for other programs: `python -m vision_jax export --format=onnx --workdir=runs/resnet50 resnet50.onnx`.

Formats: `onnx`, checked by onnxruntime before the file is there; `stablehlo`, a program that JAX runs without this
package, for CPU, CUDA and TPU; `timm` and `torchvision`, a safetensors file of weights that
`timm.create_model(NAME, num_classes=N, checkpoint_path=FILE)` loads, or torchvision's model by
`load_state_dict(safetensors.torch.load_file(FILE))`; a training here starts from it with
`--config.model.pretrained=FILE`. Of detectors, programs give the outputs of the heads, or as ONNX with `--with_nms` the
boxes that are found, and of segmenters the logits of the pixels, for images of one size (`--size=800x1344`, height
first). A model card, FILE.md, is written beside each.
Exit status: 0 done, 1 failed, 2 wrong flags.
"""

import argparse
import pathlib
from collections.abc import Sequence

from vision_jax.commands import common
from vision_jax.errors import ConfigError, check_no_url

# Format -> the suffix of its files.
FORMATS = {"onnx": ".onnx", "stablehlo": ".stablehlo", "timm": ".safetensors", "torchvision": ".safetensors"}
# Flag -> the formats that it is for.
_ONLY = {
    "batch": ("onnx", "stablehlo"),
    "size": ("onnx", "stablehlo"),
    "with_preprocessing": ("onnx", "stablehlo"),
    "layout": ("onnx", "stablehlo"),
    "dtype": ("onnx", "stablehlo"),
    "tolerance": ("onnx", "stablehlo"),
    "images": ("onnx", "stablehlo"),
    "opset": ("onnx",),
    "with_nms": ("onnx",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", metavar="FILE", help="the file to write: .onnx, .stablehlo or .safetensors")
    parser.add_argument("--format", choices=tuple(FORMATS), default="timm", help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE and its model card")
    parser.add_argument("--license", help="of the weights, for the model card; default: to be filled in there")
    common.add_model_arguments(parser)
    group = parser.add_argument_group("programs: onnx and stablehlo")
    group.add_argument("--batch", help="number of images, or dynamic (default): any")
    group.add_argument("--size", help="height and width of images, 224, or 800x1344; default: as in evaluation")
    group.add_argument(
        "--with_preprocessing", action="store_true", default=None, help="take uint8 pixels, NHWC, and normalize them"
    )
    group.add_argument(
        "--with_nms",
        action="store_true",
        default=None,
        help="of a detector: boxes, scores and labels after non-maximum suppression, of one image",
    )
    group.add_argument(
        "--layout", choices=("nchw", "nhwc"), help="of normalized images; default: nchw for onnx, else nhwc"
    )
    group.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of weights and computing (default: float32)"
    )
    group.add_argument("--opset", type=int, help="version of ONNX's operators (default: 18)")
    group.add_argument(
        "--tolerance", type=float, help="largest difference from JAX, as a part of the logits' standard deviation"
    )
    group.add_argument(
        "--images",
        action="append",
        help="an image, folder or archive to check with; default: the run's validation split",
    )
    arguments = common.parse(parser, argv)
    return common.run(lambda: export(arguments))


def export(arguments: argparse.Namespace) -> int:
    """Writes what the flags say; returns the exit status.

    Raises:
        ConfigError: for flags that cannot work, models that cannot be exported, and files that are there.
        DataError, CheckpointError: if a model cannot be read, what was written is wrong, or cannot be written.
    """
    if arguments.workdir is not None:
        check_no_url("--workdir", arguments.workdir)
    check_no_url("FILE", arguments.output)
    suffix = FORMATS[arguments.format]
    if not arguments.output.endswith(suffix):
        kind = "safetensors" if suffix == ".safetensors" else arguments.format
        raise ConfigError(f"FILE is {arguments.output!r}: it is written as {kind}, so its name must end in {suffix}.")
    for name, formats in _ONLY.items():
        if arguments.format not in formats:
            common.refuse(arguments, [name], f"for --format={' and '.join(formats)}")
    batch = 1 if arguments.with_nms and arguments.batch is None else _batch(arguments.batch)
    if arguments.with_nms and batch != 1:
        raise ConfigError(
            f"--batch is {arguments.batch}, and --with_nms gives the boxes of one image, as their number differs: "
            "leave --batch out."
        )
    size = None if arguments.size is None else _size(arguments.size)
    if arguments.tolerance is not None and not arguments.tolerance >= 0:
        raise ConfigError(f"--tolerance is {arguments.tolerance}: give a number from 0.")
    if arguments.with_preprocessing and arguments.layout == "nchw":
        raise ConfigError("--layout=nchw is for normalized images; with --with_preprocessing they are pixels, NHWC.")
    common.check_model_arguments(arguments)

    from vision_jax.export import card, check, onnx_file, program
    from vision_jax.export.subject import Options
    from vision_jax.export.weights import export_weights

    path = pathlib.Path(arguments.output).expanduser()
    workdir = None if arguments.workdir is None else pathlib.Path(arguments.workdir).expanduser()
    target = program.Target(path, arguments.overwrite, arguments.tolerance, arguments.license, workdir)
    target.check()
    if arguments.format == "onnx":
        onnx_file.import_onnx()  # before a model is loaded
    if size is not None and not common.is_dense(arguments):
        if size[0] != size[1]:
            raise ConfigError(
                f"--size is {size[0]}x{size[1]}, and models of whole images take squares: give one number."
            )
        arguments.overrides.append(f"--config.data.eval_size={size[0]}")
        size = None
    trained = common.load_model(arguments, needs_data=False, dense=True)
    what = f"{trained.num_classes} classes" if trained.num_classes else "without a classifier"
    if suffix == ".safetensors":
        export_weights(trained, target, arguments.format)
        hint = "" if trained.num_classes else " (for timm: num_classes=0)"
        kind = "" if trained.step is None else f", step {trained.step}, {'ema' if trained.averaged else 'raw'} weights"
        print(f"{path}: {card.title(trained)}{kind}, {what}{hint}")
        return 0
    options = Options(
        batch,
        bool(arguments.with_preprocessing),
        arguments.layout or ("nchw" if arguments.format == "onnx" else "nhwc"),
        arguments.dtype or "float32",
        size,
        bool(arguments.with_nms),
    )
    pixels = program.read_pixels(trained, arguments.images or (), size)
    if arguments.format == "onnx":
        opset = arguments.opset or onnx_file.DEFAULT_OPSET
        differences = program.export_onnx(trained, target, options, opset=opset, pixels=pixels)
        form = f"opset {opset}"
    else:
        differences = program.export_stablehlo(trained, target, options, pixels=pixels)
        form = "for cpu, cuda and tpu"
    print(f"{path}: {card.title(trained)}, {trained.origin}, {what}, {options.dtype}, {form}")
    agreement = ", ".join(f"{one.relative:.1e} ({one.images})" for one in differences)
    print(f"largest difference from JAX, {check.unit_of(trained.dense, with_nms=options.with_nms)}: {agreement}")
    return 0


def _size(text: str) -> tuple[int, int]:
    """Returns height and width that --size says.

    Raises:
        ConfigError: if it says none.
    """
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--size is {text}: give a number of pixels, or HEIGHTxWIDTH.")
    return int(parts[0]), int(parts[-1])


def _batch(text: str | None) -> int:
    """Returns the number of images that --batch says; 0: any."""
    if text is None or text == "dynamic":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch is {text!r}: give a number of images, or dynamic.")
    return int(text)

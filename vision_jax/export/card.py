"""The model card beside an export: what a model is, what it expects and how it is used, as Markdown."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence

import vision_jax
from vision_jax import build, pretrained
from vision_jax.build import TrainedModel
from vision_jax.config import store
from vision_jax.data.dense import DenseTransform
from vision_jax.data.transforms import SquareTransform
from vision_jax.export.check import SHARE, Difference, scale_of, unit_of
from vision_jax.export.detections import SIZES
from vision_jax.export.subject import FoundSubject, Subject
from vision_jax.models import registry
from vision_jax.objectives import Dense, Detection
from vision_jax.runtime import writers

LICENSE = "To be filled in: of the weights, which depends on the data that they were trained on."
# Shares of one that a card quotes, in percent: of images; of detectors; of segmenters.
_MEASURES = (*("top1", "top5", "real_top1"), *("AP", "AP50", "AP75", "mAP", "mAP07"), *("miou", "pixel_accuracy"))
_VERSIONS = ("jax", "flax", "numpy")


def versions(*more: str) -> dict[str, str]:
    """Returns the versions of what wrote an export; `more` are other packages."""
    found = {name: importlib.metadata.version(name) for name in (*_VERSIONS, *more)}
    return {"vision_jax": vision_jax.__version__, "python": platform.python_version(), **found}


def accuracy(workdir: pathlib.Path, step: int, *, averaged: bool) -> dict[str, float]:
    """Returns what was measured of a checkpoint.

    Args:
        workdir: of the run.
        step: of the checkpoint.
        averaged: of the moving average of the weights; else of the weights.

    Returns:
        the top-1 and top-5 accuracy, the average precision, or the mean IoU, and so on, of each evaluation: `val/top1`
        and others; the latest, if several.
    """
    found = {}
    for line in writers.read_metrics(workdir):
        if line["step"] != step:
            continue
        for key, value in line.items():
            measure = key.rpartition("/")[2]
            if measure.startswith("ema_") == averaged and measure.removeprefix("ema_") in _MEASURES:
                found[key] = float(value)
    return found


def card(
    trained: TrainedModel,
    file: str,
    sections: Mapping[str, str],
    measured: Mapping[str, float],
    written_by: Mapping[str, str],
    license: str | None = None,
) -> str:
    """Returns the model card of an export.

    Args:
        trained: the model.
        file: the name of what was exported.
        sections: what is said of the format, by its heading, as Markdown.
        measured: as `accuracy` returns it.
        written_by: versions of packages.
        license: of the weights; None: to be filled in.
    """
    if measured:
        rows = [f"| {key} | {100 * value:.2f} % |" for key, value in measured.items()]
        accuracy_table = "\n".join(["| measure | accuracy |", "|---|---|", *rows])
    else:
        accuracy_table = "It was not measured by the run, or the weights are of no run. To be filled in."
    text = [
        f"# {title(trained)}",
        f"`{file}`: {_classes_line(trained)}. Weights: {trained.origin}. Written on {datetime.date.today()}.",
        *(f"## {heading}\n\n{body}" for heading, body in {"Images": _images(trained), **sections}.items()),
        f"## Accuracy\n\n{accuracy_table}",
        f"## License\n\n{license or LICENSE}",
        f"## Classes\n\n{_classes(trained)}",
        "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in written_by.items()),
        "## Configuration\n\n<details><summary>of the run, as JSON</summary>\n\n```json\n"
        f"{store.to_json(trained.config)}```\n\n</details>",
    ]
    return "\n\n".join(text) + "\n"


def title(trained: TrainedModel) -> str:
    """Returns the name of the architecture; that of a detector or segmenter begins with its method."""
    name = registry.entry(trained.name).name
    network = trained.objective.network if isinstance(trained.objective, Dense) else None
    return name if network is None else f"{network.kind}_{name}"


def _classes_line(trained: TrainedModel) -> str:
    kind = {"boxes": "a detector of ", "masks": "a segmenter of "}.get(trained.dense, "")
    return f"{kind}{trained.num_classes} classes" if trained.num_classes else "no classifier: it gives features"


def _images(trained: TrainedModel) -> str:
    """Returns what is to be done with an image before the model sees it."""
    channels, data = trained.config.data.channels, trained.config.data
    colors = "RGB" if channels == 3 else "gray" if channels == 1 else f"{channels} channels"
    numbers = ["(" + ", ".join(f"{x:g}" for x in values) + ")" for values in (data.mean, data.std)]
    if trained.dense:
        return _canvases(trained, colors, numbers)
    transform = trained.preprocessing.transform
    return (
        f"{transform.size} x {transform.size} pixels, {colors}. As in evaluation, the shorter side of an image is "
        f"resized to {transform.resize} pixels ({transform.filter}, antialiased, as Pillow does it), and the center is "
        f"cropped. Then pixels are normalized: (pixels / 255 - mean) / std with mean {numbers[0]} and std {numbers[1]}."
    )


def _canvases(trained: TrainedModel, colors: str, numbers: Sequence[str]) -> str:
    """Returns what is to be done with an image before a detector or segmenter sees it."""
    transform = build.make_eval_transform(trained.config)
    assert isinstance(transform, DenseTransform)  # as the objective is of boxes or masks
    sizes = " or ".join(f"{height} x {width}" for height, width in transform.canvases)
    shorter, longer = max(transform.resizing.shorter), transform.resizing.longer
    resized = f"so that its shorter side has {shorter} pixels, or fewer where the longer one would have above {longer}"
    if transform.resizing.kind == "squash":
        resized = "to the whole canvas, whatever its aspect ratio"
    return (
        f"Canvases of {sizes} pixels, height first, {colors}. As in evaluation, an image is resized {resized} "
        "(bilinear, not antialiased, as OpenCV does it), and normalized: (pixels / 255 - mean) / std with mean "
        f"{numbers[0]} and std {numbers[1]}. It lies in the upper left corner of its canvas, and the rest is 0."
    )


def _dense_io(subject: Subject) -> str:
    """Returns what the outputs of a detector or segmenter mean."""
    objective = subject.trained.objective
    if isinstance(subject, FoundSubject):
        return _found_io(subject)
    if not isinstance(objective, Detection):
        return f"A pixel is of the class whose logit in `{subject.outputs[0]}` is the largest. "
    network = objective.network
    sizes = tuple(tuple(objective.anchor_scale * x for x in level) for level in objective.anchors.sizes)
    levels = ", ".join(f"{rows} x {columns}" for rows, columns in network.map_sizes(*subject.canvas))
    return (
        f"Anchors are in the order level, row, column, anchor: the levels have {levels} positions of "
        f"{network.num_anchors} anchors each, of the sizes {sizes} and the aspect ratios "
        f"{objective.anchors.ratios}, as torchvision's AnchorGenerator lays them out. Scores are sigmoids of logits"
        f"{', and the roots of their products with centre-ness' if len(subject.outputs) > 2 else ''}. "
    )


def _found_io(subject: FoundSubject) -> str:
    """Returns what the inputs and outputs of a detector mean that gives what it finds."""
    chosen = subject.selection
    clipped = "the canvas"
    if subject.padded:
        clipped = f"the image, of which the input `{SIZES}`, (1, 2) int64, says height and width on the canvas"
    return (
        "Of n detections, best first, where n depends on the image, `boxes` are (n, 4), x1, y1, x2 and y2 in pixels of "
        f"the canvas, clipped to {clipped}; `scores` (n,); and `labels` (n,). They are the {chosen.candidates} "
        f"best pairs of anchor and class of each level with a score above {chosen.score_threshold:g}, after "
        f"non-maximum suppression in each class at an IoU of {chosen.nms_threshold:g}, at most {chosen.detections}. "
    )


def _classes(trained: TrainedModel) -> str:
    names = pretrained.display_names(trained.class_names)
    if not names:
        return f"{trained.num_classes}; their names are not known." if trained.num_classes else "None."
    rows = "\n".join(f"{number}. {name}" for number, name in enumerate(names))
    return f"By number, from 0.\n\n<details><summary>{len(names)} names</summary>\n\n{rows}\n\n</details>"


def onnx_sections(subject: Subject, file: str, opset: int, differences: Sequence[Difference]) -> dict[str, str]:
    """Returns what the card of an ONNX file says of the format."""
    body = f"ONNX, opset {opset}. {_io(subject)}\n\n{_agreement(subject, differences)}"
    return {"Use": _onnx_example(subject, file), "Format": body}


def smaller_sections(subject: Subject, file: str, opset: int, form: str) -> dict[str, str]:
    """Returns what the card of an ONNX file that was made of another one says of the format.

    Args:
        subject: of the file that it was made of.
        file: its name.
        opset: the version of ONNX's operators.
        form: what is smaller, as sentences.
    """
    return {"Use": _onnx_example(subject, file), "Format": f"ONNX, opset {opset}. {_io(subject)} {form}"}


def stablehlo_sections(
    subject: Subject, file: str, platforms: Sequence[str], differences: Sequence[Difference]
) -> dict[str, str]:
    """Returns what the card of a StableHLO file says of the format."""
    example = f"""```python
import jax

with open("{file}", "rb") as file:
    model = jax.export.deserialize(bytearray(file.read()))
{", ".join(subject.outputs)} = model.call(images)  # {_shape_text(subject)}
```"""
    body = (
        f"StableHLO with the weights, serialized by `jax.export`, for {', '.join(platforms)}. JAX promises that "
        "versions of the next six months read it; keep the checkpoint for later ones. Load only files that you trust. "
        f"{_io(subject)}"
    )
    return {"Use": example, "Format": f"{body}\n\n{_agreement(subject, differences)}"}


def _onnx_example(subject: Subject, file: str) -> str:
    names = "[" + ", ".join(f'"{name}"' for name in subject.outputs) + "]"
    results = ", ".join(subject.outputs) if len(subject.outputs) > 1 else f"({subject.outputs[0]},)"
    sizes = ""
    if isinstance(subject, FoundSubject) and subject.padded:
        sizes = f', "{SIZES}": np.array([[height, width]])'
    return f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
{results} = session.run({names}, {{"images": images{sizes}}})  # {_shape_text(subject)}
```"""


def weights_sections(library: str) -> dict[str, str]:
    """Returns what the card of a file of weights says of the format."""
    return {"Format": f"safetensors, with the names of {library}'s state dict."}


def _shape_text(subject: Subject) -> str:
    sizes = ("batch" if not subject.options.batch else str(subject.options.batch), *map(str, subject.shape[1:]))
    kind = "pixels" if subject.options.with_preprocessing else "normalized"
    return f"({', '.join(sizes)}) {subject.dtype}, {kind}"


def _io(subject: Subject) -> str:
    axes = "(batch, channels, height, width)" if subject.channels_first else "(batch, height, width, channels)"
    inside = "Normalization is a part of it; resizing is not." if subject.options.with_preprocessing else ""
    names = ", ".join(f"`{name}`" for name in subject.outputs)
    means = _dense_io(subject) if subject.trained.dense else ""
    kinds = "float32, and int64 of labels" if isinstance(subject, FoundSubject) else "float32"
    return (
        f"Input `images`: {axes} = {_shape_text(subject)}. Output{'s' * (len(subject.outputs) > 1)} {names}: {kinds}. "
        f"{means}It computes in {subject.options.dtype}. {inside}".strip()
    )


def _agreement(subject: Subject, differences: Sequence[Difference]) -> str:
    parts = ", ".join(f"{one.relative:.1e} ({one.images})" for one in differences)
    if isinstance(subject, FoundSubject):
        return (
            "Compared with JAX in float32 on a CPU when it was written; largest difference "
            f"{unit_of(subject.trained.dense, with_nms=True)}, before NMS: {parts}. Of the same scores and boxes, at "
            f"least {1 - SHARE:.0%} of the detections are those of JAX."
        )
    return (
        "Compared with JAX in float32 on a CPU when it was written; largest difference, divided by the "
        f"{scale_of(subject.trained.dense)} of the {' and the '.join(subject.traced)}: {parts}."
    )


def metadata(subject: Subject, opset: int, packages: Mapping[str, str]) -> dict[str, str]:
    """Returns the properties that an ONNX file carries: strings, lists as JSON."""
    trained = subject.trained
    (mean, std), (height, width) = subject.normalization, subject.canvas
    return {
        "model": title(trained),
        "origin": trained.origin,
        "num_classes": str(trained.num_classes),
        "class_names": json.dumps(list(trained.class_names) if trained.num_classes else []),
        **({"finds": trained.dense, "height": str(height), "width": str(width)} if trained.dense else _crop(trained)),
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "preprocessing_inside": json.dumps(subject.options.with_preprocessing),
        "layout": "nchw" if subject.channels_first else "nhwc",
        "dtype": subject.options.dtype,
        "opset": str(opset),
        **packages,
    }


def _crop(trained: TrainedModel) -> dict[str, str]:
    """Returns how images are resized and cropped, as properties of an ONNX file."""
    transform = trained.preprocessing.transform
    return {
        "size": str(transform.size),
        "resize": str(transform.resize),
        "square": json.dumps(isinstance(transform, SquareTransform)),
        "interpolation": transform.filter,
    }

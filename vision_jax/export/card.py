"""The model card beside an export: what a model is, what it expects and how it is used, as Markdown."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence

import vision_jax
from vision_jax import pretrained
from vision_jax.build import TrainedModel
from vision_jax.config import store
from vision_jax.data.transforms import SquareTransform
from vision_jax.export.check import Difference
from vision_jax.export.subject import Subject
from vision_jax.models import registry
from vision_jax.runtime import writers

LICENSE = "To be filled in: of the weights, which depends on the data that they were trained on."
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
        the top-1 and top-5 accuracy, and so on, of each evaluation: `val/top1` and others; the latest, if several.
    """
    found = {}
    for line in writers.read_metrics(workdir):
        if line["step"] != step:
            continue
        for key, value in line.items():
            measure = key.rpartition("/")[2]
            if measure.startswith("ema_") == averaged and measure.removeprefix("ema_") in ("top1", "top5", "real_top1"):
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
        f"# {registry.entry(trained.name).name}",
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


def _classes_line(trained: TrainedModel) -> str:
    return f"{trained.num_classes} classes" if trained.num_classes else "no classifier: it gives features"


def _images(trained: TrainedModel) -> str:
    """Returns what is to be done with an image before the model sees it."""
    data, transform = trained.preprocessing, trained.preprocessing.transform
    colors = (
        "RGB" if transform.channels == 3 else "gray" if transform.channels == 1 else f"{transform.channels} channels"
    )
    numbers = ["(" + ", ".join(f"{x:g}" for x in values) + ")" for values in (data.mean, data.std)]
    return (
        f"{transform.size} x {transform.size} pixels, {colors}. As in evaluation, the shorter side of an image is "
        f"resized to {transform.resize} pixels ({transform.filter}, antialiased, as Pillow does it), and the center is "
        f"cropped. Then pixels are normalized: (pixels / 255 - mean) / std with mean {numbers[0]} and std {numbers[1]}."
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
{subject.output} = model.call(images)  # {_shape_text(subject)}
```"""
    body = (
        f"StableHLO with the weights, serialized by `jax.export`, for {', '.join(platforms)}. JAX promises that "
        "versions of the next six months read it; keep the checkpoint for later ones. Load only files that you trust. "
        f"{_io(subject)}"
    )
    return {"Use": example, "Format": f"{body}\n\n{_agreement(subject, differences)}"}


def _onnx_example(subject: Subject, file: str) -> str:
    return f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
({subject.output},) = session.run(["{subject.output}"], {{"images": images}})  # {_shape_text(subject)}
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
    return (
        f"Input `images`: {axes} = {_shape_text(subject)}. Output `{subject.output}`: float32. It computes in "
        f"{subject.options.dtype}. {inside}".strip()
    )


def _agreement(subject: Subject, differences: Sequence[Difference]) -> str:
    parts = ", ".join(f"{one.relative:.1e} ({one.images})" for one in differences)
    return (
        "Compared with JAX in float32 on a CPU when it was written; largest difference, divided by the standard "
        f"deviation of the {subject.output}: {parts}."
    )


def metadata(subject: Subject, opset: int, packages: Mapping[str, str]) -> dict[str, str]:
    """Returns the properties that an ONNX file carries: strings, lists as JSON."""
    trained, data = subject.trained, subject.trained.preprocessing
    return {
        "model": registry.entry(trained.name).name,
        "origin": trained.origin,
        "num_classes": str(trained.num_classes),
        "class_names": json.dumps(list(trained.class_names) if trained.num_classes else []),
        "size": str(data.transform.size),
        "resize": str(data.transform.resize),
        "square": json.dumps(isinstance(data.transform, SquareTransform)),
        "interpolation": data.transform.filter,
        "mean": json.dumps(list(data.mean)),
        "std": json.dumps(list(data.std)),
        "preprocessing_inside": json.dumps(subject.options.with_preprocessing),
        "layout": "nchw" if subject.channels_first else "nhwc",
        "dtype": subject.options.dtype,
        "opset": str(opset),
        **packages,
    }

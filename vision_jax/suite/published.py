"""What others have measured of published weights on the evaluation sets.

published.csv has timm's results (huggingface/pytorch-image-models, results/results-*.csv at aa4b5850, in percent), of
the models that this package has, for each size and crop that they were measured with; and mCE of torchvision's
ResNet-50 as hendrycks/robustness has it.
"""

import csv
import dataclasses
import functools
import importlib.resources
import math
import pathlib
import re
from collections.abc import Mapping

from vision_jax.data.transforms import EvalTransform

_FILES = re.compile(r"\.(safetensors|npz|pth|pt|bin)$")
_UNNAMED = ("model", "pytorch_model")  # what files on the hub are called, in a folder that has the name


@dataclasses.dataclass(frozen=True)
class Setting:
    """What weights were measured with.

    Attributes:
        size: of the images.
        crop: the share of the resized shorter side that is cropped.
        filter: "bilinear" or "bicubic".
    """

    size: int
    crop: float
    filter: str

    def flags(self) -> str:
        """Returns the flags of a command that set it."""
        values = {"size": self.size, "crop": f"{self.crop:g}", "filter": self.filter}
        return " ".join(f"--config.data.eval_{name}={value}" for name, value in values.items())

    def fits(self, transform: EvalTransform) -> bool:
        """Returns whether a preprocessing is the same."""
        mine = (self.size, math.floor(self.size / self.crop), self.filter)
        return mine == (transform.size, transform.resize, transform.filter)


Values = Mapping[str, Mapping[str, float]]  # by row and measure, such as {"val": {"top1": 80.382}}


def weights_name(path: str | None) -> str | None:
    """Returns what a file of weights says by its name that it is: a tag of timm's of which something is published.

    Args:
        path: hf://timm/NAME, or a file called NAME.safetensors, or NAME/model.safetensors.
    """
    if path is None:
        return None
    if path.startswith("hf://"):
        owner, _, rest = path.removeprefix("hf://").partition("/")
        name = re.split(r"[@/]", rest)[0] if owner == "timm" else ""
    else:
        file = pathlib.Path(path)
        name = _FILES.sub("", file.name)
        name = file.absolute().parent.name if name in _UNNAMED else name
    return name if name in _published() else None


def settings(name: str) -> list[Setting]:
    """Returns what the weights of this name were measured with."""
    return sorted(_published()[name], key=lambda setting: setting.size)


def values(name: str, transform: EvalTransform) -> Values:
    """Returns what was measured of weights with a preprocessing; empty: nothing was."""
    return next((found for setting, found in _published()[name].items() if setting.fits(transform)), {})


@functools.cache
def _published() -> dict[str, dict[Setting, Values]]:
    found: dict[str, dict[Setting, Values]] = {}
    text = (importlib.resources.files("vision_jax.suite") / "published.csv").read_text("utf-8")
    for line in csv.DictReader(text.splitlines()):
        weights, size, crop, filter_name = (line.pop(key) for key in ("weights", "size", "crop", "filter"))
        measured: dict[str, dict[str, float]] = {}
        for column, value in line.items():
            row, measure = column.split(" ")
            if value:
                measured.setdefault(row, {})[measure] = float(value)
        found.setdefault(weights, {})[Setting(int(size), float(crop), filter_name)] = measured
    return found

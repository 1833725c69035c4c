"""The crops of self-supervised recipes, against what their sources' own transforms say (references/ssl/views.json)."""

import itertools
import json
import re
from typing import Any

import pytest
from ml_collections import ConfigDict
from references.common import files
from test_recipes import recipe

from vision_jax import augment
from vision_jax.assembly.inputs import make_views
from vision_jax.augment.pipeline import BLUR_SIGMA
from vision_jax.config.plan import augmentation_fields
from vision_jax.data.views import View

CASES = {name: case for path in files("ssl", "views*.json") for name, case in json.loads(path.read_text()).items()}
# The case of references/ssl/views.json that a recipe's crops are those of.
VIEWS = {
    "barlow_twins": "barlow_twins",
    "byol:r50_300": "byol",
    "dino:vit_s16": "dino",
    "mae:vit_b": "mae",
    "mocov2:r50_200": "moco_v2",
    "mocov3:vit_b": "moco_v3_vit",
    "simclr:r50_800": "simclr",
    "simmim:vit_b": "simmim",
    "simsiam:b512": "moco_v2",
    "swav:ep800": "swav",
    "swav:two_crops_400": "swav_2x224",
    "vicreg:r50_1000": "barlow_twins",
}
# Cases without a recipe: DINO's ResNet-50 with six small crops, where the official command has eight.
WITHOUT = ("dino_resnet50",)
# What is done as the sources do it by another implementation: brightness that is added, and so on; see `views_of`.
STYLES: dict[str, dict[str, Any]] = {
    "pillow": {"blur": "Pillow ImageFilter.GaussianBlur(radius=sigma)", "solarize": (128, "uint8"), "jitter": {}},
    "simclr": {"jitter": {"brightness_mode": "multiplicative"}},
    "byol": {
        "solarize": (0.5, "[0, 1], image >= threshold is inverted"),
        "jitter": {
            "brightness_mode": "additive",
            "contrast_about": "the mean of each channel",
            "saturation_in": "HSV",
        },
    },
}


def views_of(config: ConfigDict) -> list[dict[str, Any]]:
    """Returns what the crops of an image are made by, as views.json describes it: count, and operations in order.

    A flip comes first: no other operation depends on left and right.
    """
    base = augmentation_fields(config)
    crops, found = augment.parse_crops(config.augment.crops, base) or (base,), []
    number = 0
    for view in make_views(config):
        chosen = [crops[min(number + i, len(crops) - 1)] for i in range(view.count)]
        number += view.count
        for fields, group in itertools.groupby(chosen):
            found.append({"count": len(list(group)), "ops": operations(config, view, fields)})
    return found


def operations(config: ConfigDict, view: View, fields: augment.AugmentConfig) -> list[dict[str, Any]]:
    """Returns the operations of one crop; those with a probability of zero are none."""
    crop = {"op": "random_resized_crop", "size": [view.size] * 2, "scale": list(view.scale)}
    crop |= {"ratio": [round(ratio, 6) for ratio in view.ratio]}
    crop |= {"interpolation": config.data.train_filter.removeprefix("pillow-")}
    # torchvision's filters are Pillow's, and TensorFlow's are without antialiasing, as OpenCV's.
    assert config.data.train_filter.startswith("pillow-") == (fields.style == "pillow")
    style = STYLES[fields.style]
    ranges = {
        name: [round(max(0.0, 1 - strength), 6), round(1 + strength, 6)]
        for name, strength in zip(("brightness", "contrast", "saturation"), fields.color_jitter, strict=False)
    }
    if fields.color_jitter:
        ranges["hue"] = [-fields.color_jitter[3], fields.color_jitter[3]]
    if style["jitter"].get("brightness_mode") == "additive":
        ranges["brightness"] = [-fields.color_jitter[0], fields.color_jitter[0]]
    made = [
        {"op": "flip", "p": fields.flip},
        {"op": "color_jitter", "p": fields.color_jitter_prob if ranges else 0.0, **ranges, **style["jitter"]},
        {"op": "grayscale", "p": fields.greyscale},
    ]
    taps = f"{2 * (view.size // 20) + 1} taps, zero padding"
    made.append({"op": "blur", "p": fields.blur, "sigma": list(BLUR_SIGMA), "kernel": style.get("blur", taps)})
    if fields.solarize:
        threshold, values = style["solarize"]
        made.append({"op": "solarize", "p": fields.solarize, "threshold": threshold, "range": values})
    if (*config.data.mean, *config.data.std) != (0, 0, 0, 1, 1, 1):
        made.append({"op": "normalize", "mean": list(config.data.mean), "std": list(config.data.std)})
    return [crop, *(op for op in made if op.get("p", 1))]


def plain(view: dict[str, Any]) -> dict[str, Any]:
    """Returns a view of views.json without notes and what does nothing, and with the flip before all others."""
    assert [op["op"] for op in view["ops"]] == view["order"]
    ops = [
        {key: value for key, value in op.items() if key != "note"}
        for op in view["ops"]
        if op["op"] not in ("convert_rgb", "to_tensor")
    ]
    for op in ops:
        if "brightness_mode" in op:
            op["brightness_mode"] = op["brightness_mode"].split()[0]
        if "taps" in op.get("kernel", ""):
            op["kernel"] = re.sub(r" \(.*\)", "", op["kernel"])
    ops = [op for op in ops if op.get("p", 1)]
    flips = [op for op in ops if op["op"] == "flip"]
    return {"count": view["count"], "ops": [ops[0], *flips, *(op for op in ops[1:] if op["op"] != "flip")]}


@pytest.mark.parametrize("name", VIEWS)
def test_the_crops_of_a_recipe(name: str):
    assert views_of(recipe(name)) == [plain(view) for view in CASES[VIEWS[name]]["views"]]


def test_every_case_is_that_of_a_recipe():
    assert {*VIEWS.values(), *WITHOUT} == CASES.keys()

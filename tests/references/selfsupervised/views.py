"""Crops: those of the recipes, operation by operation, against what their sources' own transforms say."""

import itertools
import re
from typing import Any

from ml_collections import ConfigDict
from test_recipes import recipe, variants

from vision_jax import augment, build
from vision_jax import config as config_lib
from vision_jax.assembly.inputs import make_views
from vision_jax.augment.pipeline import BLUR_SIGMA
from vision_jax.config.plan import augmentation_fields
from vision_jax.data.views import View

# The recipes that have the crops of a case, all of which are compared with it.
RECIPES = {
    "barlow_twins": ("barlow_twins", "vicreg:r50_1000", "vicreg:r50_100"),
    "byol": ("byol:r50_40", "byol:r50_100", "byol:r50_300", "byol:r50_1000"),
    "dino": ("dino:vit_s16", "dino:vit_s16_100"),
    "dino_resnet50": ("dino:r50_800",),
    "mae": ("mae:vit_b", "mae:vit_l"),
    "moco_v2": ("mocov2:r50_200", "mocov2:r50_800", "simsiam:b512", "simsiam:b256"),
    "moco_v3_vit": ("mocov3:vit_s", "mocov3:vit_b"),
    "simclr": ("simclr:r50_800",),
    "simmim": ("simmim:vit_b",),
    "swav": ("swav:ep800", "swav:ep400", "swav:ep200", "swav:ep100", "swav:b256_400", "swav:b256_200"),
    "swav_2x224": ("swav:two_crops_400",),
}
# The file of configs/ that has the recipes of a method.
FILES = {
    **{name: name for name in ("barlow_twins", "byol", "dino", "mae", "simclr", "simmim", "simsiam", "swav", "vicreg")},
    **{"moco_v2": "mocov2", "moco_v3": "mocov3"},
}
# What is done as the sources do it by another implementation: brightness that is added, and so on.
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
    assert view.keys() == {"name", "count", "ops", "order"}
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
    assert ops[0]["op"] == "random_resized_crop"
    flips = [op for op in ops if op["op"] == "flip"]
    return {"count": view["count"], "ops": [ops[0], *flips, *(op for op in ops[1:] if op["op"] != "flip")]}


def with_sizes(config: ConfigDict, views: list[dict[str, Any]]) -> ConfigDict:
    """Returns a recipe with the number, sizes and areas of the crops of a case, and all else its own."""
    crops = [view["ops"][0] for view in views for _ in range(view["count"])]
    groups = [
        (len(list(group)), *key) for key, group in itertools.groupby(crops, lambda op: (op["size"][0], *op["scale"]))
    ]
    if config.data.views:
        config.data.views = ",".join(f"{n}x{size}:{first}-{last}" for n, size, first, last in groups)
        config.data.image_size = groups[0][1]
    else:
        ((_, config.data.image_size, *config.data.crop_scale),) = groups
    return config


def mask_of(config: ConfigDict) -> dict[str, Any]:
    """Returns what is hidden of an image, as views.json describes it."""
    mine: Any = build.make_objective(config, 1000, config_lib.make_plan(config, 10**6))
    of = {"mask_patch": mine.mask_size, "ratio": mine.mask_ratio, "masked_of": [mine.count, mine.cells]}
    return of | {"model_patch": mine.setup.model.patch_size}


def check(name: str, about: dict[str, Any]) -> None:
    """Compares a case with all recipes that have its crops.

    A case that none of `RECIPES` is for has to be that of another recipe of the same method, at least but for the
    number, sizes and areas of its crops.
    """
    assert about.keys() <= {"method", "sources", "note", "views", "mask"}
    assert about["method"] in FILES, f"There is no reader for crops of {about['method']}."
    expected = [plain(view) for view in about["views"]]
    mask = about.get("mask")
    if name in RECIPES:
        for recipe_name in RECIPES[name]:
            config = recipe(recipe_name)
            assert views_of(config) == expected, recipe_name
            assert mask is None or mask_of(config) == mask, recipe_name
        return
    configs = [recipe(other) for other in variants(FILES[about["method"]])]
    if not any(views_of(config) == expected for config in configs):
        configs = [with_sizes(config, expected) for config in configs]
    fitting = [config for config in configs if views_of(config) == expected]
    assert fitting, f"No recipe of {about['method']} has these crops, but such as {views_of(configs[0])}"
    if mask is not None:
        for config in fitting:
            config.objective.update({"mask_size": mask["mask_patch"], "mask_ratio": mask["ratio"]})
        assert any(mask_of(config) == mask for config in fitting)

"""The tables against what other sources print of the same policies, and arguments that were computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.augment import tables
from vision_jax.augment.policies import scaled_arguments

# As torchvision prints it; a level of - is that of an operation without one.
IMAGENET = """
Posterize 0.4 8 Rotate 0.6 9, Solarize 0.6 5 AutoContrast 0.6 -, Equalize 0.8 - Equalize 0.6 -,
Posterize 0.6 7 Posterize 0.6 6, Equalize 0.4 - Solarize 0.2 4, Equalize 0.4 - Rotate 0.8 8,
Solarize 0.6 3 Equalize 0.6 -, Posterize 0.8 5 Equalize 1.0 -, Rotate 0.2 3 Solarize 0.6 8,
Equalize 0.6 - Posterize 0.4 6, Rotate 0.8 8 Color 0.4 0, Rotate 0.4 9 Equalize 0.6 -,
Equalize 0.0 - Equalize 0.8 -, Invert 0.6 - Equalize 1.0 -, Color 0.6 4 Contrast 1.0 8,
Rotate 0.8 8 Color 1.0 2, Color 0.8 8 Solarize 0.8 7, Sharpness 0.4 7 Invert 0.6 -,
ShearX 0.6 5 Equalize 1.0 -, Color 0.4 0 Equalize 0.6 -, Equalize 0.4 - Solarize 0.2 4,
Solarize 0.6 5 AutoContrast 0.6 -, Invert 0.6 - Equalize 1.0 -, Color 0.6 4 Contrast 1.0 8,
Equalize 0.8 - Equalize 0.6 -
"""
# As the paper's table 7 and Google's code print it.
CIFAR10 = """
Invert 0.1 7 Contrast 0.2 6, Rotate 0.7 2 TranslateX 0.3 9, Sharpness 0.8 1 Sharpness 0.9 3,
ShearY 0.5 8 TranslateY 0.7 9, AutoContrast 0.5 8 Equalize 0.9 2, ShearY 0.2 7 Posterize 0.3 7,
Color 0.4 3 Brightness 0.6 7, Sharpness 0.3 9 Brightness 0.7 9, Equalize 0.6 5 Equalize 0.5 1,
Contrast 0.6 7 Sharpness 0.6 5, Color 0.7 7 TranslateX 0.5 8, Equalize 0.3 7 AutoContrast 0.4 8,
TranslateY 0.4 3 Sharpness 0.2 6, Brightness 0.9 6 Color 0.2 8, Solarize 0.5 2 Invert 0.0 3,
Equalize 0.2 0 AutoContrast 0.6 0, Equalize 0.2 8 Equalize 0.6 4, Color 0.9 9 Equalize 0.6 6,
AutoContrast 0.8 4 Solarize 0.2 8, Brightness 0.1 3 Color 0.7 0, Solarize 0.4 5 AutoContrast 0.9 3,
TranslateY 0.9 9 TranslateY 0.7 9, AutoContrast 0.9 2 Solarize 0.8 3, Equalize 0.8 8 Invert 0.1 3,
TranslateY 0.7 9 AutoContrast 0.9 1
"""
# As Google's EfficientNet code prints it.
V0 = """
Equalize 0.8 1 ShearY 0.8 4, Color 0.4 9 Equalize 0.6 3, Color 0.4 1 Rotate 0.6 8, Solarize 0.8 3 Equalize 0.4 7,
Solarize 0.4 2 Solarize 0.6 2, Color 0.2 0 Equalize 0.8 8, Equalize 0.4 8 SolarizeAdd 0.8 3, ShearX 0.2 9 Rotate 0.6 8,
Color 0.6 1 Equalize 1.0 2, Invert 0.4 9 Rotate 0.6 0, Equalize 1.0 9 ShearY 0.6 3, Color 0.4 7 Equalize 0.6 0,
Posterize 0.4 6 AutoContrast 0.4 7, Solarize 0.6 8 Color 0.6 9, Solarize 0.2 4 Rotate 0.8 9,
Rotate 1.0 7 TranslateY 0.8 9, ShearX 0.0 0 Solarize 0.8 4, ShearY 0.8 0 Color 0.6 4, Color 1.0 0 Rotate 0.6 2,
Equalize 0.8 4 Equalize 0.0 8, Equalize 1.0 4 AutoContrast 0.6 2, ShearY 0.4 7 SolarizeAdd 0.6 7,
Posterize 0.8 2 Solarize 0.6 10, Solarize 0.6 8 Equalize 0.6 1, Color 0.8 6 Rotate 0.4 5
"""


def simplified(policy: tuple[tables.SubPolicy, ...]) -> list[list[tuple[str, float, float | None]]]:
    """Drops what sources write differently: the variant of an operation, and levels without a meaning."""
    without_level = ("AutoContrast", "Equalize", "Invert")
    return [
        [(name.removesuffix("Original").removesuffix("Rel"), p, None if name in without_level else level)
         for name, p, level in sub_policy]
        for sub_policy in policy
    ]  # fmt: skip


def printed(text: str) -> list[list[tuple[str, float, float | None]]]:
    sub_policies = [line.split() for line in text.split(",")]
    parsed = [
        [
            (w[0], float(w[1]), -1.0 if w[2] == "-" else float(w[2])),
            (w[3], float(w[4]), -1.0 if w[5] == "-" else float(w[5])),
        ]
        for w in sub_policies
    ]
    return simplified(tuple(tuple(s) for s in parsed))


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (tables.AUTO_AUGMENT["autoaugment"], IMAGENET),
        (tables.AUTO_AUGMENT["v0"], V0),
        (tables.AUTO_AUGMENT_CIFAR10, CIFAR10),
    ],
    ids=["imagenet", "v0", "cifar10"],
)
def test_auto_augment_is_as_published(policy: tuple[tables.SubPolicy, ...], text: str):
    assert len(policy) == 25
    assert simplified(policy) == printed(text)


def test_variants_ending_in_r_differ_in_posterize_alone():
    for name in ("original", "v0"):
        pairs = zip(tables.AUTO_AUGMENT[name], tables.AUTO_AUGMENT[name + "r"], strict=True)
        changed = [(old[0], new[0]) for a, b in pairs for old, new in zip(a, b, strict=True) if old != new]
        assert {new for _, new in changed} == {"PosterizeIncreasing"}
        assert all(old.startswith("Posterize") for old, _ in changed)
        assert len(changed) == {"original": 5, "v0": 2}[name]


@pytest.mark.parametrize(
    ("table", "operations"),
    [
        (
            [tables.TIMM[name] for name in tables.RAND_AUGMENT_INCREASING],
            "autocontrast equalize invert rotate posterize solarize solarize_add color contrast brightness sharpness "
            "shear_x shear_y translate_x translate_y",
        ),
        (
            [tables.TIMM[name] for name in tables.RAND_AUGMENT],
            "autocontrast equalize invert rotate posterize solarize solarize_add color contrast brightness sharpness "
            "shear_x shear_y translate_x translate_y",
        ),
        (
            tables.TRIVIAL_AUGMENT_WIDE.values(),
            "identity shear_x shear_y translate_x translate_y rotate brightness color contrast sharpness posterize "
            "solarize autocontrast equalize",
        ),
        (
            tables.AUGMIX.values(),
            "autocontrast equalize posterize rotate solarize shear_x shear_y translate_x translate_y",
        ),
    ],
    ids=["rand increasing", "rand", "trivialaugment", "augmix"],
)
def test_lists_of_operations_are_as_published(table: list[tables.Scale], operations: str):
    assert [scale.operation for scale in table] == operations.split()


# (table, name, level, sign, height, width, argument): by hand from the sources' formulas.
BY_HAND = [
    (tables.TIMM, "Rotate", 9, 1, 9, 9, 27.0),
    (tables.TIMM, "Rotate", 9, -1, 9, 9, -27.0),
    (tables.TIMM, "Posterize", 9, 1, 9, 9, 3),  # int(3.6)
    (tables.TIMM, "Posterize", 10, 1, 9, 9, 4),
    (tables.TIMM, "PosterizeIncreasing", 9, 1, 9, 9, 1),
    (tables.TIMM, "PosterizeIncreasing", 10, -1, 9, 9, 0),
    (tables.TIMM, "PosterizeIncreasing", 5, 1, 9, 9, 2),
    (tables.TIMM, "PosterizeOriginal", 8, 1, 9, 9, 7),  # int(3.2) + 4
    (tables.TIMM, "Solarize", 5, 1, 9, 9, 128),
    (tables.TIMM, "Solarize", 3, 1, 9, 9, 76),  # int(76.8)
    (tables.TIMM, "SolarizeIncreasing", 9, 1, 9, 9, 26),  # 256 - int(230.4)
    (tables.TIMM, "SolarizeIncreasing", 10, 1, 9, 9, 0),
    (tables.TIMM, "SolarizeAdd", 9, 1, 9, 9, 99),
    (tables.TIMM, "SolarizeAdd", 9.5, 1, 9, 9, 104),  # int(104.5)
    (tables.TIMM, "SolarizeAdd", 15, 1, 9, 9, 128),  # at most
    (tables.TIMM, "Color", 0, 1, 9, 9, 0.1),
    (tables.TIMM, "Contrast", 8, -1, 9, 9, 1.54),
    (tables.TIMM, "ColorIncreasing", 9, 1, 9, 9, 1.81),
    (tables.TIMM, "ContrastIncreasing", 9, -1, 9, 9, 0.19),
    (tables.TIMM, "BrightnessIncreasing", 10, -1, 9, 9, 0.1),
    (tables.TIMM, "SharpnessIncreasing", 15, -1, 9, 9, 0.1),  # at least
    (tables.TIMM, "ShearX", 9, -1, 9, 9, -0.27),
    (tables.TIMM, "ShearY", 10, 1, 9, 9, 0.3),
    (tables.TIMM, "TranslateXRel", 10, 1, 100, 200, 90),
    (tables.TIMM, "TranslateYRel", 5, -1, 100, 200, -22.5),
    (tables.TORCHVISION, "Rotate", 9, -1, 9, 9, -30),
    (tables.TORCHVISION, "Posterize", 7, 1, 9, 9, 5),  # 8 - round(3.11)
    (tables.TORCHVISION, "Posterize", 8, 1, 9, 9, 4),  # 8 - round(3.56)
    (tables.TORCHVISION, "Solarize", 3, 1, 9, 9, 170),
    (tables.TORCHVISION, "Brightness", 9, -1, 9, 9, 0.1),
    (tables.TORCHVISION, "Color", 3, 1, 9, 9, 1.3),
    (tables.TORCHVISION, "ShearY", 9, 1, 9, 9, 0.3),
    (tables.TORCHVISION, "TranslateX", 9, -1, 331, 331, -150),
    (tables.TORCHVISION, "TranslateX", 9, 1, 99, 32, 14),  # int(14.50)
    (tables.TORCHVISION, "TranslateY", 9, 1, 32, 99, 14),
    (tables.TRIVIAL_AUGMENT_WIDE, "ShearX", 30, 1, 9, 9, 0.99),
    (tables.TRIVIAL_AUGMENT_WIDE, "TranslateX", 30, -1, 9, 9, -32),
    (tables.TRIVIAL_AUGMENT_WIDE, "TranslateY", 14, -1, 9, 9, -14),  # int(14.93)
    (tables.TRIVIAL_AUGMENT_WIDE, "Rotate", 10, 1, 9, 9, 45),
    (tables.TRIVIAL_AUGMENT_WIDE, "Contrast", 30, -1, 9, 9, 0.01),
    (tables.TRIVIAL_AUGMENT_WIDE, "Posterize", 30, 1, 9, 9, 2),
    (tables.TRIVIAL_AUGMENT_WIDE, "Posterize", 12, 1, 9, 9, 6),  # 8 - round(2.4)
    (tables.TRIVIAL_AUGMENT_WIDE, "Posterize", 13, 1, 9, 9, 5),  # 8 - round(2.6)
    (tables.TRIVIAL_AUGMENT_WIDE, "Solarize", 1, 1, 9, 9, 246.5),
    (tables.AUGMIX, "Posterize", 3, 1, 9, 9, 3),  # 4 - int(1.2)
    (tables.AUGMIX, "Rotate", 2.99, -1, 9, 9, -8),  # int(8.97)
    (tables.AUGMIX, "Solarize", 3, 1, 9, 9, 180),  # 256 - int(76.8)
    (tables.AUGMIX, "ShearX", 3, -1, 9, 9, -0.09),
    (tables.AUGMIX, "TranslateX", 3, -1, 9, 224, -22),  # int(22.4)
    (tables.AUGMIX, "TranslateY", 3, 1, 224, 9, 22),
    (tables.AUGMIX, "TranslateX", 3.6, 1, 9, 25, 3),  # int(3.0), which is 2.9999998 in float32
    (tables.AUGMIX, "TranslateY", 7.2, -1, 25, 9, -6),
]


@pytest.mark.parametrize(("table", "name", "level", "sign", "height", "width", "argument"), BY_HAND)
def test_arguments_at_levels(
    table: dict[str, tables.Scale], name: str, level: float, sign: int, height: int, width: int, argument: float
):
    position = jnp.array([list(table).index(name)])
    levels, signs = jnp.array([level], jnp.float32), jnp.array([sign], jnp.float32)
    result = scaled_arguments(list(table.values()), position, levels, signs, height, width)
    np.testing.assert_allclose(result, [argument], atol=1e-4)

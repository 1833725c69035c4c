"""The published tables of the augmentation policies: what each operation's argument is at a level, and what is drawn.

Sources: timm `data/auto_augment.py` (itself after Google's AutoAugment and EfficientNet code), torchvision
`transforms/autoaugment.py`, google-research/augmix `augmentations.py`.
"""

import math
from dataclasses import dataclass

# (name in the policy's scales, probability of applying it, level), one after the other.
SubPolicy = tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Scale:
    """What the argument of an operation is at a level: base + sign * slope * level * extent.

    Attributes:
        operation: a name of `ops.OPERATIONS`.
        slope, base: see above.
        of: `width` or `height` of the image in pixels is the extent; nothing: it is 1.
        signed: the sign is -1 or 1 at random; otherwise it is 1.
        rounding: what is done to slope * level * extent: `cut` cuts it to an integer, `nearest` rounds it.
        least, most: the argument is not less, not more.
    """

    operation: str
    slope: float = 0.0
    base: float = 0.0
    of: str = ""
    signed: bool = False
    rounding: str = ""
    least: float = -math.inf
    most: float = math.inf


# timm; levels are from 0 to 10. `Increasing` ones are stronger at higher levels, as their plain ones are not.
TIMM = {
    "AutoContrast": Scale("autocontrast"),
    "Equalize": Scale("equalize"),
    "Invert": Scale("invert"),
    "Rotate": Scale("rotate", 3.0, signed=True),
    "Posterize": Scale("posterize", 0.4, rounding="cut", least=0, most=8),
    "PosterizeIncreasing": Scale("posterize", -0.4, 4, rounding="cut", least=0, most=8),
    "PosterizeOriginal": Scale("posterize", 0.4, 4, rounding="cut", least=0, most=8),
    "Solarize": Scale("solarize", 25.6, rounding="cut"),
    "SolarizeIncreasing": Scale("solarize", -25.6, 256, rounding="cut"),
    "SolarizeAdd": Scale("solarize_add", 11.0, rounding="cut", most=128),
    "Color": Scale("color", 0.18, 0.1),
    "ColorIncreasing": Scale("color", 0.09, 1, signed=True, least=0.1),
    "Contrast": Scale("contrast", 0.18, 0.1),
    "ContrastIncreasing": Scale("contrast", 0.09, 1, signed=True, least=0.1),
    "Brightness": Scale("brightness", 0.18, 0.1),
    "BrightnessIncreasing": Scale("brightness", 0.09, 1, signed=True, least=0.1),
    "Sharpness": Scale("sharpness", 0.18, 0.1),
    "SharpnessIncreasing": Scale("sharpness", 0.09, 1, signed=True, least=0.1),
    "ShearX": Scale("shear_x", 0.03, signed=True),
    "ShearY": Scale("shear_y", 0.03, signed=True),
    "TranslateXRel": Scale("translate_x", 0.045, of="width", signed=True),
    "TranslateYRel": Scale("translate_y", 0.045, of="height", signed=True),
}

RAND_AUGMENT = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
RAND_AUGMENT_INCREASING = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"),
    *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)

# The policy that AutoAugment found for ImageNet.
_ORIGINAL: tuple[SubPolicy, ...] = (
    (("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("PosterizeOriginal", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("PosterizeOriginal", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)

# The policy of Google's EfficientNet code for ImageNet.
_V0: tuple[SubPolicy, ...] = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)


def _increasing_posterize(policy: tuple[SubPolicy, ...]) -> tuple[SubPolicy, ...]:
    """Returns timm's variants whose name ends in r: they take the posterize that is stronger at higher levels."""
    increasing = {"Posterize": "PosterizeIncreasing", "PosterizeOriginal": "PosterizeIncreasing"}
    return tuple(tuple((increasing.get(name, name), p, level) for name, p, level in sub) for sub in policy)


AUTO_AUGMENT = {
    "autoaugment": _ORIGINAL,
    "original": _ORIGINAL,
    "originalr": _increasing_posterize(_ORIGINAL),
    "v0": _V0,
    "v0r": _increasing_posterize(_V0),
}

# torchvision's AutoAugment; levels are the bins 0 to 9. A translation is by up to 150 pixels of 331.
TORCHVISION = {
    "AutoContrast": Scale("autocontrast"),
    "Equalize": Scale("equalize"),
    "Invert": Scale("invert"),
    "Rotate": Scale("rotate", 30 / 9, signed=True),
    "Posterize": Scale("posterize", -4 / 9, 8, rounding="nearest"),
    "Solarize": Scale("solarize", -255 / 9, 255),
    "Color": Scale("color", 0.1, 1, signed=True),
    "Contrast": Scale("contrast", 0.1, 1, signed=True),
    "Brightness": Scale("brightness", 0.1, 1, signed=True),
    "Sharpness": Scale("sharpness", 0.1, 1, signed=True),
    "ShearX": Scale("shear_x", 0.3 / 9, signed=True),
    "ShearY": Scale("shear_y", 0.3 / 9, signed=True),
    "TranslateX": Scale("translate_x", 150 / 331 / 9, of="width", signed=True, rounding="cut"),
    "TranslateY": Scale("translate_y", 150 / 331 / 9, of="height", signed=True, rounding="cut"),
}

# The policy that AutoAugment found for CIFAR-10. Levels of operations without an argument are 0.
AUTO_AUGMENT_CIFAR10: tuple[SubPolicy, ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)

# torchvision's TrivialAugmentWide; levels are the bins 0 to 30.
TRIVIAL_AUGMENT_WIDE = {
    "Identity": Scale("identity"),
    "ShearX": Scale("shear_x", 0.99 / 30, signed=True),
    "ShearY": Scale("shear_y", 0.99 / 30, signed=True),
    "TranslateX": Scale("translate_x", 32 / 30, signed=True, rounding="cut"),
    "TranslateY": Scale("translate_y", 32 / 30, signed=True, rounding="cut"),
    "Rotate": Scale("rotate", 135 / 30, signed=True),
    "Brightness": Scale("brightness", 0.99 / 30, 1, signed=True),
    "Color": Scale("color", 0.99 / 30, 1, signed=True),
    "Contrast": Scale("contrast", 0.99 / 30, 1, signed=True),
    "Sharpness": Scale("sharpness", 0.99 / 30, 1, signed=True),
    "Posterize": Scale("posterize", -6 / 30, 8, rounding="nearest"),
    "Solarize": Scale("solarize", -255 / 30, 255),
    "AutoContrast": Scale("autocontrast"),
    "Equalize": Scale("equalize"),
}

# AugMix; levels are from 0 to 10. Color, contrast, brightness and sharpness are left out by its authors, because the
# test images of ImageNet-C are changed in these.
AUGMIX = {
    "AutoContrast": Scale("autocontrast"),
    "Equalize": Scale("equalize"),
    "Posterize": Scale("posterize", -0.4, 4, rounding="cut"),
    "Rotate": Scale("rotate", 3.0, signed=True, rounding="cut"),
    "Solarize": Scale("solarize", -25.6, 256, rounding="cut"),
    "ShearX": Scale("shear_x", 0.03, signed=True),
    "ShearY": Scale("shear_y", 0.03, signed=True),
    "TranslateX": Scale("translate_x", 1 / 30, of="width", signed=True, rounding="cut"),
    "TranslateY": Scale("translate_y", 1 / 30, of="height", signed=True, rounding="cut"),
}

"""Shows every augmentation in one picture: `python -m vision_jax preview --output=preview.png`.

There is a row for each operation at several arguments, for each policy with several draws, and for what the fields of
the configuration do. `--policy=rand-m15-n3` shows that one alone.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from vision_jax.errors import ConfigError, DataError, VisionJaxError, check_no_url, check_output, reason
from vision_jax.report.sheet import Row, contact_sheet

if TYPE_CHECKING:
    import jax

COLUMNS = 6
_POLICIES = (
    *("rand-m9-mstd0.5-inc1", "rand-m15-n3", "autoaugment", "v0", "autoaugment_cifar10", "trivialaugment_wide"),
    *("augmix", "3augment"),
)
# Arguments that policies use, from weak to strong; translations are shares of the image's size.
_ARGUMENTS: dict[str, tuple[float, ...]] = {
    "posterize": (7, 5, 4, 3, 2, 1),
    "solarize": (255, 204, 153, 128, 51, 0),
    "solarize_add": (11, 33, 55, 77, 99, 110),
    "contrast": (0.1, 0.5, 0.8, 1.2, 1.5, 1.9),
    "brightness": (0.1, 0.5, 0.8, 1.2, 1.5, 1.9),
    "color": (0, 0.5, 0.8, 1.2, 1.5, 1.9),
    "sharpness": (0, 0.5, 0.8, 1.2, 1.5, 1.9),
    "shear_x": (-0.3, -0.1, 0.1, 0.3, 0.6, 0.99),
    "shear_y": (-0.3, -0.1, 0.1, 0.3, 0.6, 0.99),
    "translate_x": (-0.45, -0.1, 0.1, 0.2, 0.3, 0.45),
    "translate_y": (-0.45, -0.1, 0.1, 0.2, 0.3, 0.45),
    "rotate": (-30, -10, 10, 30, 90, 135),
}
# Augmentation -> the fields of `AugmentConfig` that show it.
_FIELDS: dict[str, dict[str, object]] = {
    "flip": {"flip": 0.5},
    "col_out": {"col_out": 0.15},
    "color_jitter": {"color_jitter": (0.4, 0.4, 0.4)},
    "color_jitter with hue": {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
    "greyscale": {"greyscale": 0.5},
    "solarize": {"solarize": 0.5},
    "blur": {"blur": 1.0},
    "simclr": {"style": "simclr", "color_jitter": (0.8, 0.8, 0.8, 0.2), "greyscale": 0.2, "blur": 0.5},
    "byol": {"style": "byol", "color_jitter": (0.4, 0.4, 0.2, 0.1), "greyscale": 0.2, "blur": 0.5, "solarize": 0.2},
    "erase const": {"erase": 1.0},
    "erase pixel, 3": {"erase": 1.0, "erase_mode": "pixel", "erase_count": 3},
    "mixup 0.8, elem": {"mixup": 0.8, "mix_mode": "elem"},
    "cutmix 1, elem": {"cutmix": 1.0, "mix_mode": "elem"},
    "both, pair": {"mixup": 0.8, "cutmix": 1.0, "mix_mode": "pair"},
    "both, batch": {"mixup": 0.8, "cutmix": 1.0, "mix_mode": "batch"},
}


def load_images(path: str | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image that is shown and a partner to mix it with, both (size, size, 3) uint8.

    Args:
        path: of an image file; None: both of scikit-learn's photographs.
        size: height and width.

    Raises:
        DataError: if the file cannot be read.
    """
    from sklearn.datasets import load_sample_images

    temple, flower = (PIL.Image.fromarray(photograph) for photograph in load_sample_images().images)
    image = temple
    if path is not None:
        try:
            image = PIL.Image.open(path).convert("RGB")
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise DataError(f"Cannot read {path}: {reason(error)}. Give another --image.") from error
    first, second = (np.asarray(_crop_square(each, size)) for each in (image, flower))
    return first, second


def _crop_square(image: PIL.Image.Image, size: int) -> PIL.Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), PIL.Image.Resampling.BICUBIC, box=box, reducing_gap=3)


def _jit(function: Callable) -> Callable:
    """Compiles quickly rather than well: everything here runs once."""
    import jax

    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def operation_rows(image: np.ndarray) -> list[Row]:
    """Returns a row for each operation, and one for those that have no argument."""
    from vision_jax.augment.ops import OPERATIONS, apply_operation

    apply = _jit(lambda operation, argument: apply_operation(image, operation, argument, fill=(124, 116, 104)))
    without = ("identity", "autocontrast", "equalize", "invert")
    rows: list[Row] = [("no argument", [apply(OPERATIONS.index(name), 0.0) for name in without], without)]
    for name, arguments in _ARGUMENTS.items():
        extent = image.shape[1] if name.startswith("translate") else 1
        shown = [apply(OPERATIONS.index(name), argument * extent) for argument in arguments]
        rows.append((name, shown, [f"{argument * extent:g}" for argument in arguments]))
    return rows


def policy_row(name: str, image: np.ndarray) -> Row:
    """Returns several draws of a policy."""
    import jax
    import jax.numpy as jnp

    from vision_jax import augment

    keys = augment.example_keys(0, jnp.asarray(0), COLUMNS)
    policy = _jit(jax.vmap(augment.create_policy(name), in_axes=(0, None)))
    return name, list(policy(keys, image)), [""] * COLUMNS


def field_row(name: str, fields: dict[str, object], image: np.ndarray, partner: np.ndarray) -> Row:
    """Returns several draws of what some fields of the configuration do, with the targets of mixed images below."""
    import jax
    import jax.numpy as jnp

    from vision_jax import augment

    augmentation = augment.create_augmentation(augment.AugmentConfig(**fields))  # type: ignore[arg-type]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def step(images: "jax.Array") -> "tuple[jax.Array, jax.Array]":
        keys = augment.example_keys(0, jnp.asarray(0), COLUMNS)
        images = augment.normalize(jax.vmap(augmentation.augment_image)(keys, images), mean, std)
        images = jax.vmap(augmentation.after_normalize)(keys, images)
        images = augmentation.col_out(keys[0], images)
        images, targets = augmentation.mix(keys[0], images, jnp.eye(2)[jnp.arange(COLUMNS) // (COLUMNS // 2)])
        pixels = (images * jnp.array(std) + jnp.array(mean)) * 255
        return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8), targets

    halves = [image] * (COLUMNS // 2) + [partner] * (COLUMNS // 2)
    mixes = any(field in fields for field in ("mixup", "cutmix"))
    shown, targets = _jit(step)(np.stack(halves if mixes else [image] * COLUMNS))
    labels = [f"{first:.2f} / {second:.2f}" if mixes else "" for first, second in np.asarray(targets)]
    return name, list(shown), labels


def make_rows(image: np.ndarray, partner: np.ndarray, policy: str | None) -> list[Row]:
    """Returns the rows of the picture: those of one policy, or all."""
    if policy is not None:
        return [policy_row(policy, image)]
    rows = operation_rows(image) + [policy_row(name, image) for name in _POLICIES]
    size = image.shape[0]
    fields = {
        **_FIELDS,
        "cutout, a third": {"cutout": size // 3},
        "shift, an eighth": {"shift": size // 8},
        "shift, reflect": {"shift": size // 8, "shift_mode": "reflect"},
    }
    return rows + [field_row(name, values, image, partner) for name, values in fields.items()]


def write_preview(
    output: pathlib.Path, *, image: str | None = None, policy: str | None = None, size: int = 160
) -> None:
    """Writes the picture.

    Args:
        output: the file; its ending says the format.
        image: of an image file; None: one of scikit-learn's photographs.
        policy: show this policy alone.
        size: height and width of each image, in pixels.

    Raises:
        ConfigError: if there is no such policy or format.
        DataError: if a file cannot be read or written.
    """
    if output.suffix.lower() not in PIL.Image.registered_extensions():
        raise ConfigError(f"The output is {str(output)!r}: give a file whose ending is a format, such as preview.png.")
    check_output("--output", output)
    sheet = contact_sheet(make_rows(*load_images(image, size), policy), size, COLUMNS)
    try:
        sheet.save(output)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot write {output}: {reason(error)}. Give another --output.") from error
    print(f"{output}: {sheet.width} x {sheet.height} pixels")


def _size(text: str) -> int:
    if not text.isdigit() or not 32 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 32 to 1024")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vision_jax preview",
        description="Shows every augmentation in one picture.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output", default="preview.png", help="the picture (default: preview.png)")
    add("--image", help="what is augmented (default: a photograph of scikit-learn's)")
    add("--policy", help="show this policy alone, such as rand-m9-mstd0.5-inc1")
    add("--size", type=_size, default=160, help="height and width of each image, in pixels (default: 160)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        check_no_url("--output", arguments.output)
        check_no_url("--image", arguments.image or "")
        output = pathlib.Path(arguments.output).expanduser()
        write_preview(output, image=arguments.image, policy=arguments.policy, size=arguments.size)
    except VisionJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

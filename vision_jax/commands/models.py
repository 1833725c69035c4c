"""Prints a table of the models: `python -m vision_jax models 'resnet*'`.

Multiply-adds are those of convolutions and matrix products for one image of the default size, those with padding
included, as published ones are counted. Top-1 is published: after it comes whose weights those are. What is slow to
count is kept in facts.json, with the published top-1.
"""

import argparse
import importlib.resources
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vision_jax.devices import flops
from vision_jax.errors import ConfigError
from vision_jax.models import registry


def multiply_adds(name: str, size: int | None = None) -> int:
    """Counts the multiply-adds of a model for one image, in evaluation.

    Args:
        name: of the model.
        size: height and width; None: the model's default.
    """
    size = size or registry.entry(name).input.size
    options = {"img_size": size} if "img_size" in registry.option_names(name) else {}
    model = registry.create_model(name, **options)
    image = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, image)
    return flops.multiply_adds(jaxpr)


def facts(name: str) -> dict[str, Any]:
    """Returns what is known of a model: `parameters`, `multiply_adds`, and where there are, `top1` and its `source`."""
    known = read_facts().get(registry.entry(name).name, {})
    return known if "parameters" in known else count(name)


def count(name: str) -> dict[str, Any]:
    """Counts the parameters and the multiply-adds of a model of 1,000 classes, or of its default number."""
    model, size = registry.create_model(name), registry.entry(name).input.size
    image = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)["params"]
    return {"parameters": sum(x.size for x in jax.tree.leaves(params)), "multiply_adds": multiply_adds(name)}


def read_facts() -> dict[str, dict[str, Any]]:
    """Reads facts.json: by model, see `facts`."""
    return json.loads((importlib.resources.files("vision_jax.models") / "facts.json").read_text())


def update_facts() -> None:
    """Counts all models again and writes facts.json; published top-1 stay. For who adds a model."""
    known = read_facts()
    lines = [f'"{name}": {json.dumps({**known.get(name, {}), **count(name)})}' for name in registry.list_models()]
    path = importlib.resources.files("vision_jax.models") / "facts.json"
    with open(str(path), "w") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def table(pattern: str) -> str:
    """Returns the table of the models whose names match a pattern of `fnmatch`.

    Raises:
        ConfigError: if there is none.
    """
    names = registry.list_models(pattern)
    if not names:
        raise ConfigError(f"No model matches {pattern!r}; python -m vision_jax models lists them all.")
    lines = [f"{'name':36} {'parameters':>12} {'multiply-adds':>14} {'size':>5} {'top-1':>7}  of"]
    for name in names:
        known = facts(name)
        top1, source = (f"{known['top1']:.2f} %", known["source"]) if "top1" in known else ("", "")
        lines.append(
            f"{name:36} {known['parameters']:12,} {known['multiply_adds'] / 1e9:12.3f} G "
            f"{registry.entry(name).input.size:5} {top1:>7}  {source}"
        )
    other = sorted((alias, name) for alias, name in registry.aliases().items() if name in names)
    if other:
        lines += ["", "Also known as:"] + [f"{alias:36} {name}" for alias, name in other]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser("python -m vision_jax models", description=__doc__.partition("\n\n")[2])
    parser.add_argument("pattern", nargs="?", default="*", help="of names, such as 'resnet*'")
    parser.add_argument("--update", action="store_true", help="count all models again, into facts.json")
    arguments = parser.parse_args(argv)
    try:
        if arguments.update:
            update_facts()
        print(table(arguments.pattern))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

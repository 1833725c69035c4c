"""Reads what a method keeps beside its backbone, such as a decoder, from a file of the method's authors."""

import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from vision_jax.errors import DataError
from vision_jax.pretrained import files, naming
from vision_jax.pretrained.tensors import assemble, tensors_of, to_numpy

log = logging.getLogger(__name__)


def load_heads(
    path: str | pathlib.Path, variables: Mapping[str, Any], official_name: Callable[[str], str | None]
) -> dict[str, Any]:
    """Reads the variables of heads, if a file has them.

    Args:
        path: see `load`.
        variables: `params` and `batch_stats` of the heads alone, arrays or their shapes.
        official_name: from the name that torch would have for a tensor here, such as "decoder.norm.weight", to that in
            the file, behind whatever prefix; None: it is not read.

    Returns:
        `params` and `batch_stats`, float32; both are empty if the file has no heads.

    Raises:
        DataError: if it has some of the tensors but not all, or of other shapes.
    """
    names = {tensor: name for tensor in tensors_of(variables) if (name := official_name(tensor.name)) is not None}
    if not names:
        return {"params": {}, "batch_stats": {}}
    file = files.read(path)
    place = naming.find(file.tensors, {"authors": list(names.values())})
    if not place.matches:
        log.info("%s: there is nothing in it but the backbone: what is beside it is new.", path)
        return {"params": {}, "batch_stats": {}}
    values, wrong = {}, []
    for tensor, name in names.items():
        value = file.tensors.get(place.prefix + name)
        if value is None:
            wrong.append(f"{name} is missing")
        elif tuple(value.shape) != tensor.shape:
            wrong.append(f"{name} has the shape {tuple(value.shape)}, not {tensor.shape}")
        else:
            values[tensor.name] = to_numpy(value)
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} of the {len(names)} tensors beside the backbone do not fit, such as {wrong[0]}: set "
            "the options of the objective to those of the file."
        )
    log.info("%s: %d tensors beside the backbone are read, such as %s.", path, len(names), next(iter(names.values())))
    return assemble(list(names), values)

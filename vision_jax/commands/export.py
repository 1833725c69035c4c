"""Writes a checkpoint as weights for torch: `python -m vision_jax export --format=timm --workdir=runs/resnet50 FILE`.

FILE is a safetensors file that `timm.create_model(NAME, num_classes=N, checkpoint_path=FILE)` loads, or, with
`--format=torchvision`, torchvision's model by `load_state_dict(safetensors.torch.load_file(FILE))`. A training here
starts from it with `--config.model.pretrained=FILE`. Exit status: 0 done, 1 failed, 2 wrong flags.
"""

import argparse
import contextlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

from vision_jax.errors import CheckpointError, ConfigError, VisionJaxError, check_no_url

log = logging.getLogger(__name__)


def export(
    workdir: str | pathlib.Path,
    output: str | pathlib.Path,
    library: str = "timm",
    *,
    step: int | str | None = None,
    weights: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint as a safetensors file.

    Args:
        workdir: of the run.
        output: the file.
        library: "timm" or "torchvision": whose names the tensors get.
        step: of the checkpoint, or "best"; None: the latest.
        weights: "raw", or "ema": their moving average; None: that if there is one.
        overwrite: replace a file that is there.

    Raises:
        CheckpointError: if there is no such checkpoint, or it or the file cannot be used.
        ConfigError: if the library does not have the model.
    """
    import jax
    import safetensors.numpy

    import vision_jax
    from vision_jax import build, pretrained
    from vision_jax import config as config_lib
    from vision_jax.devices import backend, sharding
    from vision_jax.models import registry
    from vision_jax.runtime.checkpoint import Checkpointer, choose_checkpoints

    workdir, output = pathlib.Path(workdir), pathlib.Path(output).expanduser()
    if output.exists() and not overwrite:
        raise CheckpointError(f"{output} is there already: give another name, or --overwrite.")
    backend.start()
    checkpointer = Checkpointer(workdir / "checkpoints")
    chosen = choose_checkpoints(checkpointer, workdir, step)[0]
    about = checkpointer.about(chosen)
    config = config_lib.from_dict(about["config"])
    config_lib.reset_mesh(config)  # one device is enough, wherever it was trained
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    objective, variables = build.restore_variables(checkpointer, chosen, config, mesh)
    prefix = {"raw": "", "ema": "ema_", None: "ema_" if "ema_" in variables else ""}[weights]
    if prefix not in variables:
        raise CheckpointError(f"The checkpoint of step {chosen} in {workdir} has no moving average: use --weights=raw.")
    name = registry.entry(config.model.name).name
    model_variables = build.without_heads(objective, variables[prefix])
    state = pretrained.to_torch(name, jax.device_get(model_variables), library)
    # Of a training without labels, it is the backbone.
    classes = about["num_classes"] if objective.setup.model.num_classes else 0
    metadata = {
        "format": "pt",  # what transformers and timm ask for
        "architecture": name,
        "num_classes": str(classes),
        "class_names": json.dumps(list(about["class_names"]) if classes else []),
        "step": str(chosen),
        "weights": "ema" if prefix else "raw",
        "mean": str(tuple(config.data.mean)),
        "std": str(tuple(config.data.std)),
        "written_by": f"vision_jax {vision_jax.__version__}",
    }
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(state, temporary, metadata)
        temporary.replace(output)
    except (OSError, safetensors.SafetensorError) as error:
        with contextlib.suppress(OSError):  # what could not be made cannot be removed
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"Cannot write {output}: {error}") from error
    what = f"{classes} classes" if classes else "without a classifier (for timm: num_classes=0)"
    print(f"{output}: {name}, step {chosen}, {metadata['weights']} weights, {what}")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="of the run")
    parser.add_argument("--format", choices=("timm", "torchvision"), default="timm", help="whose names (%(default)s)")
    parser.add_argument("--step", help="of the checkpoint, a number or `best`; default: the latest")
    parser.add_argument("--weights", choices=("raw", "ema"), help="default: the moving average, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument("output", metavar="FILE", help="the safetensors file to write")
    flags = parser.parse_args(argv)
    if flags.step is not None and flags.step != "best" and not flags.step.isdigit():
        parser.error(f"--step is {flags.step!r}: give a number or best")
    try:
        check_no_url("--workdir", flags.workdir)
        check_no_url("FILE", flags.output)
        if not flags.output.endswith(".safetensors"):
            raise ConfigError(f"FILE is {flags.output!r}: it is written as safetensors, so its name must end so.")
        export(
            flags.workdir,
            flags.output,
            flags.format,
            step=flags.step,
            weights=flags.weights,
            overwrite=flags.overwrite,
        )
        return 0
    except VisionJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

import pathlib

import pytest

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.commands import export


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["--workdir=gs://b/run", "x.safetensors"], "--workdir"), (["--workdir=x", "gs://b/run"], "FILE")],
)
def test_urls_are_refused(arguments: list[str], what: str, capsys: pytest.CaptureFixture):
    assert export.main(arguments) == 1
    message = f"error: {what} is 'gs://b/run': URLs are not supported here; mount the bucket (gcsfuse, s3fs, ...)"
    assert capsys.readouterr().err == f"{message} and give its path.\n"
    assert not pathlib.Path("gs:").exists()


def test_other_suffixes_are_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    assert export.main([f"--workdir={tmp_path}", "x.pth"]) == 1
    assert "FILE is 'x.pth': it is written as safetensors" in capsys.readouterr().err


def test_heads_beside_the_backbone_are_left_out():
    """Of what a training without labels has, timm knows the model alone."""
    config = config_lib.default_config()
    config.model.name, config.data.image_size = "resnet18", 32
    config.objective.name = "rotation"
    objective = build.make_objective(config, 10)
    variables = build.abstract_variables(objective)
    assert "rotation" in variables["params"]
    model = build.without_heads(objective, variables)
    assert model["params"].keys() == variables["params"].keys() - {"rotation"}
    assert model["batch_stats"] == variables["batch_stats"]

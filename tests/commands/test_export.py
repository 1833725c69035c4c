import pathlib

import pytest

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

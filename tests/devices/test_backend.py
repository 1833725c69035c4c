import jax
import pytest

from vision_jax.devices import backend
from vision_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("platforms", "error", "message"),
    [
        ("cuda", AssertionError(), "^JAX_PLATFORMS is 'cuda', which JAX cannot use: it finds no device of such a pl"),
        (
            "tpu",
            RuntimeError("Unable to initialize backend 'tpu':\n no. (set JAX_PLATFORMS='' to choose)"),
            "^JAX_PLATFORMS is 'tpu', which JAX cannot use: Unable to initialize backend 'tpu': no[.] Unset it",
        ),
        (None, RuntimeError("No devices"), "^JAX cannot use the devices of this machine: No devices[.]$"),
    ],
)
def test_a_backend_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, platforms: str | None, error: Exception, message: str
):
    def fail() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms is not None:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    with pytest.raises(ConfigError, match=message):
        backend.start()

"""A model as StableHLO: it runs where this package is not installed, with any batch, for several platforms."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from stored_features import random_model

from vision_jax.errors import ConfigError
from vision_jax.export import program, stablehlo
from vision_jax.export.subject import Options, make

# The program of another process: no module of this package can be imported there.
ELSEWHERE = """
import importlib.abc, sys

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("vision_jax", "flax"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refusing())
import jax, numpy as np
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
results = [np.asarray(exported.call(images[:count])) for count in (1, 3)]
np.savez(sys.argv[3], *results)
print(exported.platforms, exported.in_avals, "vision_jax" in sys.modules)
try:
    import vision_jax
except ImportError as error:
    print(error)
"""


def test_it_runs_without_this_package(tmp_path: pathlib.Path):
    trained = random_model()
    target = program.Target(tmp_path / "a.stablehlo")
    differences = program.export_stablehlo(trained, target, Options(with_preprocessing=True))
    assert [one.images for one in differences] == ["1 random image", "8 random images"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    paths = [str(tmp_path / name) for name in ("a.stablehlo", "pixels.npy", "results.npz")]
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, *paths], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "('cpu', 'cuda', 'tpu')" in done.stdout
    assert "uint8[batch,28,28,1]" in done.stdout
    assert "False\nvision_jax is not here" in done.stdout
    model = trained.model
    normalized = (pixels / np.float32(255) - np.float32(0.3)) / np.float32(0.35)
    assert tuple(trained.preprocessing.mean) == (0.3,)
    expected = np.asarray(model.apply(jax.device_get(dict(trained.variables)), normalized, train=False))
    with np.load(tmp_path / "results.npz") as results:
        np.testing.assert_allclose(results["arr_0"], expected[:1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(results["arr_1"], expected, rtol=1e-4, atol=1e-5)
    assert "jax.export.deserialize" in (tmp_path / "a.stablehlo.md").read_text()


def test_what_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stablehlo, "_LARGEST", 1000)
    with pytest.raises(ConfigError, match=r"lenet5 has 0.0 GiB of weights, and a StableHLO file holds less than 2 GiB"):
        stablehlo.serialize(make(random_model(), Options()))

"""What is installed: by a wheel the recipes too, and by an editable install a path and not an import hook."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY

# The extra `test` has it; the package does not need it once it is installed.
pytest.importorskip("hatchling")

BUILD = """
import os, sys
from hatchling import build
os.chdir({repository!r})
print(getattr(build, {what!r})({folder!r}))
"""


def build(what: str, folder: pathlib.Path) -> zipfile.ZipFile:
    """Returns what an installer gets from the build backend, which changes the working directory's process."""
    program = BUILD.format(repository=str(REPOSITORY), what=what, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return zipfile.ZipFile(folder / done.stdout.split()[-1])


def run(program: list[str], cwd: pathlib.Path, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *program], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_has_the_recipes_and_all_data(tmp_path: pathlib.Path):
    with build("build_wheel", tmp_path) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    sources = {path for path in (REPOSITORY / "vision_jax").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    recipes = {f"vision_jax/configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.py")}
    assert {path.relative_to(REPOSITORY).as_posix() for path in sources} | recipes == {
        name for name in names if name.startswith("vision_jax/")
    }
    assert not {name.partition("/")[0] for name in names} - {"vision_jax", "vision_jax-0.1.0.dist-info"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    main = ["-m", "vision_jax.main"]
    printed = run([*main, "--config=list"], elsewhere, PYTHONPATH=str(tmp_path / "site"))
    for recipe in recipes:
        assert f"\n{pathlib.Path(recipe).stem}\n" in f"\n{printed}"
    assert str(tmp_path / "site" / "vision_jax" / "configs") in printed
    program = "from vision_jax import recipes; print(recipes.load('deit:small').model.name)"
    assert run(["-c", program], elsewhere, PYTHONPATH=str(tmp_path / "site")) == "deit_small_patch16_224\n"


def test_beside_a_clone_that_is_called_as_the_package_is(tmp_path: pathlib.Path):
    """There Python takes the clone for a namespace package, unless it finds another one on its path."""
    with build("build_editable", tmp_path) as wheel:
        wheel.extractall(tmp_path / "site")
    (path,) = (tmp_path / "site").glob("*.pth")
    assert path.read_text().split() == [str(REPOSITORY)]
    (tmp_path / "vision_jax").symlink_to(REPOSITORY)
    program = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import vision_jax; print(vision_jax.__file__)"
    found = run(["-S", "-c", program], tmp_path, PYTHONPATH="")  # without what the tests find it by
    assert found == f"{REPOSITORY / 'vision_jax' / '__init__.py'}\n"

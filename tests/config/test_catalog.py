"""The list of recipes, and that a recipe is found by its name."""

import pathlib
import re

import pytest
from conftest import REPOSITORY, Command

from vision_jax import recipes
from vision_jax.config import catalog, loading
from vision_jax.errors import ConfigError


def test_each_recipe_says_its_title_result_and_variants():
    found = {recipe.name: recipe for recipe in catalog.recipes()}
    assert sorted(found) == sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
    for recipe in found.values():
        assert recipe.title.endswith(".")
        assert recipe.result, recipe.name
        assert "Source:" not in recipe.result
        assert not recipe.variants or recipe.default in recipe.variants
    assert found["convnext"].title == "ConvNeXt on ImageNet in 300 epochs."
    assert found["convnext"].variants == ("tiny", "small", "base", "large")
    assert found["convnext"].result == (
        "top-1 at 224 pixels, published: tiny 82.1 %, small 83.1 %, base 83.8 %, large 84.3 %, of the moving average\n"
        "(val/ema_top1). Trained on 32 GPUs, large on 64. We have not run it yet."
    )
    assert found["trades"].variants == ()
    assert "    resnet50   67.0, 38.7, 34.1" in found["ares"].result.splitlines()[1]  # a table stays one


def test_the_command_lists_them(command: Command):
    printed = command("--config", "list:resnet50*")
    blocks = [block.splitlines()[0] for block in printed.split("\n\n")]
    assert blocks[:-1] == ["resnet50", "resnet50_rsb"]
    assert "\nVariants: 90 (default), 50, 250\n" in printed
    assert max(map(len, command("--config=list").splitlines()[:-2])) <= 120
    assert "matches none of the recipes: did you mean resnet50" in command("--config=list:resnet5", status=1)
    assert "There is" not in command("--config=list", "--workdir=/nowhere/x")  # nothing else is looked at


def test_recipes_are_found_by_name_and_files_before_them(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert loading.load("deit:small").model.name == "deit_small_patch16_224"
    (tmp_path / "quickstart").write_text((REPOSITORY / "configs" / "mnist.py").read_text())
    assert loading.load("quickstart").data.source == loading.load("mnist").data.source != "digits"
    for name, message in (
        ("resnet5", "Nor is there such a recipe: did you mean resnet50"),
        ("configs/convnext.py:tiny", "The package has a recipe of that name: --config=convnext"),
        ("mine.py", "there is no such file. A config file is Python"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            loading.load(name)


def test_a_recipe_starts_from_another(tmp_path: pathlib.Path):
    (tmp_path / "longer.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from vision_jax import recipes\n"
        "base = recipes.load('resnet50_rsb:a3')\n"
        "@dataclasses.dataclass\n"
        "class Length:\n  epochs: float\n"  # a dataclass is looked up in its module, which is still this one
        "def get_config():\n  base.epochs = Length(120.0).epochs\n  return base\n"
    )
    config = recipes.load(str(tmp_path / "longer.py"))
    assert config.epochs == 120.0
    assert config.model.name == recipes.load("resnet50_rsb:a3").model.name
    assert recipes.load("resnet50_rsb:a3").epochs == 100.0


def test_a_file_that_cannot_be_read_does_not_hide_the_others(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "recipes_folder", lambda: tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "mine.py").write_text('"""Mine."""\nVARIANTS = ("a",)\n')
    broken, mine = catalog.recipes()
    assert broken.title.startswith("Cannot be read: ZeroDivisionError in the config file: division by zero (")
    assert mine == catalog.Recipe("mine", "Mine.", "", ("a",), "")

"""Config files: that whatever is wrong with one is said, where, and in one line."""

import pathlib
import re

import pytest

from vision_jax.config import loading
from vision_jax.errors import ConfigError

WHAT_IT_IS = "A config file is Python with a function get_config()"


def test_variants_and_dataclasses(tmp_path: pathlib.Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from vision_jax.config import default_config\n"
        "@dataclasses.dataclass\n"
        "class Size:\n  batch: int\n"
        "def get_config(variant='8'):\n"
        "  config = default_config()\n  config.batch_size = Size(int(variant)).batch\n  return config\n"
    )
    assert loading.load(str(file)).batch_size == 8
    config = loading.load(f"{file}:16")
    assert config.batch_size == 16
    assert config.is_locked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 3", f"FILE has no function get_config(). {WHAT_IT_IS}"),
        ("get_config = 3", f"FILE has no function get_config(). {WHAT_IT_IS}"),
        ("def get_config():\n  return {'batch_size': 3}", f"FILE returns a dict, not a ConfigDict. {WHAT_IT_IS}"),
        ("def get_config():\n  pass", f"FILE returns None, not a ConfigDict. {WHAT_IT_IS}"),
        ("def get_config(a, b):\n  pass", "FILE has get_config(a, b), which is passed nothing: missing a required"),
        ("def get_config(\n  pass", "FILE is not Python: '(' was never closed (FILE, line 1). " + WHAT_IT_IS),
        ('{"seed": null}', "NameError in the config file: name 'null' is not defined (FILE, line 1). " + WHAT_IT_IS),
        ("\nimport nowhere", "ModuleNotFoundError in the config file: No module named 'nowhere' (FILE, line 2). "),
        ("def get_config():\n  return 1 / 0", "ZeroDivisionError in the config file: division by zero (FILE, line 2)"),
        (
            "def f(x):\n  return int(x)\ndef get_config():\n  return f('x')",
            "ValueError in the config file: invalid literal for int() with base 10: 'x' (FILE, line 2)",
        ),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'batch_size': 3})",
            "returns a configuration without augment.blur, augment.col_out, augment.color_jitter and ",
        ),
        (
            "from vision_jax.config import default_config\ndef get_config():\n  c = default_config()\n  c.sead = 3",
            'unknown field of the configuration. Did you mean "seed" instead of "sead"? (FILE, line 4)',
        ),
    ],
)
def test_what_is_wrong_with_a_config_file_is_said(tmp_path: pathlib.Path, text: str, message: str):
    file = tmp_path / "mine.py"
    file.write_text(text + "\n")
    with pytest.raises(ConfigError, match=re.escape(message.replace("FILE", str(file)))) as caught:
        loading.load(str(file))
    assert "\n" not in str(caught.value)


def test_variants_that_are_not_taken(tmp_path: pathlib.Path):
    (tmp_path / "mine.py").write_text("def get_config():\n  pass\n")
    with pytest.raises(ConfigError, match=r"has get_config\(\), which is passed 'small', what follows the colon"):
        loading.load(f"{tmp_path / 'mine.py'}:small")
    with pytest.raises(ConfigError, match=r"no variant 'lam': did you mean lamb.*quickstart.py, line "):
        loading.load(f"{pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'}:lam")


@pytest.mark.parametrize("path", ["nowhere.py", ".", ""])
def test_files_that_are_not_there(path: str):
    with pytest.raises(ConfigError, match=f"Cannot load the config file '{path}': there is no such file"):
        loading.load(path)


def test_urls():
    with pytest.raises(ConfigError, match=r"--config is 'gs://bucket/config\.py': URLs are not supported"):
        loading.load("gs://bucket/config.py")

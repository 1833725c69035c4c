"""Config files that are missing, fail, or give no configuration."""

from typing import Any

from bad_inputs.case import CONFIG, Case, directory, text


def _file(name: str, content: str | bytes, value: str, remedy: str, *, variant: str = "", **options: Any) -> Case:
    """Returns a case of a training by such a file."""
    arguments = ("main", f"--config=c.py{variant}", "--workdir=w")
    return Case(name, arguments, value, remedy, status=2, before=(text("c.py", content),), **options)


_BEGIN = "from vision_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"

CASES = (
    Case("no such file", ("main", "--config=c.py"), "c.py", "get_config", status=2),
    Case("a folder", ("main", "--config=d"), "'d'", "--config=list", status=2, before=(directory("d"),)),
    Case("no name", ("main", "--config="), "--config|''", "--config=list", status=2),
    Case("a URL", ("main", "--config=https://b/c.py"), "https://b/c.py", "its path", status=2),
    _file("no Python", "def get_config(:\n", r"c\.py, line 1", "A config file is Python"),
    _file("no text at all", b"\x00\xff\x00", r"c\.py", "A config file is Python"),
    _file("an empty file", "", "c.py has no function get_config", "A config file is Python"),
    _file("a constant", "get_config = 3\n", "c.py has no function get_config", "A config file is Python"),
    _file("a dictionary", "def get_config():\n    return {}\n", "returns a dict", "default_config"),
    _file("nothing returned", f"{_BEGIN}    config.batch_size = 8\n", "returns None", "returns it"),
    _file(
        "a configuration of one field",
        "import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({'batch_size': 8})\n",
        "without",
        "default_config",
    ),
    _file(
        "a misspelt field in it", f"{_BEGIN}    config.batchsize = 8\n", 'batchsize".*line 6', 'Did you mean "batch_s'
    ),
    _file("a field of another type", f"{_BEGIN}    config.batch_size = 'x'\n", "batch_size.*line 6", "int"),
    _file("a module that is not there", "import nowhere\n", "nowhere.*line 1", "A config file is Python|install"),
    _file("an error as it is read", "1 / 0\n", "ZeroDivisionError.*line 1", "A config file is Python"),
    _file("an error in it", f"{_BEGIN}    return config[7]\n", r"7.*line 6", "config"),
    _file("an exit in it", "raise SystemExit(0)\n", "SystemExit.*line 1", "A config file is Python"),
    _file("too many arguments", "def get_config(a, b):\n    return 1\n", r"\(a, b\)", "one argument", variant=":x"),
    _file("a variant of none", f"{_BEGIN}    return config\n", "'x'", "one argument", variant=":x"),
    Case("an unknown variant", ("main", f"{CONFIG}:lam"), "'lam'", "did you mean lamb", status=2),
)

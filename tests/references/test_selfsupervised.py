"""Self-supervised methods against the files of references/ssl, one test for each case; see README.md.

What a case is compared with is in the module of `selfsupervised/` that has the name of its file.
"""

import json
import pathlib
from typing import Any

import pytest
from references.common import files, load_cases
from references.selfsupervised import heads, losses, models, parameter_groups, schedules, views

# By the beginning of a file's name. Those of other tests are not read here.
NPZ = {"heads": heads, "losses": losses, "models": models, "schedules": schedules}
JSON = {"parameter_groups": parameter_groups, "views": views}
ELSEWHERE = ("protocols",)
NO_DATA = (".md", ".py", ".pyc")


def reader_of(path: pathlib.Path) -> Any:
    """The module that reads a file; None: none does."""
    readers: dict[str, Any] = {".npz": NPZ, ".json": JSON}.get(path.suffix, {})
    return next((reader for kind, reader in readers.items() if path.name.startswith(kind)), None)


def find_cases() -> dict[str, tuple[pathlib.Path, Any]]:
    """The file and the content of each case by what its test is called; a file that nothing reads is one too."""
    found: dict[str, tuple[pathlib.Path, Any]] = {}
    for path in files("ssl", "*"):
        if not path.is_file() or path.name.startswith((".", *ELSEWHERE)) or path.suffix in NO_DATA:
            continue
        reader = reader_of(path)
        if reader is None:
            found[path.name] = path, None
        elif path.suffix == ".json":
            found |= {f"{path.name}:{name}": (path, about) for name, about in json.loads(path.read_text()).items()}
        else:
            found |= {f"{path.name}:{name}": (path, case) for name, case in load_cases(path).items()}
    return found


CASES = find_cases()
assert CASES, "There is no case at all."


@pytest.mark.parametrize("name", CASES)
def test_case(name: str):
    path, content = CASES[name]
    reader = reader_of(path)
    assert reader is not None, f"{path} is of a kind that is not known."
    if reader is views:
        views.check(name.partition(":")[2], content)
    else:
        reader.check(content)

"""A hundred bad inputs: each ends with one line that names value and remedy, and leaves alone what was there."""

import collections
import fnmatch
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator

import pytest
from bad_inputs import commands, config_files, data, environment, fields, flags, weights, workdirs
from bad_inputs.case import TRAIN, Case
from bad_inputs.server import Server
from conftest import REPOSITORY, Command

from vision_jax.commands import VERBS

TABLE: dict[str, tuple[Case, ...]] = {
    "flags": flags.CASES,
    "fields": fields.CASES,
    "config files": config_files.CASES,
    "data": data.CASES,
    "weights": weights.CASES,
    "workdirs": workdirs.CASES,
    "environment": environment.CASES,
    "commands": commands.CASES,
}
ALL = [case for cases in TABLE.values() for case in cases]


@pytest.fixture(scope="module")
def server(cache: pathlib.Path) -> Iterator[Server]:
    variables = Command(cache).environment | {"JAX_NUM_CPU_DEVICES": "1"}
    variables |= {"PYTHONPATH": f"{variables['PYTHONPATH']}:{pathlib.Path(__file__).parent}"}
    server = Server(variables)
    yield server
    server.close()


@pytest.fixture(scope="module")
def run(server: Server, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    streams = folder / "out", folder / "err"
    status = server.run(_command(TRAIN), folder, {}, streams)
    assert status == 0, streams[1].read_text()
    return folder / "w"


def test_the_table_has_a_hundred_rows_and_each_command_three():
    assert len(ALL) >= 100
    assert f"a table of {len(ALL)} wrong inputs" in (REPOSITORY / "docs" / "reliability.md").read_text()
    assert len({case.name for case in ALL}) == len(ALL)
    verbs = collections.Counter(case.arguments[0] for case in ALL)
    assert not {verb: verbs[verb] for verb in VERBS if verbs[verb] < 3}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ALL])
def test_bad_input(server: Server, run: pathlib.Path, tmp_path: pathlib.Path, case: Case):
    folder = tmp_path / "case"
    folder.mkdir()
    for prepare in case.before:
        prepare(folder, run)
    before = _digests(folder)
    out, err = pathlib.Path(case.output or tmp_path / "out"), tmp_path / "err"
    status = server.run(_command(case.arguments), folder, case.environment, (out, err))
    said = err.read_text()
    assert status == case.status, said
    assert "Traceback" not in said
    line = said if case.status == 3 else _message(said)  # it is done, but for what is named among its messages
    assert re.search(case.value, line), said
    assert re.search(case.remedy, line), said
    after = _digests(folder)
    differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not [name for name in differing if not any(fnmatch.fnmatch(name, each) for each in case.made)]


def _command(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return ("vision_jax.main", *arguments[1:]) if arguments[0] == "main" else ("vision_jax", *arguments)


def _message(said: str) -> str:
    """Returns the one line that says what is wrong, after checking that there is but one."""
    lines = said.splitlines()
    found = [
        number for number, line in enumerate(lines) if re.match(r"(python -m vision_jax [a-z -]+: )?error: ", line)
    ]
    assert len(found) == 1, said
    message, *rest = lines[found[0] :]
    if rest and rest[0].startswith("See `python -m vision_jax.main --help`"):
        message += rest.pop(0)
    if rest and rest[0] == "" and rest[1].startswith("usage: "):  # how to get help, after it
        rest = []
    if message.endswith(":") and rest[0].startswith("  - "):  # what a configuration has, a line each, and there is one
        message = " ".join([message, *rest])
        rest = [line for line in rest[1:] if line.startswith("  - ")]
    assert not rest, said
    return message


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns what is in a folder: of each file, the digest; of other things, what they are."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link to {os.readlink(path)}"
        else:
            what = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = what
    return found

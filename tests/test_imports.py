"""The house's rule: imports point down, without circles, also those within functions."""

import ast
import graphlib
import importlib.util
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "vision_jax"
# From the bottom to the top; a module may import what is on its own floor or below.
FLOORS = (
    ("errors",),
    ("data", "augment", "models", "optim", "text"),
    ("attacks", "dense", "explain", "losses", "metrics", "pretrained", "state"),
    ("devices", "runtime"),
    ("objectives", "evaluators"),
    ("config",),
    ("steps", "recipes"),
    ("assembly",),
    ("build",),
    (
        "position",
        "preparation",
        "benchmark",
        "report",
        "train",
        "evaluate",
        "dry_run",
        "predict",
        "predict_dense",
        "features",
        "search",
        "serve",
        "explanations",
        "compress",
        "suite",
        "sweep",
        "export",
        "zero_shot",
    ),
    ("commands", "main", "__main__"),
)
APART = {"data", "augment", "models", "optim", "text"}  # which do not know each other


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(module: str) -> set[str]:
    """Returns the modules of this package that one imports anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
        for name in names:
            if not name.startswith("vision_jax"):
                continue
            # Of `from package.module import thing` the module; of `from package import module` the module too.
            known = next((known for known in (name, name.rpartition(".")[0]) if known in MODULES), None)
            if known is not None and not (known != name and name.rpartition(".")[0] + "." in module):
                found.add(known)
    return found - {module}


GRAPH = {module: imports_of(module) for module in MODULES}


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_module_has_its_floor():
    known = {name for rooms in FLOORS for name in rooms}
    assert {room(module) for module in MODULES} - {""} == known


def test_there_are_no_circles():
    # A package's own __init__, which names what its modules have, is not what they import when they import each other.
    graph = {
        module: {other for other in others if not module.startswith(f"{other}.")} for module, others in GRAPH.items()
    }
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str):
    if not room(module):
        return  # the package itself, which imports on demand
    above = {other for other in GRAPH[module] if room(other) and floor(other) > floor(module)}
    assert not above
    if room(module) in APART:
        assert {room(other) for other in GRAPH[module]} <= {room(module), "errors", ""}


def test_the_configuration_can_be_made_without_jax():
    """Recipes are read before anything else; it is also what `main` relies on to handle signals early."""
    import subprocess
    import sys

    code = "import sys, vision_jax.config as c; c.default_config(); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    assert importlib.util.find_spec("vision_jax.config") is not None

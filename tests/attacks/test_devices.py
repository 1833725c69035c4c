"""A step of an attack on eight devices, over which images and perhaps weights are divided, is that of one device."""

from typing import Any

import jax
import mesh_cases
import numpy as np
import pytest

from vision_jax import build
from vision_jax.attacks import Stage, find_stages, pgd
from vision_jax.devices import partition, sharding
from vision_jax.suite.attack_programs import Logits, Programs

BATCH = 16
RANDOM = np.random.RandomState(0)
ROWS = {
    "image": RANDOM.randint(0, 256, (BATCH, 8, 8, 3)).astype(np.uint8),
    "label": RANDOM.randint(0, 8, BATCH).astype(np.int32),
    "index": np.arange(100, 100 + BATCH, dtype=np.int32),
    "target": np.ones(BATCH, np.int32),
    "mask": (np.arange(BATCH) < 13).astype(np.float32),
}
# In l2, where an element's sign decides nothing: rounding, which differs, changes little.
STEPS = {
    "pgd": Stage("pgd", lambda *given, **options: pgd(*given, **options, steps=2, step_size=0.2)),
    "apgd-ce": find_stages("apgd-ce", 8)[0],
    "fab-t": find_stages("fab-t", 8)[0],
    "square": find_stages("square", 8)[0],
}


def attacked(
    mesh_name: str, stage: Stage, devices: list[jax.Device] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the perturbed images, and what the check says of them, of a transformer with random weights."""
    config = mesh_cases.make_config("vit", mesh_name)
    mesh = sharding.make_mesh(config.mesh, devices)
    objective = build.make_objective(config, 8)
    variables = jax.device_get(jax.jit(lambda: build.initialize(objective, jax.random.key(0)))())
    layouts = partition.layouts(build.partition_rules(config, mesh), mesh, variables["params"], variables)
    logits = Logits(objective.setup.model, (0.5,) * 3, (0.25,) * 3)
    programs = Programs(mesh, logits, sharding.place(variables, layouts), seed=3)
    seen: list[np.ndarray] = []
    run = programs._run

    def watched(name: tuple[str, ...], *rest: Any) -> Any:
        found = run(name, *rest)
        if name[0] == stage.name:
            assert found.sharding.is_equivalent_to(sharding.along_batch(mesh), 4)
            seen.append(np.asarray(found))
        return found

    programs._run = watched  # type: ignore[method-assign]
    batch = sharding.batch_placer(mesh, BATCH)(ROWS)
    verdict = jax.device_get(programs.attack(stage, "l2", 0.4, 0, 0)(batch))
    return seen[0], verdict


@pytest.mark.parametrize(
    ("mesh_name", "attack"),
    [
        ("fsdp", "pgd"),
        *(
            pytest.param(mesh, attack, marks=pytest.mark.exhaustive)
            for mesh in mesh_cases.MESHES
            for attack in STEPS
            if (mesh, attack) != ("fsdp", "pgd")
        ),
    ],
)
def test_eight_devices_find_what_one_does(mesh_name: str, attack: str):
    stage = STEPS[attack]
    if attack != "pgd":  # a few steps of the hundred, or of thousands
        limited = {"square": {"queries": 5}}.get(attack, {"steps": 3})
        run = stage.run
        stage = stage._replace(run=lambda *given, **options: run(*given, **options, **limited))
    one, alone = attacked("data", stage, jax.devices()[:1])
    several, together = attacked(mesh_name, stage)
    images = ROWS["image"] / 255
    counts = ROWS["mask"] > 0
    moved = np.linalg.norm((one - images).reshape(BATCH, -1), axis=1)[counts]
    apart = np.linalg.norm((one - several).reshape(BATCH, -1), axis=1)[counts]
    assert moved.max() > 0.1
    assert (apart <= 0.01 * moved.max()).all()
    for name in ("index", "mask", "predicted", "fooled"):
        np.testing.assert_array_equal(alone[name][counts], together[name][counts])
    np.testing.assert_allclose(alone["distance"][counts], together["distance"][counts], rtol=1e-3, atol=1e-4)
    if attack != "fab-t":  # which looks for the nearest image of another class, however far
        assert alone["fooled"][~counts].all()  # padding, for the sake of which nothing goes on

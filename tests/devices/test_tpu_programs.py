"""What the compiler makes of steps for a TPU: no pixel is fetched on its own, and how many bytes are moved."""

import functools
import importlib.util
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vision_jax
from vision_jax import augment, build, dry_run, optim, steps
from vision_jax.config import loading
from vision_jax.devices import compilation, topology
from vision_jax.models.transformer import attention
from vision_jax.objectives import OBJECTIVES, Setup

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu, XLA's compiler for TPUs, is not installed"
    ),
    pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache"),
]
REPOSITORY = pathlib.Path(__file__).parent.parent.parent
BATCH, SIZE = 128, 32


@pytest.fixture(scope="module")
def chip() -> jax.sharding.Sharding:
    devices = topology.describe("v5e:1x1")
    return NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec())


def gathered(program: str) -> list[int]:
    """Returns how many positions each gather of a compiled program fetches."""
    shapes = re.findall(r"= [a-z0-9]+\[([\d,]*)\][^=]* gather\(", program)
    return [math.prod(int(length) for length in shape.split(",") if length) for shape in shapes]


def test_a_gather_of_pixels_is_recognized(chip: jax.sharding.Sharding):
    image = jax.ShapeDtypeStruct((SIZE * SIZE,), jnp.float32, sharding=chip)
    positions = jax.ShapeDtypeStruct((BATCH * SIZE,), jnp.int32, sharding=chip)
    traced = jax.jit(lambda image, positions: image[positions]).trace(image, positions)
    assert gathered(traced.lower(lowering_platforms=("tpu",)).compile().as_text()) == [BATCH * SIZE]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "positions"), [("mae", "mae"), ("simmim", "mae"), ("simmim", "relative")])
def test_masked_patches_are_moved_as_a_whole(chip: jax.sharding.Sharding, name: str, positions: str):
    """Forwards and backwards: gathers are of rows of features, and nothing is put back one after the other."""
    sizes = {"num_classes": 0, "img_size": 32, "patch_size": 8, "depth": 1}
    model = vision_jax.create_model("vit_tiny_patch16_224", positions=positions, dtype="bfloat16", **sizes)
    options = {"decoder_width": 128, "decoder_depth": 1, "decoder_heads": 4} if name == "mae" else {"mask_size": 16}
    objective = OBJECTIVES[name](setup=Setup(model, (32, 32, 3), (0.5,) * 3, (0.5,) * 3), **options)
    frozen = ("pos_embed$",) if positions == "mae" else ()
    rules, optimizer = optim.GroupRules(frozen=frozen), optax.sgd(0.1)
    state = jax.eval_shape(lambda: build.create_state(objective, optimizer, rules, seed=0))
    batch = {"image": jnp.zeros((BATCH, 32, 32, 3), jnp.uint8), "mask": jnp.zeros(BATCH)}
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), (state, batch))
    step = steps.make_train_step(objective, optimizer, lambda step: 0.1, seed=0, rules=rules)
    program = jax.jit(step).trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text()
    rows = [int(sizes.split(",")[-1]) for sizes in re.findall(r" gather\(.*slice_sizes=\{([\d,]*)\}", program)]
    assert sorted(rows) == ([128, 128, 192, 192] if name == "mae" else [])  # the decoder's again in the backward pass
    assert " scatter(" not in program


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("recipe", "views", "most"),
    [
        ("byol:r50_300", "2x32:0.08-1", 160),
        ("mocov2:r50_200", "2x32:0.2-1", 205),
        ("simclr:r50_800", "2x32:0.08-1", 140),
        ("dino:vit_s16", "2x32:0.4-1,3x16:0.05-0.4", 195),
        ("swav:ep800", "2x32:0.14-1,2x16:0.05-0.14", 270),
    ],
)
def test_views_move_bytes_not_pixels(chip: jax.sharding.Sharding, recipe: str, views: str, most: float):
    """What is fetched by itself is a number of a crop, as of its blur; and nothing is put back one after the other."""
    file, _, variant = recipe.partition(":")
    config = loading.load(str(REPOSITORY / "configs" / f"{file}.py") + f":{variant}")
    config.data.update({"source": "synthetic", "image_size": SIZE, "eval_resize": SIZE, "views": views})
    objective = build.make_objective(config, 10)
    rows = {
        view.name: jnp.zeros((BATCH, view.count, view.size, view.size, 3), jnp.uint8) for view in objective.inputs()
    }
    values, crops = sum(x.size for x in rows.values()), sum(x.shape[1] for x in rows.values())
    arguments = (jnp.int32(0), rows | {"mask": jnp.zeros(BATCH)})
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), arguments)
    make = jax.jit(lambda step, rows: objective.views(augment.example_keys(0, step, BATCH), rows))
    compiled = make.trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    assert max(gathered(compiled.as_text()), default=0) <= BATCH * crops
    assert " scatter(" not in compiled.as_text()
    assert compiled.cost_analysis()["bytes accessed"] / values < most


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("policy", "most"),
    [
        ("rand-m9-mstd0.5-inc1", 240),
        ("trivialaugment_wide", 260),
        ("augmix", 830),
    ],
)
def test_policies_move_bytes_not_pixels(chip: jax.sharding.Sharding, policy: str, most: float):
    """At most `most` bytes for each of an image; by gathers of single pixels, it was 50,000 for RandAugment."""
    transform = augment.create_policy(policy)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=chip)
    images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.uint8, sharding=chip)
    traced = jax.jit(lambda step, images: jax.vmap(transform)(augment.example_keys(0, step, BATCH), images)).trace(
        step, images
    )
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    assert max(gathered(compiled.as_text()), default=0) < BATCH * SIZE  # the tables of what is drawn are small
    of_image = compiled.cost_analysis()["bytes accessed"] / (BATCH * SIZE * SIZE * 3)
    assert of_image < most, of_image


def test_maps_of_attention_are_recomputed(chip: jax.sharding.Sharding):
    """The compiler does not find that the second product of a map is the first one, and keep that."""
    heads = jax.ShapeDtypeStruct((2, 64, 3, 64), jnp.bfloat16, sharding=chip)
    a_product = 2 * 2 * 3 * 64 * 64 * 64

    def operations(recompute: bool) -> float:
        attend = functools.partial(attention, bias=None, recompute=recompute)
        slope = jax.jit(jax.grad(lambda *heads: jnp.sin(attend(*heads)).astype(jnp.float32).sum(), (0, 1, 2)))
        traced = slope.trace(heads, heads, heads)
        return float(traced.lower(lowering_platforms=("tpu",)).compile().cost_analysis()["flops"])

    assert operations(recompute=True) == pytest.approx(operations(recompute=False) + a_product, rel=0.05)


@pytest.mark.parametrize(
    ("name", "policy", "most"),
    [pytest.param("small_vit", "rand-m9", 820, marks=pytest.mark.exhaustive), ("small_resnet", "", 2450)],
)
def test_steps_move_bytes_not_pixels(name: str, policy: str, most: float, monkeypatch: pytest.MonkeyPatch):
    """A transformer with a policy, Mixup and CutMix, and a network with batch norm."""
    config = loading.load(str(REPOSITORY / "tests" / f"{name}.py"))
    config.data.update(
        {
            "source": "synthetic",
            "image_size": SIZE,
            "eval_resize": SIZE,
            "channels": 3,
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
        }
    )
    config.update({"batch_size": BATCH, "dtype": "bfloat16"})
    config.augment.update({"policy": policy, "flip": 0.5, "mixup": 0.2, "cutmix": 1.0})
    programs = []
    compile_step = compilation.compile_step
    monkeypatch.setattr(compilation, "compile_step", lambda *step: programs.append(compile_step(*step)) or programs[-1])
    _, found = dry_run.describe(config, "v5e:1x1")
    assert max(gathered(programs[0].as_text()), default=0) < BATCH * SIZE
    of_image = found.bytes_accessed / (BATCH * SIZE * SIZE * 3)
    assert of_image < most, of_image

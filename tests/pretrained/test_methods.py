"""Official checkpoints of self-supervised methods: told apart, read for a classifier, and gone on with.

Their names and shapes are written down here, as the authors' code makes them, and not derived from the project's own.
The networks are small: a residual one of two blocks, and a transformer of one.
"""

import functools
import itertools
import json
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_resnet
import small_vit
from flax.core import unfreeze

import vision_jax
from vision_jax import build, pretrained, recipes
from vision_jax import config as config_lib
from vision_jax.assembly.states import abstract_variables
from vision_jax.commands import export
from vision_jax.devices import sharding
from vision_jax.errors import DataError
from vision_jax.models import registry
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.pretrained.methods import method_of
from vision_jax.pretrained.tensors import tensors_of
from vision_jax.runtime.checkpoint import Checkpointer

Shapes = dict[str, tuple[int, ...]]


def norm(name: str, width: int, *, affine: bool = True) -> Shapes:
    """The tensors of torch's batch norm."""
    shapes: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    if affine:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def resnet() -> Shapes:
    """The small residual network, as torchvision calls its tensors; 128 features of gray images."""
    shapes = {"conv1.weight": (64, 1, 3, 3), **norm("bn1", 64)}
    for stage, inputs, width in (("layer1.0", 64, 64), ("layer2.0", 64, 128)):
        shapes |= {f"{stage}.conv1.weight": (width, inputs, 3, 3), **norm(f"{stage}.bn1", width)}
        shapes |= {f"{stage}.conv2.weight": (width, width, 3, 3), **norm(f"{stage}.bn2", width)}
    return {**shapes, "layer2.0.downsample.0.weight": (128, 64, 1, 1), **norm("layer2.0.downsample.1", 128)}


def vit(width: int = 32, depth: int = 1, patch: int = 4, channels: int = 1) -> Shapes:
    """A transformer of four patches, as timm calls its tensors; by default the small one, of gray images."""
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 5, width)}
    shapes |= {"patch_embed.proj.weight": (width, channels, patch, patch), "patch_embed.proj.bias": (width,)}
    blocks = [f"blocks.{i}." for i in range(depth)]
    for name in ("norm", *(f"{block}norm{i}" for block in blocks for i in (1, 2))):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for block in blocks:
        shapes |= {**linear(f"{block}attn.qkv", width, 3 * width), **linear(f"{block}attn.proj", width, width)}
        shapes |= {**linear(f"{block}mlp.fc1", width, 4 * width), **linear(f"{block}mlp.fc2", 4 * width, width)}
    return shapes


def moco_v2_head(width: int, out: int) -> Shapes:
    return {**linear("fc.0", width, width), **linear("fc.2", width, out)}


def moco_v3_head(name: str, widths: tuple[int, ...], *, last_norm: bool = True) -> Shapes:
    """Linear layers without bias, each before a batch norm, the last one's without parameters, if there is one."""
    shapes: Shapes = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        shapes |= linear(f"{name}.{3 * i}", inputs, outputs, bias=False)
        shapes |= norm(f"{name}.{3 * i + 1}", outputs, affine=not last) if last_norm or not last else {}
    return shapes


def simsiam_heads(width: int, out: int, bottleneck: int) -> Shapes:
    projector = moco_v3_head("encoder.fc", (width, width, width, out)) | {"encoder.fc.6.bias": (out,)}
    predictor = {**linear("predictor.0", out, bottleneck, bias=False), **norm("predictor.1", bottleneck)}
    return {**projector, **predictor, **linear("predictor.3", bottleneck, out)}


def swav_heads(width: int, hidden: int, out: int, prototypes: int) -> Shapes:
    shapes = {**linear("projection_head.0", width, hidden), **norm("projection_head.1", hidden)}
    return {**shapes, **linear("projection_head.3", hidden, out), "prototypes.weight": (prototypes, out)}


def expander(width: int, hidden: int, *, bias: bool) -> Shapes:
    """The projector of Barlow Twins, or with biases that of VICReg."""
    shapes: Shapes = {}
    for i, inputs in ((0, width), (3, hidden)):
        shapes |= {**linear(f"projector.{i}", inputs, hidden, bias=bias), **norm(f"projector.{i + 1}", hidden)}
    return {**shapes, **linear("projector.6", hidden, hidden, bias=False)}


def dino_head(width: int, hidden: int, bottleneck: int, out: int) -> Shapes:
    shapes = {**linear("head.mlp.0", width, hidden), **linear("head.mlp.2", hidden, hidden)}
    shapes |= linear("head.mlp.4", hidden, bottleneck)
    return {**shapes, "head.last_layer.weight_g": (out, 1), "head.last_layer.weight_v": (out, bottleneck)}


def under(prefix: str, *parts: Shapes) -> Shapes:
    return {prefix + name: shape for part in parts for name, shape in part.items()}


def moco_v3(backbone: Shapes, head: str, projector: tuple[int, ...], *, predictor_norm: bool) -> Shapes:
    encoders = [under(f"state_dict.module.{e}_encoder.", backbone, moco_v3_head(head, projector)) for e in _ENCODERS]
    out, hidden = projector[-1], projector[1]
    predictor = moco_v3_head("predictor", (out, hidden, out), last_norm=predictor_norm)
    return {**encoders[0], **encoders[1], **under("state_dict.module.", predictor)}


_ENCODERS = ("base", "momentum")


def dino(backbone: Shapes, width: int, *, ddp_teacher: bool) -> Shapes:
    part = under("backbone.", backbone) | dino_head(width, 16, 8, 24)
    teacher = "teacher.module." if ddp_teacher else "teacher."
    return {**under("student.module.", part), **under(teacher, part), "dino_loss.center": (1, 24)}


# By name: the objective and its options, the model, the official names and shapes, and the prefixes of the network that
# a classifier starts from, of the network that is trained, and of the teacher.
RESNET, VIT = small_resnet.NAME, small_vit.NAME
CASES: dict[str, tuple[str, dict[str, Any], str, Shapes, tuple[str, str, str | None]]] = {
    "mocov2": (
        "mocov2",
        {"hidden": 128, "out": 8, "queue": 32},
        RESNET,
        {
            **under("state_dict.module.encoder_q.", resnet(), moco_v2_head(128, 8)),
            **under("state_dict.module.encoder_k.", resnet(), moco_v2_head(128, 8)),
            **{"state_dict.module.queue": (8, 32), "state_dict.module.queue_ptr": (1,)},
        },
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
    ),
    "mocov1": (
        "mocov2",
        {"hidden": 0, "out": 8, "queue": 32},
        RESNET,
        {
            # As a file that sorts its names has them: the momentum encoder comes first.
            **under("state_dict.module.encoder_k.", resnet(), linear("fc", 128, 8)),
            **under("state_dict.module.encoder_q.", resnet(), linear("fc", 128, 8)),
            **{"state_dict.module.queue": (8, 32), "state_dict.module.queue_ptr": (1,)},
        },
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
    ),
    "mocov3": (
        "mocov3",
        {"hidden": (16,), "predictor_hidden": 16, "out": 8},
        RESNET,
        moco_v3(resnet(), "fc", (128, 16, 8), predictor_norm=False),
        ("state_dict.module.base_encoder.",) * 2 + ("state_dict.module.momentum_encoder.",),
    ),
    "mocov3_vit": (
        "mocov3",
        {"hidden": (16, 16), "predictor_hidden": 16, "out": 8, "predictor_norm": True},
        VIT,
        moco_v3(vit(), "head", (32, 16, 16, 8), predictor_norm=True),
        ("state_dict.module.base_encoder.",) * 2 + ("state_dict.module.momentum_encoder.",),
    ),
    "simsiam": (
        "simsiam",
        {"hidden": (128, 128), "out": 16, "bottleneck": 8},
        RESNET,
        under("state_dict.module.", under("encoder.", resnet()), simsiam_heads(128, 16, 8)),
        ("state_dict.module.encoder.",) * 2 + (None,),
    ),
    "swav": (
        "swav",
        {"hidden": 16, "out": 8, "prototypes": 12},
        RESNET,
        under("module.", resnet(), swav_heads(128, 16, 8, 12)),
        ("module.", "module.", None),
    ),
    "barlow_twins": (
        "barlow_twins",
        {"hidden": (16, 16), "out": 16},
        RESNET,
        under(
            "model.module.",
            under("backbone.", resnet()),
            expander(128, 16, bias=False),
            norm("bn", 16, affine=False),
        ),
        ("model.module.backbone.",) * 2 + (None,),
    ),
    "vicreg": (
        "vicreg",
        {"hidden": (16, 16), "out": 16},
        RESNET,
        under("model.module.", under("backbone.", resnet()), expander(128, 16, bias=True)),
        ("model.module.backbone.",) * 2 + (None,),
    ),
    "dino": (
        "dino",
        {"hidden": (16, 16), "bottleneck": 8, "out": 24, "norm_last_layer": False},
        VIT,
        dino(vit(), 32, ddp_teacher=False),
        ("teacher.backbone.", "student.module.backbone.", "teacher.backbone."),
    ),
    "dino_resnet": (
        "dino",
        {"hidden": (16, 16), "bottleneck": 8, "out": 24},
        RESNET,
        dino(resnet(), 128, ddp_teacher=True),
        ("teacher.module.backbone.", "student.module.backbone.", "teacher.module.backbone."),
    ),
}
BACKBONES = {RESNET: resnet(), VIT: vit()}


def values_of(name: str) -> dict[str, np.ndarray]:
    """A checkpoint of random numbers, with what it has of an optimizer."""
    random = np.random.RandomState(0)
    _, options, _, shapes, _ = CASES[name]
    values = {key: (0.1 + random.random_sample(shape)).astype(np.float32) for key, shape in shapes.items()}
    for key in values:
        if key.endswith("num_batches_tracked"):
            values[key] = np.array(7)
        elif key.endswith("queue_ptr"):
            values[key] = np.array([20])
        elif key.endswith("weight_g") and options.get("norm_last_layer", True):
            values[key] = np.ones_like(values[key])
    return {**values, "optimizer.state.0.momentum_buffer": np.ones((3, 3), np.float32), "epoch": np.array(3)}


def configuration(name: str, path: Any, **options: Any) -> Any:
    """Of a self-supervised training."""
    objective, others, model, _, _ = CASES[name]
    config = small_resnet.get_config()
    config.model.name, config.model.pretrained, config.ema_decay = model, str(path), None
    config.objective = recipes.objective(objective, **{**others, **options})
    config.data.views, config.checkpoint.best_metric, config.label_smoothing = "2x8:0.2-1", "val/loss", 0.0
    return config


def classifier(model: str, path: Any) -> Any:
    config = small_resnet.get_config()
    config.model.name, config.model.pretrained = model, str(path)
    return config


def given(config: Any) -> tuple[Any, Any]:
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    objective = build.make_objective(config, 10, config_lib.make_plan(config, 1437))
    return objective, build.load_initial(config, objective, [str(i) for i in range(10)], mesh)


def save(path: Any, values: dict[str, Any]) -> Any:
    np.savez(path, **values)
    return path


def flat(variables: Any) -> dict[str, np.ndarray]:
    """Tensors by the names that torch would have here, in its layout."""
    found = {}
    for tensor in tensors_of({key: variables[key] for key in ("params", "batch_stats")}):
        found[tensor.name] = tensor.to_torch(functools.reduce(lambda node, key: node[key], tensor.path, variables))
    return found


def check_backbone(variables: Any, values: dict[str, np.ndarray], model: str, prefix: str) -> set[str]:
    """Asserts that a backbone is that at a prefix of a checkpoint; returns the names of all other tensors."""
    found = flat(variables)
    for name in BACKBONES[model]:
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found.pop(name), values[prefix + name])
    return set(found)


# The beginnings of the names of heads here, and where they are in the checkpoint: of the network, and of the teacher.
HEADS = {
    "mocov2": ({"projector.": "state_dict.module.encoder_q.fc."}, {"projector.": "state_dict.module.encoder_k.fc."}),
    "mocov1": (
        {"projector.0.": "state_dict.module.encoder_q.fc."},
        {"projector.0.": "state_dict.module.encoder_k.fc."},
    ),
    "mocov3": (
        {"projector.": "state_dict.module.base_encoder.fc.", "predictor.": "state_dict.module.predictor."},
        {"projector.": "state_dict.module.momentum_encoder.fc."},
    ),
    "mocov3_vit": (
        {"projector.": "state_dict.module.base_encoder.head.", "predictor.": "state_dict.module.predictor."},
        {"projector.": "state_dict.module.momentum_encoder.head."},
    ),
    "simsiam": ({"projector.": "state_dict.module.encoder.fc.", "predictor.": "state_dict.module.predictor."}, {}),
    "swav": ({"projector.": "module.projection_head.", "prototypes.": "module.prototypes."}, {}),
    "barlow_twins": ({"projector.": "model.module.projector."}, {}),
    "vicreg": ({"projector.": "model.module.projector."}, {}),
    "dino": ({"projector.": "student.module.head."}, {"projector.": "teacher.head."}),
    "dino_resnet": ({"projector.": "student.module.head."}, {"projector.": "teacher.module.head."}),
}


@pytest.mark.parametrize("name", CASES)
def test_all_of_it_to_go_on(name: str, tmp_path: Any):
    """Every tensor of the state is the checkpoint's, and every one of the checkpoint, but the optimizer's, is read."""
    _, _, model, _, (_, network, teacher) = CASES[name]
    values = values_of(name)
    objective, found = given(configuration(name, save(tmp_path / "file.npz", values)))
    expected, changed = dict(values), set()
    if name == "simsiam":  # of which the running mean there has a part
        mean = "state_dict.module.encoder.fc.7.running_mean"
        expected[mean] = values[mean] - values["state_dict.module.encoder.fc.6.bias"]
        changed.add("state_dict.module.encoder.fc.6.bias")
    if name == "swav":
        rows = values["module.prototypes.weight"]
        expected["module.prototypes.weight"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    read = set(changed)
    for variables, prefix, heads in ((found, network, HEADS[name][0]), (found.get("ema"), teacher, HEADS[name][1])):
        if prefix is None:
            assert variables is None
            continue
        beside = check_backbone(variables, values, model, prefix)
        read |= {prefix + key for key in BACKBONES[model]}
        tensors = flat(variables)
        for key in beside:
            theirs = next(heads[ours] + key.removeprefix(ours) for ours in heads if key.startswith(ours))
            np.testing.assert_allclose(tensors[key], expected[theirs], rtol=1e-6)
            read.add(theirs)
    if name.startswith("moco") and "queue" in found.get("extra", {}):
        np.testing.assert_array_equal(found["extra"]["queue"], values["state_dict.module.queue"].T)
        assert found["extra"]["position"] == 20
        read |= {"state_dict.module.queue", "state_dict.module.queue_ptr"}
    if name.startswith("dino"):
        np.testing.assert_array_equal(found["extra"]["center"], values["dino_loss.center"][0])
        read.add("dino_loss.center")
    rest = {key for key in values.keys() - read if not key.endswith("num_batches_tracked")}
    left = {"optimizer.state.0.momentum_buffer", "epoch"}
    if name == "barlow_twins":
        left |= {"model.module.bn.running_mean", "model.module.bn.running_var"}  # which no loss uses
    if name == "dino_resnet":
        left |= {key for key in values if key.endswith("weight_g")}  # which are ones
    assert rest == left
    # And nothing else is to be begun: what the objective has is there.
    shapes = jax.tree.map(jnp.shape, {key: abstract_variables(objective)[key] for key in ("params", "batch_stats")})
    assert jax.tree.map(jnp.shape, {key: found[key] for key in ("params", "batch_stats")}) == shapes


@pytest.mark.parametrize("name", ["mocov2", "mocov3_vit"])
def test_the_state_that_training_goes_on_from(name: str, tmp_path: Any):
    """Network, teacher, queue and its position; the teacher's predictor, which nothing uses, is the network's."""
    values = values_of(name)
    config = configuration(name, save(tmp_path / "file.npz", values))
    objective, found = given(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    program = build.make_program(config, config_lib.make_plan(config, 1437), objective, mesh)
    state = program.initialize(found)
    for tree, part in ((state.variables, found), (state.ema, found["ema"])):
        flat_found, expected = flat(tree), flat(part)
        for key, value in expected.items():
            np.testing.assert_array_equal(flat_found[key], value)
        assert {key.split(".")[0] for key in flat_found.keys() - expected.keys()} <= {"predictor"}
    jax.tree.map(np.testing.assert_array_equal, unfreeze(state.extra), found.get("extra", {}))
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
    if name == "mocov2":
        config.objective.queue = 64
        objective, found = given(config)
        program = build.make_program(config, config_lib.make_plan(config, 1437), objective, mesh)
        with pytest.raises(
            DataError, match=r"queue has the shape \(32, 8\) in the weights, and \(64, 8\) here: set the"
        ):
            program.initialize(found)


@pytest.mark.parametrize("name", CASES)
def test_the_backbone_for_a_classifier(name: str, tmp_path: Any, caplog: pytest.LogCaptureFixture):
    """It is the network that the authors evaluate, and there is no classifier, whatever has the place of one."""
    caplog.set_level(logging.INFO, "vision_jax")
    objective, _, model, _, (prefix, _, _) = CASES[name]
    values = values_of(name)
    config = classifier(model, save(tmp_path / "file.npz", values))
    _, found = given(config)
    title = {"mocov2": "MoCo", "mocov1": "MoCo", "mocov3_vit": "MoCo v3", "dino_resnet": "DINO"}.get(name)
    title = title or {"mocov3": "MoCo v3", "simsiam": "SimSiam", "swav": "SwAV", "dino": "DINO"}.get(name)
    title = title or {"barlow_twins": "Barlow Twins", "vicreg": "VICReg"}[name]
    assert f"the file is a checkpoint of {title}, of which this is the backbone" in caplog.text
    assert "the weights have no classifier; it is new, for 10 classes" in caplog.text
    assert "WARNING" not in caplog.text
    head = "fc" if model == RESNET else "head"
    assert check_backbone(found, values, model, prefix) == {f"{head}.weight", f"{head}.bias"}
    assert method_of(values).objective == objective  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"has no classifier of small_"):
        pretrained.classes_of(model, tmp_path / "file.npz", in_channels=1)
    # Features alone are its backbone too, and so they are in the file of the backbone that some authors have.
    alone = {key.removeprefix(prefix): x for key, x in values.items() if key.removeprefix(prefix) in BACKBONES[model]}
    assert method_of(alone) is None
    for content in (values, alone):
        features = pretrained.from_torch(model, content, num_classes=0, in_channels=1)
        assert check_backbone(features, values, model, prefix) == set()


@pytest.mark.parametrize(
    ("name", "lost", "options", "message"),
    [
        (
            "mocov2",
            "queue",
            {},
            r"2 of the 10 tensors beside the backbone do not fit, such as queue is missing",
        ),
        ("mocov2", "encoder_k", {}, r"4 of the 10 .* such as encoder_k\.fc\.0\.bias is missing"),
        ("mocov2", "", {"out": 4}, r"encoder_q\.fc\.2\.bias has the shape \(8,\), not \(4,\)"),
        (
            "mocov1",
            "",
            {"hidden": 64},
            r"is a checkpoint of MoCo, but has none of the 4 tensors of its heads",
        ),
        ("mocov3", "predictor", {}, r"6 of the 22 .* such as predictor\.1\.running_mean is missing"),
        ("mocov3_vit", "", {"predictor_norm": False}, r"such as predictor\.4\.running_mean is left over"),
        ("simsiam", "fc.6.bias", {}, r"such as encoder\.fc\.6\.bias is missing"),
        ("swav", "prototypes", {}, r"such as prototypes\.weight is missing"),
        ("swav", "layer2", {}, r"do not fit small_resnet: \d+ missing \(layer2\."),
        ("barlow_twins", "projector.3", {}, r"such as projector\.3\.weight is missing"),
        ("dino", "dino_loss", {}, r"such as dino_loss\.center is missing"),
        ("dino", "", {"norm_last_layer": True}, r"weight_g is between 0\.1.* Set objective\.norm_last_layer=False"),
        (
            "dino_resnet",
            "",
            {"hidden": (16,)},
            r"student\.head\.mlp\.2\.bias has the shape \(16,\), not \(8,\)",
        ),
    ],
)
def test_what_does_not_fit_is_told(name: str, lost: str, options: dict[str, Any], message: str, tmp_path: Any):
    """A part that is missing, other widths, and what would compute something else."""
    values = {key: value for key, value in values_of(name).items() if not lost or lost not in key}
    with pytest.raises(DataError, match=message):
        given(configuration(name, save(tmp_path / "file.npz", values), **options))


def test_a_file_of_another_method_or_of_a_backbone(tmp_path: Any, caplog: pytest.LogCaptureFixture):
    """Its backbone is used, and the log says that it is no more; a file of neither is refused."""
    caplog.set_level(logging.INFO, "vision_jax")
    values = values_of("swav")
    _, found = given(configuration("vicreg", save(tmp_path / "swav.npz", values)))
    assert "is a checkpoint of SwAV (swav), not of vicreg: only its backbone is used" in caplog.text
    assert check_backbone(found, values, RESNET, "module.") == set()
    caplog.clear()
    alone = {key.removeprefix("module."): values[key] for key in values if key.removeprefix("module.") in resnet()}
    _, found = given(configuration("mocov2", save(tmp_path / "alone.npz", alone)))
    assert "nothing in it but the backbone" in caplog.text
    assert found.keys() == {"params", "batch_stats"}
    linear_alone = {"state_dict.module.linear.weight": np.ones((10, 32)), "state_dict.module.linear.bias": np.ones(10)}
    with pytest.raises(DataError, match=r"None of the names in these weights is one of small_resnet: they are state_"):
        given(configuration("mocov2", save(tmp_path / "linear.npz", linear_alone)))


def test_a_running_mean_without_the_bias_computes_the_same(tmp_path: Any):
    """SimSiam's last linear layer has a bias that is never trained: in evaluation, it counts."""
    values = values_of("simsiam")
    objective, found = given(configuration("simsiam", save(tmp_path / "file.npz", values)))
    x = np.random.RandomState(1).standard_normal((5, 128)).astype(np.float32)
    z, _ = objective.apply_heads(found["params"], found["batch_stats"], x, train=False, heads=1)

    def at(name: str) -> np.ndarray:
        return values[f"state_dict.module.encoder.fc.{name}"].astype(np.float64)

    h = x.astype(np.float64)
    for i in (0, 3):
        h = (h @ at(f"{i}.weight").T - at(f"{i + 1}.running_mean")) / np.sqrt(at(f"{i + 1}.running_var") + 1e-5)
        h = np.maximum(h * at(f"{i + 1}.weight") + at(f"{i + 1}.bias"), 0)
    h = h @ at("6.weight").T + at("6.bias")
    np.testing.assert_allclose(z, (h - at("7.running_mean")) / np.sqrt(at("7.running_var") + 1e-5), rtol=1e-4)


# The heads of the published checkpoints, all that is under these names; and the recipe whose objective has them.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int, Shapes]] = {
    "MoCo v2": ("mocov2", {}, 2048, under("encoder_q.", moco_v2_head(2048, 128))),
    "MoCo v3, ResNet-50": (
        "mocov3",
        {},
        2048,
        under("base_encoder.", moco_v3_head("fc", (2048, 4096, 256)))
        | moco_v3_head("predictor", (256, 4096, 256), last_norm=False),
    ),
    "SimSiam": ("simsiam", {}, 2048, simsiam_heads(2048, 2048, 512)),
    "SwAV": ("swav", {}, 2048, swav_heads(2048, 2048, 128, 3000)),
    "Barlow Twins": ("barlow_twins", {}, 2048, expander(2048, 8192, bias=False)),
    "VICReg": ("vicreg", {}, 2048, expander(2048, 8192, bias=True)),
    "DINO, ViT-S": ("dino", {"norm_last_layer": False}, 384, under("student.", dino_head(384, 2048, 256, 65536))),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_the_defaults(name: str):
    kind, options, width, expected = PUBLISHED[name]
    model = vision_jax.create_model("resnet50", num_classes=0)
    objective: Any = OBJECTIVES[kind](setup=Setup(model, (224, 224, 3), (0.5,), (0.5,)), **options)
    x, found = jnp.zeros((1, width)), {}
    for head_name, head in objective.heads.items():
        x, made = jax.eval_shape(lambda x, head=head: head.init_with_output(jax.random.key(0), x, train=False), x)
        for tensor in tensors_of({collection: {head_name: tree} for collection, tree in made.items()}):
            found[objective.official.name_of(tensor.name)] = tensor.shape
    known = {key: shape for key, shape in expected.items() if not key.endswith("num_batches_tracked")}
    known.pop("encoder.fc.6.bias", None)  # which is no parameter here
    assert found == known


def test_timms_names_of_weights():
    """By the name of self-supervised weights, a model has no classifier, and images are normalized as these expect."""
    for name in ("vit_small_patch16_224.dino", "vit_base_patch8_224.dino", "vit_large_patch16_224.mae"):
        known = registry.entry(name)
        assert (known.input.mean, known.input.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert (known.input.crop_pct, known.input.interpolation) == (0.9, "bicubic")
        assert vision_jax.create_model(name).num_classes == 0
        assert vision_jax.create_model(name, num_classes=3).num_classes == 3
    assert vision_jax.create_model("vit_base_patch16_224").num_classes == 1000
    config = config_lib.default_config()
    config.model.name, config.data.model_input = "vit_small_patch16_224", True
    assert config_lib.resolve(config).data.mean == (0.5, 0.5, 0.5)
    config.model.pretrained = "hf://timm/vit_small_patch16_224.dino@main"
    assert config_lib.resolve(config).data.mean == (0.485, 0.456, 0.406)
    config.model.pretrained = "hf://timm/vit_base_patch16_224.dino"  # of another model
    assert config_lib.resolve(config).data.mean == (0.5, 0.5, 0.5)
    config.model.name, config.model.pretrained = "vit_small_patch16_224.dino", "dino_deitsmall16_pretrain.pth"
    assert config_lib.resolve(config).data.mean == (0.485, 0.456, 0.406)
    options = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 4, "img_size": 8, "in_channels": 1}
    values = {key: np.ones(shape, np.float32) for key, shape in vit().items()}
    params = pretrained.from_torch("vit_small_patch16_224.dino", values, **options)["params"]
    assert "head" not in params


def test_export_of_a_run_without_labels(tmp_path: Any, capsys: pytest.CaptureFixture):
    """The file has the backbone alone, of the network or of its teacher, under timm's names, and begins a training."""
    config = configuration("dino", None)
    config.model.name, config.model.scan_blocks, config.model.pretrained = "vit_tiny_patch16_224", True, None
    config.data.image_size, config.data.eval_resize, config.data.views = 32, 32, "2x32:0.2-1"
    config.data.source, config.data.dir = "folder", str(tmp_path / "gone")  # which an export does not need
    objective = build.make_objective(config, 10, config_lib.make_plan(config, 1437))
    options = {"xla_backend_optimization_level": 0}
    state = jax.jit(lambda: build.create_state(objective, optax.sgd(0.1), seed=0), compiler_options=options)()
    values = jax.device_get(state.variables)
    average = jax.tree.map(lambda x: x + 1, values)
    state = state.replace(step=jnp.int32(3), ema=jax.tree.map(jnp.asarray, average))
    about = {"config": json.loads(config_lib.to_json(config)), "num_classes": 10, "class_names": list("0123456789")}
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpointer:
        checkpointer.save(3, state, about)
    expected = vit(192, 12, 16)
    for weights, variables in (("raw", values), ("ema", average)):
        path = tmp_path / f"{weights}.safetensors"
        assert export.main([f"--workdir={tmp_path / 'run'}", f"--weights={weights}", str(path)]) == 0
        written = capsys.readouterr().out
        assert (
            f"vit_tiny_patch16_224, step 3, {weights} weights, without a classifier (for timm: num_classes=0)"
            in written
        )
        file = pretrained.read(path)
        assert {name: tensor.shape for name, tensor in file.tensors.items()} == expected
        assert file.class_names == ()
        for name, value in flat(variables).items():
            if not name.startswith("projector."):
                np.testing.assert_array_equal(file.tensors[name], value)
    config = classifier("vit_tiny_patch16_224", path)
    config.data.image_size, config.model.scan_blocks = 32, True
    again = flat(given(config)[1])
    for name in expected:
        np.testing.assert_array_equal(again.pop(name), file.tensors[name])
    assert again.keys() == {"head.weight", "head.bias"}

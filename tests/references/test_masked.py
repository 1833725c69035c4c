"""Masked autoencoders against models.npz, schedules.npz and parameter_groups.json: one test for each case."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references.common import Case, files, near_largest, read_cases, seeded
from test_recipes import recipe

import vision_jax
from vision_jax import build, pretrained
from vision_jax import config as config_lib
from vision_jax.assembly.states import abstract_variables, heads_alone
from vision_jax.objectives import OBJECTIVES, Setup

MODELS = {
    name: case
    for name, case in read_cases("ssl", "models*.npz").items()
    if case.about["method"] == "mae" or case.name.endswith("_positions")
}
SCHEDULES = {name: case for name, case in read_cases("ssl", "schedules*.npz").items() if case.about["method"] == "mae"}
GROUPS = {
    f"{path.name}:{name}": about
    for path in files("ssl", "parameter_groups*.json")
    for name, about in json.loads(path.read_text()).items()
    if about["method"].startswith("mae ")
}
VALUES, GRADIENTS = 3e-5, 1e-4
ARCHITECTURE = "vit_base_patch16_224"


def model_options(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}


def objective(config: dict[str, Any], **options: Any) -> Any:
    model = vision_jax.create_model(ARCHITECTURE, num_classes=0, positions="mae", **model_options(config))
    names = {
        "decoder_embed_dim": "decoder_width",
        "decoder_depth": "decoder_depth",
        "decoder_num_heads": "decoder_heads",
    }
    names["mask_ratio"] = "mask_ratio"
    options |= {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    return OBJECTIVES["mae"](setup=Setup(model, (config["img_size"],) * 2 + (3,), (0.5,) * 3, (0.5,) * 3), **options)


def check_table(case: Case) -> None:
    """A fresh model has the tables that are fixed in pre-training."""
    config, kind = case.about["config"], {"mae": "mae", "moco_v3": "mocov3"}[case.about["method"]]
    options = {**model_options(config), "depth": 1, "num_classes": 0, "positions": kind}
    model = vision_jax.create_model(ARCHITECTURE, **options)
    images = jnp.zeros((1, config["img_size"], config["img_size"], 3))
    params = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()["params"]
    near_largest(params["pos_embed"], case["pos_embed"], 1e-6)
    if kind == "mae":
        params = jax.jit(lambda: objective(config).init(jax.random.key(0), {}))()["params"]
        near_largest(params["decoder"]["pos_embed"], case["decoder_pos_embed"], 1e-6)
    assert set(case.names()) == {"pos_embed", *(["decoder_pos_embed"] if kind == "mae" else [])}


def check_classifier(case: Case) -> None:
    """The network that is fine-tuned or probed."""
    config = case.about["config"]
    options = model_options(config) | {"num_classes": config["num_classes"]}
    options["global_pool"] = "avg" if config["global_pool"] else "token"
    model = vision_jax.create_model(ARCHITECTURE, **options)
    variables = pretrained.from_torch(ARCHITECTURE, case.state(), **options)
    images = case.seeded("image").transpose(0, 2, 3, 1)
    near_largest(model.apply(variables, images, train=False, method="features"), case["features"], VALUES)
    near_largest(model.apply(variables, images, train=False), case["logits"], VALUES)
    assert set(case.names()) == {"features", "logits"}


def check_autoencoder(case: Case, tmp_path: Any) -> None:
    """Both losses, what leads to them, and their gradients."""
    about, config = case.about, case.about["config"]
    np.savez(tmp_path / "mae.npz", **case.state())
    mine = objective(config, normalize_pixels=False)
    backbone = pretrained.load(ARCHITECTURE, tmp_path / "mae.npz", num_classes=0, **model_options(config))
    decoder = pretrained.load_heads(tmp_path / "mae.npz", heads_alone(mine), mine.official_name)
    variables = {"params": {**backbone["params"], **decoder["params"]}, "batch_stats": {}}
    shapes = abstract_variables(mine)["params"]
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, shapes)
    images = jnp.asarray(case.seeded("image").transpose(0, 2, 3, 1))
    order, key = jnp.argsort(case["noise"], axis=1), jax.random.key(0)
    views = {"image": images, "order": order, "mask": jnp.ones(len(images))}

    predictions, removed, _ = mine.reconstruct(variables, images, order, key, train=False)
    near_largest(predictions, case["pred"], VALUES)
    np.testing.assert_array_equal(removed, case["mask"])
    np.testing.assert_array_equal(jnp.argsort(order, axis=1), case["ids_restore"])
    before, kept = mine.setup.model.apply(variables, images, train=False, kept=order[:, : mine.kept], method="encode")
    near_largest(jnp.concatenate([before, kept], 1), case["latent"], VALUES)

    for loss, gradients, normalize in (("loss", "gradients", False), ("loss_norm_pix", "gradients_norm_pix", True)):
        subject = objective(config, normalize_pixels=normalize)

        def value(params: Any, subject: Any = subject) -> Any:
            out = subject.loss({"params": params}, views, (), key, None, train=True)
            return out.loss / out.weight

        found, grads = jax.value_and_grad(value)(variables["params"])
        near_largest(found, case[loss], VALUES)
        check_gradients(official(grads, mine), about[gradients], set(about["frozen"]))
    assert set(case.names()) == {"noise", "mask", "ids_restore", "latent", "loss", "loss_norm_pix", "pred"}


def official(params: Any, mine: Any) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, under the official names."""
    rest = {key: value for key, value in params.items() if key != "decoder"}
    found = pretrained.to_torch(ARCHITECTURE, {"params": rest})
    for tensor in pretrained.tensors.tensors_of({"params": {"decoder": params["decoder"]}}):
        leaf: Any = {"params": params}
        for part in tensor.path:
            leaf = leaf[part]
        found[mine.official_name(tensor.name)] = tensor.to_torch(leaf)
    return found


def check_gradients(found: dict[str, np.ndarray], expected: dict[str, list[float]], frozen: set[str]) -> None:
    assert found.keys() - frozen == expected.keys()
    largest = max(norm for norm, _ in expected.values())
    for name, (norm, product) in expected.items():
        value = np.asarray(found[name], np.float64)
        probe = seeded(zlib.crc32(f"probe of {name}".encode()), value.shape)
        assert np.linalg.norm(value) == pytest.approx(norm, abs=GRADIENTS * largest), name
        assert (value * probe).sum() == pytest.approx(product, abs=GRADIENTS * largest * np.sqrt(value.size)), name


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, tmp_path: Any):
    case = MODELS[name]
    config = case.about["config"]
    if case.name.endswith("_positions"):
        check_table(case)
    elif "global_pool" in config:
        check_classifier(case)
    else:
        check_autoencoder(case, tmp_path)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name: str):
    """That of the recipes, for the case's own numbers."""
    case = SCHEDULES[name]
    about = case.about
    assert about["kind"] == "lr"
    config = recipe("mae:vit_b" if about["final"] == 0 else "finetune_mae:vit_b")
    config.epochs, config.schedule.warmup_epochs = float(about["epochs"]), float(about["warmup_epochs"])
    config.schedule.end_factor = about["final"] / about["base"]
    config.optimizer.update({"learning_rate": about["base"], "learning_rate_batch_size": None})
    config.batch_size = 1
    plan = config_lib.make_plan(config, about["iterations_per_epoch"])
    found = np.asarray(build.make_schedule(config, plan)(case["steps"]), np.float64)
    near_largest(found, case["values"], 1e-6)


@pytest.mark.parametrize("name", GROUPS)
def test_parameter_groups(name: str):
    """Those of the recipes' rules."""
    about = GROUPS[name]
    if about["method"] == "mae pre-training":
        config, mine = recipe("mae:vit_b"), objective({**about["config"], "mask_ratio": 0.75})
        params = abstract_variables(mine)["params"]
    else:
        size = {"vit_base_patch16": "vit_b", "vit_large_patch16": "vit_l"}[about["arch"]]
        config, mine = recipe(f"finetune_mae:{size}"), None
        config.model.global_pool = "avg" if about["global_pool"] else "token"
        config.optimizer.layer_decay = about["layer_decay"]
        params = build.variable_shapes(config, build.build_model(config, 1000))["params"]
    rules = build.make_rules(config, config_lib.make_plan(config, 1_281_167))
    found, frozen = {}, set()
    for row, tensor in zip(rules.table(params), tensors_by_path(params), strict=True):
        official_name = tensor.name if mine is None or "decoder" not in tensor.name else mine.official_name(tensor.name)
        if row.frozen:
            frozen.add(official_name)
        else:
            found[official_name] = [row.decays, row.multiplier, *([] if row.layer is None else [row.layer])]
    assert frozen == set(about.get("frozen", []))
    assert found.keys() == about["groups"].keys()
    for key, (decays, scale, *layer) in about["groups"].items():
        assert found[key][0] == decays, key
        assert found[key][1] == pytest.approx(scale, rel=1e-9), key
        assert found[key][2:] == layer, key


def tensors_by_path(params: Any) -> list[Any]:
    """The tensors in the order of the leaves."""
    return pretrained.tensors.tensors_of({"params": params})

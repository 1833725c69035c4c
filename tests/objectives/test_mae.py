import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from masked import IMAGES, check_devices_and_parts, check_masks, check_padding, initialized, objective, views_of, vit

import vision_jax
from vision_jax import build, dry_run, pretrained, recipes
from vision_jax import config as config_lib
from vision_jax.assembly.states import abstract_variables
from vision_jax.config import loading
from vision_jax.devices import flops, sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.objectives.mae import patch_targets, reconstruction_loss

DECODER = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


def mae(model: Any = None, **options: Any) -> Any:
    return objective("mae", vit(positions="mae") if model is None else model, **{**DECODER, **options})


def test_padding_does_not_count():
    check_padding(mae())


@pytest.mark.exhaustive
def test_a_step_on_other_devices_and_in_parts():
    check_devices_and_parts(mae())


def test_masks_are_keyed_by_position():
    mine = mae()
    assert mine.kept == 4
    check_masks(mine, lambda order: jnp.argsort(order, 1) >= mine.kept)


def test_the_loss_by_hand():
    """Patches of 2x2 of the numbers 0 to 15, of which the second and the last are removed."""
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    pixels = patch_targets(image, 2, normalize=False)
    np.testing.assert_array_equal(pixels[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    targets = patch_targets(image, 2, normalize=True)
    # The deviations -2.5, -1.5, 1.5 and 2.5 over the root of 17 / 3, their unbiased variance
    np.testing.assert_allclose(targets[0, 1], np.array([-2.5, -1.5, 1.5, 2.5]) / np.sqrt(17 / 3), rtol=1e-6)
    removed = jnp.array([[0.0, 1.0, 0.0, 1.0]])
    predictions = jnp.array([[9, 9, 9, 9], [2, 3, 6, 8], [9, 9, 9, 9], [12, 11, 14, 15]], jnp.float32)[None]
    assert reconstruction_loss(predictions, pixels, removed).tolist() == [(1 + 4) / 4]


def test_what_was_removed_is_not_seen():
    """The encoder's result and the predictions do not depend on removed pixels, nor on the order of the kept ones."""
    mine = mae()
    variables = initialized(mine)
    views = views_of(mine)
    image, order = views["image"][:2], views["order"][:2]

    @jax.jit
    def compute(image: Any, order: Any) -> Any:
        return mine.reconstruct(variables, image, order, jax.random.key(0), train=False)[:2]

    found, removed = compute(image, order)
    pixels = removed.reshape(2, 4, 4).repeat(4, 1).repeat(4, 2)[..., None]
    np.testing.assert_array_equal(compute(image + 7 * pixels, order)[0], found)
    assert np.abs(compute(image + 7 * (1 - pixels), order)[0] - found).max() > 1e-3
    shuffled = jnp.concatenate([order[:, 3::-1], order[:, :3:-1]], 1)
    np.testing.assert_allclose(compute(image, shuffled)[0], found, atol=1e-5)


def test_the_encoder_costs_a_quarter():
    """Of 196 patches it computes 49, beside the class token: 50 of 197 tokens, and of pairs 50^2 of 197^2."""
    model = vision_jax.create_model("vit_base_patch16_224", num_classes=0, scan_blocks=True)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def counted(kept: Any) -> int:
        encode = jax.jit(lambda v, x, kept: model.apply(v, x, train=False, kept=kept, method="encode"))
        return flops.multiply_adds(encode.trace(variables, images, kept).jaxpr)

    width = 768
    expected = {n: n * 16**2 * 3 * width + 12 * ((n + 1) * 12 * width**2 + 2 * (n + 1) ** 2 * width) for n in (49, 196)}
    assert counted(None) == expected[196]
    part = counted(jax.ShapeDtypeStruct((1, 49), jnp.int32))
    assert part == expected[49]
    assert part / counted(None) == pytest.approx(0.25, abs=0.005)


@pytest.mark.exhaustive
def test_a_step_of_the_recipe_encodes_a_quarter():
    """The step of configs/mae.py has three times the products of 50 tokens in the encoder and of 197 in the decoder.

    Less the gradient of the images, which there is not. Encoding all patches would be 17.5 G multiply-adds, not 4.3.
    """
    config = loading.load(str(REPOSITORY / "configs" / "mae.py") + ":vit_b")
    config.data.source, config.batch_size = "synthetic", 8
    traced = dry_run.trace(config)
    width, decoder = 768, 512

    def blocks(depth: int, tokens: int, width: int) -> int:
        return depth * (tokens * 12 * width**2 + 2 * tokens**2 * width)

    pixels = 16**2 * 3
    encoded = 49 * pixels * width + blocks(12, 50, width)
    decoded = 50 * width * decoder + blocks(8, 197, decoder) + 196 * decoder * pixels
    assert encoded / (196 * pixels * width + blocks(12, 197, width)) == pytest.approx(0.25, abs=0.005)
    assert flops.count(traced.step.jaxpr) == 2 * 8 * (3 * (encoded + decoded) - 49 * pixels * width)


@pytest.mark.parametrize("options", [{}, {"scan_blocks": True}, {"class_token": False, "num_registers": 2}])
def test_all_patches_in_another_order_are_the_whole(options: dict[str, Any]):
    """Encoding a permutation of all patches permutes the result."""
    if "class_token" in options:
        options = {**options, "global_pool": "avg", "norm_after_pooling": False}
    model = vit(depth=2, positions="mocov3", **options)
    images = jnp.asarray(IMAGES[:2], jnp.float32) / 255
    order = jnp.argsort(jax.random.uniform(jax.random.key(1), (2, 16)), 1)

    @jax.jit
    def compute() -> Any:
        variables = model.init(jax.random.key(0), images, train=False)
        whole = model.apply(variables, images, train=False, method="encode")
        return whole, model.apply(variables, images, train=False, kept=order, method="encode")

    (before, patches), (again, permuted) = compute()
    np.testing.assert_allclose(again, before, atol=1e-5)
    np.testing.assert_allclose(permuted, jax.vmap(lambda x, i: x[i])(patches.reshape(2, 16, -1), order), atol=1e-5)


def test_initial_weights():
    """Each matrix is uniform within its own bound, qkv as one; and so are the biases of the patches."""
    mine = mae(vit(embed_dim=64, depth=2, scan_blocks=True), decoder_width=32)
    params = jax.jit(lambda: mine.init(jax.random.key(0), {}))()["params"]
    bounds = {
        ("patch_embed", "proj", "kernel"): 6 / (48 + 64),
        ("patch_embed", "proj", "bias"): 1 / 48,
        ("blocks", "attn", "qkv", "kernel"): 6 / (64 + 3 * 64),
        ("blocks", "attn", "proj", "kernel"): 6 / (64 + 64),
        ("blocks", "mlp", "fc1", "kernel"): 6 / (64 + 256),
        ("decoder", "embed", "kernel"): 6 / (64 + 32),
        ("decoder", "blocks", "0", "attn", "qkv", "kernel"): 6 / (32 + 3 * 32),
        ("decoder", "pred", "kernel"): 6 / (32 + 48),
    }
    for path, squared in bounds.items():
        leaf: Any = params
        for part in path:
            leaf = leaf[part]
        assert np.sqrt(squared) * (0.95 if leaf.size > 100 else 0.8) < np.abs(leaf).max() <= np.sqrt(squared), path
    for token in (params["cls_token"], params["decoder"]["mask_token"]):
        assert 0.01 < np.std(token) < 0.03
    assert params["decoder"]["pos_embed"].shape == (1, 17, 32)
    assert not params["decoder"]["pos_embed"][0, 0].any()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("lenet5", {}, "removes patches of vision transformers, not of LeNet"),
        ({"global_pool": "avg"}, {}, "leave model.global_pool at token"),
        ({"positions": "relative"}, {}, "without a bias of each pair: set other model.positions than relative"),
        ({"patch_size": 5}, {}, "data.image_size is 16, which patches of 5 pixels do not divide"),
        ({}, {"mask_ratio": 0.97}, "objective.mask_ratio is 0.97: of 16 patches it keeps 0"),
        ({}, {"mask_ratio": 0.0}, "objective.mask_ratio is 0.0: of 16 patches it keeps 16"),
        ({}, {"decoder_heads": 0}, "objective.decoder_heads is 0, which must be positive"),
        ({}, {"decoder_width": 30, "decoder_heads": 4}, "objective.decoder_width is 30: it must be a multiple"),
    ],
)
def test_wrong_options(model: Any, options: dict[str, Any], message: str):
    made = vit(**model) if isinstance(model, dict) else vision_jax.create_model(model, num_classes=0)
    with pytest.raises(ConfigError, match=message):
        mae(made, **options)


def test_images_of_another_size_are_refused():
    rows = {"image": np.zeros((2, 32, 32, 3), np.uint8), "mask": np.ones(2, np.float32)}
    with pytest.raises(ConfigError, match=r"of data\.image_size alone, 16 pixels, not of 32: leave data\.eval_size"):
        views_of(mae(), rows)


def config_of(**fields: Any) -> Any:
    config = config_lib.default_config()
    config.model.name, config.data.image_size, config.data.source = "vit_tiny_patch16_224", 32, "synthetic"
    config.model.scan_blocks, config.checkpoint.best_metric = True, "val/loss"
    config.objective = recipes.objective("mae", **DECODER)
    config.update_from_flattened_dict(fields)
    return config


def official_state(config: Any) -> dict[str, np.ndarray]:
    """An official checkpoint of a configuration's model and decoder, of random numbers, by the true names."""
    mine = build.make_objective(config, 10)
    made = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_variables(mine))
    params = {key: value for key, value in made["params"].items() if key != "decoder"}
    state = pretrained.to_torch(config.model.name, {"params": params})
    decoder = made["params"]["decoder"]
    state |= {"mask_token": decoder["mask_token"], "decoder_pos_embed": decoder["pos_embed"]}
    for name in ("embed", "norm", "pred"):
        layer = decoder[name]
        state[f"decoder_{name}.weight"] = layer["kernel"].T if "kernel" in layer else layer["scale"]
        state[f"decoder_{name}.bias"] = layer["bias"]
    for module, layer in {
        **{name: decoder["blocks"]["0"][name] for name in ("norm1", "norm2")},
        **{f"attn.{name}": decoder["blocks"]["0"]["attn"][name] for name in ("qkv", "proj")},
        **{f"mlp.{name}": decoder["blocks"]["0"]["mlp"][name] for name in ("fc1", "fc2")},
    }.items():
        state[f"decoder_blocks.0.{module}.weight"] = layer["kernel"].T if "kernel" in layer else layer["scale"]
        state[f"decoder_blocks.0.{module}.bias"] = layer["bias"]
    random = np.random.RandomState(0)
    return {name: random.standard_normal(value.shape).astype(np.float32) for name, value in state.items()}


def given(config: Any) -> Any:
    """What a run is given to begin with."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return build.load_initial(config, build.make_objective(config, 10), [str(i) for i in range(10)], mesh)


def start(config: Any, params: Any = None) -> Any:
    """The parameters that a run begins with; `params`: those of another run."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    plan = config_lib.make_plan(config, 10_000)
    program = build.make_program(config, plan, build.make_objective(config, 10, plan), mesh)
    return program.initialize({"params": params} if params else given(config)).params


def test_official_weights(tmp_path: Any, caplog: pytest.LogCaptureFixture):
    """Of encoder and decoder, to go on; of the encoder alone, with a new decoder; and for a classifier, with a norm."""
    caplog.set_level(logging.INFO, "vision_jax")
    state = official_state(config_of())
    wrapped = {f"model.module.{name}": value for name, value in state.items()}
    np.savez(tmp_path / "whole.npz", **wrapped)
    params = pretrained_params = start(config_of(**{"model.pretrained": str(tmp_path / "whole.npz")}))
    np.testing.assert_array_equal(params["cls_token"], state["cls_token"])
    np.testing.assert_array_equal(params["decoder"]["mask_token"], state["mask_token"])
    np.testing.assert_array_equal(params["decoder"]["pos_embed"], state["decoder_pos_embed"])
    qkv = params["decoder"]["blocks"]["0"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(qkv, state["decoder_blocks.0.attn.qkv.weight"].T)

    encoder = {name: value for name, value in state.items() if "decoder" not in name and name != "mask_token"}
    np.savez(tmp_path / "encoder.npz", **encoder)
    params = given(config_of(**{"model.pretrained": str(tmp_path / "encoder.npz")}))["params"]
    np.testing.assert_array_equal(params["pos_embed"], state["pos_embed"])
    assert "decoder" not in params
    assert "nothing in it but the backbone" in caplog.text

    classifier = config_of(**{"model.pretrained": str(tmp_path / "whole.npz"), "model.global_pool": "avg"})
    classifier.objective = config_lib.default_config().objective
    classifier.model.head_std, classifier.checkpoint.best_metric = 2e-5, "val/top1"
    params = start(classifier)
    np.testing.assert_array_equal(params["pos_embed"], state["pos_embed"])
    np.testing.assert_array_equal(params["fc_norm"]["scale"], 1)
    assert 1e-5 < np.std(params["head"]["kernel"]) < 3e-5
    assert params.keys() & {"decoder", "norm"} == set()
    again = start(classifier, pretrained_params)  # as from the workdir of the pre-training
    np.testing.assert_array_equal(again["fc_norm"]["scale"], 1)
    np.testing.assert_array_equal(again["cls_token"], params["cls_token"])
    assert jax.tree.structure(again) == jax.tree.structure(params)

    other = config_of(**{"model.pretrained": str(tmp_path / "whole.npz")})
    other.objective.decoder_width = 16
    with pytest.raises(DataError, match=r"19 of the 20 tensors beside the backbone do not fit, such as decoder_blocks"):
        given(other)

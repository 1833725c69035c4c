"""A model's tensors are found behind whatever names wrappers have put before theirs."""

import logging

import jax
import numpy as np
import pytest
from reference import fill

import vision_jax
from vision_jax import pretrained
from vision_jax.errors import DataError

NAME = "vit_tiny_patch16_224"
SMALL = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "img_size": 8, "num_classes": 3}


def make_state(name: str = NAME, **options: object) -> dict[str, np.ndarray]:
    """A state dict of a small model under timm's names."""
    model = vision_jax.create_model(name, **options)
    size = getattr(model, "img_size", 32)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), np.zeros((1, size, size, 3), np.float32), train=False)
    )
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    return {key: fill(key, value.shape) for key, value in pretrained.to_torch(name, zeros).items()}


STATE = make_state(**SMALL)
OTHER = {key: value + 1 for key, value in STATE.items()}
EXPECTED = pretrained.from_torch(NAME, STATE, **SMALL)


@pytest.mark.parametrize("stacked", [False, True])
def test_variables_of_a_run_are_adapted_as_a_file_is(stacked: bool):
    """To other channels and another size of images; what is beside the model, and what fits, stays what it is."""
    options = {**SMALL, "scan_blocks": stacked}
    run = pretrained.from_torch(NAME, STATE, **options)
    run["params"]["projector"] = {"kernel": np.ones((8, 3))}
    new = {**options, "img_size": 16, "in_channels": 1}
    adapted = pretrained.adapt_variables(NAME, run, new)
    beside = run["params"].pop("projector")["kernel"]
    assert adapted["params"].pop("projector")["kernel"] is beside
    assert adapted["params"]["head"]["kernel"] is run["params"]["head"]["kernel"]
    assert adapted["params"]["pos_embed"].shape == (1, 17, 8)
    assert_same(adapted, pretrained.from_torch(NAME, STATE, **new))
    other = pretrained.adapt_variables(NAME, run, {**options, "embed_dim": 16})
    assert other["params"]["pos_embed"].shape == (1, 5, 8)  # not the positions alone differ


def prefixed(prefix: str, state: dict[str, np.ndarray] = STATE) -> dict[str, np.ndarray]:
    return {prefix + key: value for key, value in state.items()}


def assert_same(a: object, b: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "_orig_mod.module.", "model._orig_mod.", "model.module.", "backbone."),
        *("encoder.", "module.encoder.", "teacher.backbone.", "a.b.c."),
    ],
)
def test_prefixes_in_any_nesting(prefix: str):
    assert_same(pretrained.from_torch(NAME, prefixed(prefix), **SMALL), EXPECTED)


@pytest.mark.parametrize(
    "key",
    [
        *("state_dict", "state_dict_ema", "model", "model_ema", "model_state_dict", "net", "module", "teacher"),
        *("student", "weights"),
    ],
)
def test_wrappers_of_any_name(key: str):
    for content in ({key: STATE}, {"epoch": 3, key: {"module": prefixed("_orig_mod.")}}):
        assert_same(pretrained.from_torch(NAME, content, **SMALL), EXPECTED)


@pytest.mark.parametrize(
    ("taken", "other"),
    [
        ("state_dict_ema", "state_dict"),
        ("model_ema", "model"),
        ("ema_model", "module"),
        ("teacher", "student"),
        ("net", "student"),
        ("encoder_q", "encoder_k"),  # neither says what it is: the first one in the file
    ],
)
def test_of_several_the_average_or_the_teacher_is_taken(taken: str, other: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "vision_jax")
    orders = [{taken: STATE, other: OTHER}]
    if "encoder" not in taken:
        orders.append({other: OTHER, taken: STATE})
    for content in orders:
        assert_same(pretrained.from_torch(NAME, content, **SMALL), EXPECTED)
    assert f"the weights under '{taken}.' are read; there are others under '{other}.'" in caplog.text
    flat = prefixed("ema.module.") | OTHER  # beside each other in one dictionary, the other ones without a prefix
    assert_same(pretrained.from_torch(NAME, flat, **SMALL), EXPECTED)


def test_torchvisions_checkpoint_of_an_average():
    """Its state dict begins with a counter that has no prefix."""
    content = {"model": prefixed("module.", OTHER), "model_ema": {"n_averaged": np.array(7), **prefixed("module.")}}
    assert_same(pretrained.from_torch(NAME, content, **SMALL), EXPECTED)


def test_what_trainings_keep_beside_the_weights_is_left_out_and_counted(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "vision_jax")
    beside = {
        "criterion.weight": np.ones(3),
        "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "queue": np.ones((2, 2)),
        "n_averaged": np.array(3),
    }
    assert_same(pretrained.from_torch(NAME, STATE | beside, **SMALL), EXPECTED)
    # The optimizer counts twice: its tensors, and what is none.
    assert "5 entries beside the model's weights are left out: criterion, optimizer, queue, n_averaged" in caplog.text
    wrapped = {"state_dict": prefixed("model."), "optimizer": beside["optimizer"], "epoch": 3, "args": object()}
    assert_same(pretrained.from_torch(NAME, wrapped, **SMALL), EXPECTED)
    # What is of the model's own kind is not: with registers it would compute something else.
    with pytest.raises(DataError, match=r"1 left over \(reg_token \(1, 4, 8\)\)"):
        pretrained.from_torch(NAME, STATE | {"reg_token": np.ones((1, 4, 8))}, **SMALL)


def test_a_classifier_beside_the_backbone_is_found():
    body = {key: value for key, value in STATE.items() if not key.startswith("head.")}
    head = {key: value for key, value in STATE.items() if key.startswith("head.")}
    for place in ("", "head."):
        content = {"state_dict": prefixed("backbone.", body) | prefixed(place, head)}
        assert_same(pretrained.from_torch(NAME, content, **SMALL), EXPECTED)


def test_nothing_that_fits_is_told_in_one_line_with_a_few_names():
    content = {f"features.{i}.w": np.ones(2) for i in range(200)}
    with pytest.raises(DataError) as raised:
        pretrained.from_torch("resnet50", content)
    message = str(raised.value)
    assert "features.0.w, features.1.w, features.2.w, features.3.w, and 196 more" in message
    assert "and 263 more" in message  # of the model's 267
    assert "\n" not in message
    assert len(message) < 400
    with pytest.raises(DataError, match="they are none, and the model's"):
        pretrained.from_torch("resnet50", {})


def test_another_model_is_told_in_one_line():
    with pytest.raises(DataError) as raised:
        pretrained.from_torch("vit_small_patch16_224", STATE, **{**SMALL, "depth": 40})
    message = str(raised.value)
    assert "468 missing (" in message
    assert "and 464 more" in message
    assert len(message) < 600


def test_quantized_weights_are_refused():
    with pytest.raises(DataError, match=r"norm.weight is int8: quantized weights are not read"):
        pretrained.from_torch(NAME, STATE | {"norm.weight": np.ones(8, np.int8)}, **SMALL)

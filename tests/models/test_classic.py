"""AlexNet, VGG, SqueezeNet, GoogLeNet, Inception, DenseNet and ShuffleNet: what is particular to each."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax import pretrained
from vision_jax.models import alexnet, shufflenet, vgg

KEY = jax.random.key(0)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def initialize(model: nn.Module, size: int):
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    return quick(lambda: model.init(KEY, images, train=False))(), images


def test_number_of_parameters_of_the_original_alexnet():
    """The sum over the layers of the paper, in one tower; torchvision's counts are tested with all others."""
    model = vision_jax.create_model("alexnet_original")
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 227, 227, 3)), train=False))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 62_378_344


@pytest.mark.parametrize(("shape", "size"), [((5, 7), (3, 4)), ((2, 3), (7, 7)), ((12, 6), (6, 6)), ((4, 4), (4, 4))])
def test_adaptive_pooling_averages_torchs_cells(shape: tuple[int, int], size: tuple[int, int]):
    x = np.random.RandomState(0).standard_normal((2, *shape, 3)).astype(np.float32)

    def cells(length: int, count: int) -> list[slice]:
        return [slice(math.floor(i * length / count), math.ceil((i + 1) * length / count)) for i in range(count)]

    rows, columns = cells(shape[0], size[0]), cells(shape[1], size[1])
    expected = np.stack([np.stack([x[:, r, c].mean((1, 2)) for c in columns], 1) for r in rows], 1)
    np.testing.assert_allclose(alexnet.adaptive_avg_pool(x, *size), expected, rtol=1e-5, atol=1e-6)


def test_images_too_small_for_alexnet_are_an_error():
    model = vision_jax.create_model("alexnet")
    with pytest.raises(ValueError, match="too small"):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))


def test_local_response_norm_is_the_papers():
    x = np.random.RandomState(0).standard_normal((1, 2, 2, 8)).astype(np.float32) * 100
    expected = np.empty_like(x)
    for i in range(8):
        squares = (x[..., max(0, i - 2) : i + 3].astype(np.float64) ** 2).sum(-1)
        expected[..., i] = x[..., i] / (2 + 1e-4 * squares) ** 0.75
    np.testing.assert_allclose(alexnet.local_response_norm(x), expected, rtol=1e-5)


def test_the_original_alexnet_drops_hidden_units_and_torchvisions_what_they_see():
    features = jnp.ones((1, 4096))
    for original in (False, True):
        model = alexnet.AlexNet(original=original, num_classes=3)
        variables = {"params": {"classifier": {"6": {"kernel": jnp.ones((4096, 3)), "bias": jnp.zeros(3)}}}}
        logits = model.apply(variables, features, train=True, method="classify", rngs={"dropout": KEY})
        assert (logits == 4096).all() != original


def test_torchvisions_vgg_has_dense_layers():
    assert vgg.torchvision_tensor("pre_logits.fc1.weight", (4096, 512, 7, 7)) == ("classifier.0.weight", (4096, 25088))
    assert vgg.torchvision_tensor("pre_logits.fc2.bias", (4096,)) == ("classifier.3.bias", (4096,))
    assert vgg.torchvision_tensor("head.fc.weight", (9, 4096)) == ("classifier.6.weight", (9, 4096))
    assert vgg.torchvision_tensor("features.0.weight", (64, 3, 3, 3)) == ("features.0.weight", (64, 3, 3, 3))


def test_squeezenet_rectifies_logits_at_each_position():
    model = vision_jax.create_model("squeezenet1_1", num_classes=5)
    variables, images = initialize(model, 64)
    logits, maps, features = quick(
        lambda v, x: [model.apply(v, x, train=False, method=m) for m in ("__call__", "feature_maps", "features")]
    )(variables, images)
    classifier = variables["params"]["classifier"]["1"]
    positions = np.maximum(np.asarray(maps[16]) @ classifier["kernel"][0, 0] + classifier["bias"], 0)
    np.testing.assert_allclose(logits, positions.mean((1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(features, maps[16].mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "heads"), [("googlenet", {"aux1", "aux2"}), ("inception_v3", {"AuxLogits"})])
def test_auxiliary_classifiers(name: str, heads: set[str]):
    images = jnp.zeros((2, 299, 299, 3))
    model = vision_jax.create_model(name, aux_logits=True, num_classes=5)
    plain = vision_jax.create_model(name, num_classes=5)
    headless = vision_jax.create_model(name, aux_logits=True, num_classes=0)
    variables, without, none = (
        jax.eval_shape(lambda m=m: m.init(KEY, images, train=False)) for m in (model, plain, headless)
    )
    assert variables["params"].keys() - without["params"].keys() == heads
    assert without["params"].keys() - none["params"].keys() == {"fc"}

    def train(v):
        return model.apply(
            v, images, train=True, method="logits_and_auxiliary", rngs={"dropout": KEY}, mutable=["batch_stats"]
        )

    (logits, auxiliary), updates = jax.eval_shape(train, variables)
    assert logits.shape == (2, 5)
    assert [x.shape for x in auxiliary] == [(2, 5)] * len(heads)
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    assert jax.eval_shape(lambda v: model.apply(v, images, train=False), variables).shape == (2, 5)


@pytest.mark.parametrize("num_classes", [1000, 0])
def test_weights_with_auxiliary_classifiers_fit_a_model_without_them(num_classes: int):
    model = vision_jax.create_model("googlenet", aux_logits=True)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 64, 64, 3)), train=False))
    state = pretrained.to_torch("googlenet", jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    assert "aux1.fc1.weight" in state
    params = pretrained.from_torch("googlenet", state, num_classes=num_classes)["params"]
    assert params.keys() == shapes["params"].keys() - {"aux1", "aux2"} - (set() if num_classes else {"fc"})


def test_shuffling_takes_halves_in_turn():
    assert shufflenet.shuffle(jnp.arange(6)[None]).tolist() == [[0, 3, 1, 4, 2, 5]]

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import vision_jax
from vision_jax import augment, optim, sharding
from vision_jax import config as config_lib
from vision_jax.models.resnet import BasicBlock, ResNet
from vision_jax.state import TrainState, create_state
from vision_jax.steps import Ema, make_eval_step, make_train_step

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def mesh_of(num_devices: int) -> Mesh:
    return sharding.make_mesh(config_lib.default_config(), jax.devices()[:num_devices])


def batch_of(step: int, size: int = 16, image: tuple[int, int, int] = (32, 32, 3)) -> dict[str, np.ndarray]:
    random = np.random.RandomState(step)
    return {
        "image": random.randint(0, 256, (size, *image)).astype(np.uint8),
        "label": random.randint(0, 5, size).astype(np.int32),
        "mask": np.ones(size, np.float32),
    }


QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
LENET = vision_jax.create_model("lenet5", num_classes=5, in_channels=3)


FLIP = augment.AugmentConfig(flip=0.5)


def train(
    num_devices: int,
    num_steps: int,
    *,
    model: nn.Module = LENET,
    ema_decay: float | None = None,
    fields: augment.AugmentConfig = FLIP,
):
    """Trains a small model on so many devices; returns the states and metrics after each step, on the host."""
    mesh = mesh_of(num_devices)
    schedule = optim.create_schedule("cosine", 0.05, total_steps=num_steps + 1, warmup_steps=1)
    optimizer = optim.create_optimizer(
        "sgd", schedule, weight_decay=1e-3, decay_mask=optim.decay_mask, momentum=0.9, nesterov=True
    )
    augmentation = augment.create_augmentation(fields)
    step = make_train_step(
        model,
        optimizer,
        schedule,
        seed=0,
        mean=MEAN,
        std=STD,
        augmentation=augmentation,
        label_smoothing=0.1,
        ema=None if ema_decay is None else Ema(ema_decay),
    )
    create = functools.partial(create_state, model, optimizer, (32, 32, 3), seed=0, ema=ema_decay is not None)
    state = jax.jit(create, out_shardings=sharding.replicated(mesh), compiler_options=QUICK)()
    jitted = jax.jit(step, donate_argnums=0, compiler_options=QUICK)
    states, metrics = [jax.device_get(state)], []
    place = sharding.batch_placer(mesh, 16)
    for i in range(num_steps):
        state, values = jitted(state, {key: place(key, rows) for key, rows in batch_of(i).items()})
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(values))
    return states, metrics


def small_resnet(**options: object) -> ResNet:
    return ResNet(
        block=BasicBlock, depths=(1, 1, 0, 0), num_classes=5, small_stem=True, zero_init_last=False, **options
    )


@pytest.mark.parametrize("options", [{}, {"bn_group_size": 4}], ids=["global", "groups"])
def test_eight_devices_train_as_one(options: dict):
    """Batch norm, flips and all: what a step does is not a matter of how many devices do it."""
    # The learning rate is 0 in the first step, so two make one update; after more, rounding grows chaotically.
    (one, first), (eight, second) = (train(n, 2, model=small_resnet(**options)) for n in (1, 8))
    np.testing.assert_allclose([m["loss"] for m in first], [m["loss"] for m in second], rtol=2e-5)
    changes = [jax.tree.map(np.subtract, states[-1].params, states[0].params) for states in (one, eight)]
    errors = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(a), *changes)
    assert max(jax.tree.leaves(errors["fc"])) < 1e-5
    # A unit that is zero but for rounding passes its gradient here and not there: that shows in the layers before it.
    assert max(jax.tree.leaves(errors)) < 3e-2


def test_ema_equals_its_definition():
    states, _ = train(1, 3, ema_decay=0.8)
    average = states[0].variables
    for state in states[1:]:
        average = jax.tree.map(lambda a, v: 0.8 * a + 0.2 * v, average, state.variables)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), average, state.ema)


def test_without_ema_none_is_kept():
    states, _ = train(1, 1)
    assert states[-1].ema is None


def test_one_step_equals_torch_formulas():
    """Loss with smoothing, weight decay of kernels alone, and the first update, against gradients taken by hand."""
    states, metrics = train(1, 2)
    batch = batch_of(1)
    keys = vision_jax.augment.example_keys(0, jnp.asarray(1), 16)
    flip = augment.create_augmentation(FLIP).augment_image
    images = (np.asarray(jax.vmap(flip)(keys, batch["image"])) / 255 - np.array(MEAN)) / np.array(STD)
    images = images.astype(np.float32)

    def loss_fn(params):
        log_p = jax.nn.log_softmax(LENET.apply({"params": params}, images, train=True))
        return -(0.9 * log_p[jnp.arange(16), batch["label"]] + 0.1 * log_p.mean(1)).mean()

    params = states[1].params  # the learning rate of step 0 is 0, of step 1 it is 0.05
    jax.tree.map(np.testing.assert_array_equal, params, states[0].params)
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
    assert metrics[1]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics[1]["grad_norm"] == pytest.approx(float(optax.global_norm(grads)), rel=1e-4)
    assert (metrics[0]["learning_rate"], metrics[1]["learning_rate"]) == (0.0, pytest.approx(0.05))

    trace = states[1].opt_state
    momenta = [leaf for leaf in jax.tree.leaves(trace) if getattr(leaf, "ndim", 0) > 0]
    for (path, p), g, m, new in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(grads),
        momenta,
        jax.tree.leaves(states[2].params),
        strict=True,
    ):
        g = g + 1e-3 * p * (path[-1].key == "kernel")
        buffer = 0.9 * m + g
        np.testing.assert_allclose(new, p - 0.05 * (g + 0.9 * buffer), rtol=1e-4, atol=1e-6)


def test_eval_step_sums_what_is_not_masked():
    batch = batch_of(0)
    batch["mask"][10:] = 0
    params = jax.jit(lambda: LENET.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()["params"]
    other = jax.tree.map(lambda x: -x, params)
    step = jax.jit(make_eval_step(LENET, mean=MEAN, std=STD))
    sums = step({"": {"params": params}, "ema_": {"params": other}}, batch)
    for prefix, values in (("", params), ("ema_", other)):
        images = (batch["image"][:10] / 255 - np.array(MEAN)) / np.array(STD)
        log_p = np.asarray(jax.nn.log_softmax(LENET.apply({"params": values}, images.astype(np.float32), train=False)))
        labels = batch["label"][:10]
        assert sums[f"{prefix}count"] == 10
        assert sums[f"{prefix}top1"] == (log_p.argmax(1) == labels).sum()
        assert float(sums[f"{prefix}loss"]) == pytest.approx(-log_p[np.arange(10), labels].sum(), rel=1e-4)


def test_the_state_is_a_frozen_pytree_of_float32():
    optimizer = optim.create_optimizer("sgd", 0.1, momentum=0.9)
    model = small_resnet(dtype=jnp.bfloat16)
    step = make_train_step(model, optimizer, lambda _: 0.1, seed=0, mean=MEAN, std=STD, ema=Ema(0.9))
    state = jax.eval_shape(functools.partial(create_state, model, optimizer, (32, 32, 3), seed=0, ema=True))
    after, metrics = jax.eval_shape(step, state, batch_of(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {str(x.dtype) for x in jax.tree.leaves(after)} == {"float32", "int32"}
    assert {str(x.dtype) for x in jax.tree.leaves(metrics)} == {"float32"}
    assert isinstance(after, TrainState)
    with pytest.raises(AttributeError):
        after.step = 3


def test_mixed_targets_and_erased_images_reach_the_loss():
    """mixup and erasing in a step, against the same functions called one by one."""
    fields = augment.AugmentConfig(flip=0.5, erase=1.0, mixup=0.8)
    states, metrics = train(1, 2, fields=fields)
    batch, functions = batch_of(1), augment.create_augmentation(fields)
    keys = augment.example_keys(0, jnp.asarray(1), 16)
    images = jax.vmap(functions.augment_image)(keys, batch["image"])
    images = jax.vmap(functions.after_normalize)(keys, augment.normalize(images, MEAN, STD))
    targets = np.full((16, 5), 0.02) + 0.9 * np.eye(5)[batch["label"]]
    images, targets = functions.mix(augment.batch_key(0, jnp.asarray(1), 16), images, targets)
    log_p = jax.nn.log_softmax(LENET.apply({"params": states[1].params}, images, train=True))
    assert metrics[1]["loss"] == pytest.approx(-float((targets * log_p).sum(1).mean()), rel=1e-4)


def test_replaced_records_are_counted():
    optimizer = optim.create_optimizer("sgd", 0.1, momentum=0.9)
    step = make_train_step(LENET, optimizer, lambda _: 0.1, seed=0, mean=MEAN, std=STD)
    state = jax.eval_shape(functools.partial(create_state, LENET, optimizer, (32, 32, 3), seed=0, ema=False))
    assert "replaced_records" not in jax.eval_shape(step, state, batch_of(0))[1]
    state = create_state(LENET, optimizer, (32, 32, 3), seed=0, ema=False)
    replaced = (np.arange(16) % 5 == 0).astype(np.float32)
    assert jax.jit(step)(state, {**batch_of(0), "replaced": replaced})[1]["replaced_records"] == 4

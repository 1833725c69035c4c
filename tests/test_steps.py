import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import vision_jax
from vision_jax import augment, optim
from vision_jax import config as config_lib
from vision_jax import losses as losses_lib
from vision_jax.build import create_state
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError
from vision_jax.evaluators import Classification as Accuracy
from vision_jax.evaluators import Context
from vision_jax.models import registry, resnet
from vision_jax.models.layers import BatchNorm
from vision_jax.models.resnet import BasicBlock, ResNet
from vision_jax.objectives import Classification, Distillation, Ema, Setup
from vision_jax.state import TrainState
from vision_jax.steps import Sam, make_train_step, move_average

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPE = (16, 16, 3)


def mesh_of(num_devices: int) -> Mesh:
    return sharding.make_mesh(config_lib.default_config().mesh, jax.devices()[:num_devices])


def batch_of(step: int, size: int = 16) -> dict[str, np.ndarray]:
    random = np.random.RandomState(step)
    return {
        "image": random.randint(0, 256, (size, *SHAPE)).astype(np.uint8),
        "label": random.randint(0, 5, size).astype(np.int32),
        "mask": np.ones(size, np.float32),
    }


class Small(nn.Module):
    """One convolution, a norm if there is to be one, and one dense layer."""

    num_classes: int = 5
    norm: bool = False
    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(6, (3, 3), strides=2, name="conv")(x)
        x = BatchNorm(name="bn")(x, train=train) if self.norm else x
        x = nn.Dropout(self.drop_rate)(nn.relu(x).reshape(len(x), -1), deterministic=not train)
        return nn.Dense(self.num_classes, name="fc")(x)


QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
SMALL, WITH_NORM = Small(), Small(norm=True)
FLIP = augment.AugmentConfig(flip=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithLoss(Classification):
    """Classification by any loss."""

    loss_fn: Callable[[jax.Array, jax.Array], jax.Array]

    @property
    def loss_of(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return self.loss_fn


def train(
    num_devices: int,
    num_steps: int,
    *,
    model: nn.Module = SMALL,
    fields: augment.AugmentConfig = FLIP,
    guard: dict[str, float] | None = None,
    ema: Ema | None = None,
    minimizes: type[Classification] = Classification,
    constants: dict | None = None,
    frozen: tuple[str, ...] = (),
    optimizer: optax.GradientTransformation | None = None,
    accumulate: int = 1,
    sam: Sam | None = None,
    **options: object,
):
    """Trains a small model on so many devices; returns the states and metrics after each step, on the host.

    With `guard`, steps may be skipped; `options` are those of the objective.
    """
    mesh = mesh_of(num_devices)
    schedule = optim.create_schedule("cosine", 0.05, total_steps=num_steps + 1, warmup_steps=1)
    if optimizer is None:
        optimizer = optim.create_optimizer(
            "sgd", schedule, weight_decay=1e-3, decay_mask=optim.decay_mask, momentum=0.9, nesterov=True
        )
    if guard is not None:
        optimizer = optim.guard(optimizer, **guard)
    setup = Setup(model, SHAPE, MEAN, STD, augment.create_augmentation(fields), ema)
    objective = minimizes(setup=setup, label_smoothing=0.1, **options)
    rules = optim.GroupRules(frozen=frozen)
    step = make_train_step(objective, optimizer, schedule, seed=0, accumulate=accumulate, sam=sam, rules=rules)
    create = functools.partial(create_state, objective, optimizer, rules, seed=0)
    state = jax.jit(create, out_shardings=sharding.replicated(mesh), compiler_options=QUICK)()
    jitted = jax.jit(step, donate_argnums=0, compiler_options=QUICK)
    states, metrics = [jax.device_get(state)], []
    place = sharding.batch_placer(mesh, 16)
    for i in range(num_steps):
        state, values = jitted(state, place(batch_of(i)), constants or {})
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(values))
    return states, metrics


def small_resnet(**options: object) -> ResNet:
    return ResNet(
        block=BasicBlock, depths=(1, 1, 0, 0), num_classes=5, small_stem=True, zero_init_last=False, **options
    )


# test_sharding.py has the second on two processes.
GROUPS = pytest.param({"bn_group_size": 4}, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("options", [{}, GROUPS], ids=["global", "groups"])
def test_eight_devices_train_as_one(options: dict, monkeypatch: pytest.MonkeyPatch):
    """Batch norm, flips and all: what a step does is not a matter of how many devices do it."""
    # A unit of ReLU that is zero but for rounding passes its gradient on one of them alone.
    monkeypatch.setattr(resnet.nn, "relu", nn.silu)
    (one, first), (eight, second) = (train(n, 2, model=small_resnet(**options)) for n in (1, 8))
    np.testing.assert_allclose([m["loss"] for m in first], [m["loss"] for m in second], rtol=2e-5)
    # Not of the parameters: those near 1 are rounded by more than that when they are updated.
    momenta = [optax.tree.get(states[-1].opt_state, "trace") for states in (one, eight)]
    errors = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(a), *momenta)
    assert max(jax.tree.leaves(errors)) < 1e-5, errors
    assert_close(one[-1].params, eight[-1].params, rtol=1e-5, atol=1e-6)


def test_ema_equals_its_definition():
    states, _ = train(1, 3, model=WITH_NORM, ema=Ema(0.8))
    average = states[0].variables
    for state in states[1:]:
        average = jax.tree.map(lambda a, v: 0.8 * a + 0.2 * v, average, state.variables)
        assert_close(average, state.ema)


def assert_close(expected: object, actual: object, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=rtol, atol=atol), expected, actual)


def test_ema_that_begins_late_and_moves_at_times():
    """A copy until the start, then every so many steps, as torchvision's; and TensorFlow's warm-up of the decay."""
    states, _ = train(1, 9, ema=Ema(0.25, every=2, start=3, warmup=True))
    average, updates = None, 0
    for done, state in enumerate(states[1:], start=1):
        if done <= 3:
            average = state.variables
        elif (done - 3) % 2 == 0:
            updates += 1
            decay = min(0.25, (1 + updates) / (10 + updates))
            average = jax.tree.map(lambda a, v, d=decay: d * a + (1 - d) * v, average, state.variables)
        assert_close(average, state.ema)
    assert updates == 3
    assert decay == 0.25


MIXED = augment.AugmentConfig(flip=0.5, erase=1.0, mixup=0.8)


# Of what several tests look at. A run is compiled anew each time.
@functools.cache
def plain_run():
    return train(1, 2)


@functools.cache
def mixed_run():
    return train(1, 3, fields=MIXED)


def test_accumulated_parts_make_the_same_update_as_the_whole_batch():
    whole, first = mixed_run()
    for devices in (1, 4):
        parts, second = train(devices, 3, fields=MIXED, accumulate=4)
        for a, b in zip(first, second, strict=True):
            assert_close(a, b, rtol=2e-5)
        assert_close(whole[-1].params, parts[-1].params, rtol=1e-4, atol=1e-6)


def test_accumulated_parts_are_normalized_one_after_another():
    states, metrics = train(1, 1, model=WITH_NORM, fields=augment.AugmentConfig(), accumulate=2)
    batch, stats, losses = batch_of(0), states[0].batch_stats, []
    images = augment.normalize(batch["image"], MEAN, STD)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        variables = {"params": states[0].params, "batch_stats": stats}
        logits, stats = WITH_NORM.apply(variables, images[rows], train=True, mutable=["batch_stats"])
        stats = stats["batch_stats"]
        targets = losses_lib.smooth_targets(batch["label"][rows], 5, 0.1)
        losses.append(losses_lib.softmax_cross_entropy(logits, targets).mean())
    assert metrics[0]["loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-5)
    assert_close(stats, states[1].batch_stats)


def test_sam_looks_up_the_loss_every_other_step():
    """Against the two gradients of the paper, taken one after the other."""
    options = {"model": WITH_NORM, "fields": augment.AugmentConfig()}
    states, metrics = train(1, 3, sam=Sam(0.5, every=2), **options)

    def gradients(params: object, state: TrainState, batch: dict) -> object:
        def loss_fn(params: object) -> jax.Array:
            images = augment.normalize(batch["image"], MEAN, STD)
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits = WITH_NORM.apply(variables, images, train=True, mutable=["batch_stats"])[0]
            return losses_lib.softmax_cross_entropy(logits, losses_lib.smooth_targets(batch["label"], 5, 0.1)).mean()

        return jax.grad(loss_fn)(params)

    jitted = jax.jit(gradients, compiler_options=QUICK)
    for i in range(3):
        grads = jitted(states[i].params, states[i], batch_of(i))
        if i % 2 == 0:
            scale = 0.5 / optax.tree.norm(grads)
            disturbed = jax.tree.map(lambda p, g, s=scale: p + s * g, states[i].params, grads)
            grads = jitted(disturbed, states[i], batch_of(i))
        assert metrics[i]["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)


def broken_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Not a number for the batch of step 1, and far too large for that of step 20."""
    values = losses_lib.softmax_cross_entropy(logits, targets)
    labels = targets.argmax(-1)

    def is_step(step: int) -> jax.Array:
        return (labels == batch_of(step)["label"]).all()

    return jnp.where(is_step(1), jnp.nan, jnp.where(is_step(20), 50 * values, values))


def test_steps_that_are_not_finite_are_skipped():
    states, metrics = train(1, 3, model=WITH_NORM, ema=Ema(0.9), guard={}, minimizes=WithLoss, loss_fn=broken_loss)
    assert [m["skipped_steps"] for m in metrics] == [0, 1, 1]
    assert [m["skipped_in_a_row"] for m in metrics] == [0, 1, 0]
    assert np.isnan(metrics[1]["loss"])
    before, after = states[1], states[2]
    assert after.step == before.step + 1
    for name in ("params", "batch_stats", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    jax.tree.map(np.testing.assert_array_equal, before.opt_state.inner, after.opt_state.inner)
    # What is not skipped goes on, with the learning rate of the update that it is.
    assert np.isfinite(jax.tree.leaves(states[3].params)[0]).all()
    assert metrics[2]["learning_rate"] == metrics[1]["learning_rate"]
    assert (states[3].params["fc"]["bias"] != states[2].params["fc"]["bias"]).any()


def test_spikes_are_skipped():
    options = {"fields": augment.AugmentConfig(), "minimizes": WithLoss, "loss_fn": broken_loss}
    states, metrics = train(1, 22, guard={"spike_deviations": 6.0, "window": 18}, **options)
    assert [i for i in range(22) if metrics[i]["skipped_in_a_row"]] == [1, 20]
    jax.tree.map(np.testing.assert_array_equal, states[20].params, states[21].params)
    history = np.asarray(states[-1].opt_state.losses)
    expected = [m["loss"] for i, m in enumerate(metrics) if i not in (1, 20)][-18:]
    np.testing.assert_allclose(sorted(history), sorted(expected), rtol=1e-6)


class TwoHeads(Small):
    """As a model with a distillation token has it."""

    def heads(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        logits = self(x, train=train)
        return logits, logits[:, ::-1]


class TwoExits(Small):
    aux_logits: bool = True

    def logits_and_auxiliary(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        logits = self(x, train=train)
        return logits, (logits / 2, -logits)


def logits_and_targets(state: TrainState) -> tuple[np.ndarray, np.ndarray]:
    """What the small model makes of the first batch, without augmentation, and its smoothed targets."""
    images = augment.normalize(batch_of(0)["image"], MEAN, STD)
    return np.asarray(SMALL.apply({"params": state.params}, images, train=True)), 0.02 + 0.9 * np.eye(5)[
        batch_of(0)["label"]
    ]


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(targets * log_p).sum(1).mean()


NAME = "small_teacher"
if NAME not in registry.list_models():
    registry.register(NAME, lambda num_classes=5, **_: Small(num_classes), library="")


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("model", [SMALL, TwoHeads()], ids=["one", "two"])
def test_distillation_equals_its_formula(model: nn.Module, kind: str):
    """The teacher has its own normalization; of two heads, the second one learns from it."""
    images = batch_of(0)["image"] / 127.5 - 1
    variables = jax.device_get(SMALL.init(jax.random.key(5), images[:1], train=False))
    teacher = {"teacher": NAME, "pretrained": "", "teacher_mean": (0.5,) * 3, "teacher_std": (0.5,) * 3}
    states, metrics = train(
        1,
        1,
        model=model,
        fields=augment.AugmentConfig(),
        minimizes=Distillation,
        constants={"teacher": variables},
        kind=kind,
        temperature=3.0,
        weight=0.7,
        **teacher,
    )
    logits, targets = logits_and_targets(states[0])
    student = logits[:, ::-1] if isinstance(model, TwoHeads) else logits
    theirs = np.asarray(SMALL.apply(variables, images.astype(np.float32), train=False), np.float64)
    if kind == "hard":
        distance = cross_entropy(student, np.eye(5)[theirs.argmax(1)])
    else:
        p = np.exp(theirs / 3) / np.exp(theirs / 3).sum(1, keepdims=True)
        q = np.exp(student / 3) / np.exp(student / 3).sum(1, keepdims=True)
        distance = 9 * (p * np.log(p / q)).sum(1).mean()
    expected = 0.3 * cross_entropy(logits, targets) + 0.7 * distance
    assert metrics[0]["loss"] == pytest.approx(expected, rel=1e-5)
    hits = ((logits + student).argmax(1) == batch_of(0)["label"]).mean()
    assert metrics[0]["top1"] == pytest.approx(hits)


def test_auxiliary_classifiers_learn():
    states, metrics = train(1, 1, model=TwoExits(), fields=augment.AugmentConfig(), auxiliary_weight=0.4)
    logits, targets = logits_and_targets(states[0])
    others = cross_entropy(logits / 2, targets) + cross_entropy(-logits, targets)
    assert metrics[0]["loss"] == pytest.approx(cross_entropy(logits, targets) + 0.4 * others, rel=1e-5)


def test_an_average_of_slow_decay_settles_at_the_value():
    """In float32, against float64: factors that are rounded each by itself would leave it at 0.9998 of the value."""
    random = np.random.RandomState(0)
    move = jax.jit(lambda average, new: move_average(average, new, 0.9999))
    average, exact = jnp.zeros(8), np.zeros(8)
    for _ in range(3000):
        new = 1 + 0.1 * random.randn(8).astype(np.float32)
        average, exact = move(average, new), exact + (1 - 0.9999) * (new - exact)
    np.testing.assert_allclose(average, exact, rtol=2e-5)
    ones = jnp.ones(8)
    np.testing.assert_array_equal(move_average(ones, ones, 0.99998), ones)
    np.testing.assert_array_equal(move_average(ones, ones * 0.7, jnp.float32(0)), ones * 0.7)


def test_frozen_parameters_cost_no_backward_pass_and_count_in_no_norm():
    """As a step of a model whose body is a constant; and the operations, counted, are fewer."""
    plain = augment.AugmentConfig()
    states, metrics = train(1, 2, fields=plain, frozen=("^conv/",), sam=Sam(0.5))
    body = states[0].params["conv"]
    for state in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, state.params["conv"], body)
    images, targets = augment.normalize(batch_of(0)["image"], MEAN, STD), 0.02 + 0.9 * np.eye(5)[batch_of(0)["label"]]

    def head_loss(head: dict) -> jax.Array:
        logits = SMALL.apply({"params": {"conv": body, "fc": head}}, images, train=True)
        return -(targets * jax.nn.log_softmax(logits)).sum(1).mean()

    head = states[0].params["fc"]
    grads = jax.grad(head_loss)(head)
    perturbed = jax.tree.map(lambda p, g: p + 0.5 * g / optax.tree.norm(grads), head, grads)
    assert metrics[0]["grad_norm"] == pytest.approx(float(optax.tree.norm(jax.grad(head_loss)(perturbed))), rel=1e-4)

    def operations(frozen: tuple[str, ...]) -> int:
        rules, objective = optim.GroupRules(frozen=frozen), Classification(setup=Setup(SMALL, SHAPE, MEAN, STD))
        step = make_train_step(objective, optax.sgd(0.1), lambda _: 0.1, seed=0, rules=rules)
        state = jax.eval_shape(functools.partial(create_state, objective, optax.sgd(0.1), rules, seed=0))
        compiled = jax.jit(step).lower(state, batch_of(0)).compile()
        return compiled.cost_analysis()["flops"]

    assert operations(("^conv/",)) < 0.75 * operations(())


def test_each_micro_batch_drops_units_of_its_own():
    """Two micro-batches of the same images, which differ by what is dropped alone."""
    batch = {name: np.repeat(x[:8], 2, axis=0) for name, x in batch_of(0).items()}  # rows 0, 2, ... and 1, 3, ...
    model = Small(drop_rate=0.5)
    losses = []

    class Recorded(Classification):
        def loss(self, *arguments: Any, train: bool) -> Any:
            out = super().loss(*arguments, train=train)
            jax.debug.callback(lambda value: losses.append(float(value)), out.loss)
            return out

    objective = Recorded(setup=Setup(model, SHAPE, MEAN, STD))
    step = jax.jit(
        make_train_step(objective, optax.sgd(0.1), lambda _: 0.1, seed=0, accumulate=2), compiler_options=QUICK
    )
    jax.block_until_ready(step(create_state(objective, optax.sgd(0.1), seed=0), batch))
    jax.effects_barrier()
    assert len(losses) == 2
    assert losses[0] != losses[1]


def test_an_objective_that_couples_examples_takes_no_micro_batches():
    class Coupled(Classification):
        couples = True

    objective = Coupled(setup=Setup(SMALL, SHAPE, MEAN, STD))
    with pytest.raises(ConfigError, match=r"Coupled compares the examples .* set optimizer.accumulate to 1, not 2"):
        make_train_step(objective, optax.sgd(0.1), lambda _: 0.1, seed=0, accumulate=2)


def test_what_no_gradient_reaches_moves_after_the_update():
    """Sums over micro-batches, rows in the batch's order, progress of the next step; and no move in a skipped step."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Queue(WithLoss):
        def init_extra(self, variables: Any) -> Any:
            return {"sum": jnp.zeros(()), "rows": jnp.zeros(16, jnp.int32), "epoch": jnp.zeros(())}

        def loss(self, variables: Any, views: Any, targets: Any, key: Any, progress: Any, *, train: bool) -> Any:
            out = super().loss(variables, views, targets, key, progress, train=train)
            return out._replace(sums=views["label"].sum().astype(jnp.float32), rows=views["label"])

        def after(self, params: Any, extra: Any, sums: Any, rows: Any, progress: Any) -> Any:
            return {"sum": sums, "rows": rows, "epoch": progress.epoch}

    whole = {"loss_fn": broken_loss, "guard": {}}  # skips the second step
    parts = {"loss_fn": losses_lib.softmax_cross_entropy, "accumulate": 4}
    for options, second in ((whole, 0), (parts, 1)):
        states, _ = train(1, 3, minimizes=Queue, fields=augment.AugmentConfig(), **options)
        for done, number in ((1, 0), (2, second), (3, 2)):
            labels, extra = batch_of(number)["label"], states[done].extra
            np.testing.assert_array_equal(extra["rows"], labels)
            assert extra["sum"] == labels.sum()
            assert extra["epoch"] == number + 1


def test_without_ema_none_is_kept():
    states, _ = plain_run()
    assert states[-1].ema is None


def test_one_step_equals_torch_formulas():
    """Loss with smoothing, weight decay of kernels alone, and the first update, against gradients taken by hand."""
    states, metrics = plain_run()
    batch = batch_of(1)
    keys = vision_jax.augment.example_keys(0, jnp.asarray(1), 16)
    flip = augment.create_augmentation(FLIP).augment_image
    images = (np.asarray(jax.vmap(flip)(keys, batch["image"])) / 255 - np.array(MEAN)) / np.array(STD)
    images = images.astype(np.float32)

    def loss_fn(params):
        log_p = jax.nn.log_softmax(SMALL.apply({"params": params}, images, train=True))
        return -(0.9 * log_p[jnp.arange(16), batch["label"]] + 0.1 * log_p.mean(1)).mean()

    params = states[1].params  # the learning rate of step 0 is 0, of step 1 it is 0.05
    jax.tree.map(np.testing.assert_array_equal, params, states[0].params)
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
    assert metrics[1]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics[1]["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
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


@pytest.mark.parametrize("flip", [False, True])
def test_eval_step_sums_what_is_not_masked(flip: bool):
    batch = batch_of(0)
    batch["mask"][10:] = 0
    params = jax.jit(lambda: SMALL.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False))()["params"]
    other = jax.tree.map(lambda x: -x, params)
    context = Context(mesh_of(1), None, None, 16, MEAN, STD)
    step = jax.jit(Accuracy(context=context, flip=flip).make_step(Classification(setup=Setup(SMALL, SHAPE, MEAN, STD))))
    sums = step({"": {"params": params}, "ema_": {"params": other}}, batch)
    for prefix, values in (("", params), ("ema_", other)):
        images = ((batch["image"][:10] / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
        logits = SMALL.apply({"params": values}, images, train=False)
        if flip:
            logits = (logits + SMALL.apply({"params": values}, images[:, :, ::-1], train=False)) / 2
        log_p = np.asarray(jax.nn.log_softmax(logits))
        labels = batch["label"][:10]
        assert sums[f"{prefix}count"] == 10
        assert sums[f"{prefix}top1"] == (log_p.argmax(1) == labels).sum()
        assert float(sums[f"{prefix}loss"]) == pytest.approx(-log_p[np.arange(10), labels].sum(), rel=1e-4)


def test_the_state_is_a_frozen_pytree_of_float32():
    optimizer = optim.create_optimizer("sgd", 0.1, momentum=0.9)
    model = small_resnet(dtype=jnp.bfloat16)
    objective = Classification(setup=Setup(model, SHAPE, MEAN, STD, ema=Ema(0.9)))
    step = make_train_step(objective, optimizer, lambda _: 0.1, seed=0)
    state = jax.eval_shape(functools.partial(create_state, objective, optimizer, seed=0))
    after, metrics = jax.eval_shape(step, state, batch_of(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {str(x.dtype) for x in jax.tree.leaves(after)} == {"float32", "int32"}
    assert {str(x.dtype) for x in jax.tree.leaves(metrics)} == {"float32"}
    assert isinstance(after, TrainState)
    with pytest.raises(AttributeError):
        after.step = 3


def test_mixed_targets_and_erased_images_reach_the_loss():
    """mixup and erasing in a step, against the same functions called one by one."""
    states, metrics = mixed_run()
    batch, functions = batch_of(1), augment.create_augmentation(MIXED)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def loss(params: dict, images: jax.Array, targets: jax.Array) -> jax.Array:
        keys = augment.example_keys(0, jnp.asarray(1), 16)
        images = jax.vmap(functions.augment_image)(keys, images)
        images = jax.vmap(functions.after_normalize)(keys, augment.normalize(images, MEAN, STD))
        images, targets = functions.mix(augment.batch_key(0, jnp.asarray(1), 16), images, targets)
        return -(targets * jax.nn.log_softmax(SMALL.apply({"params": params}, images, train=True))).sum(1).mean()

    targets = (0.02 + 0.9 * np.eye(5)[batch["label"]]).astype(np.float32)
    assert metrics[1]["loss"] == pytest.approx(float(loss(states[1].params, batch["image"], targets)), rel=1e-4)


def test_replaced_records_are_counted():
    optimizer = optim.create_optimizer("sgd", 0.1, momentum=0.9)
    objective = Classification(setup=Setup(SMALL, SHAPE, MEAN, STD))
    step = make_train_step(objective, optimizer, lambda _: 0.1, seed=0)
    state = jax.eval_shape(functools.partial(create_state, objective, optimizer, seed=0))
    assert "replaced_records" not in jax.eval_shape(step, state, batch_of(0))[1]
    state = create_state(objective, optimizer, seed=0)
    replaced = (np.arange(16) % 5 == 0).astype(np.float32)
    assert jax.jit(step)(state, {**batch_of(0), "replaced": replaced})[1]["replaced_records"] == 4

"""Adversarial training against formulas in NumPy, on a linear model; and on the digits."""

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.datasets
from conftest import Command, records

from vision_jax import attacks, augment, steps
from vision_jax.errors import ConfigError
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives import adversarial as adversarial_lib
from vision_jax.state import TrainState

SHAPE, CLASSES, ROWS, RATE = (3, 3, 1), 3, 8, 0.5
MEAN, STD = 0.4, 0.3
RANDOM = np.random.RandomState(0)
BATCHES = [
    {
        "image": RANDOM.randint(0, 256, (ROWS, *SHAPE)).astype(np.uint8),
        "label": RANDOM.randint(0, CLASSES, ROWS).astype(np.int32),
        "mask": np.ones(ROWS, np.float32),
    }
    for _ in range(2)
]


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    num_classes: int = CLASSES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(self.num_classes, name="fc")(images.reshape(len(images), -1))


def make(name: str, model: nn.Module | None = None, shape: tuple[int, int, int] = SHAPE, **options: Any) -> Any:
    config = options.pop("augmentation", augment.AugmentConfig())
    setup = Setup(
        model=model or Linear(),
        image_shape=shape,
        mean=(MEAN,),
        std=(STD,),
        augmentation=augment.create_augmentation(config),
        steps_per_epoch=2,
        total_steps=8,
        batch_size=ROWS,
    )
    return OBJECTIVES[name](setup=setup, **options)


def start(objective: Any, optimizer: optax.GradientTransformation) -> TrainState:
    variables = {"batch_stats": {}, **jax.jit(lambda: objective.init(jax.random.key(1), {}))()}
    extra = objective.init_extra(variables)
    params, stats = variables["params"], variables["batch_stats"]
    return TrainState(jnp.int32(0), params, stats, optimizer.init(params), None, extra)


def train(objective: Any, batches: list[Any], **options: Any) -> tuple[list[Any], list[dict[str, float]]]:
    """Returns the states, the first one included, and the metrics of steps of SGD."""
    optimizer = optax.sgd(RATE)
    step = jax.jit(steps.make_train_step(objective, optimizer, optax.constant_schedule(RATE), seed=0, **options))
    states, metrics = [start(objective, optimizer)], []
    for batch in batches:
        state, found = step(states[-1], batch)
        states.append(state)
        metrics.append(jax.device_get(found))
    return jax.device_get(states), metrics


class Formula:
    """The linear model in float64."""

    def __init__(self, params: Any):
        self.weights, self.bias = (np.float64(params["fc"][name]) for name in ("kernel", "bias"))

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels.reshape(ROWS, -1) - MEAN) / STD @ self.weights + self.bias

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        raised = np.exp(self.logits(pixels))
        return raised / raised.sum(1, keepdims=True)

    def loss(self, pixels: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return -(targets * np.log(self.probabilities(pixels))).sum(1)

    def gradient(self, pixels: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The gradient of each image's cross-entropy for its pixels."""
        return ((self.probabilities(pixels) - targets) @ self.weights.T / STD).reshape(pixels.shape)

    def update(self, pixels: np.ndarray, targets: np.ndarray) -> None:
        difference = (self.probabilities(pixels) - targets) / ROWS
        self.weights = self.weights - RATE * ((pixels.reshape(ROWS, -1) - MEAN) / STD).T @ difference
        self.bias = self.bias - RATE * difference.sum(0)

    def check(self, params: Any) -> None:
        np.testing.assert_allclose(params["fc"]["kernel"], self.weights, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(params["fc"]["bias"], self.bias, rtol=1e-4, atol=1e-5)


def pixels_of(batch: dict[str, np.ndarray]) -> np.ndarray:
    return batch["image"].astype(np.float64) / 255


def one_hot(batch: dict[str, np.ndarray], smoothing: float = 0.0) -> np.ndarray:
    return (1 - smoothing) * np.eye(CLASSES)[batch["label"]] + smoothing / CLASSES


def climb(
    formula: Formula, pixels: np.ndarray, first: np.ndarray, goal: np.ndarray, eps: float, step: float, count: int
) -> list[np.ndarray]:
    """Returns the iterates of PGD in linf."""
    iterates = [first]
    for _ in range(count):
        moved = iterates[-1] + step * np.sign(formula.gradient(iterates[-1], goal))
        iterates.append(np.clip(np.clip(moved, pixels - eps, pixels + eps), 0, 1))
    return iterates


@pytest.mark.parametrize("best", [False, True])
def test_a_step_of_pgd_is_that_of_the_formula(best: bool):
    eps, smoothing = 0.1, 0.1
    options = {"eps": eps, "steps": 3, "relative_step": 0.8, "best_iterate": best, "label_smoothing": smoothing}
    (before, after), (metrics,) = train(make("adversarial", **options), BATCHES[:1])
    formula, pixels, goal = Formula(before.params), pixels_of(BATCHES[0]), one_hot(BATCHES[0], smoothing)
    iterates = climb(formula, pixels, pixels, goal, eps, 0.8 * eps, 3)
    chosen = iterates[-1]
    if best:
        values = np.array([formula.loss(each, goal) for each in iterates])
        chosen = np.stack([iterates[number][row] for row, number in enumerate(values.argmax(0))])
    assert metrics["loss"] == pytest.approx(formula.loss(chosen, goal).mean(), rel=1e-5)
    assert metrics["loss"] > formula.loss(pixels, goal).mean() + 0.1
    right = formula.logits(chosen).argmax(1) == BATCHES[0]["label"]
    assert metrics["robust_top1"] == pytest.approx(right.mean())
    formula.update(chosen, goal)
    formula.check(after.params)


def test_a_step_of_trades_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch):
    """Of which the gradient of the loss is that of the formula, too, by differences."""
    noise = 0.001 * np.random.RandomState(1).normal(size=(ROWS, *SHAPE))
    monkeypatch.setattr(adversarial_lib, "first_iterate", lambda images, *_, **__: images + noise)
    eps, beta = 0.08, 3.0
    objective = make("trades", eps=eps, steps=4, relative_step=0.5, beta=beta)
    (before, after), (metrics,) = train(objective, BATCHES[:1])
    formula, pixels, labels = Formula(before.params), pixels_of(BATCHES[0]), one_hot(BATCHES[0])
    clean = formula.probabilities(pixels)
    adversarial = climb(formula, pixels, pixels + noise, clean, eps, 0.5 * eps, 4)[-1]

    def loss(model: Formula) -> float:
        p, q = model.probabilities(pixels), model.probabilities(adversarial)
        return (model.loss(pixels, labels) + beta * (p * (np.log(p) - np.log(q))).sum(1)).mean()

    assert metrics["loss"] == pytest.approx(loss(formula), rel=1e-5)
    slopes = np.zeros_like(formula.weights)
    for index in np.ndindex(slopes.shape):
        for sign in (1, -1):
            formula.weights[index] += sign * 1e-5
            slopes[index] += sign * loss(formula) / 2e-5
            formula.weights[index] -= sign * 1e-5
    expected = formula.weights - RATE * slopes
    np.testing.assert_allclose(after.params["fc"]["kernel"], expected, rtol=1e-3, atol=1e-4)


def test_the_loss_of_mart_is_that_of_the_formula():
    """Of the source, where the largest of the other classes is found by sorting."""
    random = np.random.RandomState(2)
    clean, adversarial = random.normal(size=(2, ROWS, CLASSES)) * 2
    labels = BATCHES[0]["label"]
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (clean, adversarial))
    expected = []
    for row, label in enumerate(labels):
        order = np.argsort(q[row])
        other = order[-2] if order[-1] == label else order[-1]
        boosted = -np.log(q[row, label]) - np.log(1.0001 - q[row, other])
        divergence = (p[row] * (np.log(p[row]) - np.log(q[row]))).sum()
        expected.append(boosted + 5.0 * divergence * (1 - p[row, label]))
    views = {"label": jnp.asarray(labels), "target": jnp.asarray(one_hot(BATCHES[0]), jnp.float32)}
    found = make("mart", beta=5.0).pair_loss(jnp.float32(clean), jnp.float32(adversarial), views)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("config", [augment.AugmentConfig(), augment.AugmentConfig(flip=0.5, mixup=0.5)])
def test_free_steps_are_those_of_the_formula(config: augment.AugmentConfig):
    """Two batches, each in two steps: the perturbation goes on, and pixels beyond [0, 1] have no gradient.

    Both steps of a batch have the same flips and partners.
    """
    eps, relative = 0.1, 0.6
    objective = make("free_adversarial", eps=eps, relative_step=relative, replays=2, augmentation=config)
    states, metrics = train(objective, [BATCHES[0], BATCHES[0], BATCHES[1], BATCHES[1]])
    formula, perturbation = Formula(states[0].params), np.zeros((ROWS, *SHAPE))
    for number in range(4):
        keys, key = (f(0, jnp.int32(number // 2), ROWS) for f in (augment.example_keys, augment.batch_key))
        views = objective.mix(key, objective.views(keys, BATCHES[number // 2]))
        pixels, targets = np.float64(views["image"]) * STD + MEAN, np.float64(views["target"])
        images = pixels + perturbation
        seen = np.clip(images, 0, 1)
        assert metrics[number]["loss"] == pytest.approx(formula.loss(seen, targets).mean(), rel=1e-4)
        gradient = formula.gradient(seen, targets) * ((images >= 0) & (images <= 1))
        perturbation = np.clip(perturbation + relative * eps * np.sign(gradient), -eps, eps)
        formula.update(seen, targets)
        formula.check(states[number + 1].params)
        found = states[number + 1].extra["rows"]["perturbation"]
        np.testing.assert_allclose(found, perturbation, atol=1e-6)
    assert np.abs(perturbation).max() == pytest.approx(eps)


ATTACKS = {
    "pgd": {},
    "ball": {"start": "ball", "steps": 1, "relative_step": 1.25, "best_iterate": False},
    "noise": {"start": "noise"},
    "l2": {"norm": "l2", "eps": 0.5, "start": "ball"},
    "apgd": {"attack": "apgd", "steps": 2},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_examples_stay_in_the_ball_and_raise_the_loss(name: str):
    """Also of mixed images with soft targets, and of noise outside of [0, 1], as random erasing makes it."""
    options: dict[str, Any] = {"eps": 0.05, **ATTACKS[name]}
    config = augment.AugmentConfig(mixup=1.0)
    objective = make("adversarial", augmentation=config, label_smoothing=0.1, **options)
    variables = jax.jit(lambda: objective.init(jax.random.key(1), {}))()
    views = objective.views(augment.example_keys(0, jnp.int32(0), ROWS), BATCHES[0])
    views["image"] = views["image"].at[0].set(3 * jax.random.normal(jax.random.key(3), SHAPE))
    views = objective.mix(jax.random.key(0), views)
    found = objective.targets(variables, None, {}, {}, views, jax.random.key(2), objective.progress(jnp.int32(4)))
    pixels, images = np.float64(objective.pixels(views)), np.float64(found.images)
    assert images.min() >= 0
    assert images.max() <= 1
    sizes = np.abs(images - pixels).reshape(ROWS, -1)
    sizes = np.linalg.norm(sizes, axis=1) if name == "l2" else sizes.max(1)
    assert sizes.max() <= options["eps"] * (1 + 1e-5)
    assert sizes.max() > 0.9 * options["eps"]
    formula, targets = Formula(variables["params"]), np.float64(views["target"])
    assert (formula.loss(images, targets) > formula.loss(pixels, targets)).mean() >= 7 / 8


def test_apgd_learns_from_its_best_iterate():
    """Two steps: one of the whole radius, and one of half of it with momentum, as revisiting-at computes them."""
    objective = make("adversarial", attack="apgd", steps=2, eps=0.05)
    (before, _), (metrics,) = train(objective, BATCHES[:1])
    formula, pixels, goal = Formula(before.params), pixels_of(BATCHES[0]), one_hot(BATCHES[0])
    corner = climb(formula, pixels, pixels, goal, 0.05, 0.1, 1)[-1]  # the best point of a linear model, nearly
    assert metrics["loss"] >= formula.loss(corner, goal).mean() * (1 - 1e-5)


def test_the_radius_rises():
    objective = make("adversarial", eps=0.2, relative_step=0.5, warmup_epochs=2.0)
    found = [[float(x) for x in objective.radius(objective.progress(step))] for step in (0, 2, 4, 6)]
    np.testing.assert_allclose(found, [[0, 0], [0.1, 0.05], [0.2, 0.1], [0.2, 0.1]], rtol=1e-6)
    objective = make("adversarial", eps=0.2, relative_step=0.5, warmup_epochs=2.0, warmup="step")
    np.testing.assert_allclose(objective.radius(objective.progress(2)), [0.2, 0.05], rtol=1e-6)


def test_micro_batches_give_the_same_update():
    options = {"eps": 0.1, "augmentation": augment.AugmentConfig(flip=0.5)}
    whole, parts = (train(make("adversarial", **options), BATCHES, accumulate=n)[0][-1].params for n in (1, 2))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), parts, whole)


class Normed(nn.Module):
    """A batch norm before the linear model."""

    num_classes: int = CLASSES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.BatchNorm(not train, momentum=0.9, name="bn")(images)
        return nn.Dense(self.num_classes, name="fc")(nn.relu(x).reshape(len(images), -1))


def test_in_training_mode_the_attack_moves_the_statistics():
    """By each of its forward passes; in evaluation mode, the training's own pass alone moves them."""
    single = {"eps": 0.1, "steps": 1, "best_iterate": False}
    for mode, passes in (("train", 2), ("eval", 1)):
        objective = make("adversarial", Normed(), mode=mode, **single)
        (before, after), _ = train(objective, BATCHES[:1])
        variables = {"params": before.params, "batch_stats": before.batch_stats}
        views = objective.views(augment.example_keys(0, jnp.int32(0), ROWS), BATCHES[0])
        given = objective.targets(variables, None, {}, {}, views, jax.random.key(0), objective.progress(0))
        images = [np.float64(objective.pixels(views)), np.float64(given.images)][-passes:]
        mean = 0.0
        for each in images:
            mean = 0.9 * mean + 0.1 * ((each - MEAN) / STD).mean()
        assert float(after.batch_stats["bn"]["mean"][0]) == pytest.approx(mean, rel=1e-4)


def test_advprop_has_two_sets_of_norms():
    objective = make("advprop", Normed(), eps=0.1)
    (before, after), (metrics,) = train(objective, BATCHES[:1])
    (_, plain), _ = train(make("classification", Normed()), BATCHES[:1])
    assert before.params["auxiliary"].keys() == before.batch_stats["auxiliary"].keys() == {"bn"}
    np.testing.assert_allclose(after.batch_stats["bn"]["mean"], plain.batch_stats["bn"]["mean"], rtol=1e-5)
    np.testing.assert_allclose(after.params["bn"]["scale"], plain.params["bn"]["scale"], rtol=1e-5)
    assert not np.allclose(after.batch_stats["auxiliary"]["bn"]["mean"], plain.batch_stats["bn"]["mean"], rtol=1e-4)
    assert not np.allclose(after.params["auxiliary"]["bn"]["scale"], before.params["auxiliary"]["bn"]["scale"])
    assert not np.allclose(after.params["fc"]["kernel"], plain.params["fc"]["kernel"], rtol=1e-2)
    assert metrics.keys() >= {"top1", "robust_top1"}
    with pytest.raises(ConfigError, match="the model has none"):
        make("advprop").init(jax.random.key(0), {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adversarial", {"norm": "l1"}, "objective.norm is 'l1'"),
        ("adversarial", {"start": "bal"}, "ball"),
        ("adversarial", {"eps": 0.0}, "objective.eps is 0.0"),
        ("adversarial", {"eps": 4.0}, "objective.eps is 4 of pixels .* such as 0.01569 for 4/255"),
        ("free_adversarial", {"eps": 0.6}, "objective.eps is 0.6 of pixels .* Give 0.5 or less.$"),
        ("adversarial", {"attack": "apgd", "mode": "train"}, "takes objective.mode=eval"),
        ("trades", {"beta": -1.0}, "objective.beta"),
        ("mart", {"augmentation": augment.AugmentConfig(mixup=0.8)}, "set both to 0"),
        ("free_adversarial", {"replays": 0}, "objective.replays is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make(name, **options)


def test_free_takes_no_micro_batches():
    with pytest.raises(ConfigError, match=r"optimizer\.accumulate"):
        train(make("free_adversarial"), BATCHES[:1], accumulate=2)


class Dense(nn.Module):
    """A network of two layers."""

    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        hidden = nn.relu(nn.Dense(96, name="hidden")(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes, name="fc")(hidden)


def test_it_withstands_attacks_that_standard_training_does_not():
    """On digits of 8 x 8 pixels, within seconds; the attack is not the one of the training."""
    digits = sklearn.datasets.load_digits()
    images = np.round(255 / 16 * digits.images[..., None]).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(images))
    images, labels = images[order], digits.target[order].astype(np.int32)
    accuracies = {}
    for name, options in (("classification", {}), ("adversarial", {"eps": 0.1, "start": "ball"})):
        objective = make(name, Dense(), (8, 8, 1), **options)
        optimizer = optax.adam(0.01)
        step = jax.jit(steps.make_train_step(objective, optimizer, optax.constant_schedule(0.01), seed=0))
        state = start(objective, optimizer)
        for number in range(240):
            rows = (np.arange(100) + 100 * number) % 1400
            batch = {"image": images[rows], "label": labels[rows], "mask": np.ones(100, np.float32)}
            state, _ = step(state, batch)
        apply = attacks.classifier(Dense(), {"params": state.params}, (MEAN,), (STD,))
        stages = attacks.find_stages("pgd-20-1", 10)
        found = attacks.evaluate_robustness(
            apply, images[1400:], labels[1400:], jax.random.key(0), stages, eps=0.1, batch_size=397
        )
        accuracies[name] = found.clean_accuracy, found.robust_accuracy
    assert min(clean for clean, _ in accuracies.values()) > 0.9
    assert accuracies["adversarial"][1] > accuracies["classification"][1] + 0.2, accuracies


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_digits_of_the_recipe(command: Command, tmp_path: pathlib.Path):
    """As docs/robustness.md says, with some room for other machines."""
    found = {}
    for variant in ("standard", "pgd"):
        workdir = tmp_path / variant
        config = f"--config=configs/digits_adversarial.py:{variant}"
        command(config, f"--workdir={workdir}", "--config.eval.every_epochs=300")
        weaker = "--config.evals.robust.eps=0.1"
        command(config, f"--workdir={workdir}", "--mode=eval", weaker)
        lines = [line for line in records(workdir) if "robust/robust_top1" in line]
        found[variant] = lines[0]
        if variant == "pgd":
            assert lines[-1]["robust/robust_top1"] > 0.9
    assert found["standard"]["robust/robust_top1"] < 0.05
    assert found["pgd"]["robust/robust_top1"] > 0.8
    assert min(line["robust/top1"] for line in found.values()) > 0.95

"""Attacks on a linear model, of which the smallest perturbation that fools it is known."""

import functools
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vision_jax import attacks
from vision_jax.attacks.apgd import periods
from vision_jax.attacks.evaluation import CLEAN, NOTHING
from vision_jax.attacks.stages import Stage, lacking
from vision_jax.errors import ConfigError

SHAPE, CLASSES, COUNT = (6, 6, 1), 5, 24
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(36, CLASSES)).astype(np.float32)
IMAGES = RNG.uniform(0.3, 0.7, (COUNT, *SHAPE)).astype(np.float32)  # far from the border: no pixel is clipped
LABELS = (IMAGES.reshape(COUNT, -1) @ WEIGHTS).argmax(1)
KEY = jax.random.key(0)


def linear(weights: jax.Array, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ weights


APPLY = jax.tree_util.Partial(linear, WEIGHTS)


def distances(norm: str) -> np.ndarray:
    """The size of the smallest perturbation that fools the model: the margin divided by the dual norm."""
    logits = IMAGES.reshape(COUNT, -1).astype(np.float64) @ WEIGHTS
    found = np.full((COUNT, CLASSES), np.inf)
    for row, label in enumerate(LABELS):
        for other in set(range(CLASSES)) - {label}:
            difference = WEIGHTS[:, label] - WEIGHTS[:, other]
            dual = np.linalg.norm(difference, 1 if norm == "linf" else 2)
            found[row, other] = (logits[row, label] - logits[row, other]) / dual
    return found.min(1)


def radius(norm: str) -> float:
    """A radius that fools about half of the images, and that no image is close to."""
    ordered = np.sort(distances(norm))[COUNT // 4 : -COUNT // 4]
    widest = np.argmax(ordered[1:] / ordered[:-1])
    return float(np.sqrt(ordered[widest] * ordered[widest + 1]))


NORMS = ["linf", pytest.param("l2", marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("norm", NORMS)
def test_autoattack_finds_what_there_is(norm: str):
    eps, expected = radius(norm), distances(norm)
    stages = attacks.stages_of_autoattack(CLASSES)
    assert [(stage.name, stage.targets) for stage in stages] == [
        *(("apgd-ce", 0), ("apgd-t", 4), ("fab-t", 4), ("square", 0)),
    ]
    stages = (*stages[:3], Stage("square", functools.partial(attacks.square, queries=50), black_box=True))
    labels = np.where(np.arange(COUNT) == 3, (LABELS + 1) % CLASSES, LABELS)  # one is wrong from the start
    found = attacks.evaluate_robustness(APPLY, IMAGES, labels, KEY, stages, eps=eps, norm=norm, batch_size=9)
    right = (expected > eps) & (np.arange(COUNT) != 3)
    np.testing.assert_array_equal(found.fooled_by == NOTHING, right)
    np.testing.assert_array_equal(found.fooled_by == CLEAN, np.arange(COUNT) == 3)
    assert found.clean_accuracy == pytest.approx(1 - 1 / COUNT)
    assert found.robust_accuracy == pytest.approx(right.mean())
    assert found.accuracies()["square"] == found.robust_accuracy
    assert found.attacks == tuple(found.accuracies())
    assert found.warnings == ()
    # What fooled the model does so, and is within the radius.
    fooled = found.fooled_by >= 0
    delta = (found.images - IMAGES).reshape(COUNT, -1)[fooled]
    assert (np.linalg.norm(delta, np.inf if norm == "linf" else 2, axis=1) <= eps * 1.0001).all()
    assert (linear(WEIGHTS, found.images).argmax(1) != labels)[fooled].all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_t_finds_what_there_is(norm: str):
    found = attacks.apgd_t(APPLY, IMAGES, LABELS, KEY, eps=radius(norm), norm=norm)
    np.testing.assert_array_equal(found.fooled, distances(norm) <= radius(norm))


@pytest.mark.parametrize("norm", NORMS)
def test_fab_finds_the_nearest_boundary(norm: str):
    found = attacks.fab_t(APPLY, IMAGES, LABELS, KEY, eps=radius(norm), norm=norm)
    np.testing.assert_array_equal(found.fooled, distances(norm) <= radius(norm))
    ratio = -np.asarray(found.loss) / distances(norm)
    # Targets end with the first one that is within the radius, which need not be the nearest.
    assert (ratio > 0.9999).all()
    assert np.quantile(ratio, 0.8) < 1.06  # it overshoots by 5 %


def test_pgd_moves_as_far_as_it_may():
    found = attacks.pgd(APPLY, IMAGES, LABELS, KEY, eps=0.1, steps=40, restarts=2)
    assert np.abs(np.asarray(found.images) - IMAGES).max() == pytest.approx(0.1, rel=1e-5)
    assert (found.fooled | (distances("linf") > 0.1)).mean() > 0.9
    single = attacks.fgsm(APPLY, IMAGES, LABELS, eps=0.1)
    probabilities = np.asarray(jax.nn.softmax(linear(WEIGHTS, IMAGES)), np.float64)
    gradient = (probabilities - np.eye(CLASSES)[LABELS]) @ WEIGHTS.T
    np.testing.assert_allclose(single.images, IMAGES + 0.1 * np.sign(gradient).reshape(IMAGES.shape), atol=1e-6)
    # The best iterate is not worse than the last one; the steps are so long that they go to and fro.
    options = {"eps": 0.1, "norm": "l2", "steps": 3, "step_size": 1.0, "random_start": False}
    last, best = (attacks.pgd(APPLY, IMAGES, LABELS, best_iterate=best, **options) for best in (False, True))
    assert (np.asarray(best.loss) >= np.asarray(last.loss)).all()
    assert (np.linalg.norm((last.images - IMAGES).reshape(COUNT, -1), axis=1) <= 0.1 + 1e-6).all()


@pytest.mark.parametrize(
    "attack", ["pgd", *(pytest.param(x, marks=pytest.mark.exhaustive) for x in ("apgd", "square"))]
)
def test_neither_the_batch_nor_the_devices_change_what_is_found(attack: str):
    options: dict[str, Any] = {"square": {"queries": 5}, "apgd": {"steps": 5}, "pgd": {"steps": 5}}[attack]
    run = functools.partial(getattr(attacks, attack), APPLY, key=KEY, eps=0.05, **options)
    alone = run(images=IMAGES[:8], labels=LABELS[:8])
    divided = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    images, labels = jax.device_put((IMAGES, LABELS.astype(np.int32)), divided)
    together = run(images=images, labels=labels)
    assert together.images.sharding.is_equivalent_to(divided, 4)
    np.testing.assert_allclose(alone.images, together.images[:8], atol=1e-6)
    np.testing.assert_array_equal(alone.fooled, together.fooled[:8])


def test_masked_gradients_are_told():
    stages = (attacks.find_stages("pgd-3", CLASSES)[0], attacks.find_stages("square", CLASSES)[0])
    quick = stages[1]._replace(run=functools.partial(attacks.square, queries=30))
    apply = functools.partial(lambda weights, images: jnp.round(20 * linear(weights, images)), 20 * WEIGHTS)
    found = attacks.evaluate_robustness(apply, IMAGES, LABELS, KEY, (stages[0], quick), eps=0.1, batch_size=COUNT)
    assert found.accuracies()["pgd-3"] == 1
    assert found.robust_accuracy < 0.9
    assert [warning.split()[:2] for warning in found.warnings] == [["The", "gradient"], ["square,", "which"]]
    assert f"zero for {COUNT} of {COUNT} images" in found.warnings[0]
    # Square alone has nothing that it could be compared with.
    alone = attacks.evaluate_robustness(apply, IMAGES, LABELS, KEY, (quick,), eps=0.1, batch_size=COUNT)
    assert len(alone.warnings) == 1


def warnings_of(apply: attacks.Apply, **options: Any) -> tuple[str, ...]:
    """Returns the warnings that clean images alone give."""
    return attacks.evaluate_robustness(apply, IMAGES, LABELS, KEY, (), eps=0.01, **options).warnings


def test_probabilities_are_told():
    (warning,) = warnings_of(lambda images: jax.nn.softmax(linear(WEIGHTS, images)))
    assert "seems to return probabilities" in warning
    # Logits may lie between 0 and 1, too.
    assert warnings_of(lambda images: jax.nn.softmax(linear(WEIGHTS, images)) / 2) == ()


def test_random_models_are_told():
    draws = np.random.default_rng(1)

    def noise(images: np.ndarray) -> np.ndarray:
        return (0.01 * draws.normal(size=(len(images), CLASSES))).astype(np.float32)

    def noisy(images: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((len(images), CLASSES), np.float32)
        # The host draws, so that every call differs; gradients pass by.
        drawn = jax.experimental.io_callback(noise, shape, jax.lax.stop_gradient(images))
        return linear(WEIGHTS, images) + drawn

    (warning,) = warnings_of(noisy)
    assert warning.startswith("The model is random: logits of the same images differ by up to 0.0")
    assert "take autoattack-rand" in warning


def test_models_that_are_not_random_are_told():
    def steady(images: jax.Array, key: jax.Array) -> jax.Array:
        return linear(WEIGHTS, images)

    def noisy(images: jax.Array, key: jax.Array) -> jax.Array:
        return linear(WEIGHTS + 0.1 * jax.random.normal(key, WEIGHTS.shape), images)

    (warning,) = warnings_of(steady, random=True)
    assert warning.startswith("The model is not random: ")
    assert warnings_of(noisy, random=True) == ()


def test_what_autoattack_lacks_is_told(monkeypatch: pytest.MonkeyPatch):
    three = lacking(3)
    assert len(three) == 2
    assert three[0].startswith("AutoAttack is without apgd-t, whose loss needs 4 classes, and the model has 3")
    assert three[1] == "The model has 3 classes: AutoAttack's targeted attacks have all 2 others as targets, not 9."
    assert lacking(10) == lacking(1000) == lacking(3, "rand") == []
    assert lacking(2, "rand")[0].startswith("AutoAttack is without apgd-dlr, whose loss needs 3 classes")
    assert len(lacking(5)) == 1
    with pytest.raises(ConfigError, match="The version of AutoAttack is 'plus'"):
        lacking(5, "plus")
    # `autoattack` says it, beside what the run shows.
    monkeypatch.setattr("vision_jax.attacks.evaluation.stages_of_autoattack", lambda *_: attacks.find_stages("fgsm", 5))
    found = attacks.autoattack(APPLY, IMAGES, LABELS, KEY, eps=0.01)
    assert found.warnings == tuple(lacking(5))


def test_logits_that_are_not_finite_are_errors():
    def broken(images: jax.Array) -> jax.Array:
        return jnp.where(images.mean((1, 2, 3))[:, None] > 0.5, jnp.nan, linear(WEIGHTS, images))

    found = attacks.evaluate_robustness(broken, IMAGES, LABELS, KEY, (), eps=0.01)
    np.testing.assert_array_equal(found.fooled_by == CLEAN, IMAGES.mean((1, 2, 3)) > 0.5)


def test_gradients_of_random_models_are_averaged():
    weights = 0.3 * WEIGHTS

    def noisy(images: jax.Array, key: jax.Array) -> jax.Array:
        return linear(weights + 0.3 * jax.random.normal(key, weights.shape), images)

    probabilities = np.asarray(jax.nn.softmax(linear(weights, IMAGES)), np.float64)
    gradient = ((probabilities - np.eye(CLASSES)[LABELS]) @ weights.T).reshape(IMAGES.shape)
    options: dict[str, Any] = {"eps": 0.05, "steps": 1, "start": IMAGES, "best_loss": True}
    found = attacks.apgd(noisy, IMAGES, LABELS, KEY, eot=100, **options)
    # The step goes along the gradient without noise in 95 % of the pixels; along that of one sample in 76 %.
    assert (np.sign(found.images - IMAGES) == np.sign(gradient)).mean() > 0.9


def test_checkpoints_are_those_of_the_paper():
    period, shorter, least = periods(100)
    after = [period]
    while after[-1] + (period := max(period - shorter, least)) <= 100:
        after.append(after[-1] + period)
    assert after == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize(
    ("text", "norm", "value"),
    [
        ("4/255", "linf", 4 / 255),
        ("4", "linf", 4 / 255),
        ("1", "linf", 1 / 255),
        ("2.5/255", "linf", 2.5 / 255),
        ("0.0157", "linf", 0.0157),
        (".3", "linf", 0.3),
        ("3", "l2", 3.0),
        ("0.5", "l2", 0.5),
        ("128/255", "l2", 128 / 255),
    ],
)
def test_a_radius_is_read(text: str, norm: str, value: float):
    found = attacks.parse_epsilon(text, norm)
    assert found.value == pytest.approx(value)
    assert ("is read as" in found.reading) == (norm == "linf" and text.isdigit())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0", "above 0"),
        ("-4/255", "positive number"),
        ("four", "positive number"),
        ("nan", "positive number"),
        ("4/0", "above 0"),
        ("1e400", "finite"),
        ("4.0", "or 4.0/255"),
        ("200", "any image may become gray"),
        ("", "positive number"),
    ],
)
def test_what_cannot_be_a_radius_is_refused(text: str, problem: str):
    with pytest.raises(ConfigError, match=problem):
        attacks.parse_epsilon(text)


def test_names_are_found():
    for name in ("fgsm", "mi-fgsm", "pgd-20", "pgd-50-10", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"):
        (stage,) = attacks.find_stages(name, 1000)
        assert stage.name == name
    assert len(attacks.find_stages("autoattack", 1000)) == 4
    assert [stage.name for stage in attacks.find_stages("autoattack", 3)] == ["apgd-ce", "fab-t", "square"]
    assert [stage.name for stage in attacks.find_stages("autoattack-rand", 1000)] == ["apgd-ce", "apgd-dlr"]
    (stage,) = attacks.find_stages("pgd-5-2", CLASSES)
    found = stage.run(APPLY, IMAGES, LABELS, KEY, eps=0.1, norm="linf")
    same = attacks.pgd(APPLY, IMAGES, LABELS, KEY, eps=0.1, steps=5, restarts=2, step_size=0.025)
    np.testing.assert_array_equal(found.images, same.images)


def test_errors_say_what_to_do():
    assert attacks.find_stages("mifgsm", 10)[0].name == "mi-fgsm"
    for name in ("pgd", "autoattak", "pgd-0"):
        with pytest.raises(ConfigError, match=f"The attack is '{name}'"):
            attacks.find_stages(name, 10)
    for name in ("pgd", "pgd-20-0", "pgd-99999999999", "pgd-1-99999999999"):
        with pytest.raises(ConfigError, match=f"'{name}': give pgd-STEPS or pgd-STEPS-RESTARTS"):
            attacks.find_stages(name, 10)
    with pytest.raises(ConfigError, match="apgd-t needs more than 3 classes"):
        attacks.find_stages("apgd-t", 3)
    arguments = APPLY, IMAGES, LABELS, KEY
    with pytest.raises(ConfigError, match="The norm is 'l1'"):
        attacks.pgd(*arguments, eps=0.1, norm="l1")
    with pytest.raises(ConfigError, match="The loss of the attack is 'cross'"):
        attacks.pgd(*arguments, eps=0.1, loss="cross")
    with pytest.raises(ConfigError, match="dlr needs 3 classes or more, and the model has 2"):
        attacks.pgd(jax.tree_util.Partial(linear, WEIGHTS[:, :2]), *arguments[1:], eps=0.1, loss="dlr")
    with pytest.raises(ConfigError, match="needs a target"):
        attacks.apgd(*arguments, eps=0.1, loss="dlr-targeted")
    with pytest.raises(ConfigError, match="needs a key"):
        attacks.pgd(*arguments[:3], eps=0.1)
    with pytest.raises(ConfigError, match="attacks need its logits"):
        attacks.pgd(lambda images: images, *arguments[1:], eps=0.1)
    with pytest.raises(ConfigError, match="fgsm is one in linf"):
        attacks.find_stages("fgsm", 10)[0].run(*arguments, eps=0.1, norm="l2")
    with pytest.raises(ConfigError, match="Square in l2 needs 5 x 5"):
        attacks.square(APPLY, IMAGES[:, :4], LABELS, KEY, eps=0.1, norm="l2")
    with pytest.raises(ConfigError, match="before they are normalized"):
        attacks.evaluate_robustness(APPLY, 255 * IMAGES, LABELS, KEY, (), eps=0.1)
    with pytest.raises(ConfigError, match="24 images and 3 labels"):
        attacks.evaluate_robustness(APPLY, IMAGES, LABELS[:3], KEY, (), eps=0.1)

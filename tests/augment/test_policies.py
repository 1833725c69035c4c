"""What policies draw, by its statistics, and what they do with it, by Pillow."""

from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageFilter
import PIL.ImageOps
import pytest
from conftest import picture
from test_ops import GEOMETRIC, POINTWISE, QUICK

from vision_jax import augment
from vision_jax.augment import notation, policies, tables
from vision_jax.augment.ops import OPERATIONS
from vision_jax.augment.policies import Policy
from vision_jax.augment.tables import Scale
from vision_jax.errors import ConfigError


def draw(policy: Policy, count: int = 6000, height: int = 100, width: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Returns the names of the operations for each of many images, (count, n), and their arguments."""
    keys = augment.example_keys(0, jnp.asarray(0), count)
    sample = jax.jit(jax.vmap(lambda key: policies.sample(policy, key, height, width)), compiler_options=QUICK)
    operations, arguments = sample(keys)
    return np.array(OPERATIONS)[np.asarray(operations)], np.asarray(arguments)


def the_policy(text: str, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Returns the table that a policy string draws from."""
    found: list[Policy] = []

    def record(policy: Policy, key: jax.Array, image: jax.Array, **options: object) -> jax.Array:
        found.append(policy)
        return image

    for name in ("apply_policy", "augmix"):
        monkeypatch.setattr(notation, name, record)
    notation.create_policy(text)(jax.random.key(0), jnp.zeros((1, 1, 3), jnp.uint8))
    return found[0]


def test_rand_augment_draws_evenly_and_applies_half(monkeypatch: pytest.MonkeyPatch):
    operations, arguments = draw(the_policy("rand-m9-n3-mstd0.5-inc1", monkeypatch))
    assert operations.shape == (6000, 3)
    for layer in operations.T:
        counts = Counter(layer.tolist())
        assert abs(counts.pop("identity") / 6000 - 0.5) < 0.03
        assert len(counts) == 15
        assert all(abs(count / 6000 - 1 / 30) < 0.012 for count in counts.values())
    same = (operations[:, 0] == operations[:, 1]) & (operations[:, 0] != "identity")
    assert abs(same.mean() - 1 / 60) < 0.008  # layers are independent: drawn with replacement
    degrees = arguments[operations == "rotate"]
    assert abs((degrees > 0).mean() - 0.5) < 0.1
    levels = np.abs(degrees) / 3
    assert levels.max() == pytest.approx(10)
    assert abs(np.median(levels) - 9) < 0.1
    assert abs((levels > 9.5).mean() - 0.159) < 0.06  # one standard deviation above


def test_rand_augment_without_noise_and_with_levels_that_are_even(monkeypatch: pytest.MonkeyPatch):
    operations, arguments = draw(the_policy("rand-m4-p1", monkeypatch))
    assert (operations != "identity").all()
    assert set(np.round(arguments[operations == "rotate"]).tolist()) == {12, -12}
    assert set(np.round(arguments[operations == "color"], 3).tolist()) == {np.float32(0.82)}
    operations, arguments = draw(the_policy("rand-m20-p1-n1-mstd101-mmax20", monkeypatch))
    levels = np.abs(arguments[operations == "rotate"]) / 3
    assert abs(np.mean(levels) - 10) < 1
    assert abs(np.std(levels) - 20 / np.sqrt(12)) < 0.6


def test_auto_augment_draws_its_sub_policies(monkeypatch: pytest.MonkeyPatch):
    policy = the_policy("autoaugment", monkeypatch)
    operations, _ = draw(policy, 20000)
    expected: Counter[tuple[str, str]] = Counter()
    for (first, p, _), (second, q, _) in policy.sub_policies:
        a, b = policy.scales[first].operation, policy.scales[second].operation
        for x, share_x in ((a, p), ("identity", 1 - p)):
            for y, share_y in ((b, q), ("identity", 1 - q)):
                expected[x, y] += share_x * share_y / 25
    counts = Counter(map(tuple, operations.tolist()))
    assert all(abs(counts[pair] / 20000 - expected[pair]) < 0.012 for pair in {*counts, *expected})


def test_trivial_augment_draws_one_operation_and_a_bin(monkeypatch: pytest.MonkeyPatch):
    operations, arguments = draw(the_policy("trivialaugment_wide", monkeypatch), 14000)
    assert operations.shape == (14000, 1)
    assert all(abs(count - 1000) < 160 for count in Counter(operations[:, 0].tolist()).values())
    degrees = np.unique(np.round(arguments[operations == "rotate"], 3))
    np.testing.assert_allclose(degrees, np.linspace(-135, 135, 61), atol=0.01)


def test_augmix_draws_levels_up_to_its_severity(monkeypatch: pytest.MonkeyPatch):
    operations, arguments = draw(the_policy("augmix-m5", monkeypatch))
    assert operations.shape == (6000, 3)
    levels = np.abs(arguments[operations == "shear_x"]) / 0.03
    assert 0.1 <= levels.min() < 0.2
    assert 4.9 < levels.max() <= 5
    assert abs(levels.mean() - 2.55) < 0.15


@pytest.mark.parametrize(
    "text",
    ["rand-m9-mstd3", "rand-m30-mmax30", "original-mstd5", "autoaugment_cifar10", "trivialaugment_wide", "augmix-m10"],
)
def test_no_rotation_is_larger_than_a_policy_says(text: str, monkeypatch: pytest.MonkeyPatch):
    """For `warp` relies on it."""
    policy = the_policy(text, monkeypatch)
    operations, arguments = draw(policy)
    largest = np.abs(arguments[operations == "rotate"]).max()
    assert 0 < largest <= policy.most_degrees * (1 + 1e-6)


def test_drawn_operations_are_applied_in_their_order():
    policy = Policy(tables.TIMM, tables.AUTO_AUGMENT["v0"], repeats=2)
    keys = augment.example_keys(0, jnp.asarray(5), 24)
    image = picture(40, 40)
    fill = (124, 116, 104)

    def draw_and_apply(key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        return policies.sample(policy, key, 40, 40), policies.apply_policy(policy, key, image, fill=fill)

    (operations, arguments), results = jax.jit(jax.vmap(draw_and_apply), compiler_options=QUICK)(keys)
    results = np.asarray(results).astype(int)
    for row, values, result in zip(np.asarray(operations), np.asarray(arguments), results, strict=True):
        expected = PIL.Image.fromarray(image)
        for operation, argument in zip(row, values, strict=True):
            name = OPERATIONS[operation]
            if name in POINTWISE:
                expected = POINTWISE[name][0](expected, float(argument))
            else:
                expected = GEOMETRIC[name][0](expected, float(argument), PIL.Image.Resampling.BILINEAR)
        off = np.abs(result - np.asarray(expected).astype(int))
        assert np.median(off) <= 1
        assert off.mean() < 2, [OPERATIONS[operation] for operation in row]


def test_augmix_mixes_the_image_with_its_chains():
    """With chains that only invert, the share of those with an odd number of operations can be read from the result."""
    policy = Policy({"Invert": Scale("invert")}, ((("Invert", 1.0, 0.0),),), repeats=3)
    image = np.arange(0, 256, 5, dtype=np.uint8).reshape(4, 13, 1).repeat(3, axis=-1)
    run = jax.jit(jax.vmap(lambda key: policies.augmix(policy, key, image)), compiler_options=QUICK)
    results = np.asarray(run(augment.example_keys(0, jnp.asarray(0), 1000))).astype(float)
    share = results[:, 0, 0, 0] / 255  # the darkest pixel becomes 255 times it
    expected = image + share[:, None, None, None] * (255 - 2.0 * image)
    assert np.abs(results - expected).max() <= 1.01
    # The weight of the mixture is Beta(1, 1), and two thirds of the chains count, with shares of Dirichlet(1, 1, 1):
    # the mean is 1/2 * 2/3, and the mean square 1/3 * (3 * 2/3 * 1/6 + 6 * 4/9 * 1/12).
    assert abs(share.mean() - 1 / 3) < 0.03
    assert abs((share**2).mean() - 5 / 27) < 0.025


def test_augmix_weights_are_dirichlet_and_beta():
    draw = jax.jit(jax.vmap(lambda key: policies.augmix_weights(key, 3)))
    shares, weights = map(np.asarray, draw(augment.example_keys(0, jnp.asarray(0), 4000)))
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    for values in shares.T:  # each is Beta(1, 2)
        assert all(abs((values < x).mean() - (1 - (1 - x) ** 2)) < 0.03 for x in (0.1, 0.2, 0.5, 0.8))
    assert all(abs((weights < x).mean() - x) < 0.03 for x in (0.1, 0.5, 0.9))


def test_three_augment_does_one_of_three_to_each_image():
    image = picture(24, 24)
    keys = augment.example_keys(0, jnp.asarray(0), 300)
    run = jax.jit(jax.vmap(augment.create_policy("3augment"), in_axes=(0, None)), compiler_options=QUICK)
    results = np.asarray(run(keys, image))
    grey = np.asarray(PIL.Image.fromarray(image).convert("L").convert("RGB"))
    solarized = np.asarray(PIL.ImageOps.solarize(PIL.Image.fromarray(image)))
    is_grey = (results == grey).all(axis=(1, 2, 3))
    is_solarized = (results == solarized).all(axis=(1, 2, 3))
    assert abs(is_grey.mean() - 1 / 3) < 0.09
    assert abs(is_solarized.mean() - 1 / 3) < 0.09
    blurred = results[~is_grey & ~is_solarized].astype(int)
    most = np.asarray(PIL.Image.fromarray(image).filter(PIL.ImageFilter.GaussianBlur(2))).astype(int)
    change = np.abs(blurred - image).mean(axis=(1, 2, 3))
    assert change.max() <= np.abs(most - image).mean() + 0.5
    assert change.min() < 0.1 < change.max()


@pytest.mark.parametrize(
    "text",
    [
        *("rand-m9-mstd0.5-inc1", "augmix-w2-d1"),
        *(
            pytest.param(text, marks=pytest.mark.exhaustive)
            for text in ("original-mstd0.5", "autoaugment_cifar10", "trivialaugment_wide")
        ),
    ],
)
def test_policies_run_and_are_compiled_once(text: str):
    policy: Callable = jax.jit(jax.vmap(augment.create_policy(text)), compiler_options=QUICK)
    images = np.stack([picture(32, 32, seed=seed) for seed in range(16)])
    results = [np.asarray(policy(augment.example_keys(0, jnp.asarray(s), 16), images)) for s in (0, 1, 0)]
    assert policy._cache_size() == 1  # type: ignore[attr-defined]
    assert results[0].dtype == np.uint8
    assert results[0].shape == images.shape
    assert (results[0] != images).any(axis=(1, 2, 3)).mean() > 0.4
    assert (results[0] == results[2]).all()
    assert (results[0] != results[1]).any(axis=(1, 2, 3)).mean() > 0.4


def test_a_policy_of_one_channel():
    policy = augment.create_policy("rand-m9", mean_color=(128,))
    result = jax.jit(policy, compiler_options=QUICK)(jax.random.key(3), picture(16, 16)[..., :1])
    assert result.shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnad-m9", "begins with 'rnad'; did you mean rand"),
        ("xyzzy", "there are: rand, autoaugment"),
        ("rand-q3", "'q3' is no option of this policy.*it has m, n, p, inc, mstd, mmax"),
        ("rand-m", "'m' is no option"),
        ("rand--m9", "'' is no option"),
        ("rand-m9-m8", "m is there twice"),
        ("rand-m31", "m takes a number from 0.0 to 30.0, not 31"),
        ("rand-n1.5", "n takes an integer from 1 to 16, not 1.5"),
        ("rand-inc2", "inc takes an integer from 0 to 1, not 2"),
        ("rand-minf", "m takes a number"),
        ("augmix-d0", "d takes an integer from 1 to 10, not 0"),
        ("3augment-m1", "'m1' is no option.*it has none"),
        ("rand-tweights", "'tweights' is no option"),
    ],
)
def test_wrong_strings_are_named(text: str, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        augment.create_policy(text)
    assert repr(text) in str(error.value)

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from test_ops import QUICK

from vision_jax.augment import AugmentConfig, create_augmentation
from vision_jax.augment.mixing import apply_mix, boxes_around, mix

BATCH, HEIGHT, WIDTH = 256, 12, 16
RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.uniform(-2, 2, (BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)
TARGETS = np.eye(BATCH, dtype=np.float32)  # so that the shares can be read from the mixed targets


def test_mixing_equals_a_loop():
    lam = RANDOM.uniform(0, 1, BATCH).astype(np.float32)
    use_cutmix = np.arange(BATCH) % 3 == 0
    top, left = RANDOM.randint(0, 6, (2, BATCH))
    boxes = np.stack([top, top + RANDOM.randint(0, 6, BATCH), left, left + RANDOM.randint(0, 10, BATCH)], axis=1)
    labels = RANDOM.randint(0, 10, BATCH)
    targets = np.full((BATCH, 10), 0.01, np.float32)  # label smoothing of 0.1
    targets[np.arange(BATCH), labels] = 0.91
    images, mixed_targets = apply_mix(*map(jnp.asarray, (IMAGES, targets, lam, boxes, use_cutmix)))
    for i in range(BATCH):
        j = BATCH - 1 - i
        expected = IMAGES[i].copy()
        if use_cutmix[i]:
            y0, y1, x0, x1 = boxes[i]
            expected[y0:y1, x0:x1] = IMAGES[j, y0:y1, x0:x1]
        else:
            expected = lam[i] * IMAGES[i] + (1 - lam[i]) * IMAGES[j]
        np.testing.assert_allclose(images[i], expected, atol=1e-5)
        expected_target = np.full(10, 0.01)
        expected_target[labels[i]] += 0.9 * lam[i]
        expected_target[labels[j]] += 0.9 * (1 - lam[i])
        np.testing.assert_allclose(mixed_targets[i], expected_target, atol=1e-5)
    np.testing.assert_allclose(mixed_targets.sum(1), 1, atol=1e-5)


def test_groups_are_mixed_among_themselves():
    functions = create_augmentation(AugmentConfig(mixup=1.0, mix_group=64))
    images, targets = jax.jit(functions.mix, compiler_options=QUICK)(jax.random.key(0), IMAGES, TARGETS)
    lam = np.diagonal(targets)
    shares = {float(x) for x in lam.round(4)}
    assert len(shares) == 4  # one a group
    for i in range(BATCH):
        first = i // 64 * 64
        partner = first + 63 - i % 64
        assert targets[i, partner] == pytest.approx(1 - lam[i], abs=1e-6)
        np.testing.assert_allclose(images[i], lam[i] * IMAGES[i] + (1 - lam[i]) * IMAGES[partner], atol=1e-5)


def compiled(**options: object) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Returns seed -> mixed images and the share of each example itself, after checking targets and images."""
    run = jax.jit(lambda key: mix(key, IMAGES, TARGETS, **options), compiler_options=QUICK)  # type: ignore[arg-type]

    def checked(seed: int) -> tuple[np.ndarray, np.ndarray]:
        images, targets = map(np.asarray, run(jax.random.key(seed)))
        lam = np.diagonal(targets).copy()
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(np.diagonal(targets[:, ::-1]), 1 - lam, atol=1e-6)
        return images, lam

    return checked


def is_pasted(images: np.ndarray) -> np.ndarray:
    """Returns which examples are made of pixels of the two, unchanged; (batch,)."""
    return ((images == IMAGES) | (images == IMAGES[::-1])).all((1, 2, 3))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_modes(mode: str):
    run = compiled(mixup_alpha=0.8, cutmix_alpha=1.0, mode=mode)
    pasted_seeds = set()
    for seed in range(6):
        images, lam = run(seed)
        pasted = is_pasted(images)
        pasted_seeds.add(bool(pasted[0]))
        # CutMix's share is that of the pixels that are left, whatever was drawn.
        shown = (images[pasted] == IMAGES[pasted]).all(-1).mean((1, 2))
        np.testing.assert_allclose(lam[pasted], shown, atol=1e-6)
        blended = lam[:, None, None, None] * IMAGES + (1 - lam[:, None, None, None]) * IMAGES[::-1]
        np.testing.assert_allclose(images[~pasted], blended[~pasted], atol=1e-4)
        if mode == "batch":
            assert len(np.unique(lam)) == 1
            assert pasted.all() or not pasted.any()
        else:
            assert abs(pasted.mean() - 0.5) < 0.15
            assert len(np.unique(lam)) > 60
        if mode == "elem":
            assert (lam != lam[::-1]).mean() > 0.9
        else:
            np.testing.assert_allclose(lam, lam[::-1], atol=1e-6)
    assert pasted_seeds == {True, False}


def test_shares_have_the_beta_distribution():
    for alpha in (0.2, 1.0):
        run = compiled(mixup_alpha=alpha, mode="elem")
        lam = np.concatenate([run(seed)[1] for seed in range(8)])
        assert abs(lam.mean() - 0.5) < 0.03
        assert abs(lam.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_probability_of_mixing():
    run = compiled(cutmix_alpha=1.0, probability=0.25, mode="elem")
    images, lam = run(0)
    changed = (images != IMAGES).any((1, 2, 3))
    assert (lam[~changed] == 1).all()
    assert (lam[changed] < 1).all()
    assert abs(changed.mean() - 0.24) < 0.08  # a few rectangles are empty
    assert is_pasted(images).all()
    # The shares are those of timm's algorithm, here in a loop.
    random = np.random.RandomState(0)
    areas = []
    for side in np.sqrt(1 - random.beta(1, 1, 4000)):
        y, x = random.randint(HEIGHT), random.randint(WIDTH)
        h, w = int(HEIGHT * side), int(WIDTH * side)
        rows = min(y + h // 2, HEIGHT) - max(y - h // 2, 0)
        areas.append(rows * (min(x + w // 2, WIDTH) - max(x - w // 2, 0)) / (HEIGHT * WIDTH))
    shares = np.concatenate([1 - run(seed)[1] for seed in range(16)])
    assert abs(shares.mean() - 0.25 * np.mean(areas)) < 0.01


def rand_bbox(row: int, column: int, lam: float) -> tuple[int, int, int, int]:
    """timm's function of this name, for a given centre and without a margin: top, bottom, left and right."""
    ratio = np.sqrt(1 - lam)
    cut_h, cut_w = int(HEIGHT * ratio), int(WIDTH * ratio)
    rows = np.clip([row - cut_h // 2, row + cut_h // 2], 0, HEIGHT)
    columns = np.clip([column - cut_w // 2, column + cut_w // 2], 0, WIDTH)
    return *rows, *columns


def test_rectangles_are_those_of_timm_around_every_pixel():
    rows, columns, lams = (
        x.reshape(-1) for x in np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), [0.0, 0.1, 0.3, 0.45, 0.8, 0.99, 1.0])
    )
    boxes = boxes_around(*map(jnp.asarray, (rows, columns, lams.astype(np.float32))), HEIGHT, WIDTH)
    expected = [rand_bbox(*arguments) for arguments in zip(rows, columns, lams, strict=True)]
    np.testing.assert_array_equal(boxes, expected)


def test_every_pixel_may_be_pasted():
    """Also those of the last row and column."""
    run = compiled(cutmix_alpha=1.0, mode="elem")
    images, _ = run(0)
    pasted = (images != IMAGES).any(-1).any(0)
    assert pasted.all()


def test_an_odd_batch():
    """The one in the middle is its own partner."""
    run = jax.jit(
        lambda key: mix(key, IMAGES[:3], TARGETS[:3, :3], mixup_alpha=1.0, mode="pair"), compiler_options=QUICK
    )
    images, targets = run(jax.random.key(0))
    np.testing.assert_allclose(images[1], IMAGES[1], atol=1e-5)
    np.testing.assert_allclose(targets[0], targets[2][::-1], atol=1e-6)
    assert targets[1, 1] == 1


def test_mixing_does_not_depend_on_placement():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    key = jax.random.key(1)
    step = jax.jit(lambda i, t: mix(key, i, t, mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem"), compiler_options=QUICK)
    one = step(IMAGES, TARGETS)
    eight = step(*(jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (IMAGES, TARGETS)))
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        mix(jax.random.key(0), jnp.zeros((2, 4, 4, 3), jnp.uint8), TARGETS[:2], mixup_alpha=1.0)

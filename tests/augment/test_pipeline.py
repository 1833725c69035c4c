import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from conftest import picture
from jax.sharding import NamedSharding, PartitionSpec
from test_ops import IMAGE, QUICK

from vision_jax import augment
from vision_jax.augment import AugmentConfig
from vision_jax.augment.transforms import solarize
from vision_jax.errors import ConfigError

IMAGES = np.stack([picture(16, 16, seed=seed) for seed in range(64)])


def augmented(config: AugmentConfig, images: np.ndarray = IMAGES, keys: jax.Array | None = None) -> np.ndarray:
    keys = augment.example_keys(0, jnp.asarray(0), len(images)) if keys is None else keys
    function = augment.create_augmentation(config).augment_image
    return np.asarray(jax.jit(jax.vmap(function), compiler_options=QUICK)(keys, images))


def test_the_default_is_the_identity_and_is_not_traced():
    augmentation = augment.create_augmentation(AugmentConfig())
    key, image, targets = jax.random.key(0), jnp.zeros((2, 2, 3), jnp.uint8), jnp.eye(2)
    assert not jax.make_jaxpr(augmentation.col_out)(key, jnp.zeros((2, 2, 2, 3))).eqns
    assert not jax.make_jaxpr(augmentation.augment_image)(key, image).eqns
    assert not jax.make_jaxpr(augmentation.after_normalize)(key, image).eqns
    assert not jax.make_jaxpr(augmentation.mix)(key, jnp.zeros((2, 2, 2, 3)), targets).eqns


def test_each_image_depends_on_its_key_alone():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    config = AugmentConfig(flip=0.5, color_jitter=(0.4, 0.4, 0.4))  # a policy would take seconds to compile
    function = augment.create_augmentation(config).augment_image
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    run = jax.jit(jax.vmap(function), in_shardings=(sharding, sharding), compiler_options=QUICK)
    keys = augment.example_keys(0, jnp.asarray(0), 64)
    result = np.asarray(run(keys, IMAGES))
    assert result.dtype == np.uint8
    assert (result != IMAGES).any((1, 2, 3)).mean() > 0.9
    order = np.random.RandomState(0).permutation(64)  # to other positions, on other devices
    assert (np.asarray(run(keys[order], IMAGES[order])) == result[order]).all()


def test_a_stage_does_not_change_what_others_draw():
    flipped = augmented(AugmentConfig(flip=0.5))
    both = augmented(AugmentConfig(flip=0.5, solarize=1.0))
    assert (both == np.where(flipped < 128, flipped, 255 - flipped)).all()
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert 16 < mirrored.sum() < 48
    assert (flipped[~mirrored] == IMAGES[~mirrored]).all()


@pytest.mark.parametrize("style", ["pillow", "simclr", "byol"])
def test_probabilities(style: str):
    images = np.broadcast_to(IMAGES[0], (1000, 16, 16, 3))
    for config in (
        AugmentConfig(greyscale=0.2),
        AugmentConfig(solarize=0.2),
        AugmentConfig(color_jitter=(0.4, 0.4, 0.4), color_jitter_prob=0.2),
    ):
        config = dataclasses.replace(config, style=style)
        assert abs((augmented(config, images) != images).any((1, 2, 3)).mean() - 0.2) < 0.05, config


def test_after_normalize_erases_and_cuts_out():
    image = jnp.ones((16, 16, 3))
    configs = (AugmentConfig(erase=1.0), AugmentConfig(cutout=4), AugmentConfig(erase=1.0, cutout=4))

    def erased(key: jax.Array) -> list[jax.Array]:
        return [augment.create_augmentation(config).after_normalize(key, image) != 1 for config in configs]

    keys = augment.example_keys(0, jnp.asarray(0), 64)
    first, second, both = map(np.asarray, jax.jit(jax.vmap(erased), compiler_options=QUICK)(keys))
    assert (both == (first | second)).all()
    assert first.any((1, 2, 3)).all()
    assert second.any((1, 2, 3)).all()


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_shift_is_a_random_crop_of_the_image_with_a_border(mode: str):
    images = np.broadcast_to(IMAGES[0], (1000, 16, 16, 3))
    result = augmented(AugmentConfig(shift=2, shift_mode=mode), images)
    padded = np.pad(IMAGES[0], ((2, 2), (2, 2), (0, 0)), mode=mode)
    crops = np.stack([padded[top : top + 16, left : left + 16] for top in range(5) for left in range(5)])
    same = (result[:, None] == crops).all((2, 3, 4))
    assert (same.sum(1) == 1).all()
    counts = same.sum(0)  # 40 are expected of each
    assert counts.min() >= 15
    assert counts.max() <= 70


def test_a_shift_changes_no_other_stage():
    config = {"flip": 0.5, "solarize": 0.3}
    keys = augment.example_keys(0, jnp.asarray(0), 64)
    moved = augmented(AugmentConfig(shift=3))
    np.testing.assert_array_equal(
        augmented(AugmentConfig(shift=3, **config), keys=keys), augmented(AugmentConfig(**config), moved, keys)
    )


def test_col_out_keeps_the_same_rows_and_columns_of_all_images():
    rows, columns = np.indices((20, 30))
    images = np.stack([np.stack([rows, columns, np.full_like(rows, i)], -1) for i in range(3)]).astype(np.float32)
    function = jax.jit(augment.create_augmentation(AugmentConfig(col_out=0.15)).col_out)
    batches = [np.asarray(function(augment.batch_key(0, jnp.asarray(step), 3), images)) for step in range(50)]
    kept = np.zeros(30, int)
    for batch in batches:
        assert batch.shape == (3, 17, 25, 3)  # 0.85 * 20, and 0.85 * 30 = 25.5 rounded down
        rows, columns = batch[0, :, 0, 0].astype(int), batch[0, 0, :, 1].astype(int)
        assert (np.diff(rows) > 0).all()
        assert (np.diff(columns) > 0).all()
        np.testing.assert_array_equal(batch, images[:, rows][:, :, columns])
        kept[columns] += 1
    assert kept.min() > 30  # 42 are expected of each
    assert kept.max() <= 50
    assert len({batch.tobytes() for batch in batches}) == 50


def test_solarize_is_pillows():
    expected = np.asarray(PIL.ImageOps.solarize(PIL.Image.fromarray(IMAGE)))
    assert (np.asarray(solarize(jnp.asarray(IMAGE))) == expected).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "rnad"}, "did you mean rand"),
        ({"style": "simclrv2"}, "augment.style is 'simclrv2': did you mean simclr"),
        ({"erase_mode": "pixels"}, "augment.erase_mode is 'pixels': did you mean pixel"),
        ({"mix_mode": "element"}, "augment.mix_mode is 'element': did you mean elem"),
        ({"color_jitter": (0.4,)}, "give the strengths"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "at most 0.5"),
        ({"color_jitter": (0.4, -0.4, 0.4)}, "not negative"),
        ({"erase_count": 0}, "at least 1"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        augment.create_augmentation(AugmentConfig(**fields))  # type: ignore[arg-type]

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax import augment


def flip_all(keys: jax.Array, images: jax.Array, probability: float) -> np.ndarray:
    return np.asarray(jax.vmap(lambda key, image: augment.random_flip(key, image, probability))(keys, images))


def test_flip_mirrors_about_half_of_the_images():
    images = np.arange(1000 * 2 * 3 * 1, dtype=np.uint8).reshape(1000, 2, 3, 1)
    keys = augment.example_keys(0, jnp.asarray(0), 1000)
    flipped = flip_all(keys, images, 0.5)
    mirrored = [np.array_equal(f, i[:, ::-1]) for f, i in zip(flipped, images, strict=True)]
    same = [np.array_equal(f, i) for f, i in zip(flipped, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 430 < sum(mirrored) < 570
    assert (flip_all(keys, images, 0.0) == images).all()
    assert (flip_all(keys, images, 1.0) == images[:, :, ::-1]).all()


def test_keys_depend_on_seed_step_and_position_alone():
    keys = jax.random.key_data(augment.example_keys(0, jnp.asarray(3), 64))
    assert len(np.unique(keys, axis=0)) == 64
    assert (jax.random.key_data(augment.example_keys(0, jnp.asarray(3), 16)) == keys[:16]).all()
    assert (jax.random.key_data(augment.example_keys(0, jnp.asarray(4), 64)) != keys).any(axis=1).all()
    assert (jax.random.key_data(augment.example_keys(1, jnp.asarray(3), 64)) != keys).any(axis=1).all()


def test_flips_do_not_depend_on_placement():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images = np.random.RandomState(0).randint(0, 256, (16, 4, 4, 3)).astype(np.uint8)

    @jax.jit
    def step(images: jax.Array) -> jax.Array:
        keys = augment.example_keys(0, jnp.asarray(7), 16)
        return jax.vmap(augment.random_flip)(keys, images)

    sharded = step(jax.device_put(images, NamedSharding(mesh, PartitionSpec("data"))))
    assert (np.asarray(sharded) == np.asarray(step(images))).all()


def test_normalize_equals_its_definition():
    images = np.random.RandomState(0).randint(0, 256, (2, 3, 3, 3)).astype(np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalized = augment.normalize(images, mean, std)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, (images / 255 - np.array(mean)) / np.array(std), atol=1e-5)

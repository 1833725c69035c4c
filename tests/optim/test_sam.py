import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.optim import sam_gradients

A = np.diag([1.0, 4.0, 9.0]).astype(np.float32)


def grad_fn(params: dict) -> tuple[dict, dict]:
    """Of the loss x' A x / 2 + 3 y^2 / 2; the loss is returned too."""

    def loss(params: dict) -> jax.Array:
        return params["x"] @ A @ params["x"] / 2 + 1.5 * jnp.sum(params["y"] ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    return grads, {"loss": value}


PARAMS = {"x": jnp.asarray([1.0, -2.0, 0.5]), "y": jnp.asarray([2.0])}
GRADIENT = {"x": np.asarray([1.0, -8.0, 4.5]), "y": np.asarray([6.0])}  # A x and 3 y
LOSS = (1 + 16 + 2.25) / 2 + 6


def expected(rho: float) -> dict:
    """A (x + rho * g / |g|), with |g| over both parameters."""
    norm = np.sqrt(1 + 64 + 20.25 + 36)
    return {
        "x": A @ (np.asarray([1.0, -2.0, 0.5]) + rho * GRADIENT["x"] / norm),
        "y": 3 * (np.asarray([2.0]) + rho * GRADIENT["y"] / norm),
    }


def test_gradients_of_a_quadratic():
    grads, aux = jax.jit(lambda params: sam_gradients(grad_fn, params, 0.5))(PARAMS)
    for name in PARAMS:
        np.testing.assert_allclose(grads[name], expected(0.5)[name], rtol=1e-6)
    assert float(aux["loss"]) == pytest.approx(LOSS)  # that of the parameters, not of where they were moved to


def test_every_third_step():
    step = jax.jit(lambda params, i: sam_gradients(grad_fn, params, 0.5, apply=i % 3 == 0))
    for i in range(4):
        grads, aux = step(PARAMS, i)
        for name in PARAMS:
            np.testing.assert_allclose(grads[name], expected(0.5 if i % 3 == 0 else 0.0)[name], rtol=1e-6)
        assert float(aux["loss"]) == pytest.approx(LOSS)
    assert "cond" in str(jax.make_jaxpr(step)(PARAMS, 0))


def test_where_gradients_vanish_and_in_bfloat16():
    zero = {"x": jnp.zeros(3), "y": jnp.zeros(1)}
    assert float(jax.jit(lambda params: sam_gradients(grad_fn, params, 0.5))(zero)[0]["x"].sum()) == 0
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    grads, _ = jax.eval_shape(lambda params, apply: sam_gradients(grad_fn, params, 0.5, apply=apply), half, True)
    assert grads["y"].dtype == jnp.bfloat16


def test_without_it_there_is_one_gradient():
    calls = []
    sam_gradients(lambda params: (calls.append(0), grad_fn(params))[1], PARAMS, 0.5, apply=False)
    assert len(calls) == 1

"""AdamW: its textbook step, its schedule, and the step left out."""

import jax
import jax.numpy as jnp
import numpy as np
import plain_equations as plain
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rldtf_jax import optim
from rldtf_jax.config import OptimConfig

FREE = OptimConfig(lr=0.1, warmup_steps=0, final_lr_ratio=1.0, weight_decay=0.01, grad_clip=1e6)
PARAMS = {"a": jnp.array([0.5, -2.0]), "b": jnp.array(3.0)}
GRADS = [{"a": jnp.array([0.1 * k - 0.2, 2.0]), "b": jnp.array(-1.0 + k)} for k in range(4)]
step = jax.jit(optim.apply)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_four_steps_equal_the_textbook():
    params, state = PARAMS, optim.init(PARAMS)
    numbers = [(x, 0.0, 0.0) for x in flat(PARAMS).tolist()]
    for count, grads in enumerate(GRADS, 1):
        params, state, *_ = step(optim.hyper(FREE, 0, 1), params, state, grads, 0.0)
        numbers = [
            plain.adamw(x, g, m, v, count, 0.1, FREE.b1, FREE.b2, 0.01)
            for (x, m, v), g in zip(numbers, flat(grads).tolist())
        ]
    np.testing.assert_allclose(flat(params), [x for x, _, _ in numbers], rtol=1e-5)


@given(st.floats(0.125, 8, width=32))
def test_the_global_norm_is_clipped_and_reported_before(limit):
    h = optim.hyper(FREE, 0, 1)._replace(grad_clip=np.float32(limit))
    norm = float(np.linalg.norm(flat(GRADS[0])))
    _, state, reported, _ = step(h, PARAMS, optim.init(PARAMS), GRADS[0], 0.0)
    np.testing.assert_allclose(reported, norm, rtol=1e-6)
    moment = next(
        x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")
    )
    np.testing.assert_allclose(
        flat(moment), (1 - FREE.b1) * flat(GRADS[0]) * min(1, limit / norm), rtol=1e-4
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(where, bad):
    state = optim.init(PARAMS)
    grads = GRADS[0] | ({"b": jnp.float32(bad)} if where == "gradient" else {})
    out = step(optim.hyper(FREE, 0, 1), PARAMS, state, grads, bad if where == "loss" else 0.0)
    assert not out.finite
    for after, before in zip(jax.tree.leaves(out[:2]), jax.tree.leaves((PARAMS, state))):
        np.testing.assert_array_equal(after, before)


@given(st.integers(0, 8), st.integers(10, 60), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_falls_to_its_final_share(warmup, steps, final):
    config = OptimConfig(lr=2.0, warmup_steps=warmup, final_lr_ratio=final)
    rates = [float(optim.hyper(config, step, steps).lr) for step in range(steps)]
    np.testing.assert_allclose(
        rates[:warmup], [2.0 * (k + 1) / warmup for k in range(warmup)], rtol=1e-6
    )
    assert rates[warmup] == 2.0
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :]))
    np.testing.assert_allclose(rates[-1], 2.0 * final, atol=1e-6)


@pytest.mark.parametrize("warmup, steps", [(10, 3), (3, 3), (0, 1), (0, 2)])
def test_a_schedule_shorter_than_its_warm_up_is_a_schedule_still(warmup, steps):
    config = OptimConfig(lr=1.0, warmup_steps=warmup)
    rates = [optim.hyper(config, step, steps).lr for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_sweeping_any_hyper_parameter_compiles_nothing(compilations):
    state = optim.init(PARAMS)
    step(optim.hyper(FREE, 0, 1), PARAMS, state, GRADS[0], 0.0)
    with compilations() as compiled:
        for k in range(4):
            config = OptimConfig(
                lr=0.1 * k, weight_decay=0.1 * k, b1=0.2 * k, b2=0.1 * k, grad_clip=1.0 + k
            )
            step(optim.hyper(config, k, 9), PARAMS, state, GRADS[k], 0.1 * k)
    assert compiled == []

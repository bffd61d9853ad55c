"""Advantages: the paper's form, the forms beside it, and what they agree on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import plain_equations as plain
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rldtf_jax import advantage as adv

B, T = 4, 6
SEEDS = st.integers(0, 2**32 - 1)
UNIT = st.floats(0, 1, width=32)
FORMS = {
    "paper": adv.reward_minus_value,
    "gae": partial(adv.gae, gamma=0.9, lam=0.8),
    "group": partial(adv.group_relative, group_size=2),
    "leave-one-out": partial(adv.leave_one_out, group_size=2),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def batch(seed, behind=np.nan):
    """Rewards, values with `behind` in the padding, and a mask."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    value = np.where(mask, rng.normal(size=(B, T)), behind)
    return np.float32(rng.normal(size=B)), np.float32(value), mask


@given(SEEDS)
def test_the_papers_form_is_the_reward_minus_the_value(seed):
    R, value, mask = batch(seed)
    A, ret = adv.reward_minus_value(R, value, mask)
    for b in range(B):
        for t in range(T):
            assert A[b, t] == (R[b] - value[b, t] if mask[b, t] else 0)
            assert ret[b, t] == (R[b] if mask[b, t] else 0)


@given(SEEDS)
def test_reward_minus_value_is_gae_at_gamma_and_lambda_1(seed):
    R, value, mask = batch(seed)
    for ours, general in zip(
        adv.reward_minus_value(R, value, mask), adv.gae(R, value, mask, 1.0, 1.0)
    ):
        np.testing.assert_allclose(ours, general, atol=1e-5)


@given(SEEDS, UNIT, UNIT)
def test_gae_is_its_sum_written_out(seed, gamma, lam):
    R, value, mask = batch(seed)
    A, ret = map(np.asarray, adv.gae(R, value, mask, gamma, lam))
    expected = plain.gae(R.tolist(), value.tolist(), mask.sum(-1).tolist(), gamma, lam)
    for b, row in enumerate(expected):
        np.testing.assert_allclose(A[b, : len(row)], row, atol=1e-4)
        np.testing.assert_allclose(ret[b, : len(row)], row + value[b, : len(row)], atol=1e-4)
        np.testing.assert_array_equal(A[b, len(row) :], 0)


@given(SEEDS)
def test_group_forms_compare_a_response_with_the_others_to_its_prompt(seed):
    R, value, mask = batch(seed)
    (a, b), (c, d) = R.reshape(2, 2)
    loo = [a - b, b - a, c - d, d - c]
    np.testing.assert_allclose(
        np.asarray(adv.leave_one_out(R, value, mask, 2)[0])[:, 0], loo, atol=1e-6
    )
    expected = [x / (abs(x) / 2 + 1e-4) / 2 for x in loo]
    np.testing.assert_allclose(
        np.asarray(adv.group_relative(R, value, mask, 2)[0])[:, 0], expected, rtol=1e-3, atol=1e-3
    )


@forms
@given(seed=SEEDS, behind=st.floats(width=32))
def test_padding_is_zero_and_changes_nothing(form, seed, behind):
    for ours, clean in zip(form(*batch(seed, behind)), form(*batch(seed, 0.0))):
        np.testing.assert_array_equal(ours, clean)
        np.testing.assert_array_equal(np.asarray(ours)[~batch(seed)[2]], 0)


@forms
def test_nothing_carries_a_gradient(form):  # TRAPS 9
    R, value, mask = batch(0, 0.0)
    gradients = jax.grad(lambda R, value: sum(x.sum() for x in form(R, value, mask)), (0, 1))(
        R, value
    )
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@forms
def test_integer_rewards_are_not_truncated(form):  # TRAPS 8
    _, value, mask = batch(1, 0.0)
    whole = np.array([1, 0, -1, 1])
    for ours, as_floats in zip(
        form(whole, value, mask), form(whole.astype(np.float32), value, mask)
    ):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, as_floats)


@forms
def test_every_form_keeps_the_dtype_and_shape_of_the_values(form):
    A, ret = form(*batch(2))
    assert A.shape == ret.shape == (B, T) and A.dtype == ret.dtype == jnp.float32


@given(SEEDS, st.floats(width=32))
def test_whitened_advantages_have_mean_0_and_variance_1_over_the_tokens_that_count(seed, behind):
    R, value, mask = batch(seed, behind)
    A = np.where(mask, R[:, None] - value, behind)
    white = np.asarray(adv.whiten(A, mask))
    np.testing.assert_allclose(white[mask].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(white[mask].var(), 1, atol=1e-3)
    np.testing.assert_array_equal(white[~mask], 0)


def test_sweeping_gamma_and_lambda_compiles_nothing(compilations):
    R, value, mask = batch(0)
    adv.gae(R, value, mask, 0.5, 0.5)
    with compilations() as compiled:
        for x in np.linspace(0, 1, 4):
            adv.gae(R, value, mask, float(x), float(1 - x))
    assert compiled == []


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_counterfactual_credit_is_zero_on_average_under_the_policy_and_exact_where_exhaustive(
    seed, V
):
    """One position, V tokens: A(v) = R(v) - sum_u pi(u) R(u), from draws of the others in exact
    proportion.
    """
    rng = np.random.default_rng(seed)
    p, R = rng.dirichlet(np.ones(V)), rng.normal(size=V)
    A = np.zeros(V)
    for v in range(V):
        others = np.delete(p, v) / (1 - p[v])
        change = R[v] - others @ np.delete(R, v)
        A[v] = adv.counterfactual(
            np.float32([R[v]]),
            np.float32([[change]]),
            np.float32([[1 - p[v]]]),
            np.ones((1, 1), bool),
        )[0][0, 0]
        np.testing.assert_allclose(A[v], R[v] - p @ R, atol=1e-5)
    np.testing.assert_allclose(p @ A, 0, atol=1e-5)


@given(SEEDS)
def test_values_of_prefixes_add_up_to_what_the_response_earns_beyond_its_beginning(seed):
    rng = np.random.default_rng(seed)
    R, _, mask = batch(seed)
    place = rng.random((B, T)) < 0.4
    place[:, 0] = True
    place &= mask
    V = rng.normal(size=(B, T)).astype(np.float32)  # of the prefix before each place
    A, ret = map(np.asarray, adv.prefix(R, np.where(place, R[:, None] - V, 7), place, mask))
    for b in range(B):
        at = np.flatnonzero(place[b])
        values = [*V[b, at], R[b]]
        for i, (start, stop) in enumerate(zip(at, [*at[1:], T])):
            inside = np.arange(start, stop)[mask[b, start:stop]]
            np.testing.assert_allclose(A[b, inside], values[i + 1] - values[i], atol=1e-5)
        if len(at):
            np.testing.assert_allclose(A[b, at].sum(), R[b] - values[0], atol=1e-4)
        np.testing.assert_array_equal(ret[b], np.where(mask[b], R[b], 0))
        assert not A[b, ~mask[b]].any()


def test_counterfactual_credit_is_unbiased_with_few_draws():
    rng, n = np.random.default_rng(0), 200_000
    p, R, v = np.array([0.5, 0.3, 0.15, 0.05]), np.array([1.0, -0.5, 0.2, -1.0]), 1
    drawn = rng.choice([0, 2, 3], n, p=p[[0, 2, 3]] / (1 - p[v]))
    A, _ = adv.counterfactual(
        np.full(n, R[v], np.float32),
        np.float32(R[v] - R[drawn])[:, None],
        np.full((n, 1), 1 - p[v], np.float32),
        np.ones((n, 1), bool),
    )
    assert abs(float(A.mean()) - (R[v] - p @ R)) < 4 * float(A.std()) / n**0.5

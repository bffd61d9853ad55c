"""Eq. 3-5: which sequences the perturbation asks about, and which weights follow from the
answers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import plain_equations as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rldtf_jax import token_weight
from rldtf_jax.token_weight import (
    Field,
    Perturbations,
    inverted,
    mean_one,
    permuted,
    perturb,
    perturb_by_policy,
    perturb_in_kind,
    reshaped,
    signed_change,
    token_weights,
    top_entropy,
)

B, T = 4, 7


def sensitivity(*arguments):
    return token_weight.sensitivity(*arguments).total


SEEDS = st.integers(0, 2**32 - 1)
ALPHAS = st.floats(0, 8, width=32)
THRESHOLDS = st.floats(0, 1, width=32)


def responses(seed):
    """Random ids (some rows of one token only repeated) with garbage behind their lengths."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, rng.integers(1, 9), (B, T))
    return tokens, rng.integers(0, T + 1, B)


def random_sensitivity(seed):
    """S_t with zeros among them, a mask, and NaN behind it."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    S = rng.exponential(0.5, (B, T)) * (rng.random((B, T)) < 0.7)
    return np.where(mask, S, np.nan).astype(np.float32), mask


@given(SEEDS, st.integers(1, 3), st.floats(0, 1))
def test_a_perturbation_changes_exactly_one_token(seed, num_perturb, delete_prob):  # TRAPS 18
    tokens, lengths = responses(seed)
    p = perturb(tokens, lengths, num_perturb, seed, delete_prob)
    assert len(p.row) == len(p.position) == len(p.tokens) == num_perturb * lengths.sum()
    for b, t, changed in zip(p.row, p.position, p.tokens):
        assert plain.is_perturbation(tokens[b, : lengths[b]].tolist(), changed.tolist(), t)


@given(SEEDS, st.integers(1, 3))
def test_every_position_is_perturbed_num_perturb_times(seed, num_perturb):
    tokens, lengths = responses(seed)
    p = perturb(tokens, lengths, num_perturb, seed)
    count = np.zeros((B, T), int)
    np.add.at(count, (p.row, p.position), 1)
    np.testing.assert_array_equal(count, num_perturb * (np.arange(T) < lengths[:, None]))


@given(SEEDS, st.integers(0, B - 1))
def test_a_row_is_perturbed_the_same_in_whatever_batch(seed, b):
    tokens, lengths = responses(seed)
    others, other_lengths = responses(seed + 1)
    others[b], other_lengths[b] = tokens[b], lengths[b]

    def of_row(p):
        return [(t, changed.tolist()) for row, t, changed in zip(*p) if row == b]

    assert of_row(perturb(tokens, lengths, 2, seed)) == of_row(
        perturb(others, other_lengths, 2, seed)
    )


def test_delete_prob_0_replaces_wherever_it_can_and_1_always_removes():
    tokens, lengths = np.array([[4, 5, 4, 6, 9], [8, 8, 8, 8, 8]]), np.array([4, 3])
    replaced, removed = (perturb(tokens, lengths, 3, 0, p) for p in (0.0, 1.0))
    # a row of equal tokens has nothing to put there
    assert [len(x) for x in replaced.tokens] == [4] * 12 + [2] * 9
    assert [len(x) for x in removed.tokens] == [3] * 12 + [2] * 9


def test_perturbations_differ_between_seeds():
    tokens, lengths = np.arange(20).reshape(2, 10), np.array([10, 10])
    first, second = (perturb(tokens, lengths, 2, seed) for seed in (0, 1))
    assert [x.tolist() for x in first.tokens] != [x.tolist() for x in second.tokens]


@given(SEEDS, st.integers(1, 3))
def test_sensitivity_is_the_mean_absolute_change_of_the_reward(seed, N):
    rng = np.random.default_rng(seed)
    tokens, lengths = responses(seed)
    p = perturb(tokens, lengths, N, seed)
    R_0, R_n = rng.normal(size=B), rng.normal(size=len(p.row))
    shuffled = rng.permutation(len(p.row))
    S = sensitivity(
        R_0, R_n[shuffled], Perturbations(p.row[shuffled], p.position[shuffled], p.tokens), T
    )
    expected = np.zeros((B, T))
    for b in range(B):
        for t in range(lengths[b]):
            asked = [
                R for R, row, position in zip(R_n, p.row, p.position) if (row, position) == (b, t)
            ]
            expected[b, t] = plain.sensitivity(R_0[b], asked)
    np.testing.assert_allclose(S, expected, rtol=1e-6)


def test_fractional_changes_of_integer_rewards_survive():  # TRAPS 8
    p = Perturbations(np.array([0, 0]), np.array([0, 1]), [])
    np.testing.assert_allclose(sensitivity(np.array([1]), np.array([0.5, 1]), p, 3), [[0.5, 0, 0]])
    np.testing.assert_allclose(
        token_weights(np.array([[2, 1, 0]]), np.ones((1, 3), int), 1, 0, 1e-6),
        [[2, 1.5, 1]],
        rtol=1e-6,
    )


@given(SEEDS, ALPHAS, THRESHOLDS, st.sampled_from([1e-6, 0.1]))
def test_weights_equal_the_plain_reading(seed, alpha, threshold, lam):
    S, mask = random_sensitivity(seed)
    w = np.asarray(token_weights(S, mask, alpha, threshold, lam))
    for b in range(B):
        n = mask[b].sum()
        np.testing.assert_allclose(
            w[b, :n], plain.token_weights(S[b, :n].tolist(), alpha, threshold, lam), rtol=1e-5
        )
        np.testing.assert_array_equal(w[b, n:], 1)


@given(SEEDS, ALPHAS, THRESHOLDS)
def test_weights_lie_between_1_and_1_plus_alpha_and_are_1_up_to_the_threshold(
    seed, alpha, threshold
):
    S, mask = random_sensitivity(seed)
    w = np.asarray(token_weights(S, mask, alpha, threshold))
    assert (w >= 1).all() and (w <= np.float32(1) + np.float32(alpha)).all()
    np.testing.assert_array_equal(w[~(mask & (S > np.float32(threshold)))], 1)


def test_the_threshold_itself_weighs_1():
    w = token_weights(np.float32([[0.25, 0.5]]), np.ones((1, 2)), 1.0, 0.25)
    np.testing.assert_allclose(w, [[1, 2]], rtol=1e-5)


@given(SEEDS, THRESHOLDS)
def test_alpha_0_weighs_every_token_exactly_1(seed, threshold):
    S, mask = random_sensitivity(seed)
    np.testing.assert_array_equal(token_weights(S, mask, 0.0, threshold), 1)


@given(SEEDS, st.integers(0, B - 1))
def test_the_maximum_runs_over_the_response_not_over_the_batch(seed, b):
    S, mask = random_sensitivity(seed)
    np.testing.assert_array_equal(
        token_weights(S, mask, 2.0, 0.0)[b],
        token_weights(S[b : b + 1], mask[b : b + 1], 2.0, 0.0)[0],
    )


def test_weights_carry_no_gradient():
    gradient = jax.grad(lambda S: token_weights(S, jnp.ones((1, 3)), 2.0, 0.1).sum())(
        jnp.array([[0.3, 0.2, 0.7]])
    )
    np.testing.assert_array_equal(gradient, 0)


@given(SEEDS)
def test_mean_one_weights_have_a_mean_of_1_and_keep_their_proportions(seed):
    S, mask = random_sensitivity(seed)
    w = np.asarray(token_weights(S, mask, 3.0, 0.1))
    scaled = np.asarray(mean_one(np.where(mask, w, np.nan), mask))
    np.testing.assert_allclose(scaled[mask].mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(scaled[mask] / w[mask], scaled[mask][0] / w[mask][0], rtol=1e-5)


@settings(max_examples=10)
@given(ALPHAS, THRESHOLDS)
def test_traced_and_untraced_weights_agree(alpha, threshold):
    S, mask = random_sensitivity(3)
    traced = jax.jit(token_weights)(S, mask, jnp.float32(alpha), jnp.float32(threshold), 1e-6)
    np.testing.assert_allclose(traced, token_weights(S, mask, alpha, threshold), rtol=1e-6)


def test_sweeping_alpha_threshold_and_lambda_compiles_nothing(compilations):
    S, mask = random_sensitivity(0)
    token_weights(S, mask, 1.0, 0.1, 1e-6)
    with compilations() as compiled:
        for x in np.linspace(0, 2, 5):
            token_weights(S, mask, float(x), float(x) / 2, 1e-6 + float(x))
    assert compiled == []


@pytest.mark.parametrize("length", [0, 1])
def test_short_responses_are_perturbed_too(length):
    p = perturb(np.array([[3, 4]]), np.array([length]), 2, 0)
    assert [x.tolist() for x in p.tokens] == [[], []][: 2 * length]
    S = sensitivity(np.zeros(1), np.ones(2 * length), p, 2)
    np.testing.assert_array_equal(S, [[length, 0]])


@given(SEEDS, st.integers(1, 3))
def test_the_parts_of_the_sensitivity_add_up_to_it_and_come_from_their_own_perturbations(seed, N):
    rng = np.random.default_rng(seed)
    tokens, lengths = responses(seed)
    p = perturb(tokens, lengths, N, seed)
    R_0, R_n, unreadable = (
        rng.normal(size=B),
        rng.normal(size=len(p.row)),
        rng.random(len(p.row)) < 0.5,
    )
    S = token_weight.sensitivity(R_0, R_n, p, T, unreadable)
    np.testing.assert_allclose(S.total, sensitivity(R_0, R_n, p, T), atol=1e-6)
    np.testing.assert_allclose(
        S.service, sensitivity(R_0, np.where(unreadable, R_0[p.row], R_n), p, T), atol=1e-6
    )


@given(SEEDS)
def test_signed_change_and_sensitivity_agree_where_all_changes_have_one_sign(seed):
    rng = np.random.default_rng(seed)
    tokens, lengths = responses(seed)
    p = perturb(tokens, lengths, 2, seed)
    R_0, worse = rng.normal(size=B), rng.random(len(p.row))
    np.testing.assert_allclose(
        signed_change(R_0, R_0[p.row] - worse, p, T),
        sensitivity(R_0, R_0[p.row] - worse, p, T),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        signed_change(R_0, R_0[p.row] + worse, p, T),
        -sensitivity(R_0, R_0[p.row] + worse, p, T),
        atol=1e-6,
    )


def test_in_kind_a_field_is_perturbed_as_a_whole_and_what_is_no_field_is_not():
    response = np.array([7, 3, 4, 8])
    others = [np.array([7, 5, 8]), np.array([7, 6, 8])]
    p = perturb_in_kind([[Field(1, 3, others)], [Field(0, 1, [])]], 5, 0)
    assert p.row.tolist() == [0] * 10 and sorted(p.position.tolist()) == [1] * 5 + [2] * 5
    assert {tuple(ids) for ids in p.tokens} == {
        tuple(ids) for ids in others
    } and response.tolist() == [7, 3, 4, 8]
    by_position = [[tuple(ids) for t, ids in zip(p.position, p.tokens) if t == at] for at in (1, 2)]
    assert by_position[0] == by_position[1]  # the tokens of a field share their perturbations


@given(SEEDS, st.integers(1, 3))
def test_by_the_policy_every_position_takes_each_of_its_alternatives(seed, N):
    tokens, lengths = responses(seed)
    others = np.random.default_rng(seed).integers(20, 30, (N, B, T))
    p = perturb_by_policy(tokens, lengths, others)
    expected = [
        (b, t, [*tokens[b, :t], others[n, b, t], *tokens[b, t + 1 : length]])
        for b, length in enumerate(lengths)
        for t in range(length)
        for n in range(N)
    ]
    assert [(b, t, ids.tolist()) for b, t, ids in zip(*p)] == expected
    asked = np.random.default_rng(seed).random((B, T)) < 0.5
    some = perturb_by_policy(tokens, lengths, others, asked)
    assert [(b, t, ids.tolist()) for b, t, ids in zip(*some)] == [
        one for one in expected if asked[one[0], one[1]]
    ]


@given(SEEDS)
def test_permuting_keeps_each_responses_weights(seed):
    S, mask = random_sensitivity(seed)
    w = np.where(mask, S, 1.0)
    moved = permuted(w, mask, seed)
    np.testing.assert_array_equal(moved[~mask], w[~mask])
    for b in range(B):
        assert sorted(moved[b, mask[b]]) == sorted(w[b, mask[b]])


@given(SEEDS)
def test_inverting_reverses_the_order(seed):
    S, mask = random_sensitivity(seed)
    other = inverted(S, mask)
    for b in range(B):
        most = S[b, mask[b]].max()
        np.testing.assert_allclose(other[b, mask[b]], most - S[b, mask[b]], rtol=1e-6)
    np.testing.assert_array_equal(other[~mask], 0)


@given(SEEDS, st.floats(0.05, 0.95))
def test_top_entropy_keeps_the_share_with_the_most(seed, share):
    rng = np.random.default_rng(seed)
    _, mask = random_sensitivity(seed)
    entropy = np.where(mask, rng.random((B, T)), np.inf)
    kept = top_entropy(entropy, mask, share)
    chosen = entropy[kept > 0]
    assert not kept[~mask].any() and chosen.min() >= np.max(entropy[mask & (kept == 0)], initial=0)
    assert abs(len(chosen) - share * mask.sum()) <= 1


@given(SEEDS)
def test_reshaping_adds_no_weight(seed):
    S, mask = random_sensitivity(seed)
    w = reshaped(S, mask)
    np.testing.assert_allclose(np.where(mask, w, 0).sum(-1), mask.sum(-1), rtol=1e-5)
    for b in range(B):
        if S[b, mask[b]].any():
            np.testing.assert_allclose(
                w[b, mask[b]] / w[b, mask[b]].max(), S[b, mask[b]] / S[b, mask[b]].max(), rtol=1e-5
            )
        else:
            np.testing.assert_array_equal(w[b], 1)

"""Eq. 6-9: what holds for any batch, in values and in gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import plain_equations as plain
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rldtf_jax.loss import expected_loss, policy_loss, regulariser, total_loss, value_loss
from rldtf_jax.token_weight import token_weights

B, T = 3, 5
SEEDS = st.integers(0, 2**32 - 1)
CLIPS = st.floats(0.0625, 0.5, width=32)
POSITIVE = st.floats(0, 2, width=32)
ANYTHING = st.floats(width=32)


class Batch:
    """Random arguments of the losses with `behind` in the padding; the ratio is away from the
    clip's two corners.
    """

    def __init__(self, seed, behind=0.0, clip=0.2):
        rng = np.random.default_rng(seed)
        self.length = rng.integers(1, T + 1, B)
        self.mask = np.arange(T) < self.length[:, None]

        def padded(x):
            return np.where(self.mask, x, behind).astype(np.float32)

        ratio = rng.uniform(0.3, 2.2, (B, T))
        corner = np.minimum(abs(ratio - (1 - clip)), abs(ratio - (1 + clip))) < 0.01
        self.old_logp = padded(-rng.exponential(2, (B, T)))
        self.logp = padded(
            np.where(self.mask, self.old_logp, 0) + np.log(np.where(corner, 1.0, ratio))
        )
        self.advantage, self.value = (
            padded(rng.normal(size=(B, T))),
            padded(rng.normal(size=(B, T))),
        )
        self.weight = padded(1 + rng.exponential(1, (B, T)))
        self.entropy, self.kl = (
            padded(rng.exponential(1, (B, T))),
            padded(rng.exponential(1, (B, T))),
        )
        self.R = rng.normal(size=B).astype(np.float32)

    def policy(self, clip=0.2, **changes):
        x = vars(self) | changes
        return policy_loss(x["logp"], x["old_logp"], x["advantage"], x["weight"], self.mask, clip)

    def policy_gradient(self, clip=0.2, **changes):
        x = vars(self) | changes
        return np.asarray(
            GRADIENT(x["logp"], x["old_logp"], x["advantage"], x["weight"], self.mask, clip)
        )


GRADIENT = jax.jit(jax.grad(policy_loss))


@given(SEEDS, CLIPS, ANYTHING)
def test_the_policy_loss_equals_the_plain_reading(seed, clip, behind):
    x = Batch(seed, behind, clip)
    expected = plain.policy_loss(
        x.logp.tolist(),
        x.old_logp.tolist(),
        x.advantage.tolist(),
        x.weight.tolist(),
        x.length.tolist(),
        clip,
    )
    np.testing.assert_allclose(x.policy(clip), expected, rtol=1e-5, atol=1e-5)


@given(SEEDS, ANYTHING)
def test_the_value_loss_equals_the_plain_reading(seed, behind):
    x = Batch(seed, behind)
    expected = plain.value_loss(x.value.tolist(), x.R.tolist(), x.length.tolist())
    np.testing.assert_allclose(value_loss(x.value, x.R, x.mask), expected, rtol=1e-5)
    np.testing.assert_allclose(
        value_loss(x.value, np.where(x.mask, x.R[:, None], behind), x.mask), expected, rtol=1e-5
    )


@given(SEEDS, POSITIVE, POSITIVE, ANYTHING)
def test_the_regulariser_equals_the_plain_reading(seed, beta_ent, beta_kl, behind):
    x = Batch(seed, behind)
    expected = plain.regulariser(
        x.entropy.tolist(), x.kl.tolist(), x.length.tolist(), beta_ent, beta_kl
    )
    np.testing.assert_allclose(
        regulariser(x.entropy, x.kl, x.mask, beta_ent, beta_kl), expected, rtol=1e-5, atol=1e-5
    )


@given(*[st.floats(-9, 9, width=32)] * 3, POSITIVE, POSITIVE)
def test_the_total_is_the_weighted_sum_of_the_three(policy, value, reg, k1, k2):
    np.testing.assert_allclose(
        total_loss(policy, value, reg, k1, k2), plain.total_loss(policy, value, reg, k1, k2)
    )


@given(SEEDS, CLIPS, POSITIVE)
def test_alpha_0_is_plain_ppo(seed, clip, threshold):
    x = Batch(seed, clip=clip)
    w = token_weights(abs(x.value), x.mask, 0.0, threshold)

    def ppo(logp):
        ratio = jnp.exp(logp - x.old_logp)
        surrogate = jnp.minimum(
            ratio * x.advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * x.advantage
        )
        return -jnp.mean(jnp.sum(jnp.where(x.mask, surrogate, 0.0), axis=-1))

    assert x.policy(clip, weight=w) == ppo(x.logp)
    np.testing.assert_array_equal(x.policy_gradient(clip, weight=w), jax.grad(ppo)(x.logp))


@given(SEEDS, CLIPS)
def test_a_tokens_weight_scales_its_gradient_exactly(seed, clip):
    x = Batch(seed, clip=clip)
    # powers of two multiply without rounding
    w = 2.0 ** np.random.default_rng(seed).integers(-3, 4, (B, T))
    plain_gradient = x.policy_gradient(clip, weight=np.ones((B, T), np.float32))
    np.testing.assert_array_equal(x.policy_gradient(clip, weight=w), w * plain_gradient)
    np.testing.assert_allclose(
        x.policy_gradient(clip), np.where(x.mask, x.weight, 0) * plain_gradient, rtol=1e-6
    )


@given(SEEDS, CLIPS)
def test_at_ratio_1_the_gradient_is_the_weighted_policy_gradient(seed, clip):
    x = Batch(seed)
    np.testing.assert_allclose(
        x.policy_gradient(clip, logp=x.old_logp),
        np.where(x.mask, -x.weight * x.advantage / B, 0),
        rtol=1e-6,
    )


@given(SEEDS, CLIPS)
def test_the_gradient_is_zero_exactly_where_clipping_stops_a_gain(seed, clip):
    x = Batch(seed, clip=clip)
    ratio = np.exp(x.logp - x.old_logp)
    gained = np.where(x.advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
    expected = np.where(x.mask & ~gained, -x.weight * ratio * x.advantage / B, 0)
    gradient = x.policy_gradient(clip)
    np.testing.assert_array_equal(gradient == 0, expected == 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@given(SEEDS, ANYTHING, CLIPS)
def test_padding_changes_neither_values_nor_gradients(seed, behind, clip):
    x, clean = Batch(seed, behind, clip), Batch(seed, 0.0, clip)
    assert x.policy(clip) == clean.policy(clip)
    np.testing.assert_array_equal(x.policy_gradient(clip), clean.policy_gradient(clip))
    for loss in (
        lambda x, value: value_loss(value, x.R, x.mask),
        lambda x, value: value_loss(value, x.R, x.mask, x.entropy, clip),
        lambda x, value: regulariser(value, x.kl, x.mask, 0.3, 0.7),
        lambda x, value: regulariser(x.entropy, value, x.mask, 0.3, 0.7),
    ):
        for ours, expected in zip(
            jax.value_and_grad(partial(loss, x))(x.value),
            jax.value_and_grad(partial(loss, clean))(clean.value),
        ):
            np.testing.assert_array_equal(ours, expected)
            assert np.isfinite(ours).all()


@given(SEEDS)
def test_the_mask_may_be_numbers(seed):
    x = Batch(seed, np.nan)
    as_bool = x.policy()
    for dtype in (np.int32, np.float32):
        x.mask = x.mask.astype(dtype)
        assert x.policy() == as_bool


def test_no_token_at_all_is_a_loss_of_zero():
    x, nothing = Batch(0), np.zeros((B, T), bool)
    assert policy_loss(x.logp, x.old_logp, x.advantage, x.weight, nothing, 0.2) == 0
    assert value_loss(x.value, x.R, nothing) == 0
    assert regulariser(x.entropy, x.kl, nothing, 1.0, 1.0) == 0


@given(SEEDS)
def test_one_advantage_a_response_is_the_same_at_every_token(seed):
    x = Batch(seed)
    assert x.policy(advantage=x.R) == x.policy(advantage=np.repeat(x.R[:, None], T, 1))


def test_advantage_weight_old_log_probability_and_return_carry_no_gradient():  # TRAPS 9
    x = Batch(0)
    gradients = jax.grad(policy_loss, (1, 2, 3))(
        x.logp, x.old_logp, x.advantage, x.weight, x.mask, 0.2
    )
    for gradient in (*gradients, jax.grad(value_loss, 1)(x.value, x.R, x.mask)):
        np.testing.assert_array_equal(gradient, 0)


def test_integer_rewards_are_not_truncated():  # TRAPS 8
    x, R = Batch(0), np.array([1, 0, -1])
    assert value_loss(x.value, R, x.mask) == value_loss(x.value, R.astype(np.float32), x.mask)
    assert x.policy(advantage=R) == x.policy(advantage=R.astype(np.float32))


def test_half_precision_arguments_are_computed_in_float32():  # TRAPS 25
    x = Batch(0)
    assert x.policy(logp=jnp.bfloat16(x.logp)).dtype == jnp.float32
    assert value_loss(jnp.bfloat16(x.value), x.R, x.mask).dtype == jnp.float32


@given(SEEDS, st.floats(1.125, 4, width=32))
def test_dual_clip_bounds_the_loss_of_a_bad_token_and_nothing_else(seed, bound):
    x = Batch(seed)
    loss, gradient = jax.value_and_grad(
        lambda logp: policy_loss(logp, x.old_logp, x.advantage, x.weight, x.mask, 0.2, bound)
    )(x.logp)
    assert loss <= x.policy() + 1e-5
    bounded = (x.advantage < 0) & (np.exp(x.logp - x.old_logp) > bound)
    np.testing.assert_allclose(gradient, np.where(bounded, 0, x.policy_gradient()), rtol=1e-5)


@given(SEEDS, st.floats(0.125, 1, width=32))
def test_value_clipping_takes_the_larger_of_both_errors(seed, value_clip):
    x = Batch(seed)
    near = x.entropy + np.clip(x.value - x.entropy, -value_clip, value_clip)
    worse = np.maximum((x.R[:, None] - x.value) ** 2, (x.R[:, None] - near) ** 2)
    np.testing.assert_allclose(
        value_loss(x.value, x.R, x.mask, x.entropy, value_clip),
        np.where(x.mask, worse, 0).sum() / B,
        rtol=1e-5,
    )


@settings(max_examples=10)
@given(SEEDS)
def test_gradients_agree_with_float64_finite_differences(seed):
    x = Batch(seed)
    with jax.enable_x64(True):
        check = partial(check_grads, order=1, modes=["rev"], eps=1e-6, atol=1e-6, rtol=1e-6)
        check(
            lambda logp: policy_loss(logp, x.old_logp, x.advantage, x.weight, x.mask, 0.2),
            (np.float64(x.logp),),
        )
        check(lambda value: value_loss(value, x.R, x.mask), (np.float64(x.value),))
        check(
            lambda H, kl: regulariser(H, kl, x.mask, 0.3, 0.7),
            (np.float64(x.entropy), np.float64(x.kl)),
        )


def test_sweeping_clip_and_betas_compiles_nothing(compilations):
    x = Batch(0)
    policy, reg = jax.jit(policy_loss), jax.jit(regulariser)

    def at(clip, beta):
        policy(x.logp, x.old_logp, x.advantage, x.weight, x.mask, clip)
        reg(x.entropy, x.kl, x.mask, beta, 1 - beta)

    at(0.2, 0.1)
    with compilations() as compiled:
        for step in range(5):
            at(0.1 * step, 0.2 * step)
    assert compiled == []


@given(SEEDS, st.integers(2, 6))
def test_the_expected_loss_is_eq_6_averaged_over_the_next_token(seed, V):
    """In value and in gradient, at the policy that sampled: one position, all V tokens valued."""
    rng = np.random.default_rng(seed)
    logits, Q = rng.normal(size=V).astype(np.float32), rng.normal(size=V).astype(np.float32)
    p = np.exp(jax.nn.log_softmax(logits))
    weight, mask, floor = np.float32([[1.7]]), np.ones((1, 1), bool), -3.0

    def exact(logits):
        return expected_loss(
            jax.nn.log_softmax(logits)[None, None], (Q - floor)[None, None], weight, mask
        )

    def sampled(logits, v):
        logp = jax.nn.log_softmax(logits)[v][None, None]
        return policy_loss(
            logp, jax.lax.stop_gradient(logp), np.float32([[Q[v] - p @ Q]]), weight, mask, 0.2
        )

    np.testing.assert_allclose(exact(logits), -1.7 * (p @ (Q - floor)), rtol=1e-5)
    mean = sum(p[v] * np.asarray(jax.grad(sampled)(logits, v)) for v in range(V))
    np.testing.assert_allclose(jax.grad(exact)(logits), mean, atol=2e-6)


@given(SEEDS, ANYTHING)
def test_the_expected_loss_ignores_padding_and_leaves_worth_and_weights_alone(seed, behind):
    x, rng = Batch(seed), np.random.default_rng(seed)
    logp, worth = -rng.exponential(1, (2, B, T, 4)).astype(np.float32)
    args = logp, -worth, x.weight, x.mask
    hidden = [
        np.where(x.mask.reshape(B, T, *[1] * (a.ndim - 2)), a, behind).astype(np.float32)
        for a in args[:3]
    ]
    np.testing.assert_allclose(
        expected_loss(*args),
        -np.mean(
            [
                sum(x.weight[b, t] * np.exp(logp[b, t]) @ -worth[b, t] for t in range(x.length[b]))
                for b in range(B)
            ]
        ),
        rtol=1e-4,
    )
    np.testing.assert_array_equal(expected_loss(*hidden, x.mask), expected_loss(*args))
    d_logp, d_worth, d_weight = jax.grad(expected_loss, (0, 1, 2))(*args)
    assert not np.any(d_worth) and not np.any(d_weight) and not np.any(np.asarray(d_logp)[~x.mask])

"""Eq. 6-9: the weighted PPO loss and its exact expectation, the value loss, the regulariser and
their sum.

Three log-probabilities are kept apart by name: `logp` of the current policy, `old_logp` of the
behaviour policy that sampled the tokens (the ratio's denominator), and the reference's, which
enters only through `kl`. Arrays are (B, T) over response tokens; `mask` is true where a token
counts, and what stands elsewhere, NaN included, changes nothing.
"""

import jax
import jax.numpy as jnp


def policy_loss(logp, old_logp, advantage, weight, mask, clip, dual_clip=None):
    """Eq. 6: -E[sum_t w_t min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t)], sum over t, mean over
    the batch.

    Args:
      logp, old_logp: (B, T) log pi_theta and log pi_theta_old of the sampled tokens.
      advantage: (B, T), or (B,) for one advantage a response; weight: (B, T) of Eq. 5; neither
        carries a gradient.
      dual_clip: where given (> 1), the objective is bounded below by dual_clip * A_t for A_t < 0.

    On policy every ratio is 1, and a response of advantage 0.5 whose two tokens weigh 1 and 3 loses
    -(1 + 3) 0.5:

    >>> float(policy_loss([[-1.0, -2.0]], [[-1.0, -2.0]], [0.5], [[1.0, 3.0]], [[True, True]], clip=0.2))
    -2.0
    """  # noqa: E501
    logp, old_logp, advantage, weight = _where(mask, logp, old_logp, advantage, weight)
    advantage, weight = jax.lax.stop_gradient((advantage, weight))
    ratio = jnp.exp(logp - jax.lax.stop_gradient(old_logp))
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    if dual_clip is not None:
        surrogate = jnp.where(
            advantage < 0, jnp.maximum(surrogate, dual_clip * advantage), surrogate
        )
    return -jnp.mean(jnp.sum(weight * surrogate, axis=-1))


def expected_loss(option_logp, option_worth, weight, mask):
    """Eq. 6 with the expectation over a_t taken exactly: -E[sum_t w_t sum_v pi_theta(v | s_t) Q(y
    with v at t)], sum over t, mean over the batch.

    Its gradient at theta_old is that of Eq. 6 with A_t = Q(y) - sum_v pi(v | s_t) Q(y with v at t),
    averaged over a_t instead of sampled (expected policy gradients, arXiv:1706.05374).

    Args:
      option_logp: (B, T, K) log pi_theta(v | s_t) of K tokens v that might stand at t, the sampled
        one among them.
      option_worth: (B, T, K) Q less what any other token is worth; 0 for what is not valued. No
        gradient.
      weight: (B, T) of Eq. 5.
    """
    expected = jnp.sum(jnp.exp(option_logp) * jax.lax.stop_gradient(option_worth), axis=-1)
    expected, weight = _where(mask, expected, jax.lax.stop_gradient(weight))
    return -jnp.mean(jnp.sum(weight * expected, axis=-1))


def value_loss(value, ret, mask, old_value=None, value_clip=None):
    """Eq. 7: E[sum_t (R - V(s_t))^2], sum over t, mean over the batch.

    Args:
      value: (B, T) V_phi(s_t), s_t ending with the token before t; ret: (B, T) returns, or (B,)
        rewards.
      old_value, value_clip: where given, PPO's clipped form, max of both squared errors.
    """
    value, ret = _where(mask, value, ret)
    error = (jax.lax.stop_gradient(ret) - value) ** 2
    if value_clip is not None:
        (old_value,) = _where(mask, old_value)
        near = old_value + jnp.clip(value - old_value, -value_clip, value_clip)
        error = jnp.maximum(error, (jax.lax.stop_gradient(ret) - near) ** 2)
    return jnp.mean(jnp.sum(error, axis=-1))


def regulariser(entropy, kl, mask, beta_ent, beta_kl):
    """Eq. 8: -beta_ent E[H(pi_theta(.|s_t))] + beta_kl E[KL(pi_theta || pi_anchor)], mean over the
    tokens that count.
    """
    entropy, kl = _where(mask, entropy, kl)
    count = jnp.maximum(jnp.sum(jnp.asarray(mask).astype(bool)), 1)
    return (-beta_ent * jnp.sum(entropy) + beta_kl * jnp.sum(kl)) / count


def total_loss(policy, value, reg, k1, k2):
    """Eq. 9: L = L_policy + k1 L_value + k2 L_reg."""
    return policy + k1 * value + k2 * reg


def _where(mask, *arrays):
    """Each array as float32 at least, a (B,) one spread over time, zero where the mask is false (so
    is its gradient).
    """
    mask = jnp.asarray(mask).astype(bool)
    floats = (jnp.asarray(x, jnp.promote_types(jnp.asarray(x).dtype, jnp.float32)) for x in arrays)
    return [jnp.where(mask, x[..., None] if x.ndim == mask.ndim - 1 else x, 0.0) for x in floats]

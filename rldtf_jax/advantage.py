"""Advantages: the paper's A_t = R - V_old(s_t) and the common forms beside it.

All take `reward_B`, the values `value_BxT` stored at rollout, and `mask_BxT`; all return
(advantage_BxT, return_BxT) without gradient, the return being what the critic regresses on.
"""

import jax
import jax.numpy as jnp


def reward_minus_value(reward_B, value_BxT, mask_BxT):
    """A_t = R(u, a) - V_old(s_t), the form under Eq. 6."""
    return _gradient_free(reward_B[:, None] - value_BxT, reward_B[:, None], mask_BxT)


@jax.jit  # eagerly, the scan would compile anew at every call
def gae(reward_B, value_BxT, mask_BxT, gamma, lam):
    """Generalised advantage estimation with the reward at the last token; R - V at gamma =
    lam = 1.
    """
    mask = jnp.asarray(mask_BxT).astype(bool)
    value = jnp.where(mask, value_BxT, 0.0)
    next_mask = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    next_value = jnp.where(next_mask, jnp.pad(value[:, 1:], ((0, 0), (0, 1))), 0.0)
    reward_BxT = jnp.where(mask & ~next_mask, reward_B[:, None], 0.0)
    delta_BxT = jnp.where(mask, reward_BxT + gamma * next_value - value, 0.0)

    def backwards(A_B, delta_B):
        A_B = delta_B + gamma * lam * A_B
        return A_B, A_B

    _, A_TxB = jax.lax.scan(backwards, jnp.zeros_like(delta_BxT[:, 0]), delta_BxT.T, reverse=True)
    return _gradient_free(A_TxB.T, A_TxB.T + value, mask)


def group_relative(reward_B, value_BxT, mask_BxT, group_size):
    """(R - mean of the prompt's group) / its standard deviation; rows of one prompt are
    neighbours.
    """
    R_GxN = reward_B.reshape(-1, group_size)
    A_GxN = (R_GxN - R_GxN.mean(-1, keepdims=True)) / (R_GxN.std(-1, keepdims=True) + 1e-4)
    return _gradient_free(A_GxN.reshape(-1, 1), reward_B[:, None], mask_BxT)


def leave_one_out(reward_B, value_BxT, mask_BxT, group_size):
    """R minus the mean reward of the other responses to the same prompt (RLOO); rows of one prompt
    are neighbours.

    >>> A, _ = leave_one_out(jnp.array([1.0, 0.0, 0.5, 0.5]), jnp.zeros((4, 1)), jnp.ones((4, 1), bool), group_size=2)
    >>> A[:, 0].tolist()
    [1.0, -1.0, 0.0, 0.0]
    """  # noqa: E501
    R_GxN = reward_B.reshape(-1, group_size)
    others_GxN = (R_GxN.sum(-1, keepdims=True) - R_GxN) / (group_size - 1)
    return _gradient_free((R_GxN - others_GxN).reshape(-1, 1), reward_B[:, None], mask_BxT)


def counterfactual(reward_B, change_BxT, other_BxT, mask_BxT):
    """A_t = R(y) - sum_v pi(v | s_t) R(y with v at t): signed credit as COMA's (arXiv:1705.08926),
    the twin for its critic.

    Args:
      change_BxT: R(y) less the mean reward over draws v from pi(. | s_t) without the sampled token.
      other_BxT: 1 - pi(a_t | s_t). The product is A_t where every v is drawn in proportion, and
        unbiased where a few are.
    """
    return _gradient_free(jnp.asarray(other_BxT) * change_BxT, reward_B[:, None], mask_BxT)


def prefix(reward_B, change_BxT, place_BxT, mask_BxT):
    """A_t = V(s_j) - V(s_i) for the tokens between two places i <= t < j, and R - V(s_i) behind the
    last: values of prefixes by what the policy makes of them, not by a critic (VinePPO,
    arXiv:2410.01679). Over a response they sum to R - V(s_0), each place's tokens counted once.

    Args:
      change_BxT: at the places R less the mean reward of what was written from there.
      place_BxT: bool, the first token of each row among them.
    """
    place = jnp.asarray(place_BxT).astype(bool)
    part_BxT = jnp.cumsum(place, -1)  # 1 for the tokens behind the first place, and so on
    rows = jnp.arange(len(place))[:, None]
    change_BxN = jnp.zeros((len(place), place.shape[1] + 2))
    change_BxN = change_BxN.at[rows, part_BxT].add(jnp.where(place, change_BxT, 0.0))
    A_BxT = change_BxN[rows, part_BxT] - change_BxN[rows, part_BxT + 1]
    return _gradient_free(jnp.where(part_BxT > 0, A_BxT, 0.0), reward_B[:, None], mask_BxT)


def whiten(advantage_BxT, mask_BxT):
    """Zero mean and unit variance over the tokens that count."""
    mask = jnp.asarray(mask_BxT).astype(bool)
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask, advantage_BxT, 0.0)) / count
    variance = jnp.sum(jnp.where(mask, (advantage_BxT - mean) ** 2, 0.0)) / count
    return jnp.where(mask, (advantage_BxT - mean) * jax.lax.rsqrt(variance + 1e-8), 0.0)


def _gradient_free(advantage, ret, mask):
    mask = jnp.asarray(mask).astype(bool)
    advantage, ret = jnp.broadcast_arrays(advantage, ret, mask)[:2]
    return jax.lax.stop_gradient((jnp.where(mask, advantage, 0.0), jnp.where(mask, ret, 0.0)))

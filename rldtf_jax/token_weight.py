"""Eq. 3-5: which tokens decide the reward, found by perturbing them and asking the twin again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Perturbations(NamedTuple):
    """M perturbed responses: `tokens[i]` is response `row[i]` with its token at `position[i]` replaced or removed."""

    row: np.ndarray  # (M,) int
    position: np.ndarray  # (M,) int
    tokens: list[np.ndarray]  # M sequences of token ids


def perturb(tokens_BxT: np.ndarray, lengths_B: np.ndarray, num_perturb: int, seed: int,
            delete_prob: float = 0.5) -> Perturbations:
    """Eq. 3: for every position, `num_perturb` sequences in which only that token is replaced or removed.

    A replacement is drawn from the other tokens of the same response; where the response holds no different
    token, the token is removed. Works on the sampled ids, never on re-encoded text.

    Args:
      tokens_BxT: response token ids; lengths_B: how many of each row count.
      seed: row b draws from (seed, b) alone, so a row's perturbations do not depend on the rest of the batch.
    """
    rows, positions, sequences = [], [], []
    for b, length in enumerate(np.asarray(lengths_B)):
        response = np.asarray(tokens_BxT[b, :length])
        rng = np.random.default_rng((seed, b))
        removed = rng.random((length, num_perturb)) < delete_prob
        pick = rng.random((length, num_perturb))
        for t in range(length):
            others = response[response != response[t]]
            for n in range(num_perturb):
                if removed[t, n] or not len(others):
                    sequence = np.delete(response, t)
                else:
                    sequence = response.copy()
                    sequence[t] = others[int(pick[t, n] * len(others))]
                rows.append(b)
                positions.append(t)
                sequences.append(sequence)
    return Perturbations(np.asarray(rows, int), np.asarray(positions, int), sequences)


def sensitivity(reward_B, perturbed_reward_M, perturbations: Perturbations, max_length: int) -> np.ndarray:
    """Eq. 4: S_t, the mean absolute change of the reward over the perturbations of token t: (B, max_length)."""
    reward_B = np.asarray(reward_B, np.float64)
    change_M = np.abs(reward_B[perturbations.row] - np.asarray(perturbed_reward_M, np.float64))
    total, count = np.zeros((2, len(reward_B), max_length))
    np.add.at(total, (perturbations.row, perturbations.position), change_M)
    np.add.at(count, (perturbations.row, perturbations.position), 1)
    return (total / np.maximum(count, 1)).astype(np.float32)


def token_weights(S_BxT, mask_BxT, alpha, threshold, lam=1e-6) -> jax.Array:
    """Eq. 5: w_t = 1 + alpha S_t / (max_t' S_t' + lam) where S_t > threshold, else 1: (B, T), no gradient.

    The maximum runs over the tokens of the response; padding weighs 1. alpha, threshold and lam may be traced.
    """
    mask = jnp.asarray(mask_BxT).astype(bool)
    S = jnp.where(mask, jnp.asarray(S_BxT, jnp.result_type(float)), 0.0)
    w = 1.0 + alpha * S / (jnp.max(S, axis=-1, keepdims=True) + lam)
    return jax.lax.stop_gradient(jnp.where(mask & (S > threshold), w, 1.0))


def mean_one(weight_BxT, mask_BxT) -> jax.Array:
    """Weights scaled to a mean of 1 over the tokens that count, so that alpha leaves the loss's scale alone."""
    mask = jnp.asarray(mask_BxT).astype(bool)
    mean = jnp.sum(jnp.where(mask, weight_BxT, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    return jnp.where(mask, weight_BxT / jnp.where(mean > 0, mean, 1.0), weight_BxT)

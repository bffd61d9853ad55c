"""Eq. 3-5: which tokens decide the reward, found by perturbing them and asking the twin again.

Beside the paper's perturbation and weights stand others, each a function of the same arrays: see
`WEIGHTS`.
"""

from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np


class Perturbations(NamedTuple):
    """M perturbed responses: `tokens[i]` is response `row[i]` with what stands at `position[i]`
    replaced or removed.
    """

    row: np.ndarray  # (M,) int
    position: np.ndarray  # (M,) int
    tokens: list[np.ndarray]  # M sequences of token ids


class Field(NamedTuple):
    """A value that the judge reads from a response: its tokens, and the response with each other
    value in its place.
    """

    start: int
    stop: int  # one past the last token
    others: Sequence[np.ndarray]  # whole responses


class Sensitivity(NamedTuple):
    """S_t of Eq. 4, (B, T) float32, in two parts that add up to it."""

    unreadable: np.ndarray  # from perturbations that leave nothing to run
    service: np.ndarray  # from those that run and serve otherwise

    @property
    def total(self) -> np.ndarray:
        return self.unreadable + self.service


NO_PERTURBATIONS = Perturbations(np.zeros(0, int), np.zeros(0, int), [])


def perturb(
    tokens_BxT: np.ndarray,
    lengths_B: np.ndarray,
    num_perturb: int,
    seed: int,
    delete_prob: float = 0.5,
) -> Perturbations:
    """Eq. 3: for every position, `num_perturb` sequences in which only that token is replaced or
    removed.

    A replacement is drawn from the other tokens of the same response; where the response holds no
    different token, the token is removed. Works on the sampled ids, never on re-encoded text.

    Args:
      tokens_BxT: response token ids; lengths_B: how many of each row count.
      seed: row b draws from (seed, b) alone, so a row's perturbations do not depend on the rest of
        the batch.
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


def perturb_in_kind(
    fields_B: Sequence[Sequence[Field]], num_perturb: int, seed: int
) -> Perturbations:
    """Eq. 3 in kind: a number by a number, a name by a name. `num_perturb` other values of every
    field, drawn alike for all of its tokens; tokens that belong to no field are left alone, since
    no value of theirs is read.
    """
    rows, positions, sequences = [], [], []
    for b, fields in enumerate(fields_B):
        rng = np.random.default_rng((seed, b))
        for field in fields:
            for pick in rng.random(num_perturb) if len(field.others) else ():
                other = field.others[int(pick * len(field.others))]
                for t in range(field.start, field.stop):
                    rows.append(b)
                    positions.append(t)
                    sequences.append(other)
    return Perturbations(np.asarray(rows, int), np.asarray(positions, int), sequences)


def perturb_by_policy(
    tokens_BxT: np.ndarray,
    lengths_B: np.ndarray,
    others_NxBxT: np.ndarray,
    asked_BxT: np.ndarray | None = None,
) -> Perturbations:
    """Eq. 3 with what the policy might have written: N sequences for every position, in which the
    token is one of `others_NxBxT`, which `update.alternatives` draws from the policy's distribution
    there without the sampled token.

    asked_BxT: bool, the positions that are asked for (default: all).
    """
    rows, positions, sequences = [], [], []
    for b, length in enumerate(np.asarray(lengths_B)):
        response = np.asarray(tokens_BxT[b, :length])
        for t in range(length) if asked_BxT is None else np.flatnonzero(asked_BxT[b, :length]):
            for other in np.asarray(others_NxBxT[:, b, t]):
                sequence = response.copy()
                sequence[t] = other
                rows.append(b)
                positions.append(t)
                sequences.append(sequence)
    return Perturbations(np.asarray(rows, int), np.asarray(positions, int), sequences)


def sensitivity(
    reward_B, perturbed_reward_M, perturbations: Perturbations, max_length: int, unreadable_M=None
) -> Sensitivity:
    """Eq. 4: S_t, the mean absolute change of the reward over the perturbations of token t: (B,
    max_length).

    unreadable_M: which perturbed responses leave nothing to run (default: none).
    """
    change_M = np.abs(_change(reward_B, perturbed_reward_M, perturbations))
    unreadable_M = (
        np.zeros(len(change_M), bool) if unreadable_M is None else np.asarray(unreadable_M, bool)
    )
    parts = (np.where(unreadable_M, change_M, 0.0), np.where(unreadable_M, 0.0, change_M))
    return Sensitivity(
        *(_mean_by_position(x, perturbations, (len(reward_B), max_length)) for x in parts)
    )


def signed_change(
    reward_B, perturbed_reward_M, perturbations: Perturbations, max_length: int
) -> np.ndarray:
    """R(y) minus the mean reward over the perturbations of token t, with its sign: (B,
    max_length).
    """
    change_M = _change(reward_B, perturbed_reward_M, perturbations)
    return _mean_by_position(change_M, perturbations, (len(reward_B), max_length))


def _change(reward_B, perturbed_reward_M, perturbations: Perturbations) -> np.ndarray:
    return np.asarray(reward_B, np.float64)[perturbations.row] - np.asarray(
        perturbed_reward_M, np.float64
    )


def _mean_by_position(x_M, perturbations: Perturbations, shape: tuple[int, int]) -> np.ndarray:
    total, count = np.zeros((2, *shape))
    np.add.at(total, (perturbations.row, perturbations.position), x_M)
    np.add.at(count, (perturbations.row, perturbations.position), 1)
    return (total / np.maximum(count, 1)).astype(np.float32)


def token_weights(S_BxT, mask_BxT, alpha, threshold, lam=1e-6) -> jax.Array:
    """Eq. 5: w_t = 1 + alpha S_t / (max_t' S_t' + lam) where S_t > threshold, else 1: (B, T), no
    gradient.

    The maximum runs over the tokens of the response; padding weighs 1. alpha, threshold and lam may
    be traced.

    >>> token_weights([[0.0, 0.5, 1.0]], [[1, 1, 1]], alpha=4.0, threshold=0.1).round(2).tolist()
    [[1.0, 3.0, 5.0]]
    """
    mask = jnp.asarray(mask_BxT).astype(bool)
    S = jnp.where(mask, jnp.asarray(S_BxT, jnp.result_type(float)), 0.0)
    w = 1.0 + alpha * S / (jnp.max(S, axis=-1, keepdims=True) + lam)
    return jax.lax.stop_gradient(jnp.where(mask & (S > threshold), w, 1.0))


def mean_one(weight_BxT, mask_BxT) -> jax.Array:
    """Weights scaled to a mean of 1 over the tokens that count, so that alpha leaves the loss's
    scale alone.
    """
    mask = jnp.asarray(mask_BxT).astype(bool)
    mean = jnp.sum(jnp.where(mask, weight_BxT, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    return jnp.where(mask, weight_BxT / jnp.where(mean > 0, mean, 1.0), weight_BxT)


def permuted(weight_BxT, mask_BxT, seed: int) -> np.ndarray:
    """The same weights in a random order within each response: what is left of Eq. 5 without the
    knowledge of where.
    """
    w = np.array(weight_BxT)
    for b, counts in enumerate(np.asarray(mask_BxT, bool)):
        w[b, counts] = np.random.default_rng((seed, b)).permutation(w[b, counts])
    return w


def inverted(S_BxT, mask_BxT) -> np.ndarray:
    """max_t' S_t' - S_t: most to the tokens that matter least."""
    S = np.where(mask_BxT, S_BxT, 0.0)
    return np.where(mask_BxT, S.max(-1, keepdims=True) - S, 0.0).astype(np.float32)


def top_entropy(entropy_BxT, mask_BxT, share: float = 0.2) -> np.ndarray:
    """1 for the share of the batch's tokens with the highest entropy, 0 for the others
    (arXiv:2506.01939).
    """
    mask = np.asarray(mask_BxT, bool)
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    entropy = np.asarray(entropy_BxT)
    return (mask & (entropy >= np.quantile(entropy[mask], 1 - share))).astype(np.float32)


def reshaped(S_BxT, mask_BxT, lam=1e-6) -> np.ndarray:
    """S_t scaled so that the weights of a response sum to its length, all 1 where no S_t is above
    0: the advantage's mass goes where the judge says that it was earned, and none is added
    (arXiv:2601.07408, with the twin for a judge).
    """
    mask = np.asarray(mask_BxT, bool)
    S = np.where(mask, S_BxT, 0.0)
    total, length = S.sum(-1, keepdims=True), mask.sum(-1, keepdims=True)
    w = np.where(total > lam, S * length / np.maximum(total, lam), 1.0)
    return np.where(mask, w, 1.0).astype(np.float32)


class Evidence(NamedTuple):
    """What weights may be made of."""

    S: Sensitivity
    read_BxT: np.ndarray  # bool, tokens of values that the judge reads
    entropy_BxT: np.ndarray  # of the policy, nats
    mask_BxT: np.ndarray
    seed: int


def _eq_5(S_BxT, e: Evidence, c) -> jax.Array:
    return token_weights(S_BxT, e.mask_BxT, c.alpha, c.threshold, c.lam)


# The config's `weight_by`: (evidence, config) -> w (B, T). A new kind is one more line.
WEIGHTS: dict[str, Callable[[Evidence, Any], np.ndarray]] = {
    "sensitivity": lambda e, c: _eq_5(e.S.total, e, c),
    "service": lambda e, c: _eq_5(e.S.service, e, c),
    "grammar": (
        lambda e, c: np.where(e.read_BxT & e.mask_BxT, 1.0 + c.alpha, 1.0).astype(np.float32)
    ),
    "permuted": lambda e, c: permuted(_eq_5(e.S.total, e, c), e.mask_BxT, e.seed),
    "inverted": lambda e, c: _eq_5(inverted(e.S.total, e.mask_BxT), e, c),
    "entropy": lambda e, c: top_entropy(e.entropy_BxT, e.mask_BxT),
    "reshaped": lambda e, c: reshaped(e.S.total, e.mask_BxT),
}

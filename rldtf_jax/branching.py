"""Responses that branch where the policy is least sure: some are sampled from the prompt, the
others go on from these, each from the token with the highest entropy (as ARPO, arXiv:2507.19849).

A group of n neighbours of one prompt holds n - `branches` families, first their first members, then
the branches, family by family in turn. A branch's tokens before its place are its family's and are
learnt from there once: `Samples.author_BxR` leaves them out.

Dimensions in names: G prompts, F families of a prompt, M members of a family, B = G M F, R response
positions.
"""

from typing import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rldtf_jax.judge import Prompts
from rldtf_jax.sample import Samples, join

# folded into a row's key; beyond any response's positions
BRANCHES = 1 << 23


def branched(
    draw: Callable[[Sequence[Prompts]], Sequence[Samples]],
    entropy: Callable[[Sequence[Prompts], Sequence[Samples]], Sequence[np.ndarray]],
    prompts: Sequence[Prompts],
    branches: int,
) -> list[Samples]:
    """The groups of several arms, one `Prompts` each, of `Prompts.each` rows a prompt.

    draw: samples a response behind each row. entropy: (B, R) of the policy at each of their tokens.
    """
    first = [members(asked, asked.each - branches) for asked in prompts]
    heads = draw(first)
    places = [
        np.where(head.own_BxR, H, -1.0).argmax(-1) for head, H in zip(heads, entropy(first, heads))
    ]
    again = [
        resumed(asked, head, place, branches) for asked, head, place in zip(prompts, heads, places)
    ]
    return [
        joined(asked, head, place, tail, branches)
        for asked, head, place, tail in zip(prompts, heads, places, draw(again))
    ]


def members(prompts: Prompts, number: int) -> Prompts:
    """The first `number` rows of each prompt."""
    rows = first_rows(len(prompts.lengths_B), prompts.each, number)
    return Prompts(
        [prompts.tasks[b] for b in rows],
        prompts.tokens_BxP[rows],
        prompts.lengths_B[rows],
        prompts.keys_B[rows],
        number,
    )


def first_rows(B: int, each: int, number: int) -> np.ndarray:
    return np.arange(B).reshape(-1, each)[:, :number].reshape(-1)


def parents(B: int, each: int, branches: int) -> np.ndarray:
    """(B branches / each,) for every branch its family's first member, as a row of the first
    members.
    """
    families = each - branches
    of_group = np.arange(branches) % families
    return (np.arange(B // each)[:, None] * families + of_group).reshape(-1)


def resumed(prompts: Prompts, heads: Samples, place_B, branches: int) -> Prompts:
    """What the branches read: their prompt, and their first member up to its place."""
    parent = parents(len(prompts.lengths_B), prompts.each, branches)
    rows = np.arange(len(prompts.lengths_B)).reshape(-1, prompts.each)[:, -branches:].reshape(-1)
    place = np.asarray(place_B)[parent]
    tokens_BxS, lengths_B = join(
        prompts.tokens_BxP[rows], prompts.lengths_B[rows], heads.tokens_BxR[parent], place
    )
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(prompts.keys_B[rows], BRANCHES)
    room_B = (heads.tokens_BxR.shape[1] - place).astype(np.int32)
    return Prompts([], tokens_BxS, lengths_B, keys_B, 1, room_B)


def joined(prompts: Prompts, heads: Samples, place_B, tails: Samples, branches: int) -> Samples:
    """All rows, in the order of the prompts."""
    B, each = len(prompts.lengths_B), prompts.each
    parent = parents(B, each, branches)
    tokens, logp = (np.array(x)[parent] for x in (heads.tokens_BxR, heads.logp_BxR))
    place, n = np.asarray(place_B)[parent], np.asarray(tails.lengths_B)
    for i, (t, length) in enumerate(zip(place, n)):
        for whole, part in ((tokens, tails.tokens_BxR), (logp, tails.logp_BxR)):
            whole[i, t:] = 0
            whole[i, t : t + length] = part[i, :length]
    own = np.arange(tokens.shape[1]) >= place[:, None]
    rest = Samples(tokens, (place + n).astype(np.int32), logp, tails.ended_B, own)
    first = heads._replace(author_BxR=np.ones(heads.tokens_BxR.shape, bool))
    order = np.concatenate(
        [
            np.arange(B // each * count).reshape(B // each, count) + start
            for count, start in ((each - branches, 0), (branches, B // each * (each - branches)))
        ],
        axis=1,
    ).reshape(-1)
    return Samples(
        *(
            np.concatenate([np.asarray(a), np.asarray(b)])[order]
            for a, b in zip(first[:5], rest[:5])
        )
    )


def tree_advantage(reward_B, mask_BxT, each: int, branches: int):
    """(advantage, return), (B, T): behind a family's place R less the mean of its other members,
    before it the family's mean R less that of the prompt's other families, for its first member,
    times the members, so that a response's beginning counts for as many as go on from it. The mean
    over families is an unbiased gradient of the expected reward. A family alone has nothing to be
    held against: 0 before its place.

    mask_BxT: a branch's own tokens, its place the first of them.
    """
    families, mask = each - branches, jnp.asarray(mask_BxT).astype(bool)
    M = each // families
    R_GxMxF = jnp.asarray(reward_B).reshape(-1, M, families)
    mean_GxF = R_GxMxF.mean(1)
    behind_GxMxF = (R_GxMxF - mean_GxF[:, None]) * M / (M - 1)
    others_GxF = (mean_GxF.sum(-1, keepdims=True) - mean_GxF) / max(families - 1, 1)
    before_GxF = M * (mean_GxF - others_GxF) * (families > 1)
    place_GxF = jnp.argmax(mask, -1).reshape(-1, M, families)[:, 1]
    first_BxT = jnp.zeros_like(mask).reshape(-1, M, families, mask.shape[1])
    first_BxT = first_BxT.at[:, 0].set(jnp.arange(mask.shape[1]) < place_GxF[..., None])
    A_BxT = jnp.where(first_BxT, before_GxF[:, None, :, None], behind_GxMxF[..., None]).reshape(
        mask.shape
    )
    ret_BxT = jnp.broadcast_to(jnp.asarray(reward_B)[:, None], mask.shape)
    return jax.lax.stop_gradient((jnp.where(mask, A_BxT, 0.0), jnp.where(mask, ret_BxT, 0.0)))

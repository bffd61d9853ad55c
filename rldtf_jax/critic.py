"""Fitting the critic to rewards at hand (Eq. 7) before reinforcement starts, so that its first
advantages mean something.
"""

from typing import NamedTuple

import numpy as np
from flax import nnx

from rldtf_jax import sft
from rldtf_jax.config import SFTConfig
from rldtf_jax.loss import value_loss
from rldtf_jax.sft import response_states, response_tokens


def with_backbone(model, policy):
    """The model with a value head, `model`, on the policy's backbone."""
    backbone = dict(nnx.to_flat_state(nnx.state(policy)))
    merged = [
        (path, backbone.get(path, leaf)) for path, leaf in nnx.to_flat_state(nnx.state(model))
    ]
    nnx.update(model, nnx.from_flat_state(merged))
    return model


class Rewarded(NamedTuple):
    """Sequences with the reward of each."""

    tokens: np.ndarray  # (N, S) int32
    prompt_lengths: np.ndarray  # (N,) int32
    lengths: np.ndarray  # (N,) int32
    rewards: np.ndarray  # (N,) float32


def critic_loss(critic, batch: Rewarded, num_tokens: int):
    """Eq. 7 over the response tokens of the batch."""
    states_BxTxD = response_states(
        critic.hidden(batch.tokens, batch.lengths), batch.prompt_lengths, num_tokens
    )
    _, mask_BxT = response_tokens(batch.tokens, batch.prompt_lengths, batch.lengths, num_tokens)
    return value_loss(critic.value(states_BxTxD), batch.rewards, mask_BxT)


def train(critic, sequences: Rewarded, config: SFTConfig, *, seed: int, directory: str, **options):
    """The critic after regression on the rewards of `sequences`; goes on from `directory`; options:
    see `sft.train`.
    """
    return sft.train(
        critic,
        sequences,
        config,
        seed=seed,
        directory=directory,
        title="critic",
        loss_fn=critic_loss,
        **options,
    )

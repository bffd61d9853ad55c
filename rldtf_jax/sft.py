"""Next-token training: pre-training, instruction tuning and the refinement on rejection-sampled
responses.

The loss runs over the response tokens only (over all tokens but the first where prompt_lengths are
1).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rldtf_jax import optim
from rldtf_jax.config import SFTConfig
from rldtf_jax.logprob import log_prob
from rldtf_jax.loop import run


class Sequences(NamedTuple):
    """N right-padded prompt + response rows; a row ends with its EOS."""

    tokens: np.ndarray  # (N, S) int32
    prompt_lengths: np.ndarray  # (N,) int32
    lengths: np.ndarray  # (N,) int32, prompt and response

    @classmethod
    def of(cls, pairs: list[tuple[list[int], list[int]]], multiple: int = 8) -> "Sequences":
        """From (prompt ids, response ids) pairs, padded to a multiple of `multiple`."""
        if not pairs:
            raise ValueError("no (prompt, response) pairs to train on")
        lengths = np.array([len(p) + len(r) for p, r in pairs], np.int32)
        width = -(-int(lengths.max()) // multiple) * multiple
        tokens = np.zeros((len(pairs), width), np.int32)
        for row, (prompt, response) in zip(tokens, pairs):
            row[: len(prompt) + len(response)] = [*prompt, *response]
        return cls(tokens, np.array([len(p) for p, _ in pairs], np.int32), lengths)


class SFTState(NamedTuple):
    params: Any
    opt_state: Any
    skipped_in_a_row: jax.Array  # () int32


def response_states(hidden_BxSxD, prompt_lengths_B, num_tokens: int):
    """Hidden states that predict each response token: position prompt_length - 1 + t for token t:
    (B, num_tokens, D).
    """
    position_BxT = prompt_lengths_B[:, None] - 1 + jnp.arange(num_tokens)
    position_BxT = jnp.minimum(position_BxT, hidden_BxSxD.shape[1] - 1)
    return jnp.take_along_axis(hidden_BxSxD, position_BxT[..., None], axis=1)


def response_tokens(tokens_BxS, prompt_lengths_B, lengths_B, num_tokens: int):
    """(tokens_BxT, mask_BxT) of the responses inside prompt + response rows."""
    position_BxT = prompt_lengths_B[:, None] + jnp.arange(num_tokens)
    tokens_BxT = jnp.take_along_axis(
        tokens_BxS, jnp.minimum(position_BxT, tokens_BxS.shape[1] - 1), axis=1
    )
    return tokens_BxT, position_BxT < lengths_B[:, None]


def sft_loss(model, batch: Sequences, num_tokens: int):
    """Mean negative log-likelihood of the response tokens in nats; num_tokens bounds a response's
    length.
    """
    hidden_BxSxD = model.hidden(batch.tokens, batch.lengths)
    tokens_BxT, mask_BxT = response_tokens(
        batch.tokens, batch.prompt_lengths, batch.lengths, num_tokens
    )
    logits_BxTxV = model.unembed(response_states(hidden_BxSxD, batch.prompt_lengths, num_tokens))
    logp_BxT = log_prob(logits_BxTxV, tokens_BxT)
    return -jnp.sum(jnp.where(mask_BxT, logp_BxT, 0.0)) / jnp.maximum(jnp.sum(mask_BxT), 1)


@functools.partial(
    jax.jit, static_argnames=("graphdef", "num_tokens", "loss_fn"), donate_argnames="state"
)
def sft_update(
    graphdef, num_tokens: int, state: SFTState, batch, hyper: optim.Hyper, loss_fn=sft_loss
):
    """One AdamW step on one batch: (state, metrics)."""
    loss, grads = jax.value_and_grad(
        lambda params: loss_fn(nnx.merge(graphdef, params), batch, num_tokens)
    )(state.params)
    params, opt_state, norm, finite = optim.apply(hyper, state.params, state.opt_state, grads, loss)
    skipped = jnp.where(finite, 0, state.skipped_in_a_row + 1)
    return SFTState(params, opt_state, skipped), {
        "loss": loss,
        "grad_norm": norm,
        "lr": hyper.lr,
        "skipped_in_a_row": skipped,
    }


def batch_rows(seed: int, step: int, batch_size: int, num_rows: int) -> np.ndarray:
    """Rows of the batch at `step`: epochs of a fresh permutation each, a function of (seed, step)
    alone.
    """
    flat = np.arange(step * batch_size, (step + 1) * batch_size)
    order = {
        epoch: np.random.default_rng((seed, epoch)).permutation(num_rows)
        for epoch in np.unique(flat // num_rows)
    }
    return np.array([order[i // num_rows][i % num_rows] for i in flat])


def train(
    model,
    sequences: Sequences,
    config: SFTConfig,
    *,
    seed: int,
    directory: str,
    title: str = "sft",
    loss_fn=sft_loss,
    **options,
):
    """Trains `model` on `sequences`, going on from `directory`; returns a model with the trained
    weights.

    loss_fn(model, batch, num_tokens) is the mean loss of some rows; `sequences` may carry more
    fields for it.
    options: boards and sweep, see `loop.run`.
    """
    graphdef, params = nnx.split(model)
    # the update donates its state; the caller's model stays whole
    params = jax.tree.map(jnp.copy, params)
    num_tokens = int((sequences.lengths - sequences.prompt_lengths).max())
    state = SFTState(params, optim.init(params), jnp.zeros((), jnp.int32))

    def step_fn(state, step):
        rows = batch_rows(seed, step, config.batch_size, len(sequences.tokens))
        batch = jax.tree.map(lambda x: x[rows], sequences)
        state, metrics = sft_update(
            graphdef,
            num_tokens,
            state,
            batch,
            optim.hyper(config.optim, step, config.steps),
            loss_fn,
        )
        return state, metrics | {"tokens": batch.lengths.sum()}

    state = run(
        step_fn,
        state,
        steps=config.steps,
        directory=directory,
        save_every=config.save_every,
        title=title,
        identity={"config": config, "seed": seed},
        position=lambda step: {"data": step * config.batch_size},
        **options,
    )
    return nnx.merge(graphdef, state.params)

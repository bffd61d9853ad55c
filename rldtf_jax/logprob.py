"""Log-probability, entropy and KL divergence over the full vocabulary, in chunks of time so that
the float32 logits (B, T, V) never exist as a whole.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp


class TokenStats(NamedTuple):
    """Per response token, (B, T) float32."""

    logp: jax.Array  # log pi(a_t | s_t)
    entropy: jax.Array  # H(pi(. | s_t)), nats
    kl: jax.Array  # KL(pi(. | s_t) || anchor(. | s_t)), nats
    options: jax.Array  # (B, T, K) log pi of the tokens that were asked for beside a_t


def log_prob(logits, tokens):
    """log softmax(logits)[tokens]: (..., V), (...) -> (...)."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]


def entropy(logits):
    """Shannon entropy of softmax(logits) in nats: (..., V) -> (...)."""
    logp = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def kl_divergence(logits, anchor_logits):
    """KL(softmax(logits) || softmax(anchor_logits)) in nats: (..., V), (..., V) -> (...)."""
    logp, anchor_logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(anchor_logits)
    return jnp.sum(jnp.exp(logp) * (logp - anchor_logp), axis=-1)


def token_stats(
    unembed: Callable,
    hidden_BxTxD,
    tokens_BxT,
    anchor_unembed: Callable | None = None,
    anchor_hidden_BxTxD=None,
    *,
    options_BxTxK=None,
    temperature=1.0,
    chunk: int | None = None,
) -> TokenStats:
    """Statistics of the tokens under softmax(unembed(hidden) / temperature).

    Args:
      unembed: hidden (..., D) -> float32 logits (..., V).
      anchor_unembed, anchor_hidden_BxTxD: the distribution in the KL's second place; without them
        kl is 0.
      options_BxTxK: further tokens whose log-probability is asked for (default: none).
      chunk: time steps whose logits exist at once, recomputed in the backward pass; None for all.
    """
    anchored = anchor_unembed is not None

    def stats(hidden, tokens, anchor_hidden, options):
        logits = unembed(hidden) / temperature
        logp = log_prob(logits, tokens)
        kl = (
            kl_divergence(logits, anchor_unembed(anchor_hidden) / temperature)
            if anchored
            else jnp.zeros_like(logp)
        )
        others = (
            jnp.take_along_axis(jax.nn.log_softmax(logits), options, axis=-1)
            if options.shape[-1]
            else options.astype(logits.dtype)
        )
        return TokenStats(logp, entropy(logits), kl, others)

    if not anchored:
        anchor_hidden_BxTxD = jnp.zeros((*tokens_BxT.shape, 0))
    if options_BxTxK is None:
        options_BxTxK = jnp.zeros((*tokens_BxT.shape, 0), jnp.int32)
    T = tokens_BxT.shape[1]
    if chunk is None or chunk >= T:
        return stats(hidden_BxTxD, tokens_BxT, anchor_hidden_BxTxD, options_BxTxK)

    def chunks_first(x):  # (B, T, ...) -> (T / chunk, B, chunk, ...), zero-padded
        x = jnp.pad(x, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -(-T // chunk), chunk, *x.shape[2:]), 1, 0)

    def body(_, x):
        return None, stats(*x)

    xs = tuple(
        chunks_first(x) for x in (hidden_BxTxD, tokens_BxT, anchor_hidden_BxTxD, options_BxTxK)
    )
    _, out = jax.lax.scan(jax.checkpoint(body), None, xs)
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], x.shape[0] * x.shape[2], *x.shape[3:])[
            :, :T
        ],
        out,
    )

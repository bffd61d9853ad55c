"""Pre-training (III.A): next tokens of documents that are packed into rows of one width.

A row holds as many documents as fit, a document goes on in the next row where it does not end; the
attention mask keeps them apart, and no token is predicted from another document's.
"""

from typing import Iterable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rldtf_jax import hosts, sft
from rldtf_jax.config import SFTConfig
from rldtf_jax.logprob import token_stats

LOGIT_CHUNK = 128  # positions whose float32 logits exist at once


class Packed(NamedTuple):
    """N full rows of S tokens."""

    tokens: np.ndarray  # (N, S) int32
    prompt_lengths: np.ndarray  # (N,) int32, all 1
    lengths: np.ndarray  # (N,) int32, all S
    documents: np.ndarray  # (N, S) int32, the number of each token's document


def pack(documents: Iterable[Sequence[int]], width: int, rows: int) -> Packed:
    """The first rows x width tokens of the documents, one after the other; fewer rows where there
    are fewer tokens, of which the last, less than a row, are left out.
    """
    tokens, numbers = [], []
    for number, document in enumerate(documents):
        tokens += document
        numbers += [number] * len(document)
        if len(tokens) >= rows * width:
            break
    rows = min(rows, len(tokens) // width)
    shaped = [
        np.array(some[: rows * width], np.int32).reshape(rows, width) for some in (tokens, numbers)
    ]
    return Packed(shaped[0], np.ones(rows, np.int32), np.full(rows, width, np.int32), shaped[1])


def joined(parts: Sequence[Packed]) -> Packed:
    """Rows of one width, one part after the other."""
    return Packed(*(np.concatenate(some) for some in zip(*parts)))


def predicted(documents_BxT):
    """(B, T-1) bool: whether token t + 1 is predicted by token t, of the same document."""
    return documents_BxT[:, 1:] == documents_BxT[:, :-1]


def next_token_logp(model, batch: Packed):
    """log pi(token t + 1 | its document up to t), (B, T-1) float32."""
    hidden_BxTxD = model.hidden(batch.tokens, documents_BxT=batch.documents)
    return token_stats(
        model.unembed, hidden_BxTxD[:, :-1], batch.tokens[:, 1:], chunk=LOGIT_CHUNK
    ).logp


def packed_loss(model, batch: Packed, num_tokens: int):
    """Mean negative log-likelihood in nats over the tokens that are predicted."""
    mask_BxT = predicted(batch.documents)
    logp_BxT = jnp.where(mask_BxT, next_token_logp(model, batch), 0.0)
    return -jnp.sum(logp_BxT) / jnp.maximum(jnp.sum(mask_BxT), 1)


def train(model, rows: Packed, config: SFTConfig, *, seed: int, directory: str, **options):
    """The model after `config.steps` batches of the rows; goes on from `directory`; options: see
    `sft.train`.
    """
    return sft.train(
        model,
        rows,
        config,
        seed=seed,
        directory=directory,
        title="pretrain",
        loss_fn=packed_loss,
        **options,
    )


def perplexity(model, rows: Packed, batch_size: int) -> float:
    """exp of the mean negative log-likelihood of the rows' predicted tokens."""
    graphdef, params = nnx.split(model)
    logp = jax.jit(lambda params, batch: next_token_logp(nnx.merge(graphdef, params), batch))
    total, count = 0.0, 0
    for start in range(0, len(rows.tokens), batch_size):
        batch = jax.tree.map(lambda x: x[start : start + batch_size], rows)  # noqa: B023
        mask = predicted(batch.documents)
        total -= float(
            np.where(mask, hosts.fetched(logp(params, batch)), 0.0).sum(dtype=np.float64)
        )
        count += int(mask.sum())
    return float(np.exp(total / max(count, 1)))

"""Sampling: one jitted prefill and one while_loop that stops when every row has ended.

Dimensions in names: G prompts, B responses, P padded prompt length, R = max_new_tokens, V
vocabulary rows.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_batching import custom_vmap

from rldtf_jax import hosts

PAD_ID = 0
CPU_PARTS = 4
MIN_PART = 8  # rows


class Samples(NamedTuple):
    """Responses. Lengths, never token values, say which positions are real."""

    tokens_BxR: jax.Array  # int32, PAD_ID after the end
    lengths_B: jax.Array  # int32, the EOS counted where there is one
    logp_BxR: jax.Array  # float32 behaviour log-probabilities, 0 after the end
    ended_B: jax.Array  # bool: the row has its EOS (False: cut off at R tokens)
    # Of conversations (`turns`): bool, the policy's own tokens, the others being the world's; None:
    # all. And where the last of its messages begins, which is its answer; None: at the beginning.
    author_BxR: np.ndarray | None = None
    answer_B: np.ndarray | None = None

    @property
    def own_BxR(self) -> np.ndarray:
        """bool: the tokens that the policy wrote, which alone it learns from."""
        within = np.arange(self.tokens_BxR.shape[1]) < np.asarray(self.lengths_B)[:, None]
        return within if self.author_BxR is None else within & self.author_BxR


def calls(samples: Samples) -> np.ndarray:
    """(B,) how often the world has spoken in each conversation."""
    if samples.answer_B is None:
        return np.zeros(len(samples.lengths_B), int)
    own_BxR = np.pad(samples.author_BxR, ((0, 0), (1, 0)), constant_values=True)
    return (own_BxR[:, :-1] & ~own_BxR[:, 1:]).sum(-1)


def answers(samples: Samples) -> Samples:
    """The last message of each conversation alone, which the judge reads."""
    if samples.answer_B is None:
        return samples
    return Samples(
        behind(samples.tokens_BxR, samples.answer_B),
        samples.lengths_B - samples.answer_B,
        behind(samples.logp_BxR, samples.answer_B),
        samples.ended_B,
    )


def behind(x_BxR, start_B) -> np.ndarray:
    """Each row from its start on, moved to the beginning; zeros behind it."""
    at_BxR = np.arange(x_BxR.shape[1]) + np.asarray(start_B)[:, None]
    moved = np.take_along_axis(np.asarray(x_BxR), np.minimum(at_BxR, x_BxR.shape[1] - 1), axis=1)
    return np.where(at_BxR < x_BxR.shape[1], moved, 0)


def bucket(length: int) -> int:
    """The width that prompts of at most `length` tokens are padded to: 8, 16, 24, 32, 40, 48, 56,
    64, 80, 96, 112, 128, ...

    Four widths an octave: few programs are compiled, and less than a fifth of a long row is
    padding.
    """
    step = max(8, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def pad_prompts(
    prompts: Sequence[Sequence[int]], width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(prompts_BxP right-padded, lengths_B), int32, for `sample`; P is width, or else the bucket of
    the longest.

    >>> prompts_BxP, lengths_B = pad_prompts([[5, 6, 7], [8]])
    >>> prompts_BxP.tolist(), lengths_B.tolist()
    ([[5, 6, 7, 0, 0, 0, 0, 0], [8, 0, 0, 0, 0, 0, 0, 0]], [3, 1])
    """
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    prompts_BxP = np.full((len(prompts), width or bucket(int(lengths_B.max()))), PAD_ID, np.int32)
    for row, prompt in zip(prompts_BxP, prompts):
        row[: len(prompt)] = prompt
    return prompts_BxP, lengths_B


def join(
    prompts_BxP: np.ndarray,
    prompt_lengths_B: np.ndarray,
    response_BxT: np.ndarray,
    response_lengths_B: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Each response right behind its prompt: (tokens_BxS right-padded, lengths_B), S = P + T."""
    P, T = prompts_BxP.shape[1], response_BxT.shape[1]
    tokens_BxS = np.zeros((len(prompts_BxP), P + T), np.int32)
    for row, prompt, p, response, r in zip(
        tokens_BxS, prompts_BxP, prompt_lengths_B, response_BxT, response_lengths_B
    ):
        row[:p], row[p : p + r] = prompt[:p], response[:r]
    return tokens_BxS, np.asarray(prompt_lengths_B + response_lengths_B, np.int32)


def row_keys(key: jax.Array, row_ids: jax.Array) -> jax.Array:
    """One key per row from its id alone, so that a row's draws do not depend on the batch it
    is in.
    """
    return jax.vmap(lambda row_id: jax.random.fold_in(key, row_id))(row_ids)


@partial(jax.jit, static_argnames=("graphdef", "max_new_tokens"))
def sample(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    prompts_GxP: jax.Array,
    prompt_lengths_G: jax.Array,
    keys_B: jax.Array,
    *,
    max_new_tokens: int,
    eos_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    room_B: jax.Array | None = None,
) -> Samples:
    """Samples as many responses to every right-padded prompt as there are keys for it, B / G
    neighbours, after reading it once; may be vmapped over a leading axis of params, prompts and
    keys.

    Row b draws its t-th token with fold_in(keys_B[b], t). temperature 0 is greedy; top_k 0 and
    top_p 1 filter nothing. The log-probabilities are those of the unfiltered distribution at the
    temperature (at temperature 1 when greedy). room_B: a row's most tokens, 0 for one that only
    keeps its place; default: max_new_tokens.
    """
    model = nnx.merge(graphdef, params)
    B, (G, P) = len(keys_B), prompts_GxP.shape
    hidden_GxD, cache = model.prefill(prompts_GxP, prompt_lengths_G, P + max_new_tokens)
    by_prompt = hidden_GxD, prompt_lengths_G, cache["kv"], cache["visible_BxS"]
    hidden_BxD, prompt_lengths_B, kv, visible_BxS = jax.tree.map(
        lambda x: x if B == G else jnp.repeat(x, B // G, axis=0), by_prompt
    )
    cache = cache | {"kv": kv, "visible_BxS": visible_BxS}

    def over(samples, t):
        return samples.ended_B if room_B is None else samples.ended_B | (t >= room_B)

    def alive(state):
        t, samples = state[:2]
        return (t < max_new_tokens) & _any_alive(over(samples, t))

    def step(state):
        t, samples, hidden_BxD, cache = state
        tokens_BxR, lengths_B, logp_BxR, ended_B = samples[:4]
        over_B = over(samples, t)
        token_B, logp_B = _next(model.unembed(hidden_BxD), keys_B, t, temperature, top_k, top_p)
        token_B = jnp.where(over_B, PAD_ID, token_B)
        samples = Samples(
            tokens_BxR.at[:, t].set(token_B),
            lengths_B + ~over_B,
            logp_BxR.at[:, t].set(jnp.where(over_B, 0.0, logp_B)),
            ended_B | ~over_B & (token_B == eos_id),
        )
        hidden_BxD, cache = model.decode(token_B, prompt_lengths_B + t, cache)
        return t + 1, samples, hidden_BxD, cache

    empty = Samples(
        jnp.full((B, max_new_tokens), PAD_ID, jnp.int32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros((B, max_new_tokens), jnp.float32),
        jnp.zeros(B, bool),
    )
    return jax.lax.while_loop(alive, step, (jnp.int32(0), empty, hidden_BxD, cache))[1]


def sample_on_host(
    graphdef, params, prompts_GxP, prompt_lengths_G, keys_B, room_B=None, **options
) -> Samples:
    """`sample`, its result as numpy arrays. On one CPU device the batch goes in up to CPU_PARTS
    parts that run side by side.

    Decoding steps of a small model are too small for XLA to use more than one core, and a part ends
    with its own longest row. What a row samples does not depend on the rows beside it.
    """
    G, B = len(prompts_GxP), len(keys_B)
    parts = next(n for n in range(CPU_PARTS, 0, -1) if n == 1 or G % n == 0 and B // n >= MIN_PART)
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        parts = 1
    part = lambda x, i: x[i * len(x) // parts : (i + 1) * len(x) // parts]
    samples = [
        sample(
            graphdef,
            params,
            *(part(x, i) for x in (prompts_GxP, prompt_lengths_G, keys_B)),
            room_B=None if room_B is None else part(room_B, i),
            **options,
        )
        for i in range(parts)
    ]
    samples = jax.device_get(hosts.fetched(samples))
    return jax.tree.map(lambda *x: np.concatenate(x), *samples)


def sample_batches(
    graphdef,
    params,
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    batch_size: int,
    width: int | None = None,
    **options,
) -> Iterator[tuple[np.ndarray, bool]]:
    """(ids with the EOS if there is one, whether there is) of one response to each of any number
    of prompts, in batches of one shape; what a prompt gets depends on its place, the key and
    `options`, which are those of `sample`.
    """
    width = width or bucket(max(map(len, prompts), default=1))
    for start in range(0, len(prompts), batch_size):
        rows = list(prompts[start : start + batch_size])
        samples = sample_on_host(
            graphdef,
            params,
            *pad_prompts(rows + rows[:1] * (batch_size - len(rows)), width),
            row_keys(key, start + np.arange(batch_size)),
            **options,
        )
        for ids, length, ended in zip(
            samples.tokens_BxR[: len(rows)], samples.lengths_B, samples.ended_B
        ):
            yield ids[:length], bool(ended)


def stream(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    prompt: Sequence[int],
    key: jax.Array,
    *,
    max_new_tokens: int,
    eos_id: int,
    temperature: float = 1.0,
) -> Iterator[tuple[int, float]]:
    """(token, log-probability) one by one, the EOS included: what `sample` gives this prompt and
    row key, for those who watch.
    """
    prompts_1xP, lengths_1 = pad_prompts([prompt])
    hidden_1xD, cache = _read(
        graphdef, params, prompts_1xP, lengths_1, prompts_1xP.shape[1] + max_new_tokens
    )
    for t in range(max_new_tokens):
        token_1, logp_1, hidden_1xD, cache = _write(
            graphdef, params, hidden_1xD, cache, lengths_1, key[None], t, temperature
        )
        yield int(token_1[0]), float(logp_1[0])
        if token_1[0] == eos_id:
            return


@partial(jax.jit, static_argnames=("graphdef", "capacity"))
def _read(graphdef, params, prompts_BxP, lengths_B, capacity):
    return nnx.merge(graphdef, params).prefill(prompts_BxP, lengths_B, capacity)


@partial(jax.jit, static_argnames="graphdef", donate_argnames="cache")
def _write(graphdef, params, hidden_BxD, cache, prompt_lengths_B, keys_B, t, temperature):
    model = nnx.merge(graphdef, params)
    token_B, logp_B = _next(model.unembed(hidden_BxD), keys_B, t, temperature, 0, 1.0)
    return token_B, logp_B, *model.decode(token_B, prompt_lengths_B + t, cache)


def _next(logits_BxV, keys_B, t, temperature, top_k, top_p):
    """The t-th token of every row, and its log-probability."""
    logits_BxV = logits_BxV * jnp.where(
        temperature > 0, 1.0 / jnp.where(temperature > 0, temperature, 1.0), 1.0
    )
    token_B = _draw(
        jax.vmap(jax.random.fold_in, (0, None))(keys_B, t), logits_BxV, temperature, top_k, top_p
    )
    return (
        token_B,
        jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), token_B[:, None], axis=1)[:, 0],
    )


def _draw(keys_B, logits_BxV, temperature, top_k, top_p):
    """One token id per row: by inverse distribution from the filtered probabilities, the most
    likely at temperature 0.
    """
    p_BxV = jax.nn.softmax(logits_BxV)
    p_BxV = jax.lax.cond(
        (top_k > 0) | (top_p < 1.0), _filter, lambda p_BxV, *_: p_BxV, p_BxV, top_k, top_p
    )
    # Zeros where p is: a parallel sum need not be monotone to the last bit, and what is filtered is
    # never drawn.
    cumulative_BxV = jnp.where(p_BxV > 0, _cumsum(p_BxV), 0.0)
    u_B = jax.vmap(jax.random.uniform)(keys_B)
    drawn_B = _first(cumulative_BxV > u_B[:, None] * cumulative_BxV.max(-1, keepdims=True))
    return jnp.where(
        temperature > 0, drawn_B, _first(logits_BxV == logits_BxV.max(-1, keepdims=True))
    )


def _first(found_BxV):
    """Index of the first True of each row. An argmax reduces pairs, which a CPU does not
    vectorise.
    """
    V = found_BxV.shape[-1]
    return jnp.min(jnp.where(found_BxV, jnp.arange(V, dtype=jnp.int32), V - 1), axis=-1)


def _cumsum(p_BxV, width: int = 32):
    """Cumulative sums, those within blocks by one matmul: a fraction of the time of jnp.cumsum on a
    CPU.
    """
    B, V = p_BxV.shape
    blocks_BxNxW = jnp.pad(p_BxV, ((0, 0), (0, -V % width))).reshape(B, -1, width)
    within_BxNxW = jnp.matmul(
        blocks_BxNxW, jnp.triu(jnp.ones((width, width), jnp.float32)), precision="highest"
    )
    before_BxN = jnp.cumsum(jnp.pad(within_BxNxW[:, :-1, -1], ((0, 0), (1, 0))), axis=-1)
    return (before_BxN[..., None] + within_BxNxW).reshape(B, -1)[:, :V]


def _filter(p_BxV, top_k, top_p):
    """Probabilities with zeros outside the top_k most likely tokens, then outside the nucleus of
    mass top_p.
    """
    count = jnp.where(top_k > 0, top_k, p_BxV.shape[-1])
    p_BxV = jnp.where(p_BxV >= _floor(p_BxV, jnp.ones_like(p_BxV), count), p_BxV, 0.0)
    mass_BxV = p_BxV / p_BxV.sum(-1, keepdims=True)
    return jnp.where(p_BxV >= _floor(p_BxV, mass_BxV, top_p), p_BxV, 0.0)


def _floor(p_BxV, weight_BxV, total):
    """The largest p such that tokens at least as likely weigh total together, by bisection on the
    bits of p.

    Non-negative floats are ordered as their bits, so 31 halvings are exact; a sort takes ten times
    as long on a CPU.
    """

    def halve(_, bounds):
        low_Bx1, high_Bx1 = bounds
        middle_Bx1 = low_Bx1 + (high_Bx1 - low_Bx1) // 2
        kept_BxV = p_BxV >= jax.lax.bitcast_convert_type(middle_Bx1, jnp.float32)
        enough_Bx1 = jnp.sum(jnp.where(kept_BxV, weight_BxV, 0.0), axis=-1, keepdims=True) >= total
        return jnp.where(enough_Bx1, middle_Bx1, low_Bx1), jnp.where(
            enough_Bx1, high_Bx1, middle_Bx1
        )

    low_Bx1 = jnp.zeros((p_BxV.shape[0], 1), jnp.int32)
    above_one = jax.lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32)
    low_Bx1, _ = jax.lax.fori_loop(0, 31, halve, (low_Bx1, low_Bx1 + above_one))
    return jax.lax.bitcast_convert_type(low_Bx1, jnp.float32)


@custom_vmap
def _any_alive(ended):
    return ~jnp.all(ended)


@_any_alive.def_vmap
def _any_alive_of_all_arms(_axis_size, _in_batched, ended):
    # A loop condition that is not batched keeps vmap from copying the whole cache in a select at
    # every step.
    return _any_alive(ended), False

"""Log-probability, entropy and KL: textbook values, whatever the chunk."""

import math
from functools import partial

import jax
import numpy as np
import plain_equations as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rldtf_jax.logprob import entropy, kl_divergence, log_prob, token_stats
from rldtf_jax.qwen2 import MASKED

B, T, D, V = 2, 7, 4, 9
SEEDS = st.integers(0, 2**32 - 1)


def logits(seed, shape=(B, T, V), scale=3.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


@given(SEEDS, st.sampled_from([0.01, 1.0, 30.0]))
def test_entropy_and_kl_have_their_textbook_values(seed, scale):
    x, y = logits(seed, scale=scale), logits(seed + 1, scale=scale)
    rows = [(a.tolist(), b.tolist()) for a, b in zip(x.reshape(-1, V), y.reshape(-1, V))]
    np.testing.assert_allclose(
        np.ravel(entropy(x)), [plain.entropy(a) for a, _ in rows], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        np.ravel(kl_divergence(x, y)),
        [plain.kl_divergence(a, b) for a, b in rows],
        rtol=1e-4,
        atol=1e-5,
    )


@given(SEEDS)
def test_log_prob_is_that_of_the_token(seed):
    x, tokens = logits(seed), np.random.default_rng(seed).integers(0, V, (B, T))
    expected = [
        math.log(plain.softmax(row.tolist())[token])
        for row, token in zip(x.reshape(-1, V), tokens.ravel())
    ]
    np.testing.assert_allclose(np.ravel(log_prob(x, tokens)), expected, rtol=1e-4, atol=1e-5)


@given(SEEDS)
def test_what_the_logits_share_changes_nothing(seed):
    x, y = logits(seed), logits(seed + 1)
    np.testing.assert_allclose(entropy(x + 50), entropy(x), atol=1e-4)
    np.testing.assert_allclose(kl_divergence(x + 50, y - 20), kl_divergence(x, y), atol=1e-4)


@given(SEEDS)
def test_kl_is_0_from_itself_and_nowhere_negative(seed):
    x, y = logits(seed), logits(seed + 1)
    np.testing.assert_array_equal(kl_divergence(x, x), 0)
    assert (np.asarray(kl_divergence(x, y)) > 0).all()


def test_entropy_is_0_of_certainty_and_log_v_of_none():
    certain = np.where(np.arange(V) == 3, np.float32(1e4), np.float32(-1e4))
    # the surplus rows of a vocabulary
    masked = np.where(np.arange(V) < 4, np.float32(0), np.float32(MASKED))
    for x, expected in (
        (certain, 0),
        (np.zeros(V, np.float32), math.log(V)),
        (masked, math.log(4)),
    ):
        value, gradient = jax.value_and_grad(entropy)(x)
        np.testing.assert_allclose(value, expected, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_kl_over_masked_rows_is_that_of_the_others():  # TRAPS 15
    x, y = logits(0, (V,)), logits(1, (V,))
    mask = partial(np.where, np.arange(V) < 5)
    np.testing.assert_allclose(
        kl_divergence(mask(x, np.float32(MASKED)), mask(y, np.float32(MASKED))),
        kl_divergence(x[:5], y[:5]),
        rtol=1e-5,
    )


def setup(seed):
    rng = np.random.default_rng(seed)
    hidden, anchor_hidden = rng.normal(size=(2, B, T, D)).astype(np.float32)
    table, anchor_table = rng.normal(size=(2, V, D)).astype(np.float32)
    return hidden, anchor_hidden, table, anchor_table, rng.integers(0, V, (B, T))


def stats(hidden, anchor_hidden, table, anchor_table, tokens, **options):
    return token_stats(
        lambda h: h @ table.T,
        tokens_BxT=tokens,
        hidden_BxTxD=hidden,
        anchor_unembed=lambda h: h @ anchor_table.T,
        anchor_hidden_BxTxD=anchor_hidden,
        **options,
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_statistics_are_those_of_the_tempered_distribution(temperature):  # TRAPS 2
    hidden, anchor_hidden, table, anchor_table, tokens = setup(0)
    x, y = hidden @ table.T / temperature, anchor_hidden @ anchor_table.T / temperature
    options = np.stack([tokens, (tokens + 1) % V], -1)
    out = stats(*setup(0), temperature=temperature, options_BxTxK=options)
    of_options = np.stack([log_prob(x, options[..., k]) for k in range(2)], -1)
    for ours, expected in zip(
        out, (log_prob(x, tokens), entropy(x), kl_divergence(x, y), of_options), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 7, 50])
def test_chunked_equals_unchunked_in_values_and_gradients(chunk, anchored):
    hidden, anchor_hidden, table, anchor_table, tokens = setup(1)
    weight = logits(2, (3, B, T))

    def total(hidden, table, chunk):
        anchor = (lambda h: h @ anchor_table.T, anchor_hidden) if anchored else ()
        out = token_stats(
            lambda h: h @ table.T,
            hidden,
            tokens,
            *anchor,
            options_BxTxK=np.stack([tokens, tokens[::-1]], -1),
            chunk=chunk,
        )
        return (
            sum((w * x).sum() for w, x in zip(weight, out))
            + (weight[0, ..., None] * out.options).sum(),
            out,
        )

    for chunked, whole in zip(
        *(
            jax.tree.leaves(jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, table, c))
            for c in (chunk, None)
        )
    ):
        np.testing.assert_allclose(chunked, whole, rtol=2e-5, atol=1e-5)


def test_chunks_never_hold_the_logits_of_all_positions():  # TRAPS 19
    def shapes(chunk):
        loss = jax.grad(
            lambda hidden, table: stats(
                hidden, setup(0)[1], table, *setup(0)[3:], chunk=chunk
            ).logp.sum()
        )
        return str(jax.make_jaxpr(loss)(*setup(0)[:3:2]))

    assert f"f32[{B},{T},{V}]" in shapes(None)
    for text in (f"f32[{B},{T},{V}]", f"f32[{T},{B},1,{V}]"):
        assert text not in shapes(1)


def test_without_an_anchor_the_kl_is_0():
    hidden, _, table, _, tokens = setup(0)
    np.testing.assert_array_equal(token_stats(lambda h: h @ table.T, hidden, tokens).kl, 0)


@settings(max_examples=5)
@given(SEEDS, st.sampled_from([None, 3]))
def test_gradients_agree_with_float64_finite_differences(seed, chunk):
    hidden, anchor_hidden, table, anchor_table, tokens = setup(seed)
    with jax.enable_x64(True):
        check_grads(
            lambda hidden, table: stats(
                hidden, anchor_hidden, table, anchor_table, tokens, chunk=chunk, temperature=0.8
            ),
            (np.float64(hidden), np.float64(table)),
            order=1,
            modes=["rev"],
            eps=1e-5,
            atol=1e-5,
            rtol=1e-5,
        )

"""Sampling: what is drawn, with which probability, and that nothing else in the batch matters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hf_model import call, configs, in_transformers, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.sample import PAD_ID, bucket, pad_prompts, row_keys, sample, sample_on_host, stream

SMALL = Qwen2Config(50, 32, 48, 2, 4, 2, head_dim=8, rope_theta=1e4, num_tokens=47)
NO_EOS = 1000
LENGTHS_B = np.array([4, 1, 7, 6, 2, 7])
PROMPTS_BxP = np.random.default_rng(1).integers(1, 47, (6, 7)) * (np.arange(7) < LENGTHS_B[:, None])


def draw(model=None, rows=slice(None), key=0, max_new_tokens=9, eos_id=NO_EOS, **options):
    graphdef, params = nnx.split(model or random_model(SMALL))
    keys_B = row_keys(jax.random.key(key), np.arange(6))[rows]
    out = sample(
        graphdef,
        params,
        PROMPTS_BxP[rows],
        LENGTHS_B[rows],
        keys_B,
        max_new_tokens=max_new_tokens,
        eos_id=eos_id,
        **options,
    )
    return jax.tree.map(np.asarray, out)


def log_probs(model, samples, temperature=1.0):
    """The trainer's view: one forward pass over prompt + response, (B, R, V)."""
    B, R = samples.tokens_BxR.shape
    whole_BxT = np.zeros((B, PROMPTS_BxP.shape[1] + R), int)
    at_BxR = LENGTHS_B[:, None] + np.arange(R)
    whole_BxT[:, : PROMPTS_BxP.shape[1]] = PROMPTS_BxP
    np.put_along_axis(whole_BxT, at_BxR, samples.tokens_BxR, axis=1)
    logits_BxTxV = call(model, whole_BxT)
    return jax.nn.log_softmax(logits_BxTxV[np.arange(B)[:, None], at_BxR - 1] / temperature)


@settings(max_examples=6, deadline=None)
@given(configs(vocab_size=60), st.integers(0, 99))
def test_greedy_equals_transformers_generate_token_for_token(config, seed):
    model = random_model(config, seed)
    got = draw(model, temperature=0.0, max_new_tokens=8)
    theirs = in_transformers(model)
    for prompt, length, response in zip(PROMPTS_BxP, LENGTHS_B, got.tokens_BxR):
        prompt = torch.tensor(prompt[None, :length])
        out = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
        )
        assert out[0, length:].tolist() == response.tolist()


@settings(max_examples=6, deadline=None)
@given(configs(vocab_size=60), st.integers(0, 99), st.floats(0.5, 2.0))
def test_behaviour_log_probs_equal_the_trainers_forward_pass(config, seed, temperature):
    model = random_model(config, seed)
    got = draw(model, key=seed, temperature=temperature)
    logp_BxRxV = log_probs(model, got, temperature)
    expected_BxR = np.take_along_axis(logp_BxRxV, got.tokens_BxR[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(got.logp_BxR, expected_BxR, atol=1e-4)


def test_log_probs_are_those_before_any_filter():
    model = random_model(SMALL)
    got = draw(model, top_k=3, top_p=0.5, temperature=0.8)
    expected_BxR = np.take_along_axis(
        log_probs(model, got, 0.8), got.tokens_BxR[..., None], axis=2
    )[..., 0]
    np.testing.assert_allclose(got.logp_BxR, expected_BxR, atol=1e-4)
    # the filtered distribution over 3 tokens would read otherwise
    assert (got.logp_BxR < -0.1).any()


@pytest.mark.parametrize("rows", [[0], [3], [5, 2], [4, 0, 1, 2, 3, 5]])
def test_a_rows_response_does_not_depend_on_the_batch_it_is_in(rows):
    whole, part = draw(top_p=0.9), draw(rows=np.array(rows), top_p=0.9)
    np.testing.assert_array_equal(part.tokens_BxR, whole.tokens_BxR[rows])
    np.testing.assert_allclose(part.logp_BxR, whole.logp_BxR[rows], atol=1e-5)


@pytest.mark.parametrize(
    "options", [dict(), dict(temperature=0.0), dict(top_k=5, top_p=0.9, temperature=1.4)]
)
@pytest.mark.parametrize("width", [12, 40])
def test_the_bucket_that_prompts_are_padded_to_changes_no_response(width, options):
    graphdef, params = nnx.split(random_model(SMALL))
    prompts = [prompt[:length].tolist() for prompt, length in zip(PROMPTS_BxP, LENGTHS_B)]
    prompts_BxP, lengths_B = pad_prompts(prompts, width)
    assert prompts_BxP.shape == (6, width)
    keys_B = row_keys(jax.random.key(0), np.arange(6))
    got = sample(
        graphdef, params, prompts_BxP, lengths_B, keys_B, max_new_tokens=9, eos_id=NO_EOS, **options
    )
    expected = draw(**options)
    np.testing.assert_array_equal(got.tokens_BxR, expected.tokens_BxR)
    np.testing.assert_allclose(got.logp_BxR, expected.logp_BxR, atol=1e-5)


@pytest.mark.parametrize("rows, parts", [(64, 4), (24, 3), (16, 2), (15, 1), (5, 1)])
def test_parts_that_are_sampled_side_by_side_are_the_batch(monkeypatch, rows, parts):
    calls, options = [], dict(max_new_tokens=6, eos_id=3, temperature=0.7)
    monkeypatch.setattr(
        "rldtf_jax.sample.sample",
        lambda *args, **kwargs: calls.append(len(args[2])) or sample(*args, **kwargs),
    )
    graphdef, params = nnx.split(random_model(SMALL))
    prompts = np.random.default_rng(rows).integers(4, 47, (rows, 8))
    batch = (
        graphdef,
        params,
        prompts,
        np.full(rows, 8),
        row_keys(jax.random.key(1), np.arange(rows)),
    )
    together, apart = sample(*batch, **options), sample_on_host(*batch, **options)
    assert calls == [rows // parts] * parts
    assert together[4:] == apart[4:] == (None, None)
    for name, one, other in zip(together._fields, together[:4], apart):
        assert isinstance(other, np.ndarray)
        np.testing.assert_allclose(other, one, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("n", [2, 8])
def test_a_prompt_that_is_read_once_for_many_responses_has_those_of_as_many_prompts(n, on_host):
    graphdef, params = nnx.split(random_model(SMALL))
    keys_B, options = (
        row_keys(jax.random.key(0), np.arange(6 * n)),
        dict(max_new_tokens=9, eos_id=3, temperature=0.9),
    )
    draw_all = sample_on_host if on_host else sample
    once = draw_all(graphdef, params, PROMPTS_BxP, LENGTHS_B, keys_B, **options)
    each = draw_all(
        graphdef, params, np.repeat(PROMPTS_BxP, n, 0), np.repeat(LENGTHS_B, n), keys_B, **options
    )
    for name, one, other in zip(once._fields, once[:4], each):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)
    assert not (once.tokens_BxR[0] == once.tokens_BxR[1]).all()


def test_prompts_of_many_lengths_share_the_program_of_their_bucket():
    graphdef, params = nnx.split(random_model(SMALL))

    def run(longest):
        prompts_BxP, lengths_B = pad_prompts([[7] * longest, [3]])
        sample(
            graphdef,
            params,
            prompts_BxP,
            lengths_B,
            row_keys(jax.random.key(0), np.arange(2)),
            max_new_tokens=3,
            eos_id=NO_EOS,
        )
        return prompts_BxP.shape[1]

    before = sample._cache_size()
    assert {run(longest) for longest in range(1, 25)} == {8, 16, 24}
    assert sample._cache_size() == before + 3


def test_a_bucket_holds_its_lengths_with_little_to_spare():
    widths = [bucket(length) for length in range(1, 2049)]
    assert all(
        length <= width < max(1.25 * length, length + 8) for length, width in enumerate(widths, 1)
    )
    assert widths == sorted(widths) and len(set(widths)) <= 30
    assert {bucket(width) for width in widths} == set(widths)


def test_draws_follow_the_models_distribution():
    graphdef, params = nnx.split(random_model(SMALL))
    n = 20_000
    keys_B = row_keys(jax.random.key(3), np.arange(n))
    tokens_B = sample(
        graphdef,
        params,
        np.full((n, 1), 5),
        np.ones(n, int),
        keys_B,
        max_new_tokens=1,
        eos_id=NO_EOS,
        temperature=1.5,
    ).tokens_BxR[:, 0]
    p_V = jax.nn.softmax(call(random_model(SMALL), np.array([[5]]))[0, 0] / 1.5)
    counts_V = np.bincount(tokens_B, minlength=50)
    kept_V = p_V * n > 5
    chi2 = np.sum((counts_V - p_V * n)[kept_V] ** 2 / (p_V * n)[kept_V])
    assert chi2 < kept_V.sum() + 5 * np.sqrt(2 * kept_V.sum())  # five standard deviations
    assert not counts_V[47:].any()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_surplus_rows_are_never_sampled(temperature):
    assert draw(temperature=temperature, max_new_tokens=40).tokens_BxR.max() < 47


def test_top_k_and_top_p_keep_the_smallest_likely_sets():
    model = random_model(SMALL)
    seen = [draw(model, key=key, top_k=4, max_new_tokens=6) for key in range(8)]
    for got in seen:
        logp_BxRxV = log_probs(model, got)
        chosen_BxR = np.take_along_axis(logp_BxRxV, got.tokens_BxR[..., None], axis=2)
        # fewer than 4 tokens are more likely
        assert ((logp_BxRxV > chosen_BxR + 1e-5).sum(-1) < 4).all()
    for got in [draw(model, key=key, top_p=0.4, max_new_tokens=6) for key in range(8)]:
        p_BxRxV = np.exp(log_probs(model, got))
        chosen_BxR = np.take_along_axis(p_BxRxV, got.tokens_BxR[..., None], axis=2)
        # the more likely weigh less
        assert (np.where(p_BxRxV > chosen_BxR + 1e-5, p_BxRxV, 0).sum(-1) < 0.4).all()
    one = draw(model, top_k=1)
    np.testing.assert_array_equal(one.tokens_BxR, draw(model, temperature=0.0).tokens_BxR)
    np.testing.assert_array_equal(one.tokens_BxR, draw(model, top_p=1e-6).tokens_BxR)


def test_a_response_ends_with_its_eos_and_is_padding_from_there():
    eos_id = int(draw().tokens_BxR[0, 3])  # a token that does come up
    free, got = draw(), draw(eos_id=eos_id)
    assert got.ended_B.any() and not got.ended_B.all()
    for b in range(6):
        n = got.lengths_B[b]
        np.testing.assert_array_equal(got.tokens_BxR[b, :n], free.tokens_BxR[b, :n])
        assert (got.tokens_BxR[b, n:] == PAD_ID).all() and not got.logp_BxR[b, n:].any()
        assert eos_id not in got.tokens_BxR[b, : n - 1]
        assert got.ended_B[b] == (got.tokens_BxR[b, n - 1] == eos_id)
        assert got.ended_B[b] or n == 9


def test_the_end_may_have_the_id_that_pads():
    got = draw(eos_id=PAD_ID, max_new_tokens=60)
    for tokens, n, ended in zip(got.tokens_BxR, got.lengths_B, got.ended_B):
        assert ended == (tokens[n - 1] == PAD_ID) and (tokens[: n - 1] != PAD_ID).all()
    assert got.ended_B.any()


def test_vmap_over_arms_equals_one_arm_at_a_time():
    arms = [random_model(SMALL, seed) for seed in range(2)]
    graphdef, _ = nnx.split(arms[0])
    params_A = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.split(arm)[1] for arm in arms))
    eos_id = int(draw(arms[0]).tokens_BxR[0, 3])
    keys_AxB = jnp.stack([row_keys(jax.random.key(arm), np.arange(6)) for arm in range(2)])
    run = jax.vmap(
        partial(sample, graphdef, max_new_tokens=9, eos_id=eos_id), in_axes=(0, None, None, 0)
    )
    together = run(params_A, PROMPTS_BxP, LENGTHS_B, keys_AxB)
    for arm, model in enumerate(arms):
        alone = draw(model, key=arm, eos_id=eos_id)
        np.testing.assert_array_equal(together.tokens_BxR[arm], alone.tokens_BxR)
        np.testing.assert_array_equal(together.lengths_B[arm], alone.lengths_B)
        np.testing.assert_allclose(together.logp_BxR[arm], alone.logp_BxR, atol=1e-5)


def test_vmap_over_arms_copies_no_cache_to_hold_back_arms_that_have_ended():
    graphdef, params = nnx.split(random_model(SMALL))
    params_A = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    run = jax.vmap(
        partial(sample, graphdef, max_new_tokens=9, eos_id=3), in_axes=(0, None, None, None)
    )
    jaxpr = jax.make_jaxpr(run)(
        params_A, PROMPTS_BxP, LENGTHS_B, row_keys(jax.random.key(0), np.arange(6))
    )
    equations = jaxpr.eqns[-1].params["jaxpr"].eqns
    (loop,) = (equation for equation in equations if equation.primitive.name == "while")
    # With one condition per arm, the lowered loop would select between the old and the new cache at
    # every step.
    assert loop.params["cond_jaxpr"].out_avals[0].shape == ()
    # step and slot, for all arms
    assert [var.aval.shape for var in loop.outvars if var.aval.size == 1] == [(), ()]


def test_sampling_stops_when_every_row_has_ended(monkeypatch):
    steps, decode = [], Qwen2.decode

    def counted(model, token_B, position_B, cache):
        jax.debug.callback(lambda slot: steps.append(int(slot)), cache["slot"])
        return decode(model, token_B, position_B, cache)

    monkeypatch.setattr(Qwen2, "decode", counted)
    # a length of its own, so that it is traced here
    free = draw(rows=slice(2), temperature=0.0, max_new_tokens=31)
    jax.effects_barrier()
    assert len(steps) == 31
    steps.clear()
    eos_id = int(free.tokens_BxR[0, 1])
    got = draw(rows=slice(1), temperature=0.0, max_new_tokens=31, eos_id=eos_id)
    jax.effects_barrier()
    assert got.ended_B.all() and len(steps) == got.lengths_B.max() <= 2


def test_other_prompts_weights_and_sampling_parameters_compile_nothing():
    draw()
    compiled = sample._cache_size()
    draw(random_model(SMALL, seed=5), key=9)
    assert sample._cache_size() == compiled
    draw(temperature=0.7, top_k=0, top_p=1.0)
    compiled = sample._cache_size()
    draw(temperature=1.3, top_k=5, top_p=0.9, eos_id=3)
    draw(temperature=0.0, top_k=1, top_p=0.1, eos_id=4)
    assert sample._cache_size() == compiled


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.7, 1.0]), st.integers(0, 5), st.integers(0, 46))
def test_a_stream_is_the_sample_of_its_prompt_and_key(key, temperature, row, eos_id):
    model = random_model(SMALL)
    graphdef, params = nnx.split(model)
    row_key = row_keys(jax.random.key(key), np.arange(6))[row]
    alone = dict(eos_id=eos_id, max_new_tokens=12, temperature=temperature)
    prompt = PROMPTS_BxP[row, : LENGTHS_B[row]]
    whole = sample(graphdef, params, *pad_prompts([prompt]), row_key[None], **alone)
    parts = list(stream(graphdef, params, prompt, row_key, **alone))
    assert [token for token, _ in parts] == whole.tokens_BxR[0, : whole.lengths_B[0]].tolist()
    np.testing.assert_allclose(
        [logp for _, logp in parts], whole.logp_BxR[0, : whole.lengths_B[0]], atol=1e-5
    )

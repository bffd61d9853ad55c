"""The model computes what transformers' Qwen2ForCausalLM computes, under every transformation we
use.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hf_model import call, configs, hf_logits, in_transformers, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from rldtf_jax.qwen2 import MASKED, Qwen2, Qwen2Config, narrow_logits, param_table

SMALL = Qwen2Config(50, 32, 48, 3, 4, 2, head_dim=8, rope_theta=1e4)
few = settings(max_examples=10, deadline=None)


def tokens_of(config, shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.num_tokens, shape)


@few
@given(configs(), st.integers(1, 21), st.integers(0, 99))
def test_logits_equal_transformers(config, length, seed):
    model = random_model(config, seed)
    tokens_BxT = tokens_of(config, (2, length), seed)
    assert (
        np.abs(call(model, tokens_BxT) - hf_logits(in_transformers(model), tokens_BxT)).max()
        <= 1e-4
    )


@few
@given(configs(), st.lists(st.integers(1, 13), min_size=1, max_size=4), st.integers(0, 99))
def test_right_padding_changes_no_real_position(config, lengths, seed):
    model = random_model(config, seed)
    lengths_B = np.array(lengths)
    tokens_BxT = tokens_of(config, (len(lengths), 13), seed)
    real_BxT = np.arange(13) < lengths_B[:, None]
    expected = hf_logits(in_transformers(model), tokens_BxT, real_BxT)
    assert np.abs(call(model, tokens_BxT, lengths_B) - expected)[real_BxT].max() <= 1e-4


def test_what_pads_the_prompt_has_no_effect_and_hidden_states_there_are_zero():
    model = random_model(SMALL)
    lengths_B = np.array([3, 7])
    real_BxT = np.arange(7) < lengths_B[:, None]
    tokens_BxT = tokens_of(SMALL, (2, 7))
    one = call(model, tokens_BxT, lengths_B, method="hidden")
    other = call(model, np.where(real_BxT, tokens_BxT, 13), lengths_B, method="hidden")
    np.testing.assert_array_equal(one, other)
    assert not one[~real_BxT].any()


@few
@given(configs(), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 99))
def test_decoding_with_a_cache_equals_reading_the_whole_sequence(config, lengths, seed):
    model = random_model(config, seed)
    B, P, R = len(lengths), max(lengths) + 2, 3
    lengths_B, rows = np.array(lengths), np.arange(B)
    sequence_BxT = tokens_of(config, (B, P + R), seed)
    graphdef, params = nnx.split(model)

    @jax.jit
    def decoded(params):
        model = nnx.merge(graphdef, params)
        hidden_BxD, cache = model.prefill(sequence_BxT[:, :P], lengths_B, P + R)
        states = [hidden_BxD]
        for position_B in (lengths_B + t for t in range(R)):
            hidden_BxD, cache = model.decode(
                jnp.asarray(sequence_BxT[rows, position_B]), position_B, cache
            )
            states.append(hidden_BxD)
        return jnp.stack(states, axis=1)

    hidden_BxTxD = call(model, sequence_BxT, method="hidden")
    expected = hidden_BxTxD[rows[:, None], lengths_B[:, None] - 1 + np.arange(R + 1)]
    np.testing.assert_allclose(decoded(params), expected, atol=1e-4)


def test_bfloat16_is_as_near_float32_and_transformers_as_its_two_attentions_are():
    config = dataclasses.replace(
        SMALL, dtype="bfloat16", param_dtype="bfloat16", num_hidden_layers=4
    )
    model = random_model(config, scale=0.1)
    tokens_BxT = tokens_of(config, (8, 33))
    graphdef = nnx.split(random_model(dataclasses.replace(config, dtype="float32")))[0]
    params32 = jax.tree.map(lambda p: p.astype(jnp.float32), nnx.split(model)[1])
    exact = call(nnx.merge(graphdef, params32), tokens_BxT)
    eager, sdpa = (
        hf_logits(in_transformers(model, attention), tokens_BxT) for attention in ("eager", "sdpa")
    )
    ours = call(model, tokens_BxT)
    error = lambda logits: np.sqrt(np.mean((logits - exact) ** 2))
    assert error(ours) <= max(error(eager), error(sdpa))
    assert max(np.abs(ours - eager).max(), np.abs(ours - sdpa).max()) <= np.abs(eager - sdpa).max()


def test_norms_softmax_and_logits_are_float32_in_a_bfloat16_model():
    config = dataclasses.replace(
        SMALL, dtype="bfloat16", param_dtype="bfloat16", tie_word_embeddings=False
    )
    for head, shape in (("lm", (2, 5, 50)), ("value", (2, 5))):
        out = jax.eval_shape(
            lambda: Qwen2(config, rngs=nnx.Rngs(0), head=head)(jnp.ones((2, 5), int))  # noqa: B023
        )
        assert (out.dtype, out.shape) == (jnp.float32, shape)


def test_the_gradient_of_bfloat16_logits_is_rounded_only_once():
    draw = np.random.default_rng(0)
    h_NxD, table_VxD = (
        jnp.asarray(draw.normal(size=shape), jnp.bfloat16) for shape in ((7, 32), (50, 32))
    )
    weight_NxV = jnp.asarray(draw.normal(size=(7, 50)), jnp.float32)
    exact = lambda h, table: jnp.einsum("nd,vd->nv", h, table, preferred_element_type=jnp.float32)
    loss = lambda logits: lambda *operands: jnp.sum(weight_NxV * logits(*operands))
    ours, expected = (
        jax.grad(loss(logits), (0, 1))(h_NxD, table_VxD) for logits in (narrow_logits, exact)
    )
    for a, b in zip(ours, expected):
        assert a.dtype == jnp.bfloat16
        apart, size = (np.linalg.norm(np.asarray(x, np.float32)) for x in (a - b, b))
        assert apart <= 2**-8 * size


def test_surplus_rows_are_masked_in_every_logit():
    config = dataclasses.replace(SMALL, num_tokens=43)
    logits_BxTxV = call(random_model(config), tokens_of(config, (2, 6)))
    assert (logits_BxTxV[..., 43:] == MASKED).all() and np.abs(logits_BxTxV[..., :43]).max() < 100
    p_BxTxV = jax.nn.softmax(logits_BxTxV)
    entropy_BxT = -jnp.sum(p_BxTxV * jax.nn.log_softmax(logits_BxTxV), axis=-1)
    assert jnp.isfinite(entropy_BxT).all() and (p_BxTxV[..., 43:] == 0).all()


def test_values_start_at_zero_and_are_linear_in_the_hidden_state():
    fresh = Qwen2(SMALL, rngs=nnx.Rngs(0), head="value")
    assert not call(fresh, tokens_of(SMALL, (2, 4))).any()
    model = random_model(SMALL, head="value")
    hidden_BxTxD = call(model, tokens_of(SMALL, (2, 4)), method="hidden")
    expected = hidden_BxTxD @ model.value_head[...] + model.value_bias[...]
    np.testing.assert_allclose(call(model, tokens_of(SMALL, (2, 4))), expected, atol=1e-6)


def test_parameters_start_as_in_transformers():
    params = nnx.split(Qwen2(Qwen2Config.preset("tiny"), rngs=nnx.Rngs(0)))[1]
    assert np.std(params["embed"][...]) == pytest.approx(0.02, rel=0.02)
    assert np.std(params["layers"]["w_down"][...]) == pytest.approx(0.02, rel=0.02)
    assert not params["layers"]["bq"][...].any() and (params["layers"]["mlp_norm"][...] == 1).all()


@pytest.mark.parametrize(
    "options",
    [{"unroll": 3}, {"remat": True}, {"remat": "dots_saveable"}, {"remat": True, "unroll": 3}],
)
def test_remat_and_unroll_change_no_gradient(options):
    params = nnx.split(random_model(SMALL))[1]
    tokens_BxT = tokens_of(SMALL, (2, 6))

    def gradient(config):
        graphdef = nnx.split(random_model(config))[0]
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(tokens_BxT)))))(
            params
        )

    plain, other = gradient(SMALL), gradient(dataclasses.replace(SMALL, **options))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, other)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_library_attention_changes_neither_logits_nor_gradients_nor_the_cache(kv_heads):
    config, length = dataclasses.replace(SMALL, num_key_value_heads=kv_heads), 7
    params = nnx.split(random_model(config))[1]
    tokens_BxT = tokens_of(config, (2, length))

    def everything(config):
        graphdef = nnx.split(random_model(config))[0]
        sines = lambda params: jnp.sum(jnp.sin(nnx.merge(graphdef, params)(tokens_BxT)))
        prefill = lambda params: nnx.merge(graphdef, params).prefill(
            tokens_BxT, np.array([length, 1]), length + 1
        )
        return jax.jit(lambda params: (jax.value_and_grad(sines)(params), prefill(params)))(params)

    own, library = everything(config), everything(dataclasses.replace(config, attention="xla"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), own, library)


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention must be one of dot, xla, cudnn, got 'flash'"):
        dataclasses.replace(SMALL, attention="flash")


def test_vmap_over_arms_equals_one_arm_at_a_time():
    arms = [random_model(SMALL, seed) for seed in range(3)]
    graphdef, _ = nnx.split(arms[0])
    params_A = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.split(arm)[1] for arm in arms))
    tokens_AxBxT = tokens_of(SMALL, (3, 2, 5))
    together = jax.jit(jax.vmap(lambda params, tokens: nnx.merge(graphdef, params)(tokens)))(
        params_A, tokens_AxBxT
    )
    for arm, tokens_BxT, logits in zip(arms, tokens_AxBxT, together):
        np.testing.assert_allclose(logits, call(arm, tokens_BxT), atol=1e-5)


def test_sizes_have_their_published_number_of_parameters():
    published = {  # Qwen2.5 technical report and model cards; SmolLM2's card
        "qwen2.5-0.5b": 494_032_768,
        "qwen2.5-1.5b": 1_543_714_304,
        "qwen2.5-3b": 3_085_938_688,
        "qwen2.5-7b": 7_615_616_512,
        "smollm2-135m": 134_515_008,
    }
    for name, count in published.items():
        config = Qwen2Config.preset(name)
        if name.startswith("smollm2"):  # a llama without biases, here with zero biases
            config = dataclasses.replace(config, attention_bias=False)
        assert sum(np.prod(spec.shape, dtype=int) for spec in param_table(config).values()) == count
    assert (
        0.8e6
        < sum(np.prod(s.shape) for s in param_table(Qwen2Config.preset("tiny")).values())
        < 1.2e6
    )


def test_the_module_holds_exactly_the_parameters_of_the_table():
    for head in ("lm", "value"):
        config = dataclasses.replace(SMALL, tie_word_embeddings=False)
        params = nnx.eval_shape(lambda: nnx.split(Qwen2(config, rngs=nnx.Rngs(0), head=head))[1])  # noqa: B023
        flat = {".".join(path): leaf.shape for path, leaf in nnx.to_flat_state(params)}
        assert flat == {path: spec.shape for path, spec in param_table(config, head).items()}


HF_CONFIG = dict(
    model_type="qwen2",
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    hidden_act="silu",
    rope_theta=1000000.0,
    rms_norm_eps=1e-06,
    tie_word_embeddings=True,
    use_sliding_window=False,
    sliding_window=32768,
    torch_dtype="bfloat16",
)


def test_an_hf_config_reads_as_the_preset_of_that_size():
    config = Qwen2Config.from_hf(HF_CONFIG, remat=True, num_tokens=151665)
    assert config == Qwen2Config.preset("qwen2.5-0.5b")
    newer = {k: v for k, v in HF_CONFIG.items() if k not in ("rope_theta", "torch_dtype")}
    newer |= dict(dtype="bfloat16", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert Qwen2Config.from_hf(newer, remat=True, num_tokens=151665) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mistral"}, "mistral"),
        ({"model_type": "qwen2_moe"}, "qwen2_moe"),
        ({"use_sliding_window": True}, "sliding"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_key_value_heads": 3}, "14 query heads"),
        ({"hidden_size": None}, "hidden_size"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
    config = {k: v for k, v in (HF_CONFIG | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        Qwen2Config.from_hf(config)


def test_an_unknown_preset_or_head_is_refused():
    with pytest.raises(ValueError, match="qwen3"):
        Qwen2Config.preset("qwen3")
    with pytest.raises(ValueError, match="reward"):
        Qwen2(SMALL, rngs=nnx.Rngs(0), head="reward")

"""Weights go out and come back unchanged, transformers agrees, and damaged files are refused by
name.
"""

import dataclasses
import json
import tracemalloc

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx
from hf_model import call, configs, hf_logits, random_model
from hypothesis import given, settings

from rldtf_jax import hf, tokenizer
from rldtf_jax.qwen2 import Qwen2, Qwen2Config

SMALL = Qwen2Config(50, 32, 48, 3, 4, 2, head_dim=8, rope_theta=1e4)
TOKENS_BxT = np.random.default_rng(0).integers(0, 50, (2, 9))


def assert_same_parameters(a: Qwen2, b: Qwen2):
    a, b = (dict(nnx.to_flat_state(nnx.split(model)[1])) for model in (a, b))
    assert a.keys() == b.keys()
    for path in a:
        assert a[path][...].dtype == b[path][...].dtype
        np.testing.assert_array_equal(a[path][...], b[path][...], err_msg=str(path))


def in_hf(
    config: Qwen2Config, directory, dtype=torch.float32, **save_options
) -> transformers.PreTrainedModel:
    """A random model of transformers' own making, saved by transformers: a Llama where there are no
    biases.
    """
    torch.manual_seed(0)
    their_model, their_config = (
        (transformers.Qwen2ForCausalLM, transformers.Qwen2Config)
        if config.attention_bias
        else (transformers.LlamaForCausalLM, transformers.LlamaConfig)
    )
    model = their_model(
        their_config(
            **{
                name: getattr(config, name)
                for name in hf.CONFIG_NAMES
                if hasattr(their_config, name)
            }
            | {"head_dim": config.head_dim},
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attn_implementation="eager",
        )
    )
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.to(dtype).eval().save_pretrained(directory, **save_options)
    return model


@settings(max_examples=6, deadline=None)
@given(configs())
def test_a_directory_saved_by_transformers_loads_with_the_same_logits(tmp_path_factory, config):
    directory = tmp_path_factory.mktemp("hf")
    theirs = in_hf(config, directory)
    assert json.loads((directory / "config.json").read_text())["model_type"] == (
        "qwen2" if config.attention_bias else "llama"
    )
    tokens_BxT = TOKENS_BxT % config.vocab_size
    assert (
        np.abs(call(hf.load(directory), tokens_BxT) - hf_logits(theirs, tokens_BxT)).max() <= 1e-4
    )


def test_sharded_and_bfloat16_directories_of_transformers_load(tmp_path):
    in_hf(SMALL, tmp_path, torch.bfloat16, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = hf.load(tmp_path)
    assert (model.config.dtype, model.embed[...].dtype) == ("bfloat16", jnp.bfloat16)
    wide = hf.load(tmp_path, dtype="float32")
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert np.abs(call(wide, TOKENS_BxT) - hf_logits(theirs, TOKENS_BxT)).max() <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_save_then_load_is_exact_in_one_file_or_many(tmp_path, monkeypatch, dtype, tied):
    config = dataclasses.replace(
        SMALL, dtype=dtype, param_dtype=dtype, tie_word_embeddings=tied, num_tokens=47
    )
    model = random_model(config)
    hf.save(model, tmp_path / "one")
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    monkeypatch.setattr(hf, "SHARD_BYTES", 9000)
    hf.save(model, tmp_path / "many")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = {p.name for p in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files and len(files) > 2
    assert index["metadata"]["total_size"] == sum(
        p.nbytes for p in jax.tree.leaves(nnx.split(model)[1])
    )
    for directory in ("one", "many"):
        loaded = hf.load(tmp_path / directory)
        assert loaded.config == config
        assert_same_parameters(loaded, model)


def test_what_we_save_transformers_loads_without_complaint(tmp_path):
    model = random_model(SMALL)
    hf.save(model, tmp_path)
    theirs, info = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert np.abs(hf_logits(theirs, TOKENS_BxT) - call(model, TOKENS_BxT)).max() <= 1e-4


def test_ids_beyond_the_directorys_tokenizer_are_surplus(tmp_path):
    config = dataclasses.replace(SMALL, vocab_size=400)
    in_hf(config, tmp_path)
    domain = tokenizer.train_bpe(["5 ms and 12 Mbps"] * 9, 300)
    domain.save(tmp_path / "tokenizer.json")
    assert hf.load(tmp_path).config.num_tokens == domain.vocab_size < 400


def test_loading_holds_one_tensor_at_a_time_on_the_host(tmp_path):
    config = dataclasses.replace(
        SMALL, num_hidden_layers=30, intermediate_size=3000, param_dtype="bfloat16"
    )
    model = random_model(config)
    hf.save(model, tmp_path)
    hf.load(tmp_path, dtype="float32")  # compiles
    tracemalloc.start()
    loaded = hf.load(tmp_path, dtype="float32")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    stacked = loaded.layers["w_gate"][...].nbytes
    assert peak < stacked / 5  # a tensor of one layer is a thirtieth of it


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


K = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(K), f"missing: tensor '{K}'"),
        (
            lambda t: [t.pop(k) for k in list(t) if "layers.2" in k],
            "missing: tensor 'model.layers.2.*' and 11 more",
        ),
        (lambda t: t.update(lora=torch.zeros(3)), "unknown: tensor 'lora'"),
        (
            lambda t: t.update({K: t[K].T.contiguous()}),
            rf"{K}' has shape \(32, 16\), the config says \(16, 32\)",
        ),
        (lambda t: t.update({K: t[K].to(torch.int32)}), f"{K}' has dtype I32"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(tmp_path, change, message):
    hf.save(random_model(SMALL), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        hf.load(tmp_path)


@pytest.mark.parametrize("kept, message", [(0.9, "tensor 'model.*' is cut off"), (0.01, "header")])
def test_a_truncated_file_is_refused_by_name(tmp_path, kept, message):
    hf.save(random_model(SMALL), tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=message):
        hf.load(tmp_path)


def test_a_missing_shard_is_refused_by_the_names_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 9000)
    hf.save(random_model(SMALL), tmp_path)
    (tmp_path / sorted(p.name for p in tmp_path.glob("*.safetensors"))[0]).unlink()
    with pytest.raises(
        FileNotFoundError,
        match="model-00001-of-.*: no such file; model.safetensors.index.json names it",
    ):
        hf.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="missing: tensor 'model.embed_tokens.weight' and 3 more"):
        hf.load(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        hf.load(tmp_path)


def test_files_that_do_not_belong_to_the_weights_are_not_read(tmp_path, monkeypatch):
    """A shard of an older save, a Mac's shadow of one, an adapter, stored rotary frequencies."""
    model, other = random_model(SMALL), random_model(SMALL, seed=1)
    monkeypatch.setattr(hf, "SHARD_BYTES", 9000)
    hf.save(model, tmp_path / "hf")
    hf.save(other, tmp_path / "other")
    shards = sorted((tmp_path / "other").glob("*.safetensors"))
    shards[0].rename(tmp_path / "hf" / "model-00001-of-00099.safetensors")
    (tmp_path / "hf" / "._model-00001-of-00002.safetensors").write_bytes(b"\0\5\26\7")
    safetensors.torch.save_file(
        {"lora_A": torch.ones(2)}, tmp_path / "hf" / "adapter_model.safetensors"
    )
    assert_same_parameters(hf.load(tmp_path / "hf"), model)

    monkeypatch.undo()
    hf.save(other, tmp_path / "single")
    rewrite(
        tmp_path / "single",
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
    )
    assert_same_parameters(hf.load(tmp_path / "single"), other)


@pytest.mark.parametrize(
    "change, message",
    [
        ("{", "config.json: expected JSON"),
        ("[]", "config.json: expected a JSON object"),
        ({"vocab_size": "50"}, "vocab_size = '50': expected a value of type int"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1: expected a value of type bool"),
        ({"hidden_size": None}, "the config lacks hidden_size"),
    ],
)
def test_a_wrong_config_is_refused_by_name(tmp_path, change, message):
    hf.save(random_model(SMALL), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    )
    with pytest.raises(ValueError, match=message):
        hf.load(tmp_path)


def test_key_value_heads_of_null_are_as_many_as_query_heads(tmp_path):
    assert (
        Qwen2Config.from_hf(
            json.loads(json.dumps(hf._hf_config(SMALL) | {"num_key_value_heads": None}))
        ).num_key_value_heads
        == 4
    )


def test_a_save_that_fails_leaves_nothing_and_overwrites_nothing(tmp_path, monkeypatch):
    model = random_model(SMALL)
    monkeypatch.setattr(hf, "_param", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hf.save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    hf.save(model, tmp_path / "out")
    with pytest.raises(FileExistsError, match="out"):
        hf.save(random_model(SMALL, seed=1), tmp_path / "out")
    assert_same_parameters(hf.load(tmp_path / "out"), model)
    with pytest.raises(ValueError, match="LM head"):
        hf.save(random_model(SMALL, head="value"), tmp_path / "value")


def write_gguf(path, tensors, *, quantised=(), architecture="llama", **change):
    fields = dict(layers=3, heads=4, kv_heads=2, theta=1e4) | change
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(fields["layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(fields["heads"])
    if fields["kv_heads"]:
        writer.add_head_count_kv(fields["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(fields["theta"])
    writer.add_token_list([f"t{i}" for i in range(50)])
    for name, tensor in tensors.items():
        if name.endswith(quantised):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_and_its_gguf_tensors():
    """A llama of transformers and its tensors as llama.cpp's converter writes them: rows of Q and K
    permuted.
    """
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,  # noqa: E501
            num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4}, attn_implementation="eager",  # noqa: E501
        )
    ).eval()  # fmt: skip
    for parameter in llama.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    state, tensors = llama.state_dict(), {}
    for hf_name, gguf_name in hf.NAMES.values():
        for layer in range(3):
            if (
                hf_name.format(layer) not in state
                or (layer and "{}" not in hf_name)
                or hf_name == "lm_head.weight"
            ):
                continue
            tensor = state[hf_name.format(layer)].numpy()
            if gguf_name.endswith(("attn_q.weight", "attn_k.weight")):
                heads = 4 if "attn_q" in gguf_name else 2
                tensor = tensor.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(tensor.shape)
            tensors[gguf_name.format(layer)] = np.ascontiguousarray(tensor)
    return llama, tensors


def test_a_llama_in_gguf_has_the_logits_of_that_llama(tmp_path):
    llama, tensors = llama_and_its_gguf_tensors()
    write_gguf(tmp_path / "m.gguf", tensors)
    model = hf.load(tmp_path)
    assert np.abs(call(model, TOKENS_BxT) - hf_logits(llama, TOKENS_BxT)).max() <= 1e-4
    assert "bq" not in model.layers and model.config.num_tokens == 50
    hf.save(model, tmp_path / "llama")
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    assert isinstance(saved, transformers.LlamaForCausalLM)
    assert np.abs(hf_logits(saved, TOKENS_BxT) - hf_logits(llama, TOKENS_BxT)).max() <= 1e-4


def test_quantised_tensors_are_dequantised(tmp_path):
    llama, tensors = llama_and_its_gguf_tensors()
    write_gguf(tmp_path / "m.gguf", tensors, quantised=("ffn_up.weight", "attn_q.weight"))
    model = hf.load_gguf(tmp_path / "m.gguf")
    exact = llama.model.layers[1].mlp.up_proj.weight.detach().numpy().T
    got = np.asarray(model.layers["w_up"][...][1])
    # Q8_0: half a step of 1/127 of each block's peak
    assert 0 < np.abs(got - exact).max() < np.abs(exact).max() / 127
    rows = llama.model.layers[2].self_attn.q_proj.weight.detach().numpy().T
    assert np.abs(np.asarray(model.layers["wq"][...][2]) - rows).max() < np.abs(rows).max() / 127


def test_a_wrong_gguf_is_refused_by_name(tmp_path):
    _, tensors = llama_and_its_gguf_tensors()
    for change, message in (
        (dict(architecture="gemma"), "gemma"),
        (dict(layers=2), "unknown: tensor 'blk.2.attn_k.weight' and 8 more"),
        (dict(layers=4), "missing: tensor 'blk.3.attn_k.weight' and 8 more"),
        # as many as query heads
        (
            dict(kv_heads=None),
            r"'blk.0.attn_k.weight' has shape \(16, 32\), the config says \(32, 32\)",
        ),
        (
            dict(kv_heads=4),
            r"'blk.0.attn_k.weight' has shape \(16, 32\), the config says \(32, 32\)",
        ),
    ):
        write_gguf(tmp_path / "m.gguf", tensors, **change)
        with pytest.raises(ValueError, match=message):
            hf.load_gguf(tmp_path / "m.gguf")

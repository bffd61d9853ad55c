"""What the model tests share: models with weights that matter everywhere, and the same model in
transformers.
"""

import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx
from hypothesis import strategies as st

from rldtf_jax import hf
from rldtf_jax.qwen2 import Qwen2, Qwen2Config

torch.set_num_threads(2)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@st.composite
def configs(draw, **fixed):
    """Small models of every kind: tied or not, 1..4 query heads per key/value head, with or without
    biases.

    Without biases they are Llamas to transformers, whose hidden size is a multiple of the number of
    heads.
    """
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 4))
    fields = dict(
        vocab_size=draw(st.integers(11, 90)),
        hidden_size=draw(st.sampled_from([24, 40, 64])),
        intermediate_size=draw(st.integers(5, 70)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 8, 18])),
        rope_theta=draw(st.floats(1e4, 1e6)),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        tie_word_embeddings=draw(st.booleans()),
        remat=draw(st.booleans()),
        unroll=draw(st.integers(1, 3)),
    )
    bias_free = fields["hidden_size"] % heads == 0 and draw(st.booleans())
    return Qwen2Config(**(fields | {"attention_bias": not bias_free} | fixed))


def random_model(config: Qwen2Config, seed: int = 0, head: str = "lm", scale: float = 0.2) -> Qwen2:
    """Every parameter random, biases and norms too, so that none can be left out or confused
    unnoticed.
    """
    graphdef, abstract = nnx.split(
        nnx.eval_shape(lambda: Qwen2(config, rngs=nnx.Rngs(0), head=head))
    )
    draw = np.random.default_rng(seed)
    leaf = lambda p: jnp.asarray(scale * draw.normal(size=p.shape), p.dtype)
    return nnx.merge(graphdef, jax.tree.map(leaf, abstract))


@partial(jax.jit, static_argnums=(0, 1))
def _call(graphdef, method, params, args):
    return getattr(nnx.merge(graphdef, params), method)(*args)


def call(model: Qwen2, *args, method: str = "__call__"):
    """model.method(*args), compiled as a whole."""
    graphdef, params = nnx.split(model)
    return jax.tree.map(np.asarray, _call(graphdef, method, params, args))


def in_transformers(model: Qwen2, attention: str = "eager") -> transformers.PreTrainedModel:
    """The same weights in transformers, by way of a saved directory: a Qwen2, or a Llama where
    there are no biases.
    """
    with tempfile.TemporaryDirectory() as directory:
        hf.save(model, directory)
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation=attention
        ).eval()


def hf_logits(model: transformers.PreTrainedModel, tokens, mask=None) -> np.ndarray:
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(np.asarray(mask)).long()
        return (
            model(torch.tensor(np.asarray(tokens)).long(), attention_mask=mask)
            .logits.float()
            .numpy()
        )

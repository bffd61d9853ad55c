"""SmolLM2-135M's real weights, where `python -m rldtf_jax.fetch smollm2 DIR` has put them and SMOLLM2=DIR says so.

transformers reads the same GGUF file by code of its own (it needs the package accelerate for that).
"""

import os
from pathlib import Path

from flax import nnx
from hf_model import call
import jax
import numpy as np
import pytest
import torch
import transformers

from rldtf_jax import hf, tokenizer
from rldtf_jax.sample import pad_prompts, row_keys, sample

DIRECTORY = Path(os.environ.get("SMOLLM2", ""))
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.skipif("SMOLLM2" not in os.environ, reason="SMOLLM2=DIR is not set")
QUESTIONS = ["What is the capital of France?", "Write a haiku about radio waves.", "List three primes."]


@pytest.fixture(scope="module")
def ours():
    return hf.load_gguf(DIRECTORY / FILE), tokenizer.load(DIRECTORY / "tokenizer.json", tokenizer.SMOLLM2_SYSTEM)


@pytest.fixture(scope="module")
def theirs():
    model = transformers.AutoModelForCausalLM.from_pretrained(DIRECTORY, gguf_file=FILE).eval()
    assert isinstance(model, transformers.LlamaForCausalLM)
    return model, transformers.AutoTokenizer.from_pretrained(DIRECTORY, gguf_file=FILE)


def test_greedy_answers_are_those_of_transformers(ours, theirs):
    model, tok = ours
    prompts_BxP, lengths_B = pad_prompts([tok.apply_chat(question) for question in QUESTIONS])
    samples = sample(*nnx.split(model), prompts_BxP, lengths_B, row_keys(jax.random.key(0), np.arange(3)),
                     max_new_tokens=40, eos_id=tok.eos_id, temperature=0.0)  # fmt: skip
    for prompt, length, answer, n in zip(prompts_BxP, lengths_B, *map(np.asarray, samples[:2])):
        prompt = torch.tensor(prompt[None, :length])
        expected = theirs[0].generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False,
                                      eos_token_id=tok.eos_id, pad_token_id=0)  # fmt: skip
        assert answer[:n].tolist() == expected[0, length:].tolist()
    assert tok.decode(samples.tokens_BxR[0, : samples.lengths_B[0]]) == "The capital of France is Paris.<|im_end|>"


def test_the_loss_of_a_text_is_that_of_transformers(ours, theirs):
    model, tok = ours
    text = Path(__file__).parents[2].joinpath("LICENSE").read_text()[:3000]
    ids_1xT = np.array([tok.encode(text, special=False)])
    assert theirs[1](text).input_ids == ids_1xT[0].tolist()
    with torch.no_grad():
        expected = theirs[0](torch.tensor(ids_1xT), labels=torch.tensor(ids_1xT)).loss.item()
    logp_1xTxV = jax.nn.log_softmax(call(model, ids_1xT[:, :-1]))
    loss = -np.take_along_axis(np.asarray(logp_1xTxV), ids_1xT[:, 1:, None], axis=2).mean()
    assert loss == pytest.approx(expected, abs=1e-4) and loss < 3

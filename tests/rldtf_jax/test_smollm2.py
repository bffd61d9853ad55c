"""SmolLM2-135M's real weights, fetched once by the project's own command, against transformers'
reading of the same file.
"""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from hf_model import call

from rldtf_jax import hf, tokenizer
from rldtf_jax.sample import pad_prompts, row_keys, sample

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about radio waves.",
    "List three primes.",
]


@pytest.fixture(scope="module")
def directory(request):
    """Where the weights are: in pytest's cache, so that they are downloaded once."""
    directory = request.config.cache.mkdir("smollm2")
    if not (directory / "tokenizer_config.json").exists():  # written last
        subprocess.run(
            [sys.executable, "-m", "rldtf_jax.fetch", "smollm2", str(directory)], check=True
        )
    return directory


@pytest.fixture(scope="module")
def ours(directory):
    return hf.load(directory), tokenizer.load_directory(directory)


@pytest.fixture(scope="module")
def theirs(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file=FILE).eval()
    assert isinstance(model, transformers.LlamaForCausalLM)
    return model, transformers.AutoTokenizer.from_pretrained(directory, gguf_file=FILE)


def test_greedy_answers_are_those_of_transformers(ours, theirs):
    model, tok = ours
    prompts_BxP, lengths_B = pad_prompts([tok.apply_chat(question) for question in QUESTIONS])
    samples = sample(*nnx.split(model), prompts_BxP, lengths_B, row_keys(jax.random.key(0), np.arange(3)),  # noqa: E501
                     max_new_tokens=40, eos_id=tok.eos_id, temperature=0.0)  # fmt: skip
    for prompt, length, answer, n in zip(prompts_BxP, lengths_B, *map(np.asarray, samples[:2])):
        prompt = torch.tensor(prompt[None, :length])
        expected = theirs[0].generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False,  # noqa: E501
                                      eos_token_id=tok.eos_id, pad_token_id=0)  # fmt: skip
        assert answer[:n].tolist() == expected[0, length:].tolist()
    assert (
        tok.decode(samples.tokens_BxR[0, : samples.lengths_B[0]])
        == "The capital of France is Paris.<|im_end|>"
    )


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

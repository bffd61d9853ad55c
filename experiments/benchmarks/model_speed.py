"""Tokens per second of sampling and training, against the same model in transformers + torch.

python -m experiments.benchmarks.model_speed                        the tiny preset with random weights
python -m experiments.benchmarks.model_speed --gguf FILE --rows 8   SmolLM2 (see rldtf_jax.fetch)

Same weights, shapes and cores. The contenders take turns, so that other load on the machine falls on all of them, and
each one's best round counts; compilation and a first round are left out. Sampling: temperature 1, no row ends early.
Training: one AdamW step of next-token loss over all positions, float32. Needs the test extra (torch, transformers).
"""

import argparse
from collections.abc import Callable
from functools import partial
import json
import tempfile
import time

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers

from rldtf_jax import hf
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.sample import row_keys, sample

NO_EOS = -1


def jax_sampler(model: Qwen2, prompts_BxP: np.ndarray, new: int) -> Callable[[], None]:
    graphdef, params = nnx.split(model)
    lengths_B = np.full(len(prompts_BxP), prompts_BxP.shape[1])
    keys_B = row_keys(jax.random.key(0), np.arange(len(prompts_BxP)))
    return lambda: jax.block_until_ready(
        sample(graphdef, params, prompts_BxP, lengths_B, keys_B, max_new_tokens=new, eos_id=NO_EOS)
    )


def torch_sampler(model, prompts_BxP: np.ndarray, new: int, cache: str) -> Callable[[], None]:
    prompts = torch.tensor(prompts_BxP)
    options = dict(attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, top_p=1.0, eos_token_id=None)

    def run():
        out = model.generate(prompts, max_new_tokens=new, cache_implementation=cache, pad_token_id=0, **options)
        assert out.shape[1] == prompts_BxP.shape[1] + new

    return run


def jax_trainer(model: Qwen2, tokens_BxT: np.ndarray) -> Callable[[], None]:
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    optimiser = optax.adamw(1e-4)
    state = [params, optimiser.init(params)]

    def loss(params, tokens_BxT):
        logits_BxTxV = nnx.merge(graphdef, params)(tokens_BxT[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, tokens_BxT[:, 1:]).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, moments, tokens_BxT):
        gradient = jax.grad(loss)(params, tokens_BxT)
        updates, moments = optimiser.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments

    def run():
        state[:] = jax.block_until_ready(step(*state, tokens_BxT))

    return run


def torch_trainer(model, tokens_BxT: np.ndarray, compiled: bool) -> Callable[[], None]:
    tokens = torch.tensor(tokens_BxT)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def loss(tokens):
        logits = model(tokens[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    loss = torch.compile(loss) if compiled else loss

    def run():
        optimiser.zero_grad()
        loss(tokens).backward()
        optimiser.step()

    return run


def best_times(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float | str]:
    """Seconds of each contender's best round, or why it did not run at all."""
    out: dict[str, float | str] = {}
    for name, run in contenders.items():
        try:
            run()
            out[name] = float("inf")
        except Exception as error:  # another framework's compiler may fail in any way; the table says so
            out[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:60]}"
    for _ in range(rounds):
        for name, run in contenders.items():
            if not isinstance(out[name], str):
                start = time.perf_counter()
                run()
                out[name] = min(out[name], time.perf_counter() - start)
    return out


def table(title: str, tokens: int, times: dict[str, float | str]) -> dict[str, float | str]:
    ours = next(iter(times.values()))
    print(f"\n{title}\n  {'':34}{'tokens/s':>10}{'ours is':>10}")
    for name, seconds in times.items():
        if isinstance(seconds, str):
            print(f"  {name:34}{seconds}")
        else:
            print(f"  {name:34}{tokens / seconds:10.0f}{seconds / ours:9.2f}x")
    return {name: seconds if isinstance(seconds, str) else tokens / seconds for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", help="weights to use in place of the tiny preset's random ones")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=96)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--json", help="also write the figures there")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()

    model = hf.load_gguf(arguments.gguf) if arguments.gguf else Qwen2(Qwen2Config.preset("tiny"), rngs=nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as directory:
        hf.save(model, directory)
        theirs = transformers.Qwen2ForCausalLM.from_pretrained(directory).eval()
    prompts_BxP = np.random.default_rng(0).integers(0, model.config.num_tokens, (arguments.rows, arguments.prompt))
    tokens_BxT = np.tile(prompts_BxP, (1, 2))[:, : arguments.prompt + arguments.new]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.split(model)[1]))
    print(f"{parameters / 1e6:.2f} M parameters, {torch.get_num_threads()} torch threads, JAX on {jax.devices()[0]}")

    figures = {}
    samplers = {
        "rldtf_jax sample": jax_sampler(model, prompts_BxP, arguments.new),
        "transformers generate, dynamic": torch_sampler(theirs, prompts_BxP, arguments.new, "dynamic"),
        "transformers generate, static": torch_sampler(theirs, prompts_BxP, arguments.new, "static"),
    }
    title = f"Sampling, {arguments.rows} rows, {arguments.prompt} + {arguments.new} tokens (new tokens counted)"
    figures["sampling"] = table(title, arguments.rows * arguments.new, best_times(samplers, arguments.rounds))
    if not arguments.skip_training:
        trainers = {
            "rldtf_jax": jax_trainer(model, tokens_BxT),
            "transformers + torch, eager": torch_trainer(theirs, tokens_BxT, compiled=False),
            "transformers + torch.compile": torch_trainer(theirs, tokens_BxT, compiled=True),
        }
        title = f"Training, one AdamW step on {arguments.rows} x {tokens_BxT.shape[1]} tokens"
        figures["training"] = table(title, tokens_BxT.size, best_times(trainers, arguments.rounds))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()

"""Tokens per second of sampling and training, against the same model in transformers + torch.

export GLIBC_TUNABLES=glibc.malloc.hugetlb=1                        huge pages, for all contenders
python -m experiments.benchmarks.model_speed                        the tiny preset with random weights
python -m experiments.benchmarks.model_speed --gguf FILE --rows 8   SmolLM2 (see rldtf_jax.fetch)

Same weights, shapes and cores. The contenders take turns, so that other load on the machine falls
on all of them; compilation and the first run of each turn are left out. A figure is the mean over
the rounds with its 95 % interval (bootstrap), a ratio that of the round's times. Sampling:
temperature 1, no row ends early. Training: one AdamW step of next-token loss over all positions,
float32. Needs the test extra (torch, transformers).
"""  # noqa: E501

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from flax import nnx

from experiments.files import whole
from experiments.statistics import mean_interval
from rldtf_jax import hf
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.sample import row_keys, sample_on_host

NO_EOS = -1
IN_A_ROW = 3  # timed runs of a contender's turn


def jax_sampler(model: Qwen2, prompts_BxP: np.ndarray, new: int) -> Callable[[], None]:
    graphdef, params = nnx.split(model)
    lengths_B = np.full(len(prompts_BxP), prompts_BxP.shape[1])
    keys_B = row_keys(jax.random.key(0), np.arange(len(prompts_BxP)))
    return lambda: sample_on_host(
        graphdef, params, prompts_BxP, lengths_B, keys_B, max_new_tokens=new, eos_id=NO_EOS
    )


def torch_sampler(model, prompts_BxP: np.ndarray, new: int, cache: str) -> Callable[[], None]:
    prompts = torch.tensor(prompts_BxP)
    options = dict(
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        eos_token_id=None,
    )

    def run():
        out = model.generate(
            prompts, max_new_tokens=new, cache_implementation=cache, pad_token_id=0, **options
        )
        assert out.shape[1] == prompts_BxP.shape[1] + new

    return run


def jax_trainer(model: Qwen2, tokens_BxT: np.ndarray) -> Callable[[], None]:
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    optimiser = optax.adamw(1e-4)
    state = [params, optimiser.init(params)]

    def loss(params, tokens_BxT):
        logits_BxTxV = nnx.merge(graphdef, params)(tokens_BxT[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits_BxTxV, tokens_BxT[:, 1:]
        ).mean()

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


def times(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float] | str]:
    """Seconds of a run of each contender in each round, or why it did not run at all."""
    out: dict[str, list[float] | str] = {}
    for name, run in contenders.items():
        try:
            run()
            out[name] = []
        # another framework's compiler may fail in any way; the table says so
        except Exception as error:
            out[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:60]}"
    for _ in range(rounds):
        for name, run in contenders.items():
            if not isinstance(out[name], str):
                run()  # brings back the memory that the one before gave back to the system
                start = time.perf_counter()
                for _ in range(IN_A_ROW):
                    run()
                out[name].append((time.perf_counter() - start) / IN_A_ROW)
    return out


def with_interval(values: list[float]) -> dict[str, float]:
    low, high = mean_interval(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def table(title: str, tokens: int, seconds: dict[str, list[float] | str]) -> dict[str, dict | str]:
    """Prints a Markdown table of tokens per second and of how many times as fast the first
    contender is; returns it.
    """
    ours = next(iter(seconds.values()))
    print(f"\n{title}\n\n| | tokens/s | rldtf_jax against it |\n|---|---|---|")
    figures = {}
    for name, rounds in seconds.items():
        if isinstance(rounds, str):
            figures[name] = rounds
            print(f"| {name} | {rounds} | |")
            continue
        rate = with_interval([tokens / s for s in rounds])
        ratio = with_interval([theirs / s for theirs, s in zip(rounds, ours)])
        figures[name] = {"tokens_per_s": rate, "ratio": ratio, "seconds": rounds}
        print(
            f"| {name} | {rate['mean']:,.0f} [{rate['low']:,.0f}, {rate['high']:,.0f}] "
            f"| {ratio['mean']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}] |"
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", help="weights to use in place of the tiny preset's random ones")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=96)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--json", help="also write the figures there")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    model = (
        hf.load_gguf(arguments.gguf)
        if arguments.gguf
        else Qwen2(Qwen2Config.preset("tiny"), rngs=nnx.Rngs(0))
    )
    with tempfile.TemporaryDirectory() as directory:
        hf.save(model, directory)
        theirs = transformers.Qwen2ForCausalLM.from_pretrained(directory).eval()
    prompts_BxP = np.random.default_rng(0).integers(
        0, model.config.num_tokens, (arguments.rows, arguments.prompt)
    )
    tokens_BxT = np.tile(prompts_BxP, (1, 2))[:, : arguments.prompt + arguments.new]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.split(model)[1]))
    machine = (
        f"{os.cpu_count()} CPU cores, {platform.machine()}, JAX on {jax.default_backend()}"
        f" ({jax.__version__}), torch {torch.__version__} with {torch.get_num_threads()} threads,"
        f" transformers {transformers.__version__},"
        f" GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')}"
    )
    command = " ".join(["python -m experiments.benchmarks.model_speed", *sys.argv[1:]])
    print(
        f"`{command}`: {parameters / 1e6:.2f} M parameters, {arguments.rounds} rounds.\n{machine}."
    )
    figures = {"command": command, "machine": machine, "parameters": parameters}
    samplers = {
        "rldtf_jax sample": jax_sampler(model, prompts_BxP, arguments.new),
        "transformers generate, dynamic": torch_sampler(
            theirs, prompts_BxP, arguments.new, "dynamic"
        ),
        "transformers generate, static": torch_sampler(
            theirs, prompts_BxP, arguments.new, "static"
        ),
    }
    title = (
        f"Sampling, {arguments.rows} rows, {arguments.prompt} + {arguments.new} tokens (new tokens"
        " counted)."
    )
    figures["sampling"] = table(
        title, arguments.rows * arguments.new, times(samplers, arguments.rounds)
    )
    if not arguments.skip_training:
        trainers = {
            "rldtf_jax": jax_trainer(model, tokens_BxT),
            "transformers + torch, eager": torch_trainer(theirs, tokens_BxT, compiled=False),
            "transformers + torch.compile": torch_trainer(theirs, tokens_BxT, compiled=True),
        }
        title = f"Training, one AdamW step on {arguments.rows} x {tokens_BxT.shape[1]} tokens."
        figures["training"] = table(title, tokens_BxT.size, times(trainers, arguments.rounds))
    if arguments.json:
        with whole(arguments.json) as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()

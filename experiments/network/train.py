"""Trains a tiny policy on the network world: phase 1, rejection sampling, RLDTF, and its table.

    python -m experiments.network.train out=runs/network [seed=0] [steps=60]

Phase 1 shows calls of a careless engineer, who takes any tool of the kind half of the time and
forgets about decibels; rejection sampling keeps the model's own calls that reach 99 % of the best
level; RLDTF goes on from there, four responses a request, leave-one-out advantages. Every stage
goes on from its checkpoints. Prints the stages beside the baselines, greedily, on held-out
requests.
"""

import dataclasses
import json
import os
import random
import sys
from typing import Sequence

import jax
import numpy as np
from flax import nnx

from experiments.config import guarded
from experiments.files import whole
from experiments.network.__main__ import SPLITS, right_tool, row, table, verdicts
from experiments.network.environment import ENOUGH, NetworkEnvironment, by_reference
from experiments.network.problems import Bandwidth
from experiments.network.tasks import Task, judge, tasks
from experiments.network.tools import TOOLS
from experiments.stages.rldtf import value_model
from experiments.world.__main__ import REQUIRED, options
from rldtf_jax import hf, rldtf, sft, tokenizer
from rldtf_jax.config import ConfigError, OptimConfig, RLDTFConfig, SampleConfig, SFTConfig
from rldtf_jax.hosts import say
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.sample import sample_batches

SIZES = SPLITS["test"][0]
TRAIN, TEST = 1500, 200  # requests
VOCABULARY, LONGEST = 640, 48  # tokens, of a response
CAREFUL = 0.5  # share of the engineer's calls with the right tool and units
SAMPLES = 4
PHASE1 = SFTConfig(
    steps=240, batch_size=32, save_every=40, optim=OptimConfig(lr=3e-3, warmup_steps=20)
)
REJECT = SFTConfig(
    steps=60, batch_size=32, save_every=20, optim=OptimConfig(lr=1e-3, warmup_steps=5)
)
RL = RLDTFConfig(
    prompts_per_step=16,
    samples_per_prompt=SAMPLES,
    advantage="leave-one-out",
    with_critic=False,
    alpha=0.0,
    checkpoint_every=20,
    save_every=5,
    policy=OptimConfig(lr=4e-4, warmup_steps=5),
    sample=SampleConfig(max_new_tokens=LONGEST),
)


def engineer(task: Task, rng: random.Random) -> str:
    """A call, by reference, as a careless engineer writes it."""
    careful = rng.random() < CAREFUL
    tool = (
        right_tool(task)
        if careful
        else rng.choice([one for one in TOOLS if one.kind == task.problem.kind])
    )
    arguments: dict = {name: f"@{name}" for name in tool.arguments}
    for name in ("snr", "noise"):
        if name in arguments and task.decibels and (careful or rng.random() < 0.5):
            arguments[name] += " from dB"
    if "alpha" in arguments and isinstance(task.problem, Bandwidth):
        alpha = task.problem.alpha if careful else rng.choice([0.0, 1.0, 2.0, float("inf")])
        arguments["alpha"] = "inf" if np.isinf(alpha) else alpha
    return by_reference(tool.name, arguments)


def rows(tok: tokenizer.Tokenizer, some: Sequence[tuple[Task, str]]) -> sft.Sequences:
    return sft.Sequences.of(
        [
            (tok.apply_chat(task.prompt), tok.encode(text, special=False) + [tok.eos_id])
            for task, text in some
        ]
    )


def respond(
    model: Qwen2, env: NetworkEnvironment, prompts: Sequence[Sequence[int]], seed: int, warm: float
) -> list[str]:
    """A text for each prompt; "" where no end is reached."""
    found = sample_batches(
        *nnx.split(model),
        prompts,
        jax.random.key(seed),
        batch_size=64,
        width=max(env.width, max(map(len, prompts))),
        eos_id=env.eos_id,
        max_new_tokens=LONGEST,
        temperature=warm,
    )
    return [env.text(ids) if ended else "" for ids, ended in found]


def kept(out: str, stage: str, make) -> Qwen2:
    """The model that a finished stage left, or make()'s, left for the next start."""
    path = os.path.join(out, stage, "model")
    if os.path.isdir(path):
        return hf.load(path)
    model = make()
    hf.save(model, path)
    return hf.load(path)


def train(out: str, seed: int, steps: int) -> tuple[dict[str, Qwen2], tokenizer.Tokenizer]:
    """The model of each stage."""
    train_tasks, rng = tasks(1000 + seed, TRAIN, SIZES), random.Random(f"engineer {seed}")
    demonstrations = [(task, engineer(task, rng)) for task in train_tasks]
    path = os.path.join(out, "tokenizer.json")
    if not os.path.exists(path):
        texts = [f"user\n{task.prompt}\nassistant\n{text}" for task, text in demonstrations]
        with whole(path) as file:
            file.write(tokenizer.train_bpe(texts, VOCABULARY).backend.to_str())
    tok = tokenizer.load(path)
    env = NetworkEnvironment(train_tasks, tok, seed)
    shape = Qwen2Config.preset("tiny", vocab_size=tok.vocab_size, unroll=1)
    where = lambda stage: {"seed": seed, "directory": os.path.join(out, stage), "boards": ()}

    def taught() -> Qwen2:
        fresh = Qwen2(shape, rngs=nnx.Rngs(seed))
        return sft.train(fresh, rows(tok, demonstrations), PHASE1, **where("instruct"))

    instructed = kept(out, "instruct", taught)

    def refined() -> Qwen2:
        asked = [task for task in train_tasks for _ in range(SAMPLES)]
        prompts = [prompt for prompt in env.prompts for _ in range(SAMPLES)]
        texts = respond(instructed, env, prompts, seed, 1.0)
        good = {
            (task.request, text): (task, text)
            for task, text in zip(asked, texts)
            if judge(task, text).share >= ENOUGH
        }
        say(f"rejection sampling: {len(good)} of {len(texts)} calls kept")
        if not good:
            raise ConfigError("no sampled call reaches the best level; train phase 1 for longer")
        return sft.train(instructed, rows(tok, list(good.values())), REJECT, **where("reject"))

    rejected = kept(out, "reject", refined)

    def learnt() -> Qwen2:
        config, critic = dataclasses.replace(RL, steps=steps), value_model(rejected, seed)
        return rldtf.train(rejected, critic, env, config, **where("rldtf"))

    return {
        "phase 1": instructed,
        "+ rejection sampling": rejected,
        "+ RLDTF": kept(out, "rldtf", learnt),
    }, tok


def compared(models: dict[str, Qwen2], tok: tokenizer.Tokenizer, seed: int) -> dict:
    """Baselines and stages on the held-out requests of each split."""
    found: dict = {}
    for split, (sizes, held_out) in SPLITS.items():
        some = tasks(seed, TEST, sizes, held_out)
        env, seen = NetworkEnvironment(some, tok), verdicts(some, seed)
        for name, model in models.items():
            texts = respond(model, env, env.prompts, seed, 0.0)
            seen[name] = [judge(task, text) for task, text in zip(some, texts)]
        found[split] = {name: row(some, verdicts_) for name, verdicts_ in seen.items()}
    return found


def main(argv: list[str]) -> None:
    asked = options(argv, out=REQUIRED, seed=0, steps=60)
    os.makedirs(asked.out, exist_ok=True)
    models, tok = train(asked.out, asked.seed, asked.steps)
    found = compared(models, tok, asked.seed)
    print(table(found))
    with whole(os.path.join(asked.out, "evaluation.json")) as file:
        json.dump(found, file, indent=1)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        guarded(lambda: main(sys.argv[1:]))

"""Trains a tiny policy on the network world: phase 1, rejection sampling, RLDTF, and its table.

    python -m experiments.network.train out=runs/network [seed=0] [steps=60] [view=ranked] [branches=0] [price=0]

Phase 1 shows calls of a careless engineer, who takes any tool of the kind half of the time and
forgets about decibels; rejection sampling keeps the model's own calls that reach 99 % of the best
level; RLDTF goes on from there, four responses a request, leave-one-out advantages. Every stage
goes on from its checkpoints. Prints the stages beside the baselines, greedily, on held-out
requests, and what a memory of training requests spares on a stream in which half of them return.

view: what a prompt shows beside the request. ranked: the cards most like it, and only those may be
called; unranked: the names of all tools; memory: ranked, and the nearest earlier call; figures:
none, the policy answers in figures. branches: of RLDTF's four responses, those that go on from
others (`rldtf.branches`). price: of a unit of a tool's cost in hundredths of R, which RLDTF takes
off the reward.
"""  # noqa: E501

import dataclasses
import json
import os
import random
import sys
from typing import NamedTuple, Sequence

import jax
import numpy as np
from flax import nnx

from experiments.config import guarded
from experiments.files import whole
from experiments.network.__main__ import (
    SPLITS,
    any_tools,
    equal_numbers,
    row,
    table,
    verdicts,
    with_interval,
    written,
)
from experiments.network.environment import ENOUGH, NetworkEnvironment, View, parts
from experiments.network.memory import Memory
from experiments.network.problems import Bandwidth
from experiments.network.ranking import Ranking
from experiments.network.tasks import Task, judge, right_tools, tasks
from experiments.network.tools import BY_NAME, Run
from experiments.network.worker import Worker
from experiments.stages.rldtf import value_model
from experiments.world.__main__ import REQUIRED, options
from rldtf_jax import hf, rldtf, sft, tokenizer
from rldtf_jax.config import (
    ConfigError,
    OptimConfig,
    PricesConfig,
    RLDTFConfig,
    SampleConfig,
    SFTConfig,
)
from rldtf_jax.hosts import say
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.sample import sample_batches

SIZES = SPLITS["test"][0]
TRAIN, TEST = 1500, 200  # requests
VIEWS = ("ranked", "unranked", "memory", "figures")
VOCABULARY, LONGEST = 640, 88  # tokens, of a response
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


def engineer(task: Task, rng: random.Random, shown: Sequence[str]) -> str:
    """A call or a plan of tools that are shown, by reference, as a careless engineer writes it."""
    careful = rng.random() < CAREFUL
    some, found = any_tools(task, rng, shown), {}
    if careful:
        some = [
            right if right.name in shown else other
            for right, other in zip(right_tools(task.problem), some)
        ]
    for name in task.figures | {"units": None}:
        found[name] = f"@{name}"
    for name in ("snr", "noise"):
        if name in found and task.decibels and (careful or rng.random() < 0.5):
            found[name] += " from dB"
    users = getattr(task.problem, "users", task.problem)
    if isinstance(users, Bandwidth):
        alpha = users.alpha if careful else rng.choice([0.0, 1.0, 2.0, float("inf")])
        found["alpha"] = "inf" if np.isinf(alpha) else alpha
    return written(some, found)


def figured(task: Task, rng: random.Random) -> str:
    """An answer in figures: half of the time the best one, in three digits, else the same for
    all.
    """
    if rng.random() >= CAREFUL:
        return equal_numbers(task)
    best = task.best.solution
    parts = [
        [float(f"{x:.3g}") for x in part] for part in (best if isinstance(best, tuple) else [best])
    ]
    return json.dumps({"solution": parts if isinstance(best, tuple) else parts[0]})


def view_of(kind: str, train_tasks: Sequence[Task]) -> View:
    """What prompts show; the memory is still to come."""
    if kind == "figures":
        return View(figures=True)
    if kind == "unranked":
        return View()
    return View(Ranking([task.prompt for task in train_tasks]))


def remembered(
    out: str, ranking: Ranking, train_tasks: Sequence[Task], calls: Sequence[str]
) -> Memory:
    """A memory of these calls and what they earned."""
    memory = Memory(os.path.join(out, "memory.sqlite"), ranking.embedding)
    if not len(memory):
        verdicts = map(judge, train_tasks, calls)
        memory.add(
            (task.prompt, call, one.reward, one.cost)
            for task, call, one in zip(train_tasks, calls, verdicts)
        )
    return memory


def rows(tok: tokenizer.Tokenizer, some: Sequence[tuple[Sequence[int], str]]) -> sft.Sequences:
    """Of (ids of a prompt, text)."""
    return sft.Sequences.of(
        [(list(prompt), tok.encode(text, special=False) + [tok.eos_id]) for prompt, text in some]
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


class Trained(NamedTuple):
    models: dict[str, Qwen2]  # of each stage
    tokenizer: tokenizer.Tokenizer
    view: View
    tasks: list[Task]  # of training
    calls: list[str]  # the engineer's for them


def train(out: str, seed: int, kind: str, config: RLDTFConfig, run: Run) -> Trained:
    train_tasks, rng = tasks(1000 + seed, TRAIN, SIZES), random.Random(f"engineer {seed}")
    view = view_of(kind, train_tasks)
    calls = [engineer(task, rng, view.shown(task) or list(BY_NAME)) for task in train_tasks]
    if kind == "memory":
        view = dataclasses.replace(view, memory=remembered(out, view.ranking, train_tasks, calls))
    shown = [figured(task, rng) for task in train_tasks] if view.figures else calls
    path = os.path.join(out, "tokenizer.json")
    if not os.path.exists(path):
        texts = [
            f"user\n{view.prompt(task)}\nassistant\n{text}"
            for task, text in zip(train_tasks, shown)
        ]
        with whole(path) as file:
            file.write(tokenizer.train_bpe(texts, VOCABULARY).backend.to_str())
    tok = tokenizer.load(path)
    env = NetworkEnvironment(train_tasks, tok, seed, view, run)
    shape = Qwen2Config.preset("tiny", vocab_size=tok.vocab_size, unroll=1)
    where = lambda stage: {"seed": seed, "directory": os.path.join(out, stage), "boards": ()}

    def taught() -> Qwen2:
        fresh = Qwen2(shape, rngs=nnx.Rngs(seed))
        return sft.train(
            fresh, rows(tok, list(zip(env.prompts, shown))), PHASE1, **where("instruct")
        )

    instructed = kept(out, "instruct", taught)

    def refined() -> Qwen2:
        asked = [i for i in range(len(train_tasks)) for _ in range(SAMPLES)]
        texts = respond(instructed, env, [env.prompts[i] for i in asked], seed, 1.0)
        verdicts = env.verdicts([train_tasks[i] for i in asked], texts)
        good = {
            (i, text): (env.prompts[i], text)
            for i, text, one in zip(asked, texts, verdicts)
            if one.share >= ENOUGH
        }
        say(f"rejection sampling: {len(good)} of {len(texts)} answers kept")
        if not good:
            raise ConfigError("no sampled answer reaches the best level; train phase 1 for longer")
        return sft.train(instructed, rows(tok, list(good.values())), REJECT, **where("reject"))

    rejected = kept(out, "reject", refined)

    def learnt() -> Qwen2:
        return rldtf.train(rejected, value_model(rejected, seed), env, config, **where("rldtf"))

    models = {
        "phase 1": instructed,
        "+ rejection sampling": rejected,
        "+ RLDTF": kept(out, "rldtf", learnt),
    }
    return Trained(models, tok, view, train_tasks, calls)


def compared(trained: Trained, memory: Memory, seed: int, run: Run) -> dict:
    """Baselines and stages on the held-out requests of each split; of the stages the coordinator's
    steps apart, too.
    """
    found: dict = {}
    for split, (sizes, held_out) in SPLITS.items():
        some = tasks(seed, TEST, sizes, held_out)
        env = NetworkEnvironment(some, trained.tokenizer, 0, trained.view, run)
        seen = verdicts(some, seed)
        seen["nearest call of the memory"] = [
            judge(task, memory.nearest(task.prompt)[0].call) for task in some
        ]
        for name, model in trained.models.items():
            seen[name] = env.verdicts(some, respond(model, env, env.prompts, seed, 0.0))
        found[split] = {
            name: row(some, verdicts_) | {"steps": parts(some, verdicts_)}
            for name, verdicts_ in seen.items()
        }
    return found


def stream(trained: Trained, memory: Memory, seed: int, run: Run) -> dict:
    """Utility, calls that ran and their cost over a stream of requests, half of them of training:
    the policy without memory, and with one that knows the answer to what has been asked before.
    """
    new, rng = tasks(seed, TEST, SIZES), random.Random(f"stream {seed}")
    some = [rng.choice(trained.tasks) if rng.random() < 0.5 else task for task in new]
    env = NetworkEnvironment(some, trained.tokenizer, 0, trained.view, run)
    texts = respond(trained.models["+ RLDTF"], env, env.prompts, seed, 0.0)
    alone = env.verdicts(some, texts)
    known = [memory.exact(task.prompt) for task in some]
    hits = [one is not None and one.reward >= ENOUGH for one in known]
    return {
        "requests": len(some),
        "exact hits": sum(hits),
        "without": {
            "reward": with_interval([one.reward for one in alone]),
            "calls": sum(len(one.steps) for one in alone),
            "cost": sum(one.cost for one in alone),
        },
        "with": {
            "reward": with_interval(
                [old.reward if hit else one.reward for old, hit, one in zip(known, hits, alone)]
            ),
            "calls": sum(len(one.steps) for hit, one in zip(hits, alone) if not hit),
            "cost": sum(one.cost for hit, one in zip(hits, alone) if not hit),
        },
    }


def main(argv: list[str]) -> None:
    asked = options(argv, out=REQUIRED, seed=0, steps=60, view=VIEWS[0], branches=0, price=0)
    if asked.view not in VIEWS:
        raise ConfigError(f"view = {asked.view!r}: expected one of {', '.join(VIEWS)}")
    config = dataclasses.replace(
        RL,
        steps=asked.steps,
        branches=asked.branches,
        advantage="tree" if asked.branches else RL.advantage,
        prices=PricesConfig(tools=asked.price / 100),
    )
    os.makedirs(asked.out, exist_ok=True)
    with Worker() as run:
        trained = train(asked.out, asked.seed, asked.view, config, run)
        ranking = trained.view.ranking or Ranking([task.prompt for task in trained.tasks])
        with remembered(asked.out, ranking, trained.tasks, trained.calls) as memory:
            found = compared(trained, memory, asked.seed, run)
            spared = stream(trained, memory, asked.seed, run)
    print(table(found))
    print(json.dumps({"stream": spared}, indent=1))
    with whole(os.path.join(asked.out, "evaluation.json")) as file:
        json.dump({"view": asked.view, "splits": found, "stream": spared}, file, indent=1)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        guarded(lambda: main(sys.argv[1:]))

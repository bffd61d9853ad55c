"""Trains a tiny policy on the network world: phase 1, rejection sampling, RLDTF; its tables and
its report.

    python -m experiments.stages.pipeline preset=network [key=value ...]

Phase 1 shows calls of a careless engineer, who takes any tool of the kind half of the time and
forgets about decibels; rejection sampling keeps the model's own calls that come close to the best
level; RLDTF goes on from there. Every stage goes on from its checkpoints.
"""

import dataclasses
import json
import os
import random
import time
from typing import Sequence

import numpy as np
from flax import nnx

from experiments import config as configs
from experiments.config import command
from experiments.files import exists, whole
from experiments.network import evaluate, report
from experiments.network.__main__ import any_tools, equal_numbers, written
from experiments.network.config import DEFAULT, DIRECTORY, NetworkConfig
from experiments.network.environment import NetworkEnvironment, View
from experiments.network.evaluate import Trained
from experiments.network.memory import Memory
from experiments.network.problems import Bandwidth
from experiments.network.ranking import Ranking
from experiments.network.tasks import Task, judge, right_tools, tasks
from experiments.network.tools import BY_NAME, Run
from experiments.network.worker import Worker
from experiments.stages.rldtf import value_model
from experiments.stages.run import held, same_config
from rldtf_jax import hf, rldtf, sft, tokenizer
from rldtf_jax.config import ConfigError, SFTConfig
from rldtf_jax.hosts import say
from rldtf_jax.qwen2 import Qwen2, Qwen2Config


def engineer(task: Task, rng: random.Random, shown: Sequence[str], careful: float) -> str:
    """A call or a plan of tools that are shown, by reference, as a careless engineer writes it.

    careful: with which probability he takes the right tool and heeds units.
    """
    right = rng.random() < careful
    some, found = any_tools(task, rng, shown), {}
    if right:
        some = [
            one if one.name in shown else other
            for one, other in zip(right_tools(task.problem), some)
        ]
    for name in task.figures | {"units": None}:
        found[name] = f"@{name}"
    for name in ("snr", "noise"):
        if name in found and task.decibels and (right or rng.random() < 0.5):
            found[name] += " from dB"
    users = getattr(task.problem, "users", task.problem)
    if isinstance(users, Bandwidth):
        alpha = users.alpha if right else rng.choice([0.0, 1.0, 2.0, float("inf")])
        found["alpha"] = "inf" if np.isinf(alpha) else alpha
    return written(some, found)


def figured(task: Task, rng: random.Random, careful: float) -> str:
    """An answer in figures: the best one, in three digits, with that probability, else the same for
    all.
    """
    if rng.random() >= careful:
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
            (task.request, call, one.reward, one.cost)
            for task, call, one in zip(train_tasks, calls, verdicts)
        )
    return memory


def rows(tok: tokenizer.Tokenizer, some: Sequence[tuple[Sequence[int], str]]) -> sft.Sequences:
    """Of (ids of a prompt, text)."""
    return sft.Sequences.of(
        [(list(prompt), tok.encode(text, special=False) + [tok.eos_id]) for prompt, text in some]
    )


def kept(out: str, stage: str, make) -> Qwen2:
    """The model that a finished stage left, or make()'s, left for the next start."""
    path = os.path.join(out, stage, "model")
    if os.path.isdir(path):
        return hf.load(path)
    model = make()
    hf.save(model, path)
    return hf.load(path)


def train(config: NetworkConfig, run: Run) -> Trained:
    out, seed = config.run_dir, config.seed
    boards = ("tensorboard",) if config.tensorboard else ()
    train_tasks = tasks(1000 + seed, config.requests.train, config.requests.sizes)
    rng, view = random.Random(f"engineer {seed}"), view_of(config.view, train_tasks)
    calls = [
        engineer(task, rng, view.shown(task) or list(BY_NAME), config.careful)
        for task in train_tasks
    ]
    if config.view == "memory":
        view = dataclasses.replace(view, memory=remembered(out, view.ranking, train_tasks, calls))
    shown = [figured(task, rng, config.careful) for task in train_tasks] if view.figures else calls
    path = os.path.join(out, "tokenizer.json")
    if not exists(path):
        texts = [
            f"user\n{view.prompt(task)}\nassistant\n{text}"
            for task, text in zip(train_tasks, shown)
        ]
        with whole(path) as file:
            file.write(tokenizer.train_bpe(texts, config.vocabulary).backend.to_str())
    tok = tokenizer.load(path)
    env = NetworkEnvironment(train_tasks, tok, seed, view, run)
    shape = Qwen2Config.preset("tiny", vocab_size=tok.vocab_size, unroll=1)

    def taught(model: Qwen2, some: Sequence[tuple[Sequence[int], str]], of: SFTConfig, stage: str):
        where = os.path.join(out, stage)
        return sft.train(model, rows(tok, some), of, seed=seed, directory=where, boards=boards)

    def instructed() -> Qwen2:
        fresh = Qwen2(shape, rngs=nnx.Rngs(seed))
        return taught(fresh, list(zip(env.prompts, shown)), config.instruct, "instruct")

    phase1 = kept(out, "instruct", instructed)

    def refined() -> Qwen2:
        number = len(train_tasks[: config.requests.rejection])
        asked = [i for i in range(number) for _ in range(config.samples)]
        prompts = [env.prompts[i] for i in asked]
        texts = evaluate.respond(
            phase1, env, prompts, seed, 1.0, config.rldtf.sample.max_new_tokens
        )
        verdicts = env.verdicts([train_tasks[i] for i in asked], texts)
        good = {
            (i, text): (env.prompts[i], text)
            for i, text, one in zip(asked, texts, verdicts)
            if one.share >= config.enough
        }
        say(f"rejection sampling: {len(good)} of {len(texts)} answers kept")
        if not good:
            raise ConfigError("no sampled answer comes close to the best; train phase 1 for longer")
        return taught(phase1, list(good.values()), config.reject, "reject")

    rejected = kept(out, "reject", refined)

    def learnt() -> Qwen2:
        return rldtf.train(
            rejected,
            value_model(rejected, seed),
            env,
            config.rldtf,
            seed=seed,
            directory=os.path.join(out, "rldtf"),
            boards=boards,
        )

    models = dict(zip(evaluate.STAGES, (phase1, rejected, kept(out, "rldtf", learnt))))
    return Trained(models, tok, view, train_tasks, calls)


def main(config: NetworkConfig) -> None:
    start, path = time.monotonic(), os.path.join(config.run_dir, "config.yaml")
    with held(config.run_dir, shared=False), Worker() as run:
        if exists(path):
            same_config(path, config)
        else:
            configs.save(config, path)
        trained = train(config, run)
        ranking = trained.view.ranking or Ranking([task.prompt for task in trained.tasks])
        with remembered(config.run_dir, ranking, trained.tasks, trained.calls) as memory:
            result = {
                "splits": evaluate.compared(trained, memory, config, run),
                "stream": evaluate.stream(trained, memory, config, run),
            }
    with whole(os.path.join(config.run_dir, "evaluation.json")) as file:
        json.dump(result, file, indent=1)
    found = report.pooled([result])
    print(report.table(found))
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    print(f"report: {report.write(config.run_dir, result, found)}")


if __name__ == "__main__":
    command(main, NetworkConfig, DIRECTORY, DEFAULT)

"""Demonstrations for phase 1: what an engineer who asks no twin might write.

Formulas say which mode is sturdy and which is promising (`baselines.sturdiest`, `search.promises`).
They say nothing of what the twin alone knows: how wide a grant should be beyond what it carries
without block errors, how many iterations are worth their time, which way of aiming the antennas
suits the link. These details are drawn at random, so that later stages have something to choose
from.
"""

import dataclasses
import functools
import json
import math
import multiprocessing
import os
import random
import signal
from typing import NamedTuple, Sequence

import numpy as np
from tqdm import tqdm

from experiments.files import exists, json_lines, whole
from experiments.world.baselines import sturdiest
from experiments.world.search import ITERATIONS, modes, offered, possible, promises
from experiments.world.tasks import Task
from rldtf_jax import hosts
from rldtf_jax.reward import RewardConfig
from twin import Workflow

STURDIEST = 0.7  # share of the draws; the others are promising modes
TEMPERATURE = 0.03  # of those, in units of R
WIDER = (1.0, 1.0, 1.1, 1.2, 1.4)  # grants, over what carries the throughput
CHUNK = 500  # tasks that are written together


class Demonstration(NamedTuple):
    prompt: str
    response: str


def demonstrate(
    task: Task, rng: random.Random, number: int, config: RewardConfig = RewardConfig()
) -> list[Workflow]:
    """`number` workflows for the task, none where no mode is in time for sure. No twin is asked."""
    first = sturdiest(task)
    if first is None:
        return []
    options = modes(task)
    value = promises(task, options, config)
    likely = np.exp((value - value.max()) / TEMPERATURE).tolist()
    return [
        with_details(
            task, first if rng.random() < STURDIEST else rng.choices(options, likely)[0], rng
        )
        for _ in range(number)
    ]


def with_details(task: Task, mode: Workflow, rng: random.Random) -> Workflow:
    """The mode with a grant, iterations and a way of aiming drawn from what the platform has and
    what is in time.
    """
    widest, aims = (
        task.scenario.max_prb,
        [p for p in offered(task.scenario, "precoder") if p != "none"],
    )
    w = dataclasses.replace(
        mode,
        num_prb=min(widest, math.ceil(mode.num_prb * rng.choice(WIDER))),
        precoder=rng.choice(aims) if mode.precoder in aims else mode.precoder,
    )
    drawn = [
        dataclasses.replace(w, decoder_iterations=n)
        for n in rng.sample(ITERATIONS, len(ITERATIONS))
    ]
    return next((one for one in drawn if possible(task, one)), mode)


def demonstrations(
    tasks: Sequence[Task],
    each: int,
    directory: str,
    seed: int,
    config: RewardConfig = RewardConfig(),
    form: str = "short",
    think: bool = True,
) -> list[Demonstration]:
    """`each` demonstrations for every task, those without any left out: made with all cores and
    kept in `directory`, a chunk of tasks whole or not at all, so that a second start goes on. What
    a chunk holds depends on nothing but (tasks, seed).
    """
    os.makedirs(directory, exist_ok=True)
    paths = {
        start: os.path.join(directory, f"{start:07d}.jsonl")
        for start in range(0, len(tasks), CHUNK)
    }
    missing = {start: path for start, path in paths.items() if not exists(path)}
    if missing:
        work = functools.partial(
            _of_one, each=each, seed=seed, config=config, form=form, think=think
        )
        # Ctrl-C is ours
        with multiprocessing.get_context("spawn").Pool(
            None, signal.signal, (signal.SIGINT, signal.SIG_IGN)
        ) as pool:
            for start, path in tqdm(
                missing.items(), desc="demonstrations", unit="chunk", disable=None
            ):
                with whole(path) as file:
                    chunk = enumerate(tasks[start : start + CHUNK], start)
                    for pairs in pool.imap(work, chunk, chunksize=10) if hosts.first() else ():
                        file.writelines(json.dumps(pair._asdict()) + "\n" for pair in pairs)
    return [Demonstration(**row) for path in paths.values() for row in json_lines(path)]


def _of_one(
    numbered: tuple[int, Task],
    *,
    each: int,
    seed: int,
    config: RewardConfig,
    form: str,
    think: bool,
) -> list[Demonstration]:
    index, task = numbered
    workflows = demonstrate(task, random.Random(f"engineer {seed} {index}"), each, config)
    return [Demonstration(task.prompt(form), task.response(w, think)) for w in workflows]

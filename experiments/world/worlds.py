"""Worlds: feasible tasks of a family, by split, and streams of tasks whose site drifts.

Noise: the twin's seed differs with what it is asked for, so that no score is in-sample. A task is
feasible if a workflow that was found on the search's noise meets its targets on three others too;
of those the witness is the best.
"""

import dataclasses
import itertools
import os
import random
from typing import Callable, Iterator, Sequence

from experiments.world import wording
from experiments.world.families import Family, draw_absent, draw_scenario
from experiments.world.search import BUDGET, Found, confirmed, search
from experiments.world.tasks import Task
from rldtf_jax.reward import RewardConfig
from twin import Twin

CONFIRMATIONS = ("confirm 1", "confirm 2", "confirm 3")
EVALUATIONS = ("evaluate", "evaluate 2", "evaluate 3")
NOISE = ("search", *CONFIRMATIONS, "train", "select", *EVALUATIONS, "ask")
NOISE_OF_SPLIT = {"train": "train", "validation": "select"}  # others: evaluate
MAX_DELAY_MS = 4.0
BATCH = 128  # candidates searched side by side


def noise_seed(base: int, purpose: str) -> int:
    """The twin's seed for one of NOISE, under a run's own seed."""
    return 16 * base + NOISE.index(purpose)


def family(name: str) -> Family:
    """The family of configs/world/<name>.yaml.

    Raises:
      ConfigError: there is none, or it has a wrong key or value.
    """
    from experiments import config

    return config.load([f"preset={name}"], Family, os.path.join(config.CONFIGS, "world"), name)


def candidates(family: Family, seed: int | str) -> Iterator[Task]:
    """An endless stream of tasks, not yet known to be feasible."""
    rng = random.Random(f"{family.name} {seed}")
    while True:
        row = rng.choice(wording.service_classes())
        kind = rng.choices(list(family.kinds), family.kinds.values())[0]
        if kind in ("named", "described"):
            delay, throughput, errors = wording.nominal_targets(row["service"])
        else:
            low, high = float(row["rate_mbps_low"]), float(row["rate_mbps_high"])
            throughput = nearest(wording.RATES_MBPS, low * (high / low) ** rng.random())
            delay = nearest(
                family.delays_ms,
                min(float(row["packet_delay_budget_ms"]) * rng.uniform(0.05, 0.20), MAX_DELAY_MS),
            )
            errors = float(row["error_rate"])
        scenario = draw_scenario(rng, family, throughput)
        if scenario is not None:
            task = Task(
                row["service"],
                "",
                scenario,
                delay,
                throughput,
                errors,
                errors="packet",
                kind=kind,
                family=family.name,
            )
            yield phrased(task, rng)


def phrased(task: Task, rng: random.Random) -> Task:
    """The task with a request in words; those of new-words in words that no other split uses."""
    kind = "named" if task.kind == "listed" else task.kind
    request = wording.request(
        rng,
        task.service,
        task.delay_ms,
        task.throughput_mbps,
        task.ber,
        kind,
        task.split == "new-words",
    )
    return dataclasses.replace(task, request=request)


def draw(
    family: Family,
    wanted: dict[str, int],
    seed: int,
    searching: Twin,
    confirming: Sequence[Twin],
    config: RewardConfig = RewardConfig(),
    budget: int = BUDGET,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, list[Task]], dict]:
    """`wanted` feasible tasks of each split, distinct problems, with witnesses; and what drawing
    them took.
    """
    drawn: dict[str, list[Task]] = {split: [] for split in wanted}
    seen, counts, stream = (
        set(),
        {"candidates": 0, "feasible": 0, "tries": 0},
        candidates(family, seed),
    )
    while missing := {s: n - len(drawn[s]) for s, n in wanted.items() if len(drawn[s]) < n}:
        fresh = (
            task
            for task in stream
            if task.split in missing and (task.scenario, task.required) not in seen
        )
        batch = list(itertools.islice(fresh, min(BATCH, 3 * sum(missing.values()) + 8)))
        seen.update((task.scenario, task.required) for task in batch)
        found = witnesses(batch, searching, confirming, config, budget)
        counts["candidates"] += len(batch)
        counts["tries"] += sum(one.tries for one in found)
        for task, one in zip(batch, found):
            counts["feasible"] += one.workflow is not None
            if one.workflow is not None and len(drawn[task.split]) < wanted[task.split]:
                drawn[task.split].append(dataclasses.replace(task, witness=one.workflow))
        say(
            f"{family.name}: {counts['feasible']} of {counts['candidates']} candidates are"
            " feasible; missing " + ", ".join(f"{n} {s}" for s, n in missing.items())
        )
    return drawn, counts


def witnesses(
    tasks: Sequence[Task],
    searching: Twin,
    confirming: Sequence[Twin],
    config: RewardConfig,
    budget: int,
) -> list[Found]:
    """For each task the best workflow that meets its targets on both noises."""
    return confirmed(tasks, search(tasks, searching, config, budget), confirming, config)


def drift(family: Family, seed: int) -> Iterator[Task]:
    """One site over time, a function of (family, seed): at every step its speed, SNR and load
    wander and another service asks; now and then a module fails or is installed. Not known to be
    feasible.
    """
    rng, stream = random.Random(f"drift {family.name} {seed}"), candidates(family, seed)
    site = next(stream).scenario
    low, high, step = family.snr_db
    for task in stream:
        absent = draw_absent(rng, family) if rng.random() < 0.05 else site.absent
        site = dataclasses.replace(
            site,
            snr_db=float(min(high, max(low, site.snr_db + step * rng.choice((-1, 0, 1))))),
            speed_mps=(
                max(0.0, min(40.0, site.speed_mps + rng.choice((-0.5, 0, 0.5))))
                if site.delay_spread_ns
                else site.speed_mps
            ),
            max_prb=max(1, min(family.max_prb[-1], site.max_prb + rng.choice((-1, 0, 1)))),
            absent=absent,
        )
        yield phrased(dataclasses.replace(task, scenario=site), rng)


def nearest(grid: Sequence[float], value: float) -> float:
    return min(grid, key=lambda g: abs(g - value))

"""Every baseline on every split of a directory of tasks, on noise that no one has met: a table,
strata of difficulty, and how often each choice of the toolbox is the oracle's. `python -m
experiments.world baselines`.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.statistics import nested_interval, shown
from experiments.world import baselines, wording
from experiments.world.baselines import NAMES
from experiments.world.search import BUDGET, STEPPED, limit, modes, offered
from experiments.world.tasks import HELD_OUT, Task
from experiments.world.worlds import EVALUATIONS
from rldtf_jax.reward import NO_SERVICE, RewardConfig
from twin import Twin

LADDER = ("constant", "sturdiest", "rule", "rule_4")  # a task's stratum is the first that solves it


def compare(
    splits: dict[str, list[Task]],
    twins: Callable[[str], Twin],
    config: RewardConfig = RewardConfig(),
) -> dict[str, Any]:
    """All that is known of a world without a model.

    rows: one a split and method, each figure [value, low, high] with its 95 % interval over tasks
      and noises; the score on common tasks is over those that all of the sturdiest, the rules and
      the oracle fulfil
    of_oracle: mean R over the oracle's, on the test tasks
    oracle: tries of a search, the mean over the test tasks of what no mode exceeds, and what the
      witnesses earn
    wording: how varied the requests are, see wording.variety
    solved: share of all held-out tasks that a method fulfils; strata: tasks by the first of LADDER
      that solves them, and what every method earns there on the other noises
    choices: share of the witnesses with a choice of the toolbox, and of those on platforms that
      offer it
    """
    asked = baselines.methods(splits["train"], splits["validation"], twins, config)
    judged = {
        split: {
            name: on_all_noises(tasks, choose(tasks), twins, config)
            for name, choose in asked.items()
        }
        for split, tasks in splits.items()
        if split in HELD_OUT and tasks
    }
    rows = [row for split, found in judged.items() for row in _rows(split, found)]
    every = {
        name: [
            np.concatenate(parts, axis=1)
            for parts in zip(*(found[name] for found in judged.values()))
        ]
        for name in asked
    }
    # by the first noise
    stratum = np.select(
        [every[name][1][0] for name in LADDER], list(range(len(LADDER))), len(LADDER)
    )
    strata = [
        {
            "stratum": title,
            "share": float(np.mean(stratum == k)),
            "mean_R": {
                name: float(R[1:, stratum == k].mean()) if (stratum == k).any() else None
                for name, (R, _) in every.items()
            },
        }
        for k, title in enumerate(
            (*(f"first solved by: {NAMES[name]}" for name in LADDER), "by none of these")
        )
    ]
    test = judged["test"]
    return {
        "rows": rows,
        "of_oracle": {
            name: float(R.mean() / test["oracle"][0].mean()) for name, (R, _) in test.items()
        },
        "oracle": {
            "budget": BUDGET,
            "bound": float(np.mean([bound(task, config) for task in splits["test"]])),
            "mean_R": float(test["oracle"][0].mean()),
            "fulfilled_R": float(test["oracle"][0][test["oracle"][1]].mean()),
        },
        "wording": {
            split: wording.variety(
                [task.request for task in splits["train"]], [task.request for task in splits[split]]
            )
            for split in judged
        },
        "solved": {name: float(good.mean()) for name, (_, good) in every.items()},
        "strata": strata,
        "choices": choices([task for tasks in splits.values() for task in tasks if task.witness]),
    }


def bound(task: Task, config: RewardConfig) -> float:
    """What no mode exceeds: Eq. 2's limit without a block error and with the error rate just
    met.
    """
    return max((limit(task, w, config) for w in modes(task)), default=NO_SERVICE)


def on_all_noises(
    tasks: list[Task], workflows: list, twins: Callable[[str], Twin], config: RewardConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(R, fulfilled) [noises, tasks]."""
    R, good = zip(
        *(baselines.rewards(tasks, workflows, twins(noise), config) for noise in EVALUATIONS)
    )
    return np.array(R), np.array(good)


def _rows(split: str, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    common = np.all(
        [found[name][1] for name in ("sturdiest", "rule", "rule_2", "rule_4", "oracle")], axis=0
    )

    def mean(values_SxN, where=True):
        values_SxN = np.where(where, values_SxN, np.nan)
        return (
            [float(np.nanmean(values_SxN)), *nested_interval(values_SxN, resamples=1000)]
            if np.isfinite(values_SxN).any()
            else None
        )

    return [
        {
            "split": split,
            "method": name,
            "tasks": R.shape[1],
            "fulfilment": mean(good),
            "score": mean(R, good),
            "common_score": mean(R, common),
            "mean_R": mean(R),
            "regret": mean(found["oracle"][0] - R),
        }
        for name, (R, good) in found.items()
    ]


def choices(tasks: list[Task]) -> dict[str, list[float]]:
    """{field=value: [share of all witnesses, share of those on platforms that offer it]}."""
    offers, taken = Counter(), Counter()
    for task in tasks:
        w = task.witness
        for field in STEPPED:
            if field == "combining" and w.num_transmissions == 1:
                continue
            offers.update((field, value) for value in offered(task.scenario, field))
            taken[field, getattr(w, field)] += 1
    return {
        f"{field}={value}": [
            round(taken[field, value] / len(tasks), 4),
            round(taken[field, value] / number, 4),
        ]
        for (field, value), number in sorted(offers.items(), key=str)
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The tables of `compare`."""
    columns = ("fulfilment", "score", "common_score", "mean_R", "regret")

    def cell(x):
        return "-" if x is None else shown(x)

    lines = [
        (
            "| split | method | fulfilment | score of the fulfilled | on common tasks | mean R |"
            " regret |"
        ),
        "|---" * 7 + "|",
    ]
    lines += [
        f"| {row['split']} ({row['tasks']}) | {NAMES[row['method']]} | "
        + " | ".join(cell(row[c]) for c in columns)
        + " |"
        for row in result["rows"]
    ]
    lines += [
        "",
        "| difficulty | share | " + " | ".join(NAMES.values()) + " |",
        "|---" * (2 + len(NAMES)) + "|",
    ]
    lines += [
        f"| {one['stratum']} | {one['share']:.3f} | "
        + " | ".join("-" if (r := one["mean_R"][name]) is None else f"{r:.2f}" for name in NAMES)
        + " |"
        for one in result["strata"]
    ]
    o = result["oracle"]
    lines += [
        "",
        (
            f"Oracle: {o['budget']} tries a task; it earns {o['mean_R']:.3f} on fresh noise"
            f" ({o['fulfilled_R']:.3f} where it fulfils); no mode exceeds {o['bound']:.3f}."
        ),
        "",
        "Mean R of the oracle's: "
        + ", ".join(f"{NAMES[n]} {share:.2f}" for n, share in result["of_oracle"].items())
        + ".",
        "",
        "| requests of | " + " | ".join(next(iter(result["wording"].values()))) + " |",
        "|---" * (1 + len(next(iter(result["wording"].values())))) + "|",
    ]
    lines += [
        f"| {split} | " + " | ".join(f"{v:.3g}" for v in figures.values()) + " |"
        for split, figures in result["wording"].items()
    ]
    lines += ["", "| choice | of all witnesses | where it is offered |", "|---" * 3 + "|"]
    lines += [
        f"| {name} | {share:.3f} | {where:.3f} |"
        for name, (share, where) in result["choices"].items()
    ]
    return "\n".join(lines) + "\n"

"""Every baseline on every split of a directory of tasks, on noise that no one has met: a table, strata of difficulty, and how often
each choice of the toolbox is the oracle's. `python -m experiments.world baselines`."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from rldtf_jax.reward import RewardConfig
from twin import Twin

from experiments.statistics import mean_interval, paired_difference, wilson
from experiments.world import baselines
from experiments.world.baselines import NAMES
from experiments.world.search import STEPPED, offered
from experiments.world.tasks import ELSEWHERE, Task

HELD_OUT = ("test", *ELSEWHERE)
LADDER = ("constant", "sturdiest", "rule", "rule_4")  # a task's stratum is the first that solves it


def compare(splits: dict[str, list[Task]], twins: Callable[[str], Twin], config: RewardConfig = RewardConfig()) -> dict[str, Any]:
    """rows: one a split and method, each figure [value, low, high] with its 95 % interval over tasks; the score on common tasks is over
    those that all of the sturdiest, the rules and the oracle fulfil. of_oracle: mean R over the oracle's, over the test tasks.
    strata: share of the tasks by LADDER, and mean R of every method there. choices: share of the oracle's workflows, and of those on
    platforms that offer it.
    """
    asked = baselines.methods(splits["train"], splits["validation"], twins, config)
    judged = {split: {name: baselines.rewards(tasks, choose(tasks), twins("evaluate"), config) for name, choose in asked.items()}
              for split, tasks in splits.items() if split in HELD_OUT and tasks}
    rows = [row for split, found in judged.items() for row in _rows(split, found)]
    every = {name: [np.concatenate(parts) for parts in zip(*(found[name] for found in judged.values()))] for name in asked}
    stratum = np.select([every[name][1] for name in LADDER], list(range(len(LADDER))), len(LADDER))
    strata = [{"stratum": title, "share": float(np.mean(stratum == k)), "mean_R": {
        name: float(R[stratum == k].mean()) if (stratum == k).any() else None for name, (R, _) in every.items()}}
        for k, title in enumerate((*(f"first solved by: {NAMES[name]}" for name in LADDER), "by none of these"))]
    test = judged["test"]
    return {"rows": rows, "of_oracle": {name: float(R.mean() / test["oracle"][0].mean()) for name, (R, _) in test.items()},
            "solved": {name: float(good.mean()) for name, (_, good) in every.items()}, "strata": strata,
            "choices": choices([task for tasks in splits.values() for task in tasks if task.witness])}


def _rows(split: str, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    common = np.all([found[name][1] for name in ("sturdiest", "rule", "rule_2", "rule_4", "oracle")], axis=0)

    def mean(values):
        return [float(np.mean(values)), *mean_interval(values)] if len(values) else None

    rows = []
    for name, (R, good) in found.items():
        regret, interval = paired_difference(found["oracle"][0], R)
        rows.append({"split": split, "method": name, "tasks": len(R), "fulfilment": [float(good.mean()), *wilson(int(good.sum()), len(good))],
                     "score": mean(R[good]), "common_score": mean(R[common]), "mean_R": mean(R), "regret": [regret, *interval]})
    return rows


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
    return {f"{field}={value}": [round(taken[field, value] / len(tasks), 4), round(taken[field, value] / number, 4)]
            for (field, value), number in sorted(offers.items(), key=str)}


def as_markdown(result: dict[str, Any]) -> str:
    """The tables of `compare`."""
    columns = ("fulfilment", "score", "common_score", "mean_R", "regret")

    def cell(x):
        return "-" if x is None else f"{x[0]:.3f} [{x[1]:.3f}, {x[2]:.3f}]"

    lines = ["| split | method | fulfilment | score of the fulfilled | on common tasks | mean R | regret |", "|---" * 7 + "|"]
    lines += [f"| {row['split']} ({row['tasks']}) | {NAMES[row['method']]} | " + " | ".join(cell(row[c]) for c in columns) + " |"
              for row in result["rows"]]
    lines += ["", "| difficulty | share | " + " | ".join(NAMES.values()) + " |", "|---" * (2 + len(NAMES)) + "|"]
    lines += [f"| {one['stratum']} | {one['share']:.3f} | " + " | ".join("-" if (r := one["mean_R"][name]) is None else f"{r:.2f}" for name in NAMES)
              + " |" for one in result["strata"]]
    lines += ["", "| choice | of all witnesses | where it is offered |", "|---" * 3 + "|"]
    lines += [f"| {name} | {share:.3f} | {where:.3f} |" for name, (share, where) in result["choices"].items()]
    return "\n".join(lines) + "\n"

"""The network world's baselines: who chooses the tool, and with which figures.

    python -m experiments.network [tasks=300] [seed=0] [out=FILE.json]

Prints a table in Markdown for requests in words of training, in words that are held out, and of
larger sizes: the mean reward, the share of the best level and of answers that can be carried out,
with 95 % intervals over tasks, and the cost of the tools.
"""

import json
import random
import re
import sys
from typing import Sequence

import numpy as np

from experiments.config import guarded
from experiments.files import leave
from experiments.network.config import SPLITS, RequestsConfig
from experiments.network.problems import Assignment, Bandwidth, Leftover, Power, WaterFilling
from experiments.network.tasks import Task, Verdict, figures, judge, right_tools, tasks
from experiments.network.tools import BY_NAME, TOOLS, Tool
from experiments.statistics import shown, with_interval
from experiments.world.__main__ import options

# the first that is found in a request decides; water and cells come before their parts
KEYWORDS = (
    ("cells", (
        ("no fairness", "wmmse"), ("proportional", "max_product_power"),
        ("product", "max_product_power"), ("compromise", "max_product_power"),
        ("decibel", "max_product_power"), ("multiplied", "max_product_power"),
        ("mean", "max_product_power"), ("logarithm", "max_product_power"),
        ("doubled", "max_product_power"), ("SINR", "max_min_power"), ("worst", "max_min_power"),
        ("", "wmmse"),
    )),
    ("channels", (("", "water_filling"),)),
    ("bandwidth", (("", "bandwidth_marginal"),)),
    ("resource units", (("", "hungarian"),)),
    ("services", (("", "slice_exact"),)),
)  # fmt: skip
ALPHAS = (
    ("no fairness", 0.0), ("proportional", 1.0), ("product", 1.0), ("logarithm", 1.0),
    ("geometric", 1.0), ("percent", 1.0), ("1 / rate", 2.0), ("mean", 2.0), ("time", 2.0),
    ("delay", 2.0), ("inverse", 2.0), ("wait", 2.0), ("slowest", "inf"), ("slower", "inf"),
    ("minimum", "inf"), ("max-min", "inf"), ("lowest", "inf"), ("weakest", "inf"),
    ("smallest", "inf"), ("least", "inf"), ("poorest", "inf"), ("", 0.0),
)  # fmt: skip


def call(tool: Tool, found: dict) -> str:
    return json.dumps(_step(tool, found))


def plan(first: Tool, then: Tool, found: dict) -> str:
    """The calls of both; the second shares what the first has left."""
    return json.dumps(
        [{"id": "a", **_step(first, found)}, _step(then, found | {"units": "@a.left"})]
    )


def _step(tool: Tool, found: dict) -> dict:
    return {"tool": tool.name, "arguments": {name: found[name] for name in tool.arguments}}


def written(some: Sequence[Tool], found: dict) -> str:
    """A call of one tool, or a plan of two."""
    return call(some[0], found) if len(some) == 1 else plan(some[0], some[1], found)


def oracle_tool(task: Task) -> str:
    """The right tools with the right figures."""
    return written(right_tools(task.problem), figures(task.problem))


def any_tools(task: Task, rng: random.Random, shown: Sequence[str] = tuple(BY_NAME)) -> list[Tool]:
    """Of the kind of each step, of those that are shown as far as there are any."""
    found = []
    for right in right_tools(task.problem):
        fitting = [tool for tool in TOOLS if tool.kind == right.kind]
        found.append(rng.choice([tool for tool in fitting if tool.name in shown] or fitting))
    return found


def random_tool(task: Task, rng: random.Random) -> str:
    """Any tool of the problem's kind, with the right figures."""
    return written(any_tools(task, rng), figures(task.problem))


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]


def keyword_rule(task: Task) -> str:
    """Reads nothing but the request: a tool by its words, and figures as they stand there, in
    whatever unit.
    """
    text = task.request
    goal = text.rpartition(";")[2]
    choices = next((found for word, found in KEYWORDS if word in text), KEYWORDS[-1][1])
    tool = BY_NAME[next(name for word, name in choices if word in goal)]
    after = lambda mark: text.partition(mark)[2].partition(". ")[0]
    alpha = next(value for word, value in ALPHAS if word in goal)
    if "What they leave" in text:
        found = {
            "blocks": int(numbers(after("grant of"))[0]),
            "wanted": [int(x) for x in numbers(after("want ").partition(" and ")[0])],
            "worth": numbers(after("are worth").partition(":")[0]),
            "snr": numbers(text.partition("one block")[2].partition(": ")[2].partition(". ")[0]),
            "alpha": alpha,
            "least": None,
        }
        return plan(BY_NAME["slice_exact"], BY_NAME["bandwidth_marginal"], found)
    if tool.kind == Bandwidth.kind:
        least = numbers(after("at least"))
        found = {
            "units": int(numbers(after("share"))[0]),
            "snr": numbers(text.partition("one unit")[2].partition(": ")[2].partition(". ")[0]),
            "alpha": alpha,
            "least": least or None,
        }
    elif tool.kind == WaterFilling.kind:
        found = {
            "power": numbers(after("channels,"))[0],
            "noise": numbers(text.partition("of each")[2].partition(": ")[2].partition(". ")[0]),
        }
    elif tool.kind == Power.kind:
        found = {
            "power": numbers(after("cells,"))[0],
            "gain": numbers(after("Gains:")),
            "interference": [numbers(row) for row in after("power:").split(";")],
            "noise": numbers(after("Noise:")),
        }
    elif tool.kind == Assignment.kind:
        found = {"value": [numbers(row) for row in after("each unit:").split(";")]}
    else:
        found = {
            "blocks": int(numbers(after("grant of"))[0]),
            "wanted": [int(x) for x in numbers(after("want ").partition(" and ")[0])],
            "worth": numbers(after("are worth")),
        }
    return call(tool, found)


def equal_numbers(task: Task) -> str:
    """No tool: the same for everybody, as far as that goes."""
    problem = task.problem
    if isinstance(problem, Bandwidth):
        each, more = divmod(problem.units, problem.size)
        solution: list[float] = [each + (i < more) for i in range(problem.size)]
    elif isinstance(problem, (WaterFilling, Power)):
        solution = [problem.power / problem.size] * problem.size
    elif isinstance(problem, Assignment):
        solution = list(range(problem.size))
    elif isinstance(problem, Leftover):
        fits = np.cumsum(problem.services.wanted) <= problem.services.blocks
        each, more = divmod(problem.left(fits), problem.users.size)
        shared = [float(each + (i < more)) for i in range(problem.users.size)]
        return json.dumps({"solution": [[float(x) for x in fits], shared]})
    else:
        fits = np.cumsum(problem.wanted) <= problem.blocks
        solution = [int(fit) for fit in fits]
    return json.dumps({"solution": [float(x) for x in solution]})


def verdicts(some: list[Task], seed: int) -> dict[str, list[Verdict]]:
    rng = random.Random(seed)
    return {
        "numbers: the same for all": [judge(task, equal_numbers(task)) for task in some],
        "random tool of the kind": [judge(task, random_tool(task, rng)) for task in some],
        "keyword rule": [judge(task, keyword_rule(task)) for task in some],
        "oracle tool": [judge(task, oracle_tool(task)) for task in some],
    }


def row(some: list[Task], seen: list[Verdict]) -> dict:
    """What a table says of an arm's verdicts on some tasks."""
    return {
        "reward": with_interval([v.reward for v in seen]),
        "share": with_interval([v.share for v in seen]),
        "carried out": with_interval([float(v.failure is None) for v in seen]),
        "cost": float(np.mean([v.cost for v in seen])),
        "by kind": {
            kind: float(np.mean([v.reward for t, v in zip(some, seen) if t.problem.kind == kind]))
            for kind in sorted({task.problem.kind for task in some})
        },
    }


def compared(count: int, seed: int) -> dict:
    found: dict = {}
    for split, (sizes, held_out) in SPLITS.items():
        some = tasks(seed, count, sizes or RequestsConfig().sizes, held_out)
        found[split] = {arm: row(some, seen) for arm, seen in verdicts(some, seed).items()}
    return found


def table(found: dict) -> str:
    lines = ["| | reward | share of the best | carried out | cost |", "|---|---|---|---|---|"]
    for split, arms in found.items():
        lines.append(f"| **{split}** | | | | |")
        for arm, row in arms.items():
            cells = [shown(row[key]) for key in ("reward", "share", "carried out")]
            lines.append(f"| {arm} | {' | '.join(cells)} | {row['cost']:.1f} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    asked = options(argv, tasks=300, seed=0, out=None)
    found = compared(asked.tasks, asked.seed)
    print(table(found))
    leave(found, asked.out)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        guarded(lambda: main(sys.argv[1:]))

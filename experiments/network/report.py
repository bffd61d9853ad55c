"""The tables and the page of trainings on the network world.

    python -m experiments.network.report RUN [RUN ...] [--json FILE]

Of several runs, which differ in their seed, the means with 95 % intervals over seeds and requests;
differences are paired by both.
"""

import html
import itertools
import json
import os
from typing import Any, Sequence

import numpy as np
from matplotlib import pyplot as plt

from experiments.config import guarded, of_runs
from experiments.files import leave, whole
from experiments.network.evaluate import MEMORY, STAGES
from experiments.stages.report import (
    charts,
    document,
    folded,
    html_table,
    image,
    keep_figures,
    lines_figure,
    panels,
    png,
)
from experiments.statistics import mean_interval, shown, with_nested_interval
from rldtf_jax import metrics
from rldtf_jax.config import ConfigError

PANELS = (
    ("reward", ("reward", "reward_p10", "reward_p90", "earned")),
    ("the coordinator's steps", ("calls/plan", "calls/selected", "calls/arguments")),
    ("calls", ("calls/number", "calls/cost", "calls/carried_out")),
    ("policy loss (Eq. 6)", ("policy_loss",)),
    ("nats a token", ("kl", "entropy")),
    ("groups with more than one reward", ("informative_groups",)),
)
COLUMNS = (
    *("", "reward", "share of the best", "plan", "tools", "arguments", "calls", "cost"),
    "RLDTF earns more by",
)
DRAWN = ("keyword rule", MEMORY, *STAGES)  # by size
GROUPS = 3  # of sizes, a split


def pooled(results: Sequence[dict]) -> dict[str, dict[str, dict[str, Any]]]:
    """{split: {arm: its figures, means over seeds; "reward" and "gain" (RLDTF's reward more than
    the arm's) as [mean, low, high]}}.

    Raises:
      ConfigError: the runs were evaluated on other requests.
    """
    sizes = [{split: part["sizes"] for split, part in one["splits"].items()} for one in results]
    if any(one != sizes[0] for one in sizes):
        raise ConfigError("the runs were evaluated on different requests (requests.*)")
    found: dict = {}
    for split, part in results[0]["splits"].items():
        arms = {
            name: [one["splits"][split]["arms"][name] for one in results] for name in part["arms"]
        }
        rewards = {name: np.array([row["rewards"] for row in rows]) for name, rows in arms.items()}
        found[split] = {}
        for name, rows in arms.items():
            mean = lambda read: float(np.mean([read(row) for row in rows]))  # noqa: B023
            found[split][name] = {
                "reward": with_nested_interval(rewards[name]),
                "share": mean(lambda row: row["share"][0]),
                "cost": mean(lambda row: row["cost"]),
                "gain": with_nested_interval(rewards[STAGES[-1]] - rewards[name]),
                **{
                    step: mean(lambda row: row["steps"][step])  # noqa: B023
                    for step in ("plan", "selected", "arguments", "number")
                },
            }
    return found


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """Of COLUMNS."""
    gain = "" if name == STAGES[-1] else shown(row["gain"], "+")
    steps = [f"{row[name]:.2f}" for name in ("plan", "selected", "arguments", "number")]
    if not row["number"]:  # figures: nothing is called
        steps = ["", "", "", "0.00"]
    return [name, shown(row["reward"]), f"{row['share']:.3f}", *steps, f"{row['cost']:.1f}", gain]


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown, of what `pooled` says."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for split, arms in found.items():
        lines.append(f"| **{split}** {'| ' * len(COLUMNS)}".rstrip())
        lines += [f"| {' | '.join(cells(name, row))} |" for name, row in arms.items()]
    return "\n".join(lines)


def regret_figure(result: dict) -> bytes:
    """1 - reward by the size of the problem, three groups of sizes a split, with 95 % intervals, in
    words of training.
    """
    figure, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
    groups: list[str] = []
    for split in ("test", "larger"):
        part = result["splits"][split]
        sizes = np.array(part["sizes"])
        for group in np.array_split(np.unique(sizes), GROUPS):
            if not len(group):  # fewer sizes than groups
                continue
            some = np.isin(sizes, group)
            for k, name in enumerate(DRAWN):
                regrets = 1 - np.array(part["arms"][name]["rewards"])[some]
                low, high = mean_interval(regrets)
                axis.errorbar(
                    len(groups) + 0.14 * (k - len(DRAWN) / 2),
                    regrets.mean(),
                    yerr=[[regrets.mean() - low], [high - regrets.mean()]],
                    fmt="o",
                    markersize=4,
                    capsize=2,
                    color=f"C{k}",
                    label=None if groups else name,
                )
            groups.append(f"{group.min()} to {group.max()} ({split})")
    axis.set(ylabel="1 - reward", xticks=range(len(groups)), xticklabels=groups)
    figure.legend(loc="outside upper center", ncols=len(DRAWN), fontsize=8)
    return png(figure)


def selection_figure(part: dict) -> bytes:
    """Which tool each stage calls where which is right."""
    stages = [name for name in STAGES if name in part["arms"]]
    selected = [part["arms"][name]["selected"] for name in stages]
    right = sorted({name for one in selected for name in one})
    called = sorted({tool for one in selected for count in one.values() for tool in count})
    figure, axes = plt.subplots(
        1,
        len(stages),
        figsize=(2.4 + 0.34 * len(called) * len(stages), 3.0 + 0.3 * len(right)),
        layout="constrained",
        sharey=True,
    )
    for axis, title, one in zip(np.atleast_1d(axes), stages, selected):
        counts = np.array(
            [[one.get(row, {}).get(column, 0) for column in called] for row in right], float
        )
        axis.imshow(counts / counts.sum(1, keepdims=True), vmin=0, vmax=1, cmap="Blues")
        axis.set(
            title=title,
            xlabel="called",
            xticks=range(len(called)),
            yticks=range(len(right)),
            yticklabels=right,
        )
        axis.set_xticklabels([name or "none" for name in called], rotation=90)
    return png(figure)


def write(run_dir: str, result: dict, found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Writes <run_dir>/report.html with its figures inside and under figures/; returns its path.

    found: `pooled` of the result.
    """
    drawn = panels(metrics.read(os.path.join(run_dir, "rldtf")), PANELS)
    figures = {
        "regret": regret_figure(result),
        "selected": selection_figure(result["splits"]["test"]),
        "rldtf": lines_figure(drawn, columns=3),
    }
    keep_figures(run_dir, figures)
    with open(os.path.join(run_dir, "config.yaml"), encoding="utf-8") as file:
        config = file.read()
    page = document(
        f"The network world: {os.path.basename(os.path.abspath(run_dir))}",
        "<p>Held-out requests, greedily, 95 % intervals over requests. test: the words and sizes of"
        " training; new-words: phrases that training has not seen; larger: problems of 12 to"
        " 20.</p>",
        *(
            f"<h3>{split}</h3>{html_table(COLUMNS, *itertools.starmap(cells, arms.items()))}"
            for split, arms in found.items()
        ),
        "<h2>Regret by size</h2>",
        image(figures["regret"], "Regret by the size of the problem"),
        "<h2>What it has learnt to select</h2>",
        image(figures["selected"], "Tools called where each tool is right"),
        "<h2>RLDTF, step by step</h2>",
        charts(drawn, image(figures["rldtf"], "Curves of the RLDTF stage")),
        folded(
            "A memory over a stream of requests",
            f"<pre>{html.escape(json.dumps(result['stream'], indent=1))}</pre>",
        ),
        folded("Config", f"<pre>{html.escape(config)}</pre>"),
    )
    path = os.path.join(run_dir, "report.html")
    with whole(path) as file:
        file.write(page)
    return path


def load(run_dir: str) -> dict:
    """What a finished run has measured.

    Raises:
      ConfigError: it is not finished.
    """
    path = os.path.join(run_dir, "evaluation.json")
    if not os.path.exists(path):
        raise ConfigError(f"{path}: no such file; expected a finished run of preset=network")
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main() -> None:
    parser = of_runs(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    asked = parser.parse_args()
    found = pooled([load(run) for run in asked.runs])
    print(table(found))
    leave({"runs": len(asked.runs), "splits": found}, asked.json)


if __name__ == "__main__":
    guarded(main)

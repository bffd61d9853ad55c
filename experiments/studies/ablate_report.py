"""The report of a sweep: heat maps, learning curves, what the token weights did, the best arm
against alpha = 0, costs.
"""

import html
import itertools
import json
import math
import os
import warnings
from typing import Any, Sequence

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from scipy import stats

from experiments.files import whole
from experiments.stages.report import STYLE, image, png
from experiments.statistics import nested_interval
from experiments.studies.grid import Cell, SweepConfig, arm_path, as_text
from rldtf_jax import metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, after the backend is chosen

CURVES = {
    "fulfilled": "Fulfilment of the rollouts",
    "reward": "Mean reward",
    "kl": "KL from the reference",
    "weight/mean": "Mean token weight",
    "weight/over_threshold": "Share of tokens over the threshold",
    "weight/effective_sample_size": "Effective share of the tokens",
}
WEIGHTS = ("weight/mean", "weight/over_threshold", "weight/effective_sample_size")


class Arms:
    """The results of a sweep's arms, by their values on the axes; seeds are the rows of what
    `verdicts` returns.
    """

    def __init__(self, config: SweepConfig, grid: Sequence[Cell]):
        self.curves = {cell.name: metrics.read(arm_path(config, cell.name)) for cell in grid}
        self.results, self.cells = {}, {}
        for cell in grid:
            with open(arm_path(config, cell.name, "evaluation.json"), encoding="utf-8") as file:
                self.results[cell.name] = json.load(file)
            self.cells.setdefault(self.key(cell.values), []).append(cell)

    @staticmethod
    def key(values: dict[str, float]) -> str:
        return ", ".join(f"{name} = {as_text(value)}" for name, value in values.items())

    def sound(self, key: str) -> list[Cell]:
        """The seeds that did not diverge."""
        return [cell for cell in self.cells[key] if not self.results[cell.name]["diverged"]]

    def verdicts(
        self,
        key: str,
        name: str = "task_fulfilled",
        split: str = "test",
        seeds: set[int] | None = None,
    ) -> np.ndarray:
        """(seeds, tasks) of "task_fulfilled" or "task_reward"."""
        return np.array(
            [
                self.results[cell.name][split][name]
                for cell in self.sound(key)
                if seeds is None or cell.seed in seeds
            ],
            float,
        )

    def scores(self, key: str, seeds: set[int] | None = None) -> np.ndarray:
        """(seeds, tasks): the reward where fulfilled, nan elsewhere."""
        return np.where(
            self.verdicts(key, seeds=seeds) > 0,
            self.verdicts(key, "task_reward", seeds=seeds),
            np.nan,
        )

    def seeds(self, key: str) -> set[int]:
        return {cell.seed for cell in self.sound(key)}


def write(config: SweepConfig, axes: dict[str, tuple], grid: Sequence[Cell]) -> list[str]:
    """Writes report.html, the tables and the figures into the sweep's directory; returns what a
    terminal shows.
    """
    arms = Arms(config, grid)
    figures = {"curves": curves_figure(arms)}
    priced = [name.removeprefix("prices.") for name in axes if name.startswith("prices.")]
    if any(arms.sound(key) for key in arms.cells):
        front = {"front": front_figure(arms, priced)} if priced else {}
        figures = {"heat": heat_figure(arms, axes)} | front | figures
    os.makedirs(os.path.join(config.directory, "figures"), exist_ok=True)
    pngs = {}
    for name, figure in figures.items():
        figure.savefig(os.path.join(config.directory, "figures", f"{name}.pdf"))
        pngs[name] = png(figure)
        with whole(os.path.join(config.directory, "figures", f"{name}.png"), "wb") as file:
            file.write(pngs[name])
    rows = table(arms, grid)
    save(rows, os.path.join(config.directory, "arms"))
    curves = [
        {name: value for name, value in row.items() if not isinstance(value, (dict, list))}
        | {"arm": cell.name, **cell.values, "seed": cell.seed}
        for cell in grid
        for row in arms.curves[cell.name]
    ]
    write_parquet(from_rows(curves), os.path.join(config.directory, "curves.parquet"))

    lines = summary_lines(arms, config)
    note = cost_line(rows)
    page = "\n".join(
        [
            "<!doctype html><html lang='en'><meta charset='utf-8'>",
            f"<title>Sweep {html.escape(config.sweep)}</title>",
            f"<style>{STYLE}</style><h1>Sweep {html.escape(config.sweep)}</h1>",
            f"<p>{len(grid)} arms: "
            + " x ".join(
                f"{html.escape(name)} ({', '.join(map(as_text, values))})"
                for name, values in axes.items()
            )
            + f" x {config.seeds} seeds; {config.rldtf.steps} steps of"
            f" {config.rldtf.prompts_per_step} prompts each.</p>",
            "<h2>What it says</h2>",
            *(f"<p>{html.escape(line)}</p>" for line in lines),
            *(
                f"<h2>{title}</h2>{image(pngs[name], title)}"
                for name, title in (
                    ("heat", "Held-out tasks"),
                    ("front", "What is earned, and what it costs"),
                    ("curves", "Learning curves"),
                )
                if name in pngs
            ),
            "<h2>Arms</h2>",
            html_table(rows),
            f"<p class='note'>{html.escape(note)}</p></html>",
        ]
    )
    path = os.path.join(config.directory, "report.html")
    with whole(path) as file:
        file.write(page)
    return [*lines, note, f"report: {path}"]


def table(arms: Arms, grid: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row per arm and seed."""
    rows, names = [], dict.fromkeys(name for cell in grid for name in cell.values)
    for cell in grid:
        result, last = arms.results[cell.name], arms.curves[cell.name][-10:]
        test, validation = result.get("test", {}), result.get("validation", {})
        low, high = test.get("fulfilment_interval", (None, None))
        rows.append(
            {
                "arm": cell.name,
                **{name: cell.values.get(name) for name in names},
                "seed": cell.seed,
                "diverged": result["diverged"],
                "fulfilment": test.get("fulfilment"),
                "fulfilment_low": low,
                "fulfilment_high": high,
                "score": test.get("score"),
                "reward": test.get("reward"),
                "validation_fulfilment": validation.get("fulfilment"),
                "validation_reward": validation.get("reward"),
                "unusable": test.get("unusable"),
                **{f"cost_{name}": value for name, value in (test.get("costs") or {}).items()},
                **{
                    name.replace("/", "_"): _mean([row.get(name) for row in last])
                    for name in WEIGHTS
                },
                "seconds": result["cost"]["seconds"],
                "simulated": result["cost"]["simulated"],
                "arms_together": result["cost"]["arms_together"],
            }
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def from_rows(rows: Sequence[dict]) -> pa.Table:
    """Columns in the order in which rows name them; null where a row does not."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def save(rows: Sequence[dict], stem: str) -> None:
    arrow = from_rows(rows)
    with whole(f"{stem}.csv", "wb") as file:
        pa.csv.write_csv(arrow, file)
    write_parquet(arrow, f"{stem}.parquet")


def write_parquet(arrow: pa.Table, path: str) -> None:
    with whole(path, "wb") as file:
        pa.parquet.write_table(arrow, file)


def best(arms: Arms, candidates: Sequence[str]) -> str | None:
    """The one that does best on the validation tasks, so that its gain on the test tasks is not one
    of selection; of those none of whose seeds diverged, if there are any.
    """
    whole_ones = [key for key in candidates if len(arms.sound(key)) == len(arms.cells[key])]
    return max(
        whole_ones or [key for key in candidates if arms.sound(key)],
        key=lambda key: arms.verdicts(key, "task_reward", "validation").mean(),
        default=None,
    )


def compare(arms: Arms, keys: Sequence[str], other: str, name: str) -> dict[str, Any] | None:
    """Mean of keys - other over the test tasks and the seeds that all have, with its interval over
    seeds and tasks.

    p_tasks: of flipping the signs of the tasks' differences: are these trained models different?
    p_seeds: of a t-test over the seeds' differences: would other seeds differ as well? None for one
      seed.
    """
    seeds = set.intersection(*map(arms.seeds, [other, *keys]))
    if not seeds:
        return None
    difference = np.mean(
        [arms.verdicts(key, name, seeds=seeds) for key in keys], 0
    ) - arms.verdicts(other, name, seeds=seeds)
    by_seed = difference.mean(1)
    flipped = stats.permutation_test(
        (difference.mean(0),), np.mean, permutation_type="samples", n_resamples=9999, rng=0
    )
    return {
        "mean": float(difference.mean()),
        "interval": nested_interval(difference),
        "by_seed": by_seed.tolist(),
        "p_tasks": float(flipped.pvalue),
        "p_seeds": (
            float(stats.ttest_1samp(by_seed, 0).pvalue)
            if len(by_seed) > 1 and np.ptp(by_seed) > 0
            else None
        ),
    }


def summary_lines(arms: Arms, config: SweepConfig) -> list[str]:
    """The findings, each a sentence with its interval."""
    lines, keys = [], [key for key in arms.cells if arms.sound(key)]
    if count := sum(result["diverged"] for result in arms.results.values()):
        lines.append(
            f"{count} arms diverged and are left out: "
            + "; ".join(n for n, r in arms.results.items() if r["diverged"])
        )
    if not keys:
        return lines
    chosen = best(arms, keys)
    values = arms.verdicts(chosen)
    low, high = nested_interval(values)
    lines.append(
        f"best by reward on the validation tasks: {chosen}; held-out fulfilment {values.mean():.3f}"
        f" [{low:.3f}, {high:.3f}]"
    )
    unweighted = [key for key in keys if arms.cells[key][0].config.alpha == 0]
    weighted = [key for key in keys if key not in unweighted]
    for other in unweighted if weighted else ():
        champion = best(arms, weighted)
        for title, some in (
            (champion, [champion]),
            (f"the mean of all {len(weighted)} arms with alpha > 0", weighted),
        ):
            for name, quantity in (
                ("task_fulfilled", "fulfilment"),
                ("task_reward", "mean reward"),
            ):
                if d := compare(arms, some, other, name):
                    p_seeds = "" if d["p_seeds"] is None else f", p = {d['p_seeds']:.2f} over seeds"
                    lines.append(
                        f"{title} minus {other}, {quantity}: {d['mean']:+.3f}"
                        f" [{d['interval'][0]:+.3f}, {d['interval'][1]:+.3f}], p ="
                        f" {d['p_tasks']:.3f} over tasks for these models{p_seeds}; by seed "
                        + ", ".join(f"{x:+.3f}" for x in d["by_seed"])
                    )
    spread = [arms.verdicts(key).mean(1).std(ddof=1) for key in keys if len(arms.sound(key)) > 1]
    if spread:
        lines.append(
            "the seeds of an arm scatter with a standard deviation of"
            f" {math.sqrt(np.mean(np.square(spread))):.3f} in fulfilment; intervals (95 %) resample"
            f" {config.seeds} seeds and the tasks, and are rough with few seeds"
        )
    return lines


def cost_line(rows: Sequence[dict]) -> str:
    return (
        f"cost of an arm: {np.mean([row['seconds'] for row in rows]):.0f} s and"
        f" {np.mean([row['simulated'] for row in rows]):.0f} simulations,"
        f" {np.mean([row['arms_together'] for row in rows]):.0f} arms together"
    )


def heat_figure(arms: Arms, axes: dict[str, tuple]):
    """Fulfilment and score over the first two axes (means over further ones), with their intervals
    over seeds and tasks.
    """
    names = sorted(axes, key=lambda name: name not in ("alpha", "threshold"))
    x_name, y_name = (names[1], names[0]) if len(names) > 1 else (names[0], None)
    xs, ys = axes[x_name], axes[y_name] if y_name else (None,)
    figure, panels = plt.subplots(
        1, 2, figsize=(1.2 * len(xs) * 2 + 3.5, 0.75 * len(ys) + 1.8), layout="constrained"
    )
    for panel, title, values_of in (
        (panels[0], "Fulfilment", arms.verdicts),
        (panels[1], "Average score", arms.scores),
    ):
        centres, labels = np.full((len(ys), len(xs)), np.nan), {}
        for (i, y), (j, x) in itertools.product(enumerate(ys), enumerate(xs)):
            here = [key for key, some in arms.cells.items() if _at(some[0], {x_name: x, y_name: y})]
            sound = [key for key in here if arms.sound(key)]
            seeds = set.intersection(*map(arms.seeds, sound)) if sound else set()
            if seeds:
                # tasks that no seed fulfils have no score
                with warnings.catch_warnings(action="ignore"):
                    values = np.nanmean([values_of(key, seeds=seeds) for key in sound], 0)
                    centres[i, j], (low, high) = np.nanmean(values), nested_interval(values)
                labels[i, j] = f"{centres[i, j]:.3f}\n[{low:.2f}, {high:.2f}]"
            lost = sum(len(arms.cells[key]) - len(arms.sound(key)) for key in here)
            if lost:
                labels[i, j] = labels.get((i, j), "") + f"\n{lost} diverged"
        middle, span = (
            np.nanmean([np.nanmin(centres), np.nanmax(centres)]),
            np.nanmax(centres) - np.nanmin(centres),
        )
        half = max(span, 0.05) / 2  # what is nearly equal looks nearly equal
        shown = panel.imshow(
            centres,
            cmap="viridis",
            aspect="auto",
            origin="lower",
            vmin=middle - half,
            vmax=middle + half,
        )
        figure.colorbar(shown, ax=panel)
        for (i, j), label in labels.items():
            panel.text(
                j,
                i,
                label,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if centres[i, j] < middle else "black",
            )
        panel.set(
            title=title,
            xlabel=x_name,
            ylabel=y_name or "",
            xticks=range(len(xs)),
            xticklabels=[f"{x:g}" for x in xs],
            yticks=range(len(ys)) if y_name else [],
            yticklabels=[f"{y:g}" for y in ys] if y_name else [],
        )
    return figure


def front_figure(arms: Arms, costs: Sequence[str]):
    """Mean reward, Eq. 2 alone, against the mean of each cost that the arms have prices for; a
    point an arm, with the reward's interval over seeds and tasks.
    """
    figure, panels = plt.subplots(
        1, len(costs), figsize=(4.5 * len(costs), 3.6), layout="constrained", squeeze=False
    )
    for panel, cost in zip(panels[0], costs):
        for key in filter(arms.sound, arms.cells):
            found = [arms.results[cell.name]["test"] for cell in arms.sound(key)]
            x = np.mean([one["costs"][cost] for one in found])
            R = np.array([one["task_reward"] for one in found])
            low, high = nested_interval(R)
            y = float(R.mean())
            panel.errorbar(x, y, [[y - low], [high - y]], fmt="o", color="C0", capsize=2)
            panel.annotate(key, (x, y), (4, 4), textcoords="offset points", fontsize=7)
        panel.set(xlabel=f"mean {cost}", ylabel="Mean reward")
        panel.grid(alpha=0.3)
    return figure


def _at(cell: Cell, place: dict[str | None, Any]) -> bool:
    """An arm without the axis, as alpha = 0 has no threshold, stands everywhere on it."""
    return all(
        name is None or cell.values.get(name, value) == value for name, value in place.items()
    )


def curves_figure(arms: Arms):
    """Means over ten steps, fewer of short runs, and over seeds, with the range of the seeds."""
    window = min(10, max(1, max(map(len, arms.curves.values())) // 5))
    figure, panels = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(arms.cells)))
    for panel, (name, title) in zip(panels.flat, CURVES.items()):
        for colour, (key, some) in zip(colours, arms.cells.items()):
            smooth = []
            for cell in some:
                values = np.array(
                    [
                        np.nan if row.get(name) is None else row[name]
                        for row in arms.curves[cell.name]
                    ],
                    float,
                )
                parts = np.array_split(values, max(1, len(values) // window))
                smooth.append(
                    [
                        np.mean(part[np.isfinite(part)]) if np.isfinite(part).any() else np.nan
                        for part in parts
                    ]
                )
            length = min(map(len, smooth))
            ends = np.linspace(0, len(arms.curves[some[0].name]), length + 1)[1:]
            lines = np.array([values[:length] for values in smooth])
            panel.plot(ends, lines.mean(0), color=colour, linewidth=1.2, label=key)
            if len(lines) > 1:
                panel.fill_between(
                    ends, lines.min(0), lines.max(0), color=colour, alpha=0.12, linewidth=0
                )
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
    figure.legend(
        *panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7
    )
    return figure


def html_table(rows: Sequence[dict]) -> str:
    def cell(value: Any) -> str:
        text = (
            "–"
            if value is None
            else f"{value:.3g}"
            if isinstance(value, float)
            else html.escape(str(value))
        )
        return f"<td>{text}</td>"

    names = list(dict.fromkeys(name for row in rows for name in row))
    return (
        "<table><tr>"
        + "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
        + "</tr>"
        + "".join("<tr>" + "".join(cell(row.get(name)) for name in names) + "</tr>" for row in rows)
        + "</table>"
    )

"""Finished runs that differ in their seed alone: every method's figures, and what RLDTF gains on
each, with intervals over seeds and tasks.

    python -m experiments.studies.seeds runs/seed0 runs/seed1 runs/seed2 [--evaluation evaluation_at_1.json] [--json FILE]

The seeds are those of the stages that a run has trained itself; all runs meet the same tasks on the
same noise of evaluation.
"""  # noqa: E501

import json
import os
from typing import Any, Sequence

import numpy as np

from experiments.config import guarded, of_runs
from experiments.files import leave
from experiments.stages.evaluate import METHODS
from experiments.statistics import shown, with_nested_interval
from rldtf_jax.config import ConfigError

MEASURES = ("fulfilled", "reward")
POOLED = ("test", "new-links")  # whose tasks are looked at together too


def load(run_dir: str, name: str = "evaluation.json") -> dict[str, dict]:
    """{split: the results of all methods} of a finished run.

    Raises:
      ConfigError: it is not finished, or was evaluated before results were kept task by task.
    """
    path = os.path.join(run_dir, name)
    if not os.path.exists(path):
        raise ConfigError(
            f"{path}: no such file; expected a run that python -m experiments.stages.pipeline has"
            " finished"
        )
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    splits = {"test": result} | result.pop("elsewhere")
    if "by_task" not in result:
        raise ConfigError(
            f"{path}: no by_task; remove it, and python -m experiments.stages.evaluate writes it"
            " anew"
        )
    return splits


def compare(runs: Sequence[dict[str, dict]]) -> dict[str, dict[str, Any]]:
    """{split: {method: {measure: [mean, low, high], "gain": {measure: of RLDTF on it, paired by
    seed and task}}}}.

    Raises:
      ConfigError: the runs were evaluated on different numbers of tasks.
    """
    if (
        len(
            sizes := {
                tuple((split, one["num_tasks"], one["temperature"]) for split, one in run.items())
                for run in runs
            }
        )
        > 1
    ):
        raise ConfigError(
            "the runs were evaluated differently, (split, tasks, temperature):"
            f" {' and '.join(map(str, sorted(sizes)))}"
        )

    def values(splits, name, measure):  # (S, N)
        return np.array(
            [
                np.concatenate([run[split]["by_task"][name][measure] for split in splits])
                for run in runs
            ],
            np.float64,
        )

    groups = {split: (split,) for split in runs[0]} | {" + ".join(POOLED): POOLED}
    return {
        title: {
            name: (
                {
                    measure: with_nested_interval(values(splits, name, measure))
                    for measure in MEASURES
                }
                | {
                    "gain": {
                        measure: with_nested_interval(
                            values(splits, "rldtf", measure) - values(splits, name, measure)
                        )
                        for measure in MEASURES
                    }
                }
            )
            for name in METHODS
            if name in runs[0]["test"]["by_task"]
        }
        for title, splits in groups.items()
        if set(splits) <= set(runs[0])
    }


def table(result: dict[str, dict[str, Any]]) -> str:
    """Markdown, one table a split."""
    lines = []
    for split, methods in result.items():
        lines += [
            f"{split}",
            "",
            "| | fulfilment | mean reward | RLDTF fulfils more by | earns more by |",
            "|---|---|---|---|---|",
        ]
        for name, row in methods.items():
            gains = (
                ["", ""]
                if name == "rldtf"
                else [shown(row["gain"][measure], "+") for measure in MEASURES]
            )
            lines.append(
                f"| {METHODS[name]} |"
                f" {' | '.join([*(shown(row[measure]) for measure in MEASURES), *gains])} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = of_runs(__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument(
        "--evaluation", default="evaluation.json", help="file in each run's directory"
    )
    arguments = parser.parse_args()
    result = compare([load(run, arguments.evaluation) for run in arguments.runs])
    print(table(result))
    leave(result, arguments.json)


if __name__ == "__main__":
    guarded(main)

"""A memory of links beside what was learnt from the same verdicts.

    python -m experiments.studies.memory RUN [RUN ...] [--json FILE]

Each run's memory holds what the twin said of its rejection samples and of its emulator's
favourites. On the fresh tasks of `experiments.studies.fresh`, which must have run greedily: the
nearest link's workflow, beside the run's policies; 95 % intervals over seeds and tasks, differences
paired.
"""

import glob
import json
from typing import Sequence

import numpy as np

from experiments.config import guarded, of_run, of_runs
from experiments.files import exists, json_lines, leave
from experiments.stages.reject import all_sampled
from experiments.stages.run import Run, opened
from experiments.statistics import shown, with_nested_interval
from experiments.studies.fresh import TASKS, draw
from experiments.world import worlds
from experiments.world.baselines import rewards
from experiments.world.emulator import ran
from experiments.world.memory import LinkMemory
from rldtf_jax.config import ConfigError

POLICIES = {"instruct": "phase 1", "reject": "+ rejection sampling", "rldtf": "+ RLDTF"}
FRESH = "fresh_at_0.json"


def remembered(run: Run) -> LinkMemory:
    """Of all that the run's twin was asked about before RLDTF."""
    tasks, rows = run.tasks_of("train"), all_sampled(run)
    for path in sorted(glob.glob(run.path("emulator", "round_*.jsonl"))):
        rows += json_lines(path)
    return LinkMemory([(tasks[row["task"]], w, row["reward"]) for row, w in ran(tasks, rows)])


def measured(run_dir: str) -> dict[str, dict[str, list[float]]]:
    """{method: {"reward", "fulfilled" of each fresh task}}.

    Raises:
      ConfigError: the run has not been evaluated on them.
    """
    with opened(of_run(run_dir), shared=True) as run:
        path = run.path(FRESH)
        if not exists(path):
            raise ConfigError(
                f"{path}: no such file; expected python -m experiments.studies.fresh"
                " evaluate.temperature=0 to have run"
            )
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
        parts = [known, *known["elsewhere"].values()]
        drawn = draw(worlds.family(run.config.tasks.family), TASKS)
        tasks = [task for split in TASKS for task in drawn[split]]
        memory = remembered(run)
        R, good = rewards(
            tasks,
            [memory.nearest(task) for task in tasks],
            run.twins("evaluate"),
            run.config.rldtf.reward,
        )
    found = {"nearest link": {"reward": R.tolist(), "fulfilled": good.astype(float).tolist()}}
    for name, title in (POLICIES | {"sturdiest": "sturdiest mode"}).items():
        found[title] = {
            key: [x for part in parts for x in part["by_task"][name][key]]
            for key in ("reward", "fulfilled")
        }
    return found


def pooled(runs: Sequence[dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, list[float]]]:
    """{method: {"reward", "fulfilled", "gain" in reward on the memory}: [mean, low, high]}."""

    values = {
        name: {key: np.array([run[name][key] for run in runs], float) for key in rows}
        for name, rows in runs[0].items()
    }
    return {
        name: {key: with_nested_interval(x) for key, x in rows.items()}
        | {"gain": with_nested_interval(rows["reward"] - values["nearest link"]["reward"])}
        for name, rows in values.items()
    }


def table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| | fulfilment | mean reward | more than the memory |", "|---|---|---|---|"]
    for name, row in found.items():
        cells = [shown(row[key]) for key in ("fulfilled", "reward")]
        cells.append("" if name == "nearest link" else shown(row["gain"], "+"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = of_runs(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    asked = parser.parse_args()
    found = pooled([measured(run) for run in asked.runs])
    print(table(found))
    leave({"runs": len(asked.runs), "methods": found}, asked.json)


if __name__ == "__main__":
    guarded(main)

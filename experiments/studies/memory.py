"""A memory of links beside what was learnt from the same verdicts.

    python -m experiments.studies.memory RUN [RUN ...] [--json FILE]

Each run's memory holds what the twin said of its rejection samples and of its emulator's
favourites. On the fresh tasks of `experiments.studies.fresh`, which must have run greedily: the
nearest link's workflow, beside the run's policies; 95 % intervals over seeds and tasks, differences
paired.
"""

import glob
from typing import Sequence

import numpy as np

from experiments.config import guarded, of_run, of_runs
from experiments.files import json_lines, leave
from experiments.stages.evaluate import METHODS, MODELS
from experiments.stages.reject import all_sampled
from experiments.stages.run import Run, opened
from experiments.statistics import shown, with_nested_interval
from experiments.studies import seeds
from experiments.studies.fresh import TASKS, draw
from experiments.world import worlds
from experiments.world.baselines import rewards
from experiments.world.emulator import ran
from experiments.world.memory import LinkMemory

NEAREST = "nearest link"
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
    known = seeds.load(run_dir, FRESH)
    with opened(of_run(run_dir), shared=True) as run:
        drawn = draw(worlds.family(run.config.tasks.family), TASKS)
        tasks = [task for split in TASKS for task in drawn[split]]
        memory = remembered(run)
        R, good = rewards(
            tasks,
            [memory.nearest(task) for task in tasks],
            run.twins("evaluate"),
            run.config.rldtf.reward,
        )
    return {NEAREST: {"reward": R.tolist(), "fulfilled": good.astype(float).tolist()}} | {
        METHODS[name]: {
            key: [x for split in TASKS for x in known[split]["by_task"][name][key]]
            for key in seeds.MEASURES
        }
        for name in (*MODELS, "sturdiest")
    }


def pooled(runs: Sequence[dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, list[float]]]:
    """{method: {"reward", "fulfilled", "gain" in reward on the memory}: [mean, low, high]}."""
    values = {
        name: {key: np.array([run[name][key] for run in runs], float) for key in rows}
        for name, rows in runs[0].items()
    }
    return {
        name: {key: with_nested_interval(x) for key, x in rows.items()}
        | {"gain": with_nested_interval(rows["reward"] - values[NEAREST]["reward"])}
        for name, rows in values.items()
    }


def table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| | fulfilment | mean reward | more than the memory |", "|---|---|---|---|"]
    for name, row in found.items():
        cells = [shown(row[key]) for key in seeds.MEASURES]
        cells.append("" if name == NEAREST else shown(row["gain"], "+"))
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

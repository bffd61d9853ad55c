"""A finished run on tasks as its family draws them: new ones of held-out splits, feasible or not,
many more than a search could afford.

    python -m experiments.studies.fresh preset=quickstart seed=0 run_dir=RUN [evaluate.temperature=0]
    python -m experiments.studies.seeds RUN RUN RUN --evaluation fresh_at_0.json

Every stage's model, the sturdiest mode and the tuned rule, on noise that nothing was trained or
tuned on. There is no oracle here, and half of the tasks cannot be met by anybody. Leaves
<run_dir>/fresh_at_<temperature>.json.
"""  # noqa: E501

import dataclasses
import json
import os

from experiments.config import ExperimentConfig, command
from experiments.files import whole
from experiments.stages.evaluate import compare, table
from experiments.stages.run import Run, opened
from experiments.world import baselines, worlds
from experiments.world.tasks import Task
from rldtf_jax.config import ConfigError

TASKS = {"test": 500, "new-links": 750}  # of each split


def draw(family: worlds.Family, wanted: dict[str, int]) -> dict[str, list[Task]]:
    """So many tasks of each split, from a stream that nothing else is drawn from."""
    found: dict[str, list[Task]] = {split: [] for split in wanted}
    for task in worlds.candidates(family, "fresh"):
        if len(found.get(task.split, ())) < wanted.get(task.split, 0):
            found[task.split].append(task)
        if all(len(found[split]) == n for split, n in wanted.items()):
            break
    return found


def study(run: Run) -> dict:
    """As `evaluate.evaluate`, on the tasks that `draw` finds."""
    if run.config.tasks.directory:
        raise ConfigError(
            f"tasks.directory = {run.config.tasks.directory!r}: expected null, a family whose tasks"
            " can be drawn"
        )
    path = run.path(f"fresh_at_{run.config.evaluate.temperature:g}.json")
    if not os.path.exists(path):
        run = dataclasses.replace(
            run, tasks=run.tasks | draw(worlds.family(run.config.tasks.family), TASKS)
        )
        tuned = baselines.tuned_rule(
            run.tasks["validation"], run.twins("select"), run.config.rldtf.reward
        )
        asked = {
            "sturdiest": lambda tasks: list(map(baselines.sturdiest, tasks)),
            "rule": lambda tasks: list(map(tuned, tasks)),
        }
        splits = {split: compare(run, split, asked) for split in TASKS}
        with whole(path) as file:
            json.dump(splits.pop("test") | {"elsewhere": splits}, file, indent=1)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main(config: ExperimentConfig) -> None:
    with opened(config, may_differ=("evaluate.temperature",)) as run:
        print(table(study(run)))


if __name__ == "__main__":
    command(main)

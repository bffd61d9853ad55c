"""A rival that asks no twin when it answers: the model of the twin that `stages.emulate` fits, and
a choice by it.

    python -m experiments.studies.emulator run_dir=runs/quickstart [key=value ...]

The networks of `world.emulator` learn R (Eq. 2) and whether the targets are met. A held-out task is
answered with what they value most among promising modes with an engineer's details. So it shows
what the twin's verdicts hold for whoever learns from them well. Leaves <run_dir>/emulator.json.
"""

import json
import random
from typing import Any, Callable

from experiments.config import ExperimentConfig, command
from experiments.files import whole
from experiments.stages.emulate import emulated
from experiments.stages.run import Run, opened
from experiments.statistics import mean_interval, paired_difference, shown
from experiments.world import baselines
from experiments.world.baselines import sturdiest
from experiments.world.emulator import Emulator
from experiments.world.engineer import with_details
from experiments.world.search import shortlist
from experiments.world.tasks import HELD_OUT, Task
from twin import Workflow

# answers that are looked at: so many modes, so many draws of details for each
MODES, DETAILS = 20, 8


def answers(task: Task, rng: random.Random, config) -> list[Workflow]:
    """Promising modes and the sturdiest one, with details as an engineer draws them."""
    first = sturdiest(task)
    chosen = [*shortlist(task, config)[:MODES], *([first] if first else [])]
    return list(
        dict.fromkeys(with_details(task, mode, rng) for mode in chosen for _ in range(DETAILS))
    )


def choose(emulator: Emulator, task: Task, rng: random.Random, config) -> Workflow | None:
    """What the emulator values most; None where no mode has a chance."""
    options = answers(task, rng, config)
    if not options:
        return None
    return options[int(emulator([(task, w) for w in options])[0].argmax())]


def study(run: Run) -> dict[str, Any]:
    """Answers the held-out tasks and asks the twin what that is worth."""
    emulator, config = emulated(run), run.config.rldtf.reward
    found: dict[str, Any] = {
        "explained_variance": emulator.explained_variance,
        "accuracy": emulator.accuracy,
    }
    rng = random.Random(f"emulator {run.config.seed}")
    methods: dict[str, Callable] = {
        "emulator": lambda task: choose(emulator, task, rng, config),
        "sturdiest": sturdiest,
    }
    for split in filter(run.tasks.get, HELD_OUT):
        tasks = run.tasks[split]
        judged = {
            name: baselines.rewards(tasks, list(map(answer, tasks)), run.twins("evaluate"), config)
            for name, answer in methods.items()
        }
        found[split] = {
            name: {
                "fulfilment": float(good.mean()),
                "reward": float(R.mean()),
                "reward_interval": mean_interval(R),
            }
            for name, (R, good) in judged.items()
        }
        found[split]["gain"] = paired_difference(judged["emulator"][0], judged["sturdiest"][0])
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| | emulator: fulfilment | mean R | more than the sturdiest mode |",
        "|---|---|---|---|",
    ]
    for split in filter(found.get, HELD_OUT):
        row, (gain, interval) = found[split]["emulator"], found[split]["gain"]
        lines.append(
            f"| {split} | {row['fulfilment']:.3f} |"
            f" {shown([row['reward'], *row['reward_interval']])} |"
            f" {shown([gain, *interval], '+')} |"
        )
    return "\n".join(lines)


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        found = study(run)
        with whole(run.path("emulator.json")) as file:
            json.dump(found, file, indent=1)
        print(table(found))


if __name__ == "__main__":
    command(main)

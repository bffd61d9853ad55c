"""A model of the twin, fitted where it will be asked: to what rejection sampling was told, and
then, round by round, to what the twin says of the workflows that it likes best itself.

    python -m experiments.stages.emulate preset=quickstart [key=value ...]

A search on a model finds where the model flatters: after rejection sampling alone it promises 0.81
and the twin gives 0.61 for what it finds. Each round asks the twin about just that (the loop of
model-based optimisation), so promise and verdict come together.
"""

import json
import os
from typing import Sequence

import numpy as np

from experiments.config import ExperimentConfig, command
from experiments.files import exists, json_lines, whole
from experiments.stages.reject import all_sampled, reject
from experiments.stages.run import Run, opened, say
from experiments.world.baselines import rewards
from experiments.world.emulator import Emulator, fit, ran, verdicts
from experiments.world.imagine import looked_at
from experiments.world.orchestration import describe_workflow
from rldtf_jax.config import ConfigError

# of what a search has looked at, of which the twin is asked about one beside the very best
BEST = 8


def emulated(run: Run) -> Emulator:
    """The run's model of the twin; kept, so that all who go on have the same, and made from what is
    there after a kill.

    Raises:
      ConfigError: rejection sampling has left no samples.
    """
    path = run.path("emulator", "emulator.npz")
    if not exists(path):
        rows = all_sampled(run)
        if not rows:
            raise ConfigError(
                "rldtf.advantage = 'expected' or surrogate.sure: expected samples of rejection"
                " sampling, whose verdicts a model of the twin is fitted to"
            )
        os.makedirs(os.path.dirname(path), exist_ok=True)
        sampled = list(rows)
        for number in range(1, run.config.emulator.rounds + 1):
            said = run.path("emulator", f"round_{number}.jsonl")
            if not exists(said):
                ask(run, fitted(run, rows), sampled, rows, number, said)
            rows += json_lines(said)
        fitted(run, rows).save(path)
    return Emulator.load(path)


def fitted(run: Run, rows: Sequence[dict]) -> Emulator:
    data = verdicts(run.tasks_of("train"), rows)
    if len(np.unique(data.tasks)) < 2:
        raise ConfigError(
            f"reject: {len(data.rewards)} of {len(rows)} sampled responses can be run: expected"
            " some for two tasks at least, whose verdicts a model of the twin is fitted to; train"
            " phase 1 (instruct.sft) for longer"
        )
    emulator = fit(data, run.config.seed)
    say(
        f"emulator: {len(data.rewards)} verdicts; explains {emulator.explained_variance:.2f} of R's"
        " variance on tasks that it has not seen"
    )
    return emulator


def ask(
    run: Run,
    emulator: Emulator,
    sampled: Sequence[dict],
    known: Sequence[dict],
    number: int,
    path: str,
) -> None:
    """What the twin says of the best that a search finds from each of some samples, and of one
    other of its BEST: rows as `reject.sample_round` leaves them.
    """
    tasks, rng = run.tasks_of("train"), np.random.default_rng((run.config.seed, number, 2))
    readable = [(row["task"], w) for row, w in ran(tasks, sampled)]
    some = [readable[i] for i in rng.permutation(len(readable))[: run.config.emulator.starts]]
    found = looked_at(emulator, [tasks[i] for i, _ in some], [w for _, w in some])
    before = {(row["task"], w) for row, w in ran(tasks, known)}
    wanted = []
    for (i, _), seen in zip(some, found):
        best = sorted(seen, key=seen.get, reverse=True)[:BEST]
        wanted += [(i, best[0]), (i, best[rng.integers(len(best))])]
    pairs = [pair for pair in dict.fromkeys(wanted) if pair not in before]
    R, good = rewards(
        [tasks[i] for i, _ in pairs], [w for _, w in pairs], run.twin, run.config.rldtf.reward
    )
    promised = emulator([(tasks[i], w) for i, w in pairs])[0].mean()
    say(
        f"emulator: round {number}, of {len(pairs)} workflows that it likes it promises"
        f" {promised:.2f}, the twin gives {R.mean():.2f}"
    )
    with whole(path) as file:
        for (i, w), value, met in zip(pairs, R.tolist(), good.tolist()):
            file.write(
                json.dumps(
                    {
                        "task": int(i),
                        "response": describe_workflow(w),
                        "reward": value,
                        "fulfilled": met,
                    }
                )
                + "\n"
            )


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        reject(run)
        emulated(run)


if __name__ == "__main__":
    command(main)

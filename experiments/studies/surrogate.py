"""What a surrogate of the twin spares and where it is wrong: a run's emulator on the samples that
another seed's rejection sampling has had judged, of tasks that it has not seen.

    python -m experiments.studies.surrogate RUN OTHER [--json FILE]

For several `surrogate.sure`: the share of the verdicts that the twin is not asked for, the share of
these that are wrong, each way, and fulfilment and mean R as they are told and as they are.
"""

from typing import Any, Collection, Sequence

import numpy as np

from experiments.config import guarded, of_run, of_runs
from experiments.files import leave
from experiments.stages.emulate import emulated
from experiments.stages.reject import all_sampled
from experiments.stages.run import opened
from experiments.statistics import wilson
from experiments.world.emulator import ran
from experiments.world.surrogate import Surrogate
from experiments.world.tasks import Task
from rldtf_jax.config import ConfigError
from twin import Workflow

SURE = (0.9, 0.95, 0.98, 0.99, 0.999)


def judged(
    run_dir: str, known: Collection[Task]
) -> tuple[list[tuple[Task, Workflow]], np.ndarray, np.ndarray]:
    """(tasks and workflows, R, fulfilled) of all that a run's rounds have sampled and could run,
    but for known tasks.
    """
    with opened(of_run(run_dir), start_twin=False, shared=True) as run:
        tasks = run.tasks_of("train")
        rows = [row for row in ran(tasks, all_sampled(run)) if tasks[row[0]["task"]] not in known]
    if not rows:
        raise ConfigError(f"{run_dir}: no samples; expected a run after rejection sampling")
    return (
        [(tasks[row["task"]], workflow) for row, workflow in rows],
        np.array([row["reward"] for row, _ in rows]),
        np.array([row["fulfilled"] for row, _ in rows]),
    )


def at(surrogate: Surrogate, pairs: Sequence[tuple[Task, Workflow]], R_N, good_N) -> dict[str, Any]:
    """What it spares of the verdicts on these workflows, and what comes of it."""
    found = surrogate(pairs)
    spared = found.sure_N
    told = np.where(spared, found.fulfilled_N, good_N)
    wrong, flattered = told != good_N, told & ~good_N
    number = max(1, int(spared.sum()))
    return {
        "sure": surrogate.sure,
        "spared": float(spared.mean()),
        "wrong": [float(wrong.sum() / number), *wilson(int(wrong.sum()), number)],
        "flattered": float(flattered.sum() / number),
        "fulfilment": [float(told.mean()), float(good_N.mean())],
        "reward": [float(np.where(spared, found.reward_N, R_N).mean()), float(R_N.mean())],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| sure | verdicts spared | wrong, of these | of them flattering | fulfilment told, true |"
        " mean R told, true |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share, low, high = row["wrong"]
        (told, true), (said, R) = row["fulfilment"], row["reward"]
        lines.append(
            f"| {row['sure']:g} | {row['spared']:.3f} | {share:.4f} [{low:.4f}, {high:.4f}] |"
            f" {row['flattered']:.4f} | {told:.3f}, {true:.3f} | {said:.3f}, {R:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = of_runs(__doc__)
    parser.add_argument("run", help="whose emulator is asked; fitted first if there is none")
    parser.add_argument("other", help="whose samples it is asked about")
    asked = parser.parse_args()
    with opened(of_run(asked.run), shared=True) as run:
        emulator, known = emulated(run), set(run.tasks_of("train"))
    pairs, R_N, good_N = judged(asked.other, known)
    rows = [at(Surrogate(emulator, sure, 0.0), pairs, R_N, good_N) for sure in SURE]
    print(f"{len(pairs)} verdicts\n\n{table(rows)}")
    leave({"verdicts": len(pairs), "rows": rows}, asked.json)


if __name__ == "__main__":
    guarded(main)

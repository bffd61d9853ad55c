"""Eight arms together against eight runs one after the other: python -m
experiments.benchmarks.ablate_speed [key=value ...]

Both are commands as a user types them, each with nothing compiled and a cache of the twin of its
own (runs of one directory share one if nothing is said), on the same cores, from one model after
rejection sampling (trained first in run_dir if it is not there); both end with the evaluation of
every arm on held-out tasks. "Cold" from an empty cache, "warm" once more with the cache that this
has left. The results must be the same to the bit. Leaves ablate_speed.json in run_dir: how many
simulations the k-th arm adds to those before it, and seconds, their ratio, and where they went:
  start      processes, imports, the twin's workers, reading the stages before;
  compile    the first step beyond a usual one;
  twin       what the steps waited for the twin at most (it works while the device does);
  steps      all else of the steps;
  rest       saving, evaluation, report.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time

import numpy as np
from safetensors.numpy import load_file

from experiments import config as configs
from experiments.files import whole
from experiments.stages.machine import processor
from experiments.stages.reject import reject
from experiments.stages.rldtf import train_critic
from experiments.studies import ablate
from experiments.studies.grid import SweepConfig, cells
from rldtf_jax import metrics

AXES = {"alpha": (0.5, 1.0, 2.0, 4.0), "threshold": (0.05, 0.2)}
OVERRIDES = [
    "preset=leave-one-out",
    "run_dir=runs/ablate_speed",
    "tasks.validation=24",
    "tasks.test=50",
    "evaluate.batch_size=50",
    "rldtf.steps=20",
    "rldtf.weight_by=sensitivity",
]


def command(name: str, values: dict, arguments: list[str], directory: str, warm: bool) -> float:
    """Runs experiments.studies.ablate in a process of its own, from an empty cache or, warm, from
    the one that it left before; seconds.
    """
    shutil.rmtree(os.path.join(directory, "sweeps", name), ignore_errors=True)
    cache = os.path.join(directory, f"{name}.sqlite")
    for path in () if warm else (cache, f"{cache}-wal", f"{cache}-shm"):
        if os.path.exists(path):
            os.remove(path)
    start = time.monotonic()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.studies.ablate",
            *(f"{k}={','.join(map(str, v))}" for k, v in values.items()),
            *arguments,
            f"sweep={name}",
            f"twin.cache={cache}",
        ],
        check=True,
    )
    return time.monotonic() - start


def spent(config: SweepConfig, names: list[str], seconds: float) -> dict[str, float]:
    """Where the seconds of these sweeps went."""
    parts = dict.fromkeys(("compile", "twin", "steps"), 0.0) | {"simulated": 0, "evaluations": 0}
    for name in names:
        root = os.path.join(config.run_dir, "sweeps", name, "rounds")
        (one,) = os.listdir(root)
        rows = metrics.read(os.path.join(root, one))
        usual = statistics.median(row["step_seconds"] for row in rows[2:])
        steps, twin = (
            sum(row["step_seconds"] for row in rows),
            sum(row["twin/seconds"] for row in rows),
        )
        compiling = max(0.0, rows[0]["step_seconds"] - usual)
        parts["compile"] += compiling
        parts["twin"] += min(twin, steps - compiling)
        parts["steps"] += max(0.0, steps - compiling - twin)
        parts["simulated"] += sum(row["twin/simulated"] for row in rows)
        parts["evaluations"] += sum(row["twin/distinct"] for row in rows)
    return parts | {
        "start and rest": seconds - parts["compile"] - parts["twin"] - parts["steps"],
        "total": seconds,
    }


def added(caches: list[str]) -> list[int]:
    """How many rows each of the twin's caches holds that those before it do not."""
    seen: set[bytes] = set()
    counts = []
    for path in caches:
        with contextlib.closing(sqlite3.connect(path)) as database:
            keys = {key for (key,) in database.execute("SELECT key FROM results")}
        counts.append(len(keys - seen))
        seen |= keys
    return counts


def main(arguments: list[str]) -> dict:
    arguments = OVERRIDES + arguments
    config = configs.load(arguments, SweepConfig)
    with ablate.run_of(config) as run:
        train_critic(run, reject(run))
    grid = cells(config, AXES)
    names = [f"alone_{i}" for i in range(len(grid))]

    def weights(sweep, cell):
        return load_file(
            os.path.join(
                config.run_dir, "sweeps", sweep, "arms", cell.name, "model", "model.safetensors"
            )
        )

    result: dict = {
        "processor": processor(),
        "arms": len(grid),
        "steps": config.rldtf.steps,
        "rollouts a step": config.rldtf.prompts_per_step * config.rldtf.samples_per_prompt,
    }
    for kind in ("cold", "warm"):
        alone = sum(
            command(
                name,
                {key: (value,) for key, value in cell.values.items()},
                arguments,
                config.run_dir,
                kind == "warm",
            )
            for name, cell in zip(names, grid)
        )
        together = command("together", AXES, arguments, config.run_dir, kind == "warm")
        for name, cell in zip(names, grid):
            one, other = weights(name, cell), weights("together", cell)
            if not all(np.array_equal(one[key], other[key]) for key in one):
                raise AssertionError(f"{cell.name}: alone and together ended with other weights")
        result[kind] = {
            "alone": spent(config, names, alone),
            "together": spent(config, ["together"], together),
            "ratio": alone / together,
        }
        if kind == "cold":
            result["simulations that the k-th arm adds"] = added(
                [os.path.join(config.run_dir, f"{name}.sqlite") for name in names]
            )
    with whole(os.path.join(config.run_dir, "ablate_speed.json")) as file:
        json.dump(result, file, indent=1)
    return result


if __name__ == "__main__":
    configs.guarded(lambda: print(json.dumps(main(sys.argv[1:]), indent=1)))

"""A sweep over the token weights' alpha and threshold, or any other traced hyper-parameter, and its
report.

    python -m experiments.studies.ablate alpha=0,0.5,1,2,4 threshold=0,0.05,0.1,0.2 seeds=5 [policy.lr=1e-4,4e-4 ...] [key=value ...]

All arms (axis x axis x seed) start from the run directory's model after rejection sampling, which
is made first if it is not there, and train together: see rldtf_jax/arms.py. Arms that are done are
not repeated; a killed sweep goes on. Leaves <run_dir>/sweeps/<sweep>/report.html, arms.csv,
arms.parquet, curves.parquet, figures/ and a directory per arm.

A sweep in parts, on many machines with one file system: `ray=ADDRESS rounds=N` makes N parts, each
a Ray task; experiments.studies.multirun makes every arm a Hydra job.
"""  # noqa: E501

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import os
import sys
import time
from typing import Any, Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from experiments import config as configs
from experiments.config import ExperimentConfig
from experiments.files import whole
from experiments.stages.evaluate import summarise
from experiments.stages.reject import reject
from experiments.stages.rldtf import practice_environment, train_critic
from experiments.stages.run import Run, opened, respond, say
from experiments.studies import ablate_report
from experiments.studies.grid import Cell, SweepConfig, arm_path, cells, is_done, split_axes
from experiments.world.environment import TwinEnvironment
from experiments.world.tasks import HELD_OUT
from rldtf_jax import arms as training
from rldtf_jax import hf, metrics
from rldtf_jax.config import ConfigError, differences, flat
from rldtf_jax.judge import Arm
from rldtf_jax.loop import MAX_SKIPPED_IN_A_ROW, Diverged
from rldtf_jax.loop import run as run_loop
from rldtf_jax.rldtf import rldtf_step

EVALUATED = {"validation": 1} | dict.fromkeys(HELD_OUT, 2)  # split: salt of its sampling keys


@dataclasses.dataclass(frozen=True)
class Round:
    """Arms that train together. `path` keeps its round.json, checkpoints and metrics."""

    path: str
    arms: tuple[str, ...]
    width: int


def rounds(config: SweepConfig, grid: Sequence[Cell], plan) -> list[Round]:
    """The rounds with arms still to train: those begun before, then new ones for arms in none.

    plan: number of arms -> `rldtf_jax.arms.Plan`, called if there are new ones.

    Raises:
      ConfigError: an arm of this name was made with another config.
    """
    made = {cell.name: flat({"rldtf": cell.config, "seed": cell.seed}) for cell in grid}
    for name, asked in made.items():
        if os.path.exists(path := arm_path(config, name, "config.json")):
            with open(path, encoding="utf-8") as file:
                if different := differences(json.load(file), asked):
                    raise ConfigError(
                        f"{path}: made with another config, {different[0]}; choose another"
                        " sweep=NAME"
                    )
    root = os.path.join(config.directory, "rounds")
    begun = [
        _read_round(os.path.dirname(path))
        for path in sorted(glob.glob(os.path.join(root, "*", "round.json")))
    ]
    missing = {cell.name for cell in grid if not is_done(config, cell.name)}
    open_rounds = [r for r in begun if missing.intersection(r.arms)]
    fresh = [
        cell.name
        for cell in grid
        if cell.name in missing.difference(*(r.arms for r in open_rounds))
    ]
    if fresh:
        planned = plan(len(fresh))
        number = max(config.rounds or 1, -(-len(fresh) // planned.together))
        say(
            f"sweep: {len(fresh)} arms in {number} round{'s' * (number > 1)}, {planned.width} side"
            " by side"
        )
        for part in np.array_split(fresh, min(number, len(fresh))):
            names = part.tolist()
            digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
            wanted, devices = min(config.width or planned.width, len(names)), jax.device_count()
            new = Round(os.path.join(root, digest), tuple(names), -(-wanted // devices) * devices)
            for name in names:
                os.makedirs(arm_path(config, name), exist_ok=True)
                with whole(arm_path(config, name, "config.json")) as file:
                    json.dump(made[name], file, indent=1)
            os.makedirs(new.path, exist_ok=True)
            with whole(os.path.join(new.path, "round.json")) as file:
                json.dump({"arms": names, "width": new.width}, file, indent=1)
            open_rounds.append(new)
    return open_rounds


def _read_round(path: str) -> Round:
    with open(os.path.join(path, "round.json"), encoding="utf-8") as file:
        record = json.load(file)
    return Round(path, tuple(record["arms"]), record["width"])


def trained_arms(run: Run, grid: Sequence[Cell]) -> list[Arm]:
    """Arms share tasks, tokenizer and twin; each seed has an order of the tasks of its own."""
    by_seed = {
        seed: practice_environment(run, grid[0].config, seed)
        for seed in {cell.seed for cell in grid}
    }
    return [Arm(cell.config, cell.seed, by_seed[cell.seed]) for cell in grid]


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
    """Waits until no other process is in a block of this path."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare(run: Run, config: SweepConfig, grid: Sequence[Cell]) -> list[Round]:
    """What is still to do, after the stages that all arms start from."""
    with alone(run.path("sweep.lock")):
        policy = reject(run)
        critic = train_critic(run, policy)
        return rounds(
            config,
            grid,
            lambda number: training.plan(
                policy, critic, trained_arms(run, grid[:1])[0], number, training.arm_mesh()
            ),
        )


def train_round(run: Run, config: SweepConfig, grid: Sequence[Cell], one: Round) -> None:
    """Trains the arms of a round, from its last step if it was begun, and evaluates them."""
    with alone(os.path.join(one.path, "lock")):
        if not all(is_done(config, name) for name in one.arms):
            _train_round(run, config, grid, one)


def _train_round(run: Run, config: SweepConfig, grid: Sequence[Cell], one: Round) -> None:
    by_name = {cell.name: cell for cell in grid}
    if gone := sorted(set(one.arms) - set(by_name)):
        raise ConfigError(
            f"{one.path}: begun with the arm {gone[0]}, which is not asked for; ask for it as well,"
            " or choose another sweep=NAME"
        )
    chosen = [by_name[name] for name in one.arms]
    arms, mesh = trained_arms(run, chosen), training.arm_mesh(one.width)
    policy = reject(run)
    models, states = training.initial(policy, train_critic(run, policy), arms, one.width, mesh)
    first = arms[0].config
    try:
        states = run_loop(
            lambda states, step: rldtf_step(models, arms, states, step),
            states,
            steps=first.steps,
            directory=one.path,
            save_every=first.save_every,
            keep=first.keep,
            title=f"{len(arms)} arms",
            identity={
                "arms": {cell.name: {"config": cell.config, "seed": cell.seed} for cell in chosen}
            },
            position=lambda step: {"data": step * first.prompts_per_step},
            show=("reward", "fulfilled", "running", "twin/simulated"),
            **run.config.loop_options | {"sweep": config.sweep},
        )
    except Diverged as error:
        say(str(error).partition(";")[0])
        states = None
    environments = {split: run.environment(split) for split in EVALUATED if run.tasks.get(split)}
    rows = metrics.read(one.path)
    seconds = sum(row["step_seconds"] for row in rows) / len(chosen)
    simulated = sum(row.get("twin/simulated", 0) for row in rows) / len(chosen)
    for i, cell in enumerate(chosen):
        if is_done(config, cell.name):
            continue
        begun, before = time.monotonic(), run.twin.stats.simulated
        with whole(arm_path(config, cell.name, metrics.JSONL)) as file:
            file.writelines(
                json.dumps({"step": row["step"], **row["arms"][i]}) + "\n" for row in rows
            )
        state = None if states is None else training.take(models, states, i)
        if state is None or state.learner.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            result = {"diverged": True}
        else:
            model = nnx.merge(models.static.policy_def, models.policy(state))
            if not os.path.isdir(arm_path(config, cell.name, "model")):
                hf.save(model, arm_path(config, cell.name, "model"))
            result = evaluate(run, environments, model)
        cost = {
            "seconds": seconds + time.monotonic() - begun,
            "simulated": simulated + run.twin.stats.simulated - before,
            "arms_together": len(chosen),
        }
        with whole(arm_path(config, cell.name, "evaluation.json")) as file:
            json.dump(result | {"values": cell.values, "seed": cell.seed, "cost": cost}, file)


def evaluate(run: Run, environments: dict[str, TwinEnvironment], model) -> dict[str, Any]:
    """One response to every task of validation and of the held-out splits, at the config's
    temperature and, under "greedy", the most likely one: summary and each task's verdict. All arms
    draw with the same keys.
    """

    def at(temperature: float) -> dict[str, Any]:
        found = {}
        for split, environment in environments.items():
            verdict = respond(
                run,
                model,
                environment,
                range(len(environment.tasks)),
                salt=EVALUATED[split],
                temperature=temperature,
            ).verdict
            found[split] = summarise(verdict) | {
                "task_fulfilled": verdict.fulfilled_M.tolist(),
                "task_reward": verdict.reward_M.tolist(),
            }
        return found

    return {"diverged": False, **at(run.config.evaluate.temperature), "greedy": at(0.0)}


def not_read_before(config: ExperimentConfig) -> tuple[str, ...]:
    """Config keys that change nothing of the stages before RLDTF: a sweep may differ in them from
    the run it starts from.
    """
    return (
        "tensorboard",
        "wandb",
        "mlflow",
        "twin.cache",
        "twin.workers",
        *(
            f"rldtf.{name}"
            for name in flat(config.rldtf)
            if not name.startswith("reward.") and name != "sample.max_new_tokens"
        ),
    )


def sweep(config: SweepConfig, axes: dict[str, tuple]) -> None:
    """Trains what is missing and writes the report."""
    grid = cells(config, axes)
    train(config, grid)
    for line in ablate_report.write(config, axes, grid):
        print(line)


def train(config: SweepConfig, grid: Sequence[Cell], own_cache: bool = False) -> None:
    """Trains the arms that are not done. own_cache: rounds don't share the run's cache of the twin,
    which is for one machine.
    """
    training.check([cell.config for cell in grid])
    if all(is_done(config, cell.name) for cell in grid):
        return
    if config.ray is not None:
        on_ray(config, grid)
        return
    with run_of(config) as run:
        todo = prepare(run, config, grid)
        for one in () if own_cache else todo:
            train_round(run, config, grid, one)
    for one in todo if own_cache else ():
        with run_of(config, one) as run:
            train_round(run, config, grid, one)


def run_of(config: SweepConfig, one: Round | None = None) -> contextlib.AbstractContextManager[Run]:
    """The run that the sweep starts from; with the round's own cache of the twin, if one is
    named.
    """
    experiment = config.experiment
    if one is not None:
        twin = dataclasses.replace(experiment.twin, cache=os.path.join(one.path, "twin.sqlite"))
        experiment = dataclasses.replace(experiment, twin=twin)
    return opened(experiment, may_differ=not_read_before(experiment), shared=True)


def on_ray(config: SweepConfig, grid: Sequence[Cell]) -> None:
    """Each round as a Ray task that takes a machine, on a file system that all machines share. The
    first task prepares, so that the plan is one of such a machine, and this process keeps no
    device.
    """
    import ray

    ray.init(None if config.ray == "local" else config.ray, ignore_reinit_error=True)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        task = ray.remote(
            max_retries=3,
            scheduling_strategy="SPREAD",
            num_cpus=min(node.get("CPU", 1) for node in nodes),
            num_gpus=min(node.get("GPU", 0) for node in nodes),
        )(_on_ray)
        todo = ray.get(task.remote(os.getcwd(), config, grid, None))
        ray.get([task.remote(os.getcwd(), config, grid, one) for one in todo])
    finally:
        ray.shutdown()


def _on_ray(
    directory: str, config: SweepConfig, grid: Sequence[Cell], one: Round | None
) -> list[Round] | None:
    os.chdir(directory)
    with run_of(config, one) as run:
        if one is None:
            return prepare(run, config, grid)
        train_round(run, config, grid, one)
    return None


def main(arguments: Sequence[str]) -> None:
    def parsed(others: list[str]):
        axes, others = split_axes(others)
        return configs.load(others, SweepConfig), axes

    configs.command(lambda both: sweep(*both), loaded=lambda: parsed(list(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])

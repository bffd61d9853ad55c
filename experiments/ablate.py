"""A sweep over the token weights' alpha and threshold, or any other traced hyper-parameter, and its report.

    python -m experiments.ablate alpha=0,0.5,1,2,4 threshold=0,0.05,0.1,0.2 seeds=5 [policy.lr=1e-4,4e-4 ...] [key=value ...]

All arms (axis x axis x seed) start from the run directory's model after rejection sampling, which is made first if it is not
there, and train together: see rldtf_jax/arms.py. Arms that are done are not repeated; a killed sweep goes on. Leaves
<run_dir>/sweeps/<sweep>/report.html, arms.csv, arms.parquet, curves.parquet, figures/ and a directory per arm.

A sweep in parts, on many machines with one file system: `ray=ADDRESS rounds=N` makes N parts, each a Ray task;
experiments.multirun makes every arm a Hydra job.
"""

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import itertools
import json
import os
import sys
import time
from typing import Any, Iterator, NamedTuple, Sequence

import jax
import numpy as np
from flax import nnx

from rldtf_jax import arms as training
from rldtf_jax import hf, lora, metrics
from rldtf_jax.arms import Arm
from rldtf_jax.config import ConfigError, RLDTFConfig, build, differences, flat
from rldtf_jax.loop import MAX_SKIPPED_IN_A_ROW, Diverged, run as run_loop

from experiments import config as configs
from experiments import stages
from experiments.config import ExperimentConfig, MeshConfig
from experiments.environment import TwinEnvironment
from experiments.evaluate import summarise
from experiments.files import whole

ONLY_WEIGHTS = ("threshold", "lam", "num_perturb", "delete_prob")  # nothing of these is felt where alpha = 0

EVALUATED = {"validation": 1, "test": 2}  # split: salt of its sampling keys


@dataclasses.dataclass(frozen=True)
class SweepConfig(ExperimentConfig):
    """A run and what a sweep adds to it."""

    sweep: str = "ablate"
    seeds: int = 1  # of RLDTF: order of the tasks, sampling, perturbations; the stages before are shared
    first_seed: int = 0
    width: int | None = None  # arms side by side in one program; None: planned from its memory
    rounds: int | None = None  # parts that train one after the other, or one on each machine; None: by memory
    ray: str | None = None  # address of a Ray cluster ("local" starts one here) whose tasks are the rounds

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "width", "rounds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected an integer >= 1")
        if self.translator != "grammar":
            raise ConfigError(f"translator = {self.translator!r}: expected 'grammar' in a sweep, whose arms share the judge")
        if self.mesh != MeshConfig():
            raise ConfigError("mesh: expected no axes in a sweep; arms are split over all devices")

    @property
    def experiment(self) -> ExperimentConfig:
        """What the stages before RLDTF are: those of a run that is part of no sweep."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(ExperimentConfig)}
        return ExperimentConfig(**fields | {"sweep": None})

    @property
    def directory(self) -> str:
        return os.path.join(self.run_dir, "sweeps", self.sweep)


class Cell(NamedTuple):
    """An arm by name: the values on the axes, and the seed."""

    name: str
    values: dict[str, float]
    config: RLDTFConfig
    seed: int


def split_axes(arguments: Sequence[str]) -> tuple[dict[str, tuple], list[str]]:
    """({hyper-parameter: values}, the other arguments) of `alpha=0,1 policy.lr=1e-4,2e-4 rldtf.clip=0.1,0.2 run_dir=x`."""
    axes, others = {}, []
    for argument in arguments:
        key, _, values = argument.partition("=")
        name = key.removeprefix("rldtf.")
        if name not in training.TRACED or (key != name and "," not in values):
            if "," in values and key.startswith("rldtf."):
                raise ConfigError(f"{key} = {values}: this cannot be swept in one program; expected one of "
                                  f"{', '.join(training.TRACED)} (others: experiments.multirun)")
            others.append(argument)
            continue
        try:
            axes[name] = tuple(dict.fromkeys(map(_number, values.split(","))))
        except ValueError:
            raise ConfigError(f"{key} = {values}: expected numbers separated by commas") from None
    return axes, others


def _number(text: str) -> int | float:
    value = json.loads(text)
    if type(value) not in (int, float):
        raise ValueError(text)
    return value


def cells(config: SweepConfig, axes: dict[str, tuple]) -> list[Cell]:
    """The distinct arms of the grid: with alpha = 0 the other parameters of the weights change nothing."""
    found = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values))
        if chosen.get("alpha", config.rldtf.alpha) == 0:
            chosen = {name: value for name, value in chosen.items() if name not in ONLY_WEIGHTS}
        tree = dataclasses.asdict(config.rldtf)
        for name, value in chosen.items():
            *path, last = name.split(".")
            node = tree
            for key in path:
                node = node[key]
            node[last] = value
        rldtf_config = build(RLDTFConfig, tree, "rldtf")
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            name = f"{','.join(f'{key}={value:g}' for key, value in chosen.items())},seed={seed}".removeprefix(",")
            if name in found and found[name].values != chosen:
                raise ConfigError(f"{name}: two values of an axis read the same; expected at most six digits")
            found[name] = Cell(name, chosen, rldtf_config, seed)
    return list(found.values())


def arm_path(config: SweepConfig, name: str, *parts: str) -> str:
    return os.path.join(config.directory, "arms", name, *parts)


def is_done(config: SweepConfig, name: str) -> bool:
    return os.path.exists(arm_path(config, name, "evaluation.json"))


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
                    raise ConfigError(f"{path}: made with another config, {different[0]}; choose another sweep=NAME")
    root = os.path.join(config.directory, "rounds")
    begun = [_read_round(os.path.dirname(path)) for path in sorted(glob.glob(os.path.join(root, "*", "round.json")))]
    missing = {cell.name for cell in grid if not is_done(config, cell.name)}
    open_rounds = [r for r in begun if missing.intersection(r.arms)]
    fresh = [cell.name for cell in grid if cell.name in missing.difference(*(r.arms for r in open_rounds))]
    if fresh:
        planned = plan(len(fresh))
        number = max(config.rounds or 1, -(-len(fresh) // planned.together))
        stages.say(f"sweep: {len(fresh)} arms in {number} round{'s' * (number > 1)}, {planned.width} side by side")
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


def trained_arms(run: stages.Run, grid: Sequence[Cell]) -> list[Arm]:
    """Arms share tasks, tokenizer and twin; each seed has an order of the tasks of its own."""
    by_seed = {seed: run.environment("train", seed) for seed in {cell.seed for cell in grid}}
    return [Arm(cell.config, cell.seed, by_seed[cell.seed]) for cell in grid]


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
    """Waits until no other process is in a block of this path."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare(run: stages.Run, config: SweepConfig, grid: Sequence[Cell]) -> list[Round]:
    """What is still to do, after the stages that all arms start from."""
    with alone(run.path("sweep.lock")):
        policy = stages.reject(run)
        critic = stages.train_critic(run, policy)
        return rounds(config, grid, lambda number: training.plan(
            policy, critic, trained_arms(run, grid[:1])[0], number, training.arm_mesh()))


def train_round(run: stages.Run, config: SweepConfig, grid: Sequence[Cell], one: Round) -> None:
    """Trains the arms of a round, from its last step if it was begun, and evaluates them."""
    with alone(os.path.join(one.path, "lock")):
        if not all(is_done(config, name) for name in one.arms):
            _train_round(run, config, grid, one)


def _train_round(run: stages.Run, config: SweepConfig, grid: Sequence[Cell], one: Round) -> None:
    by_name = {cell.name: cell for cell in grid}
    if gone := sorted(set(one.arms) - set(by_name)):
        raise ConfigError(f"{one.path}: begun with the arm {gone[0]}, which is not asked for; ask for it as well, or choose "
                          "another sweep=NAME")
    chosen = [by_name[name] for name in one.arms]
    arms, mesh = trained_arms(run, chosen), training.arm_mesh(one.width)
    policy = stages.reject(run)
    static, groups, frozen = training.initial(policy, stages.train_critic(run, policy), arms, one.width, mesh)
    first = arms[0].config
    try:
        groups = run_loop(
            lambda state, step: training.arms_step(static, arms, state, step, frozen, mesh), groups, steps=first.steps,
            directory=one.path, save_every=first.save_every, keep=first.keep, title=f"{len(arms)} arms",
            identity={"arms": {cell.name: {"config": cell.config, "seed": cell.seed} for cell in chosen}},
            position=lambda step: {"data": step * first.prompts_per_step}, show=("reward", "fulfilled", "running", "twin/simulated"),
            **run.config.loop_options | {"sweep": config.sweep})
    except Diverged as error:
        stages.say(str(error).partition(";")[0])
        groups = None
    environments = {split: run.environment(split) for split in EVALUATED}
    rows = metrics.read(one.path)
    seconds = sum(row["step_seconds"] for row in rows) / len(chosen)
    simulated = sum(row.get("twin/simulated", 0) for row in rows) / len(chosen)
    for i, cell in enumerate(chosen):
        if is_done(config, cell.name):
            continue
        begun, before = time.monotonic(), run.twin.stats.simulated
        with whole(arm_path(config, cell.name, metrics.JSONL)) as file:
            file.writelines(json.dumps({"step": row["step"], **row["arms"][i]}) + "\n" for row in rows)
        state = None if groups is None else training.take(groups, i)
        if state is None or state.learner.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            result = {"diverged": True}
        else:
            model = nnx.merge(static.policy_def, lora.merge(frozen.policy, state.learner.policy))
            if not os.path.isdir(arm_path(config, cell.name, "model")):
                hf.save(model, arm_path(config, cell.name, "model"))
            result = evaluate(run, environments, model)
        cost = {"seconds": seconds + time.monotonic() - begun, "simulated": simulated + run.twin.stats.simulated - before,
                "arms_together": len(chosen)}
        with whole(arm_path(config, cell.name, "evaluation.json")) as file:
            json.dump(result | {"values": cell.values, "seed": cell.seed, "cost": cost}, file)


def evaluate(run: stages.Run, environments: dict[str, TwinEnvironment], model) -> dict[str, Any]:
    """One response to every validation and test task: summary and each task's verdict. All arms draw with the same keys."""
    result = {"diverged": False}
    for split, environment in environments.items():
        verdict = stages.respond(run, model, environment, range(len(environment.tasks)), salt=EVALUATED[split],
                                 temperature=run.config.evaluate.temperature).verdict
        result[split] = summarise(verdict) | {"task_fulfilled": verdict.fulfilled_M.tolist(),
                                              "task_reward": verdict.reward_M.tolist()}
    return result


def not_read_before(config: ExperimentConfig) -> tuple[str, ...]:
    """Config keys that change nothing of the stages before RLDTF: a sweep may differ in them from the run it starts from."""
    return ("tensorboard", "wandb", "twin.cache", "twin.workers", *(f"rldtf.{name}" for name in flat(config.rldtf)
                                               if not name.startswith("reward.") and name != "sample.max_new_tokens"))


def sweep(config: SweepConfig, axes: dict[str, tuple]) -> None:
    """Trains what is missing and writes the report."""
    from experiments import ablate_report

    for line in ablate_report.write(config, axes, train(config, axes)):
        print(line)


def train(config: SweepConfig, axes: dict[str, tuple], own_cache: bool = False) -> list[Cell]:
    """Trains the arms that are not done; returns all. own_cache: rounds don't share the run's cache of the twin, which is for
    one machine."""
    if not axes:
        raise ConfigError("expected at least one axis, such as alpha=0,1,2")
    grid = cells(config, axes)
    training.check([cell.config for cell in grid])
    if all(is_done(config, cell.name) for cell in grid):
        return grid
    if config.ray is not None:
        on_ray(config, grid)
        return grid
    with opened(config) as run:
        todo = prepare(run, config, grid)
        for one in () if own_cache else todo:
            train_round(run, config, grid, one)
    for one in todo if own_cache else ():
        with opened(config, one) as run:
            train_round(run, config, grid, one)
    return grid


def opened(config: SweepConfig, one: Round | None = None) -> contextlib.AbstractContextManager[stages.Run]:
    """The run that the sweep starts from; with the round's own cache of the twin, if one is named."""
    experiment = config.experiment
    if one is not None:
        twin = dataclasses.replace(experiment.twin, cache=os.path.join(one.path, "twin.sqlite"))
        experiment = dataclasses.replace(experiment, twin=twin)
    return stages.opened(experiment, may_differ=not_read_before(experiment))


def on_ray(config: SweepConfig, grid: Sequence[Cell]) -> None:
    """Each round as a Ray task that takes a machine, on a file system that all machines share. The first task prepares, so that
    the plan is one of such a machine, and this process keeps no device."""
    import ray

    ray.init(None if config.ray == "local" else config.ray, ignore_reinit_error=True)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        task = ray.remote(max_retries=3, scheduling_strategy="SPREAD", num_cpus=min(node.get("CPU", 1) for node in nodes),
                          num_gpus=min(node.get("GPU", 0) for node in nodes))(_on_ray)
        todo = ray.get(task.remote(os.getcwd(), config, grid, None))
        ray.get([task.remote(os.getcwd(), config, grid, one) for one in todo])
    finally:
        ray.shutdown()


def _on_ray(directory: str, config: SweepConfig, grid: Sequence[Cell], one: Round | None) -> list[Round] | None:
    os.chdir(directory)
    with opened(config, one) as run:
        return prepare(run, config, grid) if one is None else train_round(run, config, grid, one)


def main(arguments: Sequence[str]) -> None:
    def parsed(others: list[str]):
        axes, others = split_axes(others)
        return configs.load(others, SweepConfig), axes

    configs.command(lambda both: sweep(*both), loaded=lambda: parsed(list(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])

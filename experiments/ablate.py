"""A sweep over the token weights' alpha and threshold, or any other traced hyper-parameter, and its report.

    python -m experiments.ablate alpha=0,0.5,1,2,4 threshold=0,0.05,0.1,0.2 seeds=5 [policy.lr=1e-4,4e-4 ...] [key=value ...]

All arms (axis x axis x seed) start from the run directory's model after rejection sampling, which is made first if it is not
there, and train together: see rldtf_jax/arms.py. Arms that are done are not repeated; a killed sweep goes on. Leaves
<run_dir>/sweeps/<sweep>/report.html, arms.csv, arms.parquet, curves.parquet, figures/ and a directory per arm.

A sweep in parts, on many machines with one file system: `ray=ADDRESS rounds=N` makes N parts, each a Ray task;
experiments.multirun makes every arm a Hydra job.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import sys
from typing import Any, NamedTuple, Sequence

import numpy as np
from flax import nnx

from rldtf_jax import arms as training
from rldtf_jax import hf, lora, metrics
from rldtf_jax.arms import Arm
from rldtf_jax.config import ConfigError, RLDTFConfig, build, differences, flat
from rldtf_jax.loop import MAX_SKIPPED_IN_A_ROW, Diverged, run as run_loop

from experiments import config as configs
from experiments import stages
from experiments.config import ExperimentConfig
from experiments.evaluate import summarise
from experiments.files import whole

ONLY_WEIGHTS = ("threshold", "lam", "num_perturb", "delete_prob")  # nothing of these is felt where alpha = 0


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
        if dataclasses.asdict(self.mesh) != dataclasses.asdict(type(self.mesh)()):
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
            axes[name] = tuple(dict.fromkeys(json.loads(value) for value in values.split(",")))
        except json.JSONDecodeError:
            raise ConfigError(f"{key} = {values}: expected numbers separated by commas") from None
    return axes, others


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
            name = ",".join(f"{key}={value:g}" for key, value in chosen.items()) or "base"
            found[f"{name},seed={seed}"] = Cell(f"{name},seed={seed}", chosen, rldtf_config, seed)
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
    for cell in grid:
        path, asked = arm_path(config, cell.name, "config.json"), flat({"rldtf": cell.config, "seed": cell.seed})
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                if different := differences(json.load(file), asked):
                    raise ConfigError(f"{path}: made with another config, {different[0]}; choose another sweep=NAME")
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with whole(path) as file:
                json.dump(asked, file, indent=1)
    root = os.path.join(config.directory, "rounds")
    begun = [_read_round(os.path.join(root, name)) for name in sorted(os.listdir(root))] if os.path.isdir(root) else []
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
            new = Round(os.path.join(root, digest), tuple(names), min(config.width or planned.width, len(names)))
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


def train_round(run: stages.Run, config: SweepConfig, grid: Sequence[Cell], one: Round) -> None:
    """Trains the arms of a round, from its last step if it was begun, and evaluates them."""
    by_name = {cell.name: cell for cell in grid}
    if gone := sorted(set(one.arms) - set(by_name)):
        raise ConfigError(f"{one.path}: begun with the arm {gone[0]}, which is not asked for; ask for it as well, or choose "
                          "another sweep=NAME")
    chosen = [by_name[name] for name in one.arms]
    arms, mesh = trained_arms(run, chosen), training.arm_mesh()
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
    rows = metrics.read(one.path)
    for i, cell in enumerate(chosen):
        with whole(arm_path(config, cell.name, metrics.JSONL)) as file:
            file.writelines(json.dumps({"step": row["step"], **row["arms"][i]}) + "\n" for row in rows)
        state = None if groups is None else training.take(groups, i)
        if state is None or state.learner.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            result = {"diverged": True}
        else:
            model = nnx.merge(static.policy_def, lora.merge(frozen.policy, state.learner.policy))
            if not os.path.isdir(arm_path(config, cell.name, "model")):
                hf.save(model, arm_path(config, cell.name, "model"))
            result = evaluate(run, model)
        seconds = sum(row["step_seconds"] for row in rows) / len(chosen)
        simulated = sum(row.get("twin/simulated", 0) for row in rows) / len(chosen)
        with whole(arm_path(config, cell.name, "evaluation.json")) as file:
            json.dump(result | {"values": cell.values, "seed": cell.seed, "cost": {
                "seconds": seconds, "simulated": simulated, "arms_together": len(chosen)}}, file)


def evaluate(run: stages.Run, model) -> dict[str, Any]:
    """One response to every validation and test task: summary and each task's verdict. All arms draw with the same keys."""
    result = {"diverged": False}
    for split, salt in (("validation", 1), ("test", 2)):
        environment = run.environment(split)
        verdict = stages.respond(run, model, environment, range(len(environment.tasks)), salt=salt,
                                 temperature=run.config.evaluate.temperature).verdict
        result[split] = summarise(verdict) | {"task_fulfilled": verdict.fulfilled_M.tolist(),
                                              "task_reward": verdict.reward_M.tolist()}
    return result


def not_read_before(config: ExperimentConfig) -> tuple[str, ...]:
    """Config keys that the stages before RLDTF do not read: a sweep may differ in them from the run it starts from."""
    return ("tensorboard", "wandb", *(f"rldtf.{name}" for name in flat(config.rldtf)
                                               if not name.startswith("reward.") and name != "sample.max_new_tokens"))


def sweep(config: SweepConfig, axes: dict[str, tuple]) -> None:
    """Trains what is missing and writes the report."""
    from experiments import ablate_report

    for line in ablate_report.write(config, axes, train(config, axes)):
        print(line)


def train(config: SweepConfig, axes: dict[str, tuple]) -> list[Cell]:
    """Trains the arms that are not done; returns all."""
    if not axes:
        raise ConfigError("expected at least one axis, such as alpha=0,1,2")
    grid = cells(config, axes)
    training.check([cell.config for cell in grid])
    if not all(is_done(config, cell.name) for cell in grid):
        with opened(config) as run:
            policy = stages.reject(run)
            critic = stages.train_critic(run, policy)
            todo = rounds(config, grid, lambda number: training.plan(
                policy, critic, trained_arms(run, grid[:1])[0], number, training.arm_mesh()))
            if config.ray is None:
                for one in todo:
                    train_round(run, config, grid, one)
        if config.ray is not None:
            on_ray(config, grid, todo)
    return grid


def opened(config: SweepConfig):
    return stages.opened(config.experiment, may_differ=not_read_before(config.experiment))


def on_ray(config: SweepConfig, grid: Sequence[Cell], todo: Sequence[Round]) -> None:
    """Each round as a Ray task, with a twin cache of its own, on a file system that all machines share."""
    import ray

    ray.init(None if config.ray == "local" else config.ray, ignore_reinit_error=True)
    try:
        task = ray.remote(max_retries=3)(_round_on_ray)
        ray.get([task.remote(config, grid, one) for one in todo])
    finally:
        ray.shutdown()


def _round_on_ray(config: SweepConfig, grid: Sequence[Cell], one: Round) -> None:
    cache = os.path.join(one.path, "twin.sqlite")
    config = dataclasses.replace(config, twin=dataclasses.replace(config.twin, cache=cache))
    with stages.opened(config.experiment, may_differ=(*not_read_before(config.experiment), "twin.cache")) as run:
        train_round(run, config, grid, one)


def main(arguments: Sequence[str]) -> None:
    def parsed(others: list[str]):
        axes, others = split_axes(others)
        return configs.load(others, SweepConfig), axes

    configs.command(lambda both: sweep(*both), loaded=lambda: parsed(list(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])

"""A study: arms that differ in a line of config, over seeds of every stage that is trained, beside
the baselines.

    python -m experiments.studies.study pilot|weights [run_dir=runs/study] [key=value ...]

Each seed is a run of its own up to rejection sampling; its arms train from there, one after the
other so that each has a cost of its own (`ablate` with a round an arm), and are judged on all
splits, at temperature 1 and greedy. Seeds that choose an arm, by their validation tasks, are not
those that report what it gains. A killed study goes on. Leaves <run_dir>/study.md and study.json.
"""

import dataclasses
import json
import os
import sys
from typing import Any, Sequence

import numpy as np
from scipy import stats

from experiments import config as configs
from experiments.files import whole
from experiments.stages.run import say
from experiments.statistics import shown, with_nested_interval
from experiments.studies import ablate
from experiments.studies.grid import Cell, SweepConfig, arm_path, named
from experiments.studies.seeds import POOLED
from experiments.world import baselines
from experiments.world.tasks import HELD_OUT
from rldtf_jax import arms as training
from rldtf_jax.config import ConfigError

STUDIES = os.path.join(configs.CONFIGS, "study")
SWEEP = "study"
# of baselines.NAMES, those that ask no twin at answer time
NO_TWIN = ("random", "constant", "sturdiest", "rule")
TEMPERATURES = {"temperature 1": lambda result: result, "greedy": lambda result: result["greedy"]}


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """config: of every seed's run, as on a command line; arms: {name: the hyper-parameters of rldtf
    in which it differs}.
    """

    config: tuple[str, ...]
    choose: tuple[int, ...]
    report: tuple[int, ...]
    control: str
    arms: dict[str, dict]

    def __post_init__(self):
        if both := sorted(set(self.choose) & set(self.report)):
            raise ConfigError(
                f"report = {list(self.report)}: expected other seeds than those that choose,"
                f" {both[0]} does both"
            )
        if not self.report:
            raise ConfigError("report = []: expected at least one seed")
        if self.control not in self.arms:
            raise ConfigError(
                f"control = {self.control!r}: expected one of the arms, {', '.join(self.arms)}"
            )


def load(
    name: str, run_dir: str, overrides: Sequence[str]
) -> tuple[StudyConfig, dict[int, SweepConfig]]:
    """The study of configs/study/<name>.yaml and the config of each seed.

    Raises:
      ConfigError: a wrong key or value, of the study, of a run or of an arm.
    """
    study = configs.load([f"preset={name}"], StudyConfig, STUDIES, name)
    seeds = {
        seed: configs.load(
            [
                *study.config,
                *overrides,
                f"run_dir={os.path.join(run_dir, f'seed{seed}')}",
                f"seed={seed}",
                f"first_seed={seed}",
                f"sweep={SWEEP}",
                f"rounds={len(study.arms)}",
            ],
            SweepConfig,
        )
        for seed in (*study.choose, *study.report)
    }
    for config in seeds.values():
        training.check([cell.config for cell in named(config, study.arms)])
    return study, seeds


def run(name: str, run_dir: str, overrides: Sequence[str]) -> str:
    """Trains and judges what is missing; returns the report."""
    study, seeds = load(name, run_dir, overrides)
    for seed, config in seeds.items():
        say(f"study {name}: seed {seed} of {', '.join(map(str, seeds))}")
        ablate.train(config, named(config, study.arms))
    without = judged_baselines(seeds[study.report[0]], os.path.join(run_dir, "baselines.json"))
    found = findings(
        study,
        {
            seed: {cell.name: outcome(config, cell) for cell in named(config, study.arms)}
            for seed, config in seeds.items()
        },
        without,
    )
    with whole(os.path.join(run_dir, "study.json")) as file:
        json.dump(found, file, indent=1)
    with whole(os.path.join(run_dir, "study.md")) as file:
        file.write(report := table(name, study, found))
    return report


def judged_baselines(config: SweepConfig, path: str) -> dict[str, dict[str, list[float]]]:
    """{split: {method: R of each task}} on the noise of evaluation, kept in a file."""
    if not os.path.exists(path):
        with ablate.run_of(config) as opened:
            asked = baselines.methods(
                opened.tasks["train"],
                opened.tasks["validation"],
                opened.twins,
                config.rldtf.reward,
                config.seed,
            )
            twin = opened.twins("evaluate")
            rewards = {
                split: {
                    name: (
                        baselines.rewards(tasks, choose(tasks), twin, config.rldtf.reward)[
                            0
                        ].tolist()
                    )
                    for name, choose in asked.items()
                }
                for split in HELD_OUT
                if (tasks := opened.tasks.get(split))
            }
        with whole(path) as file:
            json.dump(rewards, file)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def outcome(config: SweepConfig, cell: Cell) -> dict[str, Any]:
    """What `ablate.evaluate` left of an arm."""
    with open(arm_path(config, cell.name, "evaluation.json"), encoding="utf-8") as file:
        return json.load(file)


def findings(
    study: StudyConfig,
    outcomes: dict[int, dict[str, dict]],
    without: dict[str, dict[str, list[float]]],
) -> dict[str, Any]:
    """The chosen arm and, of the seeds that report, each arm's R, its gain on the control, on the
    best baseline that asks no twin, and its cost. Values with 95 % intervals over seeds and tasks;
    an arm that diverged at one of these seeds has none.

    outcomes: {seed: {arm: `outcome`}}; without: of `judged_baselines`.
    """

    def sound(name: str, seeds: Sequence[int]) -> bool:
        return not any(outcomes[seed][name]["diverged"] for seed in seeds)

    def on_validation(name: str) -> float:
        return float(
            np.mean([outcomes[seed][name]["validation"]["task_reward"] for seed in study.choose])
        )

    def gain(difference_SxN: np.ndarray) -> dict[str, Any]:
        by_seed = difference_SxN.mean(1)
        p = (
            float(stats.ttest_1samp(by_seed, 0).pvalue)
            if len(by_seed) > 1 and np.ptp(by_seed) > 0
            else None
        )
        return {
            "reward": with_nested_interval(difference_SxN),
            "by_seed": by_seed.tolist(),
            "p_seeds": p,
        }

    def rewards(name: str, splits: Sequence[str], at) -> np.ndarray:  # (S, N)
        return np.array(
            [
                np.concatenate([at(outcomes[seed][name])[split]["task_reward"] for split in splits])
                for seed in study.report
            ]
        )

    candidates = [
        name
        for name in study.arms
        if name != study.control and study.choose and sound(name, study.choose)
    ]
    groups = {"all splits": tuple(without)} | {split: (split,) for split in without}
    if set(POOLED) <= set(without):
        groups |= {" + ".join(POOLED): POOLED}
    found: dict[str, Any] = {
        "chosen": max(candidates, key=on_validation, default=None),
        "validation": {name: on_validation(name) for name in candidates},
        "splits": {},
    }
    for title, splits in groups.items():
        known = {
            name: np.concatenate([without[split][name] for split in splits])[None]
            for name in without[splits[0]]
        }
        rule = max((name for name in known if name in NO_TWIN), key=lambda name: known[name].mean())
        arms: dict[str, Any] = {}
        for name in filter(lambda name: sound(name, study.report), study.arms):
            arms[name] = {}
            for temperature, at in TEMPERATURES.items():
                R = rewards(name, splits, at)
                arms[name][temperature] = {
                    "reward": with_nested_interval(R),
                    "on_best_baseline": gain(R - known[rule]),
                }
                if name != study.control and sound(study.control, study.report):
                    arms[name][temperature]["on_control"] = gain(
                        R - rewards(study.control, splits, at)
                    )
        found["splits"][title] = {
            "best_baseline": rule,
            "baselines": {name: with_nested_interval(R) for name, R in known.items()},
            "arms": arms,
        }
    found["cost"] = {
        name: {
            key: float(np.mean([outcomes[seed][name]["cost"][key] for seed in study.report]))
            for key in ("seconds", "simulated")
        }
        for name in study.arms
    }
    return found


def table(name: str, study: StudyConfig, found: dict[str, Any]) -> str:
    """Markdown."""

    lines = [
        f"# Study {name}",
        "",
        (
            f"Mean R of held-out tasks, {len(study.report)} seeds that report"
            f" ({', '.join(map(str, study.report))}); 95 % intervals over seeds and tasks,"
            " differences paired by both."
        ),
    ]
    if found["chosen"]:
        lines += [
            "",
            (
                f"Chosen by validation tasks of the seeds {', '.join(map(str, study.choose))}:"
                f" {found['chosen']}."
            ),
        ]
    for title, part in found["splits"].items():
        rule = baselines.NAMES[part["best_baseline"]]
        for temperature in TEMPERATURES:
            lines += [
                "",
                f"## {title}, {temperature}",
                "",
                f"| | mean R | more than {study.control} | p over seeds | more than the {rule} |",
                "|---|---|---|---|---|",
            ]
            for arm, rows in part["arms"].items():
                row = rows[temperature]
                more = row.get("on_control", {})
                p = more.get("p_seeds")
                lines.append(
                    f"| {arm} | {shown(row['reward'])} | {shown(more.get('reward'), '+')} |"
                    f" {'' if p is None else f'{p:.2f}'} |"
                    f" {shown(row['on_best_baseline']['reward'], '+')} |"
                )
            lines += [
                f"| {baselines.NAMES[method]} | {shown(values)} | | | |"
                for method, values in part["baselines"].items()
            ]
    lines += ["", "## Cost of an arm", "", "| | seconds | simulations |", "|---|---|---|"]
    lines += [
        f"| {arm} | {cost['seconds']:.0f} | {cost['simulated']:.0f} |"
        for arm, cost in found["cost"].items()
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    def parsed() -> tuple[str, str, list[str]]:
        names = sorted(file.removesuffix(".yaml") for file in os.listdir(STUDIES))
        if not arguments or arguments[0] not in names:
            raise ConfigError(
                f"{' '.join(arguments[:1])!r}: expected the name of a study, {' or '.join(names)}"
                " (configs/study/)"
            )
        run_dir = next(
            (a.partition("=")[2] for a in arguments if a.startswith("run_dir=")),
            os.path.join("runs", "study", arguments[0]),
        )
        return arguments[0], run_dir, [a for a in arguments[1:] if not a.startswith("run_dir=")]

    configs.command(lambda asked: print(run(*asked)), loaded=parsed)


if __name__ == "__main__":
    main(sys.argv[1:])

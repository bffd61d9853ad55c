"""What token weights cost: python -m experiments.studies.token_importance [key=value ...]

On the tiny preset with 64 responses and N = 2, after rejection sampling and 50 steps of RLDTF (trained first in run_dir, if
they have not been):
  cold      distinct simulations as a share of the sequences, at the first step and from an empty cache;
  warm      seconds of a weighted step over those of an unweighted one (alpha = 0) from the 50th step on: two trainings go
            on from there, step by step in turn, each with a twin and a copy of the cache of its own;
  timeline  what host, device and twin do during one weighted step, as a figure.
Leaves token_importance.json and timeline.png in run_dir.
"""

import contextlib
import dataclasses
import json
import sqlite3
import sys
import threading
import time

import jax
import numpy as np
from matplotlib import pyplot as plt

from rldtf_jax import rldtf
from twin import Twin

from experiments import config as configs
from experiments.files import whole
from experiments.stages.reject import reject
from experiments.stages.rldtf import train_rldtf, value_model
from experiments.stages.run import Run, opened, say
from experiments.statistics import mean_interval

STEPS, UNMEASURED = 20, 4  # after those trained before; the twin's workers compile in the first of them
OVERRIDES = ["preset=leave-one-out", "run_dir=runs/token_importance", "rldtf.num_perturb=2", "rldtf.prompts_per_step=64",
             "rldtf.steps=50", "rldtf.weight_by=sensitivity"]


class Timeline:
    """Spans of wrapped functions, by lane."""

    def __init__(self):
        self.spans, self._threads, self._undo = [], [], []

    def wrap(self, owner, name: str, lane: str, label: str, dispatched: bool = False) -> None:
        """dispatched: the call returns before its result is there; the span ends when it is."""
        function = getattr(owner, name)

        def timed(*arguments, **keywords):
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            if dispatched:
                self._threads.append(threading.Thread(target=self._wait, args=(result, lane, label, start)))
                self._threads[-1].start()
            else:
                self.spans.append((lane, label, start, time.perf_counter()))
            return result

        self._undo.append((owner, name, function))
        setattr(owner, name, timed)

    def _wait(self, result, lane, label, start):
        jax.block_until_ready(result)
        self.spans.append((lane, label, start, time.perf_counter()))

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        for owner, name, function in self._undo:
            setattr(owner, name, function)


class Training:
    """One training, step by step."""

    def __init__(self, run: Run, twin: Twin, policy, critic, alpha: float):
        self.config = dataclasses.replace(run.config.rldtf, alpha=alpha)
        self.env = dataclasses.replace(run, twin=twin).environment("train")
        self.models, state = rldtf.initial(policy, critic, self.config, run.config.seed)
        self.states, self.arm = (state,), rldtf.Arm(self.config, run.config.seed, self.env)
        self.seconds, self.stats = [], []

    def step(self, number: int) -> None:
        start = time.perf_counter()
        self.states, metrics = rldtf.rldtf_step(self.models, [self.arm], self.states, number)
        jax.block_until_ready(self.states)
        self.seconds.append(time.perf_counter() - start)
        self.stats.append({name.removeprefix("twin/"): value for name, value in metrics["runtime"].items()})


def timeline(training: Training, number: int, path: str) -> dict[str, float]:
    """Draws one step of the training; seconds by label."""
    record = Timeline()
    record.wrap(rldtf, "sample_on_host", "device", "sample")
    record.wrap(rldtf, "old_states", "device", "critic, reference", dispatched=True)
    record.wrap(rldtf, "update", "device", "update", dispatched=True)
    record.wrap(rldtf, "perturb", "host", "perturb")
    record.wrap(training.env, "texts", "host", "decode")
    record.wrap(training.env, "judge_text", "host", "translate, parse and below")
    record.wrap(training.env, "judge_readings", "host", "deduplicate, ask, reward")
    record.wrap(training.env.twin, "evaluate", "twin", "simulate")
    start = time.perf_counter()
    training.step(number)
    record.close()
    end = time.perf_counter()
    figure, axis = plt.subplots(figsize=(10, 3), layout="constrained")
    spans = sorted(record.spans, key=lambda span: span[2])
    rows = list(dict.fromkeys(f"{lane}: {label}" for lane, label, *_ in spans))
    for lane, label, begin, finish in spans:
        bar = axis.barh(rows.index(f"{lane}: {label}"), finish - begin, left=begin - start,
                        color={"device": "C0", "host": "C1", "twin": "C2"}[lane])
        axis.bar_label(bar, [f"{1e3 * (finish - begin):.0f} ms"], fontsize=7, padding=3)
    axis.set(yticks=range(len(rows)), yticklabels=rows, xlabel=f"seconds of step {number}", xlim=(0, 1.12 * (end - start)))
    axis.invert_yaxis()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return {label: round(sum(f - b for _, other, b, f in spans if other == label), 4)
            for label in dict.fromkeys(span[1] for span in spans)}


def cold_start(run: Run) -> dict[str, float]:
    """The twin's figures for the first step, from an empty cache."""
    policy = reject(run)
    with Twin(**dataclasses.asdict(run.config.twin) | {"cache": None}) as twin:
        training = Training(run, twin, policy, value_model(policy, run.config.seed), run.config.rldtf.alpha)
        training.step(0)
    return training.stats[0] | {"simulated share": training.stats[0]["simulated"] / training.stats[0]["sequences"]}


def go_on(run: Run, policy, alpha: float, name: str, stack: contextlib.ExitStack) -> Training:
    """A training that goes on, with a twin of its own that starts with what the steps before have cached."""
    cache = run.path(f"{name}.sqlite")
    with sqlite3.connect(run.config.twin.cache or run.path("twin.sqlite")) as source, sqlite3.connect(cache) as copy:
        source.backup(copy)
    twin = stack.enter_context(Twin(**dataclasses.asdict(run.config.twin) | {"cache": cache}))
    return Training(run, twin, policy, value_model(policy, run.config.seed), alpha)


def main(config: configs.ExperimentConfig) -> None:
    with opened(config) as run, contextlib.ExitStack() as stack:
        policy, path = train_rldtf(run), run.path("token_importance.json")
        result = {"cold": cold_start(run)}
        trainings = {name: go_on(run, policy, alpha, name, stack)
                     for name, alpha in (("weighted", config.rldtf.alpha), ("unweighted", 0.0))}
        end = config.rldtf.steps + STEPS
        for number in range(config.rldtf.steps, end):
            for training in trainings.values():
                training.step(number)
            say(f"step {number}: " + ", ".join(f"{name} {t.seconds[-1]:.2f} s" for name, t in trainings.items()))
        result["timeline, seconds"] = timeline(trainings["weighted"], end, run.path("timeline.png"))
    measured = {name: np.array(training.seconds[UNMEASURED:STEPS]) for name, training in trainings.items()}
    ratio = measured["weighted"] / measured["unweighted"]
    result["seconds a step, median"] = {name: float(np.median(seconds)) for name, seconds in measured.items()}
    result["weighted / unweighted"] = {
        "medians": float(np.median(measured["weighted"]) / np.median(measured["unweighted"])),
        "step by step, median": float(np.median(ratio)), "95 % interval of their mean": mean_interval(ratio)}
    for name, training in trainings.items():
        rows = training.stats[UNMEASURED:STEPS]
        result[f"twin, {name}, mean"] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    with whole(path) as file:
        json.dump(result, file, indent=1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    sys.argv[1:1] = OVERRIDES
    configs.command(main)

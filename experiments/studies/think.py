"""Does the think line help? The whole chain with it and without it, judged on the same held-out tasks.

    python -m experiments.studies.think preset=quickstart run_dir=runs/think

Both arms share tasks, tokenizer, seeds and the twin's results; they live in <run_dir>/with and <run_dir>/without. Leaves
<run_dir>/think.json and think.png.
"""

import dataclasses
import json
import os

from matplotlib import pyplot as plt

from rldtf_jax import metrics

from experiments.config import ExperimentConfig, command
from experiments.files import whole
from experiments.stages.evaluate import MODELS, gain, summarise, table
from experiments.stages.rldtf import train_rldtf
from experiments.stages.run import opened, respond, stage_model

ARMS = {"with": True, "without": False}


def train(config: ExperimentConfig) -> None:
    with opened(config) as run:
        train_rldtf(run)


def verdicts(config: ExperimentConfig) -> dict:
    """The held-out verdict of every stage's model of one arm."""
    with opened(config) as run:
        test = run.environment("test")
        return {stage: respond(run, stage_model(run, stage), test, range(len(test.tasks)), salt=2,
                                      temperature=config.evaluate.temperature).verdict for stage in MODELS}


def figure(run_dir: str, path: str) -> None:
    """Reward and fulfilment of both arms over the steps of RLDTF, means of ten steps."""
    fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for arm in ARMS:
        rows = metrics.read(os.path.join(run_dir, arm, "rldtf"))
        for axis, name in zip(axes, ("reward", "fulfilled")):
            parts = [rows[i:i + 10] for i in range(0, len(rows), 10)]
            axis.plot([part[-1]["step"] for part in parts], [sum(row[name] for row in part) / len(part) for part in parts],
                      label=f"{arm} think line")
            axis.set(title=name, xlabel="step")
    axes[0].legend()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(config: ExperimentConfig) -> None:
    configs = {arm: dataclasses.replace(
        config, run_dir=os.path.join(config.run_dir, arm), instruct=dataclasses.replace(config.instruct, think=think),
        twin=dataclasses.replace(config.twin, cache=config.twin.cache or os.path.join(config.run_dir, "twin.sqlite")))
        for arm, think in ARMS.items()}
    for arm_config in configs.values():
        train(arm_config)
    arm_verdicts = {arm: verdicts(arm_config) for arm, arm_config in configs.items()}
    result = {"with - without": {stage: gain(*(arm_verdicts[arm][stage] for arm in ARMS)) for stage in MODELS}}
    for arm, by_stage in arm_verdicts.items():
        result[arm] = {"num_tasks": config.tasks.test, "temperature": config.evaluate.temperature,
                       "methods": {stage: summarise(verdict) for stage, verdict in by_stage.items()}}
        print(f"{arm} the think line\n{table(result[arm])}\n")
    for stage, g in result["with - without"].items():
        low, high = g["fulfilment_interval"]
        print(f"with - without, {stage}: fulfilment {g['fulfilment']:+.3f} [{low:+.3f}, {high:+.3f}], mean reward "
              f"{g['reward']:+.3f} [{g['reward_interval'][0]:+.3f}, {g['reward_interval'][1]:+.3f}]")
    with whole(os.path.join(config.run_dir, "think.json")) as file:
        json.dump(result, file, indent=1)
    figure(config.run_dir, os.path.join(config.run_dir, "think.png"))


if __name__ == "__main__":
    command(main)

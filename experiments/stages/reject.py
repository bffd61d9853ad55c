"""Rejection sampling (III.B), after phase 1.

    python -m experiments.stages.reject preset=quickstart
"""

import dataclasses
import json
import os
from typing import Sequence

import numpy as np

from rldtf_jax import hf, sft
from rldtf_jax.qwen2 import Qwen2

from experiments.config import ExperimentConfig, command
from experiments.files import json_lines, whole
from experiments.stages.instruct import instruct
from experiments.stages.run import Run, curriculum, opened, respond, say, sequences, stage_model
from experiments.world.environment import TwinEnvironment


def reject(run: Run) -> Qwen2:
    """Rejection sampling (III.B): sample, run the twin, keep what fulfils, train on it, until that stops helping."""
    done = stage_model(run, "reject")
    if done is not None:
        return done
    config = run.config.reject
    model = instruct(run)
    train, validation = run.environment("train"), run.environment("validation")

    def success(model):
        return respond(run, model, validation, range(len(validation.tasks)), salt=1,
                       temperature=1.0).verdict.fulfilled_M.mean()

    rate, sampled = success(model), []
    say(f"reject: {rate:.1%} of the validation tasks before the first round")
    for number in range(1, config.max_rounds + 1):
        directory = run.path("reject", f"round_{number}")
        sampled = sample_round(run, model, train, number) + sampled
        kept = keep(sampled, config.keep_per_task)
        if not kept:
            say("reject: no sampled response fulfils its task; going on with the model of phase 1")
            break
        pairs = [(train.tasks[row["task"]].prompt(run.config.tasks.prompt), row["response"]) for row in kept]
        rows = sequences(run.tokenizer, curriculum(run, pairs))
        steps = min(config.sft.steps, -(-config.epochs * len(rows.tokens) // config.sft.batch_size))  # few responses are soon learnt by heart
        refined = sft.train(model, rows, dataclasses.replace(config.sft, steps=steps),
                            seed=run.config.seed + number, directory=directory, title=f"reject {number}",
                            **run.config.loop_options)
        new_rate = success(refined)
        say(f"reject: {new_rate:.1%} after round {number}, trained on {len(kept)} kept responses")
        if new_rate >= rate:
            model = refined
        if new_rate < rate + config.min_gain:
            break
        rate = new_rate
    hf.save(model, run.path("reject", "model"))
    return model


def sample_round(run: Run, model: Qwen2, environment: TwinEnvironment, number: int) -> list[dict]:
    """A round's responses to all training tasks: rows of task (index), response, reward, fulfilled."""
    path = run.path("reject", f"round_{number}", "sampled.jsonl")
    if not os.path.exists(path):
        indices = np.repeat(np.arange(len(environment.tasks)), run.config.reject.samples_per_task)
        responses = respond(run, model, environment, indices, salt=100 + number, temperature=1.0)
        say(f"reject: round {number} sampled {len(indices)} responses, {responses.verdict.fulfilled_M.sum()} fulfil")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole(path) as file:
            for i, text, R, good in zip(indices, responses.texts, responses.verdict.reward_M, responses.verdict.fulfilled_M):
                file.write(json.dumps({"task": int(i), "response": text, "reward": float(R), "fulfilled": bool(good)}) + "\n")
    return json_lines(path)


def keep(sampled: Sequence[dict], keep_per_task: int) -> list[dict]:
    """The distinct responses that fulfil, at most keep_per_task a task, the first (newest) ones."""
    kept: dict[int, dict[str, dict]] = {}
    for row in sampled:
        good = kept.setdefault(row["task"], {})
        if row["fulfilled"] and len(good) < keep_per_task:
            good.setdefault(row["response"], row)
    return [row for good in kept.values() for row in good.values()]


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        reject(run)


if __name__ == "__main__":
    command(main)

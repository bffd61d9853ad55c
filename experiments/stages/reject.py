"""Rejection sampling (III.B), after phase 1.

python -m experiments.stages.reject preset=quickstart
"""

import dataclasses
import glob
import json
import os
from typing import Sequence

import numpy as np

from experiments.config import ExperimentConfig, command
from experiments.files import exists, json_lines, whole
from experiments.stages.instruct import instruct
from experiments.stages.run import (
    Run,
    curriculum,
    keep_model,
    opened,
    respond,
    say,
    sequences,
    stage_model,
)
from experiments.world.environment import TwinEnvironment
from rldtf_jax import sft
from rldtf_jax.qwen2 import Qwen2

VALIDATION_TRIES = 4  # responses to each validation task


def reject(run: Run) -> Qwen2:
    """Rejection sampling (III.B): sample, run the twin, keep what fulfils, train on it, until that
    stops helping.
    """
    done = stage_model(run, "reject")
    if done is not None:
        return done
    config = run.config.reject
    model = instruct(run)
    train, validation = run.environment("train"), run.environment("validation")

    def success(model):
        tries = np.repeat(np.arange(len(validation.tasks)), VALIDATION_TRIES)
        return respond(
            run, model, validation, tries, salt=1, temperature=1.0
        ).verdict.fulfilled_M.mean()

    def refine(model, sampled: list[dict], number: int):
        """(model, rate) after training on what is kept of all that was sampled."""
        directory, kept = run.path("reject", f"round_{number}"), keep(sampled, config.keep_per_task)
        if not kept:
            return None
        pairs = [
            (train.tasks[row["task"]].prompt(run.config.tasks.prompt), row["response"])
            for row in kept
        ]
        rows = sequences(run.tokenizer, curriculum(run, pairs))
        # few responses are soon learnt by heart
        steps = min(config.sft.steps, -(-config.epochs * len(rows.tokens) // config.sft.batch_size))
        refined = sft.train(
            model,
            rows,
            dataclasses.replace(config.sft, steps=steps),
            seed=run.config.seed + number,
            directory=directory,
            title=f"reject {number}",
            **run.config.loop_options,
        )
        rate = success(refined)
        say(f"reject: {rate:.1%} after round {number}, trained on {len(kept)} kept responses")
        return refined, rate

    rate, sampled = success(model), []
    say(f"reject: {rate:.1%} of the validation tasks before the first round")
    for number in range(1, config.max_rounds + 1):
        sampled = sample_round(run, model, train, number) + sampled
        refined = refine(model, sampled, number)
        if refined is None:
            say("reject: no sampled response fulfils its task; going on with the model of phase 1")
            break
        if refined[1] >= rate:
            model = refined[0]
        if refined[1] < rate + config.min_gain:
            break
        rate = refined[1]
    keep_model(run, model, "reject")
    return model


def feasible(run: Run) -> list[int]:
    """The training tasks that can be fulfilled, as a search or a sampled response has shown: what
    RLDTF asks its twin calls for.
    """
    shown = {row["task"] for row in all_sampled(run) if row["fulfilled"]}
    return [
        i for i, task in enumerate(run.tasks_of("train")) if i in shown or task.witness is not None
    ]


def practised(run: Run) -> list[int]:
    """The training tasks that RLDTF learns on."""
    return (
        feasible(run) if run.config.tasks.only_feasible else list(range(len(run.tasks_of("train"))))
    )


def all_sampled(run: Run) -> list[dict]:
    """What the rounds have sampled: `sample_round`'s rows, round by round."""
    return [
        row
        for path in sorted(glob.glob(run.path("reject", "round_*", "sampled.jsonl")))
        for row in json_lines(path)
    ]


def sample_round(run: Run, model: Qwen2, environment: TwinEnvironment, number: int) -> list[dict]:
    """A round's responses to its tasks: rows of task (index), response, reward, fulfilled."""
    path, config, total = (
        run.path("reject", f"round_{number}", "sampled.jsonl"),
        run.config.reject,
        len(environment.tasks),
    )
    if not exists(path):
        chosen = np.random.default_rng((run.config.seed, number)).permutation(total)[
            : config.tasks_per_round
        ]
        indices = np.repeat(np.sort(chosen), config.samples_per_task)
        responses = respond(run, model, environment, indices, salt=100 + number, temperature=1.0)
        say(
            f"reject: round {number} sampled {len(indices)} responses,"
            f" {responses.verdict.fulfilled_M.sum()} fulfil"
        )
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole(path) as file:
            for i, text, R, good in zip(
                indices, responses.texts, responses.verdict.reward_M, responses.verdict.fulfilled_M
            ):
                file.write(
                    json.dumps(
                        {
                            "task": int(i),
                            "response": text,
                            "reward": float(R),
                            "fulfilled": bool(good),
                        }
                    )
                    + "\n"
                )
    return json_lines(path)


def keep(sampled: Sequence[dict], keep_per_task: int) -> list[dict]:
    """The distinct responses that fulfil, at most keep_per_task a task: the first, which are the
    newest.
    """
    kept: dict[int, dict[str, dict]] = {}
    for row in sampled:
        good = kept.setdefault(row["task"], {})
        if row["fulfilled"] and len(good) < keep_per_task:
            good.setdefault(row["response"], row)
    return [row for _, good in sorted(kept.items()) for row in good.values()]


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        reject(run)


if __name__ == "__main__":
    command(main)

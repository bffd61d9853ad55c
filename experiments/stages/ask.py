"""Teaches the model after rejection sampling to ask before it answers, and what an answer to a
result may be.

    python -m experiments.stages.ask preset=asking

The conversations are made of the rounds' own samples: the first response of a task becomes a
question; where a quick run of the twin finds that all targets are met it is the answer too, else
another sample of the task is, one that has fulfilled it. Nothing says when to ask and when not:
`ask.share` of the rows do.
"""

import json
import os
from typing import Iterator, Sequence

import numpy as np

from experiments.config import ExperimentConfig, command
from experiments.files import exists, json_lines, whole
from experiments.stages.reject import all_sampled, keep, reject
from experiments.stages.run import Run, keep_model, opened, say, stage_model
from experiments.world.asking import asking, question, results, spoken
from experiments.world.orchestration import END_THINK
from rldtf_jax import sft
from rldtf_jax.config import ConfigError
from rldtf_jax.qwen2 import Qwen2


def ask(run: Run) -> Qwen2:
    """The model that RLDTF starts from: that of rejection sampling where nobody asks."""
    if run.config.ask.sft is None:
        return reject(run)
    done = stage_model(run, "ask")
    if done is not None:
        return done
    model = reject(run)
    rows, budget = taught(run), run.config.rldtf.sample.max_new_tokens
    if (longest := int((rows.lengths - rows.prompt_lengths).max())) > budget:
        raise ConfigError(
            f"rldtf.sample.max_new_tokens = {budget}: expected more than {longest}, the longest"
            " message of the conversations in tokens"
        )
    model = sft.train(
        model,
        rows,
        run.config.ask.sft,
        seed=run.config.seed,
        directory=run.path("ask"),
        title="ask",
        **run.config.loop_options,
    )
    keep_model(run, model, "ask")
    return model


def taught(run: Run) -> sft.Sequences:
    """Every message of the policy's behind all that stands before it: what the world said is read
    and never learnt.
    """
    tok, form = run.tokenizer, run.config.tasks.prompt
    tasks, rows = run.tasks_of("train"), []
    write = lambda text: tok.encode(text, special=False) + [tok.eos_id]  # noqa: E731
    direct = [(row["task"], row["response"]) for row in keep(all_sampled(run), 1)]
    talks = conversations(run)
    number = round(len(talks) * (1 - run.config.ask.share) / max(run.config.ask.share, 1e-9))
    if not run.config.ask.share:
        talks, number = [], len(direct)
    order = np.random.default_rng(run.config.seed).permutation(len(direct))[:number]
    for i in np.sort(order):
        task, response = direct[i]
        rows.append((tok.apply_chat(tasks[task].prompt(form)), write(response)))
    for talk in talks:
        prompt = tok.apply_chat(tasks[talk["task"]].prompt(form))
        asked = write(talk["question"])
        rows.append((prompt, asked))
        rows.append((prompt + asked + spoken(tok, talk["result"]), write(talk["answer"])))
    say(f"ask: {len(talks)} conversations and {len(order)} answers without a question")
    return sft.Sequences.of(rows)


def conversations(run: Run) -> list[dict[str, str]]:
    """Rows of task, question, result, answer."""
    path = run.path("ask", "conversations.jsonl")
    if not exists(path):
        pairs = list(first_and_best(all_sampled(run)))
        tasks = run.tasks_of("train")
        asked = [asking(first["response"]) for first, _ in pairs]
        heard = results(
            [tasks[first["task"]] for first, _ in pairs],
            [question(text) or "" for text in asked],
            run.twins("ask"),
            run.config.rldtf.reward,
        )
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole(path) as file:
            for (first, best), text, result in zip(pairs, asked, heard):
                answer = first if "all met" in result else best
                if answer is not None:
                    row = {
                        "task": first["task"],
                        "question": text,
                        "result": result,
                        "answer": answer["response"].rpartition(END_THINK)[2].lstrip(),
                    }
                    file.write(json.dumps(row) + "\n")
    return json_lines(path)


def first_and_best(sampled: Sequence[dict]) -> Iterator[tuple[dict, dict | None]]:
    """(the first sample of each task, the best other one that fulfils, if any does)."""
    by_task: dict[int, list[dict]] = {}
    for row in sampled:
        by_task.setdefault(row["task"], []).append(row)
    for _, (first, *others) in sorted(by_task.items()):
        good = [row for row in others if row["fulfilled"]]
        yield first, max(good, key=lambda row: row["reward"], default=None)


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        ask(run)


if __name__ == "__main__":
    command(main)

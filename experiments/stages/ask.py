"""Teaches the model after rejection sampling to ask before it answers, and what an answer to a
result may be.

    python -m experiments.stages.ask preset=asking

The conversations are made of the rounds' own samples: what fulfils is a first message, `ask.share`
of them as questions; what does not is a question, to whose result the task's best sample answers,
whole, since that is what the model can already write.
"""

import json
import os
from typing import Iterator, Sequence

import numpy as np

from experiments.config import ExperimentConfig, command
from experiments.files import exists, json_lines, whole
from experiments.stages.reject import all_sampled, keep, reject
from experiments.stages.run import Run, keep_model, opened, say, stage_model
from experiments.world.asking import asking, question, results
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
    tasks, rows, rng = run.tasks_of("train"), [], np.random.default_rng(run.config.seed)
    write = lambda text: tok.encode(text, special=False) + [tok.eos_id]  # noqa: E731
    first = keep(all_sampled(run), run.config.reject.keep_per_task)
    for row, asks in zip(first, rng.random(len(first)) < run.config.ask.share):
        text = asking(row["response"]) if asks else row["response"]
        rows.append((tok.apply_chat(tasks[row["task"]].prompt(form)), write(text)))
    talks = conversations(run) if run.config.ask.share else []
    for talk in talks:
        prompt = tok.apply_chat(tasks[talk["task"]].prompt(form)) + write(talk["question"])
        rows.append((prompt + tok.next_turn(talk["result"]), write(talk["answer"])))
    say(f"ask: {len(first)} first messages and {len(talks)} second ones")
    return sft.Sequences.of(rows)


def conversations(run: Run) -> list[dict[str, str]]:
    """Rows of task, question, result, answer: a sample that a quick run finds wanting, what that
    says, and the best sample of the task that has fulfilled it.
    """
    path = run.path("ask", "conversations.jsonl")
    if not exists(path):
        pairs = list(with_the_best(all_sampled(run)))
        tasks = run.tasks_of("train")
        asked = [asking(row["response"]) for row, _ in pairs]
        heard = results(
            [tasks[row["task"]] for row, _ in pairs],
            [question(text) or "" for text in asked],
            run.twins("ask"),
            run.config.rldtf.reward,
        )
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole(path) as file:
            for (row, best), text, result in zip(pairs, asked, heard):
                if result is not None:
                    talk = {
                        "task": row["task"],
                        "question": text,
                        "result": result,
                        "answer": best["response"],
                    }
                    file.write(json.dumps(talk) + "\n")
    return json_lines(path)


def with_the_best(sampled: Sequence[dict]) -> Iterator[tuple[dict, dict]]:
    """(a sample that does not fulfil its task, the task's best one that does), where there are
    both.
    """
    by_task: dict[int, list[dict]] = {}
    for row in sampled:
        by_task.setdefault(row["task"], []).append(row)
    for _, rows in sorted(by_task.items()):
        best = max(rows, key=lambda row: (row["fulfilled"], row["reward"]))
        if best["fulfilled"]:
            yield from ((row, best) for row in rows if not row["fulfilled"])


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        ask(run)


if __name__ == "__main__":
    command(main)

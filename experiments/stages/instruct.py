"""Phase 1: instruction tuning on random workflows, their grants sized for what is asked, or on an
engineer's.

    python -m experiments.stages.instruct preset=quickstart

Every stage leaves `<run_dir>/<stage>/model` when it is done, so that asking for it again returns at
once, and goes on from its checkpoints when it is not.
"""

import itertools
import json
import os
import random
from typing import Sequence

import jax
import numpy as np
from flax import nnx

from experiments.config import ExperimentConfig, command
from experiments.files import exists, json_lines, whole
from experiments.stages.pretrain import pretrained
from experiments.stages.run import (
    Run,
    curriculum,
    keep_model,
    opened,
    practice,
    say,
    sequences,
    stage_model,
)
from experiments.world.engineer import demonstrations
from experiments.world.orchestration import describe_link, describe_targets, think
from experiments.world.questions import DOMAIN_KINDS, GENERAL_KINDS, abbreviations, questions, right
from experiments.world.search import sized_workflow
from experiments.world.tasks import Task
from rldtf_jax import sft
from rldtf_jax.config import ConfigError
from rldtf_jax.qwen2 import Qwen2
from rldtf_jax.sample import sample_batches

LONGEST = 0.05  # of the practice rows, that are left out


def instruct(run: Run) -> Qwen2:
    """Phase 1, without a twin: random workflows teach the format and what a grant carries, an
    engineer's a rule's idea of the link.
    """
    done = stage_model(run, "instruct")
    if done is not None:
        return done
    if run.config.instruct.sft is None:
        model = pretrained(run)
        keep_model(run, model, "instruct")
        return model
    tasks = list(
        itertools.islice(
            practice(run.config, run.tasks["train"]),
            run.config.instruct.pairs // run.config.instruct.per_task,
        )
    )
    pairs = taught(run, tasks)
    known = spelt_out(run)
    asked = [
        (question.prompt, question.response)
        for question in itertools.islice(
            questions(run.config.seed, run.config.instruct.general, False, known),
            run.config.instruct.questions,
        )
    ]
    rows, budget = (
        sequences(run.tokenizer, curriculum(run, pairs) + asked),
        run.config.rldtf.sample.max_new_tokens,
    )
    longest = int((rows.lengths - rows.prompt_lengths)[: len(pairs)].max())
    if longest > budget:
        raise ConfigError(
            f"rldtf.sample.max_new_tokens = {budget}: expected at least {longest}, the longest"
            " response of the instruction data in tokens"
        )
    rows = trimmed(rows)
    model = pretrained(run)
    if run.config.instruct.think and run.config.instruct.reading:
        model = sft.train(
            model,
            trimmed(sequences(run.tokenizer, reading(tasks))),
            run.config.instruct.reading,
            seed=run.config.seed,
            directory=run.path("instruct", "reading"),
            title="reading",
            **run.config.loop_options,
        )
    if asked:
        examine(run, model, known, "before")
    model = sft.train(
        model,
        rows,
        run.config.instruct.sft,
        seed=run.config.seed,
        directory=run.path("instruct"),
        title="instruct",
        **run.config.loop_options,
    )
    if asked:
        examine(run, model, known, "after")
    keep_model(run, model, "instruct")
    return model


def spelt_out(run: Run) -> dict[str, str]:
    """The abbreviations of the corpus that the run is pre-trained on, if there is one."""
    if not (run.config.pretrain.corpus and run.config.instruct.questions):
        return {}
    lines = json_lines(os.path.join(run.config.pretrain.corpus, "train.jsonl"))
    return abbreviations(line["text"] for line in lines if line["share"] == "domain")


def examine(run: Run, model: Qwen2, known: dict[str, str], when: str) -> None:
    """Notes in questions.json how many held-out questions of each kind the model answers rightly,
    greedily; asked only once.
    """
    path, config = run.path("instruct", "questions.json"), run.config.instruct
    told: dict[str, dict] = {}
    if exists(path):
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
    if when in told:
        return
    some = list(
        itertools.islice(questions(run.config.seed, config.general, True, known), config.asked)
    )
    answers = sample_batches(
        *nnx.split(model),
        [run.tokenizer.apply_chat(question.prompt) for question in some],
        jax.random.key(run.config.seed),
        batch_size=min(run.config.evaluate.batch_size, config.asked),
        eos_id=run.tokenizer.eos_id,
        max_new_tokens=run.config.rldtf.sample.max_new_tokens,
        temperature=0.0,
    )
    told[when] = {}
    for question, (ids, ended) in zip(some, answers):
        of_kind = told[when].setdefault(question.kind, {"asked": 0, "right": 0})
        of_kind["asked"] += 1
        of_kind["right"] += right(question, run.tokenizer.decode(ids[: len(ids) - ended]))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with whole(path) as file:
        json.dump(told, file, indent=1)
    for name, kinds in (("radio", DOMAIN_KINDS), ("general", GENERAL_KINDS)):
        counts = [told[when][kind] for kind in kinds if kind in told[when]]
        asked, found = (sum(count[key] for count in counts) for key in ("asked", "right"))
        say(f"held-out questions {when}, {name}: {found} of {asked} right")


def taught(run: Run, tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """(prompt, response) of the tasks as the config's teacher answers them."""
    config, form = run.config.instruct, run.config.tasks.prompt
    if config.teacher == "engineer":
        return demonstrations(
            tasks,
            config.per_task,
            run.path("instruct", "demonstrations"),
            run.config.seed,
            run.config.rldtf.reward,
            form,
            config.think,
        )
    rng = random.Random(f"instruct {run.config.seed}")
    return [
        (task.prompt(form), task.response(sized_workflow(rng, task), config.think))
        for task in tasks
        for _ in range(config.per_task)
    ]


def reading(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """(prompt, response) with nothing to read but what the think line repeats: copying is learnt
    from short texts, where whole prompts do not teach it in as many steps, and then holds in long
    ones.
    """
    return [
        (
            (
                f"{describe_link(t.scenario)}"
                f" {describe_targets(t.delay_ms, t.throughput_mbps, t.ber, t.errors)}"
            ),
            think(t.scenario, t.throughput_mbps, t.delay_ms),
        )
        for t in tasks
    ]


def trimmed(rows: sft.Sequences) -> sft.Sequences:
    """Without the longest rows, LONGEST of all, for which every batch would be padded."""
    width = int(np.quantile(rows.lengths, 1 - LONGEST, method="higher"))
    kept = jax.tree.map(lambda x: x[rows.lengths <= width], rows)
    return kept._replace(tokens=kept.tokens[:, : -(-width // 8) * 8])


def main(config: ExperimentConfig) -> None:
    with opened(config, start_twin=False) as run:
        instruct(run)


if __name__ == "__main__":
    command(main)

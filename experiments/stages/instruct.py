"""Phase 1: instruction tuning on random workflows, their grants sized for what is asked, or on an
engineer's.

    python -m experiments.stages.instruct preset=quickstart

Every stage leaves `<run_dir>/<stage>/model` when it is done, so that asking for it again returns at
once, and goes on from its checkpoints when it is not.
"""

import itertools
import random
from typing import Sequence

import jax
import numpy as np

from experiments.config import ExperimentConfig, command
from experiments.stages.examine import examine, lessons, spelt_out
from experiments.stages.pretrain import pretrained
from experiments.stages.run import (
    Run,
    curriculum,
    keep_model,
    opened,
    practice,
    sequences,
    stage_model,
)
from experiments.world.engineer import demonstrations
from experiments.world.orchestration import describe_link, describe_targets, think
from experiments.world.search import sized_workflow
from experiments.world.tasks import Task
from rldtf_jax import sft
from rldtf_jax.config import ConfigError
from rldtf_jax.qwen2 import Qwen2

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
    asked = lessons(run, known)
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

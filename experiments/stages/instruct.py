"""Phase 1: instruction tuning on random valid workflows.

    python -m experiments.stages.instruct preset=quickstart

Every stage leaves `<run_dir>/<stage>/model` when it is done, so that asking for it again returns at once, and goes on
from its checkpoints when it is not.
"""

import random

from rldtf_jax import hf, sft
from rldtf_jax.config import ConfigError
from rldtf_jax.qwen2 import Qwen2, Qwen2Config

from experiments.config import ExperimentConfig, command
from experiments.stages.run import Run, curriculum, fresh_model, opened, sequences, stage_model
from experiments.world.tasks import random_workflow


def first_model(run: Run) -> Qwen2:
    """The model that instruction tuning starts from."""
    config = run.config.model
    if config.hf_dir:
        return hf.load(config.hf_dir, dtype=config.dtype, mesh=run.mesh)
    shape = Qwen2Config.preset(config.preset, vocab_size=run.tokenizer.vocab_size, dtype=config.dtype)
    return fresh_model(shape, "lm", run.config.seed, run.mesh)


def instruct(run: Run) -> Qwen2:
    """Phase 1: valid but random workflows teach the format, nothing about quality."""
    done = stage_model(run, "instruct")
    if done is not None:
        return done
    rng = random.Random(f"instruct {run.config.seed}")
    tasks = run.tasks["train"]
    pairs = [(task.prompt(run.config.tasks.prompt), task.response(random_workflow(rng, task.scenario), run.config.instruct.think))
             for task in (tasks[i % len(tasks)] for i in range(run.config.instruct.pairs))]
    rows, budget = sequences(run.tokenizer, curriculum(run, pairs)), run.config.rldtf.sample.max_new_tokens
    longest = int((rows.lengths - rows.prompt_lengths)[:len(pairs)].max())
    if longest > budget:
        raise ConfigError(f"rldtf.sample.max_new_tokens = {budget}: expected at least {longest}, the longest response "
                          "of the instruction data in tokens")
    model = sft.train(first_model(run), rows, run.config.instruct.sft, seed=run.config.seed, directory=run.path("instruct"),
                      title="instruct", **run.config.loop_options)
    hf.save(model, run.path("instruct", "model"))
    return model


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        instruct(run)


if __name__ == "__main__":
    command(main)

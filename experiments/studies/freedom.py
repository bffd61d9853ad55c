"""Where a policy is still free: the share of 1 - p, the probability of another token, that lies on
the tokens whose values f(a) reads, on the think part and on the words between.

    python -m experiments.studies.freedom RUN

A token that is certain has no gradient in Eq. 6, whatever it weighs. So a token weight changes a
training only as far as it shifts weight among the tokens that are not certain.
"""

import argparse
import dataclasses

import jax
import numpy as np
from flax import nnx

from experiments.config import guarded, of_run
from experiments.stages.evaluate import METHODS, MODELS
from experiments.stages.run import Run, opened, stage_model
from rldtf_jax.sample import row_keys, sample_on_host

SALT = 11  # of the sampling keys


def shares(logp_BxT, counts_BxT, read_BxT, think_BxT) -> dict[str, float]:
    """Of the tokens that count: the share that f(a) reads, and the shares of 1 - p on these, in the
    think part, and elsewhere.

    logp_BxT: log-probability of each sampled token; the others bool, think without what is read.
    """
    counts, read = np.asarray(counts_BxT, bool), np.asarray(read_BxT, bool)
    free = np.where(counts, -np.expm1(logp_BxT), 0.0)
    think = np.asarray(think_BxT, bool) & ~read
    total = max(float(free.sum()), 1e-12)
    found = {"tokens read": float((read & counts).sum() / counts.sum())}
    for name, part in (("read", read), ("think", think), ("words", ~read & ~think)):
        found[f"free on {name}"] = float(free[part].sum() / total)
    return found


def measured(run: Run, stage: str) -> dict[str, float]:
    """`shares` of a stage's model on the test tasks, one response each at temperature 1."""
    model, environment = stage_model(run, stage), run.environment("test")
    tasks, prompts, lengths = environment.rows(range(len(environment.tasks)))
    key = jax.random.fold_in(jax.random.key(run.config.seed), SALT)
    samples = sample_on_host(
        *nnx.split(model),
        prompts,
        lengths,
        row_keys(key, np.arange(len(tasks))),
        eos_id=run.tokenizer.eos_id,
        max_new_tokens=run.config.rldtf.sample.max_new_tokens,
        temperature=1.0,
    )
    responses = [ids[:n] for ids, n in zip(samples.tokens_BxR, samples.lengths_B)]
    at = np.arange(samples.tokens_BxR.shape[1])
    read = np.zeros(samples.tokens_BxR.shape, bool)
    for row, fields in zip(read, environment.fields(tasks, responses)):
        for field in fields:
            row[field.start : field.stop] = True
    thinks = np.array([environment.thoughts(np.asarray(ids)) for ids in responses])
    counts = at < np.asarray(samples.lengths_B)[:, None]
    return shares(samples.logp_BxR, counts, read, at < thinks[:, None])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="freedom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    asked = parser.parse_args(argv)
    config = dataclasses.replace(of_run(asked.run), run_dir=asked.run)
    with opened(config, start_twin=False, shared=True) as run:
        found = {
            stage: measured(run, stage) for stage in MODELS if stage_model(run, stage) is not None
        }
    print("| | tokens that are read | 1 - p on these | in the think part | on words |")
    print("|---|---|---|---|---|")
    for stage, row in found.items():
        print(f"| {METHODS[stage]} | " + " | ".join(f"{x:.3f}" for x in row.values()) + " |")


if __name__ == "__main__":
    guarded(main)

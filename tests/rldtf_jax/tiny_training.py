"""Trainings that take seconds: a very small Qwen2, and an environment that rewards high tokens.

As a script, `tiny_training.py sft|rldtf DIRECTORY` trains and leaves the final weights in
`DIRECTORY/final.npz`. With `SIGNAL ROWS MOMENT [ROWS MOMENT ...]` behind, one process after the
other trains there, forked so that all share the imports, and sends itself the signal; the script's
exit status says whether each ended by it.
"""

import dataclasses
import glob
import os
import sys
import threading
import time
import traceback

import jax
import numpy as np
from flax import nnx

from rldtf_jax import rldtf, sft
from rldtf_jax.config import OptimConfig, RLDTFConfig, SampleConfig, SFTConfig
from rldtf_jax.judge import OPTIONS, Arm, Imagined, Verdict
from rldtf_jax.metrics import JSONL, read
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.token_weight import Field

SHAPE = Qwen2Config(12, 32, 48, 2, 4, 2, rope_theta=1e4, num_tokens=10)
EOS, HIGH = 1, 5
RL = RLDTFConfig(
    steps=8,
    prompts_per_step=8,
    checkpoint_every=3,
    num_perturb=1,
    minibatches=2,
    epochs=2,
    sample=SampleConfig(max_new_tokens=10),
    policy=OptimConfig(lr=1e-2, warmup_steps=2),
)
ONE = dataclasses.replace(RL, epochs=1, minibatches=1)  # one update a step
SFT = SFTConfig(steps=8, batch_size=4, save_every=1, optim=OptimConfig(lr=1e-2, warmup_steps=2))


def policy(seed=0, shape=SHAPE):
    """A model with weights five times as large as usual: its distribution is far from uniform."""
    model = Qwen2(shape, rngs=nnx.Rngs(seed))
    nnx.update(model, jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, nnx.state(model)))
    return model


def critic(seed=1, shape=SHAPE):
    """A value model whose head says something."""
    model = Qwen2(shape, rngs=nnx.Rngs(seed), head="value")
    model.value_head[...] = 0.3 * jax.random.normal(jax.random.key(seed), (shape.hidden_size,))
    return model


class HighTokens:
    """R is the share of ids >= HIGH before the EOS, from -1 to 1; what has no token at all does not
    parse.
    """

    eos_id = EOS

    def batch(self, step, num_prompts):
        rng = np.random.default_rng((7, step))
        lengths = rng.integers(1, 6, num_prompts).astype(np.int32)
        prompts = rng.integers(2, SHAPE.num_tokens, (num_prompts, 5)).astype(np.int32)
        return (
            list(range(num_prompts)),
            np.where(np.arange(5) < lengths[:, None], prompts, 0),
            lengths,
        )

    def judge(self, tasks, responses, policy=None):
        texts = [
            list(ids[: list(ids).index(EOS)]) if EOS in ids else list(ids) for ids in responses
        ]
        share = np.array(
            [sum(id >= HIGH for id in text) / max(len(text), 1) for text in texts], np.float32
        )
        reward = np.where([bool(text) for text in texts], 2 * share - 1, -1).astype(np.float32)
        return Verdict(
            reward,
            share >= 0.5,
            [None if text else "empty" for text in texts],
            {"sequences": len(texts)},
        )

    def fields(self, tasks, responses):
        """Every token before the EOS is a value, which may be any other id."""
        return [
            [
                Field(
                    t,
                    t + 1,
                    [
                        np.concatenate([ids[:t], [v], ids[t + 1 :]])
                        for v in range(2, SHAPE.num_tokens)
                        if v != ids[t]
                    ],
                )
                for t in range(max(0, len(ids) - 1))
            ]
            for ids in map(np.asarray, responses)
        ]

    def imagine(self, tasks, responses, num_tokens, verdict):
        """What other ids in a token's place would make of R: exact; where the response ends nothing
        else is as good.
        """
        tokens = np.zeros((len(tasks), num_tokens, OPTIONS), np.int32)
        worth = np.zeros(tokens.shape, np.float32)
        for b, ids in enumerate(responses):
            for t in range(max(0, len(ids) - 1)):
                options = [ids[t], *(v for v in range(EOS, SHAPE.num_tokens) if v != ids[t])][
                    :OPTIONS
                ]
                tokens[b, t, : len(options)] = options
                worth[b, t, : len(options)] = (
                    self.judge(
                        tasks, [np.concatenate([ids[:t], [v], ids[t + 1 :]]) for v in options]
                    ).reward_M
                    + 1
                )
            if len(ids):
                tokens[b, len(ids) - 1, 0], worth[b, len(ids) - 1, 0] = (
                    ids[-1],
                    self.judge(tasks, [ids]).reward_M[0] + 1,
                )
        return Imagined(tokens, worth, {"imagined/tokens": (worth > 0).sum()})

    def summary(self, tasks, responses, verdict, logp):
        return {"failed": sum(reason is not None for reason in verdict.failure_M) / len(tasks)}


class Recording(HighTokens):
    """The environment, remembering what it was asked; `reward` may change what it answers."""

    def __init__(self, reward=lambda R: R):
        self.asked, self.reward = [], reward

    def judge(self, tasks, responses, policy=None):
        self.asked.append([(task, np.asarray(ids).tolist()) for task, ids in zip(tasks, responses)])
        verdict = super().judge(tasks, responses)
        return verdict._replace(reward_M=self.reward(verdict.reward_M))


def take_step(models, env, config, seed, state, step):
    """(state, metrics) of one arm."""
    (state,), metrics = rldtf.rldtf_step(models, [Arm(config, seed, env)], (state,), step)
    return state, metrics["arms"][0]


def pairs():
    """(prompt, response) ids: count upwards from the prompt's last token."""
    rng = np.random.default_rng(0)
    starts = [rng.integers(2, 6, rng.integers(1, 5)).tolist() for _ in range(10)]
    return [
        (start, [*range(start[-1] + 1, start[-1] + 1 + length), EOS])
        for start, length in zip(starts, rng.integers(1, 5, 10).tolist())
    ]


def train(kind, directory):
    if kind == "sft":
        return sft.train(
            policy(), sft.Sequences.of(pairs()), SFT, seed=3, directory=directory, boards=()
        )
    return rldtf.train(policy(), critic(), HighTokens(), RL, seed=3, directory=directory, boards=())


def signal_self(signum, directory, rows, moment):
    """Sends this process a signal once `rows` metrics are written: `moment` seconds later, or
    inside the next save.
    """
    begun, path = time.time(), f"{directory}/{JSONL}"
    while not (
        os.path.exists(path) and os.path.getmtime(path) > begun and len(read(directory)) >= rows
    ):
        time.sleep(0.001)
    if moment == "save":
        while not glob.glob(f"{directory}/checkpoints/*tmp*"):
            time.sleep(0.0005)
    else:
        time.sleep(float(moment))
    os.kill(os.getpid(), signum)


def train_and_keep(kind, directory):
    leaves = jax.tree.leaves(nnx.state(train(kind, directory)))
    with open(f"{directory}/final.npz", "wb") as file:
        np.savez(file, *map(np.asarray, leaves))


def life(kind, directory, signum, rows, moment):
    """A forked process that trains until it gets its own signal: how it ended, as
    os.waitstatus_to_exitcode.
    """
    if (child := os.fork()) == 0:
        try:
            threading.Thread(
                target=signal_self, args=(signum, directory, rows, moment), daemon=True
            ).start()
            train_and_keep(kind, directory)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    kind, directory, *signalled = sys.argv[1:]
    if signalled:
        signum = int(signalled[0])
        ends = [
            life(kind, directory, signum, int(rows), moment)
            for rows, moment in zip(signalled[1::2], signalled[2::2])
        ]
        print(ends)
        sys.exit(ends != [-signum] * len(ends))
    train_and_keep(kind, directory)

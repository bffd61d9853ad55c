"""Sampling and judging elsewhere: what is learnt is to the bit what one process learns."""

import dataclasses
import multiprocessing
import os
import socket
import threading

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_training import ONE, RL, SHAPE, HighTokens, Recording, critic, policy

from rldtf_jax import rldtf
from rldtf_jax.judge import Arm
from rldtf_jax.loop import WorkerFailed
from rldtf_jax.metrics import JSONL, read
from rldtf_jax.rollout_worker import STARTS, serve

SEED = 3


class Worker:
    """Starts `serve` in a thread; `ends`: how many messages each one sends before it hangs up, the
    last for ever.
    """

    def __init__(self, config, env, ends=(), shape=SHAPE):
        self.config, self.env, self.shape, self.ends = config, env, shape, list(ends)
        self.started, self.asked = 0, []

    def __call__(self):
        ours, theirs = multiprocessing.Pipe()
        left = self.ends.pop(0) if self.ends else None
        self.started += 1
        asked = self.asked

        class Ends:
            def recv(self):
                message = theirs.recv()
                asked.append(message[0])
                return message

            def send(self, message):
                nonlocal left
                if left == 0:  # as the end of its process would
                    with socket.socket(fileno=os.dup(theirs.fileno())) as both:
                        both.shutdown(socket.SHUT_RDWR)
                left = None if left is None else left - 1
                theirs.send(message)

        threading.Thread(
            target=serve,
            args=(Ends(), policy(shape=self.shape), Arm(self.config, SEED, self.env)),
            daemon=True,
        ).start()
        return ours


def trained(config, directory, worker=None, env=None):
    model = rldtf.train(
        policy(),
        critic(),
        env or HighTokens(),
        config,
        seed=SEED,
        directory=str(directory),
        boards=(),
        worker=worker,
    )
    return list(map(np.asarray, jax.tree.leaves(nnx.state(model)))), directory / JSONL


def assert_equal(one, other):
    assert one[1].read_bytes() == other[1].read_bytes()
    for x, y in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(x, y)


FORMS = {
    "weights": RL,
    "counterfactual": dataclasses.replace(ONE, perturb="policy", advantage="counterfactual"),
    "prefix": dataclasses.replace(ONE, perturb="completion", advantage="prefix", prefixes=2),
    "expected": dataclasses.replace(ONE, advantage="expected", with_critic=False, alpha=0.0),
    "lora": dataclasses.replace(ONE, lora_rank=2),
    "old": dataclasses.replace(ONE, kl_target="old"),
}


@pytest.mark.parametrize(
    "form, staleness",
    [("weights", 0), ("weights", 1), ("weights", 3), *((name, 1) for name in list(FORMS)[1:])],
)
def test_a_worker_apart_changes_no_bit(form, staleness, tmp_path):
    config = dataclasses.replace(FORMS[form], staleness=staleness)
    alone = trained(config, tmp_path / "alone")
    worker = Worker(config, HighTokens())
    assert_equal(alone, trained(config, tmp_path / "apart", worker))
    assert worker.asked == list(range(config.steps)) and worker.started == 1


def test_the_policy_that_samples_is_so_many_updates_old(tmp_path):
    """The first k + 1 steps sample from the start."""
    for k in (0, 1, 2):
        trained(dataclasses.replace(ONE, staleness=k), tmp_path / str(k))
    runs = [read(str(tmp_path / str(k))) for k in (0, 1, 2)]
    ratio, kl, reward, drawn = (
        [[row[name] for row in rows] for rows in runs]
        for name in ("ratio", "kl", "reward", "response_tokens")
    )
    np.testing.assert_allclose(ratio[0], 1, rtol=1e-5)
    for k in (1, 2):
        assert [x[k][0] for x in (kl, reward, drawn)] == [x[0][0] for x in (kl, reward, drawn)]
        assert np.abs(np.array(ratio[k][1:]) - 1).max() > 1e-3
        assert (reward[k][1], drawn[k][1]) != (reward[0][1], drawn[0][1])
    assert (reward[2][1], drawn[2][1]) == (reward[1][1], drawn[1][1])
    assert (reward[2][2], drawn[2][2]) != (reward[1][2], drawn[1][2])


@pytest.mark.parametrize("ends", [[0, 1, 3], [2, 0, 5, 1]])
def test_a_worker_that_ends_is_started_anew_and_changes_no_bit(ends, tmp_path):
    config = dataclasses.replace(RL, staleness=2)
    worker = Worker(config, HighTokens(), ends)
    assert_equal(trained(config, tmp_path / "alone"), trained(config, tmp_path / "apart", worker))
    assert worker.started == 1 + len(ends)


def test_one_that_always_ends_is_given_up_and_what_it_raises_is_told(tmp_path):
    worker = Worker(ONE, HighTokens(), [0] * 9)
    with pytest.raises(WorkerFailed, match=f"has ended {STARTS} times at step 0"):
        trained(ONE, tmp_path / "ends", worker)
    assert worker.started == STARTS

    def refuse(R):
        raise ZeroDivisionError("no such reward")

    with pytest.raises(WorkerFailed, match="worker: ZeroDivisionError: no such reward"):
        trained(ONE, tmp_path / "raises", Worker(ONE, Recording(refuse)))


def test_an_error_of_the_operating_system_in_the_judge_is_told_too(tmp_path):
    def away(R):
        raise TimeoutError("the twin is away")

    worker = Worker(ONE, Recording(away))
    with pytest.raises(WorkerFailed, match="TimeoutError: the twin is away"):
        trained(ONE, tmp_path, worker)
    assert worker.started == 1


def test_long_messages_in_both_directions_do_not_wait_for_each_other(tmp_path):
    """Weights and answers of a megabyte each, three steps ahead."""

    class Long(HighTokens):
        def judge(self, tasks, responses, policy=None):
            verdict = super().judge(tasks, responses)
            return verdict._replace(failure_M=["x" * 100_000] * len(responses))

    shape = dataclasses.replace(SHAPE, hidden_size=256, intermediate_size=256)
    config = dataclasses.replace(
        ONE, staleness=3, alpha=0.0, advantage="leave-one-out", samples_per_prompt=2
    )
    worker = Worker(config, Long(), shape=shape)
    ended = []

    def run():
        rldtf.train(
            policy(shape=shape),
            critic(shape=shape),
            Long(),
            config,
            seed=SEED,
            directory=str(tmp_path),
            boards=(),
            worker=worker,
        )
        ended.append(True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(120)
    assert ended and worker.started == 1


def test_the_trainer_never_asks_its_own_judge(tmp_path):
    mine, its = Recording(), Recording()
    trained(ONE, tmp_path, Worker(ONE, its), mine)
    assert mine.asked == [] and len(its.asked) == ONE.steps

"""The network world behind the environment that the learning side takes, and its training."""

import dataclasses
import json
import random

import numpy as np
import pytest

from experiments.network import train
from experiments.network.__main__ import right_tool
from experiments.network.environment import ENOUGH, NetworkEnvironment, by_reference
from experiments.network.tasks import judge, tasks
from rldtf_jax import tokenizer
from rldtf_jax.config import SFTConfig

TASKS = tasks(5, 20, (3, 6))


def careful(task):
    arguments = {name: f"@{name}" for name in right_tool(task).arguments}
    for name in arguments.keys() & {"snr", "noise"} if task.decibels else ():
        arguments[name] += " from dB"
    if "alpha" in arguments:
        arguments["alpha"] = task.figures["alpha"]
    return by_reference(right_tool(task).name, arguments)


@pytest.fixture(scope="module")
def env():
    texts = [f"user\n{task.prompt}\nassistant\n{careful(task)}" for task in TASKS]
    return NetworkEnvironment(TASKS, tokenizer.train_bpe(texts, 400), seed=1)


def ids(env, text):
    return np.array(env.tokenizer.encode(text, special=False) + [env.eos_id])


def test_responses_are_judged_as_their_texts(env):
    texts = [careful(task) for task in TASKS]
    verdict = env.judge(TASKS, [ids(env, text) for text in texts])
    np.testing.assert_allclose(verdict.reward_M, 1, atol=1e-5)
    assert verdict.fulfilled_M.all() and verdict.failure_M == [None] * len(TASKS)
    behind = [np.append(ids(env, text), [3, 4]) for text in texts]  # what follows the end
    np.testing.assert_array_equal(env.judge(TASKS, behind).reward_M, verdict.reward_M)
    wrong = env.judge(TASKS, [ids(env, "{")] * len(TASKS))
    assert (wrong.reward_M == -1).all() and not wrong.fulfilled_M.any() and all(wrong.failure_M)
    seen = env.summary(TASKS, [ids(env, text) for text in texts], verdict, [])
    assert seen["calls/right_kind"] == seen["calls/carried_out"] == 1 and seen["calls/cost"] > 1


def test_equal_texts_of_one_task_are_carried_out_once(env, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "experiments.network.tasks.judge",
        lambda task, text: asked.append(text) or judge(task, text),
    )
    some, responses = [TASKS[0]] * 5 + [TASKS[1]], [ids(env, "{")] * 6
    verdict = env.judge(some, responses)
    assert verdict.stats == {"sequences": 6, "distinct": 2}
    assert env.summary(some, responses, verdict, [])["calls/carried_out"] == 0
    assert asked == ["{", "{"]


def test_a_step_is_a_function_of_its_number(env):
    for step in (0, 7):
        (some, *arrays), (others, *again) = (env.batch(step, 6) for _ in range(2))
        assert some == others
        for a, b in zip(arrays, again):
            np.testing.assert_array_equal(a, b)
    epoch = [task for step in range(4) for task in env.batch(step, 5)[0]]
    assert sorted(map(id, epoch)) == sorted(map(id, TASKS))


def test_the_careless_engineer_is_right_more_than_half_of_the_time_and_can_be_carried_out():
    rng = random.Random(0)
    verdicts = [judge(task, train.engineer(task, rng)) for task in TASKS for _ in range(10)]
    share = np.mean([one.share >= ENOUGH for one in verdicts])
    assert 0.55 < share < 0.9
    assert max(one.reward for one in verdicts) == 1


@pytest.fixture
def short(monkeypatch):
    few = dataclasses.replace(train.PHASE1, steps=40, save_every=40)
    monkeypatch.setattr(train, "TRAIN", 60)
    monkeypatch.setattr(train, "TEST", 10)
    monkeypatch.setattr(train, "SIZES", (3, 5))
    monkeypatch.setattr(train, "SPLITS", {"test": ((3, 5), False)})
    monkeypatch.setattr(train, "PHASE1", few)
    monkeypatch.setattr(train, "REJECT", SFTConfig(steps=2, batch_size=8, save_every=2))
    monkeypatch.setattr(
        train, "RL", dataclasses.replace(train.RL, prompts_per_step=2, alpha=2.0, num_perturb=1)
    )


def test_all_stages_run_and_a_second_start_has_the_same_table(short, tmp_path, capsys):
    """With the paper's token weights on, so that perturbed calls are judged too."""
    asked = [f"out={tmp_path / 'run'}", "steps=2"]
    train.main(asked)
    once = capsys.readouterr().out
    assert all(f"| {name} |" in once for name in ("phase 1", "+ rejection sampling", "+ RLDTF"))
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["test"]["phase 1"]["carried out"][0] > 0  # it has learnt what a call is
    rows = (tmp_path / "run" / "rldtf" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 and "calls/right_kind" in json.loads(rows[0])
    train.main(asked)
    assert capsys.readouterr().out == once

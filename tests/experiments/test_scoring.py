"""The judge without JAX: the scorer, the Gymnasium environment and the reward function for TRL."""

import dataclasses
import inspect
import itertools
import json
import pickle
import random
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from experiments.world import scoring, wording, worlds
from experiments.world.environment import TwinEnvironment
from experiments.world.gym import TwinEnv
from experiments.world.reading import task_id
from experiments.world.scoring import judge, score
from experiments.world.tasks import random_workflow
from experiments.world.trl_reward import TwinReward, dataset_rows
from rldtf_jax.config import ConfigError
from rldtf_jax.reward import NO_SERVICE, RewardConfig
from rldtf_jax.tokenizer import train_bpe
from twin import Twin, Workflow

SMALL = dict(method="esm", max_blocks=32)


@pytest.fixture(scope="module")
def twin():
    with Twin(workers=1, seed=worlds.noise_seed(0, "evaluate"), **SMALL) as running:
        yield running


@pytest.fixture(scope="module")
def tasks():
    """With a witness each, not necessarily a good one."""
    rng = random.Random(1)
    drawn = itertools.islice(worlds.candidates(worlds.family("link-native"), 3), 24)
    return [
        dataclasses.replace(task, witness=random_workflow(rng, task.scenario)) for task in drawn
    ]


@pytest.fixture(scope="module")
def responses(tasks):
    """Valid ones, broken ones, and such that ask for what the scenario lacks."""
    rng, texts = random.Random(0), []
    for i, task in enumerate(tasks):
        workflow = random_workflow(rng, task.scenario)
        if i % 6 == 5:
            workflow = dataclasses.replace(workflow, num_prb=task.scenario.max_prb + 1)
        text = task.response(workflow)
        texts.append(text[: len(text) // 2] if i % 6 == 3 else text)
    texts[0] = ""
    return texts


def test_the_scorer_and_training_judge_alike_to_the_bit(twin, tasks, responses):
    tokenizer = train_bpe([task.prompt() + text for task, text in zip(tasks, responses)], 600)
    environment = TwinEnvironment(tasks, tokenizer, twin, RewardConfig())
    verdict = environment.judge_text(tasks, responses)
    ours = judge(tasks, responses, twin)
    np.testing.assert_array_equal(np.float32([one.R for one in ours]), verdict.reward_M)
    np.testing.assert_array_equal([one.fulfilled for one in ours], verdict.fulfilled_M)
    assert [one.failure for one in ours] == verdict.failure_M
    assert {"scenario", None} < {one.failure for one in ours}


def test_a_workflow_is_judged_as_the_text_that_says_it(twin, tasks):
    workflows = [random_workflow(random.Random(i), task.scenario) for i, task in enumerate(tasks)]
    texts = [task.response(w) for task, w in zip(tasks, workflows)]
    assert judge(tasks, workflows, twin) == judge(tasks, texts, twin)
    assert judge(tasks[:1], [None], twin)[0] == (NO_SERVICE, False, "missing", None)


def test_the_table_holds_the_means_of_what_was_judged(twin, tasks, responses):
    answers = [None if i == 7 else text for i, text in enumerate(responses)]
    result = score(tasks, answers, twin)
    judged = judge(tasks, answers, twin)
    witnesses = judge(tasks, [task.witness for task in tasks], twin)
    row = result["table"][0]
    assert row["stratum"] == "all" and row["tasks"] == 24
    R = [one.R for one in judged]
    assert row["mean_R"][0] == pytest.approx(np.mean(R))
    assert row["regret"][0] == pytest.approx(np.mean([w.R for w in witnesses]) - np.mean(R))
    assert row["fulfilment"][0] == np.mean([one.fulfilled for one in judged])
    assert row["unusable"][0] == np.mean([one.failure is not None for one in judged])
    errors = [
        wording.intent_error(wording.read_intent(answer or ""), task.required)
        for task, answer in zip(tasks, answers)
        if task.infers
    ]
    assert row["intent_error"][0] == pytest.approx(np.mean(errors))
    for row in result["table"]:
        for measure in scoring.MEASURES:
            value, low, high = row[measure] or (0, 0, 0)
            assert low <= value + 1e-12 and value <= high + 1e-12
    for name in ("kind", "split", "channel"):
        assert sum(row["tasks"] for row in result["table"] if row["stratum"].startswith(name)) == 24
    assert [one["task"] for one in result["answers"]] == [task_id(task) for task in tasks]
    assert [one["failure"] for one in result["answers"]] == [one.failure for one in judged]
    json.dumps(result, allow_nan=False)


def test_the_oracle_has_no_regret_and_infers_exactly(twin, tasks):
    answers = [task.response(task.witness) for task in tasks]
    row = score(tasks, answers, twin)["table"][0]
    assert row["regret"] == [0, 0, 0] and row["intent_error"] == [0, 0, 0]
    assert row["unusable"][0] == 0


def test_what_cannot_be_measured_is_said_to_be_nothing(twin, tasks):
    some = [dataclasses.replace(task, witness=None) for task in tasks if not task.infers][:2]
    table = score(some, [Workflow(num_prb=273), None], twin)["table"]
    assert table[0]["regret"] is table[0]["score"] is table[0]["intent_error"] is None
    assert table[0]["mean_R"] == [-1, -1, -1] and table[0]["unusable"][0] == 1
    lines = scoring.as_text(table).splitlines()
    assert len(lines) == 1 + len(table) and lines[1].split()[-1] == "-"


def test_as_many_answers_as_tasks(twin, tasks):
    with pytest.raises(ValueError):
        judge(tasks, [None], twin)


def test_the_scorer_imports_no_jax():
    code = (
        "import sys; from experiments.world import __main__, scoring, trl_reward, gym;"
        "bad = {'jax', 'flax', 'tensorflow', 'torch', 'matplotlib'} & set(sys.modules);"
        "sys.exit(', '.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Gymnasium


@pytest.fixture
def env(twin, tasks):
    return TwinEnv(tasks, twin)


def test_the_environment_passes_gymnasium_s_own_check(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


def test_an_episode_is_one_response_and_its_reward_eq_2(env, twin, tasks, responses):
    for i, (task, text) in enumerate(zip(tasks, responses)):
        prompt, info = env.reset(options={"index": i})
        assert prompt == task.prompt() and info == {"index": i}
        again, R, terminated, truncated, info = env.step(text)
        (one,) = judge([task], [text], twin)
        assert (R, info["fulfilled"], info["failure"], info["qos"]) == one
        assert again == prompt and terminated and not truncated
        assert type(R) is float and (info["qos"] is None) == (R == NO_SERVICE)


def test_any_characters_of_a_response_are_judged(env):
    env.reset(seed=0)
    assert env.step("Verwende 60 kHz – nicht mehr 🙂")[1] == NO_SERVICE


def test_an_episode_begins_with_a_reset(env):
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("")
    env.reset(seed=0)
    env.step("")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("")
    with pytest.raises(ValueError, match="at least one"):
        TwinEnv([], env.twin)


def test_the_same_seed_draws_the_same_tasks(env):
    drawn = [env.reset(seed=5)[0], *(env.reset()[0] for _ in range(9))]
    assert drawn == [env.reset(seed=5)[0], *(env.reset()[0] for _ in range(9))]
    assert len(set(drawn)) > 3


# TRL


@pytest.fixture(scope="module")
def reward():
    made = TwinReward(seed=3, workers=1, max_blocks=32)
    yield made
    made.close()


def batch(tasks):
    """What GRPOTrainer passes beside the completions: everything by keyword, columns as lists."""
    rows = dataset_rows(tasks)
    return {
        "prompts": [row["prompt"] for row in rows],
        "task": [row["task"] for row in rows],
        "completion_ids": [[0]] * len(rows),
        "trainer_state": None,
        "log_metric": print,
    }


def test_the_reward_is_the_judge_s_on_the_noise_of_training(reward, tasks, responses):
    values = reward(completions=responses, **batch(tasks))
    assert all(type(value) is float for value in values)
    with Twin(workers=1, seed=worlds.noise_seed(3, "train"), **SMALL) as twin:
        assert values == [one.R for one in judge(tasks, responses, twin)]


def test_completions_may_be_messages(reward, tasks, responses):
    chat = [[{"role": "assistant", "content": text}] for text in responses]
    assert reward(completions=chat, **batch(tasks)) == reward(completions=responses, **batch(tasks))
    silent = [[{"role": "assistant", "content": None}]]
    assert reward(completions=silent, **batch(tasks[:1])) == [NO_SERVICE]


def test_the_trainer_finds_a_name_and_may_pickle_the_reward(reward, tasks, responses):
    assert reward.__name__ == "twin_reward" and not inspect.iscoroutinefunction(reward)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.__name__ == "twin_reward"
    some = batch(tasks[:2])
    assert copy(completions=responses[:2], **some) == reward(completions=responses[:2], **some)
    copy.close()


def test_a_column_that_holds_no_task_is_refused_in_one_line(reward, tasks):
    row = json.loads(dataset_rows(tasks[:1])[0]["task"])
    for column in ("{", json.dumps(row | {"ber": "low"})):
        with pytest.raises(ConfigError, match=r"^[^\n]* = .*: expected .*$"):
            reward(prompts=[""], completions=[""], task=[column])

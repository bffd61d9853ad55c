"""The judge: real twin, real tokenizer, hostile responses."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.world import tasks
from experiments.world.environment import TwinEnvironment
from rldtf_jax.reward import RewardConfig, fulfilled, reward
from rldtf_jax.tokenizer import train_bpe


@pytest.fixture(scope="module")
def responses(drawn):
    rng = random.Random(0)
    return [task.response(tasks.random_workflow(rng, task.scenario)) for task in drawn]


@pytest.fixture(scope="module")
def environment(twin, drawn, responses):
    tokenizer = train_bpe([task.prompt() + text for task, text in zip(drawn, responses)], 600)
    return TwinEnvironment(drawn, tokenizer, twin, RewardConfig(), seed=0)


def tokens_of(environment, texts):
    return [
        np.array(environment.tokenizer.encode(text, special=False) + [environment.eos_id])
        for text in texts
    ]


def test_rewards_are_eq_2_of_what_the_twin_measures(environment, twin, drawn, responses):
    verdict = environment.judge(drawn, tokens_of(environment, responses))
    assert verdict.failure_M == [None] * len(drawn)
    rng = random.Random(0)
    measured = twin.evaluate(
        [(task.scenario, tasks.random_workflow(rng, task.scenario)) for task in drawn]
    )
    triples = np.array([task.measured(q) for task, q in zip(drawn, measured)])
    required = np.array([task.required for task in drawn])
    np.testing.assert_allclose(verdict.reward_M, reward(triples, required), rtol=1e-6)
    np.testing.assert_array_equal(verdict.fulfilled_M, fulfilled(triples, required))


def test_rewards_do_not_depend_on_the_order_or_the_rest_of_the_batch(environment, drawn, responses):
    tokens = tokens_of(environment, responses)
    together = environment.judge(drawn, tokens).reward_M
    backwards = environment.judge(drawn[::-1], tokens[::-1]).reward_M[::-1]
    alone = [environment.judge([task], [ids]).reward_M[0] for task, ids in zip(drawn, tokens)]
    np.testing.assert_array_equal(together, backwards)
    np.testing.assert_array_equal(together, alone)


def test_the_same_workflow_in_other_words_is_simulated_once(environment, drawn, responses):
    other_words = responses[0].replace(", ", " ").replace("Use", "Take")
    before = environment.twin.stats.simulated
    verdict = environment.judge_text([drawn[0]] * 50, [responses[0], other_words] * 25)
    assert environment.twin.stats.simulated - before <= 1 and verdict.stats["workflows"] == 1
    assert len(set(verdict.reward_M.tolist())) == 1 and verdict.failure_M == [None] * 50


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 599), max_size=40))
def test_arbitrary_tokens_get_minus_one_and_cost_no_simulation(environment, ids):
    before = environment.twin.stats.requests
    verdict = environment.judge([environment.tasks[0]], [np.array(ids, int)])
    assert verdict.reward_M[0] == -1 and not verdict.fulfilled_M[0] and verdict.failure_M[0]
    assert environment.twin.stats.requests == before


@pytest.mark.parametrize(
    "change, kind",
    [
        (("PRB", "PRBs"), "num_prb"),
        (("Use", "<think>"), "think"),
        (("LDPC", "polarity"), "code"),
        ((" rate 0", " rate 7"), "parse"),
        ((" PRB", "0 PRB"), "scenario"),
        ((" layer", "4 layer"), "parse"),
        ((" DMRS", "3 DMRS"), "parse"),
    ],
)
def test_broken_or_impossible_workflows_get_minus_one_with_a_word_why(
    environment, drawn, responses, change, kind
):
    head, think_end, answer = responses[0].rpartition("</think>")
    verdict = environment.judge_text([drawn[0]], [head + think_end + answer.replace(*change)])
    assert verdict.reward_M[0] == -1 and verdict.failure_M[0] == kind


def test_what_follows_the_first_eos_is_not_read(environment, drawn, responses):
    (ids,) = tokens_of(environment, responses[:1])
    with_tail = np.concatenate([ids, ids[:20]])
    assert environment.texts([ids]) == environment.texts([with_tail])
    assert environment.judge(drawn[:1], [with_tail]).failure_M == [None]


def test_batches_are_a_function_of_the_step_and_pass_over_all_tasks(environment):
    first, again = environment.batch(3, 8), environment.batch(3, 8)
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])
    seen = [task for step in range(3) for task in environment.batch(step, 8)[0]]
    assert len({id(task) for task in seen}) == len(environment.tasks) == 24
    assert environment.batch(0, 8)[0] != environment.batch(3, 8)[0]


@given(st.integers(1, 1500), st.integers(0, 1 << 31))
@settings(max_examples=20)
def test_a_rows_reward_is_the_same_to_the_bit_whatever_is_judged_beside_it(n, seed):
    rng = np.random.default_rng(seed)
    measured, required = 10 ** rng.uniform(-3, 3, (2, n, 3))
    R, good = (reward(measured, required), fulfilled(measured, required))
    row = int(rng.integers(n))
    alone, met = (f(measured[row : row + 1], required[row : row + 1]) for f in (reward, fulfilled))
    assert (alone[0], met[0]) == (R[row], good[row]) and len(R) == n


def test_the_summary_counts_what_is_missed_wasted_copied_and_how_many_modes_there_are(
    environment, drawn, responses
):
    tokens = tokens_of(environment, responses)
    verdict = environment.judge(drawn, tokens)
    found = environment.summary(drawn, tokens, verdict)
    for i, name in enumerate(("delay", "throughput", "errors")):
        assert found[f"missed/{name}"] == np.mean(verdict.margin_Mx3[:, i] < 0)
    np.testing.assert_array_equal(verdict.fulfilled_M, (verdict.margin_Mx3 >= 0).all(1))
    assert found["think_copied"] == 1 and 0 < found["grant_agrees"] <= 1 and found["failed"] == 0
    assert 5 < found["modes"] <= len(drawn)
    same = environment.summary(
        drawn[:1] * 5, tokens[:1] * 5, environment.judge(drawn[:1] * 5, tokens[:1] * 5)
    )
    assert same["modes"] == pytest.approx(1)
    wrong = [text.replace("<think> SNR ", "<think> SNR 1") for text in responses]
    other = environment.summary(drawn, tokens_of(environment, wrong), verdict)
    assert other["think_copied"] == 0


def test_surprisal_is_that_of_the_think_part_and_of_what_follows(environment, drawn, responses):
    tokens = tokens_of(environment, responses)
    ends = [environment.thoughts(ids) for ids in tokens]
    for ids, end, text in zip(tokens, ends, responses):
        parts = [environment.tokenizer.decode(some.tolist()) for some in (ids[:end], ids[end:])]
        assert (
            parts[0].endswith("</think>")
            and text.startswith(parts[0])
            and "<think>" not in parts[1]
        )
    logp = [np.where(np.arange(len(ids)) < end, -0.25, -2.0) for ids, end in zip(tokens, ends)]
    found = environment.summary(drawn, tokens, environment.judge(drawn, tokens), logp)
    assert (found["surprisal/think"], found["surprisal/answer"]) == (0.25, 2.0)
    assert environment.thoughts(tokens[0][ends[0] :]) == 0


def test_margins_are_nan_where_nothing_ran(environment, drawn, responses):
    verdict = environment.judge_text(drawn[:2], [responses[0], "nothing"])
    assert np.isfinite(verdict.margin_Mx3[0]).all() and np.isnan(verdict.margin_Mx3[1]).all()

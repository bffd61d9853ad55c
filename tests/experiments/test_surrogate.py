"""A surrogate in the twin's place: asked where all of its networks are sure, seen to now and then,
and never elsewhere.
"""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import load
from experiments.studies import surrogate as study
from experiments.world import tasks
from experiments.world.environment import TwinEnvironment
from experiments.world.orchestration import read
from experiments.world.scoring import Judgement, judge_readings
from experiments.world.surrogate import Surrogate, drawn
from rldtf_jax.config import ConfigError
from rldtf_jax.tokenizer import train_bpe


class Networks:
    """Says of each workflow what it is told to, by the size of its grant."""

    def __init__(self, p_KxG, reward=0.5):
        self.p_KxG, self.reward = np.asarray(p_KxG, float), reward

    def each(self, pairs):
        p = self.p_KxG[:, [w.num_prb % self.p_KxG.shape[1] for _, w in pairs]]
        return np.full(p.shape, self.reward), p


@pytest.fixture(scope="module")
def answers(drawn):
    rng = random.Random(0)
    found = [(t, t.response(tasks.random_workflow(rng, t.scenario))) for t in drawn * 6]
    return [*found, (drawn[0], "Use anything."), found[0]]


@pytest.fixture(scope="module")
def truth(answers, twin):
    return judge_readings([t for t, _ in answers], [read(text) for _, text in answers], twin)


def judged(surrogate, answers, twin):
    """(judgements, what was spared, what the twin was asked)."""
    asked = []

    def ask(some, readings):
        asked.extend(zip(some, readings))
        return judge_readings(some, readings, twin)

    readings = [read(text) for _, text in answers]
    return *surrogate.judge([task for task, _ in answers], readings, ask), asked


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=3, max_size=3),
    st.floats(0.51, 1),
    st.floats(0, 1),
)
def test_it_answers_only_where_every_network_is_sure(answers, twin, truth, p_GxK, sure, audit):
    p_KxG = np.array(p_GxK).T
    found, spared, asked = judged(Surrogate(Networks(p_KxG), sure, audit), answers, twin)
    counts = Counter()
    for (task, text), one, true in zip(answers, found, truth):
        workflow, failure = read(text)
        p = None if failure else p_KxG[:, workflow.num_prb % 3]
        certain = p is not None and (p.min() >= sure or p.max() <= 1 - sure)
        if true.qos is None or not certain or drawn(task, workflow) < audit:
            assert one == true and (task, (workflow, failure)) in asked
        else:
            assert one == Judgement(0.5, bool(p.mean() > 0.5), None, None)
            assert (task, (workflow, failure)) not in asked
        if true.qos is not None and certain:
            audits = drawn(task, workflow) < audit
            counts["audited" if audits else "spared", task, workflow] = 1
            if audits and true.fulfilled != (p.mean() > 0.5):
                counts["wrong", task, workflow] = 1
    for name in ("spared", "audited", "wrong"):
        assert spared[name] == sum(n for (kind, *_), n in counts.items() if kind == name)


def test_nothing_that_can_be_run_asks_no_network(drawn, twin):
    (one,), spared, _ = judged(Surrogate(None), [(drawn[0], "no workflow")], twin)
    assert one.R == -1 and one.failure and spared == {}


def test_audits_are_a_function_of_task_and_workflow_and_uniform(answers):
    pairs = {(task, read(text)[0]) for task, text in answers if read(text)[0]}
    found = sorted(drawn(*pair) for pair in pairs)
    assert found == sorted(drawn(*pair) for pair in pairs) and len(set(found)) == len(pairs)
    assert 0 <= found[0] and found[-1] < 1 and abs(np.mean(found) - 0.5) < 0.25


def test_the_judge_counts_what_it_spares_and_the_twin_is_not_asked(drawn, answers, twin):
    texts = [text for _, text in answers]
    tokenizer = train_bpe([task.prompt() + text for task, text in answers], 600)
    surrogate = Surrogate(Networks(np.full((4, 1), 0.999)), 0.95, 0.0)
    env = TwinEnvironment(drawn, tokenizer, twin, surrogate=surrogate)
    before = twin.stats.requests
    verdict = env.judge_text([task for task, _ in answers], texts)
    assert twin.stats.requests == before and verdict.stats["spared"] > 0
    ran = np.array([failure is None for failure in verdict.failure_M])
    assert verdict.fulfilled_M[ran].all() and (verdict.reward_M[ran] == 0.5).all()
    assert (verdict.costs["prb"][ran] > 0).all()  # known without a twin
    plain = TwinEnvironment(drawn, tokenizer, twin).judge_text([answers[0][0]], texts[:1])
    assert "spared" not in plain.stats


@pytest.mark.parametrize(
    "key, words",
    [
        ("surrogate.sure=0.4", "surrogate.sure = 0.4: expected a number in (0.5, 1], or null"),
        ("surrogate.audit=2", "surrogate.audit = 2.0: expected a number in [0, 1]"),
    ],
)
def test_a_wrong_key_is_one_line(key, words):
    with pytest.raises(ConfigError) as error:
        load(["preset=smoke", key])
    assert words in str(error.value)


def test_the_study_counts_what_is_spared_and_what_is_wrong(answers, truth):
    """Networks that are sure of everything and always say yes: wrong wherever it is not."""
    readable = [i for i, one in enumerate(truth) if one.qos is not None]
    pairs = [(answers[i][0], read(answers[i][1])[0]) for i in readable]
    good = np.array([truth[i].fulfilled for i in readable])
    R = np.array([truth[i].R for i in readable])
    yes = Surrogate(Networks(np.full((4, 1), 0.97), reward=0.7), 0.95, 0.0)
    row = study.at(yes, pairs, R, good)
    assert row["spared"] == 1 and row["reward"] == [pytest.approx(0.7), pytest.approx(R.mean())]
    assert row["wrong"][0] == row["flattered"] == pytest.approx(1 - good.mean())
    assert row["fulfilment"] == [1.0, pytest.approx(good.mean())]
    unsure = study.at(yes._replace(sure=0.98), pairs, R, good)
    assert unsure["spared"] == 0 and unsure["wrong"][0] == 0
    assert unsure["reward"][0] == unsure["reward"][1]
    assert study.table([row, unsure]).count("\n") == 3

"""The tolerant reader: what is whole reads as the strict reader reads it, damage costs its price
and no more, and what the platform lacks is never asked for.
"""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.world import tasks, worlds
from experiments.world.environment import TwinEnvironment
from experiments.world.orchestration import FIELDS, OPTIONAL, read, values
from experiments.world.search import offered, runs, written
from experiments.world.tolerant import PRICE, mend
from rldtf_jax.reward import NO_SERVICE, RewardConfig
from rldtf_jax.tokenizer import train_bpe

FAMILY = worlds.family("link")
SEEDS = st.integers(0, 2**32 - 1)


def response_of(seed):
    rng, task = random.Random(seed), next(worlds.candidates(FAMILY, seed))
    workflow = tasks.random_workflow(rng, task.scenario)
    return task, workflow, task.response(workflow)


@given(SEEDS)
def test_a_whole_response_takes_no_repair_and_means_what_the_grammar_says(seed):
    task, workflow, text = response_of(seed)
    assert mend(text, task.scenario) == (workflow, None, 0)
    assert read(text) == (workflow, None)


@given(SEEDS, st.integers(0, 12))
def test_a_missing_value_takes_the_platforms_first_and_costs_one_repair(seed, which):
    task, workflow, text = response_of(seed)
    found = [value for value in values(text) if value[0] in FIELDS]
    name, start, stop = found[which % len(found)]
    mended = mend(text[:start] + "?" + text[stop:], task.scenario)
    expected = written(task.scenario, name)[-1 if name == "num_prb" else 0]
    assert mended.repairs == 1 and mended.failure is None
    assert [
        v
        for v in written(task.scenario, name)
        if mend(text[:start] + v + text[stop:], task.scenario).workflow == mended.workflow
    ] == [expected]


@given(SEEDS, st.data())
def test_the_last_valid_value_of_a_field_counts(seed, data):
    task, _, text = response_of(seed)
    name, start, stop = data.draw(
        st.sampled_from([value for value in values(text) if value[0] == "bits_per_symbol"])
    )
    later = data.draw(st.sampled_from(written(task.scenario, name)))
    once = mend(text[:start] + later + text[stop:], task.scenario)
    twice = mend(text + " " + later, task.scenario)
    assert (twice.workflow, twice.repairs) == (once.workflow, 1)


@given(
    SEEDS,
    st.integers(0, 400),
    st.integers(0, 60),
    st.lists(
        st.sampled_from(
            (
                "0",
                "1",
                "7",
                "300",
                "kHz",
                "PRB",
                "layer",
                "none",
                "1 precoding",
                "9 transmissions",
                "ir combining",
                "</think>",
                "<think>",
                "rate 0.99",
                "zf detection",
                "0 iterations",
                "99 iterations",
                "polar",
                "16QAM",
            )
        ),
        max_size=4,
    ),
)
def test_whatever_is_cut_out_or_put_in_the_workflow_has_what_the_platform_offers(
    seed, start, length, words
):
    task, _, text = response_of(seed)
    workflow, failure, repairs = mend(
        text[:start] + " ".join(words) + text[start + length :], task.scenario
    )
    assert (workflow is None) == (failure is not None) and repairs <= len(FIELDS) + len(
        OPTIONAL
    ) + 1 + len(words)
    if workflow is not None:
        for field in ("scs_khz", "bits_per_symbol", "code", "code_rate", "estimator", "detector"):
            assert getattr(workflow, field) in offered(task.scenario, field)
        assert 1 <= workflow.num_prb <= task.scenario.max_prb


def test_what_holds_no_value_is_empty():
    task, _, _ = response_of(0)
    assert mend("nothing of use", task.scenario) == (None, "empty", 0)


def test_a_repair_costs_its_price_of_what_the_mended_workflow_earns(twin, drawn):
    texts = [
        task.response(tasks.random_workflow(random.Random(0), task.scenario)) for task in drawn
    ]
    tokenizer = train_bpe([task.prompt() + text for task, text in zip(drawn, texts)], 600)
    tolerant, strict = (
        TwinEnvironment(drawn, tokenizer, twin, RewardConfig(), translator=kind)
        for kind in ("tolerant", "grammar")
    )
    whole = strict.judge_text(drawn, texts)
    np.testing.assert_array_equal(tolerant.judge_text(drawn, texts).reward_M, whole.reward_M)
    damaged = [text.replace(" DMRS", " pilots") for text in texts]
    assert set(strict.judge_text(drawn, damaged).failure_M) == {"num_dmrs"}
    verdict = tolerant.judge_text(drawn, damaged)
    again = strict.judge_readings(
        drawn, [mend(text, task.scenario)[:2] for task, text in zip(drawn, damaged)]
    )
    served = [i for i, failure in enumerate(again.failure_M) if failure is None]
    assert len(served) > len(drawn) / 2
    np.testing.assert_allclose(
        verdict.reward_M[served], np.maximum(again.reward_M[served] - PRICE, NO_SERVICE), rtol=1e-5
    )
    np.testing.assert_array_equal(verdict.fulfilled_M, again.fulfilled_M)


def test_the_fields_of_a_response_are_its_values_and_each_other_value_changes_that_field_alone(
    twin, drawn
):
    rng = random.Random(3)
    texts = [task.response(tasks.random_workflow(rng, task.scenario)) for task in drawn]
    tokenizer = train_bpe([task.prompt() + text for task, text in zip(drawn, texts)], 600)
    environment = TwinEnvironment(drawn, tokenizer, twin, RewardConfig())
    responses = [
        np.array(tokenizer.encode(text, special=False) + [tokenizer.eos_id]) for text in texts
    ]
    for task, text, ids, fields in zip(
        drawn, texts, responses, environment.fields(drawn, responses)
    ):
        names = [name for name, *_ in values(text)]
        assert len(fields) == len(names) >= len(FIELDS)
        workflow, _ = read(text)
        for name, field in zip(names, fields):
            own = text[slice(*next(span for n, *span in values(text) if n == name))]
            assert len(field.others) == len(set(written(task.scenario, name)) - {own})
            for changed in environment.texts(field.others):
                other, failure = read(changed)
                assert failure is None and {
                    f for f in vars(workflow) if getattr(workflow, f) != getattr(other, f)
                } == {name}
                assert (
                    name in ("num_layers", "precoder")
                    or runs(task.scenario, other)
                    or not runs(task.scenario, workflow)
                )
            assert all(
                np.array_equal(changed[: field.start], ids[: field.start])
                for changed in field.others
            )

"""What a response might have been: other workflows where the policy's other tokens lead to them,
valued without a simulation.
"""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.world.imagine import imagine, looked_at, neighbours, options, resized
from experiments.world.orchestration import each_prb_mbps
from experiments.world.search import runs, sized_workflow
from rldtf_jax.judge import OPTIONS, Verdict
from rldtf_jax.tokenizer import train_bpe

SEEDS = st.integers(0, 1 << 31)


@pytest.fixture(scope="module")
def tokenizer(drawn):
    rng = random.Random(0)
    return train_bpe(
        [
            task.prompt() + task.response(sized_workflow(rng, task))
            for task in drawn
            for _ in range(3)
        ],
        600,
    )


def written(tokenizer, task, workflow):
    text = task.response(workflow)
    return text, np.array([*tokenizer.encode(text, special=False), tokenizer.eos_id])


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_neighbour_runs_and_differs_in_one_decision_on_a_grant_that_carries_no_less(drawn, seed):
    rng = random.Random(seed)
    task = rng.choice(drawn)
    own = sized_workflow(rng, task)
    found = neighbours(task, own)
    assert (
        len(set(found)) == len(found)
        and own not in found
        and all(runs(task.scenario, w) for w in found)
    )
    for w in found:
        changed = {name for name in vars(own) if getattr(w, name) != getattr(own, name)} - {
            "num_prb"
        }
        assert len(changed - {"combining"} if "num_transmissions" in changed else changed) <= 1
        if changed:
            assert w.num_prb == task.scenario.max_prb or w.num_prb * each_prb_mbps(
                w
            ) >= own.num_prb * each_prb_mbps(own) * (1 - 1e-9)
            assert w.num_prb == 1 or (w.num_prb - 1) * each_prb_mbps(
                w
            ) < own.num_prb * each_prb_mbps(own)
    assert resized(own, own, task.scenario.max_prb) == own


def share_of_the_grant(pairs):
    """An emulator that says R = share of the widest grant."""
    R = np.array([w.num_prb / task.scenario.max_prb for task, w in pairs], np.float32)
    return R, R


@given(SEEDS, st.integers(0, 4))
@settings(max_examples=20, deadline=None)
def test_a_search_goes_on_from_the_best_and_values_all_that_it_has_looked_at(drawn, seed, rounds):
    rng = random.Random(seed)
    some = rng.sample(drawn, 2)
    own = [sized_workflow(rng, task) for task in some]
    found = looked_at(share_of_the_grant, some, own, rounds)
    for task, written, seen in zip(some, own, found):
        assert list(seen)[0] == written and all(runs(task.scenario, w) for w in seen)
        assert all(abs(R - w.num_prb / task.scenario.max_prb) < 1e-6 for w, R in seen.items())
        assert len(seen) == 1 if rounds == 0 else set(neighbours(task, written)) <= set(seen)
        best = max(seen, key=seen.get)
        # the grant may be doubled in a round
        assert rounds < 4 or seen[best] >= min(1, 2 * seen[written]) - 1e-6
    assert [
        len(seen) for seen in looked_at(lambda pairs: (np.full(len(pairs), 7.0),), some, own, 0)
    ] == [1, 1]
    assert (
        max(
            max(seen.values())
            for seen in looked_at(lambda pairs: (np.full(len(pairs), 7.0),), some, own, 1)
        )
        == 1.0
    )


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6),
    st.lists(st.integers(0, 2), max_size=5),
    SEEDS,
)
def test_a_token_is_worth_what_the_best_text_expects_that_goes_on_with_it(texts, own, seed):
    worth = np.random.default_rng(seed).uniform(0.1, 2, len(texts)).tolist()
    found = {(one.position, one.token): one.worth for one in options(own, texts, worth)}
    for t in range(len(own)):
        for token in range(3):
            through = [
                value
                for ids, value in zip(texts, worth)
                if ids[:t] == own[:t] and len(ids) > t and ids[t] == token
            ]
            assert found.pop((t, token), None) == max(through, default=None)
    assert not found  # nothing behind the response's end


def test_what_cannot_be_run_or_read_has_no_options_and_what_is_written_otherwise_has_them_up_to_there(  # noqa: E501
    drawn, tokenizer
):
    task = drawn[0]
    text, right = written(tokenizer, task, sized_workflow(random.Random(1), task))
    verdict = Verdict(np.float32([0.3]), np.ones(1, bool), [None], {})
    for other in (text.replace(" iterations", ""), "", "Use"):
        ids = np.array([*tokenizer.encode(other, special=False), tokenizer.eos_id])
        assert not imagine(
            share_of_the_grant, tokenizer, [task], [ids], [other], len(right) + 9, verdict
        ).worth_BxTxK.any()
    for other in (
        text.replace("<think> SNR ", "<think> SNR 9"),
        text.replace("Use", "Take"),
        text + " Over.",
    ):
        ids = np.array([*tokenizer.encode(other, special=False), tokenizer.eos_id])
        found = imagine(
            share_of_the_grant, tokenizer, [task], [ids], [other], len(right) + 9, verdict
        )
        parted = next(t for t, (x, y) in enumerate(zip(ids, right)) if x != y)
        assert (found.worth_BxTxK[0, : parted + 1].max(-1) > 0).all() and not found.worth_BxTxK[
            0, parted + 1 :
        ].any()
        assert (
            right[parted] in found.tokens_BxTxK[0, parted]
            and ids[parted] not in found.tokens_BxTxK[0, parted][found.worth_BxTxK[0, parted] > 0]
        )


def test_worth_is_the_best_expectation_above_no_service(drawn, tokenizer):
    rng, some = random.Random(2), drawn[:3]
    own = [sized_workflow(rng, task) for task in some]
    texts, ids = zip(*(written(tokenizer, task, w) for task, w in zip(some, own)))
    T = max(map(len, ids)) + 2
    verdict = Verdict(np.float32([0.3, -0.2, 0.9]), np.ones(3, bool), [None] * 3, {})
    tokens, worth, stats = imagine(share_of_the_grant, tokenizer, some, ids, texts, T, verdict)
    assert tokens.shape == worth.shape == (3, T, OPTIONS) and worth.min() == 0 and worth.max() <= 2
    gain = []
    for b, (task, seen) in enumerate(zip(some, looked_at(share_of_the_grant, some, own))):
        spelt = [written(tokenizer, task, w)[1].tolist() for w in seen]
        best = {}
        for one in options(ids[b].tolist(), spelt, [1 + R for R in seen.values()]):
            best.setdefault(one.position, []).append((one.worth, one.token))
        for t in range(T):
            there = sorted(best.get(t, []), reverse=True)[:OPTIONS]
            np.testing.assert_allclose(
                worth[b, t],
                [*(value for value, _ in there), *[0] * (OPTIONS - len(there))],
                rtol=1e-6,
            )
            assert {token for value, token in there if value > there[-1][0]} <= set(
                tokens[b, t]
            ) and (t >= len(ids[b])) == (not there)
        gain.append(max(seen.values()) - seen[own[b]])
    np.testing.assert_allclose(stats["imagined/gain"], np.mean(gain), rtol=1e-5)
    assert stats["imagined/workflows"] > 20 and np.isfinite(stats["imagined/explained_variance"])
    first = imagine(
        share_of_the_grant,
        tokenizer,
        some,
        ids,
        texts,
        T,
        Verdict(np.float32([0.3]), np.ones(1, bool), [None], {}),
    )
    # that the twin was asked about the first response alone changes none
    np.testing.assert_array_equal(first.worth_BxTxK, worth)
    assert (
        np.isnan(first.stats["imagined/explained_variance"])
        and first.stats["imagined/gain"] == stats["imagined/gain"]
    )

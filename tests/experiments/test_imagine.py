"""What a response might have been: other workflows where the policy's other tokens lead to them, valued without a simulation."""

import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from experiments.world.imagine import LEAST, imagine, neighbours, options, resized
from experiments.world.orchestration import each_prb_mbps, read
from experiments.world.search import runs, sized_workflow
from rldtf_jax.judge import Verdict
from rldtf_jax.tokenizer import train_bpe
from rldtf_jax.update import Alternatives

SEEDS = st.integers(0, 1 << 31)


@pytest.fixture(scope="module")
def tokenizer(drawn):
    rng = random.Random(0)
    return train_bpe([task.prompt() + task.response(sized_workflow(rng, task)) for task in drawn for _ in range(3)], 600)


def written(tokenizer, task, workflow):
    text = task.response(workflow)
    return text, np.array([*tokenizer.encode(text, special=False), tokenizer.eos_id])


def everything_likely(tokenizer, ids, p=0.1):
    """(likely_TxK, p_TxK): every token of the vocabulary but the one that stands there."""
    V = tokenizer.backend.get_vocab_size()
    likely = np.array([[v for v in range(V) if v != one] for one in ids])
    return likely, np.full(likely.shape, p, np.float32)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_neighbour_runs_and_differs_in_one_decision_on_a_grant_that_carries_no_less(drawn, seed):
    rng = random.Random(seed)
    task = rng.choice(drawn)
    own = sized_workflow(rng, task)
    found = neighbours(task, own)
    assert len(set(found)) == len(found) and own not in found and all(runs(task.scenario, w) for w in found)
    for w in found:
        changed = {name for name in vars(own) if getattr(w, name) != getattr(own, name)} - {"num_prb"}
        assert len(changed - {"combining"} if "num_transmissions" in changed else changed) <= 1
        if changed:
            assert w.num_prb == task.scenario.max_prb or w.num_prb * each_prb_mbps(w) >= own.num_prb * each_prb_mbps(own) * (1 - 1e-9)
            assert w.num_prb == 1 or (w.num_prb - 1) * each_prb_mbps(w) < own.num_prb * each_prb_mbps(own)
    assert resized(own, own, task.scenario.max_prb) == own


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_an_option_is_the_first_token_at_which_the_two_texts_part(drawn, tokenizer, seed):
    rng = random.Random(seed)
    task = rng.choice(drawn)
    own = sized_workflow(rng, task)
    text, ids = written(tokenizer, task, own)
    likely, p = everything_likely(tokenizer, ids)
    found = options(tokenizer, 3, task, ids, text, likely, p)
    assert {one.workflow for one in found if one.slot >= 0} == set(neighbours(task, own))  # nothing is lost where everything is likely
    for one in found:
        other = written(tokenizer, task, one.workflow)[1]
        assert one.row == 3 and read(tokenizer.decode(other[:-1]))[0] == one.workflow
        if one.slot < 0:
            assert one.workflow == own and one.token == ids[one.position]
        else:
            np.testing.assert_array_equal(other[:one.position], ids[:one.position])
            assert other[one.position] == one.token == likely[one.position, one.slot] != ids[one.position]
    assert [one.position for one in found if one.slot < 0] == list(range(len(ids)))  # all of its own tokens are worth keeping
    assert len(options(tokenizer, 3, task, ids, text, likely, p * 0 + LEAST / 2)) == len(ids)  # and alone where nothing else is likely
    wrong = text.replace("<think> SNR ", "<think> SNR 9")
    ids = np.array([*tokenizer.encode(wrong, special=False), tokenizer.eos_id])
    kept = [one.position for one in options(tokenizer, 3, task, ids, wrong, *everything_likely(tokenizer, ids)) if one.slot < 0]
    assert tokenizer.decode(ids[kept[0]:-1]).startswith(" Use ") and kept == list(range(kept[0], len(ids)))


def test_what_cannot_be_run_or_is_written_otherwise_has_no_options(drawn, tokenizer):
    task = drawn[0]
    text, ids = written(tokenizer, task, sized_workflow(random.Random(1), task))
    for other in (text.replace("Use", "Take"), text + " Over.", text.replace(" iterations", ""), ""):
        ids = np.array([*tokenizer.encode(other, special=False), tokenizer.eos_id])
        assert options(tokenizer, 0, task, ids, other, *everything_likely(tokenizer, ids)) == []


def test_worth_is_the_mean_expectation_above_no_service(drawn, tokenizer):
    """With an emulator that says R = share of the widest grant."""
    def emulator(pairs):
        R = np.array([w.num_prb / task.scenario.max_prb for task, w in pairs], np.float32)
        return R, R

    rng, some = random.Random(2), drawn[:3]
    texts, ids = zip(*(written(tokenizer, task, sized_workflow(rng, task)) for task in some))
    T = max(map(len, ids))
    likely, p = (np.stack([np.pad(x, ((0, T - len(x)), (0, 0))) for x in both])
                 for both in zip(*(everything_likely(tokenizer, one) for one in ids)))
    alternatives = Alternatives(None, None, None, likely, p)
    verdict = Verdict(np.float32([0.3, -0.2, 0.9]), np.ones(3, bool), [None] * 3, {})
    tokens, worth, stats = imagine(emulator, tokenizer, some, ids, texts, alternatives, verdict)
    assert tokens.shape == worth.shape == (3, T, likely.shape[-1] + 1) and worth.min() == 0 and worth.max() <= 2
    gain = 0.0
    for b, task in enumerate(some):
        by_token = {}
        for one in options(tokenizer, b, task, ids[b], texts[b], likely[b], p[b]):
            by_token.setdefault((one.position, one.slot, one.token), []).append(1 + one.workflow.num_prb / task.scenario.max_prb)
        for (t, slot, token), values in by_token.items():
            assert tokens[b, t, slot] == token
            np.testing.assert_allclose(worth[b, t, slot], np.mean(values), rtol=1e-5)
            gain += 0.1 * max(0.0, np.mean(values) - worth[b, t, -1]) if slot >= 0 else 0.0
        assert (worth[b] > 0).sum() == len(by_token) > len(ids[b])
    np.testing.assert_allclose(stats["imagined/gain"], gain / 3, rtol=1e-4)
    assert stats["imagined/workflows"] > 20 and np.isfinite(stats["imagined/explained_variance"])
    nothing = imagine(emulator, tokenizer, some, [x[:0] for x in ids], ["", "", ""], alternatives, verdict)
    assert not nothing.worth_BxTxK.any() and nothing.stats["imagined/gain"] == 0

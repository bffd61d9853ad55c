"""Several objectives: R less what a response costs, at prices that a sweep may differ in."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_conversations import TALK, Answering, conversations
from tiny_training import EOS, ONE, HighTokens

from rldtf_jax import arms, rldtf
from rldtf_jax.config import ConfigError, PricesConfig, RLDTFConfig
from rldtf_jax.judge import Arm, Prompts, priced
from rldtf_jax.sample import Samples

T = ONE.sample.max_new_tokens
NAMES = tuple(vars(PricesConfig()))


class Costly(HighTokens):
    """The highest id of a response is what it costs."""

    def judge(self, tasks, responses, policy=None):
        highest = [max(ids, default=0) for ids in responses]
        return super().judge(tasks, responses)._replace(costs={"prb": np.array(highest)})


def judged(config, env, seed=0):
    rng = np.random.default_rng(seed)
    tokens, lengths = rng.integers(2, 9, (4, T)), np.array([6, 3, 4, 5])
    tokens[np.arange(4), lengths - 1] = EOS
    (one,) = rldtf.judge(
        [Arm(config, seed, env)],
        [Prompts(list("abcd"), None, None, None)],
        [Samples(tokens, lengths, None, np.ones(4, bool))],
        [None],
        0,
    )
    return one, tokens, lengths


@given(
    st.dictionaries(st.sampled_from(NAMES), st.lists(st.floats(0, 9), min_size=3, max_size=3)),
    st.fixed_dictionaries({name: st.floats(0, 5) for name in NAMES}),
)
def test_costs_are_taken_at_their_prices(costs, prices):
    found = priced({name: np.float32(x) for name, x in costs.items()}, prices, 3)
    expected = sum((prices[name] * np.array(x) for name, x in costs.items()), np.zeros(3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_learnt_is_the_reward_less_the_costs_of_each_response_and_perturbation():
    config = dataclasses.replace(ONE, prices=PricesConfig(prb=0.1, tokens=2.0))
    free, tokens, lengths = judged(ONE, Costly())
    paid, *_ = judged(config, Costly())
    highest = np.array([row[:n].max() for row, n in zip(tokens, lengths)])
    np.testing.assert_array_equal(paid.verdict.reward_M, free.verdict.reward_M)
    np.testing.assert_allclose(
        paid.reward_B, free.reward_B - 0.1 * highest - 2.0 * lengths / 100, rtol=1e-6
    )
    np.testing.assert_array_equal(paid.costs["prb"], highest)
    # a perturbation that leaves R alone and costs less has a say of its own
    assert not np.allclose(paid.S.total, free.S.total)
    only_writing, *_ = judged(dataclasses.replace(ONE, prices=PricesConfig(tokens=2.0)), Costly())
    np.testing.assert_allclose(only_writing.S.total, free.S.total, atol=1e-6)


def test_questions_are_counted():
    config = dataclasses.replace(TALK, alpha=0.0, prices=PricesConfig(calls=0.25))
    prompts, talk = conversations(config)
    (paid,) = rldtf.judge([Arm(config, 3, Answering())], [prompts], [talk], [None], 0)
    free = dataclasses.replace(config, prices=PricesConfig())
    (unpaid,) = rldtf.judge([Arm(free, 3, Answering())], [prompts], [talk], [None], 0)
    assert set(paid.costs["calls"]) >= {0, 1}
    np.testing.assert_allclose(paid.reward_B, unpaid.reward_B - 0.25 * paid.costs["calls"])


def test_prices_differ_between_the_arms_of_a_sweep():
    """One call of the judge, the same verdicts, other rewards."""
    base = dataclasses.replace(ONE, alpha=0.0)
    configs = [dataclasses.replace(base, prices=PricesConfig(prb=x)) for x in (0.0, 0.3)]
    arms.check(configs)
    found = [judged(config, Costly())[0] for config in configs]
    np.testing.assert_allclose(
        found[0].reward_B - found[1].reward_B, 0.3 * found[0].costs["prb"], rtol=1e-5
    )


@pytest.mark.parametrize(
    "option, words",
    [
        ({"prices": {"prb": -1.0}}, "prb = -1.0: expected a number >= 0"),
        ({"advantage": "expected", "prices": {"prb": 1.0}}, "whose worth knows no costs"),
    ],
)
def test_a_price_without_meaning_is_refused(option, words):
    with pytest.raises(ConfigError, match=words):
        prices = PricesConfig(**option.pop("prices"))
        RLDTFConfig(prices=prices, with_critic=False, **option)

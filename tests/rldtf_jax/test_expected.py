"""advantage=expected on the tiny environment, which values exactly."""

import dataclasses

import jax
import numpy as np
from one_learner import CRITIC, POLICY, assert_equal
from tiny_training import ONE, HighTokens, Recording, take_step

from rldtf_jax import rldtf

EXPECTED = dataclasses.replace(
    ONE,
    prompts_per_step=32,
    advantage="expected",
    with_critic=False,
    alpha=0.0,
    beta_ent=0.0,
    beta_kl=0.0,
)


def several_steps(config, env, number, seed=3):
    """(states after each step, metrics) from the tiny models."""
    models, state = rldtf.initial(POLICY, CRITIC, config, seed)
    found = []
    for step in range(number):
        state, metrics = take_step(models, env, config, seed, state, step)
        found.append(jax.device_get((state, metrics)))
    return zip(*found)


def test_the_expected_advantage_climbs_what_the_environment_values():
    """The tiny environment values exactly, so a few large steps raise the reward of what is
    sampled.
    """
    _, seen = several_steps(EXPECTED, HighTokens(), 6)
    assert seen[-1]["reward"] > seen[0]["reward"] + 0.2 and seen[-1]["imagined/tokens"] > 0


def test_the_twin_is_asked_about_the_first_rollouts_alone_and_the_step_is_the_same():
    """With `expected` its verdict is a metric."""
    few = dataclasses.replace(EXPECTED, prompts_per_step=8, judge_first=3)
    whole, part = Recording(), Recording()
    (one,), (metrics,) = several_steps(dataclasses.replace(few, judge_first=None), whole, 1)
    (other,), (found,) = several_steps(few, part, 1)
    assert_equal(one.learner, other.learner)
    assert part.asked[0] == whole.asked[0][:3] and len(whole.asked[0]) == 8
    rewards = HighTokens().judge([None] * 3, [np.array(ids) for _, ids in part.asked[0]]).reward_M
    assert found["reward"] == rewards.mean() and metrics["loss"] == found["loss"]
    np.testing.assert_allclose(metrics["entropy"], found["entropy"])

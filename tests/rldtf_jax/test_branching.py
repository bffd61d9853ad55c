"""Families of responses: who shares what, what is learnt from whom, and that this is the gradient
of the expected reward.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from one_learner import CRITIC, POLICY, learner, static
from test_rollout_worker import Worker, trained
from tiny_training import EOS, ONE, HighTokens, take_step

from rldtf_jax import arms as together
from rldtf_jax import rldtf
from rldtf_jax.branching import tree_advantage
from rldtf_jax.config import ConfigError, RLDTFConfig
from rldtf_jax.judge import Arm
from rldtf_jax.rldtf import OneByOne

R = 10
TREE = dataclasses.replace(
    ONE,
    advantage="tree",
    samples_per_prompt=6,
    branches=4,
    with_critic=False,
    alpha=0.0,
    prompts_per_step=5,
    sample=dataclasses.replace(ONE.sample, max_new_tokens=R),
)


def state():
    return rldtf.RLState(learner(), nnx.state(POLICY), jnp.int32(0), jnp.float32(1))


def sampled(config=TREE, step=0, seed=3):
    models, arm = OneByOne(static()), Arm(config, seed, HighTokens())
    prompts = rldtf.draw(arm, step)
    (samples,) = models.respond((state(),), [arm], [prompts], step)
    return prompts, samples


def test_branches_share_what_stands_before_the_place_of_the_highest_entropy():
    prompts, samples = sampled()
    alone = dataclasses.replace(TREE, branches=0, advantage="leave-one-out")
    _, independent = sampled(alone)
    tokens_BxS, lengths_B = rldtf.join(*prompts[1:3], *samples[:2])
    hidden = POLICY.hidden(jnp.asarray(tokens_BxS), jnp.asarray(lengths_B))
    logp = np.asarray(jax.nn.log_softmax(POLICY.unembed(hidden)))
    entropy = -(np.exp(logp) * logp).sum(-1)
    n, families = TREE.samples_per_prompt, 2
    for g in range(TREE.prompts_per_step):
        for b in range(g * n, (g + 1) * n):
            head = g * n + (b - g * n) % families
            p, length = int(prompts.lengths_B[b]), int(samples.lengths_B[b])
            at = slice(p - 1, p - 1 + length)
            place = int(np.argmax(entropy[head, p - 1 : p - 1 + samples.lengths_B[head]]))
            own = samples.own_BxR[b]
            if b == head:  # what it would be without branches
                assert own[:length].all()
                np.testing.assert_array_equal(samples.tokens_BxR[b], independent.tokens_BxR[b])
            else:
                assert np.flatnonzero(own).tolist() == list(range(place, length))
                np.testing.assert_array_equal(
                    samples.tokens_BxR[b, :place], samples.tokens_BxR[head, :place]
                )
            written = samples.tokens_BxR[b, :length]
            np.testing.assert_allclose(
                samples.logp_BxR[b, :length], logp[b, at][np.arange(length), written], atol=1e-4
            )
            assert samples.ended_B[b] == (written[-1] == EOS) and EOS not in written[:-1]
    rows = samples.tokens_BxR.reshape(TREE.prompts_per_step, -1, R)
    assert any(len({tuple(row) for row in group}) > 4 for group in rows)


@given(st.integers(0, 10_000), st.sampled_from([(2, 1), (4, 2), (6, 4), (6, 3)]))
def test_behind_its_place_a_family_is_held_against_itself(seed, shape):
    each, branches = shape
    families, rng = each - branches, np.random.default_rng(seed)
    G, T, M = 3, 5, each // families
    reward = rng.normal(size=G * each).astype(np.float32)
    place = rng.integers(0, T, (G, families))
    mask = np.ones((G, M, families, T), bool)
    mask[:, 1:] = (np.arange(T) >= place[..., None])[:, None]
    A, _ = tree_advantage(reward, mask.reshape(-1, T), each, branches)
    A = np.asarray(A).reshape(G, M, families, T)
    R_GxMxF = reward.reshape(G, M, families)
    for g, f, t in itertools.product(range(G), range(families), range(T)):
        if t >= place[g, f]:
            np.testing.assert_allclose(A[g, :, f, t].sum(), 0, atol=1e-4)
            others = (R_GxMxF[g, :, f].sum() - R_GxMxF[g, :, f]) / (M - 1)
            np.testing.assert_allclose(A[g, :, f, t], R_GxMxF[g, :, f] - others, atol=1e-4)
        else:
            assert not A[g, 1:, f, t].any()
    before = np.where(np.arange(T) < place[..., None], A[:, 0], np.nan)
    if families > 1:
        sums = before[..., 0][~np.isnan(before[..., 0]).any(-1)].sum(-1)
        np.testing.assert_allclose(sums, 0, atol=1e-4)
    else:
        assert not np.nan_to_num(before).any()


@pytest.mark.parametrize("each, branches", [(4, 2), (6, 4), (6, 3)])
def test_the_mean_over_families_is_the_gradient_of_the_expected_reward(each, branches):
    """Two tokens of two kinds, all families that can be drawn, the place the second token."""
    rng = np.random.default_rng(each)
    p1, p2, reward = 0.3, np.array([0.6, 0.2]), rng.normal(size=(2, 2))
    families, M = each - branches, each // (each - branches)

    def pr(p, x):
        return p if x else 1 - p

    def score(a, b):  # of the logits: first token, second after 0, second after 1
        return np.array([a - p1, 0.0, 0.0]), np.where(np.arange(3) == 1 + a, b - p2[a], 0.0)

    expected = sum(
        pr(p1, a) * pr(p2[a], b) * reward[a, b] * sum(score(a, b))
        for a, b in itertools.product((0, 1), repeat=2)
    )
    one = [
        (a, bs, pr(p1, a) * np.prod([pr(p2[a], b) for b in bs]))
        for a in (0, 1)
        for bs in itertools.product((0, 1), repeat=M)
    ]
    mask = np.ones((M, families, 2), bool)
    mask[1:, :, 0] = False
    found, total = np.zeros(3), 0.0
    for drawn in itertools.product(one, repeat=families):
        weight = np.prod([chance for *_, chance in drawn])
        R_MxF = np.array([[reward[a, bs[m]] for a, bs, _ in drawn] for m in range(M)])
        A, _ = tree_advantage(R_MxF.reshape(-1), mask.reshape(-1, 2), each, branches)
        A = np.asarray(A).reshape(M, families, 2)
        gradient = sum(
            A[m, f, 0] * score(a, bs[m])[0] + A[m, f, 1] * score(a, bs[m])[1]
            for m in range(M)
            for f, (a, bs, _) in enumerate(drawn)
        )
        found += weight * gradient / each
        total += weight
    assert total == pytest.approx(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_step_learns_from_each_token_once_and_everywhere_alike(tmp_path):
    _, metrics = take_step(OneByOne(static()), HighTokens(), TREE, 3, state(), 0)
    assert metrics["ratio"] == pytest.approx(1, rel=1e-5) and metrics["costs/calls"] == 0
    prompts, samples = sampled()
    assert metrics["costs/tokens"] == pytest.approx(samples.own_BxR.sum(-1).mean() / 100)

    config = dataclasses.replace(TREE, steps=2, save_every=1)
    alone = trained(config, tmp_path / "alone")
    apart = trained(config, tmp_path / "apart", Worker(config, HighTokens()))
    for x, y in zip(alone[0], apart[0], strict=True):
        np.testing.assert_array_equal(x, y)

    arms = [Arm(TREE, seed, HighTokens()) for seed in (3, 4)]
    models, states = together.initial(POLICY, CRITIC, arms, 2)
    first, _ = models.respond(states, arms, [rldtf.draw(arm, 0) for arm in arms], 0)
    np.testing.assert_array_equal(first.tokens_BxR, samples.tokens_BxR)
    np.testing.assert_array_equal(first.author_BxR, samples.author_BxR)
    _, found = rldtf.rldtf_step(models, arms, states, 0)
    assert all(np.isfinite(one["loss"]) for one in found["arms"])


@pytest.mark.parametrize(
    "option, words",
    [
        ({"samples_per_prompt": 4, "branches": 4}, "branches = 4: expected so few"),
        ({"samples_per_prompt": 5, "branches": 2}, "branches = 2: expected so few"),
        ({"advantage": "leave-one-out"}, "advantage = 'leave-one-out': expected 'tree'"),
        ({"branches": 0}, "advantage = 'tree': expected 'tree' with branches"),
        ({"with_critic": True}, "branches = 2: expected 0 with turns > 1, a critic"),
        ({"turns": 2}, "branches = 2: expected 0 with turns > 1"),
    ],
)
def test_what_does_not_go_together_is_refused(option, words):
    good = {"samples_per_prompt": 4, "branches": 2, "advantage": "tree", "with_critic": False}
    RLDTFConfig(**good)
    with pytest.raises(ConfigError, match=words):
        RLDTFConfig(**good | option)

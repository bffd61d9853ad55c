"""Conversations: who wrote what, what is learnt from, and that asking is free to leave be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from one_learner import CRITIC, POLICY, REFERENCE, assert_close, assert_equal, learner, static
from test_rollout_worker import Worker, trained
from tiny_training import EOS, ONE, SHAPE, HighTokens, take_step

from rldtf_jax import arms as together
from rldtf_jax import rldtf, turns
from rldtf_jax.config import ConfigError, RLDTFConfig
from rldtf_jax.judge import Arm, Prompts
from rldtf_jax.rldtf import OneByOne
from rldtf_jax.sample import Samples, answers, calls, row_keys
from rldtf_jax.update import Rollouts, rldtf_loss

R = 14
SPOKEN = np.int32([9, EOS, 3])  # the world's words, an EOS among them as in a chat
TALK = dataclasses.replace(
    ONE,
    turns=3,
    advantage="leave-one-out",
    samples_per_prompt=2,
    with_critic=False,
    sample=dataclasses.replace(ONE.sample, max_new_tokens=R),
)


class Answering(HighTokens):
    """A message that begins with an odd id is a question; remembers what was asked of it."""

    def __init__(self, deaf=False):
        self.deaf, self.heard, self.judged = deaf, [], []

    def reply(self, tasks, messages):
        self.heard += [(task, np.asarray(ids).tolist()) for task, ids in zip(tasks, messages)]
        return [
            SPOKEN if ids[0] % 2 and ids[0] != EOS and not self.deaf else None for ids in messages
        ]

    def judge(self, tasks, responses, policy=None):
        self.judged.append([np.asarray(ids).tolist() for ids in responses])
        return super().judge(tasks, responses)


def conversations(config=TALK, env=None, step=0, seed=3):
    """(prompts, samples) of a step."""
    state = rldtf.RLState(learner(), nnx.state(POLICY), jnp.int32(0), jnp.float32(1))
    arm = Arm(config, seed, env or Answering())
    prompts = rldtf.draw(arm, step)
    (samples,) = OneByOne(static()).respond((state,), [arm], [prompts], step)
    return prompts, samples


def messages_of(talk, b):
    """[(who wrote it, its tokens)] of a row, read from the mask alone."""
    found = []
    for t in range(int(talk.lengths_B[b])):
        own = bool(talk.author_BxR[b, t])
        new = not found or found[-1][0] != own
        if new:
            found.append((own, []))
        found[-1][1].append(int(talk.tokens_BxR[b, t]))
    return found


@settings(max_examples=60)
@given(st.data())
def test_a_conversation_is_what_was_said_in_turn(data):
    """Whatever the policy writes, cut off or not, and whatever the world says to it."""
    B, most = 3, data.draw(st.integers(1, 4))
    token = st.integers(2, 8)
    asked: list[list[int]] = [[] for _ in range(B)]
    written: list[list[list[int]]] = [[] for _ in range(B)]

    def draw(asks):
        (prompts,) = asks
        tokens, lengths = np.zeros((B, R), np.int32), np.zeros(B, np.int32)
        ended = np.zeros(B, bool)
        for b in range(B):
            room = R if prompts.room_B is None else int(prompts.room_B[b])
            said = (data.draw(st.lists(token, max_size=6)) + [EOS])[:room]
            if room:
                written[b].append(said)
                asked[b].append(int(prompts.lengths_B[b]))
            tokens[b, : len(said)], lengths[b] = said, len(said)
            ended[b] = EOS in said
        return [Samples(tokens, lengths, -tokens.astype(np.float32), ended)]

    def reply(tasks, messages):
        assert all(ids[-1] == EOS for ids in messages)
        return [
            np.array(data.draw(st.lists(token, min_size=1, max_size=5)) + [EOS])
            if data.draw(st.booleans())
            else None
            for _ in messages
        ]

    lengths = np.int32([2, 5, 1])
    prompts = Prompts(["a", "b", "c"], np.full((B, 5), 7, np.int32), lengths, keys(B))
    (talk,) = turns.converse(draw, [reply], [prompts], most)
    read = answers(talk)
    for b in range(B):
        said = messages_of(talk, b)
        assert [tokens for own, tokens in said if own] == written[b]
        assert len(written[b]) <= most and talk.lengths_B[b] <= R
        assert calls(talk)[b] == len(written[b]) - 1
        assert read.tokens_BxR[b, : read.lengths_B[b]].tolist() == written[b][-1]
        assert talk.ended_B[b] == (written[b][-1][-1:] == [EOS])
        own = talk.own_BxR[b]
        np.testing.assert_array_equal(talk.logp_BxR[b], np.where(own, -talk.tokens_BxR[b], 0))
        before = [sum(len(part) for _, part in said[: 2 * i]) for i in range(len(written[b]))]
        assert asked[b] == [lengths[b] + n for n in before]  # all that was said is read


def keys(B):
    return row_keys(jax.random.key(0), jnp.arange(B))


def test_what_follows_is_sampled_behind_all_that_was_said():
    """The behaviour's log-probabilities are those of the policy that reads the whole: the ratio of
    the first update is 1 wherever the policy wrote, and nowhere else is it asked.
    """
    prompts, talk = conversations()
    asks = calls(talk)
    assert set(asks.tolist()) >= {0, 1} and talk.author_BxR[asks == 0].all()
    tokens_BxS, lengths_B = rldtf.join(*prompts[1:3], *talk[:2])
    hidden = POLICY.hidden(jnp.asarray(tokens_BxS), jnp.asarray(lengths_B))
    logp = np.asarray(jax.nn.log_softmax(POLICY.unembed(hidden)))
    for b, p in enumerate(prompts.lengths_B):
        for t in np.flatnonzero(talk.own_BxR[b]):
            token = talk.tokens_BxR[b, t]
            assert logp[b, p + t - 1, token] == pytest.approx(talk.logp_BxR[b, t], abs=1e-4)
    state = rldtf.RLState(learner(), nnx.state(POLICY), jnp.int32(0), jnp.float32(1))
    _, metrics = take_step(OneByOne(static()), Answering(), TALK, 3, state, 0)
    assert metrics["ratio"] == pytest.approx(1, rel=1e-5) and abs(metrics["kl"]) < 1e-6
    assert metrics["costs/calls"] == asks.mean() > 0


@pytest.mark.parametrize("option", [{}, {"perturb": "policy"}, {"perturb": "in-kind"}])
def test_a_world_that_never_speaks_changes_nothing(option):
    """What is written is the same to the bit, what is learnt but for the rounding of a program that
    has the mask.
    """
    ends = []
    for most in (1, 3):
        config, env = dataclasses.replace(TALK, turns=most, **option), Answering(deaf=True)
        state = rldtf.RLState(learner(), nnx.state(REFERENCE), jnp.int32(0), jnp.float32(1))
        state, metrics = take_step(OneByOne(static()), env, config, 3, state, 0)
        assert metrics["costs/calls"] == 0 and bool(env.heard) == (most > 1)
        ends.append(jax.device_get((env.judged, state, metrics)))
    assert ends[0][0] == ends[1][0]
    assert_close(*(end[1:] for end in ends), rtol=1e-4, atol=1e-4)


def test_tokens_of_the_world_have_no_say():
    """Their log-probability, advantage, weight, return and value may be anything: loss, metrics and
    gradients are the same; of the policy's own each has its say.
    """
    prompts, talk = conversations()
    tokens_BxS, lengths_B = rldtf.join(*prompts[1:3], *talk[:2])
    rng, shape = np.random.default_rng(0), talk.tokens_BxR.shape
    of = lambda: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    hidden = REFERENCE.hidden(jnp.asarray(tokens_BxS), jnp.asarray(lengths_B))
    at = prompts.lengths_B[:, None] - 1 + np.arange(R)
    rows = Rollouts(
        tokens_BxS,
        prompts.lengths_B,
        lengths_B,
        talk.logp_BxR,
        jnp.take_along_axis(hidden, jnp.minimum(at, hidden.shape[1] - 1)[..., None], 1),
        of(),
        of(),
        1 + np.abs(of()),
        of(),
        author_BxT=talk.author_BxR,
    )
    hyper = rldtf.hyper_at(TALK, 0)

    @jax.jit
    def loss(policy, rows):
        return rldtf_loss(
            static(), policy, nnx.state(CRITIC), nnx.state(REFERENCE), rows, hyper, 50.0
        )

    grad = jax.value_and_grad(loss, has_aux=True)
    expected = grad(nnx.state(POLICY), rows)
    world = ~talk.author_BxR & (np.arange(R) < talk.lengths_B[:, None])
    assert world.any()
    for name in ("old_logp_BxT", "advantage_BxT", "weight_BxT", "return_BxT", "old_value_BxT"):
        changed = np.where(world, 7.0, getattr(rows, name)).astype(np.float32)
        assert_equal(grad(nnx.state(POLICY), rows._replace(**{name: changed})), expected)
    own = np.where(talk.own_BxR, 2 * rows.advantage_BxT, rows.advantage_BxT)
    other = grad(nnx.state(POLICY), rows._replace(advantage_BxT=own))
    assert other[0][0] != expected[0][0]
    # without the mask they would have had one
    unmasked = grad(nnx.state(POLICY), rows._replace(author_BxT=None))
    assert unmasked[0][1]["entropy"] != expected[0][1]["entropy"]


@pytest.mark.parametrize("perturb", ["paper", "policy", "in-kind"])
def test_only_the_answer_is_perturbed_and_judged(perturb):
    """S of an answer is what it is of the same response without a conversation before it, moved to
    where it stands.
    """
    config = dataclasses.replace(TALK, perturb=perturb, num_perturb=2)
    prompts, talk = conversations(config)
    assert (calls(talk) > 0).any()
    rng = np.random.default_rng(1)
    others = rldtf.Alternatives(
        rng.integers(2, SHAPE.num_tokens, (2, *talk.tokens_BxR.shape)).astype(np.int32),
        np.ones(talk.tokens_BxR.shape, np.float32),
        np.ones(talk.tokens_BxR.shape, np.float32),
    )
    alone = answers(talk)
    moved = rldtf.Alternatives(
        *(np.stack([turns_behind(x, talk.answer_B) for x in others.tokens_NxBxT]), *others[1:])
    )
    env = Answering()
    arm = Arm(config, 3, env)
    (found,) = rldtf.judge([arm], [prompts], [talk], [others], 0)
    (expected,) = rldtf.judge([arm], [prompts], [alone], [moved], 0)
    assert env.judged[0] == env.judged[1]
    np.testing.assert_array_equal(found.reward_B, expected.reward_B)
    assert found.S.total.any()
    for b, start in enumerate(talk.answer_B):
        assert not found.S.total[b, :start].any()
        np.testing.assert_array_equal(found.S.total[b, start:], expected.S.total[b, : R - start])
        np.testing.assert_array_equal(found.read_BxT[b, start:], expected.read_BxT[b, : R - start])


def turns_behind(x_BxR, start_B):
    return np.stack(
        [np.concatenate([row[start:], 0 * row[:start]]) for row, start in zip(x_BxR, start_B)]
    )


def test_a_worker_apart_and_arms_together_hold_the_same_conversations(tmp_path):
    config = dataclasses.replace(TALK, steps=3, save_every=1)
    alone = trained(config, tmp_path / "alone", env=Answering())
    apart = trained(config, tmp_path / "apart", Worker(config, Answering()), env=Answering())
    for x, y in zip(alone[0], apart[0], strict=True):
        np.testing.assert_array_equal(x, y)

    arms = [Arm(dataclasses.replace(config, alpha=a), 3, Answering()) for a in (0.0, 2.0)]
    models, states = together.initial(POLICY, CRITIC, arms, 2)
    asked = [rldtf.draw(arm, 0) for arm in arms]
    side_by_side = models.respond(states, arms, asked, 0)
    _, one = conversations(config)
    for talk in side_by_side:
        np.testing.assert_array_equal(talk.tokens_BxR, one.tokens_BxR)
        np.testing.assert_array_equal(talk.author_BxR, one.author_BxR)
    _, metrics = rldtf.rldtf_step(models, arms, states, 0)
    assert all(np.isfinite(m["loss"]) and m["costs/calls"] > 0 for m in metrics["arms"])


@pytest.mark.parametrize(
    "option",
    [
        {"advantage": "gae"},
        {"advantage": "counterfactual", "perturb": "policy"},
        {"perturb": "completion"},
    ],
)
def test_what_has_no_meaning_for_a_conversation_is_refused(option):
    with pytest.raises(ConfigError, match="turns = 2: expected 1 unless"):
        RLDTFConfig(turns=2, **option)

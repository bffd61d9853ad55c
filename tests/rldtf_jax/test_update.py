"""One update of policy and critic, against the plain equations and against itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_equations as plain
import pytest
from flax import nnx
from one_learner import CRITIC, POLICY, REFERENCE, assert_close, assert_equal, learner, static
from tiny_training import RL, SHAPE

from rldtf_jax import optim, rldtf
from rldtf_jax.config import OptimConfig
from rldtf_jax.sft import response_tokens
from rldtf_jax.update import rldtf_loss

# the shapes of a step, so that they share programs
B, P, T = RL.prompts_per_step, 5, RL.sample.max_new_tokens
PROMPT_LENGTHS = np.array([5, 1, 3, 2, 4, 5, 2, 3], np.int32)
RESPONSE_LENGTHS = np.array([10, 1, 4, 6, 2, 8, 5, 1], np.int32)
LENGTHS = PROMPT_LENGTHS + RESPONSE_LENGTHS
MASK = np.arange(T) < RESPONSE_LENGTHS[:, None]
forward = jax.jit(
    lambda graphdef, params, tokens, lengths: nnx.merge(graphdef, params)(tokens, lengths),
    static_argnums=0,
)
CLIP, BETA_ENT, BETA_KL, K1, K2, TEMPERATURE = 0.2, 0.3, 0.7, 0.5, 1.5, 0.8


def hyper(**changes):
    one = optim.hyper(OptimConfig(lr=1e-2, warmup_steps=0, grad_clip=1e6), 0, 1)
    values = dict(
        zip(rldtf.Hyper._fields, np.float32([CLIP, BETA_ENT, BETA_KL, K1, K2, TEMPERATURE]))
    )
    return rldtf.Hyper(**(values | {"policy": one, "critic": one} | changes))


def outputs(model, tokens):
    """Logits, or values, at every position."""
    return np.asarray(forward(*nnx.split(model), tokens, LENGTHS))


@functools.lru_cache
def rollouts(behind=0, nothing=0.0):
    """Random prompts and responses, id 0 among them; in the padding, ids are `behind` and floats
    `nothing`.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SHAPE.num_tokens, (B, P + T)).astype(np.int32)
    tokens = np.where(np.arange(P + T) < LENGTHS[:, None], tokens, behind).astype(np.int32)
    tokens_T, _ = response_tokens(tokens, PROMPT_LENGTHS, LENGTHS, T)
    logits = outputs(POLICY, tokens) / TEMPERATURE
    own = np.array(
        [
            [
                (
                    np.log(
                        plain.softmax(logits[b, PROMPT_LENGTHS[b] - 1 + t].tolist())[tokens_T[b, t]]
                    )
                    if MASK[b, t]
                    else 0.0
                )
                for t in range(T)
            ]
            for b in range(B)
        ]
    )

    def padded(x):
        return np.where(MASK, x, nothing).astype(np.float32)

    old_value, anchor_hidden = old_states(tokens)
    old_logp, advantage, ret = own + rng.normal(scale=0.3, size=(B, T)), *rng.normal(size=(2, B, T))
    return rldtf.Rollouts(
        tokens,
        PROMPT_LENGTHS,
        LENGTHS,
        padded(old_logp),
        anchor_hidden,
        padded(advantage),
        padded(ret),
        padded(1 + rng.exponential(size=(B, T))),
        padded(old_value),
    )


def old_states(tokens):
    return rldtf.old_states(
        static(), nnx.state(CRITIC), nnx.state(REFERENCE), tokens, PROMPT_LENGTHS, LENGTHS, T
    )


@functools.lru_cache
def updated(aggregation="sum", microbatches=1, logit_chunk=None):
    return jax.device_get(
        rldtf.update(
            static(aggregation, microbatches, logit_chunk),
            learner(),
            nnx.state(REFERENCE),
            rollouts(),
            hyper(),
        )
    )


def loss_with(name, rows, **options):
    _, metrics = rldtf.update(
        static()._replace(**options),
        learner(),
        nnx.state(REFERENCE),
        rows,
        hyper(clip=np.float32(0.01)),
    )
    return float(metrics[name])


def gradients(new):
    """The first moments of policy and critic after one step: the gradients, times 1 - b1."""
    return [
        x.mu
        for x in jax.tree.leaves(
            (new.opt_policy, new.opt_critic), is_leaf=lambda x: hasattr(x, "mu")
        )
        if hasattr(x, "mu")
    ]


def test_the_update_equals_the_plain_reading_of_equations_6_to_9():
    rows, metrics = rollouts(), updated()[1]
    logits, anchor = (
        outputs(model, rows.tokens_BxS) / TEMPERATURE for model in (POLICY, REFERENCE)
    )
    values = outputs(CRITIC, rows.tokens_BxS)

    def each(f):
        return [
            [f(b, PROMPT_LENGTHS[b] - 1 + t) for t in range(RESPONSE_LENGTHS[b])] for b in range(B)
        ]

    logp = each(
        lambda b, s: np.log(plain.softmax(logits[b, s].tolist())[rows.tokens_BxS[b, s + 1]])
    )
    H = each(lambda b, s: plain.entropy(logits[b, s, : SHAPE.num_tokens].tolist()))
    kl = each(
        lambda b, s: plain.kl_divergence(
            *(x[b, s, : SHAPE.num_tokens].tolist() for x in (logits, anchor))
        )
    )
    L_policy = plain.policy_loss(
        logp, rows.old_logp_BxT, rows.advantage_BxT, rows.weight_BxT, RESPONSE_LENGTHS, CLIP
    )
    squares = sum(
        (rows.return_BxT[b][t] - v) ** 2
        for b, row in enumerate(each(lambda b, s: values[b, s]))
        for t, v in enumerate(row)
    )
    L_reg = plain.regulariser(H, kl, RESPONSE_LENGTHS, BETA_ENT, BETA_KL)
    expected = {
        "policy_loss": L_policy,
        "value_loss": squares / B,
        "reg_loss": L_reg,
        "entropy": np.mean(sum(H, [])),
        "kl": np.mean(sum(kl, [])),
        "loss": plain.total_loss(L_policy, squares / B, L_reg, K1, K2),
    }
    assert_close({name: metrics[name] for name in expected}, expected)


@pytest.mark.parametrize("microbatches, aggregation", [(2, "sum"), (4, "token-mean")])
# TRAPS 6
def test_micro_batches_equal_one_batch_in_loss_gradient_and_metrics(microbatches, aggregation):
    (ours, metrics), (whole, whole_metrics) = (
        updated(aggregation, microbatches),
        updated(aggregation),
    )
    assert_close(metrics, whole_metrics)
    assert_close(gradients(ours), gradients(whole))


def test_token_mean_counts_tokens_where_sum_counts_responses():
    (ours, metrics), (summed, sum_metrics) = updated("token-mean"), updated("sum")
    share = B / RESPONSE_LENGTHS.sum()
    assert_close(
        [metrics["policy_loss"], metrics["value_loss"], metrics["reg_loss"]],
        [
            share * sum_metrics["policy_loss"],
            share * sum_metrics["value_loss"],
            sum_metrics["reg_loss"],
        ],
    )
    assert_close(gradients(ours)[1], jax.tree.map(lambda x: share * x, gradients(summed)[1]))


def test_chunked_logits_equal_whole_ones():
    (ours, metrics), (whole, whole_metrics) = updated(logit_chunk=4), updated()
    assert_close(metrics, whole_metrics)
    assert_close(gradients(ours), gradients(whole))


def test_without_a_critic_the_policy_learns_the_same_and_no_value_is_computed():
    one, (whole, whole_metrics) = static()._replace(with_critic=False), updated()
    ours, metrics = jax.device_get(
        rldtf.update(one, learner(), nnx.state(REFERENCE), rollouts(), hyper())
    )
    assert_close(ours.policy, whole.policy)
    assert_equal(ours.critic, jax.device_get(learner().critic))
    assert metrics["value_loss"] == 0 and metrics["critic_grad_norm"] == 0
    assert metrics["loss"] == pytest.approx(
        whole_metrics["loss"] - K1 * whole_metrics["value_loss"], rel=1e-4
    )
    value, anchor_hidden = rldtf.old_states(
        one, None, nnx.state(REFERENCE), rollouts().tokens_BxS, PROMPT_LENGTHS, LENGTHS, T
    )
    assert not np.any(value) and value.shape == (B, T)
    assert_close(anchor_hidden, old_states(rollouts().tokens_BxS)[1])


def test_padding_changes_nothing_to_the_bit():
    dirty = rldtf.update(
        static(), learner(), nnx.state(REFERENCE), rollouts(behind=7, nothing=np.nan), hyper()
    )
    assert_equal(jax.device_get(dirty), updated())


def test_the_gradient_is_the_losss_slope():
    @jax.jit
    def loss(p, c):
        return rldtf_loss(static(), p, c, nnx.state(REFERENCE), rollouts(), hyper(), MASK.sum())[0]

    at = nnx.state(POLICY), nnx.state(CRITIC)
    slope = jax.tree.map(lambda m: m / (1 - hyper().policy.b1), tuple(gradients(updated()[0])))
    norm = float(optax.global_norm(slope))
    step = jax.tree.map(lambda g: 1e-3 / norm * g, slope)
    up, down = (loss(*jax.tree.map(lambda x, s: x + sign * s, at, step)) for sign in (1, -1))  # noqa: B023
    np.testing.assert_allclose((up - down) / 2e-3, norm, rtol=5e-3)


def test_sweeping_what_is_traced_compiles_nothing(compilations):
    def at(x):
        one = optim.hyper(OptimConfig(lr=x, weight_decay=x, warmup_steps=0), 0, 1)
        return rldtf.update(
            static(),
            learner(),
            nnx.state(REFERENCE),
            rollouts(),
            hyper(
                **dict(zip(rldtf.Hyper._fields[:6], np.float32([x] * 6))), policy=one, critic=one
            ),
        )

    at(0.5)
    before = rldtf.update._cache_size()
    with compilations() as compiled:
        for x in (0.1, 0.2, 0.9):
            at(x)
    assert compiled == [] and rldtf.update._cache_size() == before


def test_arms_train_side_by_side_by_one_vmap():
    weights = np.float32([1.0, 3.0])
    rows = rollouts()
    arms = jax.vmap(
        lambda learner, w, clip: rldtf.update(
            static(),
            learner,
            nnx.state(REFERENCE),
            rows._replace(weight_BxT=w * rows.weight_BxT),
            hyper(clip=clip),
        )
    )(jax.tree.map(lambda x: jnp.stack([x, x]), learner()), weights, np.float32([0.2, 0.1]))
    for i, (w, clip) in enumerate(zip(weights, (0.2, 0.1))):
        alone = rldtf.update(
            static(),
            learner(),
            nnx.state(REFERENCE),
            rows._replace(weight_BxT=w * rows.weight_BxT),
            hyper(clip=np.float32(clip)),
        )
        assert_close(gradients(jax.tree.map(lambda x: x[i], arms[0])), gradients(alone[0]))  # noqa: B023


@pytest.mark.parametrize(
    "field, value",
    [("advantage_BxT", np.nan), ("return_BxT", np.inf), ("weight_BxT", 1e30)],
    ids=["loss nan", "loss inf", "only the policy's gradient overflows"],
)
def test_an_update_that_is_not_finite_is_left_out_whole_and_counted(field, value):
    rows, before = rollouts(), learner()
    rows = rows._replace(**{field: np.where(MASK, np.float32(value), 0)})
    new, metrics = rldtf.update(static(), learner(), nnx.state(REFERENCE), rows, hyper())
    assert_equal(new[:4], before[:4])
    assert (new.skipped, new.skipped_in_a_row, metrics["skipped"]) == (1, 1, 1)
    if field == "weight_BxT":
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["critic_grad_norm"])
    new, metrics = rldtf.update(static(), new, nnx.state(REFERENCE), rollouts(), hyper())
    assert (new.skipped, new.skipped_in_a_row) == (1, 0)


def test_the_value_is_read_before_the_token_and_the_states_know_no_future():  # TRAPS 5
    rows, b = rollouts(), 0
    tokens = np.array(rows.tokens_BxS)
    values, hidden = old_states(tokens)
    for t in range(T):
        changed = tokens.copy()
        changed[b, PROMPT_LENGTHS[b] + t] = (
            changed[b, PROMPT_LENGTHS[b] + t] + 1
        ) % SHAPE.num_tokens
        new_values, new_hidden = old_states(changed)
        np.testing.assert_allclose(new_values[b, : t + 1], values[b, : t + 1], atol=1e-6)
        np.testing.assert_allclose(new_hidden[b, : t + 1], hidden[b, : t + 1], atol=1e-6)
        assert (abs(new_values[b, t + 1 :] - values[b, t + 1 :]) > 1e-6).all()


def test_join_puts_each_response_behind_its_prompt_by_lengths_alone():  # TRAPS 4
    tokens, lengths = rldtf.join(
        np.array([[0, 3, 9], [2, 9, 9]]),
        np.array([2, 1]),
        np.array([[0, 0, 5], [4, 7, 7]]),
        np.array([2, 1]),
    )
    np.testing.assert_array_equal(tokens, [[0, 3, 0, 0, 0, 0], [2, 4, 0, 0, 0, 0]])
    np.testing.assert_array_equal(lengths, [4, 2])


def test_a_dual_clip_puts_a_floor_under_the_objective_and_a_wide_one_does_nothing():
    free = loss_with("policy_loss", rollouts())
    assert loss_with("policy_loss", rollouts(), dual_clip=1.0001) < free
    assert loss_with("policy_loss", rollouts(), dual_clip=1e6) == pytest.approx(free, rel=1e-6)


def test_a_value_clip_holds_the_critic_near_its_old_values_and_a_wide_one_does_nothing():
    moved = rollouts()._replace(old_value_BxT=rollouts().old_value_BxT + 1)
    free = loss_with("value_loss", moved)
    assert loss_with("value_loss", moved, value_clip=1e-3) > free
    assert loss_with("value_loss", moved, value_clip=1e6) == pytest.approx(free, rel=1e-6)

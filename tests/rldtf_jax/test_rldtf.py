"""One step of the algorithm: what it asks the judge, what it hands to the update, and what it
reports.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain_equations as plain
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from one_learner import CRITIC, POLICY, REFERENCE, assert_close, assert_equal, learner, static
from tiny_training import EOS, ONE, RL, SHAPE, HighTokens, Recording, critic, policy, take_step

from rldtf_jax import lora, optim, rldtf
from rldtf_jax.config import OptimConfig
from rldtf_jax.judge import Arm, Prompts
from rldtf_jax.metrics import read
from rldtf_jax.rldtf import OneByOne
from rldtf_jax.sample import Samples
from rldtf_jax.token_weight import WEIGHTS, perturb

T = RL.sample.max_new_tokens


def first_state(reference=POLICY):
    return rldtf.RLState(learner(), nnx.state(reference), jnp.int32(0), jnp.float32(1))


def one_step(config=ONE, env=None, state=None, step=0, seed=3):
    models = OneByOne(static(config.aggregation, config.microbatches, config.logit_chunk))
    return jax.device_get(
        take_step(models, env or HighTokens(), config, seed, state or first_state(), step)
    )


def judged(env, tasks, tokens, lengths, config, seed=0):
    """(verdict, S) of given responses."""
    ended = np.array([EOS in row[:n] for row, n in zip(tokens, lengths)])
    (one,) = rldtf.judge(
        [Arm(config, seed, env)],
        [Prompts(tasks, None, None, None)],
        [Samples(tokens, lengths, None, ended)],
        [None],
        0,
    )
    return one.verdict, one.S.total


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
# TRAPS 1, 2, 14
def test_on_the_first_update_the_ratio_is_1_and_the_kl_from_the_reference_0(temperature):
    config = dataclasses.replace(
        ONE, sample=dataclasses.replace(ONE.sample, temperature=temperature)
    )
    _, metrics = one_step(config)
    np.testing.assert_allclose(metrics["ratio"], 1, rtol=1e-5)
    assert metrics["clip_fraction"] == 0 and abs(metrics["kl"]) < 1e-6
    assert metrics["weight/mean"] > 1


def test_the_kl_is_from_the_reference_or_from_the_old_policy():
    kl = {
        target: one_step(dataclasses.replace(ONE, kl_target=target), state=first_state(REFERENCE))[
            1
        ]["kl"]
        for target in ("reference", "old")
    }
    assert kl["reference"] > 0.1 and abs(kl["old"]) < 1e-6


def test_a_sweep_of_the_whole_step_compiles_nothing(compilations):
    one_step()
    before = rldtf.update._cache_size()
    with compilations() as compiled:
        for x in (0.25, 0.5, 2.0):
            one_step(
                dataclasses.replace(
                    ONE,
                    alpha=x,
                    threshold=x / 10,
                    lam=x,
                    clip=x,
                    beta_ent=x,
                    beta_kl=x,
                    k1=x,
                    k2=x,
                    delete_prob=x / 2,
                    policy=OptimConfig(lr=x, weight_decay=x),
                    critic=OptimConfig(lr=x, grad_clip=x),
                ),
                step=1,
            )
    assert compiled == [] and rldtf.update._cache_size() == before


@pytest.mark.parametrize(
    "changes", [dict(epochs=1, minibatches=1), dict(checkpoint_every=1), dict(kl_target="old")]
)
def test_a_second_step_compiles_nothing(compilations, changes):
    """Sampling, the perturbations, the update and the refresh of the reference: other tasks, the
    same programs.
    """
    config, state = dataclasses.replace(RL, **changes), first_state()
    counts = []
    for step in range(3):
        with compilations() as compiled:
            state, _ = take_step(OneByOne(static()), HighTokens(), config, 3, state, step)
        counts.append(len(compiled))
    assert counts[1:] == [0, 0]


def test_noise_differs_between_steps_and_rows_and_returns_with_seed_and_step():  # TRAPS 17
    class SamePrompts(Recording):
        def batch(self, step, num_prompts):
            return (
                list(range(num_prompts)),
                np.full((num_prompts, 5), 3, np.int32),
                np.full(num_prompts, 5, np.int32),
            )

    def asked(seed, step):
        env = SamePrompts()
        one_step(dataclasses.replace(ONE, alpha=0.0), env, seed=seed, step=step)
        return env.asked[0]

    first = asked(3, 0)
    assert len({tuple(ids) for _, ids in first if ids}) > 1
    assert asked(3, 0) == first
    assert asked(3, 1) != first and asked(4, 0) != first


def test_baseline_and_perturbed_responses_are_judged_in_one_call_and_give_equation_4():
    env, N = Recording(), 2
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(2, 7, (4, T)), np.array([6, 3, 4, 5])
    ended = np.array([True, True, False, True])
    tokens[np.flatnonzero(ended), lengths[ended] - 1] = EOS
    config = dataclasses.replace(ONE, num_perturb=N)
    verdict, S = judged(env, ["a", "b", "c", "d"], tokens, lengths, config, 9)
    (asked,) = env.asked
    assert [task for task, _ in asked[:4]] == ["a", "b", "c", "d"]
    assert len(asked) == 4 + N * lengths[ended].sum()
    expected = np.zeros((4, T))
    for b in np.flatnonzero(ended):
        for t in range(lengths[b]):
            p = perturb(
                tokens[: b + 1], lengths[: b + 1], N, rldtf.hash_seed(9, 0), config.delete_prob
            )
            changed = [ids for row, position, ids in zip(*p) if (row, position) == (b, t)]
            R = [
                HighTokens().judge([b], [ids]).reward_M[0] if EOS in ids else -1 for ids in changed
            ]
            expected[b, t] = plain.sensitivity(float(verdict.reward_M[b]), [float(x) for x in R])
    np.testing.assert_allclose(S, expected, atol=1e-6)
    assert (S > 0).any()


def test_a_truncated_response_gets_minus_1_and_no_perturbation():  # TRAPS 16
    env = Recording(reward=lambda R: 0 * R + 0.75)
    tokens, lengths = np.full((2, T), 5), np.array([T, 2])
    tokens[1, 1] = EOS
    verdict, S = judged(env, [0, 1], tokens, lengths, ONE)
    np.testing.assert_array_equal(verdict.reward_M, np.float32([-1, 0.75]))
    assert verdict.failure_M == ["truncated", None] and verdict.fulfilled_M.tolist() == [
        False,
        True,
    ]
    assert {task for task, _ in env.asked[0][2:]} == {1}
    np.testing.assert_array_equal(S[0], 0)


def test_a_perturbed_response_that_lost_its_end_is_judged_as_a_truncated_one():  # TRAPS 16
    env = Recording(reward=lambda R: 0 * R + 0.75)
    tokens, lengths = np.array([[5, 6, EOS, 9, 9]]), np.array([3])
    config = dataclasses.replace(ONE, num_perturb=4)
    verdict, S = judged(env, ["a"], tokens, lengths, config)
    np.testing.assert_allclose(S, [[0, 0, 1.75, 0, 0]])  # whatever it says, R = -1 without an end
    ((_, *asked),) = env.asked
    assert all(EOS in ids or not ids for _, ids in asked)  # and nothing of it is run


def test_alpha_0_asks_for_no_perturbation_and_weighs_every_token_1():
    env = Recording()
    _, metrics = one_step(dataclasses.replace(ONE, alpha=0.0), env)
    assert [len(asked) for asked in env.asked] == [ONE.prompts_per_step]
    assert metrics["weight/mean"] == metrics["weight/effective_sample_size"] == 1


def test_integer_rewards_train_as_their_floats():  # TRAPS 8
    as_int, as_float = (
        one_step(env=Recording(lambda R: np.sign(R).astype(dtype)), step=2)  # noqa: B023
        for dtype in (int, float)
    )
    assert_equal(as_int, as_float)
    assert as_float[1]["reward"] not in (-1, 0, 1)  # their mean is a fraction


def test_the_reference_takes_the_policys_weights_at_every_checkpoint_and_only_then():  # TRAPS 13
    state = first_state(REFERENCE)
    for step in range(7):
        before = jax.device_get(state.reference)
        state, metrics = one_step(state=jax.tree.map(jnp.copy, state), step=step)
        if (step + 1) % ONE.checkpoint_every:
            assert_equal(state.reference, before)
        else:
            assert_equal(state.reference, state.learner.policy)
        assert metrics["since_refresh"] == step % ONE.checkpoint_every


def test_in_the_critics_warm_up_only_the_critic_learns():
    config = dataclasses.replace(ONE, critic_warmup=2)
    for step, frozen in ((0, True), (1, True), (2, False)):
        before, (after, _) = jax.device_get(first_state()), one_step(config, step=step)
        same = [
            jax.tree.all(jax.tree.map(np.array_equal, x, y))
            for x, y in (
                (after.learner.policy, before.learner.policy),
                (after.learner.critic, before.learner.critic),
            )
        ]
        assert same == [frozen, False]


@pytest.mark.parametrize(
    "option",
    [
        {"advantage": "gae"},
        {"advantage": "group"},
        {"advantage": "leave-one-out"},
        {"advantage": "leave-one-out", "with_critic": False},
        {"whiten": True},
        {"kl_target": "old"},
        {"perturb": "in-kind"},
        {"perturb": "policy"},
        {"perturb": "policy", "advantage": "counterfactual"},
        {
            "perturb": "policy",
            "advantage": "counterfactual",
            "ask_above": 0.5,
            "with_critic": False,
        },
        {"perturb": "completion"},
        {"perturb": "completion", "advantage": "prefix", "prefixes": 3, "num_perturb": 2},
        {"advantage": "expected", "with_critic": False, "epochs": 2, "minibatches": 2},
        {"advantage": "expected", "logit_chunk": 3},
        *({"weight_by": name} for name in WEIGHTS),
    ],
    ids=str,
)
def test_every_option_trains(option):
    config = dataclasses.replace(ONE, prompts_per_step=4, samples_per_prompt=2, **option)
    state, metrics = one_step(config, step=2)
    assert metrics["skipped"] == 0 and np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()


def test_computed_in_bfloat16_a_small_step_moves_the_float32_weights_of_every_tensor():
    """At a language model's learning rate, which bfloat16 weights would round away; sampler and
    trainer say nearly the same.
    """
    shape = dataclasses.replace(SHAPE, dtype="bfloat16", param_dtype="float32", remat=True)
    slow = OptimConfig(lr=1e-6, warmup_steps=0)
    config = dataclasses.replace(ONE, prompts_per_step=32, policy=slow, critic=slow)
    models, first = rldtf.initial(policy(shape=shape), critic(shape=shape), config, 3)
    before = jax.device_get(first.learner)
    (state,), metrics = rldtf.rldtf_step(models, [Arm(config, 3, HighTokens())], (first,), 0)
    for name in ("policy", "critic", "opt_policy", "opt_critic"):
        assert all(
            x.dtype == np.float32 for x in jax.tree.leaves(getattr(before, name)) if x.ndim
        ), name
    for name in ("policy", "critic"):
        old, new = (
            jax.tree.leaves_with_path(jax.device_get(getattr(x, name)))
            for x in (before, state.learner)
        )
        for (path, x), (_, y) in zip(old, new):
            change = np.abs(y - x)
            assert 0 < change.max() < 1.1e-5, (name, path)
            # Stored in bfloat16 it would be lost but where it crosses a boundary between two steps,
            # which are |x| / 256 apart or more.
            lost, crossed = (
                y.astype(jnp.bfloat16) == x.astype(jnp.bfloat16),
                np.mean(np.minimum(1, 256 * change / np.maximum(np.abs(x), 1e-12))),
            )
            # biases begin at 0
            assert (
                not x.any()
                or crossed < 0.1
                and lost.mean() >= 1 - crossed - 3 * (crossed / x.size) ** 0.5
            ), (name, path)
    found = metrics["arms"][0]
    assert 0 < found["log_ratio"] < 0.02 and one_step()[1]["log_ratio"] < 1e-5


def test_an_adaptive_kl_raises_its_coefficient_above_the_aim_and_lowers_it_below():
    state = first_state(REFERENCE)
    _, metrics = one_step(state=jax.tree.map(jnp.copy, state))
    # by a tenth of the error, at most 2 %
    for aim in (metrics["kl"] / 1.1, metrics["kl"] / 3, metrics["kl"] * 9):
        after, metrics = one_step(
            dataclasses.replace(ONE, adaptive_kl=float(aim)), state=jax.tree.map(jnp.copy, state)
        )
        np.testing.assert_allclose(metrics["beta_kl"], ONE.beta_kl * state.kl_scale, rtol=1e-6)
        error = np.clip(metrics["kl"] / aim - 1, -0.2, 0.2)
        np.testing.assert_allclose(after.kl_scale, state.kl_scale * (1 + 0.1 * error), rtol=1e-6)
        state = state._replace(kl_scale=after.kl_scale)
    assert rldtf.adapted(jnp.float32(0.5), jnp.float32(np.nan), 0.1) == 0.5


def lora_learner(rank=2):
    """(frozen, learner) as `train` makes them."""
    (p, p_deltas), (c, c_deltas) = (
        lora.split(nnx.state(model), rank, jax.random.key(i))
        for i, model in enumerate((POLICY, CRITIC))
    )
    return rldtf.Frozen(p, c), rldtf.Learner(
        p_deltas, c_deltas, optim.init(p_deltas), optim.init(c_deltas), jnp.int32(0), jnp.int32(0)
    )


def test_lora_starts_as_the_whole_model_and_trains_nothing_but_its_deltas():
    frozen, first = lora_learner()
    assert_equal(lora.merge(frozen.policy, first.policy), nnx.state(POLICY))
    assert_equal(lora.merge(frozen.critic, first.critic), nnx.state(CRITIC))
    before = jax.device_get((frozen, first.policy))
    state = rldtf.RLState(first, jax.tree.map(jnp.copy, first.policy), jnp.int32(0), jnp.float32(1))
    state, metrics = take_step(
        OneByOne(static(), frozen), HighTokens(), ONE, 3, state, ONE.checkpoint_every - 1
    )
    # the reference is the model that LoRA started from
    assert metrics["skipped"] == 0 and abs(metrics["kl"]) < 1e-6
    assert_equal(frozen, before[0])
    assert_equal(state.reference, state.learner.policy)
    assert {name.split("'")[-2] for name in state.learner.policy} == {
        "wq",
        "wk",
        "wv",
        "wo",
        "w_gate",
        "w_up",
        "w_down",
    }
    changed = jax.tree.map(
        lambda a, b: not np.array_equal(a, b),
        lora.merge(frozen.policy, state.learner.policy),
        nnx.state(POLICY),
    )
    for path, leaf in nnx.to_flat_state(changed):
        assert leaf == (path[-1] in ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")), path
    ((head,),) = (leaf for name, leaf in state.learner.critic.items() if "value_head" in name)
    assert not np.array_equal(head, CRITIC.value_head[...])


def test_the_gradient_of_a_delta_is_the_chain_rules():
    rng = np.random.default_rng(0)
    W, x = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 3, 5))
    frozen, deltas = lora.split({"w": jnp.float32(W)}, 2, jax.random.key(0))
    ((a, _),) = deltas.values()
    b = rng.normal(size=(2, 2, 4)).astype(np.float32)
    ((ga, gb),) = jax.grad(lambda d: jnp.sum(jnp.sin(x @ lora.merge(frozen, d)["w"])))(
        {"['w']": (a, b)}
    ).values()
    slope = np.swapaxes(x, 1, 2) @ np.cos(x @ (W + a @ b))
    assert_close(
        [ga, gb], [slope @ np.swapaxes(b, 1, 2), np.swapaxes(a, 1, 2) @ slope], rtol=1e-3, atol=1e-4
    )


def test_samples_of_one_prompt_are_neighbours():
    env = Recording()
    one_step(dataclasses.replace(ONE, prompts_per_step=4, samples_per_prompt=2, alpha=0.0), env)
    assert [task for task, _ in env.asked[0]] == [0, 0, 1, 1, 2, 2, 3, 3]


def counted(rows):
    return np.arange(rows.weight_BxT.shape[1]) < (rows.lengths_B - rows.prompt_lengths_B)[:, None]


@pytest.fixture
def updates(monkeypatch):
    """(rows, metrics) of every update."""
    seen, original = [], rldtf.update

    def spy(static, learner, anchor, rows, hyper, frozen):
        out = original(static, learner, anchor, rows, hyper, frozen)
        seen.append(jax.device_get((rows, out[1])))
        return out

    monkeypatch.setattr(rldtf, "update", spy)
    return seen


def test_metrics_of_a_step_of_several_updates_are_their_mean(updates):
    _, metrics = one_step(RL)
    assert len(updates) == RL.epochs * RL.minibatches == 4
    for name in ("loss", "kl", "ratio", "clip_fraction", "grad_norm"):
        np.testing.assert_allclose(metrics[name], np.mean([m[name] for _, m in updates]), rtol=1e-6)


def test_every_epoch_takes_every_rollout_once_in_an_order_of_its_own(updates):
    one_step(RL)
    epochs = [
        np.concatenate([rows.tokens_BxS for rows, _ in updates[i : i + 2]]).tolist() for i in (0, 2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_the_rollouts_that_are_left_out_have_no_larger_advantage(A, data):
    number = data.draw(st.integers(1, len(A)))
    kept = rldtf.largest(np.float32(A)[:, None] * [0.5, 1.0, 0.0], number)
    left = np.setdiff1d(np.arange(len(A)), kept)
    assert len(set(kept)) == number and list(kept) == sorted(kept)
    assert np.abs(np.array(A)[kept]).min() >= np.abs(np.array(A)[left]).max(initial=0)


def test_a_step_may_learn_from_the_informative_rollouts_alone(updates):
    config = dataclasses.replace(
        RL, prompts_per_step=4, samples_per_prompt=2, advantage="leave-one-out"
    )
    one_step(config)
    one_step(dataclasses.replace(config, learn_from=4))
    some_of_each = [rows for rows, _ in updates]
    whole, part = (
        {
            rows.tokens_BxS[b].tobytes(): np.abs(rows.advantage_BxT[b]).max()
            for rows in half
            for b in range(len(rows.lengths_B))
        }
        for half in (some_of_each[:4], some_of_each[4:])
    )
    assert [len(rows.lengths_B) for rows in some_of_each] == 4 * [4] + 4 * [2]
    assert (
        part.items() <= whole.items()
        and min(part.values()) >= sorted(whole.values())[-len(part)] > 0
    )


def test_advantage_is_the_reward_minus_the_value_stored_at_rollout(updates):  # TRAPS 9
    one_step(RL)
    for rows, _ in updates:
        value, _ = rldtf.old_states(
            static(),
            nnx.state(CRITIC),
            nnx.state(REFERENCE),
            rows.tokens_BxS,
            rows.prompt_lengths_B,
            rows.lengths_B,
            rows.weight_BxT.shape[1],
        )
        mask = counted(rows)
        np.testing.assert_allclose(
            rows.advantage_BxT, np.where(mask, rows.return_BxT - value, 0), atol=1e-6
        )
        assert (rows.return_BxT[:, 0][:, None] == rows.return_BxT)[mask].all()


# TRAPS 6
def test_mean_one_weights_have_a_mean_of_1_over_the_batch_whatever_the_minibatch(updates):
    one_step(dataclasses.replace(RL, weights="mean-one"))
    weights = [rows.weight_BxT[counted(rows)] for rows, _ in updates[:2]]
    np.testing.assert_allclose(np.concatenate(weights).mean(), 1, rtol=1e-5)
    assert abs(weights[0].mean() - 1) > 1e-3


def written(config, seed=3, step=0):
    """(samples, what is written from their places) of a step."""
    models = OneByOne(static())
    arm, state = Arm(config, seed, HighTokens()), first_state()
    asked = (state,), [arm], [rldtf.draw(arm, step)]
    (samples,) = models.sample(*asked)
    joined = [rldtf.join(*asked[2][0][1:3], *samples[:2])]
    (found,) = models.completions(*asked, [samples], joined)
    return samples, found


@pytest.mark.parametrize("prefixes, draws, each", [(3, 2, 1), (16, 1, 2)])
def test_completions_keep_what_stands_before_their_place_and_end_within_the_budget(
    prefixes, draws, each
):
    config = dataclasses.replace(
        ONE,
        perturb="completion",
        advantage="prefix",
        prefixes=prefixes,
        num_perturb=draws,
        samples_per_prompt=each,
    )
    samples, found = written(config)
    B = len(samples.lengths_B)
    assert len(found.row) == B * prefixes * draws and set(found.row) == set(range(B))
    where = rldtf.places(samples.lengths_B, prefixes)
    assert (where[:, 0] == 0).all() and (np.diff(where) >= 0).all()
    assert (where[:, -1] < samples.lengths_B).all()
    differ = 0
    for b, t, tokens in zip(*found):
        assert t in where[b] and len(tokens) <= T
        np.testing.assert_array_equal(tokens[:t], samples.tokens_BxR[b, :t])
        assert EOS not in tokens[:-1]
        differ += not np.array_equal(tokens, samples.tokens_BxR[b, : samples.lengths_B[b]])
    assert differ > 0.8 * len(found.row)
    again, other = written(config)[1], written(config, step=1)[1]
    assert all(map(np.array_equal, found.tokens, again.tokens))
    assert not all(map(np.array_equal, found.tokens, other.tokens))
    # a draw more changes none of those that there were
    more = written(dataclasses.replace(config, num_perturb=draws + 1))[1]
    kept = [x for i, x in enumerate(more.tokens) if i % (draws + 1) < draws]
    assert all(map(np.array_equal, found.tokens, kept))


def test_what_is_written_from_the_beginning_earns_what_the_policy_earns():
    """V(s_0) by completions is the mean reward of rollouts, on average."""
    config = dataclasses.replace(
        ONE, prompts_per_step=64, perturb="completion", advantage="prefix", prefixes=1
    )
    env, rewards = HighTokens(), [[], []]
    for step in range(6):
        samples, found = written(config, step=step)
        own = [
            ids[:n] if end else ids[:0]
            for ids, n, end in zip(samples.tokens_BxR, samples.lengths_B, samples.ended_B)
        ]
        rest = [ids if EOS in ids else ids[:0] for ids in found.tokens]
        for seen, responses in zip(rewards, (own, rest)):
            seen += env.judge(range(64), responses).reward_M.tolist()
    one, other = map(np.array, rewards)
    assert abs(one.mean() - other.mean()) < 4 * np.hypot(one.std(), other.std()) / len(one) ** 0.5
    assert 0.1 < one.std()


def test_alternatives_follow_the_policy_without_the_sampled_token():
    samples = HighTokens().batch(0, 2)[1:]
    rng, num = np.random.default_rng(0), 4000
    tokens = np.where(
        np.arange(5 + T) < samples[1][:, None] + T, rng.integers(2, 10, (2, 5 + T)), 0
    )
    tokens[:, :5] = np.where(np.arange(5) < samples[1][:, None], samples[0], tokens[:, :5])
    found = rldtf.alternatives(
        static(),
        nnx.state(POLICY),
        tokens,
        samples[1],
        samples[1] + T,
        jax.random.split(jax.random.key(0), 2),
        1.3,
        T,
        num,
    )
    logits = np.asarray(POLICY(tokens, samples[1] + T)) / 1.3
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for b in range(2):
        for t in range(T):
            at = p[b, samples[1][b] - 1 + t].copy()
            sampled = tokens[b, samples[1][b] + t]
            np.testing.assert_allclose(found.other_BxT[b, t], 1 - at[sampled], atol=1e-5)
            np.testing.assert_allclose(
                found.entropy_BxT[b, t], -(at[at > 0] * np.log(at[at > 0])).sum(), atol=1e-4
            )
            at[sampled] = 0
            share = np.bincount(found.tokens_NxBxT[:, b, t], minlength=len(at)) / num
            assert share[sampled] == 0 and np.abs(share - at / at.sum()).max() < 4 * 0.5 / num**0.5


def test_in_kind_perturbations_are_of_values_alone():
    env = Recording()
    one_step(dataclasses.replace(ONE, perturb="in-kind"), env)
    (asked,), B = env.asked, ONE.prompts_per_step
    own = {task: ids for task, ids in asked[:B]}
    whole = {task for task, ids in own.items() if ids}
    assert len(asked) == B + sum(len(own[task]) - 1 for task in whole) > B
    for task, ids in asked[B:]:
        assert (
            len(ids) == len(own[task])
            and sum(a != b for a, b in zip(ids, own[task])) == 1
            and ids[-1] == EOS
        )


def test_the_policy_is_watched_where_the_reference_is_refreshed(tmp_path):
    seen = []

    def watch(policy):
        seen.append(jax.device_get(nnx.state(policy)))
        return {"watched": len(seen)}

    config = dataclasses.replace(ONE, steps=5, checkpoint_every=2)
    trained = rldtf.train(
        POLICY,
        CRITIC,
        HighTokens(),
        config,
        seed=3,
        directory=str(tmp_path),
        watch=watch,
        boards=(),
    )
    assert [row.get("watched") for row in read(str(tmp_path))] == [None, 1, None, 2, None]
    changed = jax.tree.map(
        lambda a, b: np.array_equal(a, b), seen[1], jax.device_get(nnx.state(trained))
    )
    assert not all(jax.tree.leaves(changed)) and not all(
        jax.tree.leaves(jax.tree.map(np.array_equal, *seen))
    )

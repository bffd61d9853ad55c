"""The algorithm whole: one update against the plain equations, one step's bookkeeping, and runs that go on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_equations as plain
import pytest
from flax import nnx
from tiny_training import EOS, RL, SHAPE, HighTokens, critic, policy

from rldtf_jax import optim, rldtf
from rldtf_jax.config import OptimConfig
from rldtf_jax.token_weight import perturb

B, P, T = RL.prompts_per_step, 5, RL.sample.max_new_tokens  # the shapes of a step, so that they share programs
PROMPT_LENGTHS = np.array([5, 1, 3, 2, 4, 5, 2, 3], np.int32)
RESPONSE_LENGTHS = np.array([10, 1, 4, 6, 2, 8, 5, 1], np.int32)
LENGTHS = PROMPT_LENGTHS + RESPONSE_LENGTHS
MASK = np.arange(T) < RESPONSE_LENGTHS[:, None]
POLICY, CRITIC, REFERENCE = policy(0), critic(1), policy(2)
forward = jax.jit(lambda graphdef, params, tokens, lengths: nnx.merge(graphdef, params)(tokens, lengths),
                  static_argnums=0)
CLIP, BETA_ENT, BETA_KL, K1, K2, TEMPERATURE = 0.2, 0.3, 0.7, 0.5, 1.5, 0.8


def static(aggregation="sum", microbatches=1, logit_chunk=None):
    return rldtf.Static(nnx.graphdef(POLICY), nnx.graphdef(CRITIC), aggregation, microbatches, logit_chunk)


def learner():
    p, c = (jax.tree.map(jnp.copy, nnx.state(model)) for model in (POLICY, CRITIC))
    return rldtf.Learner(p, c, optim.init(p), optim.init(c), jnp.int32(0), jnp.int32(0))


def hyper(**changes):
    one = optim.hyper(OptimConfig(lr=1e-2, warmup_steps=0, grad_clip=1e6), 0, 1)
    values = dict(zip(rldtf.Hyper._fields, np.float32([CLIP, BETA_ENT, BETA_KL, K1, K2, TEMPERATURE])))
    return rldtf.Hyper(**(values | {"policy": one, "critic": one} | changes))


def outputs(model, tokens):
    """Logits, or values, at every position."""
    return np.asarray(forward(*nnx.split(model), tokens, LENGTHS))


@functools.lru_cache
def rollouts(behind=0, nothing=0.0):
    """Random prompts and responses, id 0 among them; in the padding, ids are `behind` and floats `nothing`."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SHAPE.num_tokens, (B, P + T)).astype(np.int32)
    tokens = np.where(np.arange(P + T) < LENGTHS[:, None], tokens, behind).astype(np.int32)
    tokens_T, _ = rldtf.response_tokens(tokens, PROMPT_LENGTHS, LENGTHS, T)
    logits = outputs(POLICY, tokens) / TEMPERATURE
    own = np.array([[np.log(plain.softmax(logits[b, PROMPT_LENGTHS[b] - 1 + t].tolist())[tokens_T[b, t]])
                     if MASK[b, t] else 0.0 for t in range(T)] for b in range(B)])

    def padded(x):
        return np.where(MASK, x, nothing).astype(np.float32)

    old_value, anchor_hidden = old_states(tokens)
    old_logp, advantage, ret = own + rng.normal(scale=0.3, size=(B, T)), *rng.normal(size=(2, B, T))
    return rldtf.Rollouts(tokens, PROMPT_LENGTHS, LENGTHS, padded(old_logp), anchor_hidden, padded(advantage),
                          padded(ret), padded(1 + rng.exponential(size=(B, T))), padded(old_value))


def old_states(tokens):
    return rldtf.old_states(static(), nnx.state(CRITIC), nnx.state(REFERENCE), tokens, PROMPT_LENGTHS, LENGTHS, T)


@functools.lru_cache
def updated(aggregation="sum", microbatches=1, logit_chunk=None):
    return jax.device_get(rldtf.update(static(aggregation, microbatches, logit_chunk), learner(), nnx.state(REFERENCE),
                                       rollouts(), hyper()))


def loss_with(name, rows, **options):
    _, metrics = rldtf.update(static()._replace(**options), learner(), nnx.state(REFERENCE), rows,
                                hyper(clip=np.float32(0.01)))
    return float(metrics[name])


def test_a_dual_clip_puts_a_floor_under_the_objective_and_a_wide_one_does_nothing():
    free = loss_with("policy_loss", rollouts())
    assert loss_with("policy_loss", rollouts(), dual_clip=1.0001) < free
    assert loss_with("policy_loss", rollouts(), dual_clip=1e6) == pytest.approx(free, rel=1e-6)


def test_a_value_clip_holds_the_critic_near_its_old_values_and_a_wide_one_does_nothing():
    moved = rollouts()._replace(old_value_BxT=rollouts().old_value_BxT + 1)
    free = loss_with("value_loss", moved)
    assert loss_with("value_loss", moved, value_clip=1e-3) > free
    assert loss_with("value_loss", moved, value_clip=1e6) == pytest.approx(free, rel=1e-6)


def gradients(new):
    """The first moments of policy and critic after one step: the gradients, times 1 - b1."""
    return [x.mu for x in jax.tree.leaves((new.opt_policy, new.opt_critic), is_leaf=lambda x: hasattr(x, "mu"))
            if hasattr(x, "mu")]


def assert_close(ours, expected, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, expected)


def assert_equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


# One update


def test_the_update_equals_the_plain_reading_of_equations_6_to_9():
    rows, metrics = rollouts(), updated()[1]
    logits, anchor = (outputs(model, rows.tokens_BxS) / TEMPERATURE for model in (POLICY, REFERENCE))
    values = outputs(CRITIC, rows.tokens_BxS)

    def each(f):
        return [[f(b, PROMPT_LENGTHS[b] - 1 + t) for t in range(RESPONSE_LENGTHS[b])] for b in range(B)]

    logp = each(lambda b, s: np.log(plain.softmax(logits[b, s].tolist())[rows.tokens_BxS[b, s + 1]]))
    H = each(lambda b, s: plain.entropy(logits[b, s, :SHAPE.num_tokens].tolist()))
    kl = each(lambda b, s: plain.kl_divergence(*(x[b, s, :SHAPE.num_tokens].tolist() for x in (logits, anchor))))
    L_policy = plain.policy_loss(logp, rows.old_logp_BxT, rows.advantage_BxT, rows.weight_BxT, RESPONSE_LENGTHS, CLIP)
    squares = sum((rows.return_BxT[b][t] - v) ** 2 for b, row in enumerate(each(lambda b, s: values[b, s]))
                  for t, v in enumerate(row))
    L_reg = plain.regulariser(H, kl, RESPONSE_LENGTHS, BETA_ENT, BETA_KL)
    expected = {"policy_loss": L_policy, "value_loss": squares / B, "reg_loss": L_reg,
                "entropy": np.mean(sum(H, [])), "kl": np.mean(sum(kl, [])),
                "loss": plain.total_loss(L_policy, squares / B, L_reg, K1, K2)}
    assert_close({name: metrics[name] for name in expected}, expected)


@pytest.mark.parametrize("microbatches, aggregation", [(2, "sum"), (4, "token-mean")])
def test_micro_batches_equal_one_batch_in_loss_gradient_and_metrics(microbatches, aggregation):  # TRAPS 6
    (ours, metrics), (whole, whole_metrics) = updated(aggregation, microbatches), updated(aggregation)
    assert_close(metrics, whole_metrics)
    assert_close(gradients(ours), gradients(whole))


def test_token_mean_counts_tokens_where_sum_counts_responses():
    (ours, metrics), (summed, sum_metrics) = updated("token-mean"), updated("sum")
    share = B / RESPONSE_LENGTHS.sum()
    assert_close([metrics["policy_loss"], metrics["value_loss"], metrics["reg_loss"]],
                 [share * sum_metrics["policy_loss"], share * sum_metrics["value_loss"], sum_metrics["reg_loss"]])
    assert_close(gradients(ours)[1], jax.tree.map(lambda x: share * x, gradients(summed)[1]))


def test_chunked_logits_equal_whole_ones():
    (ours, metrics), (whole, whole_metrics) = updated(logit_chunk=4), updated()
    assert_close(metrics, whole_metrics)
    assert_close(gradients(ours), gradients(whole))


def test_padding_changes_nothing_to_the_bit():
    dirty = rldtf.update(static(), learner(), nnx.state(REFERENCE), rollouts(behind=7, nothing=np.nan), hyper())
    assert_equal(jax.device_get(dirty), updated())


def test_the_gradient_is_the_losss_slope():
    @jax.jit
    def loss(p, c):
        return rldtf.rldtf_loss(static(), p, c, nnx.state(REFERENCE), rollouts(), hyper(), MASK.sum())[0]

    at = nnx.state(POLICY), nnx.state(CRITIC)
    slope = jax.tree.map(lambda m: m / (1 - hyper().policy.b1), tuple(gradients(updated()[0])))
    norm = float(optax.global_norm(slope))
    step = jax.tree.map(lambda g: 1e-3 / norm * g, slope)
    up, down = (loss(*jax.tree.map(lambda x, s: x + sign * s, at, step)) for sign in (1, -1))
    np.testing.assert_allclose((up - down) / 2e-3, norm, rtol=5e-3)


def test_sweeping_what_is_traced_compiles_nothing(compilations):
    def at(x):
        one = optim.hyper(OptimConfig(lr=x, weight_decay=x, warmup_steps=0), 0, 1)
        return rldtf.update(static(), learner(), nnx.state(REFERENCE), rollouts(),
                            hyper(**dict(zip(rldtf.Hyper._fields[:6], np.float32([x] * 6))), policy=one, critic=one))

    at(0.5)
    before = rldtf.update._cache_size()
    with compilations() as compiled:
        for x in (0.1, 0.2, 0.9):
            at(x)
    assert compiled == [] and rldtf.update._cache_size() == before


def test_arms_train_side_by_side_by_one_vmap():
    weights = np.float32([1.0, 3.0])
    rows = rollouts()
    arms = jax.vmap(lambda learner, w, clip: rldtf.update(
        static(), learner, nnx.state(REFERENCE), rows._replace(weight_BxT=w * rows.weight_BxT), hyper(clip=clip)))(
        jax.tree.map(lambda x: jnp.stack([x, x]), learner()), weights, np.float32([0.2, 0.1]))
    for i, (w, clip) in enumerate(zip(weights, (0.2, 0.1))):
        alone = rldtf.update(static(), learner(), nnx.state(REFERENCE), rows._replace(weight_BxT=w * rows.weight_BxT),
                             hyper(clip=np.float32(clip)))
        assert_close(gradients(jax.tree.map(lambda x: x[i], arms[0])), gradients(alone[0]))


@pytest.mark.parametrize("field, value", [("advantage_BxT", np.nan), ("return_BxT", np.inf), ("weight_BxT", 1e30)],
                         ids=["loss nan", "loss inf", "only the policy's gradient overflows"])
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
        changed[b, PROMPT_LENGTHS[b] + t] = (changed[b, PROMPT_LENGTHS[b] + t] + 1) % SHAPE.num_tokens
        new_values, new_hidden = old_states(changed)
        np.testing.assert_allclose(new_values[b, :t + 1], values[b, :t + 1], atol=1e-6)
        np.testing.assert_allclose(new_hidden[b, :t + 1], hidden[b, :t + 1], atol=1e-6)
        assert (abs(new_values[b, t + 1:] - values[b, t + 1:]) > 1e-6).all()


def test_join_puts_each_response_behind_its_prompt_by_lengths_alone():  # TRAPS 4
    tokens, lengths = rldtf.join(np.array([[0, 3, 9], [2, 9, 9]]), np.array([2, 1]), np.array([[0, 0, 5], [4, 7, 7]]),
                                 np.array([2, 1]))
    np.testing.assert_array_equal(tokens, [[0, 3, 0, 0, 0, 0], [2, 4, 0, 0, 0, 0]])
    np.testing.assert_array_equal(lengths, [4, 2])


# One step


class Recording(HighTokens):
    """The environment, remembering what it was asked; `reward` may change what it answers."""

    def __init__(self, reward=lambda R: R):
        self.asked, self.reward = [], reward

    def judge(self, tasks, responses):
        self.asked.append([(task, np.asarray(ids).tolist()) for task, ids in zip(tasks, responses)])
        verdict = super().judge(tasks, responses)
        return verdict._replace(reward_M=self.reward(verdict.reward_M))


ONE = dataclasses.replace(RL, epochs=1, minibatches=1)  # one update a step


def first_state(reference=POLICY):
    return rldtf.RLState(learner(), nnx.state(reference), jnp.int32(0))


def one_step(config=ONE, env=None, state=None, step=0, seed=3):
    return jax.device_get(rldtf.rldtf_step(
        static(config.aggregation, config.microbatches, config.logit_chunk), env or HighTokens(), config, seed,
        state or first_state(), step))


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_on_the_first_update_the_ratio_is_1_and_the_kl_from_the_reference_0(temperature):  # TRAPS 1, 2, 14
    config = dataclasses.replace(ONE, sample=dataclasses.replace(ONE.sample, temperature=temperature))
    _, metrics = one_step(config)
    np.testing.assert_allclose(metrics["ratio"], 1, rtol=1e-5)
    assert metrics["clip_fraction"] == 0 and abs(metrics["kl"]) < 1e-6
    assert metrics["weight/mean"] > 1


def test_the_kl_is_from_the_reference_or_from_the_old_policy():
    kl = {target: one_step(dataclasses.replace(ONE, kl_target=target), state=first_state(REFERENCE))[1]["kl"]
          for target in ("reference", "old")}
    assert kl["reference"] > 0.1 and abs(kl["old"]) < 1e-6


def test_a_sweep_of_the_whole_step_compiles_nothing(compilations):
    one_step()
    before = rldtf.update._cache_size()
    with compilations() as compiled:
        for x in (0.25, 0.5, 2.0):
            one_step(dataclasses.replace(
                ONE, alpha=x, threshold=x / 10, lam=x, clip=x, beta_ent=x, beta_kl=x, k1=x, k2=x, delete_prob=x / 2,
                policy=OptimConfig(lr=x, weight_decay=x), critic=OptimConfig(lr=x, grad_clip=x)), step=1)
    assert compiled == [] and rldtf.update._cache_size() == before


def test_noise_differs_between_steps_and_rows_and_returns_with_seed_and_step():  # TRAPS 17
    class SamePrompts(Recording):
        def batch(self, step, num_prompts):
            return list(range(num_prompts)), np.full((num_prompts, 5), 3, np.int32), np.full(num_prompts, 5, np.int32)

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
    tokens[np.arange(4), lengths - 1] = EOS
    ended = np.array([True, True, False, True])
    config = dataclasses.replace(ONE, num_perturb=N)
    verdict, S = rldtf.judge_with_perturbations(env, ["a", "b", "c", "d"], tokens, lengths, ended, config, seed=9)
    (asked,) = env.asked
    assert [task for task, _ in asked[:4]] == ["a", "b", "c", "d"]
    assert len(asked) == 4 + N * lengths[ended].sum()
    expected = np.zeros((4, T))
    for b in np.flatnonzero(ended):
        for t in range(lengths[b]):
            p = perturb(tokens[:b + 1], lengths[:b + 1], N, 9, config.delete_prob)
            changed = [ids for row, position, ids in zip(*p) if (row, position) == (b, t)]
            R = HighTokens().judge([b] * N, changed).reward_M
            expected[b, t] = plain.sensitivity(float(verdict.reward_M[b]), R.tolist())
    np.testing.assert_allclose(S, expected, atol=1e-6)
    assert (S > 0).any()


def test_a_truncated_response_gets_minus_1_and_no_perturbation():  # TRAPS 16
    env = Recording(reward=lambda R: 0 * R + 0.75)
    tokens, lengths = np.full((2, T), 5), np.array([T, 2])
    verdict, S = rldtf.judge_with_perturbations(env, [0, 1], tokens, lengths, np.array([False, True]), ONE, seed=0)
    np.testing.assert_array_equal(verdict.reward_M, np.float32([-1, 0.75]))
    assert verdict.failure_M == ["truncated", None] and verdict.fulfilled_M.tolist() == [False, True]
    assert {task for task, _ in env.asked[0][2:]} == {1}
    np.testing.assert_array_equal(S[0], 0)


def test_alpha_0_asks_for_no_perturbation_and_weighs_every_token_1():
    env = Recording()
    _, metrics = one_step(dataclasses.replace(ONE, alpha=0.0), env)
    assert [len(asked) for asked in env.asked] == [ONE.prompts_per_step]
    assert metrics["weight/mean"] == metrics["weight/effective_sample_size"] == 1


def test_integer_rewards_train_as_their_floats():  # TRAPS 8
    as_int, as_float = (one_step(env=Recording(lambda R: np.sign(R).astype(dtype)), step=2) for dtype in (int, float))
    assert_equal(as_int, as_float)
    assert as_float[1]["reward"] not in (-1, 0, 1)  # their mean is a fraction


def test_the_reference_takes_the_policys_weights_at_every_checkpoint_and_only_then():
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
        same = [jax.tree.all(jax.tree.map(np.array_equal, x, y)) for x, y in
                ((after.learner.policy, before.learner.policy), (after.learner.critic, before.learner.critic))]
        assert same == [frozen, False]


@pytest.mark.parametrize("option", [
    {"advantage": "gae"}, {"advantage": "group"}, {"advantage": "leave-one-out"}, {"whiten": True},
    {"kl_target": "old"}], ids=str)
def test_every_option_trains(option):
    config = dataclasses.replace(ONE, prompts_per_step=4, samples_per_prompt=2, **option)
    state, metrics = one_step(config, step=2)
    assert metrics["skipped"] == 0 and np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()


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

    def spy(static, learner, anchor, rows, hyper):
        out = original(static, learner, anchor, rows, hyper)
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
    epochs = [np.concatenate([rows.tokens_BxS for rows, _ in updates[i:i + 2]]).tolist() for i in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_advantage_is_the_reward_minus_the_value_stored_at_rollout(updates):  # TRAPS 9
    one_step(RL)
    for rows, _ in updates:
        value, _ = rldtf.old_states(static(), nnx.state(CRITIC), nnx.state(REFERENCE), rows.tokens_BxS, rows.prompt_lengths_B,
                                    rows.lengths_B, rows.weight_BxT.shape[1])
        mask = counted(rows)
        np.testing.assert_allclose(rows.advantage_BxT, np.where(mask, rows.return_BxT - value, 0), atol=1e-6)
        assert (rows.return_BxT[:, 0][:, None] == rows.return_BxT)[mask].all()


def test_mean_one_weights_have_a_mean_of_1_over_the_batch_whatever_the_minibatch(updates):  # TRAPS 6
    one_step(dataclasses.replace(RL, weights="mean-one"))
    weights = [rows.weight_BxT[counted(rows)] for rows, _ in updates[:2]]
    np.testing.assert_allclose(np.concatenate(weights).mean(), 1, rtol=1e-5)
    assert abs(weights[0].mean() - 1) > 1e-3

"""RLDTF (III.C): rollout -> twin -> token weights -> one jitted update of policy and critic -> reference refresh.

Dimensions in names: B rollouts of a step, P padded prompt, T response positions, S = P + T, V vocabulary, M sequences.
"""

import functools
from typing import Any, NamedTuple, Protocol, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rldtf_jax import advantage as adv
from rldtf_jax import lora, optim
from rldtf_jax.config import RLDTFConfig
from rldtf_jax.logprob import token_stats
from rldtf_jax.loop import run
from rldtf_jax.loss import policy_loss, regulariser, total_loss, value_loss
from rldtf_jax.reward import NO_SERVICE
from rldtf_jax.sample import row_keys, sample_on_host
from rldtf_jax.sft import response_states, response_tokens
from rldtf_jax.token_weight import Perturbations, mean_one, perturb, sensitivity, token_weights


class Verdict(NamedTuple):
    """What the twin says of M responses."""

    reward_M: np.ndarray  # float32, Eq. 2; -1 where there was nothing to run
    fulfilled_M: np.ndarray  # bool
    failure_M: list[str | None]  # why there was nothing to run, in a word
    stats: dict[str, float]  # sequences, distinct workflows, cache hits, simulated, seconds


class Policy(NamedTuple):
    """A model as `sample` takes it."""

    graphdef: Any  # nnx.GraphDef
    params: Any


class Environment(Protocol):
    """The tasks and their judge. A response is an array of token ids; its text ends at the first EOS."""

    eos_id: int

    def batch(self, step: int, num_prompts: int) -> tuple[list[Any], np.ndarray, np.ndarray]:
        """(tasks, prompts_BxP, lengths_B) of a step, a function of the step alone; P never changes."""

    def judge(self, tasks: Sequence[Any], responses: Sequence[np.ndarray], policy: Policy) -> Verdict:
        """Translates c = f(a), by asking `policy` once more if that is what f is; runs the twin once per distinct
        workflow, and rewards."""

    def summary(self, tasks: Sequence[Any], verdict: Verdict) -> dict[str, float]:
        """Further metrics of the rollouts of a step, by service class and kind of failure."""


class Hyper(NamedTuple):
    """The scalars of the update: traced, so that sweeping them compiles nothing."""

    clip: jax.Array
    beta_ent: jax.Array
    beta_kl: jax.Array
    k1: jax.Array
    k2: jax.Array
    temperature: jax.Array
    policy: optim.Hyper
    critic: optim.Hyper


class Static(NamedTuple):
    """What shapes the compiled update."""

    policy_def: Any  # nnx.GraphDef
    critic_def: Any
    aggregation: str
    microbatches: int
    logit_chunk: int | None
    dual_clip: float | None = None
    value_clip: float | None = None


class Frozen(NamedTuple):
    """With LoRA, the weights that no update changes; `Learner` then holds the deltas (see lora.py)."""

    policy: Any = None
    critic: Any = None


class Learner(NamedTuple):
    """What an update changes."""

    policy: Any
    critic: Any
    opt_policy: Any
    opt_critic: Any
    skipped: jax.Array  # () int32, updates left out because they were not finite
    skipped_in_a_row: jax.Array  # () int32


class RLState(NamedTuple):
    """What a step changes."""

    learner: Learner
    reference: Any  # frozen; takes the policy's weights at every checkpoint
    refreshed_at: jax.Array  # () int32, the steps that were done when it last did
    kl_scale: jax.Array  # () float32, what beta_kl is multiplied by; 1 unless it is adaptive


class Rollouts(NamedTuple):
    """B prompt + response rows and what the update needs of the moment they were sampled."""

    tokens_BxS: jax.Array
    prompt_lengths_B: jax.Array
    lengths_B: jax.Array  # prompt and response
    old_logp_BxT: jax.Array  # of the behaviour policy, at the sampling temperature
    anchor_hidden_BxTxD: jax.Array  # of the KL's second distribution
    advantage_BxT: jax.Array
    return_BxT: jax.Array
    weight_BxT: jax.Array
    old_value_BxT: jax.Array  # V_old(s_t)


@functools.partial(jax.jit, static_argnames=("static", "num_tokens"))
def old_states(static: Static, critic, anchor, tokens_BxS, prompt_lengths_B, lengths_B, num_tokens: int):
    """(V_old(s_t) (B, T), the anchor's hidden states (B, T, D)) of the response positions, before any update."""
    critic, anchor = nnx.merge(static.critic_def, critic), nnx.merge(static.policy_def, anchor)
    states = functools.partial(response_states, prompt_lengths_B=prompt_lengths_B, num_tokens=num_tokens)
    value_BxT = critic.value(states(critic.hidden(tokens_BxS, lengths_B)))
    return value_BxT, states(anchor.hidden(tokens_BxS, lengths_B))


def rldtf_loss(static: Static, policy, critic, anchor, rows: Rollouts, hyper: Hyper, num_counted):
    """Eq. 9 of some rows, scaled so that the mean over equal micro-batches is Eq. 9 of the batch: (loss, metrics).

    num_counted: response tokens a micro-batch counts on average over the batch, the scale of every token mean.
    """
    policy_model, critic_model, anchor_model = (
        nnx.merge(definition, params) for definition, params in (
            (static.policy_def, policy), (static.critic_def, critic), (static.policy_def, anchor)))
    T = rows.old_logp_BxT.shape[1]
    tokens_BxT, mask = response_tokens(rows.tokens_BxS, rows.prompt_lengths_B, rows.lengths_B, T)
    states = functools.partial(response_states, prompt_lengths_B=rows.prompt_lengths_B, num_tokens=T)
    stats = token_stats(
        policy_model.unembed, states(policy_model.hidden(rows.tokens_BxS, rows.lengths_B)), tokens_BxT,
        anchor_model.unembed, rows.anchor_hidden_BxTxD, temperature=hyper.temperature, chunk=static.logit_chunk)
    value_BxT = critic_model.value(states(critic_model.hidden(rows.tokens_BxS, rows.lengths_B)))

    token_share = jnp.sum(mask) / num_counted
    per_token = len(mask) / num_counted if static.aggregation == "token-mean" else 1.0
    L_policy = per_token * policy_loss(
        stats.logp, rows.old_logp_BxT, rows.advantage_BxT, rows.weight_BxT, mask, hyper.clip, static.dual_clip)
    L_value = per_token * value_loss(value_BxT, rows.return_BxT, mask, rows.old_value_BxT, static.value_clip)
    L_reg = token_share * regulariser(stats.entropy, stats.kl, mask, hyper.beta_ent, hyper.beta_kl)

    def token_mean(x_BxT):
        return jnp.sum(jnp.where(mask, x_BxT, 0.0)) / num_counted

    log_ratio = jnp.where(mask, stats.logp - rows.old_logp_BxT, 0.0)
    metrics = {
        "policy_loss": L_policy, "value_loss": L_value, "reg_loss": L_reg,
        "entropy": token_mean(stats.entropy), "kl": token_mean(stats.kl),
        "ratio": token_mean(jnp.exp(log_ratio)),
        "clip_fraction": token_mean(jnp.abs(jnp.expm1(log_ratio)) > hyper.clip),
    }
    return total_loss(L_policy, L_value, L_reg, hyper.k1, hyper.k2), metrics


@functools.partial(jax.jit, static_argnames=("static",), donate_argnames=("learner",))
def update(static: Static, learner: Learner, anchor, rows: Rollouts, hyper: Hyper,
           frozen: Frozen = Frozen()) -> tuple[Learner, dict]:
    """One step of AdamW on policy and critic along the gradient of Eq. 9, averaged over micro-batches in a scan."""
    N, T = static.microbatches, rows.old_logp_BxT.shape[1]
    _, mask = response_tokens(rows.tokens_BxS, rows.prompt_lengths_B, rows.lengths_B, T)
    num_counted = jnp.maximum(jnp.sum(mask), 1) / N

    def grads_and_metrics(part):
        def loss_fn(policy, critic):
            return rldtf_loss(static, lora.merge(frozen.policy, policy), lora.merge(frozen.critic, critic), anchor, part,
                              hyper, num_counted)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(learner.policy, learner.critic)
        return grads, metrics | {"loss": loss}

    def accumulate(mean, part):
        return jax.tree.map(lambda m, x: m + x / N, mean, grads_and_metrics(part)), None

    parts = jax.tree.map(lambda x: x.reshape(N, -1, *x.shape[1:]), rows)
    shapes = jax.eval_shape(grads_and_metrics, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    ((policy_grads, critic_grads), metrics), _ = jax.lax.scan(accumulate, zeros, parts, unroll=N == 1)

    # Each watches the other's gradient: an update is taken whole or left out whole.
    policy = optim.apply(hyper.policy, learner.policy, learner.opt_policy, policy_grads, metrics["loss"],
                         optax.global_norm(critic_grads))
    critic = optim.apply(hyper.critic, learner.critic, learner.opt_critic, critic_grads, metrics["loss"],
                         policy.grad_norm)
    in_a_row = jnp.where(policy.finite, 0, learner.skipped_in_a_row + 1)
    new = Learner(policy.params, critic.params, policy.opt_state, critic.opt_state,
                  learner.skipped + ~policy.finite, in_a_row)
    return new, metrics | {"grad_norm": policy.grad_norm, "critic_grad_norm": critic.grad_norm,
                           "skipped": new.skipped, "skipped_in_a_row": in_a_row}


def advantages(config: RLDTFConfig, reward_B, value_BxT, mask_BxT):
    """(advantage, return), (B, T) each, in the form that the config names."""
    if config.advantage == "gae":
        A, ret = adv.gae(reward_B, value_BxT, mask_BxT, config.gae_gamma, config.gae_lam)
    elif config.advantage == "group":
        A, ret = adv.group_relative(reward_B, value_BxT, mask_BxT, config.samples_per_prompt)
    elif config.advantage == "leave-one-out":
        A, ret = adv.leave_one_out(reward_B, value_BxT, mask_BxT, config.samples_per_prompt)
    else:
        A, ret = adv.reward_minus_value(reward_B, value_BxT, mask_BxT)
    return (adv.whiten(A, mask_BxT) if config.whiten else A), ret


def join(prompts_BxP: np.ndarray, prompt_lengths_B: np.ndarray, response_BxT: np.ndarray,
         response_lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each response right behind its prompt: (tokens_BxS right-padded, lengths_B), S = P + T."""
    P, T = prompts_BxP.shape[1], response_BxT.shape[1]
    tokens_BxS = np.zeros((len(prompts_BxP), P + T), np.int32)
    for row, prompt, p, response, r in zip(
            tokens_BxS, prompts_BxP, prompt_lengths_B, response_BxT, response_lengths_B):
        row[:p], row[p:p + r] = prompt[:p], response[:r]
    return tokens_BxS, np.asarray(prompt_lengths_B + response_lengths_B, np.int32)


def judge_with_perturbations(env: Environment, tasks, tokens_BxT, lengths_B, config: RLDTFConfig, seed: int,
                             policy: Policy) -> tuple[Verdict, np.ndarray]:
    """The rollouts' verdict and S_t (B, T), baseline and perturbed responses in one call of the twin.

    A sequence without an EOS is incomplete, R = -1, and costs no simulation: a rollout cut off at its budget (none of
    its tokens is perturbed) as well as a perturbed response that lost its EOS.
    """
    B, T = tokens_BxT.shape
    rollouts = [tokens[:n] for tokens, n in zip(tokens_BxT, lengths_B)]
    ended_B = np.array([env.eos_id in ids for ids in rollouts])
    perturbed = Perturbations(np.zeros(0, int), np.zeros(0, int), []) if config.alpha == 0 else perturb(
        tokens_BxT, lengths_B * ended_B, config.num_perturb, seed, config.delete_prob)
    ended_M = np.concatenate([ended_B, np.array([env.eos_id in ids for ids in perturbed.tokens], bool)])
    sequences = [ids if ended else ids[:0] for ids, ended in zip([*rollouts, *perturbed.tokens], ended_M)]
    verdict = env.judge([*tasks, *(tasks[b] for b in perturbed.row)], sequences, policy)
    R_M = np.where(ended_M, verdict.reward_M, NO_SERVICE).astype(np.float32)
    failure_B = [reason if ended else "truncated" for reason, ended in zip(verdict.failure_M, ended_B)]
    return (Verdict(R_M[:B], verdict.fulfilled_M[:B] & ended_B, failure_B, verdict.stats),
            sensitivity(R_M[:B], R_M[B:], perturbed, T))


def train(policy, critic, env: Environment, config: RLDTFConfig, *, seed: int, directory: str, **options):
    """RLDTF from the policy after rejection sampling; goes on from `directory`; returns the trained policy.

    Every draw is a function of (seed, step): a killed and resumed run ends bit-identical to one never killed.
    options: boards and sweep, see `loop.run`.
    """
    static, state, frozen = initial(policy, critic, config, seed)

    def step_fn(state: RLState, step: int):
        return rldtf_step(static, env, config, seed, state, step, frozen)

    def position(step: int):
        return {"data": step * config.prompts_per_step,
                "prng_key_data": np.asarray(jax.random.key_data(step_key(seed, step))).tolist()}

    state = run(step_fn, state, steps=config.steps, directory=directory, save_every=config.save_every,
                keep=config.keep, identity={"config": config, "seed": seed}, position=position, title="rldtf",
                show=("reward", "fulfilled", "kl", "twin/simulated"), **options)
    return nnx.merge(static.policy_def, lora.merge(frozen.policy, state.learner.policy))


def initial(policy, critic, config: RLDTFConfig, seed: int) -> tuple[Static, RLState, Frozen]:
    """What a run starts from; the models stay the caller's."""
    (policy_def, policy_params), (critic_def, critic_params) = nnx.split(policy), nnx.split(critic)
    static = Static(policy_def, critic_def, config.aggregation, config.microbatches, config.logit_chunk,
                    config.dual_clip, config.value_clip)
    frozen = Frozen()
    if config.lora_rank is not None:
        keys = jax.random.split(jax.random.key(seed))
        frozen, (policy_params, critic_params) = map(Frozen._make, zip(
            lora.split(policy_params, config.lora_rank, keys[0]), lora.split(critic_params, config.lora_rank, keys[1])))
    fresh = functools.partial(jax.tree.map, jnp.copy)  # updates donate; nothing that is donated may be shared
    zero = jnp.zeros((), jnp.int32)
    return static, RLState(
        Learner(fresh(policy_params), fresh(critic_params), optim.init(policy_params), optim.init(critic_params),
                zero, jnp.copy(zero)),
        fresh(policy_params), jnp.copy(zero), jnp.ones((), jnp.float32)), frozen


def step_key(seed: int, step: int) -> jax.Array:
    """The key that a step's rollouts are sampled with."""
    return jax.random.fold_in(jax.random.key(seed), step)


def rldtf_step(static: Static, env: Environment, config: RLDTFConfig, seed: int, state: RLState, step: int,
               frozen: Frozen = Frozen()):
    """One step: (state, metrics)."""
    learner, T = state.learner, config.sample.max_new_tokens
    tasks, prompts_BxP, prompt_lengths_B = env.batch(step, config.prompts_per_step)
    tasks = [task for task in tasks for _ in range(config.samples_per_prompt)]
    prompts_BxP, prompt_lengths_B = (np.repeat(x, config.samples_per_prompt, 0) for x in (prompts_BxP, prompt_lengths_B))
    B = len(tasks)

    policy = Policy(static.policy_def, lora.merge(frozen.policy, learner.policy))
    samples = sample_on_host(
        *policy, prompts_BxP, prompt_lengths_B, row_keys(step_key(seed, step), jnp.arange(B)), max_new_tokens=T,
        eos_id=env.eos_id, temperature=config.sample.temperature)
    tokens_BxS, lengths_B = join(prompts_BxP, prompt_lengths_B, samples.tokens_BxR, samples.lengths_B)

    # Dispatched before the twin is asked: these forward passes don't wait for rewards.
    anchor = lora.merge(frozen.policy, state.reference if config.kl_target == "reference"
                        else jax.tree.map(jnp.copy, learner.policy))
    old_value_BxT, anchor_hidden_BxTxD = old_states(
        static, lora.merge(frozen.critic, learner.critic), anchor, tokens_BxS, prompt_lengths_B, lengths_B, T)

    verdict, S_BxT = judge_with_perturbations(env, tasks, samples.tokens_BxR, samples.lengths_B, config,
                                              hash_seed(seed, step), policy)

    mask = jnp.arange(T) < samples.lengths_B[:, None]
    w = token_weights(S_BxT, mask, config.alpha, config.threshold, config.lam)
    A, ret = advantages(config, jnp.asarray(verdict.reward_M), old_value_BxT, mask)
    rows = Rollouts(tokens_BxS, prompt_lengths_B, lengths_B, samples.logp_BxR, anchor_hidden_BxTxD, A, ret,
                    mean_one(w, mask) if config.weights == "mean-one" else w, old_value_BxT)

    hyper = hyper_at(config, step)
    if config.adaptive_kl is not None:
        hyper = hyper._replace(beta_kl=hyper.beta_kl * state.kl_scale)
    order, seen = np.random.default_rng((seed, step, 1)), []
    for _ in range(config.epochs):
        shuffled = order.permutation(B) if config.minibatches > 1 else np.arange(B)
        for part in np.split(shuffled, config.minibatches):
            minibatch = rows if len(part) == B else jax.tree.map(lambda x: x[part], rows)
            learner, metrics = update(static, learner, anchor, minibatch, hyper, frozen)
            seen.append(metrics)

    if len(seen) > 1:  # the counts are the last update's, the rest is the mean over the step's updates
        counts = {name: metrics[name] for name in ("skipped", "skipped_in_a_row")}
        metrics = jax.tree.map(lambda *x: sum(x) / len(x), *seen) | counts
    kl_scale = state.kl_scale if config.adaptive_kl is None else adapted(
        state.kl_scale, metrics["kl"], config.adaptive_kl)
    metrics |= rollout_metrics(verdict, w, S_BxT, mask, old_value_BxT, config.threshold)
    metrics["runtime"] = {f"twin/{name}": value for name, value in verdict.stats.items()}
    metrics |= env.summary(tasks, verdict)
    metrics |= {"since_refresh": step - state.refreshed_at, "lr": hyper.policy.lr, "beta_kl": hyper.beta_kl,
                "tokens": lengths_B.sum(), "response_tokens": samples.lengths_B.mean()}
    reference, refreshed_at = state.reference, state.refreshed_at
    if (step + 1) % config.checkpoint_every == 0:
        reference, refreshed_at = jax.tree.map(jnp.copy, learner.policy), jnp.int32(step + 1)
    return RLState(learner, reference, refreshed_at, kl_scale), metrics


@jax.jit
def adapted(scale, kl, aim):
    """What beta_kl is scaled by after a step with this KL (arXiv:1909.08593, 2.2); unmoved by one that is not finite."""
    error = jnp.clip(kl / aim - 1, -0.2, 0.2)
    return scale * (1 + 0.1 * jnp.where(jnp.isfinite(error), error, 0.0))


def hyper_at(config: RLDTFConfig, step: int) -> Hyper:
    """The traced scalars of a step's updates."""
    policy = optim.hyper(config.policy, step, config.steps)
    if step < config.critic_warmup:
        policy = policy._replace(lr=np.float32(0.0))
    return Hyper(*np.float32([config.clip, config.beta_ent, config.beta_kl, config.k1, config.k2,
                              config.sample.temperature]),
                 policy, optim.hyper(config.critic, step, config.steps))


def rollout_metrics(verdict: Verdict, w_BxT, S_BxT, mask_BxT, old_value_BxT, threshold) -> dict[str, Any]:
    """Rewards, the critic's explained variance, and what the token weights amount to."""
    R_B = verdict.reward_M
    w = np.asarray(w_BxT)[np.asarray(mask_BxT)]
    S = np.asarray(S_BxT)[np.asarray(mask_BxT)]
    residual = np.where(mask_BxT, R_B[:, None] - np.asarray(old_value_BxT), 0)
    spread = np.where(mask_BxT, R_B[:, None] - R_B.mean(), 0)
    return {
        "reward": R_B.mean(), "fulfilled": verdict.fulfilled_M.mean(),
        **{f"reward_p{q}": np.percentile(R_B, q) for q in (10, 50, 90)},
        "explained_variance": 1 - (residual ** 2).sum() / (spread ** 2).sum() if spread.any() else np.nan,
        "weight/mean": w.mean(), "weight/effective_sample_size": w.sum() ** 2 / (w ** 2).sum() / w.size,
        "weight/over_threshold": (S > threshold).mean(),
    }


def hash_seed(*numbers: int) -> int:
    """One 32-bit seed from several numbers, the same in every process."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

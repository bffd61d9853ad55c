"""RLDTF (III.C): rollout -> twin -> token weights -> one jitted update of policy and critic -> reference refresh.

Dimensions in names: B rollouts of a step, P padded prompt, T response positions, S = P + T, V vocabulary, M sequences.
"""

import functools
from typing import Any, Iterator, NamedTuple, Protocol, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rldtf_jax import advantage as adv
from rldtf_jax import lora, optim
from rldtf_jax.config import RLDTFConfig
from rldtf_jax.loop import run
from rldtf_jax.reward import NO_SERVICE
from rldtf_jax.sample import Samples, row_keys, sample_on_host
from rldtf_jax.token_weight import Perturbations, mean_one, perturb, sensitivity, token_weights
from rldtf_jax.update import Frozen, Hyper, Learner, Rollouts, Static, old_states, update


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


class RLState(NamedTuple):
    """What a step changes."""

    learner: Learner
    reference: Any  # frozen; takes the policy's weights at every checkpoint
    refreshed_at: jax.Array  # () int32, the steps that were done when it last did
    kl_scale: jax.Array  # () float32, what beta_kl is multiplied by; 1 unless it is adaptive


class Drawn(NamedTuple):
    """The prompts of a step, each as often as it is sampled, and the keys that the responses are drawn with."""

    tasks: list[Any]
    prompts_BxP: np.ndarray
    prompt_lengths_B: np.ndarray
    keys_B: jax.Array


class Asked(NamedTuple):
    """Responses that the twin shall judge, and how they are perturbed."""

    tasks: Sequence[Any]
    tokens_BxT: np.ndarray
    lengths_B: np.ndarray
    config: RLDTFConfig
    seed: int


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
                             policy: Policy | None) -> tuple[Verdict, np.ndarray]:
    """The rollouts' verdict and S_t (B, T), baseline and perturbed responses in one call of the twin.

    A sequence without an EOS is incomplete, R = -1, and costs no simulation: a rollout cut off at its budget (none of
    its tokens is perturbed) as well as a perturbed response that lost its EOS.
    """
    return judge_together(env, [Asked(tasks, tokens_BxT, lengths_B, config, seed)], policy)[0]


def judge_together(env: Environment, asked: Sequence[Asked], policy: Policy | None) -> list[tuple[Verdict, np.ndarray]]:
    """`judge_with_perturbations` of several trainings' rollouts in one call of the twin, whose stats all verdicts share."""
    tasks, sequences, ended, perturbed = [], [], [], []
    for one in asked:
        rollouts = [tokens[:n] for tokens, n in zip(one.tokens_BxT, one.lengths_B)]
        ended_B = np.array([env.eos_id in ids for ids in rollouts])
        changed = Perturbations(np.zeros(0, int), np.zeros(0, int), []) if one.config.alpha == 0 else perturb(
            one.tokens_BxT, one.lengths_B * ended_B, one.config.num_perturb, one.seed, one.config.delete_prob)
        ended_M = np.concatenate([ended_B, np.array([env.eos_id in ids for ids in changed.tokens], bool)])
        sequences += [ids if end else ids[:0] for ids, end in zip([*rollouts, *changed.tokens], ended_M)]
        tasks += [*one.tasks, *(one.tasks[b] for b in changed.row)]
        ended.append(ended_M)
        perturbed.append(changed)
    verdict = env.judge(tasks, sequences, policy)
    answers, start = [], 0
    for one, ended_M, changed in zip(asked, ended, perturbed):
        B, T = one.tokens_BxT.shape
        R_M = np.where(ended_M, verdict.reward_M[start:start + len(ended_M)], NO_SERVICE).astype(np.float32)
        failure_B = [reason if end else "truncated" for reason, end in zip(verdict.failure_M[start:], ended_M[:B])]
        answers.append((Verdict(R_M[:B], verdict.fulfilled_M[start:start + B] & ended_M[:B], failure_B, verdict.stats),
                        sensitivity(R_M[:B], R_M[B:], changed, T)))
        start += len(ended_M)
    return answers


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


def draw(env: Environment, config: RLDTFConfig, seed: int, step: int) -> Drawn:
    tasks, *prompts = env.batch(step, config.prompts_per_step)
    tasks = [task for task in tasks for _ in range(config.samples_per_prompt)]
    keys_B = row_keys(step_key(seed, step), jnp.arange(len(tasks)))
    return Drawn(tasks, *(np.repeat(x, config.samples_per_prompt, 0) for x in prompts), keys_B)


def weigh(config: RLDTFConfig, drawn: Drawn, tokens_BxS, samples: Samples, verdict: Verdict, S_BxT, old_value_BxT,
          anchor_hidden_BxTxD) -> tuple[Rollouts, jax.Array]:
    """(what the updates of a step are made of, the token weights of Eq. 5)."""
    mask = np.arange(S_BxT.shape[1]) < samples.lengths_B[:, None]
    w = token_weights(S_BxT, mask, config.alpha, config.threshold, config.lam)
    A, ret = advantages(config, jnp.asarray(verdict.reward_M), old_value_BxT, mask)
    return Rollouts(tokens_BxS, drawn.prompt_lengths_B, drawn.prompt_lengths_B + samples.lengths_B, samples.logp_BxR,
                    anchor_hidden_BxTxD, A, ret, mean_one(w, mask) if config.weights == "mean-one" else w,
                    old_value_BxT), w


def minibatches(config: RLDTFConfig, seed: int, step: int) -> Iterator[Any]:
    """Which rollouts each update of a step takes."""
    order, B = np.random.default_rng((seed, step, 1)), config.prompts_per_step * config.samples_per_prompt
    for _ in range(config.epochs):
        yield from [...] if config.minibatches == 1 else np.split(order.permutation(B), config.minibatches)


def mean_metrics(seen: Sequence[dict]) -> dict:
    """Those of a step with several updates: the counts are the last one's, the rest are means."""
    if len(seen) == 1:
        return seen[0]
    counts = {name: seen[-1][name] for name in ("skipped", "skipped_in_a_row")}
    return jax.tree.map(lambda *x: sum(x) / len(x), *seen) | counts


def rldtf_step(static: Static, env: Environment, config: RLDTFConfig, seed: int, state: RLState, step: int,
               frozen: Frozen = Frozen()):
    """One step: (state, metrics)."""
    learner, T = state.learner, config.sample.max_new_tokens
    drawn = draw(env, config, seed, step)
    tasks, prompts_BxP, prompt_lengths_B, keys_B = drawn

    policy = Policy(static.policy_def, lora.merge(frozen.policy, learner.policy))
    samples = sample_on_host(*policy, prompts_BxP, prompt_lengths_B, keys_B, max_new_tokens=T, eos_id=env.eos_id,
                             temperature=config.sample.temperature)
    tokens_BxS, lengths_B = join(prompts_BxP, prompt_lengths_B, samples.tokens_BxR, samples.lengths_B)

    # Dispatched before the twin is asked: these forward passes don't wait for rewards.
    anchor = lora.merge(frozen.policy, state.reference if config.kl_target == "reference"
                        else jax.tree.map(jnp.copy, learner.policy))
    old_value_BxT, anchor_hidden_BxTxD = old_states(
        static, lora.merge(frozen.critic, learner.critic), anchor, tokens_BxS, prompt_lengths_B, lengths_B, T)

    verdict, S_BxT = judge_with_perturbations(env, tasks, samples.tokens_BxR, samples.lengths_B, config,
                                              hash_seed(seed, step), policy)

    rows, w = weigh(config, drawn, tokens_BxS, samples, verdict, S_BxT, old_value_BxT, anchor_hidden_BxTxD)
    hyper, seen = hyper_at(config, step, state.kl_scale), []
    for part in minibatches(config, seed, step):
        minibatch = rows if part is ... else jax.tree.map(lambda x: x[part], rows)
        learner, metrics = update(static, learner, anchor, minibatch, hyper, frozen)
        seen.append(metrics)

    metrics = mean_metrics(seen)
    kl_scale = state.kl_scale if config.adaptive_kl is None else adapted(
        state.kl_scale, metrics["kl"], config.adaptive_kl)
    metrics |= rollout_metrics(env, drawn, samples, verdict, w, S_BxT, old_value_BxT, config.threshold)
    metrics["runtime"] = {f"twin/{name}": value for name, value in verdict.stats.items()}
    metrics |= {"since_refresh": step - state.refreshed_at, "lr": hyper.policy.lr, "beta_kl": hyper.beta_kl}
    reference, refreshed_at = state.reference, state.refreshed_at
    if (step + 1) % config.checkpoint_every == 0:
        reference, refreshed_at = jax.tree.map(jnp.copy, learner.policy), jnp.int32(step + 1)
    return RLState(learner, reference, refreshed_at, kl_scale), metrics


@jax.jit
def adapted(scale, kl, aim):
    """What beta_kl is scaled by after a step with this KL (arXiv:1909.08593, 2.2); unmoved by one that is not finite."""
    error = jnp.clip(kl / aim - 1, -0.2, 0.2)
    return scale * (1 + 0.1 * jnp.where(jnp.isfinite(error), error, 0.0))


def hyper_at(config: RLDTFConfig, step: int, kl_scale=1.0) -> Hyper:
    """The traced scalars of a step's updates."""
    policy = optim.hyper(config.policy, step, config.steps)
    if step < config.critic_warmup:
        policy = policy._replace(lr=np.float32(0.0))
    hyper = Hyper(*np.float32([config.clip, config.beta_ent, config.beta_kl, config.k1, config.k2,
                               config.sample.temperature]),
                  policy, optim.hyper(config.critic, step, config.steps))
    return hyper if config.adaptive_kl is None else hyper._replace(beta_kl=hyper.beta_kl * kl_scale)


def rollout_metrics(env: Environment, drawn: Drawn, samples: Samples, verdict: Verdict, w_BxT, S_BxT, old_value_BxT,
                    threshold) -> dict[str, Any]:
    """Rewards, the critic's explained variance, and what the token weights amount to."""
    R_B, mask_BxT = verdict.reward_M, np.arange(S_BxT.shape[1]) < samples.lengths_B[:, None]
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
        **env.summary(drawn.tasks, verdict),
        "tokens": drawn.prompt_lengths_B.sum() + samples.lengths_B.sum(), "response_tokens": samples.lengths_B.mean(),
    }


def hash_seed(*numbers: int) -> int:
    """One 32-bit seed from several numbers, the same in every process."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

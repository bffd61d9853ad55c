"""RLDTF (III.C): rollout -> twin -> token weights -> one jitted update of policy and critic ->
  reference refresh.

Dimensions in names: B rollouts of a step, P padded prompt, T response positions, S = P + T, V
vocabulary, M sequences.
"""

import functools
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rldtf_jax import advantage as adv
from rldtf_jax import hosts, lora, optim
from rldtf_jax.branching import branched, tree_advantage
from rldtf_jax.config import RLDTFConfig
from rldtf_jax.judge import (
    OPTIONS,
    Arm,
    Environment,
    Judged,
    Policy,
    Prompts,
    hash_seed,
    judge,
    unjudged,
)
from rldtf_jax.loop import MAX_SKIPPED_IN_A_ROW, run
from rldtf_jax.sample import Samples, answers, join, row_keys, sample_on_host
from rldtf_jax.token_weight import WEIGHTS, Evidence, Perturbations, mean_one
from rldtf_jax.turns import converse
from rldtf_jax.update import (
    Alternatives,
    Frozen,
    Hyper,
    Learner,
    Rollouts,
    Static,
    alternatives,
    old_states,
    update,
)

ALL = ...  # rows of a minibatch
# folded into a row's key for its alternatives; beyond any response's positions
OTHER_TOKENS = 1 << 20
# folded in, with the number of the place, for what the policy writes on from there
COMPLETIONS = 1 << 21


class RLState(NamedTuple):
    """What a step changes."""

    learner: Learner
    reference: Any  # frozen; takes the policy's weights at every checkpoint
    refreshed_at: jax.Array  # () int32, the steps that were done when it last did
    kl_scale: jax.Array  # () float32, what beta_kl is multiplied by; 1 unless it is adaptive
    # the policy's weights before each of the last `staleness` updates; the first of them samples
    behind: tuple = ()


class Recalled(NamedTuple):
    """What the models say of a step's rollouts before any update."""

    value_BxT: Any  # V_old(s_t)
    anchor: Any  # weights of the KL's second distribution
    anchor_hidden_BxTxD: Any


def advantages(config: RLDTFConfig, reward_B, value_BxT, mask_BxT, change_BxT=None, other_BxT=None):
    """(advantage, return), (B, T) each, in the form that the config names; the last two are for
    `counterfactual`, change_BxT for `prefix` too.
    """
    if config.advantage == "gae":
        A, ret = adv.gae(reward_B, value_BxT, mask_BxT, config.gae_gamma, config.gae_lam)
    elif config.advantage == "group":
        A, ret = adv.group_relative(reward_B, value_BxT, mask_BxT, config.samples_per_prompt)
    elif config.advantage == "leave-one-out":
        A, ret = adv.leave_one_out(reward_B, value_BxT, mask_BxT, config.samples_per_prompt)
    elif config.advantage == "tree":
        A, ret = tree_advantage(reward_B, mask_BxT, config.samples_per_prompt, config.branches)
    elif config.advantage == "counterfactual":
        A, ret = adv.counterfactual(reward_B, change_BxT, other_BxT, mask_BxT)
    elif config.advantage == "prefix":
        place_BxT = places(np.asarray(mask_BxT).sum(-1), config.prefixes)
        first_BxT = np.zeros(np.shape(mask_BxT), bool)
        first_BxT[np.arange(len(place_BxT))[:, None], place_BxT] = True
        A, ret = adv.prefix(reward_B, change_BxT, first_BxT, mask_BxT)
    else:
        A, ret = adv.reward_minus_value(reward_B, value_BxT, mask_BxT)
    return (adv.whiten(A, mask_BxT) if config.whiten else A), ret


def train(
    policy,
    critic,
    env: Environment,
    config: RLDTFConfig,
    *,
    seed: int,
    directory: str,
    watch: Callable[[Any], dict[str, float]] | None = None,
    worker: Callable[[], Any] | None = None,
    **options,
):
    """RLDTF from the policy after rejection sampling; goes on from `directory`; returns the trained
    policy.

    Every draw is a function of (seed, step): a killed and resumed run ends bit-identical to one
    never killed.
    watch: policy -> metrics of its own, a function of the policy alone, asked where the reference
      is refreshed.
    worker: starts a process that samples and judges, see `rollout_worker`; None: this one does.
    options: boards and sweep, see `loop.run`.
    """
    models, state = initial(policy, critic, config, seed)
    arm = Arm(config, seed, env)
    if worker is not None:
        from rldtf_jax.rollout_worker import Apart  # which imports this module

        models = Apart(models, worker, config.steps)  # type: ignore[assignment]

    def step_fn(states: tuple[RLState], step: int):
        states, metrics = rldtf_step(models, [arm], states, step)
        seen = (
            watch(nnx.merge(models.static.policy_def, models.policy(states[0])))
            if watch and refreshes(config, step)
            else {}
        )
        return (
            states,
            metrics["arms"][0] | {name: metrics[name] for name in ("tokens", "runtime")} | seen,
        )

    def position(step: int):
        return {
            "data": step * config.prompts_per_step,
            "prng_key_data": np.asarray(jax.random.key_data(step_key(seed, step))).tolist(),
        }

    (state,) = run(
        step_fn,
        (state,),
        steps=config.steps,
        directory=directory,
        save_every=config.save_every,
        keep=config.keep,
        identity={"config": config, "seed": seed},
        position=position,
        title="rldtf",
        show=("reward", "fulfilled", "kl", "twin/simulated"),
        **options,
    )
    return nnx.merge(models.static.policy_def, models.policy(state))


def initial(policy, critic, config: RLDTFConfig, seed: int) -> tuple["OneByOne", RLState]:
    """What a run starts from; the models stay the caller's."""
    (policy_def, policy_params), (critic_def, critic_params) = nnx.split(policy), nnx.split(critic)
    frozen_policy, policy_params = trained(policy_params, config, seed, 0)
    frozen_critic, critic_params = trained(critic_params, config, seed, 1)
    # updates donate; nothing that is donated may be shared
    fresh = functools.partial(jax.tree.map, jnp.copy)
    zero = jnp.zeros((), jnp.int32)
    models = OneByOne(shape(policy_def, critic_def, config), Frozen(frozen_policy, frozen_critic))
    return models, RLState(
        Learner(
            fresh(policy_params),
            fresh(critic_params),
            optim.init(policy_params),
            optim.init(critic_params),
            zero,
            jnp.copy(zero),
        ),
        fresh(policy_params),
        jnp.copy(zero),
        jnp.ones((), jnp.float32),
        tuple(fresh(policy_params) for _ in range(config.staleness)),
    )


def without_critic(policy, arm: Arm) -> tuple["OneByOne", Any]:
    """(how the policy is run by who samples and does not learn, its trained weights)."""
    policy_def, params = nnx.split(policy)
    frozen, params = trained(params, arm.config, arm.seed, 0)
    return OneByOne(shape(policy_def, None, arm.config), Frozen(frozen)), params


def shape(policy_def, critic_def, config: RLDTFConfig) -> Static:
    return Static(
        policy_def,
        critic_def,
        config.aggregation,
        config.microbatches,
        config.logit_chunk,
        config.dual_clip,
        config.value_clip,
        config.with_critic,
    )


def trained(params, config: RLDTFConfig, seed: int, model: int) -> tuple[Any, Any]:
    """(what stays as it is, what is trained) of model 0, the policy, or 1, the critic."""
    if config.lora_rank is None:
        return None, params
    return lora.split(params, config.lora_rank, jax.random.split(jax.random.key(seed))[model])


def step_key(seed: int, step: int) -> jax.Array:
    """The key that a step's rollouts are sampled with."""
    return jax.random.fold_in(jax.random.key(seed), step)


def draw(arm: Arm, step: int) -> Prompts:
    """The prompts of a step."""
    n = arm.config.samples_per_prompt
    tasks, *prompts = arm.env.batch(step, arm.config.prompts_per_step)
    tasks = [task for task in tasks for _ in range(n)]
    keys_B = row_keys(step_key(arm.seed, step), jnp.arange(len(tasks)))
    tokens_BxP, lengths_B = (np.repeat(x, n, 0) for x in prompts)
    return Prompts(tasks, tokens_BxP, lengths_B, keys_B, n)


def places(lengths_B, number: int) -> np.ndarray:
    """(B, N) int, where in each response the policy writes on: at the beginning and at equal
    distances; some twice in a response of fewer tokens.
    """
    return np.asarray(lengths_B)[:, None] * np.arange(number) // number


def completions(
    models, states, arms: Sequence[Arm], prompts: Sequence[Prompts], samples, joined
) -> list[Perturbations | None]:
    """What the policy writes from `places` of each response within the budget of a response; None
    for arms that have no use for it.
    """
    if not any(arm.config.completes for arm in arms):
        return [None] * len(arms)
    K, N = (
        max(arm.config.num_perturb for arm in arms if arm.config.completes),
        arms[0].config.prefixes,
    )
    where = [places(s.lengths_B, N).T for s in samples]
    found: list[list] = [[[], [], []] for _ in arms]  # rows, positions, tokens
    for number, *at in zip(range(N), *where):  # one place at a time: no more rows at once
        asked = []
        for p, place_B, (tokens_BxS, _) in zip(prompts, at, joined):
            keys = jax.vmap(jax.random.fold_in, (0, None))(p.keys_B, COMPLETIONS + number)
            keys = jax.vmap(row_keys, (0, None))(keys, jnp.arange(K)).reshape(-1)
            lengths = np.repeat(p.lengths_B + place_B, K).astype(np.int32)
            asked.append(Prompts([], np.repeat(tokens_BxS, K, 0), lengths, keys, K))
        for arm, own, s, place_B, rest in zip(
            arms, found, samples, at, models.sample(states, arms, asked)
        ):
            for i in range(len(rest.lengths_B)) if arm.config.completes else ():
                b, draw = divmod(i, K)
                if draw < arm.config.num_perturb:
                    tokens = s.tokens_BxR[b, : place_B[b]], rest.tokens_BxR[i, : rest.lengths_B[i]]
                    own[0].append(b)
                    own[1].append(place_B[b])
                    own[2].append(np.concatenate(tokens)[: s.tokens_BxR.shape[1]])
    return [
        Perturbations(np.asarray(own[0], int), np.asarray(own[1], int), own[2])
        if arm.config.completes
        else None
        for arm, own in zip(arms, found)
    ]


def respond(models, states, arms: Sequence[Arm], prompts: Sequence[Prompts]) -> list[Samples]:
    """A response of every arm's policy to each of its prompts: a message, a conversation, or one of
    a family.
    """
    config = arms[0].config
    if config.branches:

        def entropy(asked, samples) -> list[np.ndarray]:
            rows = [join(*p[1:3], *s[:2]) for p, s in zip(asked, samples)]
            found = models.alternatives(states, arms, asked, rows, always=True)
            return [np.asarray(one.entropy_BxT) for one in found]

        return branched(
            lambda asked: models.sample(states, arms, asked), entropy, prompts, config.branches
        )
    if config.turns == 1:
        return models.sample(states, arms, prompts)
    return converse(
        lambda asked: models.sample(states, arms, asked),
        [arm.env.reply for arm in arms],
        prompts,
        config.turns,
    )


def read_once(prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
    """(prompts, lengths) as the sampler takes them: one row for all samples of a prompt; on a mesh,
    over which they may not divide, one for each.
    """
    n = prompts.each if jax.sharding.get_mesh().empty else 1
    return prompts.tokens_BxP[::n], prompts.lengths_B[::n]


def weigh(
    arm: Arm,
    prompts: Prompts,
    samples: Samples,
    tokens_BxS,
    recalled: Recalled,
    others: Alternatives | None,
    judged: Judged,
    step: int,
) -> tuple[Rollouts, jax.Array]:
    """(what the updates of a step are made of, the token weights)."""
    config, mask = arm.config, samples.own_BxR
    other_BxT, entropy_BxT = (
        (None, None) if others is None else map(np.asarray, (others.other_BxT, others.entropy_BxT))
    )
    evidence = Evidence(judged.S, judged.read_BxT, entropy_BxT, mask, hash_seed(arm.seed, step))
    w = WEIGHTS[config.weight_by](evidence, config)
    A, ret = advantages(
        config, jnp.asarray(judged.reward_B), recalled.value_BxT, mask, judged.change_BxT, other_BxT
    )
    scaled = mean_one(w, mask) if config.weights == "mean-one" else jnp.asarray(w)
    return (
        Rollouts(
            tokens_BxS,
            prompts.lengths_B,
            prompts.lengths_B + samples.lengths_B,
            samples.logp_BxR,
            recalled.anchor_hidden_BxTxD,
            A,
            ret,
            scaled,
            recalled.value_BxT,
            *options(config, judged, mask.shape),
            author_BxT=samples.author_BxR,
        ),
        w,
    )


def options(config: RLDTFConfig, judged: Judged, shape: tuple[int, int]) -> tuple:
    """(tokens, worth), (B, T, K) each, that `advantage=expected` sums over: nothing for the other
    forms, nothing of worth for a frozen arm.
    """
    if config.advantage != "expected":
        return ()
    if judged.imagined is not None:
        return judged.imagined[:2]
    return np.zeros((*shape, OPTIONS), np.int32), np.zeros((*shape, OPTIONS), np.float32)


def minibatches(arm: Arm, rows: Rollouts, step: int) -> Iterator[Any]:
    """Which rollouts each update of a step takes."""
    config, order = arm.config, np.random.default_rng((arm.seed, step, 1))
    everything = config.learn_from is None
    chosen = (
        np.arange(len(rows.advantage_BxT))
        if everything
        else largest(rows.advantage_BxT, config.learn_from)
    )
    for _ in range(config.epochs):
        if config.minibatches == 1:
            yield ALL if everything else chosen
        else:
            yield from np.split(order.permutation(chosen), config.minibatches)


def largest(advantage_BxT, number: int) -> np.ndarray:
    """The rollouts with the largest max_t |A_t|, in their order; of equals the first. What they
    leave out has the least to say: of a group whose rewards are all equal, nothing.
    """
    size_B = np.abs(np.asarray(advantage_BxT)).max(-1)
    return np.sort(np.argsort(-size_B, kind="stable")[:number])


def mean_metrics(seen: Sequence[dict]) -> dict:
    """Those of a step with several updates: the counts are the last one's, the rest are means."""
    if len(seen) == 1:
        return seen[0]
    counts = {name: seen[-1][name] for name in ("skipped", "skipped_in_a_row")}
    return jax.tree.map(lambda *x: sum(x) / len(x), *seen) | counts


def rldtf_step(models, arms: Sequence[Arm], states: tuple, step: int) -> tuple[tuple, dict]:
    """Eq. 1, the episode: one step of every arm, rollout -> judge -> weigh -> update.

    Returns (states, metrics), metrics["arms"] each arm's own.

    models: how the arms' models are run, `OneByOne` here or side by side in one program
      (`arms.SideBySide`); `states` are its own.
    An arm is frozen once MAX_SKIPPED_IN_A_ROW of its updates in a row were not finite: policy and
    critic stay as they are, the twin is not asked for it, and its metrics say "diverged" alone.
    """
    running = models.skipped_in_a_row(states)[: len(arms)] < MAX_SKIPPED_IN_A_ROW

    prompts = [draw(arm, step) for arm in arms]
    samples = models.respond(states, arms, prompts, step)
    joined = [join(*p[1:3], *s[:2]) for p, s in zip(prompts, samples)]
    # Dispatched before the twin is asked: these forward passes don't wait for rewards.
    recalled = models.recall(states, arms, prompts, joined)
    others = models.alternatives(states, arms, prompts, joined)
    completed = models.completions(states, arms, prompts, samples, joined)

    asked = zip(arms, prompts, samples, others, completed)
    going = [list(x) for x in zip(*(x for x, runs in zip(asked, running) if runs))]
    answers = iter(models.judge(states, *going, step) if going else ())
    judged = [next(answers) if runs else unjudged(s) for s, runs in zip(samples, running)]

    weighed = [
        weigh(*x, step)  # type: ignore[call-arg]
        for x in zip(
            arms, prompts, samples, (tokens for tokens, _ in joined), recalled, others, judged
        )
    ]
    states, updated = models.update(
        states, arms, recalled, [rows for rows, _ in weighed], running, step
    )

    metrics = [
        found | rollout_metrics(arm, p, s, past, j, w) if runs else {"diverged": True}
        for arm, p, s, past, j, (_, w), found, runs in zip(
            arms, prompts, samples, recalled, judged, weighed, updated, running
        )
    ]
    stats = next((j.verdict.stats for j, runs in zip(judged, running) if runs), {})
    return states, {
        "arms": metrics,
        "running": running.sum(),
        "tokens": sum(lengths.sum() for (_, lengths), runs in zip(joined, running) if runs),
        "runtime": {f"twin/{name}": value for name, value in stats.items()},
        "skipped_in_a_row": 0 if running.any() else MAX_SKIPPED_IN_A_ROW,
        **{
            name: np.mean([m[name] for m in metrics if name in m] or np.nan)
            for name in ("reward", "fulfilled")
        },
    }


class OneByOne(NamedTuple):
    """Every arm in programs of its own, one after the other, on the devices where its state is;
    states: an RLState each.
    """

    static: Static
    frozen: Frozen = Frozen()

    def policy(self, state: RLState):
        return lora.merge(self.frozen.policy, state.learner.policy)

    def skipped_in_a_row(self, states) -> np.ndarray:
        # Of one arm the loop looks after that, without waiting for the update.
        return (
            np.zeros(1, int)
            if len(states) == 1
            else np.array(jax.device_get([state.learner.skipped_in_a_row for state in states]))
        )

    def respond(
        self, states, arms: Sequence[Arm], prompts: Sequence[Prompts], step: int
    ) -> list[Samples]:
        return respond(self, states, arms, prompts)

    def sample(self, states, arms: Sequence[Arm], prompts: Sequence[Prompts]) -> list[Samples]:
        return [
            sample_on_host(
                self.static.policy_def,
                self.policy(acting(state)),
                *read_once(p),
                p.keys_B,
                p.room_B,
                eos_id=env.eos_id,
                max_new_tokens=config.sample.max_new_tokens,
                temperature=config.sample.temperature,
            )
            for state, (config, _, env), p in zip(states, arms, prompts)
        ]

    def recall(self, states, arms: Sequence[Arm], prompts: Sequence[Prompts], joined):
        """What critic and anchor say of each arm's rollouts."""
        return [self._recall(*x) for x in zip(states, arms, prompts, joined)]

    def _recall(self, state: RLState, arm: Arm, prompts: Prompts, joined) -> Recalled:
        (tokens_BxS, lengths_B), config = joined, arm.config
        anchor = lora.merge(
            self.frozen.policy,
            (
                state.reference
                if config.kl_target == "reference"
                else jax.tree.map(jnp.copy, acting(state).learner.policy)
            ),
        )
        value_BxT, hidden_BxTxD = old_states(
            self.static,
            lora.merge(self.frozen.critic, state.learner.critic),
            anchor,
            tokens_BxS,
            prompts.lengths_B,
            lengths_B,
            config.sample.max_new_tokens,
        )
        return Recalled(hosts.fetched(value_BxT), anchor, hidden_BxTxD)

    def alternatives(
        self, states, arms: Sequence[Arm], prompts: Sequence[Prompts], joined, always: bool = False
    ):
        """What the policy that has sampled might have written instead; None where the config has no
        use for it, unless always.
        """
        return [
            hosts.fetched(
                alternatives(
                    self.static,
                    self.policy(acting(state)),
                    tokens_BxS,
                    p.lengths_B,
                    lengths_B,
                    other_keys(p.keys_B),
                    config.sample.temperature,
                    config.sample.max_new_tokens,
                    config.num_perturb,
                )
            )
            if always or config.asks_the_policy
            else None
            for state, (config, _, _), p, (tokens_BxS, lengths_B) in zip(
                states, arms, prompts, joined
            )
        ]

    def completions(self, states, arms, prompts, samples, joined):
        """See `completions`; only those arms are sampled that have a use for it."""
        which = [i for i, arm in enumerate(arms) if arm.config.completes]
        states, those, prompts, samples, joined = (
            [x[i] for i in which] for x in (states, arms, prompts, samples, joined)
        )
        some = iter(completions(self, states, those, prompts, samples, joined))
        return [next(some) if i in which else None for i in range(len(arms))]

    def judge(self, states, arms, prompts, samples, others, completed, step: int) -> list[Judged]:
        # f(a) may ask the policy; arms that share a judge have none
        policy = (
            Policy(self.static.policy_def, self.policy(acting(states[0])))
            if len(states) == 1
            else None
        )
        return judge(arms, prompts, samples, others, step, policy, completed)

    def update(
        self,
        states,
        arms: Sequence[Arm],
        recalled: Sequence[Recalled],
        rows: Sequence[Rollouts],
        running,
        step: int,
    ):
        """(states, metrics of each arm)."""
        states, metrics = zip(
            *(self._update(*x, step) for x in zip(states, arms, recalled, rows, running))
        )
        return states, metrics

    def _update(
        self, state: RLState, arm: Arm, recalled: Recalled, rows: Rollouts, runs: bool, step: int
    ):
        if not runs:
            return state, {}
        learner, hyper, seen = state.learner, hyper_at(arm.config, step, state.kl_scale), []
        behind = moved_on(state)
        for part in minibatches(arm, rows, step):
            minibatch = rows if part is ALL else jax.tree.map(lambda x: x[part], rows)  # noqa: B023
            learner, metrics = update(
                self.static, learner, recalled.anchor, minibatch, hyper, self.frozen
            )
            seen.append(metrics)
        metrics = mean_metrics(seen)
        kl_scale = (
            state.kl_scale
            if arm.config.adaptive_kl is None
            else adapted(state.kl_scale, metrics["kl"], arm.config.adaptive_kl)
        )
        metrics |= {
            "since_refresh": step - state.refreshed_at,
            "lr": hyper.policy.lr,
            "beta_kl": hyper.beta_kl,
        }
        return (
            refreshed(
                RLState(learner, state.reference, state.refreshed_at, kl_scale, behind),
                arm.config,
                step,
            ),
            metrics,
        )


def acting(state: RLState) -> RLState:
    """The state with the policy that samples: `staleness` updates old."""
    return (
        state._replace(learner=state.learner._replace(policy=state.behind[0]))
        if state.behind
        else state
    )


def moved_on(state: RLState) -> tuple:
    """`behind` after the next update, which donates the learner."""
    if not state.behind:
        return ()
    return *state.behind[1:], jax.tree.map(jnp.copy, state.learner.policy)


def refreshes(config: RLDTFConfig, step: int) -> bool:
    """Whether a step ends with a checkpoint of the reference."""
    return (step + 1) % config.checkpoint_every == 0


def refreshed(state: RLState, config: RLDTFConfig, step: int) -> RLState:
    """The state after a step; the reference takes the policy's weights at every checkpoint."""
    if not refreshes(config, step):
        return state
    return state._replace(
        reference=jax.tree.map(jnp.copy, state.learner.policy),
        refreshed_at=jnp.full_like(state.refreshed_at, step + 1),
    )


def other_keys(keys_B: jax.Array) -> jax.Array:
    """The keys that a step's alternatives are drawn with."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, OTHER_TOKENS)


@jax.jit
def adapted(scale, kl, aim):
    """What beta_kl is scaled by after a step with this KL (arXiv:1909.08593, 2.2); unmoved by one
    that is not finite.
    """
    error = jnp.clip(kl / aim - 1, -0.2, 0.2)
    return scale * (1 + 0.1 * jnp.where(jnp.isfinite(error), error, 0.0))


def hyper_at(config: RLDTFConfig, step: int, kl_scale=1.0) -> Hyper:
    """The traced scalars of a step's updates."""
    policy = optim.hyper(config.policy, step, config.steps)
    if step < config.critic_warmup:
        policy = policy._replace(lr=np.float32(0.0))
    hyper = Hyper(  # type: ignore[call-arg]
        *np.float32(
            [
                config.clip,
                config.beta_ent,
                config.beta_kl,
                config.k1,
                config.k2,
                config.sample.temperature,
            ]
        ),
        policy,
        optim.hyper(config.critic, step, config.steps),
    )
    return hyper if config.adaptive_kl is None else hyper._replace(beta_kl=hyper.beta_kl * kl_scale)


def rollout_metrics(
    arm: Arm, prompts: Prompts, samples: Samples, recalled: Recalled, judged: Judged, w_BxT
) -> dict[str, Any]:
    """Rewards of what the twin was asked about, what the critic explains, and what the token
    weights amount to.
    """
    verdict, R_B, n = judged.verdict, judged.verdict.reward_M, arm.config.samples_per_prompt
    mask_BxT, read = samples.own_BxR, answers(samples)
    w = np.asarray(w_BxT)[mask_BxT]
    responses, logp = (
        [row[:length] for row, length in zip(np.asarray(rows), read.lengths_B)]
        for rows in (read.tokens_BxR, read.logp_BxR)
    )
    residual = np.where(mask_BxT, judged.reward_B[:, None] - np.asarray(recalled.value_BxT), 0)
    spread = np.where(mask_BxT, judged.reward_B[:, None] - R_B.mean(), 0)
    return {
        "reward": R_B.mean(),
        "fulfilled": verdict.fulfilled_M.mean(),
        **{f"reward_p{q}": np.percentile(R_B, q) for q in (10, 50, 90)},
        **({"informative_groups": (np.ptp(R_B.reshape(-1, n), 1) > 0).mean()} if n > 1 else {}),
        **(
            {
                "explained_variance": (
                    1 - (residual**2).sum() / (spread**2).sum() if spread.any() else np.nan
                )
            }
            if arm.config.with_critic
            else {}
        ),
        "weight/mean": w.mean(),
        "weight/effective_sample_size": w.sum() ** 2 / max((w**2).sum(), 1e-12) / w.size,
        "weight/over_threshold": (judged.S.total[mask_BxT] > arm.config.threshold).mean(),
        **(judged.imagined.stats if judged.imagined else {}),
        **{f"S/{part}": S[mask_BxT].mean() for part, S in judged.S._asdict().items()},
        **arm.env.summary(
            prompts.tasks[: len(R_B)], responses[: len(R_B)], verdict, logp[: len(R_B)]
        ),
        "earned": np.nanmean(judged.reward_B),
        **{f"costs/{name}": x.mean() for name, x in (judged.costs or {}).items()},
        "tokens": prompts.lengths_B.sum() + samples.lengths_B.sum(),
        "response_tokens": samples.lengths_B.mean(),
    }

"""Many RLDTF trainings (arms) at once, each exactly as it is alone: alpha x threshold x seed, or any traced hyper-parameter.

All arms take a step together, and one call of the twin judges the responses of all of them. A group of arms is one axis A
of one compiled sampler and one compiled update; groups take turns within the step, and over several devices A is sharded.
"""

import functools
import math
import os
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rldtf_jax import lora, rldtf
from rldtf_jax.config import ConfigError, RLDTFConfig, flat
from rldtf_jax.loop import MAX_SKIPPED_IN_A_ROW
from rldtf_jax.reward import NO_SERVICE
from rldtf_jax.rldtf import Asked, Environment, Frozen, RLState, Static, Verdict
from rldtf_jax.sample import Samples, sample, sample_on_host

TRACED = (  # what may differ between arms; anything else shapes the compiled programs or the data
    "alpha", "threshold", "lam", "num_perturb", "delete_prob", "clip", "beta_ent", "beta_kl", "k1", "k2", "adaptive_kl",
    "gae_gamma", "gae_lam", "critic_warmup", "sample.temperature",
    *(f"{model}.{name}" for model in ("policy", "critic")
      for name in ("lr", "warmup_steps", "final_lr_ratio", "weight_decay", "b1", "b2", "grad_clip")))
SHARE_OF_MEMORY = 0.8  # of a device, that may be planned for


class Arm(NamedTuple):
    """One of the trainings: its hyper-parameters, its seed, and its tasks in the order that this seed gives them."""

    config: RLDTFConfig
    seed: int
    env: Environment


class Plan(NamedTuple):
    """How many arms train together, and what they take."""

    together: int  # arms of one training, which share the twin's calls
    width: int  # arms side by side in one program; the others take turns
    bytes_of_step: int | None  # of the largest program of one arm's step, temporaries and all
    bytes_of_state: int  # of one arm's state, which stays on the device


def check(configs: Sequence[RLDTFConfig]) -> None:
    """Raises ConfigError if the configs differ in anything but TRACED."""
    first = flat(configs[0])
    for config in configs[1:]:
        for name, value in flat(config).items():
            if value != first[name] and name not in TRACED:
                raise ConfigError(f"{name} = {value!r} in one arm and {first[name]!r} in another: expected one value, or "
                                  f"a hyper-parameter that is traced ({', '.join(TRACED)})")
    if len({config.adaptive_kl is None for config in configs}) > 1:
        raise ConfigError("adaptive_kl = null in one arm and a number in another: expected either in all")


def arm_mesh(width: int | None = None) -> Mesh | None:
    """All devices along one axis, "arm", or as many as divide a group of `width`; None for one device."""
    count = math.gcd(width or jax.device_count(), jax.device_count())
    return None if count == 1 else jax.make_mesh(
        (count,), ("arm",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def initial(policy, critic, arms: Sequence[Arm], width: int, mesh: Mesh | None = None
            ) -> tuple[Static, tuple[RLState, ...], Frozen]:
    """What the arms start from, in groups of `width`; copies of the first arm, never looked at, fill the last group."""
    check([arm.config for arm in arms])
    padded, groups = [*arms, *arms[:1] * (-len(arms) % width)], []
    for i in range(0, len(padded), width):
        states = []
        for arm in padded[i:i + width]:
            static, state, frozen = rldtf.initial(policy, critic, arm.config, arm.seed)
            states.append(jax.device_get(state))  # a group is put together on the host and born on its devices
        groups.append(_put(jax.tree.map(lambda *leaves: np.stack(leaves), *states), mesh))
    if mesh is not None:
        frozen = jax.device_put(frozen, NamedSharding(mesh, PartitionSpec()))
    return static, tuple(groups), frozen


def take(groups: Sequence[RLState], index: int) -> RLState:
    """The state of one arm."""
    width = len(groups[0].refreshed_at)
    return jax.tree.map(lambda x: x[index % width], groups[index // width])


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _put(tree: Any, mesh: Mesh | None) -> Any:
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, PartitionSpec("arm")))


def _over_arms(function, mesh: Mesh | None, shared: Any, *per_arm: Any) -> Any:
    """function(shared, ...) over axis A of what is per arm."""
    def over(shared, *per_arm):
        if jax.tree.leaves(per_arm)[0].shape[0] > 1:
            return jax.vmap(functools.partial(function, shared))(*per_arm)
        # A group of one runs the very program that the arm has alone.
        return jax.tree.map(lambda x: x[None], function(shared, *jax.tree.map(lambda x: x[0], per_arm)))

    if mesh is not None:
        specs = PartitionSpec(), *[PartitionSpec("arm")] * len(per_arm)
        over = jax.shard_map(over, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("arm"), check_vma=False)
    return over(shared, *per_arm)


@functools.partial(jax.jit, static_argnames=("static", "mesh", "max_new_tokens", "eos_id"))
def sample_arms(static: Static, frozen, learner, prompts_AxBxP, lengths_AxB, keys_AxB, temperature_A, *, max_new_tokens: int,
                eos_id: int, mesh: Mesh | None) -> Samples:
    """`sample` over axis A."""
    def one(frozen, policy, prompts_BxP, lengths_B, keys_B, temperature):
        return sample(static.policy_def, lora.merge(frozen, policy), prompts_BxP, lengths_B, keys_B,
                      max_new_tokens=max_new_tokens, eos_id=eos_id, temperature=temperature)

    return _over_arms(one, mesh, frozen.policy, learner.policy, prompts_AxBxP, lengths_AxB, keys_AxB, temperature_A)


@functools.partial(jax.jit, static_argnames=("static", "mesh", "num_tokens"))
def old_states_arms(static: Static, frozen, critic, anchor, tokens_AxBxS, prompt_lengths_AxB, lengths_AxB, *, num_tokens: int,
                    mesh: Mesh | None):
    """`rldtf.old_states` over axis A."""
    def one(frozen, critic, anchor, tokens_BxS, prompt_lengths_B, lengths_B):
        return rldtf.old_states(static, lora.merge(frozen.critic, critic), lora.merge(frozen.policy, anchor), tokens_BxS,
                                prompt_lengths_B, lengths_B, num_tokens)

    return _over_arms(one, mesh, frozen, critic, anchor, tokens_AxBxS, prompt_lengths_AxB, lengths_AxB)


@functools.partial(jax.jit, static_argnames=("static", "mesh"), donate_argnames=("learner",))
def update_arms(static: Static, frozen, learner, anchor, rows, hyper, running_A, *, mesh: Mesh | None):
    """`rldtf.update` over axis A; arms that are not running keep what they are."""
    def one(frozen, learner, anchor, rows, hyper, running):
        new, metrics = rldtf.update(static, learner, lora.merge(frozen.policy, anchor), rows, hyper, frozen)
        return jax.tree.map(lambda n, o: jnp.where(running, n, o), new, learner), metrics

    return _over_arms(one, mesh, frozen, learner, anchor, rows, hyper, running_A)


def arms_step(static: Static, arms: Sequence[Arm], groups: tuple[RLState, ...], step: int, frozen: Frozen = Frozen(),
              mesh: Mesh | None = None) -> tuple[tuple[RLState, ...], dict]:
    """One step of every arm: `rldtf.rldtf_step` with axis A, metrics["arms"] holding each arm's own.

    An arm is frozen once MAX_SKIPPED_IN_A_ROW of its updates in a row were not finite: policy and critic stay as they are,
    the twin is not asked for it, and its metrics say "diverged" alone.
    """
    config, env, width = arms[0].config, arms[0].env, len(groups[0].refreshed_at)
    T, num_arms = config.sample.max_new_tokens, len(arms)
    padded = [*arms, *[arms[0]] * (len(groups) * width - num_arms)]
    parts = [slice(i, i + width) for i in range(0, len(padded), width)]
    running = np.concatenate(jax.device_get([group.learner.skipped_in_a_row for group in groups])) < MAX_SKIPPED_IN_A_ROW
    running[num_arms:] = False

    drawn = [rldtf.draw(arm.env, arm.config, arm.seed, step) for arm in padded]
    prompts, prompt_lengths = (np.stack([getattr(d, name) for d in drawn]) for name in ("prompts_BxP", "prompt_lengths_B"))
    keys, temperature = jnp.stack([d.keys_B for d in drawn]), np.float32([arm.config.sample.temperature for arm in padded])
    if width == 1 and mesh is None:  # as the arm samples alone
        samples = [sample_on_host(static.policy_def, lora.merge(frozen.policy, take(groups, i).learner.policy), *d[1:],
                                  max_new_tokens=T, eos_id=env.eos_id, temperature=padded[i].config.sample.temperature)
                   for i, d in enumerate(drawn)]
    else:
        samples = [sample_arms(static, frozen, group.learner,
                               *_put((prompts[p], prompt_lengths[p], keys[p], temperature[p]), mesh),
                               max_new_tokens=T, eos_id=env.eos_id, mesh=mesh) for group, p in zip(groups, parts)]
        samples = [Samples(*(x[i] for x in group)) for group in jax.device_get(samples) for i in range(width)]
    tokens, lengths = map(np.stack, zip(*(
        rldtf.join(d.prompts_BxP, d.prompt_lengths_B, s.tokens_BxR, s.lengths_B) for d, s in zip(drawn, samples))))

    # Dispatched before the twin is asked: these forward passes don't wait for rewards.
    anchors = [group.reference if config.kl_target == "reference" else jax.tree.map(jnp.copy, group.learner.policy)
               for group in groups]
    old = [old_states_arms(static, frozen, group.learner.critic, anchor,
                           *_put((tokens[p], prompt_lengths[p], lengths[p]), mesh), num_tokens=T, mesh=mesh)
           for group, anchor, p in zip(groups, anchors, parts)]

    asked = [Asked(d.tasks, s.tokens_BxR, s.lengths_B, arm.config, rldtf.hash_seed(arm.seed, step))
             for arm, d, s in zip(padded, drawn, samples)]
    answers = iter(rldtf.judge_together(env, [a for a, runs in zip(asked, running) if runs], None))
    verdicts = [next(answers) if runs else _unjudged(a) for a, runs in zip(asked, running)]

    weighed = [rldtf.weigh(arm.config, d, toks, s, *answer, value, None) for arm, d, toks, s, answer, value in zip(
        padded, drawn, tokens, samples, verdicts, (v for group_values, _ in old for v in np.asarray(group_values)))]
    updated, hypers, measured = [], [], []
    for group, anchor, (_, hidden), p in zip(groups, anchors, old, parts):
        hyper = jax.tree.map(lambda *x: np.stack(x), *(
            rldtf.hyper_at(arm.config, step, scale) for arm, scale in zip(padded[p], np.asarray(group.kl_scale))))
        all_rows = _stack([rows for rows, _ in weighed[p]])._replace(anchor_hidden_BxTxD=hidden)
        learner, seen = group.learner, []
        for chosen in zip(*(rldtf.minibatches(arm.config, arm.seed, step) for arm in padded[p])):
            rows = all_rows if chosen[0] is ... else jax.vmap(_rows)(all_rows, np.stack(chosen))
            learner, found = update_arms(static, frozen, learner, anchor, *_put((rows, hyper, running[p]), mesh), mesh=mesh)
            seen.append(found)
        found, scales = rldtf.mean_metrics(seen), group.kl_scale
        if config.adaptive_kl is not None:
            scales = jax.vmap(rldtf.adapted)(scales, found["kl"], np.float32([arm.config.adaptive_kl for arm in padded[p]]))
        reference, refreshed_at = group.reference, group.refreshed_at
        if (step + 1) % config.checkpoint_every == 0:
            reference, refreshed_at = jax.tree.map(jnp.copy, learner.policy), jnp.full_like(refreshed_at, step + 1)
        updated.append(RLState(learner, reference, refreshed_at, scales))
        hypers.append(hyper)
        measured.append(found | {"since_refresh": step - group.refreshed_at})

    metrics = []
    for n, (found, hyper) in enumerate(zip(jax.device_get(measured), hypers)):
        for i, (arm, d, s, (verdict, S), (rows, w)) in enumerate(
                zip(*(x[parts[n]] for x in (padded, drawn, samples, verdicts, weighed)))):
            metrics.append({"diverged": True} if not running[parts[n]][i] else {
                **{name: x[i] for name, x in found.items()}, "lr": hyper.policy.lr[i], "beta_kl": hyper.beta_kl[i],
                **rldtf.rollout_metrics(env, d, s, verdict, w, S, rows.old_value_BxT, arm.config.threshold)})
    stats = next((verdict.stats for (verdict, _), runs in zip(verdicts, running) if runs), {})
    return tuple(updated), {
        "arms": metrics[:num_arms], "running": running.sum(), "tokens": lengths[running].sum(),
        "runtime": {f"twin/{name}": value for name, value in stats.items()},
        "skipped_in_a_row": 0 if running.any() else MAX_SKIPPED_IN_A_ROW,
        **{name: np.mean([m[name] for m in metrics if name in m] or np.nan) for name in ("reward", "fulfilled")}}


def _rows(rollouts: rldtf.Rollouts, chosen_M):
    return jax.tree.map(lambda x: x[chosen_M], rollouts)


def _unjudged(asked: Asked) -> tuple[Verdict, np.ndarray]:
    B, T = asked.tokens_BxT.shape
    return Verdict(np.full(B, NO_SERVICE, np.float32), np.zeros(B, bool), [None] * B, {}), np.zeros((B, T), np.float32)


def plan(policy, critic, arm: Arm, num_arms: int, mesh: Mesh | None = None, memory: int | None = None) -> Plan:
    """How many of the arms can train together, and how many of those side by side, in `memory` bytes a device (default: all
    that it has), from what the compiled programs take.

    On a CPU groups are of one arm: an update uses all cores already, and several in one program only take more memory.
    """
    devices, on_cpu = (1 if mesh is None else mesh.size), memory is None and jax.default_backend() == "cpu"
    available = SHARE_OF_MEMORY * (memory or device_memory())
    state = jax.eval_shape(lambda: rldtf.initial(policy, critic, arm.config, arm.seed)[1])
    bytes_of_state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    together = min(num_arms, devices * max(1, int(available / 2 / bytes_of_state)))
    if on_cpu:
        return Plan(together, devices, None, bytes_of_state)
    bytes_of_step = step_bytes(policy, critic, arm, 1)
    width = devices * max(1, int((available - together * bytes_of_state / devices) / bytes_of_step))
    turns = -(-together // width)
    width = devices * -(-together // (turns * devices))
    while width > devices and step_bytes(policy, critic, arm, width // devices) > available:
        width = devices * (width // devices // 2)
    return Plan(together, width, bytes_of_step, bytes_of_state)


def step_bytes(policy, critic, arm: Arm, width: int) -> int:
    """What `width` arms take on one device in the compiled program that takes most: sampler, forward passes or update; its
    arguments, results and temporaries."""
    static, state, frozen = rldtf.initial(policy, critic, arm.config, arm.seed)
    group = jax.tree.map(lambda x: jax.ShapeDtypeStruct((width, *x.shape), x.dtype), state)
    drawn, T = rldtf.draw(arm.env, arm.config, arm.seed, 0), arm.config.sample.max_new_tokens
    B, P = drawn.prompts_BxP.shape
    part = B // arm.config.minibatches

    def shape(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((width, *sizes), dtype)

    keys, f32 = shape(B, dtype=drawn.keys_B.dtype), functools.partial(shape, dtype=jnp.float32)
    old = old_states_arms.lower(static, frozen, group.learner.critic, group.reference, shape(B, P + T), shape(B), shape(B),
                                num_tokens=T, mesh=None)
    hidden = shape(part, *old.out_info[1].shape[2:], dtype=old.out_info[1].dtype)
    rows = rldtf.Rollouts(shape(part, P + T), shape(part), shape(part), f32(part, T), hidden, *[f32(part, T)] * 4)
    hyper = jax.tree.map(lambda x: f32(), rldtf.hyper_at(arm.config, 0))
    programs = (
        sample_arms.lower(static, frozen, group.learner, shape(B, P), shape(B), keys, f32(), max_new_tokens=T,
                          eos_id=arm.env.eos_id, mesh=None),
        old, update_arms.lower(static, frozen, group.learner, group.reference, rows, hyper, shape(dtype=bool), mesh=None))
    used = [program.compile().memory_analysis() for program in programs]
    return max(u.argument_size_in_bytes + u.output_size_in_bytes - u.alias_size_in_bytes + u.temp_size_in_bytes for u in used)


def device_memory() -> int:
    """Bytes that a device has, the machine's for a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

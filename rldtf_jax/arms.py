"""Many RLDTF trainings (arms) at once, each exactly as it is alone: alpha x threshold x seed, or
any traced hyper-parameter.

All arms take a step together, and one call of the twin judges the responses of all of them. A group
of arms is one axis A of one compiled sampler and one compiled update; groups take turns within the
step, and over several devices A is sharded.
"""

import functools
import math
import os
from typing import Any, Iterator, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rldtf_jax import lora, rldtf
from rldtf_jax.config import ConfigError, PricesConfig, RLDTFConfig, flat
from rldtf_jax.judge import Arm, Judged, Prompts, judge
from rldtf_jax.rldtf import OneByOne, Recalled, RLState
from rldtf_jax.sample import Samples, sample
from rldtf_jax.token_weight import Perturbations
from rldtf_jax.update import Alternatives, Frozen, Rollouts, Static

WORDS = ("perturb", "weight_by", "weights", "advantage")
TRACED = (  # what may differ between arms; anything else shapes the compiled programs or the data
    *WORDS,
    "alpha",
    "threshold",
    "lam",
    "num_perturb",
    "delete_prob",
    "clip",
    "beta_ent",
    "beta_kl",
    "k1",
    "k2",
    "adaptive_kl",
    "gae_gamma",
    "gae_lam",
    "critic_warmup",
    "sample.temperature",
    *(f"prices.{name}" for name in vars(PricesConfig())),
    *(
        f"{model}.{name}"
        for model in ("policy", "critic")
        for name in (
            "lr",
            "warmup_steps",
            "final_lr_ratio",
            "weight_decay",
            "b1",
            "b2",
            "grad_clip",
        )
    ),
)
SHARE_OF_MEMORY = 0.8  # of a device, that may be planned for


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
                raise ConfigError(
                    f"{name} = {value!r} in one arm and {first[name]!r} in another: expected one"
                    f" value, or a hyper-parameter that is traced ({', '.join(TRACED)})"
                )
    if len({config.adaptive_kl is None for config in configs}) > 1:
        raise ConfigError(
            "adaptive_kl = null in one arm and a number in another: expected either in all"
        )
    if len({config.advantage == "expected" for config in configs}) > 1:
        raise ConfigError(
            "advantage = 'expected' in one arm and another in another: expected it in all or in"
            " none"
        )


def arm_mesh(width: int | None = None) -> Mesh | None:
    """All devices along one axis, "arm", or as many as divide a group of `width`; None for one
    device.
    """
    count = math.gcd(width or jax.device_count(), jax.device_count())
    return (
        None
        if count == 1
        else jax.make_mesh(
            (count,), ("arm",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
        )
    )


def initial(
    policy, critic, arms: Sequence[Arm], width: int, mesh: Mesh | None = None
) -> tuple["OneByOne | SideBySide", tuple[RLState, ...]]:
    """(how the arms' models are run, what they start from): a state each, or groups of `width` of
    them on an axis A, the last filled with copies of the first arm that are never looked at.
    """
    check([arm.config for arm in arms])
    if width == 1 and mesh is None:
        models, states = zip(*(rldtf.initial(policy, critic, arm.config, arm.seed) for arm in arms))
        return models[0], states
    padded, groups = [*arms, *arms[:1] * (-len(arms) % width)], []
    for i in range(0, len(padded), width):
        states = []
        for arm in padded[i : i + width]:
            (static, frozen), state = rldtf.initial(policy, critic, arm.config, arm.seed)
            # a group is put together on the host and born on its devices
            states.append(jax.device_get(state))
        groups.append(_put(jax.tree.map(lambda *leaves: np.stack(leaves), *states), mesh))
    if mesh is not None:
        frozen = jax.device_put(frozen, NamedSharding(mesh, PartitionSpec()))
    return SideBySide(static, frozen, width, mesh), tuple(groups)


def take(models: "OneByOne | SideBySide", states: Sequence[RLState], index: int) -> RLState:
    """The state of one arm."""
    if isinstance(models, OneByOne):
        return states[index]
    return jax.tree.map(lambda x: x[index % models.width], states[index // models.width])


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _put(tree: Any, mesh: Mesh | None) -> Any:
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, PartitionSpec("arm")))


def _over_arms(function, mesh: Mesh | None, shared: Any, *per_arm: Any) -> Any:
    """function(shared, ...) over axis A of what is per arm."""

    def over(shared, *per_arm):
        return jax.vmap(functools.partial(function, shared))(*per_arm)

    if mesh is not None:
        specs = PartitionSpec(), *[PartitionSpec("arm")] * len(per_arm)
        over = jax.shard_map(
            over, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("arm"), check_vma=False
        )
    return over(shared, *per_arm)


@functools.partial(jax.jit, static_argnames=("static", "mesh", "max_new_tokens", "eos_id"))
def sample_arms(
    static: Static,
    frozen,
    learner,
    prompts_AxGxP,
    lengths_AxG,
    keys_AxB,
    temperature_A,
    room_AxB=None,
    *,
    max_new_tokens: int,
    eos_id: int,
    mesh: Mesh | None,
) -> Samples:
    """`sample` over axis A."""

    def one(frozen, policy, prompts_GxP, lengths_G, keys_B, temperature, room_B):
        return sample(
            static.policy_def,
            lora.merge(frozen, policy),
            prompts_GxP,
            lengths_G,
            keys_B,
            max_new_tokens=max_new_tokens,
            eos_id=eos_id,
            temperature=temperature,
            room_B=room_B,
        )

    return _over_arms(
        one,
        mesh,
        frozen.policy,
        learner.policy,
        prompts_AxGxP,
        lengths_AxG,
        keys_AxB,
        temperature_A,
        room_AxB,
    )


@functools.partial(jax.jit, static_argnames=("static", "mesh", "num_tokens"))
def old_states_arms(
    static: Static,
    frozen,
    critic,
    anchor,
    tokens_AxBxS,
    prompt_lengths_AxB,
    lengths_AxB,
    *,
    num_tokens: int,
    mesh: Mesh | None,
):
    """`update.old_states` over axis A."""

    def one(frozen, critic, anchor, tokens_BxS, prompt_lengths_B, lengths_B):
        return rldtf.old_states(
            static,
            lora.merge(frozen.critic, critic),
            lora.merge(frozen.policy, anchor),
            tokens_BxS,
            prompt_lengths_B,
            lengths_B,
            num_tokens,
        )

    return _over_arms(
        one, mesh, frozen, critic, anchor, tokens_AxBxS, prompt_lengths_AxB, lengths_AxB
    )


@functools.partial(jax.jit, static_argnames=("static", "mesh"), donate_argnames=("learner",))
def update_arms(
    static: Static, frozen, learner, anchor, rows, hyper, running_A, *, mesh: Mesh | None
):
    """`update.update` over axis A; arms that are not running keep what they are."""

    def one(frozen, learner, anchor, rows, hyper, running):
        new, metrics = rldtf.update(
            static, learner, lora.merge(frozen.policy, anchor), rows, hyper, frozen
        )
        return jax.tree.map(lambda n, o: jnp.where(running, n, o), new, learner), metrics

    return _over_arms(one, mesh, frozen, learner, anchor, rows, hyper, running_A)


@functools.partial(jax.jit, static_argnames=("static", "mesh", "num_tokens", "num"))
def alternatives_arms(
    static: Static,
    frozen,
    learner,
    tokens_AxBxS,
    prompt_lengths_AxB,
    lengths_AxB,
    keys_AxB,
    temperature_A,
    *,
    num_tokens: int,
    num: int,
    mesh: Mesh | None,
) -> Alternatives:
    """`update.alternatives` over axis A."""

    def one(frozen, policy, *rows):
        return rldtf.alternatives(static, lora.merge(frozen, policy), *rows, num_tokens, num)

    return _over_arms(
        one,
        mesh,
        frozen.policy,
        learner.policy,
        tokens_AxBxS,
        prompt_lengths_AxB,
        lengths_AxB,
        keys_AxB,
        temperature_A,
    )


class SideBySide(NamedTuple):
    """Groups of arms in one program each, the arms of a group on an axis A; groups take turns. The
    methods are those of `rldtf.OneByOne`.
    """

    static: Static
    frozen: Frozen
    width: int
    mesh: Mesh | None = None

    def groups(self, *lists: Sequence[Any]) -> Iterator[list[list[Any]]]:
        """Each list in parts of `width`, the last filled with copies of the list's first."""
        for i in range(0, len(lists[0]), self.width):
            yield [list(x[i : i + self.width]) + [x[0]] * (i + self.width - len(x)) for x in lists]

    def put(self, *trees: Any) -> Any:
        return _put(trees, self.mesh)

    def policy(self, state: RLState):
        return lora.merge(self.frozen.policy, state.learner.policy)

    def skipped_in_a_row(self, states) -> np.ndarray:
        return np.concatenate(jax.device_get([group.learner.skipped_in_a_row for group in states]))

    def respond(
        self, states, arms: Sequence[Arm], prompts: Sequence[Prompts], step: int
    ) -> list[Samples]:
        return rldtf.respond(self, states, arms, prompts)

    def sample(self, states, arms: Sequence[Arm], prompts: Sequence[Prompts]) -> list[Samples]:
        config, eos_id, drawn = arms[0].config, arms[0].env.eos_id, []
        for group, (some, p) in zip(states, self.groups(arms, prompts)):
            inputs = self.put(
                *(np.stack(x) for x in zip(*map(rldtf.read_once, p))),
                jnp.stack([one.keys_B for one in p]),
                _temperatures(some),
                None if p[0].room_B is None else np.stack([one.room_B for one in p]),
            )
            drawn.append(
                sample_arms(
                    self.static,
                    self.frozen,
                    rldtf.acting(group).learner,
                    *inputs,
                    eos_id=eos_id,
                    mesh=self.mesh,
                    max_new_tokens=config.sample.max_new_tokens,
                )
            )
        return [
            jax.tree.map(lambda x: x[i], group)  # noqa: B023
            for group in jax.device_get(drawn)
            for i in range(self.width)
        ][: len(arms)]

    def recall(self, states, arms: Sequence[Arm], prompts: Sequence[Prompts], joined):
        """The anchor's weights and hidden states, which nothing on the host reads, stay a group's,
        with its first arm.
        """
        T, found = arms[0].config.sample.max_new_tokens, []
        for group, (some, p, j) in zip(states, self.groups(arms, prompts, joined)):
            anchor = (
                group.reference
                if some[0].config.kl_target == "reference"
                else jax.tree.map(jnp.copy, rldtf.acting(group).learner.policy)
            )
            value, hidden = old_states_arms(
                self.static,
                self.frozen,
                group.learner.critic,
                anchor,
                *self.put(*_stacked(p, j)),
                num_tokens=T,
                mesh=self.mesh,
            )
            found.append((value, anchor, hidden))
        return [
            Recalled(value_BxT, *((anchor, hidden) if i == 0 else (None, None)))  # type: ignore[call-arg]
            for value, anchor, hidden in found
            for i, value_BxT in enumerate(np.asarray(value))
        ][: len(arms)]

    def alternatives(
        self, states, arms: Sequence[Arm], prompts: Sequence[Prompts], joined, always: bool = False
    ):
        """See `rldtf.OneByOne.alternatives`."""
        T, found = arms[0].config.sample.max_new_tokens, []
        for group, (some, p, j) in zip(states, self.groups(arms, prompts, joined)):
            if not (always or any(arm.config.asks_the_policy for arm in some)):
                found += [None] * self.width
                continue
            drawn = alternatives_arms(
                self.static,
                self.frozen,
                rldtf.acting(group).learner,
                *self.put(*_stacked(p, j)),
                *self.put(
                    jnp.stack([rldtf.other_keys(one.keys_B) for one in p]), _temperatures(some)
                ),
                num_tokens=T,
                num=max(arm.config.num_perturb for arm in some),
                mesh=self.mesh,
            )
            found += [
                Alternatives(tokens[: arm.config.num_perturb], *rest)
                for arm, tokens, *rest in zip(some, *jax.device_get(drawn))
            ]
        return found[: len(arms)]

    def completions(self, *asked) -> list[Perturbations | None]:
        return rldtf.completions(self, *asked)

    def judge(self, states, arms, prompts, samples, others, completed, step: int) -> list[Judged]:
        return judge(arms, prompts, samples, others, step, completed=completed)

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
        updated, metrics = [], []
        for group, (some, past, all_rows, runs) in zip(
            states, self.groups(arms, recalled, rows, list(running))
        ):
            hyper = jax.tree.map(
                lambda *x: np.stack(x),
                *(
                    rldtf.hyper_at(arm.config, step, scale)
                    for arm, scale in zip(some, np.asarray(group.kl_scale))
                ),
            )
            stacked = _stack([x._replace(anchor_hidden_BxTxD=None) for x in all_rows])._replace(
                anchor_hidden_BxTxD=past[0].anchor_hidden_BxTxD
            )
            learner, behind, seen = group.learner, rldtf.moved_on(group), []
            for chosen in zip(
                *(rldtf.minibatches(arm, own, step) for arm, own in zip(some, all_rows))
            ):
                part = (
                    stacked
                    if chosen[0] is rldtf.ALL
                    else jax.vmap(_rows)(stacked, np.stack(chosen))
                )
                learner, found = update_arms(
                    self.static,
                    self.frozen,
                    learner,
                    past[0].anchor,
                    *self.put(part, hyper, np.array(runs)),
                    mesh=self.mesh,
                )
                seen.append(found)
            found, scales = rldtf.mean_metrics(seen), group.kl_scale
            if some[0].config.adaptive_kl is not None:
                scales = jax.vmap(rldtf.adapted)(
                    scales, found["kl"], np.float32([arm.config.adaptive_kl for arm in some])
                )
            found = jax.device_get(found | {"since_refresh": step - group.refreshed_at})
            found |= {"lr": hyper.policy.lr, "beta_kl": hyper.beta_kl}
            metrics += [{name: x[i] for name, x in found.items()} for i in range(self.width)]
            updated.append(
                rldtf.refreshed(
                    RLState(learner, group.reference, group.refreshed_at, scales, behind),
                    some[0].config,
                    step,
                )
            )
        return tuple(updated), metrics[: len(arms)]


def _stacked(prompts: Sequence[Prompts], joined) -> tuple[np.ndarray, ...]:
    """(tokens_AxBxS, prompt_lengths_AxB, lengths_AxB) of a group."""
    rows = [(tokens, p.lengths_B, lengths) for p, (tokens, lengths) in zip(prompts, joined)]
    return tuple(map(np.stack, zip(*rows)))


def _temperatures(arms: Sequence[Arm]) -> np.ndarray:
    return np.float32([arm.config.sample.temperature for arm in arms])


def _rows(rollouts: Rollouts, chosen_M):
    return jax.tree.map(lambda x: x[chosen_M], rollouts)


def plan(
    policy, critic, arm: Arm, num_arms: int, mesh: Mesh | None = None, memory: int | None = None
) -> Plan:
    """How many of the arms can train together, and how many of those side by side, in `memory`
    bytes a device (default: all that it has), from what the compiled programs take.

    On a CPU groups are of one arm: an update uses all cores already, and several in one program
    only take more memory.
    """
    devices, on_cpu = (
        (1 if mesh is None else mesh.size),
        memory is None and jax.default_backend() == "cpu",
    )
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
    """What `width` arms take on one device in the compiled program that takes most: sampler,
    forward passes or update; its arguments, results and temporaries.
    """
    (static, frozen), state = rldtf.initial(policy, critic, arm.config, arm.seed)
    group = jax.tree.map(lambda x: jax.ShapeDtypeStruct((width, *x.shape), x.dtype), state)
    drawn, T = rldtf.draw(arm, 0), arm.config.sample.max_new_tokens
    B, P = drawn.tokens_BxP.shape
    part = (arm.config.learn_from or B) // arm.config.minibatches

    def shape(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((width, *sizes), dtype)

    keys, f32 = shape(B, dtype=drawn.keys_B.dtype), functools.partial(shape, dtype=jnp.float32)
    old = old_states_arms.lower(
        static,
        frozen,
        group.learner.critic,
        group.reference,
        shape(B, P + T),
        shape(B),
        shape(B),
        num_tokens=T,
        mesh=None,
    )
    hidden = shape(part, *old.out_info[1].shape[2:], dtype=old.out_info[1].dtype)
    rows = Rollouts(
        shape(part, P + T), shape(part), shape(part), f32(part, T), hidden, *[f32(part, T)] * 4
    )
    hyper = jax.tree.map(lambda x: f32(), rldtf.hyper_at(arm.config, 0))
    programs = (
        sample_arms.lower(
            static,
            frozen,
            group.learner,
            shape(B // arm.config.samples_per_prompt, P),
            shape(B // arm.config.samples_per_prompt),
            keys,
            f32(),
            max_new_tokens=T,
            eos_id=arm.env.eos_id,
            mesh=None,
        ),
        old,
        update_arms.lower(
            static,
            frozen,
            group.learner,
            group.reference,
            rows,
            hyper,
            shape(dtype=bool),
            mesh=None,
        ),
    )
    used = [program.compile().memory_analysis() for program in programs]
    return max(
        u.argument_size_in_bytes
        + u.output_size_in_bytes
        - u.alias_size_in_bytes
        + u.temp_size_in_bytes
        for u in used
    )


def device_memory() -> int:
    """Bytes that a device has, the machine's for a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

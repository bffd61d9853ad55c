"""Does an RLDTF run fit? Compiles its update and its sampler for virtual devices, from shapes
alone.

python -m experiments.benchmarks.plan                                          Qwen2.5 7B on 16 x 80 GB
python -m experiments.benchmarks.plan model=qwen2.5-1.5b mesh.fsdp=4 batch=64  any key of configs/plan/*.yaml
python -m experiments.benchmarks.plan preset=qwen2.5-0.5b                      another file of configs/plan

Nothing is allocated: the programs are compiled for a mesh of CPU devices and XLA's own memory
analysis is read. Its figure for activations is that of the CPU compiler, which computes bfloat16 in
float32 and fuses less than a GPU's; it errs on the large side. Exit status 1 if the plan does not
fit.
"""  # noqa: E501

import dataclasses
import math
import os
import sys
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import CONFIGS, MeshConfig, command
from rldtf_jax import mesh, optim, rldtf
from rldtf_jax.config import ConfigError
from rldtf_jax.qwen2 import PRESETS, Qwen2, Qwen2Config, param_table
from rldtf_jax.sample import sample

GB = 1e9


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    model: str  # a name of qwen2.PRESETS; policy, critic and reference each have this size
    # of weights, gradients and Adam's moments; bfloat16 computes
    param_dtype: Literal["float32", "bfloat16"]
    mesh: MeshConfig
    memory_gb: float  # of one device
    batch: int  # rollouts a step
    prompt_tokens: int
    response_tokens: int
    microbatches: int
    logit_chunk: int | None  # response positions whose float32 logits exist at once; None for all
    remat: bool  # recompute each layer in the backward pass
    sampler: bool = True  # plan sampling too
    compare: bool = True  # the peak without each of the three savings too

    def __post_init__(self):
        if self.model not in PRESETS:
            raise ConfigError(f"model = {self.model!r}: expected one of {', '.join(PRESETS)}")
        sizes = dataclasses.asdict(self.mesh) | {name: getattr(self, name) for name in (
            "batch", "prompt_tokens", "response_tokens", "microbatches")}  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"{name} = {size}: expected an integer >= 1")
        parts = self.mesh.data * self.mesh.fsdp * self.microbatches
        if self.batch % parts:
            raise ConfigError(
                f"batch = {self.batch}: expected a multiple of data x fsdp x microbatches = {parts}"
            )

    @property
    def qwen2(self) -> Qwen2Config:
        return Qwen2Config.preset(
            self.model, dtype="bfloat16", param_dtype=self.param_dtype, remat=self.remat, unroll=1
        )


class Shapes(NamedTuple):
    """What a step works on: trees of ShapeDtypeStruct with shardings."""

    policy_def: Any
    critic_def: Any
    learner: rldtf.Learner
    reference: Any
    rollouts: rldtf.Rollouts
    prompts_BxP: Any
    hyper: rldtf.Hyper


def shapes(config: PlanConfig, device_mesh: jax.sharding.Mesh) -> Shapes:
    """Raises ConfigError if a parameter does not divide over the mesh."""
    qwen2, B, P, T = config.qwen2, config.batch, config.prompt_tokens, config.response_tokens
    table = param_table(qwen2) | param_table(qwen2, "value")

    def on_mesh(tree):
        try:
            placed = mesh.shardings(device_mesh, tree, table)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placed
        )

    def rows(*shape, dtype=jnp.float32):
        axes = ("batch", *[None] * (len(shape) - 1))
        sharding = jax.sharding.NamedSharding(device_mesh, mesh.partition_spec(axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def model(head):
        graphdef, params = nnx.split(
            nnx.eval_shape(lambda: Qwen2(qwen2, rngs=nnx.Rngs(0), head=head))
        )
        return graphdef, on_mesh(params)

    (policy_def, policy), (critic_def, critic) = model("lm"), model("value")
    moments = [on_mesh(jax.eval_shape(optim.init, params)) for params in (policy, critic)]
    count, number = (
        on_mesh(jax.ShapeDtypeStruct((), jnp.int32)),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    adam = optim.Hyper(*[number] * len(optim.Hyper._fields))
    int_rows = lambda *shape: rows(*shape, dtype=jnp.int32)
    return Shapes(
        policy_def, critic_def, rldtf.Learner(policy, critic, *moments, count, count), policy,  # type: ignore[call-arg]
        rldtf.Rollouts(int_rows(B, P + T), int_rows(B), int_rows(B), rows(B, T),
                       rows(B, T, qwen2.hidden_size, dtype=jnp.bfloat16), *[rows(B, T)] * 4),
        int_rows(B, P), rldtf.Hyper(*[number] * (len(rldtf.Hyper._fields) - 2), adam, adam),  # type: ignore[call-arg]
    )  # fmt: skip


def per_device(tree: Any) -> int:
    """Bytes of one device's shards."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def lower_update(config: PlanConfig, s: Shapes):
    static = rldtf.Static(
        s.policy_def, s.critic_def, "sum", config.microbatches, config.logit_chunk
    )
    return rldtf.update.lower(static, s.learner, s.reference, s.rollouts, s.hyper)


def lower_old_states(config: PlanConfig, s: Shapes):
    static = rldtf.Static(
        s.policy_def, s.critic_def, "sum", config.microbatches, config.logit_chunk
    )
    rows = s.rollouts.tokens_BxS, s.rollouts.prompt_lengths_B, s.rollouts.lengths_B
    return rldtf.old_states.lower(
        static, s.learner.critic, s.reference, *rows, config.response_tokens
    )


def lower_sampler(config: PlanConfig, s: Shapes):
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.batch))
    return sample.lower(
        s.policy_def,
        s.learner.policy,
        s.prompts_BxP,
        s.rollouts.lengths_B,
        keys_B,
        max_new_tokens=config.response_tokens,
        eos_id=jax.ShapeDtypeStruct((), jnp.int32),
    )


def scratch(lowered) -> int:
    """Bytes a device needs beside a program's arguments: temporaries and outputs that take no
    argument's place.
    """
    # of code that is never run
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def flops(config: PlanConfig) -> dict[str, float]:
    """Floating-point operations of a step's three programs on all devices: 2 per weight of a matrix
    and token, and attention over whole rows as it is computed, without use of the causal mask. The
    backward pass counts twice the forward pass.
    """
    c, B, P, T = config.qwen2, config.batch, config.prompt_tokens, config.response_tokens
    D, F, HC, KC = (
        c.hidden_size,
        c.intermediate_size,
        c.num_attention_heads * c.head_dim,
        c.num_key_value_heads * c.head_dim,
    )
    L, S = c.num_hidden_layers, P + T
    layers = lambda tokens, attended: (
        2 * tokens * L * (2 * D * HC + 2 * D * KC + 3 * D * F + 2 * HC * attended)
    )
    head = 2 * B * T * D * c.vocab_size
    # the logits are then computed twice
    chunked = config.logit_chunk is not None and config.logit_chunk < T
    return {
        "sampling": layers(B * P, P) + layers(B * T, S) + head,
        "values and reference": 2 * layers(B * S, S),
        "update": (
            2 * (3 + config.remat) * layers(B * S, S) + (3 + chunked) * head + (1 + chunked) * head
        ),
    }


def kv_cache(config: PlanConfig) -> int:
    """Bytes of one device's share of the sampler's cache."""
    c = config.qwen2
    slots = config.batch * (config.prompt_tokens + config.response_tokens)
    whole = (
        2
        * c.num_hidden_layers
        * slots
        * c.num_key_value_heads
        * c.head_dim
        * jnp.dtype(c.dtype).itemsize
    )
    return whole // math.prod(dataclasses.astuple(config.mesh))


def plan(config: PlanConfig, device_mesh: jax.sharding.Mesh) -> bool:
    """Prints the plan; says whether it fits."""
    s = shapes(config, device_mesh)
    count = sum(x.size for x in jax.tree.leaves(s.reference))
    print(
        f"{config.model}: policy of {count / 1e6:,.1f} M parameters, critic and reference of the"
        " same size"
    )
    print(
        f"{device_mesh.size} devices {dict(device_mesh.shape)}, batch {config.batch} x"
        f" ({config.prompt_tokens} prompt + {config.response_tokens} response) tokens in"
        f" {config.microbatches} micro-batches"
    )
    print(f"weights, gradients and Adam's moments in {config.param_dtype}, computed in bfloat16")

    print("\nfloating-point operations a step")
    for name, operations in (work := flops(config)).items():
        print(f"  {name:42}{operations:10.3g}")
    print(f"  {'together':42}{sum(work.values()):10.3g}")

    weights = per_device((s.learner.policy, s.learner.critic, s.reference))
    held = weights + per_device(s.learner[2:4])
    gradients = per_device(s.learner[:2])
    with jax.set_mesh(device_mesh):
        update = scratch(lower_update(config, s))
        peaks = {
            "update": held + per_device(s.rollouts) + update,
            "values and reference": held + scratch(lower_old_states(config, s)),
        }
        lines = {
            "weights: policy, critic, reference": weights,
            "optimiser: Adam's moments": held - weights,
            "rollouts": per_device(s.rollouts),
            "gradients, accumulated": gradients,
            "activations and gathered weights": update - gradients,
            "KV cache": kv_cache(config),
        }
        if config.sampler:
            sampling = scratch(lower_sampler(config, s))
            lines["sampler's gathered weights and scratch"] = sampling - kv_cache(config)
            peaks["sampling"] = held + sampling
        without = {}
        if config.compare:
            for name, change in (
                ("recomputed layers (remat)", dict(remat=False)),
                ("gradient accumulation", dict(microbatches=1)),
                ("chunked log-prob, entropy and KL", dict(logit_chunk=None)),
            ):
                other = dataclasses.replace(config, **change)
                without[name] = (
                    peaks["update"]
                    - update
                    + scratch(lower_update(other, shapes(other, device_mesh)))
                )

    print("\nGB a device")
    for name, size in lines.items():
        print(f"  {name:42}{size / GB:10.3f}")
    for name, size in peaks.items():
        print(f"  peak of {name:34}{size / GB:10.3f}")
    if without:
        print(f"  peak of update: all three savings {'':8}{peaks['update'] / GB:10.3f}")
    for name, size in without.items():
        print(f"    without {name:34}{size / GB:10.3f}")
    worst = max(peaks.values())
    print(
        f"\n{'fits' if worst <= config.memory_gb * GB else 'does not fit'}: "
        f"{worst / GB:.3g} of {config.memory_gb:g} GB a device"
    )
    return worst <= config.memory_gb * GB


def main(config: PlanConfig) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", math.prod(dataclasses.astuple(config.mesh)))
    sys.exit(0 if plan(config, mesh.make_mesh(*dataclasses.astuple(config.mesh))) else 1)


if __name__ == "__main__":
    command(main, PlanConfig, os.path.join(CONFIGS, "plan"), "qwen2.5-7b")

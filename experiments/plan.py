"""Does an RLDTF run fit? Compiles its update and its sampler for virtual devices, from shapes alone.

python -m experiments.plan --preset qwen2.5-7b --devices 16 --batch 128 --prompt 1024 --response 1024 --microbatches 8

Nothing is allocated: the programs are compiled for a mesh of CPU devices and XLA's own memory analysis is read. Its
figure for activations is that of the CPU compiler, which computes bfloat16 in float32 and fuses less than a GPU's; it
errs on the large side. Exit status 1 if the plan does not fit.
"""

import argparse
import dataclasses
import math
import os
import sys

GB = 1e9


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="qwen2.5-7b")
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--memory", type=float, default=80.0, help="of one device, in GB")
    parser.add_argument("--tensor", type=int, default=1, help="size of the mesh's tensor axis; the rest is fsdp")
    parser.add_argument("--batch", type=int, default=128, help="rollouts a step")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--response", type=int, default=1024, help="tokens")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--logit-chunk", type=int, default=64)
    parser.add_argument("--param-dtype", default="float32", help="of weights, gradients and Adam's moments")
    parser.add_argument("--skip-sampler", action="store_true")
    parser.add_argument("--compare", action="store_true", help="also the peak without each of the three savings")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    return report(options)


def report(options: argparse.Namespace) -> int:
    # Only here: JAX reads the number of virtual devices when it is first used.
    from flax import nnx
    import jax
    import jax.numpy as jnp

    from rldtf_jax import mesh, optim, rldtf
    from rldtf_jax.qwen2 import Qwen2, Qwen2Config, param_table
    from rldtf_jax.sample import sample

    config = Qwen2Config.preset(options.preset, param_dtype=options.param_dtype, dtype="bfloat16")
    config = dataclasses.replace(config, remat=True, unroll=1)
    B, P, T, D = options.batch, options.prompt, options.response, config.hidden_size
    device_mesh = mesh.make_mesh(fsdp=options.devices // options.tensor, tensor=options.tensor)
    table = param_table(config) | param_table(config, "value")

    def on_mesh(tree):
        placed = mesh.shardings(device_mesh, tree, table)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placed)

    def rows(*shape, dtype=jnp.float32):
        axes = ("batch", *[None] * (len(shape) - 1))
        sharding = jax.sharding.NamedSharding(device_mesh, mesh.partition_spec(axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def per_device(tree):
        return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))

    def model(head, remat=True):
        options = dataclasses.replace(config, remat=remat)
        graphdef, params = nnx.split(nnx.eval_shape(lambda: Qwen2(options, rngs=nnx.Rngs(0), head=head)))
        return graphdef, on_mesh(params)

    (policy_def, policy), (_, critic) = model("lm"), model("value")
    moments = [on_mesh(jax.eval_shape(optim.init, params)) for params in (policy, critic)]
    scalar = on_mesh(jax.ShapeDtypeStruct((), jnp.int32))
    learner = rldtf.Learner(policy, critic, *moments, scalar, scalar)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    step_hyper = optim.Hyper(*[number] * len(optim.Hyper._fields))
    hyper = rldtf.Hyper(*[number] * (len(rldtf.Hyper._fields) - 2), step_hyper, step_hyper)
    int_rows = lambda *shape: rows(*shape, dtype=jnp.int32)
    rollouts = rldtf.Rollouts(
        int_rows(B, P + T), int_rows(B), int_rows(B), rows(B, T), rows(B, T, D, dtype=jnp.bfloat16),
        rows(B, T), rows(B, T), rows(B, T), rows(B, T),
    )  # fmt: skip

    def update_scratch(remat=True, microbatches=options.microbatches, chunk=options.logit_chunk):
        definitions = (model(head, remat)[0] for head in ("lm", "value"))
        static = rldtf.Static(*definitions, "sum", microbatches, chunk)
        compiled = rldtf.update.lower(static, learner, policy, rollouts, hyper).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    count = sum(x.size for x in jax.tree.leaves(policy))
    print(f"{options.preset}: policy {count / 1e6:,.1f} M parameters, critic and reference of the same shape")
    print(f"mesh {dict(device_mesh.shape)}, batch {B} x ({P} + {T}) tokens, weights and Adam in {options.param_dtype}")
    with jax.set_mesh(device_mesh):
        figures = {
            "weights: policy, critic, reference": per_device(policy) * 2 + per_device(critic),
            "Adam's moments": per_device(moments),
            "rollouts": per_device(rollouts),
            "gradients and activations": update_scratch(),
        }
        peaks = {"update": sum(figures.values())}
        if not options.skip_sampler:
            keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), B))
            sampler = sample.lower(
                policy_def, policy, int_rows(B, P), int_rows(B), keys, max_new_tokens=T, eos_id=scalar
            ).compile()
            figures["sampler: KV cache, scratch"] = sampler.memory_analysis().temp_size_in_bytes
            peaks["sampling"] = sum(figures.values()) - figures["gradients and activations"]
        without = {}
        if options.compare:
            without["recomputed layers"] = update_scratch(remat=False)
            without["gradient accumulation"] = update_scratch(microbatches=1)
            without["chunked logits"] = update_scratch(chunk=None)
    for name, size in figures.items():
        print(f"  {name:36}{size / GB:8.3f} GB a device")
    cache = 2 * config.num_hidden_layers * B * (P + T) * config.num_key_value_heads * config.head_dim * 2
    print(f"  {'(KV cache alone, bfloat16':36}{cache / options.devices / GB:8.3f} GB a device)")
    # Per parameter and token 2 operations forward, 4 backward and 2 to recompute; two models.
    flops = 2 * 8 * count * B * (P + T)
    print(f"  an update: {flops:.3g} floating-point operations")
    for name, scratch in without.items():
        size = peaks["update"] - figures["gradients and activations"] + scratch
        print(f"  ... without {name:24}{size / GB:8.3f} GB a device")
    worst = max(peaks.values())
    fits = worst <= options.memory * GB
    for name, size in peaks.items():
        print(f"  peak while {name:25}{size / GB:8.3f} GB a device")
    print(f"{'fits' if fits else 'does not fit'}: {worst / GB:.3g} of {options.memory:g} GB")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())

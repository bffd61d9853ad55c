"""What test_mesh runs in processes of their own: JAX takes its number of devices once, at the
start.

python on_devices.py meshes DIR                       the same things on one device and on meshes of eight
python on_devices.py step RANK PROCESSES PORT FILE    one RLDTF update by several processes together
"""  # noqa: E501

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rldtf_jax import hf, mesh, optim, rldtf
from rldtf_jax.qwen2 import Qwen2, Qwen2Config, param_table
from rldtf_jax.sample import row_keys, sample

B, P, T = 16, 7, 5  # of the RLDTF update
CONFIG = Qwen2Config(
    64, 32, 48, 2, 4, 2, head_dim=8, rope_theta=1e4, tie_word_embeddings=False, remat=True
)
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
TOKENS_BxT = np.random.default_rng(0).integers(0, 64, (16, 12))
OPTIMISER = optax.adamw(1e-2)
GRAPHDEF, _ = nnx.split(nnx.eval_shape(lambda: Qwen2(CONFIG, rngs=nnx.Rngs(0))))
CRITICDEF, _ = nnx.split(nnx.eval_shape(lambda: Qwen2(CONFIG, rngs=nnx.Rngs(0), head="value")))
TABLE = param_table(CONFIG) | param_table(CONFIG, "value")


def init():
    params = nnx.split(Qwen2(CONFIG, rngs=nnx.Rngs(0)))[1]
    return params, OPTIMISER.init(params)


def loss(params, tokens_BxT):
    logits_BxTxV = nnx.merge(GRAPHDEF, params)(tokens_BxT)[:, :-1]
    return -jnp.mean(
        jnp.take_along_axis(jax.nn.log_softmax(logits_BxTxV), tokens_BxT[:, 1:, None], axis=-1)
    )


def init_learner():
    policy, critic = (
        nnx.split(Qwen2(CONFIG, rngs=nnx.Rngs(0), head=head))[1] for head in ("lm", "value")
    )
    zero = jnp.int32(0)
    return rldtf.Learner(policy, critic, optim.init(policy), optim.init(critic), zero, zero), policy


def rldtf_update(learner, anchor, on_rows=lambda x: x):
    """One whole update (micro-batches, chunked logits) on made-up rollouts: (learner, metrics)."""
    draw = np.random.default_rng(1)
    prompt_lengths_B, response_lengths_B = draw.integers(1, P + 1, B), draw.integers(1, T + 1, B)
    floats = lambda *shape: draw.normal(size=shape).astype(np.float32)
    rows = rldtf.Rollouts(
        draw.integers(0, 64, (B, P + T)), prompt_lengths_B, prompt_lengths_B + response_lengths_B, floats(B, T) - 4,  # noqa: E501
        floats(B, T, CONFIG.hidden_size), floats(B, T), floats(B, T), 1 + floats(B, T) ** 2, floats(B, T),  # noqa: E501
    )  # fmt: skip
    adam = optim.Hyper(*np.float32([1e-2, 0.9, 0.95, 0.0, 1.0]))
    hyper = rldtf.Hyper(*np.float32([0.2, 0.1, 0.3, 0.5, 1.0, 1.0]), adam, adam)
    static = rldtf.Static(GRAPHDEF, CRITICDEF, "sum", microbatches=2, logit_chunk=2)
    return rldtf.update(static, learner, anchor, jax.tree.map(on_rows, rows), hyper)


@jax.jit
def step(state, tokens_BxT):
    params, moments = state
    value, gradient = jax.value_and_grad(loss)(params, tokens_BxT)
    updates, moments = OPTIMISER.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), value


def batch(device_mesh, rows=TOKENS_BxT):
    sharding = jax.sharding.NamedSharding(
        device_mesh, mesh.partition_spec(("batch", *[None] * (rows.ndim - 1)))
    )
    return jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)


def distance(a, b):
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


def shard_shapes(params):
    return {
        ".".join(path): leaf[...].addressable_shards[0].data.shape
        for path, leaf in nnx.to_flat_state(params)
    }


def meshes(directory):
    logits = jax.jit(lambda params, tokens: nnx.merge(GRAPHDEF, params)(tokens))
    draw = lambda params: sample(
        GRAPHDEF, params, TOKENS_BxT, np.full(16, 12), row_keys(jax.random.key(0), np.arange(16)),
        max_new_tokens=8, eos_id=5,
    ).tokens_BxR  # fmt: skip
    alone = jax.jit(init)()
    stepped, value = step(alone, TOKENS_BxT)
    expected_logits, expected_tokens = logits(alone[0], TOKENS_BxT), draw(alone[0])
    hf.save(nnx.merge(GRAPHDEF, alone[0]), directory)
    updated, metrics = rldtf_update(*jax.jit(init_learner)())
    out = {}
    for sizes in MESHES:
        device_mesh, table = mesh.make_mesh(*sizes), param_table(CONFIG)
        with jax.set_mesh(device_mesh):
            state, tokens_BxT = mesh.init_sharded(init, device_mesh, table), batch(device_mesh)
            placed = mesh.shardings(device_mesh, jax.eval_shape(init), table)
            compiled_step = step.lower(state, tokens_BxT).compile()
            new_state, new_value = compiled_step(state, tokens_BxT)
            loaded = nnx.split(hf.load(directory, mesh=device_mesh, remat=True))[1]
            out[str(sizes)] = dict(
                init=distance(state, alone),
                logits=distance(logits(state[0], tokens_BxT), expected_logits),
                loss=abs(float(new_value) - float(value)),
                step=distance(new_state[0], stepped[0]),
                moved=distance(stepped[0], alone[0]),
                same_tokens=distance(draw(state[0]), expected_tokens) == 0,
                loaded=distance(loaded, alone[0]),
                shards=shard_shapes(state[0]),
                moment_shards=shard_shapes(state[1][0].mu),
                stepped_shards=shard_shapes(new_state[0]),
                loaded_shards=shard_shapes(loaded),
                batch_shard=tokens_BxT.addressable_shards[0].data.shape,
                init_program=jax.jit(init, out_shardings=placed).lower().compile().as_text(),
                gathers=compiled_step.as_text().count("all-gather("),
            )
    with jax.set_mesh(device_mesh):  # the last one, (2, 2, 2)
        learner, new_metrics = rldtf_update(
            *mesh.init_sharded(init_learner, device_mesh, TABLE), partial(batch, device_mesh)
        )
    out["rldtf"] = dict(
        update=distance(learner, updated),
        metrics=distance(new_metrics, metrics),
        shards=shard_shapes(learner.policy),
    )
    print(json.dumps(out))


def several(rank, processes, port, file):
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", num_processes=processes, process_id=rank)
    device_mesh = mesh.make_mesh(1, 2, 2)
    with jax.set_mesh(device_mesh):
        learner, metrics = rldtf_update(
            *mesh.init_sharded(init_learner, device_mesh, TABLE), partial(batch, device_mesh)
        )
        norm = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.sum(leaf * jnp.sin(leaf)), tree))
        norms = norm((learner.policy, learner.critic))
    local = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(learner.policy)
        for shard in leaf.addressable_shards
    )
    result = dict(norms=[float(norm) for norm in jax.tree.leaves(norms)])
    result |= dict(metrics=[float(metrics[name]) for name in sorted(metrics)])
    result |= dict(
        devices=jax.device_count(), local_devices=jax.local_device_count(), local_bytes=local
    )
    Path(file).write_text(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1] == "meshes":
        meshes(sys.argv[2])
    else:
        several(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])

"""What test_mesh runs in processes of their own: JAX takes its number of devices once, at the start.

python on_devices.py meshes DIR                       the same things on one device and on meshes of eight
python on_devices.py step RANK PROCESSES PORT FILE    one training step by several processes together
"""

import json
from pathlib import Path
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rldtf_jax import hf, mesh
from rldtf_jax.qwen2 import Qwen2, Qwen2Config, param_table
from rldtf_jax.sample import row_keys, sample

CONFIG = Qwen2Config(64, 32, 48, 2, 4, 2, head_dim=8, rope_theta=1e4, tie_word_embeddings=False, remat=True)
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
TOKENS_BxT = np.random.default_rng(0).integers(0, 64, (16, 12))
OPTIMISER = optax.adamw(1e-2)
GRAPHDEF, _ = nnx.split(nnx.eval_shape(lambda: Qwen2(CONFIG, rngs=nnx.Rngs(0))))


def init():
    params = nnx.split(Qwen2(CONFIG, rngs=nnx.Rngs(0)))[1]
    return params, OPTIMISER.init(params)


def loss(params, tokens_BxT):
    logits_BxTxV = nnx.merge(GRAPHDEF, params)(tokens_BxT)[:, :-1]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits_BxTxV), tokens_BxT[:, 1:, None], axis=-1))


@jax.jit
def step(state, tokens_BxT):
    params, moments = state
    value, gradient = jax.value_and_grad(loss)(params, tokens_BxT)
    updates, moments = OPTIMISER.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), value


def batch(device_mesh):
    sharding = jax.sharding.NamedSharding(device_mesh, mesh.partition_spec(("batch", "time")))
    return jax.make_array_from_callback(TOKENS_BxT.shape, sharding, TOKENS_BxT.__getitem__)


def distance(a, b):
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def shard_shapes(params):
    return {".".join(path): leaf[...].addressable_shards[0].data.shape for path, leaf in nnx.to_flat_state(params)}


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
    print(json.dumps(out))


def several(rank, processes, port, file):
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", num_processes=processes, process_id=rank)
    device_mesh = mesh.make_mesh(1, 2, 2)
    with jax.set_mesh(device_mesh):
        state = mesh.init_sharded(init, device_mesh, param_table(CONFIG))
        (params, _), value = step(state, batch(device_mesh))
        norms = jax.jit(lambda params: jax.tree.map(lambda leaf: jnp.sum(leaf * jnp.sin(leaf)), params))(params)
    local = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    result = dict(loss=float(value), norms=[float(norm) for norm in jax.tree.leaves(norms)])
    result |= dict(devices=jax.device_count(), local_devices=jax.local_device_count(), local_bytes=local)
    Path(file).write_text(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1] == "meshes":
        meshes(sys.argv[2])
    else:
        several(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])

"""A policy, a critic and a reference far from uniform, and what a single update or step of them
takes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny_training import critic, policy

from rldtf_jax import optim, rldtf

POLICY, CRITIC, REFERENCE = policy(0), critic(1), policy(2)


def static(aggregation="sum", microbatches=1, logit_chunk=None):
    return rldtf.Static(
        nnx.graphdef(POLICY), nnx.graphdef(CRITIC), aggregation, microbatches, logit_chunk
    )


def learner():
    p, c = (jax.tree.map(jnp.copy, nnx.state(model)) for model in (POLICY, CRITIC))
    return rldtf.Learner(p, c, optim.init(p), optim.init(c), jnp.int32(0), jnp.int32(0))


def assert_close(ours, expected, rtol=1e-4, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, expected
    )


def assert_equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)

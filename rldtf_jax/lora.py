"""LoRA (arXiv:2106.09685): the matrices W of the layers stay as they are, and only low-rank deltas
  a @ b are trained.

Dimensions in names: L layers, I inputs, O outputs, R rank.
"""

from typing import Any

import jax
import jax.numpy as jnp


def split(params: Any, rank: int, key: jax.Array) -> tuple[Any, dict[str, tuple[jax.Array, ...]]]:
    """(frozen, trained) of a model's parameters.

    trained holds, by path, (a_LxIxR, b_LxRxO) of every stacked matrix of the layers, float32, b
    zero, so that nothing changes at first; and a critic's value head whole, as (head,).
    """
    trained = {}
    for i, (path, W) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        name = jax.tree_util.keystr(path)
        if W.ndim == 3:
            L, I, O = W.shape  # noqa: E741
            a_LxIxR = (
                jax.random.normal(jax.random.fold_in(key, i), (L, I, rank), jnp.float32) / I**0.5
            )
            trained[name] = (a_LxIxR, jnp.zeros((L, rank, O), jnp.float32))
        elif "value_" in name:
            trained[name] = (W,)
    return params, trained


def merge(frozen: Any, trained: Any) -> Any:
    """The parameters whole: W + a @ b; `trained` itself where nothing is frozen (None)."""
    if frozen is None:
        return trained

    def whole(path, W):
        match trained.get(jax.tree_util.keystr(path)):
            case (a_LxIxR, b_LxRxO):
                return W + (a_LxIxR @ b_LxRxO).astype(W.dtype)
            case (head,):
                return head
        return W

    return jax.tree_util.tree_map_with_path(whole, frozen)

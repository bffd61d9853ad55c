"""AdamW as pure functions, every hyper-parameter a traced argument so that a sweep over them
compiles nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rldtf_jax.config import OptimConfig


class Hyper(NamedTuple):
    """Scalars of one step of AdamW."""

    lr: jax.Array
    b1: jax.Array
    b2: jax.Array
    weight_decay: jax.Array
    grad_clip: jax.Array  # global norm


class Applied(NamedTuple):
    params: Any
    opt_state: Any
    grad_norm: jax.Array  # () before clipping
    finite: jax.Array  # () bool; where false, params and opt_state are the old ones


def hyper(config: OptimConfig, step: int, steps: int) -> Hyper:
    """The scalars at `step`: linear warm-up, then a cosine to final_lr_ratio * lr at the last
    step.
    """
    if step < config.warmup_steps:
        scale = (step + 1) / config.warmup_steps
    else:
        done = min((step - config.warmup_steps) / max(steps - 1 - config.warmup_steps, 1), 1.0)
        scale = config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (
            1 + np.cos(np.pi * done)
        )
    return Hyper(
        *np.float32(
            [config.lr * scale, config.b1, config.b2, config.weight_decay, config.grad_clip]
        )
    )


def _adamw(h: Hyper) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(h.grad_clip),
        optax.adamw(h.lr, h.b1, h.b2, weight_decay=h.weight_decay),
    )


def init(params: Any) -> Any:
    """The state of AdamW for `params`; its layout depends on no hyper-parameter."""
    return _adamw(Hyper(*np.ones(5, np.float32))).init(params)


def apply(h: Hyper, params: Any, opt_state: Any, grads: Any, *watched: jax.Array) -> Applied:
    """One step; left out where a gradient or one of the watched scalars (the loss) is not
    finite.
    """
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(jnp.stack([norm, *watched])).all()
    updates, new_state = _adamw(h).update(grads, opt_state, params)
    new = optax.apply_updates(params, updates), new_state
    params, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, (params, opt_state))
    return Applied(params, opt_state, norm, finite)

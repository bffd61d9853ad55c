"""Eq. 2: what a measured quality of service is worth against a required one.

Quality-of-service arrays hold (delay_ms, throughput_mbps, ber) on their last axis, the order of q in the paper.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

NO_SERVICE = -1.0  # R of a response that does not parse or asks for what the scenario lacks
NOTHING = 1e-9  # ms or Mbit/s: a target below it counts as this much, so that a margin relative to 0 is capped, not NaN


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The constants of Eq. 2; every triple is in the order (delay, throughput, BER).

    The defaults keep every fulfilled response (>= 0.35) above every violating one (<= -0.1).
    """

    base_satisfied: float = 1.0
    base_violated: float = -1.0
    weight_satisfied: tuple[float, float, float] = (0.15, 0.2, 0.05)  # w+, price of one unit of waste
    weight_violated: tuple[float, float, float] = (0.3, 0.3, 0.3)  # w-, bonus for being close
    margin: Literal["relative", "absolute"] = "relative"
    margin_cap: tuple[float, float, float] = (1.0, 2.0, 2.0)  # of the relative margins; BER in decades

    def __post_init__(self):
        for name in ("weight_satisfied", "weight_violated", "margin_cap"):
            triple = getattr(self, name)
            if len(triple) != 3 or min(triple) < 0:
                raise ValueError(f"{name} = {triple}: expected three numbers >= 0 (delay, throughput, BER)")
        if self.margin not in ("relative", "absolute"):
            raise ValueError(f"margin = {self.margin!r}: expected 'relative' or 'absolute'")


def margins(measured, required, config: RewardConfig = RewardConfig()) -> jax.Array:
    """How much better than required: (..., 3), positive when better, 0 when exactly met.

    relative: delay and throughput as a share of the target, BER in decades, each within +-margin_cap. Of a target of 0
      anything better or worse is the cap, and meeting it exactly is 0.
    absolute: the literal differences of Eq. 2 in ms, Mbit/s and BER, without a cap.
    """
    measured, required = _triple("measured", measured), _triple("required", required)
    better = required - measured
    better = better.at[..., 1].multiply(-1)  # more throughput is better, less delay and BER are
    if config.margin == "absolute":
        return better
    tiny = jnp.finfo(better.dtype).tiny
    decades = jnp.log10(jnp.maximum(required[..., 2:], tiny)) - jnp.log10(jnp.maximum(measured[..., 2:], tiny))
    cap = jnp.asarray(config.margin_cap, better.dtype)
    share = better[..., :2] / jnp.maximum(required[..., :2], NOTHING)
    return jnp.clip(jnp.concatenate([share, decades], axis=-1), -cap, cap)


def fulfilled(measured, required) -> jax.Array:
    """Whether all three targets are met: (...,) bool."""
    measured, required = _triple("measured", measured), _triple("required", required)
    return (
        (measured[..., 0] <= required[..., 0])
        & (measured[..., 1] >= required[..., 1])
        & (measured[..., 2] <= required[..., 2])
    )


def reward(measured, required, config: RewardConfig = RewardConfig()) -> jax.Array:
    """Eq. 2.

    Args:
      measured: (B, 3) delay_ms, throughput_mbps, ber from the twin.
      required: (B, 3) the targets, in the same order.
    Returns:
      (B,) 1 - sum_i w+_i m_i where all targets are met, else -1 + sum_i w-_i sigmoid(1 / |m_i|).
    """
    m = margins(measured, required, config)
    waste = jnp.asarray(config.weight_satisfied, m.dtype) * m
    closeness = jnp.asarray(config.weight_violated, m.dtype) * _sigmoid_of_inverse(jnp.abs(m))
    return jnp.where(
        fulfilled(measured, required),
        config.base_satisfied - jnp.sum(waste, -1),
        config.base_violated + jnp.sum(closeness, -1),
    )


def _sigmoid_of_inverse(distance: jax.Array) -> jax.Array:
    """sigmoid(1 / d) for d >= 0, with its limit 1 at d = 0."""
    safe = jnp.where(distance > 0, distance, 1.0)
    return jnp.where(distance > 0, jax.nn.sigmoid(1.0 / safe), 1.0)


def _triple(name: str, array) -> jax.Array:
    array = jnp.asarray(array, jnp.result_type(float))
    if array.ndim < 1 or array.shape[-1] != 3:
        raise ValueError(f"{name} has shape {array.shape}: expected (..., 3) = delay_ms, throughput_mbps, ber")
    return array

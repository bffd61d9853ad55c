"""Eq. 2: what a measured quality of service is worth against a required one.

Quality-of-service arrays hold (delay_ms, throughput_mbps, ber) on their last axis, the order of q
in the paper. The functions compute in the library of what they are given: NumPy's arrays in,
NumPy's arrays out, without JAX; traced and differentiated in JAX.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

Array = Any  # numpy.ndarray or jax.Array

NO_SERVICE = -1.0  # R of a response that does not parse or asks for what the scenario lacks
MORE_IS_WORSE = (1, -1, 1)  # of delay, throughput and BER
# ms or Mbit/s: a target below it counts as this much, so that a margin relative to 0 is capped, not
# NaN
NOTHING = 1e-9


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The constants of Eq. 2; every triple is in the order (delay, throughput, BER).

    The defaults keep every fulfilled response (>= 0.35) above every violating one (<= -0.1).
    """

    base_satisfied: float = 1.0
    base_violated: float = -1.0
    # w+, price of one unit of waste
    weight_satisfied: tuple[float, float, float] = (0.15, 0.2, 0.05)
    weight_violated: tuple[float, float, float] = (0.3, 0.3, 0.3)  # w-, bonus for being close
    margin: Literal["relative", "absolute"] = "relative"
    # of the relative margins; BER in decades
    margin_cap: tuple[float, float, float] = (1.0, 2.0, 2.0)
    # sigmoid(1 / |m|), or 1 where the target is met and exp(-|m|) where it is missed
    closeness: Literal["paper", "steep"] = "paper"

    def __post_init__(self):
        for name in ("weight_satisfied", "weight_violated", "margin_cap"):
            triple = getattr(self, name)
            if len(triple) != 3 or min(triple) < 0:
                raise ValueError(
                    f"{name} = {triple}: expected three numbers >= 0 (delay, throughput, BER)"
                )
        if self.closeness not in ("paper", "steep"):
            raise ValueError(f"closeness = {self.closeness!r}: expected 'paper' or 'steep'")
        if self.margin not in ("relative", "absolute"):
            raise ValueError(f"margin = {self.margin!r}: expected 'relative' or 'absolute'")


def margins(measured, required, config: RewardConfig = RewardConfig()) -> Array:
    """How much better than required: (..., 3), positive when better, 0 when exactly met.

    relative: delay and throughput as a share of the target, BER in decades, each within
      +-margin_cap. Of a target of 0 anything better or worse is the cap, and meeting it exactly is
      0.
    absolute: the literal differences of Eq. 2 in ms, Mbit/s and BER, without a cap.
    """
    xp, measured, required = _triples(measured, required)
    better = (required - measured) * xp.asarray(MORE_IS_WORSE, dtype=measured.dtype)
    if config.margin == "absolute":
        return better
    tiny = xp.finfo(better.dtype).tiny
    decades = xp.log10(xp.maximum(required[..., 2:], tiny)) - xp.log10(
        xp.maximum(measured[..., 2:], tiny)
    )
    cap = xp.asarray(config.margin_cap, dtype=better.dtype)
    share = better[..., :2] / xp.maximum(required[..., :2], NOTHING)
    return xp.clip(xp.concatenate([share, decades], axis=-1), -cap, cap)


def fulfilled(measured, required) -> Array:
    """Whether all three targets are met: (...,) bool.

    >>> bool(fulfilled([1.0, 6.0, 1e-4], [2.0, 5.0, 1e-3])), bool(fulfilled([1.0, 4.0, 1e-4], [2.0, 5.0, 1e-3]))
    (True, False)
    """  # noqa: E501
    _, measured, required = _triples(measured, required)
    return (
        (measured[..., 0] <= required[..., 0])
        & (measured[..., 1] >= required[..., 1])
        & (measured[..., 2] <= required[..., 2])
    )


def reward(measured, required, config: RewardConfig = RewardConfig()) -> Array:
    """Eq. 2.

    Args:
      measured: (B, 3) delay_ms, throughput_mbps, ber from the twin.
      required: (B, 3) the targets, in the same order.
    Returns:
      (B,) 1 - sum_i w+_i m_i where all targets are met, else -1 + sum_i w-_i sigmoid(1 / |m_i|).
      The sigmoid lies in [1/2, 1], so that violations differ little, and a target met by far earns
      less than one met exactly; `closeness` = "steep" has neither.
    """
    m = margins(measured, required, config)
    xp = m.__array_namespace__()
    waste = xp.asarray(config.weight_satisfied, dtype=m.dtype) * m
    near = (
        _sigmoid_of_inverse(xp.abs(m))
        if config.closeness == "paper"
        else xp.exp(xp.minimum(m, xp.zeros_like(m)))
    )
    closeness = xp.asarray(config.weight_violated, dtype=m.dtype) * near
    return xp.where(
        fulfilled(measured, required),
        config.base_satisfied - xp.sum(waste, axis=-1),
        config.base_violated + xp.sum(closeness, axis=-1),
    )


def _sigmoid_of_inverse(distance: Array) -> Array:
    """sigmoid(1 / d) for d >= 0, with its limit 1 at d = 0."""
    xp = distance.__array_namespace__()
    safe = xp.where(distance > 0, distance, 1.0)
    return xp.where(distance > 0, 1 / (1 + xp.exp(-1 / safe)), 1.0)


def _triples(measured, required) -> tuple[Any, Array, Array]:
    """(library, measured, required) of one floating dtype; the library is NumPy unless one of them
    is another's.
    """
    xp = next(
        (
            a.__array_namespace__()
            for a in (measured, required)
            if hasattr(a, "__array_namespace__") and not isinstance(a, (np.ndarray, np.generic))
        ),
        np,
    )
    arrays = []
    for name, array in (("measured", measured), ("required", required)):
        array = xp.asarray(array)
        if array.ndim < 1 or array.shape[-1] != 3:
            raise ValueError(
                f"{name} has shape {array.shape}: expected (..., 3) = delay_ms,"
                " throughput_mbps, ber"
            )
        arrays.append(array)
    dtype = xp.result_type(
        *arrays, *(() if any(np.issubdtype(a.dtype, np.floating) for a in arrays) else (float,))
    )
    return xp, *(a.astype(dtype) for a in arrays)

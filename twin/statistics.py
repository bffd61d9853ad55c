"""What counts over independent slots say of error rates.

The bits of a slot share one channel, so the sample is the slot. A transport block error is one
Bernoulli draw a slot: exact binomial limits (Clopper and Pearson, 1934). The bit error rate is the
block error rate times the share of wrong bits in a wrong block, and its limits are the products of
those two, each at half the risk.

Of probabilities (method="esm") the mean over slots is known better than as many zeros and ones
would tell: as well as so many of them as have its variance. Where a few slots make up the mean, an
unseen one could make up as much, and the limit is that of no error in as many slots. These limits
are of what is drawn; what the tables are off by is in experiments/results/twin_truth.
"""

from __future__ import annotations

import math

from scipy.special import betaincinv, stdtrit

from .physical import Counts

MOST_DRAWS = 1e9
FEW_DRAWS = 8
LEAST_RATE = 1e-12  # of a mean of probabilities
# of wrong bits in a wrong block, where none was seen; weighs as much as one block
PRIOR_SHARE = 0.1


def block_limits(errors: int, num_blocks: int, risk: float) -> tuple[float, float]:
    """Limits of a block error rate, each of which the truth passes with a probability of at most
    risk / 2.
    """
    return _binomial_limits(errors, num_blocks, risk)


def mean_limits(total: float, squared: float, num_slots: int, risk: float) -> tuple[float, float]:
    """The same for a mean of probabilities, from their sum and the sum of their squares."""
    mean = total / num_slots
    variance = max(squared / num_slots - mean**2, 0.0) / max(num_slots - 1, 1)
    draws = min(
        max(mean * (1 - mean) / variance, num_slots) if variance > 0 else MOST_DRAWS, MOST_DRAWS
    )
    low, high = _binomial_limits(mean * draws, draws, risk)
    if total**2 < FEW_DRAWS * squared or total == 0:
        low, high = 0.0, max(high, _binomial_limits(0, num_slots, risk)[1])
    return low, high


def _binomial_limits(errors: float, draws: float, risk: float) -> tuple[float, float]:
    low = float(betaincinv(errors, draws - errors + 1, risk / 2)) if errors > 0 else 0.0
    high = float(betaincinv(errors + 1, draws - errors, 1 - risk / 2)) if errors < draws else 1.0
    return low, high


def rate_limits(counts: Counts, transmission: int, risk: float) -> tuple[float, float]:
    """Limits of the share of blocks in error after transmission 0, 1, ...; -1 for the last one."""
    if counts.failed_squared:
        return mean_limits(
            counts.failed[transmission],
            counts.failed_squared[transmission],
            counts.num_blocks,
            risk,
        )
    return block_limits(counts.failed[transmission], counts.num_blocks, risk)


def share_limits(counts: Counts, risk: float) -> tuple[float, float]:
    """Limits of the mean share of wrong bits in a wrong block: Student's over blocks; 0 to 1/2
    where there are too few.
    """
    k = counts.block_errors
    if k < 4:
        return 0.0, 0.5
    mean = counts.error_share / k
    spread = math.sqrt(max(counts.error_share_squared / k - mean**2, 0.0) / (k - 1))
    half = float(stdtrit(k - 1, 1 - risk / 2)) * spread
    return max(0.0, mean - half), min(1.0, mean + half)


def bit_limits(counts: Counts, risk: float) -> tuple[float, float]:
    """Limits of the bit error rate."""
    if counts.failed_squared:
        return mean_limits(counts.error_share, counts.error_share_squared, counts.num_blocks, risk)
    block, share = (
        block_limits(counts.block_errors, counts.num_blocks, risk / 2),
        share_limits(counts, risk / 2),
    )
    return block[0] * share[0], block[1] * share[1]


def block_rate(errors: int, num_blocks: int) -> float:
    """Estimate under Jeffreys' prior, which grows with every error and falls with every block."""
    return (errors + 0.5) / (num_blocks + 1)


def error_rates(counts: Counts) -> tuple[float, float]:
    """Estimates of the bit and of the block error rate."""
    if counts.failed_squared:
        return tuple(
            max(total / counts.num_blocks, LEAST_RATE)
            for total in (counts.error_share, counts.failed[-1])
        )
    return bit_rate(counts), block_rate(counts.block_errors, counts.num_blocks)


def bit_rate(counts: Counts) -> float:
    """Estimate: block_rate times the share of wrong bits in a wrong block, towards PRIOR_SHARE
    where few were seen.
    """
    share = (counts.error_share + PRIOR_SHARE) / (counts.block_errors + 1)
    return block_rate(counts.block_errors, counts.num_blocks) * share

"""95 % intervals."""

import math
from typing import Sequence

import numpy as np
from numpy.typing import ArrayLike

Z = 1.959964


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return (centre - half) / scale if successes else 0.0, (
        (centre + half) / scale if successes < n else 1.0
    )


def mean_interval(
    values: Sequence[float], seed: int = 0, resamples: int = 4000
) -> tuple[float, float]:
    """Percentile bootstrap of a mean; (nan, nan) of nothing."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    return tuple(np.percentile(means, (2.5, 97.5)).tolist())


def with_interval(values: Sequence[float]) -> list[float]:
    """[mean, low, high]."""
    return [float(np.mean(values)), *mean_interval(values)]


def paired_difference(
    a: Sequence[float], b: Sequence[float], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean of a - b over the same tasks, with its bootstrap interval."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(difference.mean()), mean_interval(difference, seed)


def nested_interval(
    values_SxN: ArrayLike, seed: int = 0, resamples: int = 4000
) -> tuple[float, float]:
    """Percentile bootstrap of a mean over S seeds and N tasks, both drawn anew; nan is left out.
    S - 1 seeds are drawn at a time, which makes up for the variance that a sample of S lacks; with
    two or three it stays rough.
    """
    x_SxN = np.asarray(values_SxN, np.float64)
    S, N = x_SxN.shape
    rng, known_SxN = np.random.default_rng(seed), np.isfinite(x_SxN)

    def how_often(n: int, draws: int) -> np.ndarray:  # (resamples, n), each of n is drawn
        drawn = rng.integers(n, size=(resamples, draws)) + n * np.arange(resamples)[:, None]
        return (
            np.bincount(drawn.ravel(), minlength=resamples * n)
            .reshape(resamples, n)
            .astype(np.float64)
        )

    seeds_MxS, tasks_MxN = how_often(S, max(S - 1, 1)), how_often(N, N)
    total_M, count_M = (
        ((seeds_MxS @ part_SxN) * tasks_MxN).sum(1)
        for part_SxN in (np.where(known_SxN, x_SxN, 0.0), known_SxN)
    )
    means = total_M[count_M > 0] / count_M[count_M > 0]
    return tuple(np.percentile(means, (2.5, 97.5)).tolist()) if len(means) else (math.nan, math.nan)


def with_nested_interval(values_SxN: np.ndarray) -> list[float]:
    """[mean, low, high] of S seeds and N tasks."""
    return [float(values_SxN.mean()), *nested_interval(values_SxN)]


def shown(values: Sequence[float] | None, sign: str = "") -> str:
    """[mean, low, high] as a table has it; sign: "+" for a difference.

    >>> shown([0.5, 0.25, 0.75]), shown([-0.1, -0.2, 0.0], "+"), shown(None)
    ('0.500 [0.250, 0.750]', '-0.100 [-0.200, +0.000]', '')
    """
    return "" if values is None else "{:{s}.3f} [{:{s}.3f}, {:{s}.3f}]".format(*values, s=sign)

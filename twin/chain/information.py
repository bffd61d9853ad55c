"""Mutual information of bit-interleaved Gray QAM in Gaussian noise: what an effective SINR is made
of.

A demapper that knows gain and noise exactly gets the capacity of bit-interleaved modulation (Caire,
Taricco and Biglieri, 1998, eq. 15). One that works with an estimate gets the generalised mutual
information of its own LLRs (Martinez et al., IEEE Trans. Inf. Theory, 2009): E[1 - log2(1 + exp(-(1
- 2 b) LLR))], below 0 where they are confident and wrong. All of it per coded bit.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..tables import INFORMATION
from .qam import pam

GRID_DB = np.arange(-30.0, 50.01, 0.25)  # signal-to-noise ratio Es/N0, of `curve`
GAINS = np.linspace(-1, 2, 61)  # of a symbol, relative to what the demapper takes for 1
NOISE_DB = np.arange(-15.0, 45.1, 1.0)  # 1 / noise variance of the complex symbol
# noise variance relative to what the demapper takes it for
MISMATCH_DB = np.arange(-20.0, 20.1, 2.0)


def bit_information(
    bits_per_symbol: int, gain: float, noise: float, assumed: np.ndarray
) -> np.ndarray:
    """Mean of 1 - log2(1 + exp(-(1 - 2 b) LLR)) for a demapper that takes the gain for 1 and the
    noise variance for `assumed` [A].
    """
    amplitude, bits = (
        (np.array([1.0, -1.0]), np.array([[0, 1]]))
        if bits_per_symbol == 1
        else pam(bits_per_symbol)
    )
    amplitude = amplitude.astype(float)
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    # [level, node]: a dimension has half the noise
    y = gain * amplitude[:, None] + np.sqrt(noise / 2) * nodes
    metric = -((y[:, :, None] - amplitude) ** 2) / np.asarray(assumed)[:, None, None, None]
    metric = np.exp(metric - metric.max(-1, keepdims=True))
    total, lost = metric.sum(-1), 0.0
    for row in bits:
        own = np.stack([metric @ (row == value) for value in (0, 1)], axis=-1)
        # the sent bit's half
        own = np.take_along_axis(own, row[None, :, None, None].astype(int), axis=3)[..., 0]
        lost = lost + np.mean(np.log2(total / np.maximum(own, 1e-30)) @ weights, axis=1)
    return 1 - lost / len(bits)


@cache
def curve(bits_per_symbol: int) -> np.ndarray:
    """Mutual information per coded bit over GRID_DB of a demapper that knows the channel;
    bits_per_symbol 1: antipodal signals.
    """
    values = [
        bit_information(bits_per_symbol, 1.0, 10 ** (-snr / 10), np.array([10 ** (-snr / 10)]))[0]
        for snr in GRID_DB
    ]
    return np.maximum.accumulate(np.clip(values, 0, 1))


def information(snr: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """Mutual information per coded bit at signal-to-noise ratios Es/N0 (not in dB)."""
    return np.interp(10 * np.log10(np.maximum(snr, 1e-6)), GRID_DB, curve(bits_per_symbol))


def snr_for(information_: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """The inverse of `information`, up to the end of the grid."""
    table = curve(bits_per_symbol)
    keep = np.concatenate([[True], np.diff(table) > 1e-12])
    return 10 ** (np.interp(information_, table[keep], GRID_DB[keep]) / 10)


def mismatched(bits_per_symbol: int) -> np.ndarray:
    """The table of `bit_information` over GAINS, NOISE_DB and MISMATCH_DB, float16."""
    noise = 10 ** (-NOISE_DB / 10)
    return np.array(
        [
            [bit_information(bits_per_symbol, g, n, n / 10 ** (MISMATCH_DB / 10)) for n in noise]
            for g in GAINS
        ],
        np.float16,
    )


@cache
def stored(bits_per_symbol: int) -> np.ndarray:
    """The same from twin/tables, made by experiments.bler_tables."""
    with np.load(INFORMATION) as file:
        return file[str(bits_per_symbol)].astype(np.float32)

"""Gray-mapped QAM of TS 38.211 5.1: points, mapper, exact demapper. Real and imaginary part are two PAM with alternating bits."""

from __future__ import annotations

import math
from functools import cache

import numba
import numpy as np

LEAST_EXPONENT = np.float32(-60)
TINY = np.float32(1e-17)
_jit = numba.njit(cache=True, error_model="numpy", fastmath={"nnan", "ninf", "nsz", "contract", "reassoc", "arcp"})


@cache
def pam(bits_per_symbol: int) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of a dimension by label, most significant bit first [2^(m/2)] float32, and its bits [m/2, 2^(m/2)] uint8."""
    half = bits_per_symbol // 2
    labels = np.arange(2**half)
    bits = (labels >> np.arange(half)[::-1, None]) & 1
    amplitude = np.ones(2**half)
    for level in range(half - 1, 0, -1):
        amplitude = 2 ** (half - level) - (1 - 2 * bits[level]) * amplitude
    amplitude = amplitude * (1 - 2 * bits[0]) / math.sqrt(2 * (4**half - 1) / 3)
    return amplitude.astype(np.float32), bits.astype(np.uint8)


@cache
def constellation(bits_per_symbol: int) -> np.ndarray:
    """The points by label, most significant bit first, [2^m] complex64."""
    amplitude, half = pam(bits_per_symbol)[0], bits_per_symbol // 2
    labels = np.arange(2**bits_per_symbol)
    bits = (labels[:, None] >> np.arange(bits_per_symbol)[::-1]) & 1
    weights = 1 << np.arange(half)[::-1]
    return (amplitude[bits[:, ::2] @ weights] + 1j * amplitude[bits[:, 1::2] @ weights]).astype(np.complex64)


@_jit
def _map(coded, place, amplitude, half, out):
    for s in range(out.shape[0]):
        for i in range(out.shape[1]):
            real, imaginary = 0, 0
            for b in range(half):
                real = 2 * real + coded[s, place[2 * (i * half + b)]]
                imaginary = 2 * imaginary + coded[s, place[2 * (i * half + b) + 1]]
            out[s, i] = complex(amplitude[real], amplitude[imaginary])


def map_symbols(coded: np.ndarray, place: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """Symbols of unit energy [S, G / m] complex64 of the coded bits at `place` [G] of the slots' buffers [S, ...]."""
    out = np.empty((len(coded), len(place) // bits_per_symbol), np.complex64)
    _map(coded, place, pam(bits_per_symbol)[0], bits_per_symbol // 2, out)
    return out


@cache
def ladder(bits_per_symbol: int) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of a dimension in ascending order [2^(m/2)] float32, and their labels int64."""
    amplitude = pam(bits_per_symbol)[0]
    labels = np.argsort(amplitude)
    return amplitude[labels], labels


@_jit
def demap_row(y, noise, amplitude, labels, half, weight, out, first, stride):
    """LLRs log(P(bit = 0) / P(bit = 1)) of one dimension of a row of symbols, exact: those of symbol f go to out[first + f stride],
    two further, .... noise: variances of the complex symbols; amplitude, labels: the ladder.

    Likelihoods relative to the nearest level's: from a level to the next one their ratio changes by a constant factor, so that three
    exponentials do for all of them.
    """
    levels, step = 1 << half, amplitude[1] - amplitude[0]
    for f in range(y.shape[0]):
        inverse = np.float32(1) / noise[f]
        if half == 1:
            out[first + f * stride] = -4 * amplitude[0] * y[f] * inverse
            continue
        best = min(max(int(np.rint((y[f] - amplitude[0]) / step)), 0), levels - 1)
        distance = y[f] - amplitude[best]
        bend = math.exp(max(-2 * step * step * inverse, LEAST_EXPONENT))
        weight[best] = np.float32(1)
        ratio = math.exp(max((2 * distance - step) * step * inverse, LEAST_EXPONENT))
        total = np.float32(1)
        for i in range(best + 1, levels):
            total *= ratio
            ratio *= bend
            weight[i] = total
        ratio = math.exp(max((-2 * distance - step) * step * inverse, LEAST_EXPONENT))
        total = np.float32(1)
        for i in range(best - 1, -1, -1):
            total *= ratio
            ratio *= bend
            weight[i] = total
        for b in range(half):
            zero, one = TINY, TINY
            for i in range(levels):
                if labels[i] >> (half - 1 - b) & 1:
                    one += weight[i]
                else:
                    zero += weight[i]
            out[first + f * stride + 2 * b] = math.log(zero / one)

"""Gray-mapped QAM of TS 38.211 5.1: points, mapper, exact demapper. Real and imaginary part are two
PAM with alternating bits.
"""

from __future__ import annotations

import math
from functools import cache

import numba
import numpy as np

LEAST_EXPONENT = -60.0
TINY = np.float32(1e-17)
INVERSE_LN2, LN2_HIGH, LN2_LOW = (
    1 / math.log(2),
    float.fromhex("0x1.62e42feep-1"),
    1.9082149292705877e-10,
)
ROUNDER = 1.5 * 2**52  # added and taken away: the nearest integer
SERIES = tuple(1 / math.factorial(n) for n in range(14))
CHUNK = 256  # symbols demapped at a time
_inline = numba.njit(cache=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
_jit = numba.njit(cache=True, error_model="numpy", fastmath={"contract"})


@cache
def pam(bits_per_symbol: int) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of a dimension by label, most significant bit first [2^(m/2)] float32, and its
    bits [m/2, 2^(m/2)] uint8.
    """
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
    return (amplitude[bits[:, ::2] @ weights] + 1j * amplitude[bits[:, 1::2] @ weights]).astype(
        np.complex64
    )


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
    """Symbols of unit energy [S, G / m] complex64 of the coded bits at `place` [G] of the slots'
    buffers [S, ...].
    """
    out = np.empty((len(coded), len(place) // bits_per_symbol), np.complex64)
    _map(coded, place, pam(bits_per_symbol)[0], bits_per_symbol // 2, out)
    return out


@cache
def ladder(bits_per_symbol: int) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of a dimension in ascending order [2^(m/2)] float32, and their labels int64."""
    amplitude = pam(bits_per_symbol)[0]
    labels = np.argsort(amplitude)
    return amplitude[labels], labels


@_inline
def _exp(x):
    """exp(x), |x| < 700, to two units of the last place, in operations that vectorise: 2^k exp(r),
    |r| <= ln 2 / 2, the latter by its power series.
    """
    k = x * INVERSE_LN2 + ROUNDER - ROUNDER
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    value = ((SERIES[13] * r + SERIES[12]) * r + SERIES[11]) * r + SERIES[10]
    value = value * r + SERIES[9]
    value = ((value * r + SERIES[8]) * r + SERIES[7]) * r + SERIES[6]
    value = ((value * r + SERIES[5]) * r + SERIES[4]) * r + SERIES[3]
    value = ((value * r + SERIES[2]) * r + SERIES[1]) * r + SERIES[0]
    return value * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@_jit
def _nearest(y, noise, amplitude, step, best, twice, scale):
    """The level nearest to every symbol, twice how far the symbol is above it, and a step over the
    noise variance.
    """
    least, top, per_step = (
        amplitude[0],
        np.float32(amplitude.shape[0] - 1),
        np.float32(1) / np.float32(step),
    )
    for f in range(y.shape[0]):
        nearest = np.rint((y[f] - least) * per_step)
        nearest = nearest if nearest > 0 else np.float32(0)
        best[f] = nearest if nearest < top else top
        scale[f] = step * np.float64(np.float32(1) / noise[f])
    for f in range(y.shape[0]):
        twice[f] = 2 * (y[f] - amplitude[int(best[f])])


@_jit
def _likelihood(level, step, best, twice, scale, weight):
    """Of a level k steps above the nearest one, relative to that one's: exp(k (2 d - k step) step /
    noise) of a symbol that is d above the nearest level.
    """
    for f in range(best.shape[0]):
        above = level - best[f]
        exponent = above * (twice[f] - above * step) * scale[f]
        weight[f] = _exp(exponent if exponent > LEAST_EXPONENT else LEAST_EXPONENT)


@_inline
def _accumulate(weight, out):
    for f in range(out.shape[0]):
        out[f] += weight[f]


@_inline
def _odds(zero, one, out):
    """Of sums [4, symbols] each."""
    a, b, c, d = zero
    p, q, r, s = one
    for f in range(out.shape[0]):
        out[f] = ((a[f] + c[f]) + (b[f] + d[f])) / ((p[f] + r[f]) + (q[f] + s[f]))


@_jit
def demap_row(y, noise, amplitude, labels, half, out, first, stride):
    """LLRs log(P(bit = 0) / P(bit = 1)) of one dimension of a row of symbols, exact: those of
    symbol f go to out[first + f stride], two further, .... noise: variances of the complex symbols;
    amplitude, labels: the ladder.
    """
    if half == 1:
        for f in range(y.shape[0]):
            out[first + f * stride] = -4 * amplitude[0] * y[f] * (np.float32(1) / noise[f])
        return
    levels, some, step = 1 << half, min(CHUNK, y.shape[0]), np.float64(amplitude[1] - amplitude[0])
    best, twice, scale = (
        np.empty(some, np.float64),
        np.empty(some, np.float64),
        np.empty(some, np.float64),
    )
    weight, sums = np.empty((levels, some), np.float32), np.empty((2, 4, some), np.float32)
    odds = np.empty(some, np.float32)
    for start in range(0, y.shape[0], some):
        n = min(some, y.shape[0] - start)
        _nearest(
            y[start : start + n], noise[start : start + n], amplitude, step, best, twice, scale
        )
        for i in range(levels):
            _likelihood(i, step, best[:n], twice, scale, weight[i])
        for b in range(half):
            sums[:] = 0
            sums[:, 0] = TINY
            for i in range(levels):  # four sums each, of every fourth level
                _accumulate(weight[i], sums[labels[i] >> (half - 1 - b) & 1, i & 3])
            _odds(sums[0], sums[1], odds[:n])
            for f in range(n):
                out[first + (start + f) * stride + 2 * b] = math.log(odds[f])

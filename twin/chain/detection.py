"""What is sent through the channel, and the separation of the layers at the other end.

Letters: S slots, R receive antennas, L layers, T data symbols of a slot, F subcarriers, m bits per symbol. A modulation symbol of
layer l on subcarrier f of data symbol t is number (t F + f) L + l of its slot (TS 38.211 6.3.1.3, 6.3.1.6).
"""

from __future__ import annotations

import numba
import numpy as np

from .qam import demap_row, ladder

_jit = numba.njit(cache=True, error_model="numpy", fastmath={"nnan", "ninf", "nsz", "contract", "reassoc", "arcp"})
METHODS = {"mrc": 0, "zf": 1, "lmmse": 2}
LEAST_NOISE, LEAST_POWER = np.float32(1e-9), np.float32(1e-20)


@_jit
def _transmit(h, x, noise, sigma, symbols, out):
    num_rx, num_layers, num_sc = h.shape[1], h.shape[2], h.shape[4]
    share = np.float32(1 / np.sqrt(num_layers))
    for s in range(h.shape[0]):
        for r in range(num_rx):
            for t in range(symbols.shape[0]):
                at = symbols[t]
                for f in range(num_sc):
                    out[s, r, t, f] = sigma * noise[s, r, at, f]
                for layer in range(num_layers):
                    for f in range(num_sc):
                        out[s, r, t, f] += h[s, r, layer, at, f] * x[s, (t * num_sc + f) * num_layers + layer] * share


def transmit(h: np.ndarray, x: np.ndarray, noise: np.ndarray, sigma: float, symbols: np.ndarray) -> np.ndarray:
    """What is received in the data symbols, [S, R, T, F]: channels h [S, R, L, 14, F], symbols x [S, T F L] of unit energy, which
    share the power, and noise of unit variance [S, R, 14, F] times sigma."""
    out = np.empty((h.shape[0], h.shape[1], len(symbols), h.shape[4]), np.complex64)
    _transmit(h, x, noise, np.float32(sigma), symbols, out)
    return out


@_jit
def _combine(g, y, real, imaginary, spread, noise):
    """Maximum-ratio combining of one layer: g, y [R, F] to estimates and their error variances [F]."""
    real[:], imaginary[:], spread[:] = 0, 0, LEAST_POWER
    for r in range(g.shape[0]):
        one, other = g[r], y[r]
        for f in range(real.shape[0]):
            a, b, c, d = one[f].real, one[f].imag, other[f].real, other[f].imag
            real[f] += a * c + b * d
            imaginary[f] += a * d - b * c
            spread[f] += a * a + b * b
    for f in range(real.shape[0]):
        inverse = np.float32(1) / spread[f]
        real[f] *= inverse
        imaginary[f] *= inverse
        spread[f] = max(noise * inverse, LEAST_NOISE)


@_jit
def invert(gram, inverse):
    """The inverse of a Hermitian positive definite matrix [L, L], which is used up: Gauss and Jordan without pivoting."""
    size = gram.shape[0]
    for i in range(size):
        for j in range(size):
            inverse[i, j] = 1 if i == j else 0
    for i in range(size):
        pivot = np.float32(1) / max(gram[i, i].real, LEAST_POWER)
        for j in range(size):
            gram[i, j] *= pivot
            inverse[i, j] *= pivot
        for k in range(size):
            if k != i:
                factor = gram[k, i]
                for j in range(size):
                    gram[k, j] -= factor * gram[i, j]
                    inverse[k, j] -= factor * inverse[i, j]


@_jit
def alone(gram, i, noise):
    """Power of a layer and error variance of its matched filter, which takes the other layers for noise; from the Gram matrix."""
    power, others = max(gram[i, i].real, LEAST_POWER), np.float32(0)
    for j in range(gram.shape[0]):
        if j != i:
            others += gram[i, j].real ** 2 + gram[i, j].imag ** 2
    return power, (noise + others / power) / power


@_jit
def _separate(g, y, real, imaginary, spread, noise, method):
    """g [R, L, F], y [R, F] to unbiased estimates of the layers and their error variances [L, F]."""
    num_rx, num_layers, num_sc = g.shape
    gram = np.empty((num_layers, num_layers), np.complex64)
    inverse = np.empty((num_layers, num_layers), np.complex64)
    matched = np.empty(num_layers, np.complex64)
    share = np.float32(1 / np.sqrt(num_layers))
    for f in range(num_sc):
        for i in range(num_layers):
            total = np.complex64(0)
            for r in range(num_rx):
                total += np.conj(g[r, i, f]) * y[r, f]
            matched[i] = total * share
            for j in range(i + 1):
                total = np.complex64(0)
                for r in range(num_rx):
                    total += np.conj(g[r, i, f]) * g[r, j, f]
                gram[i, j] = total * share * share
                gram[j, i] = np.conj(gram[i, j])
        if method == 0:
            for i in range(num_layers):
                power, error = alone(gram, i, noise)
                real[i, f], imaginary[i, f] = matched[i].real / power, matched[i].imag / power
                spread[i, f] = max(error, LEAST_NOISE)
            continue
        if method == 2:
            for i in range(num_layers):
                gram[i, i] += noise
        invert(gram, inverse)
        for i in range(num_layers):
            x = np.complex64(0)
            for j in range(num_layers):
                x += inverse[i, j] * matched[j]
            error = inverse[i, i].real * noise
            gain = max(np.float32(1) - error, np.float32(1e-6)) if method == 2 else np.float32(1)
            real[i, f], imaginary[i, f], spread[i, f] = x.real / gain, x.imag / gain, max(error / gain, LEAST_NOISE)


@_jit
def _receive(y, g, variance, symbols, method, amplitude, labels, half, llr):
    num_layers, num_sc = g.shape[2], g.shape[4]
    weight = np.empty(1 << half, np.float32)
    real, imaginary = np.empty((num_layers, num_sc), np.float32), np.empty((num_layers, num_sc), np.float32)
    spread = np.empty((num_layers, num_sc), np.float32)
    for s in range(y.shape[0]):
        out = llr[s]
        for t in range(symbols.shape[0]):
            noise, at = max(variance[s, symbols[t]], LEAST_NOISE), symbols[t]
            if num_layers == 1:
                _combine(g[s, :, 0, at], y[s, :, t], real[0], imaginary[0], spread[0], noise)
            else:
                _separate(g[s, :, :, at], y[s, :, t], real, imaginary, spread, noise, method)
            for i in range(num_layers):
                first, stride = (t * num_sc * num_layers + i) * 2 * half, num_layers * 2 * half
                demap_row(real[i], spread[i], amplitude, labels, half, weight, out, first, stride)
                demap_row(imaginary[i], spread[i], amplitude, labels, half, weight, out, first + 1, stride)


def receive(y: np.ndarray, g: np.ndarray, variance: np.ndarray, symbols: np.ndarray, method: str, bits_per_symbol: int) -> np.ndarray:
    """LLRs log(P(bit = 0) / P(bit = 1)) of the coded bits, [S, T F L m] float32, in the order of transmission.

    y [S, R, T, F] as of `transmit`, what is known of the channels g [S, R, L, 14, F], noise variance [S, 14].
    mrc: every layer by itself, the others taken for noise; zf, lmmse: unbiased, as sionna.phy.mimo's equalizers.
    """
    num_slots, _, num_symbols, num_sc = y.shape
    llr = np.empty((num_slots, num_symbols * num_sc * g.shape[2] * bits_per_symbol), np.float32)
    _receive(y, g, variance.astype(np.float32), symbols, METHODS[method], *ladder(bits_per_symbol), bits_per_symbol // 2, llr)
    return llr

"""What is sent through the channel, and the separation of the layers at the other end.

Letters: S slots, R receive antennas, L layers, T data symbols of a slot, F subcarriers, m bits per
symbol. A modulation symbol of layer l on subcarrier f of data symbol t is number (t F + f) L + l of
its slot (TS 38.211 6.3.1.3, 6.3.1.6).
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .qam import demap_row, ladder

_jit = numba.njit(
    cache=True, error_model="numpy", fastmath={"nnan", "ninf", "nsz", "contract", "reassoc", "arcp"}
)
# Without fastmath, the compiler has no choice of roundings
_exact = numba.njit(cache=True, error_model="numpy")
_inline = numba.njit(cache=True, error_model="numpy", forceinline=True)
METHODS = {"mrc": 0, "zf": 1, "lmmse": 2}
LEAST_NOISE, LEAST_POWER, LEAST_GAIN = np.float32(1e-9), np.float32(1e-20), np.float32(1e-6)
LANES = 256  # resource elements whose layers are separated side by side


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
                        out[s, r, t, f] += (
                            h[s, r, layer, at, f]
                            * x[s, (t * num_sc + f) * num_layers + layer]
                            * share
                        )


def transmit(
    h: np.ndarray, x: np.ndarray, noise: np.ndarray, sigma: float, symbols: np.ndarray
) -> np.ndarray:
    """What is received in the data symbols, [S, R, T, F]: channels h [S, R, L, 14, F], symbols x
    [S, T F L] of unit energy, which share the power, and noise of unit variance [S, R, 14, F] times
    sigma.
    """
    out = np.empty((h.shape[0], h.shape[1], len(symbols), h.shape[4]), np.complex64)
    _transmit(h, x, noise, np.float32(sigma), symbols, out)
    return out


@_jit
def _combine(g, y, real, imaginary, spread, noise):
    """Maximum-ratio combining of one layer: g, y [R, F] to estimates and their error
    variances [F].
    """
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
    """The inverse of a Hermitian positive definite matrix [L, L], which is used up: Gauss and
    Jordan without pivoting.
    """
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
    """Power of a layer and error variance of its matched filter, which takes the other layers for
    noise; from the Gram matrix.
    """
    power, others = max(gram[i, i].real, LEAST_POWER), np.float32(0)
    for j in range(gram.shape[0]):
        if j != i:
            others += gram[i, j].real ** 2 + gram[i, j].imag ** 2
    return power, (noise + others / power) / power


@intrinsic
def _fma(typing_context, a, b, c):
    """a b + c of float32, rounded once: a loop gives the same bits however LLVM vectorises it."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


# Inner loops over lanes, each a resource element, of real and imaginary parts apart. Which products
# are rounded before they are added, by the number of antennas and layers, is what a compiler once
# chose: kept, so that results stay the same.


@_inline
def _correlate(a, b, real, imaginary, taken):
    """Add conj(a) b; what the imaginary part loses goes to `taken`."""
    ar, ai, br, bi = a[0], a[1], b[0], b[1]
    for f in range(real.shape[0]):
        real[f] = _fma(ai[f], bi[f], _fma(ar[f], br[f], real[f]))
        imaginary[f] = _fma(ar[f], bi[f], imaginary[f])
        taken[f] = _fma(ai[f], br[f], taken[f])


@_inline
def _correlate_last(a, b, real, imaginary, taken):
    ar, ai, br, bi = a[0], a[1], b[0], b[1]
    for f in range(real.shape[0]):
        real[f] = _fma(ai[f], bi[f], _fma(ar[f], br[f], real[f]))
        imaginary[f] = imaginary[f] + (_fma(ar[f], bi[f], -(ai[f] * br[f])) - taken[f])


@_inline
def _correlate_few(a, b, real, imaginary):
    ar, ai, br, bi = a[0], a[1], b[0], b[1]
    for f in range(real.shape[0]):
        real[f] = _fma(ai[f], bi[f], _fma(ar[f], br[f], real[f]))
        imaginary[f] = imaginary[f] + _fma(ar[f], bi[f], -(ai[f] * br[f]))


@_exact
def _inner(a, b, factor, taken, out):
    """factor sum_r conj(a) b, of a, b [R, 2, lanes], into out [2, lanes]."""
    num_rx, real, imaginary = a.shape[0], out[0], out[1]
    real[:], imaginary[:] = 0, 0
    if num_rx < 4:
        for r in range(num_rx):
            _correlate_few(a[r], b[r], real, imaginary)
    else:
        taken[:] = 0
        for r in range(num_rx - 1):
            _correlate(a[r], b[r], real, imaginary, taken)
        _correlate_last(a[num_rx - 1], b[num_rx - 1], real, imaginary, taken)
    for f in range(real.shape[0]):
        real[f] *= factor
        imaginary[f] *= factor


@_inline
def _conjugate(x, out):
    a, b, real, imaginary = x[0], x[1], out[0], out[1]
    for f in range(real.shape[0]):
        real[f], imaginary[f] = a[f], -b[f]


@_inline
def _add(x, out):
    for f in range(out.shape[0]):
        out[f] += x[f]


@_inline
def _scale(factor, x):
    for f in range(factor.shape[0]):
        x[f] *= factor[f]


@_inline
def _take(factor, x, out):
    """out -= factor x, complex."""
    a, b, c, d, real, imaginary = factor[0], factor[1], x[0], x[1], out[0], out[1]
    for f in range(real.shape[0]):
        real[f] = _fma(d[f], b[f], _fma(-a[f], c[f], real[f]))
        imaginary[f] = imaginary[f] + _fma(-b[f], c[f], -(a[f] * d[f]))


@_inline
def _take_first_of_three(factor, x, out):
    """The same but for the product that is rounded first."""
    a, b, c, d, real, imaginary = factor[0], factor[1], x[0], x[1], out[0], out[1]
    for f in range(real.shape[0]):
        real[f] = _fma(d[f], b[f], _fma(-a[f], c[f], real[f]))
        imaginary[f] = imaginary[f] - _fma(a[f], d[f], b[f] * c[f])


@_exact
def _invert_lanes(gram, inverse, pivot):
    """As `invert`, of matrices [L, L, 2, lanes]; what becomes 0 or 1 in `gram` is left as it is."""
    size = gram.shape[0]
    inverse[:] = 0
    for i in range(size):
        diagonal = gram[i, i, 0]
        for f in range(pivot.shape[0]):
            pivot[f] = np.float32(1) / (diagonal[f] if diagonal[f] > LEAST_POWER else LEAST_POWER)
        for j in range(i + 1, size):
            _scale(pivot, gram[i, j, 0])
            _scale(pivot, gram[i, j, 1])
        for j in range(i):
            _scale(pivot, inverse[i, j, 0])
            _scale(pivot, inverse[i, j, 1])
        inverse[i, i, 0] = pivot
        for k in range(size):
            if k != i:
                factor = gram[k, i]  # not needed again: column i itself is left alone
                for j in range(i + 1, size):
                    _take(factor, gram[i, j], gram[k, j])
                for j in range(i + 1):
                    if size == 3 and j == 0:
                        _take_first_of_three(factor, inverse[i, j], inverse[k, j])
                    else:
                        _take(factor, inverse[i, j], inverse[k, j])


@_inline
def _add_product(a, b, real, imaginary):
    """Add a b, complex."""
    ar, ai, br, bi = a[0], a[1], b[0], b[1]
    for f in range(real.shape[0]):
        real[f] = real[f] + _fma(br[f], ar[f], -(bi[f] * ai[f]))
        imaginary[f] = _fma(bi[f], ar[f], _fma(br[f], ai[f], imaginary[f]))


@_exact
def _alone(gram, i, matched, noise, estimate):
    """As `alone`, of a row of the Gram matrix [L, 2, lanes]: estimate and error variance [3, lanes]
    of layer i.
    """
    real, imaginary, others, power = estimate[0], estimate[1], estimate[2], gram[i, 0]
    others[:] = 0
    for j in range(gram.shape[0]):
        if j != i:
            a, b = gram[j, 0], gram[j, 1]
            for f in range(others.shape[0]):
                others[f] = _fma(b[f], b[f], _fma(a[f], a[f], others[f]))
    for f in range(others.shape[0]):
        inverse = np.float32(1) / (power[f] if power[f] > LEAST_POWER else LEAST_POWER)
        real[f], imaginary[f] = matched[0, f] * inverse, matched[1, f] * inverse
        error = _fma(others[f], inverse, noise[f]) * inverse
        others[f] = error if error > LEAST_NOISE else LEAST_NOISE


@_exact
def _separate(g, y, noise, method, estimate):
    """Channels g [L, R, 2, lanes] and what is received y [R, 2, lanes], real and imaginary parts
    apart, to unbiased estimates of the layers and their error variances, estimate [L, 3, lanes].
    """
    num_layers, num_lanes = g.shape[0], g.shape[3]
    gram = np.empty((num_layers, num_layers, 2, num_lanes), np.float32)
    matched = np.empty((num_layers, 2, num_lanes), np.float32)
    spare = np.empty(num_lanes, np.float32)
    share = np.float32(1 / np.sqrt(num_layers))
    for i in range(num_layers):
        _inner(g[i], y, share, spare, matched[i])
        for j in range(i + 1):
            _inner(g[i], g[j], share * share, spare, gram[i, j])
            _conjugate(gram[i, j], gram[j, i])
    if method == 0:
        for i in range(num_layers):
            _alone(gram[i], i, matched[i], noise, estimate[i])
        return
    if method == 2:
        for i in range(num_layers):
            _add(noise, gram[i, i, 0])
    inverse = np.empty_like(gram)
    _invert_lanes(gram, inverse, spare)
    estimate[:] = 0
    for i in range(num_layers):
        real, imaginary, spread, power = (
            estimate[i, 0],
            estimate[i, 1],
            estimate[i, 2],
            inverse[i, i, 0],
        )
        for j in range(num_layers):
            _add_product(inverse[i, j], matched[j], real, imaginary)
        for f in range(num_lanes):
            error, gain = power[f] * noise[f], np.float32(1)
            if method == 2:
                gain -= error
                gain = gain if gain > LEAST_GAIN else LEAST_GAIN
            unbiased, error = np.float32(1) / gain, error / gain
            real[f] *= unbiased
            imaginary[f] *= unbiased
            spread[f] = error if error > LEAST_NOISE else LEAST_NOISE


@_inline
def _apart(z, real, imaginary):
    for f in range(z.shape[0]):
        real[f], imaginary[f] = z[f].real, z[f].imag


@_exact
def _separate_slot(
    y, g, variance, symbols, method, runs, width, g_lanes, y_lanes, noise, estimate, out
):
    """y [R, T, F], g [R, L, 14, F], variance [14] to `out` [L, 3, T F]: runs of `width` subcarriers
    side by side.
    """
    num_rx, num_layers, num_sc = g.shape[0], g.shape[1], g.shape[3]
    for first in range(0, symbols.shape[0], runs):
        for low in range(0, num_sc, width):
            here = min(width, num_sc - low)
            lanes = 0
            for t in range(first, min(first + runs, symbols.shape[0])):
                noise[lanes : lanes + here] = max(variance[symbols[t]], LEAST_NOISE)
                for r in range(num_rx):
                    _apart(y[r, t, low : low + here], y_lanes[r, 0, lanes:], y_lanes[r, 1, lanes:])
                    for i in range(num_layers):
                        known = g[r, i, symbols[t], low : low + here]
                        _apart(known, g_lanes[i, r, 0, lanes:], g_lanes[i, r, 1, lanes:])
                lanes += here
            _separate(g_lanes, y_lanes, noise, method, estimate)
            start = first * num_sc + low
            for i in range(num_layers):
                for part in range(3):
                    some = estimate[i, part]
                    out[i, part, start : start + lanes] = some[:lanes]


@_exact
def _receive(y, g, variance, symbols, method, amplitude, labels, half, llr):
    num_rx, num_layers, num_symbols, num_sc = g.shape[1], g.shape[2], symbols.shape[0], g.shape[4]
    parts = -(-num_symbols * num_sc // LANES)  # about evenly
    runs, width = max(-(-num_symbols // parts), 1), -(-num_sc // -(-num_sc // LANES))
    g_lanes = np.ones((num_layers, num_rx, 2, runs * width), np.float32)
    y_lanes, noise = (
        np.ones((num_rx, 2, runs * width), np.float32),
        np.ones(runs * width, np.float32),
    )
    some = np.empty((num_layers, 3, runs * width), np.float32)
    # real, imaginary part, error variance
    estimate = np.empty((num_layers, 3, num_symbols * num_sc), np.float32)
    for s in range(y.shape[0]):
        if num_layers == 1:
            for t in range(num_symbols):
                at, here = symbols[t], slice(t * num_sc, (t + 1) * num_sc)
                _combine(
                    g[s, :, 0, at],
                    y[s, :, t],
                    estimate[0, 0, here],
                    estimate[0, 1, here],
                    estimate[0, 2, here],
                    max(variance[s, at], LEAST_NOISE),
                )
        else:
            _separate_slot(
                y[s],
                g[s],
                variance[s],
                symbols,
                method,
                runs,
                width,
                g_lanes,
                y_lanes,
                noise,
                some,
                estimate,
            )
        for i in range(num_layers):
            for part in range(2):
                first, stride = 2 * half * i + part, 2 * half * num_layers
                demap_row(
                    estimate[i, part],
                    estimate[i, 2],
                    amplitude,
                    labels,
                    half,
                    llr[s],
                    first,
                    stride,
                )


def receive(
    y: np.ndarray,
    g: np.ndarray,
    variance: np.ndarray,
    symbols: np.ndarray,
    method: str,
    bits_per_symbol: int,
) -> np.ndarray:
    """LLRs log(P(bit = 0) / P(bit = 1)) of the coded bits, [S, T F L m] float32, in the order of
    transmission.

    y [S, R, T, F] as of `transmit`, what is known of the channels g [S, R, L, 14, F], noise
    variance [S, 14].
    mrc: every layer by itself, the others taken for noise; zf, lmmse: unbiased, as
      sionna.phy.mimo's equalizers.
    """
    num_slots, _, num_symbols, num_sc = y.shape
    llr = np.empty((num_slots, num_symbols * num_sc * g.shape[2] * bits_per_symbol), np.float32)
    _receive(
        y,
        g,
        variance.astype(np.float32),
        symbols,
        METHODS[method],
        *ladder(bits_per_symbol),
        bits_per_symbol // 2,
        llr,
    )
    return llr

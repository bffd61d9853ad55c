"""The link without its code: every slot's channel and its estimate, the symbols' quality after
detection, and from their mutual information the probability that each code block fails (an
effective-SINR mapping by mutual information, MIESM).

What is drawn is what decides: the channel, and the noise on the pilots. The noise on the data and
the code are averaged over, by tables of the twin's own code in Gaussian noise
(twin/tables/bler.csv, made by experiments.truth.bler_tables). So a slot costs a fraction of the
link's and says more: a probability, not a yes or no. Only for linear detection, and for codes that
have a table: LDPC, and polar blocks, of which every code rate has one (twin/tables/polar.csv).

The detector works with an estimate: a symbol comes out with a gain of its own, with interference,
and with a noise variance that the demapper takes for another. What its LLRs are then worth is the
generalised mutual information of twin.chain.information. A gain's imaginary part counts as noise. A
min-sum decoder hardly sees a scale that all LLRs of a block have in common. So a block's
information is that at the best such scale (Martinez et al., 2009, define it so): where the estimate
is worse than the detector knows, as by least squares under mobility, LLRs are too large.

Letters: S slots, T data symbols, F subcarriers looked at (at most MAX_CARRIERS, evenly spaced), L
  layers, C code blocks.
"""

from __future__ import annotations

import csv
from functools import cache, lru_cache
from typing import NamedTuple

import numba
import numpy as np
from scipy.special import ndtr

from ..physical import LINEAR, Counts, Point
from ..tables import BLER, POLAR
from ..transport import POLAR_LENGTH, coded_bits, num_polar_blocks, polar_info_bits
from .detection import LEAST_NOISE, METHODS, alone, invert
from .estimation import knowledge, noise_variance
from .grid import data_symbols
from .information import information, snr_for, stored

MAX_CARRIERS = 48
# What the tables, which are of antipodal signals, leave out: the interleaver sends a higher order's
# information bits in its more reliable places. dB by bits per symbol at code rates
# CALIBRATED_RATES, measured in AWGN at a BLER of 10 % (experiments.truth.twin_truth)
CALIBRATED_RATES = (0.33, 0.5, 0.67, 0.83)
CALIBRATION_DB = {
    2: (0.0, 0.0, 0.05, 0.0),
    4: (0.18, 0.22, 0.12, 0.05),
    6: (0.53, 0.47, 0.26, 0.08),
    8: (0.75, 0.69, 0.57, 0.16),
}
POLAR_CALIBRATION_DB = {
    2: (0.0, 0.0, 0.0, 0.0),
    4: (0.0, 0.06, 0.14, 0.09),
    6: (0.14, 0.11, 0.2, 0.19),
    8: (0.45, 0.45, 0.55, 0.28),
}
# What LLRs, added bit by bit, lose against symbols combined: dB for 1 to 4 equal copies by bits per
# symbol, up to LOSS_FADES[0] of information per bit; then less, down to none at LOSS_FADES[1]
CHASE_LOSS_DB = {
    2: (0.0, 0.0, 0.0, 0.0),
    4: (0.0, 0.4, 0.7, 0.95),
    6: (0.0, 0.6, 1.1, 1.4),
    8: (0.0, 0.7, 1.15, 1.55),
}
LOSS_FADES = (0.6, 0.95)
# widths beyond the threshold at which a decoder's errors become the channel's
DEEP, DEEP_WIDTH = 1.2, 0.8
# Scales of the LLRs to try, in steps of MISMATCH_DB; mostly smaller: not all errors are known
LEAST_SCALE, NUM_SCALES = -7, 9
_jit = numba.njit(
    cache=True, error_model="numpy", fastmath={"nnan", "ninf", "nsz", "contract", "reassoc", "arcp"}
)


def covers(point: Point) -> bool:
    """Whether the tables speak of such a point."""
    return point.code in ("ldpc", "polar") and point.detector in LINEAR


class Blocks(NamedTuple):
    """The code blocks of a slot: sent coded bits of each, in order; info bits of each, CRC and all;
    coded bits of the slot.
    """

    sent: tuple[int, ...]
    info: int
    total: int


def blocks(point: Point) -> Blocks:
    """Behind the last polar block the slot has room that carries nothing."""
    if point.code == "polar":
        number, total = num_polar_blocks(point.workflow), coded_bits(point.workflow)
        return Blocks((POLAR_LENGTH,) * number, polar_info_bits(point.code_rate), total)
    code = point.segmentation
    return Blocks(code.sent, code.info, sum(code.sent))


@cache
def _table() -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Axes (rates, log info bits, log iterations) and thresholds, log widths and shares on their
    grid [R, K, N, 3].
    """
    with open(BLER, newline="") as file:
        rows = [
            [
                float(row[name])
                for name in ("rate", "info_bits", "iterations", "threshold", "width", "share")
            ]
            for row in csv.DictReader(file)
        ]
    rows = np.array(rows)
    axes = tuple(np.unique(rows[:, i]) for i in range(3))
    grid = np.full((*map(len, axes), 3), np.nan)
    grid[tuple(np.searchsorted(axis, rows[:, i]) for i, axis in enumerate(axes))] = rows[:, 3:]
    grid[..., 1] = np.log(grid[..., 1])
    return (axes[0], np.log(axes[1]), np.log(axes[2])), grid


@cache
def polar_threshold(info_bits: int) -> tuple[float, float, float]:
    """As `threshold`, of a polar block with so many information bits."""
    with open(POLAR, newline="") as file:
        rows = {int(row["info_bits"]): row for row in csv.DictReader(file)}
    return tuple(float(rows[info_bits][name]) for name in ("threshold", "width", "share"))


@lru_cache(maxsize=4096)
def threshold(rate: float, info_bits: int, iterations: int) -> tuple[float, float, float]:
    """(threshold, width, share): BLER = Q((I - threshold) / width) of a code block at mutual
    information I per coded bit, and the share of wrong bits in a wrong block; linear between the
    table's rates and the logarithms of its lengths and iterations.
    """
    axes, value = _table()
    for axis, at in zip(axes, (rate, np.log(info_bits), np.log(iterations))):
        low = int(np.clip(np.searchsorted(axis, at, side="right") - 1, 0, len(axis) - 2))
        share = np.clip((at - axis[low]) / (axis[low + 1] - axis[low]), 0, 1)
        value = (1 - share) * value[low] + share * value[low + 1]
    return float(value[0]), float(np.exp(value[1])), float(value[2])


@_jit
def _detected(h, g, variance, known, symbols, first, step, method, out):
    """What detection makes of every symbol, out [3, S, T, F, L]: its gain, the variance of noise
    and interference, and what the demapper takes that for. Channels h and what is known of them g
    [S, R, L, 14, all subcarriers]; noise variance, and what it is taken for [S, 14].
    """
    num_rx, num_layers = h.shape[1], h.shape[2]
    gram = np.empty((num_layers, num_layers), np.complex64)
    inverse = np.empty((num_layers, num_layers), np.complex64)
    weights = np.empty(num_rx, np.complex64)
    share = np.float32(1 / np.sqrt(num_layers))
    for s in range(h.shape[0]):
        for t in range(symbols.shape[0]):
            at = symbols[t]
            noise = max(known[s, at], LEAST_NOISE)
            for k in range(out.shape[3]):
                f = first + k * step + (k + t) % step
                for i in range(num_layers):
                    for j in range(num_layers):
                        total = np.complex64(0)
                        for r in range(num_rx):
                            total += np.conj(g[s, r, i, at, f]) * g[s, r, j, at, f]
                        gram[i, j] = total * share * share
                        inverse[i, j] = 0
                    if method == 2:
                        gram[i, i] += noise
                if method == 0:
                    for i in range(num_layers):
                        power, out[2, s, t, k, i] = alone(gram, i, noise)
                        inverse[i, i] = 1 / power
                else:
                    invert(gram, inverse)
                for i in range(num_layers):
                    scale = np.float32(1)
                    if method != 0:
                        error = inverse[i, i].real * noise
                        if method == 2:
                            scale = 1 / max(np.float32(1) - error, np.float32(1e-6))
                        out[2, s, t, k, i] = error * scale
                    power = np.float32(0)
                    for r in range(num_rx):
                        total = np.complex64(0)
                        for j in range(num_layers):
                            total += inverse[i, j] * np.conj(g[s, r, j, at, f])
                        weights[r] = total * share * scale
                        power += weights[r].real ** 2 + weights[r].imag ** 2
                    interference = power * variance
                    for j in range(num_layers):
                        total = np.complex64(0)
                        for r in range(num_rx):
                            total += weights[r] * h[s, r, j, at, f]
                        total *= share
                        if j == i:
                            out[0, s, t, k, i] = total.real
                            interference += total.imag**2
                        else:
                            interference += total.real**2 + total.imag**2
                    out[1, s, t, k, i] = max(interference, LEAST_NOISE)
                    out[2, s, t, k, i] = max(out[2, s, t, k, i], LEAST_NOISE)


@_jit
def _informed(gains, noises_db, mismatches_db, shares, table, out):
    """Add to out [S, C, scales] the mean information of the blocks' bits, of symbols [S, T F, L].

    shares [C, T F]; table [gain, noise, mismatch] as of `_padded`. Linear over gain and noise; over
    the mismatch by parabolas through three neighbours, as lines would cut off the curves' peak.
    """
    num_layers, flat = gains.shape[2], table.ravel()
    num_gains, num_noises, num_padded = table.shape
    near, value = np.empty(NUM_SCALES + 2, np.float32), np.empty(NUM_SCALES, np.float32)
    zero, half, unit = np.float32(0), np.float32(0.5), np.float32(1)
    num_mismatches = num_padded - NUM_SCALES - 1
    ends = np.array((num_gains - 1.001, num_noises - 1.001, num_mismatches - 1), np.float32)
    for s in range(gains.shape[0]):
        for e in range(gains.shape[1]):
            value[:] = 0
            for i in range(num_layers):
                x = min(max((gains[s, e, i] + unit) * np.float32(20), zero), ends[0])
                y = min(max(np.float32(15) - noises_db[s, e, i], zero), ends[1])
                z = min(max((mismatches_db[s, e, i] + np.float32(20)) * half, zero), ends[2])
                a, b, c = int(x), int(y), int(z + half)
                u, v, w = x - np.float32(a), y - np.float32(b), z - np.float32(c)
                p, q = (unit - u) * (unit - v), (unit - u) * v
                left, right = u * (unit - v), u * v
                low = (a * num_noises + b) * num_padded + c
                high = low + num_noises * num_padded
                one, two = flat[low:], flat[low + num_padded :]
                three, four = flat[high:], flat[high + num_padded :]
                for k in range(NUM_SCALES + 2):
                    near[k] = p * one[k] + q * two[k] + left * three[k] + right * four[k]
                before, at, after = half * w * (w - unit), unit - w * w, half * w * (w + unit)
                for k in range(NUM_SCALES):
                    value[k] += before * near[k] + at * near[k + 1] + after * near[k + 2]
            for r in range(shares.shape[0]):
                if shares[r, e] > 0:
                    share = shares[r, e] / np.float32(num_layers)
                    for k in range(NUM_SCALES):
                        out[s, r, k] += share * value[k]


@cache
def _padded(bits_per_symbol: int) -> np.ndarray:
    """The stored table of information [gain, noise, mismatch], its ends repeated for all scales."""
    ends = 1 - LEAST_SCALE, NUM_SCALES + LEAST_SCALE
    return np.pad(stored(bits_per_symbol), ((0, 0), (0, 0), ends), "edge")


def _greatest(value: np.ndarray) -> np.ndarray:
    """The greatest over the last axis, by the parabola through the three values about it."""
    top = np.clip(value.argmax(-1), 1, value.shape[-1] - 2)[..., None] + np.arange(-1, 2)
    before, at, after = np.moveaxis(np.take_along_axis(value, top, axis=-1), -1, 0)
    slope, bend = (after - before) / 2, np.maximum(2 * at - before - after, 1e-9)
    shift = np.clip(slope / bend, -1, 1)
    return at + shift * (slope - shift * bend / 2)


def _carriers(num_sc: int) -> tuple[int, int, int]:
    """First, step, number of subcarriers looked at; number k of symbol t is (k + t) % step further
    on.

    So a symbol looks at pilots' subcarriers and at those between, where estimates are better, in
    equal parts; even steps alone would see one kind only. And all symbols together look at every
    subcarrier: an estimate's error stays for the slot, so that few say too little of the mean.
    """
    step = -(-num_sc // MAX_CARRIERS)
    number = num_sc // step
    return num_sc % step // 2, step, number


def detected(point: Point, h: np.ndarray, gains, noise: np.ndarray) -> np.ndarray:
    """Gain, noise variance and assumed noise variance [3, S, T, F, L] of a transmission's symbols
    after detection, over channels h [S, R, L, 14, all subcarriers], with noise [S, R, D, all] on
    the DM-RS symbols.
    """
    symbols = data_symbols(point.num_dmrs)
    g, known = knowledge(point, h, gains, noise)
    first, step, number = _carriers(h.shape[-1])
    out = np.empty((3, len(h), len(symbols), number, point.num_layers), np.float32)
    _detected(
        h,
        g,
        np.float32(noise_variance(point, gains)),
        known.astype(np.float32),
        symbols,
        first,
        step,
        METHODS[point.detector],
        out,
    )
    return out


@lru_cache(maxsize=1024)
def _shares(code: Blocks, num_symbols: int, number: int) -> np.ndarray:
    """How the code blocks' bits lie on the looked-at elements: weights [C, T F] of the mean over
    each block.
    """
    edges = np.concatenate([[0], np.cumsum(code.sent)]) / code.total * num_symbols * number
    cells = np.arange(num_symbols * number)
    inside = np.clip(
        np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, 1
    )
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def _combined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two transmissions of the same bits, after detection [3, S, T, F, L], as one: to add LLRs is
    to weigh symbols by the inverse of the noise variance that the demapper assumes."""
    weight = other[2] / (one[2] + other[2])
    rest = 1 - weight
    gain = weight * one[0] + rest * other[0]
    return np.stack([gain, weight**2 * one[1] + rest**2 * other[1], weight * one[2]])


def block_information(point: Point, symbols: np.ndarray) -> np.ndarray:
    """Mutual information per coded bit of the code blocks, by scale of their LLRs [S, C, scales],
    from symbols after detection [3, S, T, F, L]."""
    _, num_slots, num_symbols, number, num_layers = symbols.shape
    shares = _shares(blocks(point), num_symbols, number)
    out = np.zeros((num_slots, len(shares), NUM_SCALES), np.float32)
    gain, noise, assumed = symbols.reshape(3, num_slots, -1, num_layers)
    noise_db = 10 * np.log10(noise)
    mismatch_db = noise_db - 10 * np.log10(assumed)
    _informed(gain, noise_db, mismatch_db, shares, _padded(point.bits_per_symbol), out)
    return out.astype(float)


def _best(point: Point, info: np.ndarray, copies: int = 1) -> np.ndarray:
    """Information [S, C] at the best scale, as tables take it, from that at all [S, C, scales]; of
    so many copies, Chase combined."""
    mean, m = np.clip(_greatest(info), 0, 1), point.bits_per_symbol
    better_db = np.interp(
        point.code_rate,
        CALIBRATED_RATES,
        CALIBRATION_DB[m] if point.code == "ldpc" else POLAR_CALIBRATION_DB[m],
    )
    better_db = better_db - CHASE_LOSS_DB[m][copies - 1] * np.interp(mean, LOSS_FADES, (1, 0))
    return information(snr_for(mean, m) * 10 ** (better_db / 10), m) if np.any(better_db) else mean


def failures(point: Point, symbols: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Probability that the transport block fails after 1, 2, ... transmissions with these symbols,
    [transmissions, S]; and the expected share of wrong bits after the last one [S].

    Chase: LLRs add, which is to combine symbols, less CHASE_LOSS_DB. Incremental redundancy: mutual
    information adds over new coded bits; once the circular buffer is sent, bits are repeated, and
    signal-to-noise ratios add instead. All transmissions' LLRs have one scale in common.
    """
    code, num_slots, polar = blocks(point), symbols[0].shape[1], point.code == "polar"
    room = POLAR_LENGTH if polar else point.segmentation.mother_length - point.segmentation.filler
    sent = np.array(code.sent, float)
    before, out, share = np.ones(num_slots), [], np.zeros(num_slots)
    collected = np.zeros((num_slots, len(sent), NUM_SCALES))
    together = symbols[0]
    for k, new in enumerate(symbols, 1):
        if polar or point.combining == "chase":
            together = _combined(together, new) if k > 1 else new
            mean, length = _best(point, block_information(point, together), copies=k), sent
        else:
            collected += block_information(point, new)
            mean, length = _best(point, collected / k), sent * k
        repeats = np.maximum(length / room, 1.0)
        mean = np.where(repeats > 1, information(snr_for(mean, 1) * repeats, 1), mean)
        limit, width, typical = np.array(
            [
                (
                    polar_threshold(code.info)
                    if polar
                    else threshold(code.info / min(e, room), code.info, point.decoder_iterations)
                )
                for e in length
            ]
        ).T
        beyond = (limit - mean) / width
        each = ndtr(beyond)
        block = np.minimum(
            -np.expm1(np.sum(np.log1p(-np.minimum(each, 1 - 1e-16)), axis=1)), before
        )
        # Just below the threshold a few bits are wrong; far below it a decoder leaves about the
        # channel's own errors
        hard, deep = (
            ndtr(-np.sqrt(2 * snr_for(mean, 1))),
            (0.0 if polar else ndtr((beyond - DEEP) / DEEP_WIDTH)),
        )
        share = np.minimum(
            np.mean(each * (typical + deep * np.maximum(hard - typical, 0)), axis=1), block
        )
        out.append(block)
        before = block
    return np.array(out), share


def simulate_round(point: Point, channels, gains, noises) -> Counts:
    """Expected counts of a round whose transmissions meet these channels and noises."""
    failed, share = failures(
        point, [detected(point, h, gains, noise) for h, noise in zip(channels, noises)]
    )
    num_slots, code = failed.shape[1], blocks(point)
    num_bits = len(code.sent) * code.info
    return Counts(
        num_slots,
        num_slots * num_bits,
        float(share.sum()) * num_bits,
        tuple(failed.sum(1).tolist()),
        float(share.sum()),
        float(np.sum(share**2)),
        tuple(np.sum(failed**2, axis=1).tolist()),
    )

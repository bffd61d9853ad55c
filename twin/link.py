"""The Sionna link, by stages: source, encoder, mapper -> channel -> estimation, detection -> demapper -> decoder.

A round is NUM_SLOTS slots. Each slot has its own channel and carries one code block of CODE_LENGTH coded bits, spread
evenly over the slice and over all layers; resource elements beyond it would carry further blocks that see the same
channel, and are not simulated. Shapes are few: encoder and decoder depend on (code, k), the demapper on the modulation,
K-Best and EP on both modulation and layers, and everything else is a value. Estimation and linear detection are numpy.

Everything random comes from a hash of (seed, what it is, round): bits from the code, channel and noise from the channel
state. Workflows that share a channel state meet the same channels and noise (common random numbers), and a result
depends on nothing but its Point, the seed and the Settings.

Letters: S slots, N resource elements, L layers, n coded bits, k information bits.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from . import deeprx
from .channel import realise, residual_interference
from .coding import NUM_SLOTS, code_blocks, constellation, decode, deinterleave, symbols
from .detection import detect
from .estimation import estimator
from .grid import NUM_SC, comb, data_index, pilot_index
from .memory import remember
from .physical import CODE_LENGTH, ChannelState, Counts, Point, Settings
from .precoding import PAST_SYMBOLS, estimates, precode
from .spec import SYMBOLS_PER_SLOT
from .toolbox import is_neural


def seed_of(*what) -> int:
    """A 31-bit seed from the content of its arguments."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=4).digest(), "big") >> 1


@remember(max_bytes=384 << 20)
def surroundings(state: ChannelState, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Channels of the layers [rx, L, S, 14 * NUM_SC] and noise of unit variance [rx, S, 14 * NUM_SC], complex64."""
    if state.precoder == "none":
        h = realise(state, NUM_SLOTS, seed)
    else:
        past, h = np.split(realise(state, NUM_SLOTS, seed, (*PAST_SYMBOLS, *range(SYMBOLS_PER_SLOT))), [len(PAST_SYMBOLS) * NUM_SC], axis=-1)
        past = estimates(past.reshape(*past.shape[:-1], len(PAST_SYMBOLS), NUM_SC), seed)
        h = precode(h, past, state.num_layers, state.precoder)
    noise = np.random.default_rng([seed, 1]).standard_normal((*h.shape[:1], *h.shape[2:], 2), dtype=np.float32)
    return h, noise.view(np.complex64)[..., 0] * np.float32(np.sqrt(0.5))


@lru_cache(maxsize=1024)
def _interference(state: ChannelState) -> float:
    return residual_interference(state)


@lru_cache(maxsize=4096)
def _gains(state: ChannelState, seed: int) -> tuple[float, ...]:
    """Mean power of every layer's channel to two digits, which a receiver knows over many slots; 1 without a precoder."""
    if state.precoder == "none":
        return (1.0,) * state.num_layers
    return tuple(float(f"{max(g, 1e-6):.1e}") for g in np.mean(np.abs(surroundings(state, seed)[0]) ** 2, axis=(0, 2, 3)))


_estimator = remember(max_bytes=128 << 20)(estimator)


def receive(point: Point, seed: int, *round_: int) -> np.ndarray:
    """Logits log(P(bit = 1) / P(bit = 0)) of the coded bits of one round, [S, n] float32.

    `round_` numbers the round, and after the first transmission also the transmission.
    """
    state, m, num_layers = point.state, point.bits_per_symbol, point.state.num_layers
    channel_seed = seed_of(seed, "channel", state, *round_)
    h, noise = surroundings(state, channel_seed)
    gains = _gains(state, channel_seed)
    x = symbols(point.code, point.num_info_bits, m, num_layers, bits_seed(point, seed, round_[0]))
    data, share = data_index(m, num_layers), np.float32(num_layers**-0.5)
    variance = 10 ** (-point.snr_db / 10) + _interference(state) * sum(gains) / num_layers
    sigma = np.float32(np.sqrt(variance))
    if is_neural(point.detector):
        sent = deeprx.transmitted(full_grid(point, x[0], seed, round_[0]), point.num_dmrs)
        logits = deeprx.receive(h[:, 0] * sent + sigma * noise, variance, point.num_dmrs, m, point.detector)
        return deinterleave(logits[:, data].reshape(NUM_SLOTS, -1), m)

    g = np.take(h, data, axis=-1) * share  # [rx, L, S, N], the channel with the layer's share of the power
    y = np.einsum("rlsn,lsn->rsn", g, x) + sigma * np.take(noise, data, axis=-1)
    effective = np.full(len(data), variance, np.float32)
    if point.estimator != "perfect":
        weights, error = _estimator(state, point.num_dmrs, point.estimator, variance, gains)
        pilot_sigma = np.float32(sigma * np.sqrt(num_layers / comb(num_layers)))
        for layer in range(num_layers):
            at = pilot_index(layer, num_layers, point.num_dmrs)
            observed = np.take(h[:, layer], at, axis=-1) + pilot_sigma * np.take(noise, at, axis=-1)
            g[:, layer] = observed @ weights[layer, : len(data)].T * share
        effective = effective + error[:, : len(data)].mean(axis=0)
    logits = detect(y, g, np.broadcast_to(effective, y.shape[1:]), point.detector, m)
    return deinterleave(logits, m)


def full_grid(point: Point, x: np.ndarray, seed: int, round_: int) -> np.ndarray:
    """The block's symbols x [S, N] where they are sent, and those of other blocks everywhere else, [S, 14 * NUM_SC]."""
    rng = np.random.default_rng(seed_of(seed, "other blocks", round_))
    points = constellation(point.bits_per_symbol)
    sent = points[rng.integers(0, len(points), (NUM_SLOTS, SYMBOLS_PER_SLOT * NUM_SC))]
    sent[:, data_index(point.bits_per_symbol, 1)] = x
    return sent


def bits_seed(point: Point, seed: int, round_: int) -> int:
    return seed_of(seed, "bits", point.code, point.num_info_bits, round_)


def simulate(point: Point, seed: int, settings: Settings) -> Counts:
    """Rounds until the counts are enough (see Settings).

    HARQ: blocks in error are sent again over a channel of their own and their logits added (Chase combining), until they
    are right or point.num_transmissions is reached. A real receiver knows from the CRC which they are.
    """
    counts = Counts()
    while not counts.enough(settings):
        round_ = counts.num_blocks // NUM_SLOTS
        bits, _ = code_blocks(point.code, point.num_info_bits, bits_seed(point, seed, round_))
        logits = receive(point, seed, round_)
        wrong = np.sum(decode(point, logits, settings) != bits, axis=1)
        sent = NUM_SLOTS
        for transmission in range(1, point.num_transmissions):
            failed = wrong > 0
            if not failed.any():
                break
            sent += int(failed.sum())
            logits = logits + receive(point, seed, round_, transmission)
            wrong = np.where(failed, np.sum(decode(point, logits, settings) != bits, axis=1), wrong)
        counts = Counts(
            num_blocks=counts.num_blocks + NUM_SLOTS,
            num_bits=counts.num_bits + bits.size,
            block_errors=counts.block_errors + int(np.count_nonzero(wrong)),
            bit_errors=counts.bit_errors + int(wrong.sum()),
            bit_errors_squared=counts.bit_errors_squared + int(np.sum(wrong.astype(np.int64) ** 2)),
            num_transmissions=counts.num_transmissions + sent,
        )
    return counts


def warm(signatures: list[tuple], settings: Settings) -> None:
    """Compile the stages with these signatures (see Point.signatures)."""
    for stage, *shape in signatures:
        if stage == "decode":
            point = Point(ChannelState("awgn", 1, 1), 0.0, "ldpc", shape[0], 1, 2, 0, "perfect", "mrc", 1)
            decode(point, np.zeros((NUM_SLOTS, CODE_LENGTH), np.float32), settings)
            code_blocks("ldpc", shape[0], 0)
        elif is_neural(stage):
            deeprx.receive(np.zeros((shape[0], NUM_SLOTS, SYMBOLS_PER_SLOT * NUM_SC), np.complex64), 1.0, 1, 2, stage)
        else:
            m, layers = shape[-1], shape[0] if len(shape) == 2 else 1
            size = (NUM_SLOTS, CODE_LENGTH // (m * layers))
            eye = np.broadcast_to(np.eye(layers, dtype=np.complex64)[:, :, None, None], (layers, layers, *size))
            detect(np.zeros((layers, *size), np.complex64), eye, np.ones(size, np.float32), "mrc" if stage == "demap" else stage, m)

"""The Sionna link, by stages: source, encoder, mapper -> channel -> estimation, detection -> demapper -> decoder.

A round is NUM_SLOTS slots. Each slot has its own channel and carries one code block of CODE_LENGTH coded bits, spread
evenly over the slice and over all layers; resource elements beyond it would carry further blocks that see the same
channel, and are not simulated. Shapes are few: encoder and decoder depend on (code, k), the demapper on the modulation,
and everything else is a value. So the stages that XLA compiles (decoder, demapper) are compiled once per code and once
per modulation; estimation and linear detection are numpy.

Everything random comes from a hash of (seed, what it is, round): bits from the code, channel and noise from the channel
state. Workflows that share a channel state meet the same channels and noise (common random numbers), and a result
depends on nothing but its Point, the seed and the Settings.

Letters: S slots, N resource elements, L layers, n coded bits, k information bits.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import tensorflow as tf
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.mapping import Demapper, Mapper

from .channel import realise, residual_interference
from .estimation import estimator
from .grid import comb, data_index, pilot_index
from .memory import remember
from .physical import CODE_LENGTH, ChannelState, Counts, Point, Settings

NUM_SLOTS = 32  # per round
traces: dict[str, int] = {}  # how often each compiled stage was traced, by stage and signature


def seed_of(*what) -> int:
    """A 31-bit seed from the content of its arguments."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=4).digest(), "big") >> 1


def _traced(stage: str):
    traces[stage] = traces.get(stage, 0) + 1


# Transmitter


@lru_cache(maxsize=256)
def _encoder(num_info_bits: int) -> LDPC5GEncoder:
    return LDPC5GEncoder(num_info_bits, CODE_LENGTH)


@lru_cache(maxsize=256)
def code_blocks(code: str, num_info_bits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Information bits [S, k] and coded bits [S, n], int8."""
    bits = np.random.default_rng(seed).integers(0, 2, (NUM_SLOTS, num_info_bits), dtype=np.int8)
    if code == "none":
        return bits, bits
    return bits, _encoder(num_info_bits)(tf.cast(bits, tf.float32)).numpy().astype(np.int8)


def interleave(coded: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """Bit i n / Q + j goes to place i + j Q (TS 38.212 5.4.2.2), [S, n]."""
    return coded.reshape(len(coded), bits_per_symbol, -1).transpose(0, 2, 1).reshape(len(coded), -1)


def deinterleave(places: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """The inverse of `interleave`, [S, n]."""
    return places.reshape(len(places), -1, bits_per_symbol).transpose(0, 2, 1).reshape(len(places), -1)


@lru_cache(maxsize=256)
def symbols(code: str, num_info_bits: int, bits_per_symbol: int, num_layers: int, seed: int) -> np.ndarray:
    """Gray-mapped symbols of unit energy, [L, S, N] complex64: consecutive symbols go to consecutive layers."""
    coded = interleave(code_blocks(code, num_info_bits, seed)[1], bits_per_symbol)
    x = Mapper("qam", bits_per_symbol)(tf.cast(coded, tf.float32)).numpy()
    return np.ascontiguousarray(x.reshape(NUM_SLOTS, -1, num_layers).transpose(2, 0, 1))


# Channel


@remember(max_bytes=768 << 20)
def surroundings(state: ChannelState, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Channels [rx, L, S, 14 * NUM_SC] and noise of unit variance [rx, S, 14 * NUM_SC], complex64."""
    h = realise(state, NUM_SLOTS, seed)
    noise = np.random.default_rng([seed, 1]).standard_normal((*h.shape[:1], *h.shape[2:], 2), dtype=np.float32)
    return h, noise.view(np.complex64)[..., 0] * np.float32(np.sqrt(0.5))


@lru_cache(maxsize=1024)
def _interference(state: ChannelState) -> float:
    return residual_interference(state)


_estimator = remember(max_bytes=128 << 20)(estimator)


def receive(point: Point, seed: int, round_: int) -> np.ndarray:
    """Logits log(P(bit = 1) / P(bit = 0)) of the coded bits of one round, [S, n] float32."""
    state, m, num_layers = point.state, point.bits_per_symbol, point.state.num_layers
    h, noise = surroundings(state, seed_of(seed, "channel", state, round_))
    x = symbols(point.code, point.num_info_bits, m, num_layers, seed_of(seed, "bits", point.code, point.num_info_bits, round_))
    data, share = data_index(m, num_layers), np.float32(num_layers**-0.5)
    variance = 10 ** (-point.snr_db / 10) + _interference(state)
    sigma = np.float32(np.sqrt(variance))

    g = np.take(h, data, axis=-1) * share  # [rx, L, S, N], the channel with the layer's share of the power
    y = np.einsum("rlsn,lsn->rsn", g, x) + sigma * np.take(noise, data, axis=-1)
    effective = np.full(len(data), variance, np.float32)
    if point.estimator != "perfect":
        weights, error = _estimator(state, point.num_dmrs, point.estimator, variance)
        pilot_sigma = np.float32(sigma * np.sqrt(num_layers / comb(num_layers)))
        for layer in range(num_layers):
            at = pilot_index(layer, num_layers, point.num_dmrs)
            observed = np.take(h[:, layer], at, axis=-1) + pilot_sigma * np.take(noise, at, axis=-1)
            g[:, layer] = observed @ weights[layer, : len(data)].T * share
        effective = effective + error[:, : len(data)].mean(axis=0)
    x_hat, no_eff = detect_linear(y, g, np.broadcast_to(effective, y.shape[1:]), point.detector == "lmmse")
    return deinterleave(demap(x_hat.transpose(1, 2, 0), no_eff.transpose(1, 2, 0), m), m)


def detect_linear(y, g, noise, lmmse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased ZF or LMMSE equalisation of y = g x + n, vectorised over the trailing axes.

    y [rx, ...] and g [rx, L, ...] complex64, noise variance [...] float32. Returns x_hat [L, ...] and the variance of
    its error [L, ...]. Same results as sionna.phy.mimo.zf_equalizer and lmmse_equalizer with white noise, whose batches of
    tiny matrices are several times slower; here a Gauss-Jordan inverse of the L x L Gram matrix is unrolled over L <= 4.
    """
    num_layers = g.shape[1]
    gram = np.einsum("ri...,rj...->ij...", g.conj(), g)
    matched = np.einsum("ri...,r...->i...", g.conj(), y)
    if lmmse:
        for i in range(num_layers):
            gram[i, i] += noise
    inverse = _inverse(gram)
    x_hat = np.einsum("ij...,j...->i...", inverse, matched)
    diagonal = np.real(np.einsum("ii...->i...", inverse)) * noise
    if not lmmse:
        return x_hat, diagonal
    gain = np.maximum(1 - diagonal, np.float32(1e-6))
    return x_hat / gain, diagonal / gain


def _inverse(a: np.ndarray) -> np.ndarray:
    """Inverse of Hermitian positive definite matrices [L, L, ...] by Gauss-Jordan without pivoting."""
    size = a.shape[0]
    a, out = a.copy(), np.zeros_like(a)
    for i in range(size):
        out[i, i] = 1
    for i in range(size):
        pivot = np.float32(1) / np.maximum(np.real(a[i, i]), np.float32(1e-20))
        a[i], out[i] = a[i] * pivot, out[i] * pivot
        for j in range(size):
            if j != i:
                factor = a[j, i].copy()
                a[j] -= factor * a[i]
                out[j] -= factor * out[i]
    return out


# Demapper


@lru_cache(maxsize=4)
def _demapper(bits_per_dimension: int):
    demapper = Demapper("app", "pam", bits_per_dimension)

    @tf.function(jit_compile=True)
    def run(y, no):
        _traced(f"demap {bits_per_dimension}")
        return demapper(tf.complex(y, tf.zeros_like(y)), no)

    return run


def demap(x_hat: np.ndarray, no_eff: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """Exact logits of Gray QAM, [S, n]. Real and imaginary part are two PAM of half the energy with alternating bits."""
    y = np.sqrt(np.float32(2)) * np.ascontiguousarray(x_hat).view(np.float32).reshape(-1, 2)
    no = np.repeat(2 * np.maximum(np.ascontiguousarray(no_eff).reshape(-1, 1), np.float32(1e-9)), 2, axis=1)
    logits = _demapper(bits_per_symbol // 2)(tf.constant(y), tf.constant(no)).numpy()
    return logits.reshape(-1, 2, bits_per_symbol // 2).transpose(0, 2, 1).reshape(NUM_SLOTS, CODE_LENGTH)


# Decoder


class EarlyStop(LDPC5GDecoder):
    """LDPC5GDecoder that ends when every block of the batch satisfies all parity checks, as hardware does.

    It halves the time of easy points and decides the same: a valid codeword is a fixed point of the iterations. The
    degrees of the pruned graph differ, so the checks' bits are gathered from a table padded with a bit that is 0.
    """

    def build(self, input_shape, **kwargs):
        super().build(input_shape, **kwargs)
        order = np.argsort(self._cn_idx, kind="stable")
        degree = np.bincount(self._cn_idx, minlength=self._num_cns)
        place = np.arange(len(order)) - np.repeat(np.cumsum(degree) - degree, degree)
        self._bits_of_check = np.full((self._num_cns, degree.max()), self._num_vns)
        self._bits_of_check[self._cn_idx[order], place] = self._vn_idx[order]

    def _stop_cond(self, msg_v2c, msg_c2v, llr_ch, x_hat, it, num_iter):
        bits = tf.concat([tf.cast(x_hat < 0, tf.int32), tf.zeros_like(x_hat[:1], tf.int32)], axis=0)
        parity = tf.reduce_sum(tf.gather(bits, self._bits_of_check), axis=1) % 2
        return tf.logical_and(it < num_iter, tf.reduce_any(parity == 1))


@lru_cache(maxsize=256)
def _decoder(num_info_bits: int, check_node: str):
    decoder = EarlyStop(_encoder(num_info_bits), cn_update=check_node, hard_out=True)

    @tf.function(jit_compile=True)
    def run(logits, num_iter):
        _traced(f"decode {num_info_bits} {check_node}")
        return decoder(logits, num_iter=num_iter)

    return run


def decode(point: Point, logits: np.ndarray, settings: Settings) -> np.ndarray:
    """Decided information bits [S, k]; without a code, of the coded bits themselves."""
    if point.code == "none":
        return logits > 0
    run = _decoder(point.num_info_bits, settings.check_node)
    return run(tf.constant(logits), tf.constant(point.decoder_iterations)).numpy() > 0.5


def simulate(point: Point, seed: int, settings: Settings) -> Counts:
    """Rounds until the counts are enough (see Settings)."""
    counts = Counts()
    while not counts.enough(settings):
        round_ = counts.num_blocks // NUM_SLOTS
        bits, _ = code_blocks(point.code, point.num_info_bits, seed_of(seed, "bits", point.code, point.num_info_bits, round_))
        wrong = np.sum(decode(point, receive(point, seed, round_), settings) != bits, axis=1)
        counts = Counts(
            num_blocks=counts.num_blocks + NUM_SLOTS,
            num_bits=counts.num_bits + bits.size,
            block_errors=counts.block_errors + int(np.count_nonzero(wrong)),
            bit_errors=counts.bit_errors + int(wrong.sum()),
            bit_errors_squared=counts.bit_errors_squared + int(np.sum(wrong.astype(np.int64) ** 2)),
        )
    return counts


def warm(num_info_bits: int, settings: Settings) -> None:
    """Compile the decoder of a code and all demappers."""
    for m in (2, 4, 6, 8):
        n = CODE_LENGTH // m
        demap(np.ones((NUM_SLOTS, n, 1), np.complex64), np.ones((NUM_SLOTS, n, 1), np.float32), m)
    point = Point(ChannelState("awgn", 1, 1), 0.0, "ldpc", num_info_bits, 1, 2, 0, "perfect", "mrc")
    decode(point, np.zeros((NUM_SLOTS, CODE_LENGTH), np.float32), settings)
    code_blocks("ldpc", num_info_bits, 0)

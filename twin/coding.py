"""Channel codes and bit-level stages: encoder, interleaver, mapper; demapper, decoder. Shapes as in link.py.

A slot's resource elements take CODE_LENGTH coded bits. An LDPC block fills them; a polar block takes BLOCK_LENGTH["polar"]
of them, spread at random but always the same, and the rest is filled with random bits that nobody decodes.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import tensorflow as tf
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.fec.polar import Polar5GDecoder, Polar5GEncoder
from sionna.phy.mapping import Demapper, Mapper

from .delay import POLAR_LIST_SIZE
from .physical import BLOCK_LENGTH, CODE_LENGTH, Point, Settings

NUM_SLOTS = 32  # per round, each with one code block
traces: dict[tuple, int] = {}  # how often each compiled stage was traced, by signature


def traced(*signature) -> None:
    """Called while a stage is being traced."""
    traces[signature] = traces.get(signature, 0) + 1


@lru_cache(maxsize=256)
def _encoder(code: str, num_info_bits: int) -> LDPC5GEncoder | Polar5GEncoder:
    return (LDPC5GEncoder if code == "ldpc" else Polar5GEncoder)(num_info_bits, BLOCK_LENGTH[code])


@cache
def _places(code: str) -> np.ndarray:
    """Where in the slot's coded bits a block's bits are, [BLOCK_LENGTH]."""
    return np.random.default_rng(0).permutation(CODE_LENGTH)[: BLOCK_LENGTH[code]] if code == "polar" else np.arange(CODE_LENGTH)


@lru_cache(maxsize=256)
def code_blocks(code: str, num_info_bits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Information bits [S, k] and the slot's coded bits [S, n], int8."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (NUM_SLOTS, num_info_bits), dtype=np.int8)
    if code == "none":
        return bits, bits
    coded = rng.integers(0, 2, (NUM_SLOTS, CODE_LENGTH), dtype=np.int8)
    coded[:, _places(code)] = _encoder(code, num_info_bits)(tf.cast(bits, tf.float32)).numpy()
    return bits, coded


def interleave(coded: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """Bit i n / Q + j goes to place i + j Q (TS 38.212 5.4.2.2), [S, n]."""
    return coded.reshape(len(coded), bits_per_symbol, -1).transpose(0, 2, 1).reshape(len(coded), -1)


def deinterleave(places: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """The inverse of `interleave`, [S, n]."""
    return places.reshape(len(places), -1, bits_per_symbol).transpose(0, 2, 1).reshape(len(places), -1)


@cache
def constellation(bits_per_symbol: int) -> np.ndarray:
    """The Gray-mapped points by label, most significant bit first, [2^m] complex64."""
    labels = (np.arange(2**bits_per_symbol)[:, None] >> np.arange(bits_per_symbol)[::-1]) & 1
    return Mapper("qam", bits_per_symbol)(tf.cast(labels, tf.float32)).numpy()[:, 0]


@lru_cache(maxsize=256)
def symbols(code: str, num_info_bits: int, bits_per_symbol: int, num_layers: int, seed: int) -> np.ndarray:
    """Gray-mapped symbols of unit energy, [L, S, N] complex64: consecutive symbols go to consecutive layers."""
    coded = interleave(code_blocks(code, num_info_bits, seed)[1], bits_per_symbol)
    x = Mapper("qam", bits_per_symbol)(tf.cast(coded, tf.float32)).numpy()
    return np.ascontiguousarray(x.reshape(NUM_SLOTS, -1, num_layers).transpose(2, 0, 1))


@lru_cache(maxsize=4)
def _demapper(bits_per_dimension: int):
    demapper = Demapper("app", "pam", bits_per_dimension)

    @tf.function(jit_compile=True)
    def run(y, no):
        traced("demap", 2 * bits_per_dimension)
        return demapper(tf.complex(y, tf.zeros_like(y)), no)

    return run


def demap(x_hat: np.ndarray, no_eff: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """Exact logits of Gray QAM, [S, n]. Real and imaginary part are two PAM of half the energy with alternating bits."""
    y = np.sqrt(np.float32(2)) * np.ascontiguousarray(x_hat).view(np.float32).reshape(-1, 2)
    no = np.repeat(2 * np.maximum(np.ascontiguousarray(no_eff).reshape(-1, 1), np.float32(1e-9)), 2, axis=1)
    logits = _demapper(bits_per_symbol // 2)(tf.constant(y), tf.constant(no)).numpy()
    return logits.reshape(-1, 2, bits_per_symbol // 2).transpose(0, 2, 1).reshape(NUM_SLOTS, CODE_LENGTH)


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
def _ldpc_decoder(num_info_bits: int, check_node: str):
    decoder = EarlyStop(_encoder("ldpc", num_info_bits), cn_update=check_node, hard_out=True)

    @tf.function(jit_compile=True)
    def run(logits, num_iter):
        traced("decode", num_info_bits)
        return decoder(logits, num_iter=num_iter)

    return run


@lru_cache(maxsize=64)
def _polar_decoder(num_info_bits: int) -> Polar5GDecoder:
    """Successive cancellation, and where the CRC then fails the list decoder. It does not run under XLA."""
    return Polar5GDecoder(_encoder("polar", num_info_bits), dec_type="hybSCL", list_size=POLAR_LIST_SIZE)


def decode(point: Point, logits: np.ndarray, settings: Settings) -> np.ndarray:
    """Decided information bits [S, k] of logits [S, n]; without a code, of the coded bits themselves."""
    if point.code == "none":
        return logits > 0
    if point.code == "polar":
        return _polar_decoder(point.num_info_bits)(tf.constant(logits[:, _places("polar")])).numpy() > 0.5
    run = _ldpc_decoder(point.num_info_bits, settings.check_node)
    return run(tf.constant(logits), tf.constant(point.decoder_iterations)).numpy() > 0.5

"""The stages that Sionna runs: polar codes, K-Best, expectation propagation; and, for
backend="sionna", one in the place of every native stage, which is how those are tested. Importing
this imports TensorFlow, for about ten seconds. Arguments and results as in the native stages.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import tensorflow as tf
from sionna.phy import config
from sionna.phy.channel import RayleighBlockFading
from sionna.phy.channel.tr38901 import CDL, TDL, PanelArray
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.fec.polar import Polar5GDecoder, Polar5GEncoder
from sionna.phy.mapping import Demapper, Mapper
from sionna.phy.mimo import EPDetector, KBestDetector
from sionna.phy.mimo.equalization import lmmse_equalizer, zf_equalizer

from ..delay import NUM_EP_ITERATIONS, NUM_SURVIVORS, POLAR_LIST_SIZE
from ..physical import SPEED_OF_LIGHT_MPS, ChannelState, Point
from ..transport import POLAR_LENGTH, num_polar_blocks, polar_info_bits
from .channel import LOS_ANGLE_RAD

# resource elements of a call of a detector: one compiled program for grants of any size
BATCH = 4096
# above it expectation propagation in single precision loses the sign of its logits
MAX_GAIN_DB = 45.0
_CARRIER_HZ = 1e9  # Sionna asks for carrier and speed; only their product counts
traces: dict[tuple, int] = {}  # how often each compiled stage was traced, by signature


def traced(*signature) -> None:
    """Called while a stage is being traced."""
    traces[signature] = traces.get(signature, 0) + 1


# Polar codes


@lru_cache(maxsize=64)
def _polar(num_info_bits: int) -> tuple[Polar5GEncoder, Polar5GDecoder]:
    """Successive cancellation, and where the CRC then fails the list decoder. It does not run under
    XLA.
    """
    encoder = Polar5GEncoder(num_info_bits, POLAR_LENGTH)
    return encoder, Polar5GDecoder(encoder, dec_type="hybSCL", list_size=POLAR_LIST_SIZE)


def polar_blocks(
    point: Point, rng: np.random.Generator, num_slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Information bits [S, blocks k] and coded bits [S, blocks 288] of the slot's polar blocks."""
    num_blocks, k = num_polar_blocks(point.workflow), polar_info_bits(point.code_rate)
    bits = rng.integers(0, 2, (num_slots * num_blocks, k), dtype=np.uint8)
    coded = _polar(k)[0](tf.cast(bits, tf.float32)).numpy().astype(np.uint8)
    return bits.reshape(num_slots, -1), coded.reshape(num_slots, -1)


def decode_polar(point: Point, llr: np.ndarray) -> np.ndarray:
    """Decided information bits [S, blocks k] of a slot's LLRs [S, G]."""
    num_blocks, k = num_polar_blocks(point.workflow), polar_info_bits(point.code_rate)
    logits = -llr[:, : num_blocks * POLAR_LENGTH].reshape(-1, POLAR_LENGTH)
    return _polar(k)[1](tf.constant(logits)).numpy().reshape(len(llr), -1) > 0.5


# LDPC code: backend="sionna"


@lru_cache(maxsize=64)
def _ldpc(point: Point, num_sent: int) -> tuple[LDPC5GEncoder, LDPC5GDecoder]:
    code = point.segmentation
    encoder = LDPC5GEncoder(
        code.info, num_sent, num_bits_per_symbol=point.bits_per_symbol, bg=f"bg{code.base_graph}"
    )
    return encoder, LDPC5GDecoder(
        encoder, cn_update="offset-minsum", hard_out=True, num_iter=2 * point.decoder_iterations
    )


def encode_ldpc(point: Point, bits: np.ndarray) -> np.ndarray:
    """Coded bits [S, G] in the order of transmission, of code blocks [S, C, K']."""
    parts = [
        _ldpc(point, sent)[0](tf.cast(bits[:, i], tf.float32)).numpy()
        for i, sent in enumerate(point.segmentation.sent)
    ]
    return np.concatenate(parts, axis=1).astype(np.uint8)


def decode_ldpc(point: Point, llr: np.ndarray) -> np.ndarray:
    """Decided bits [S, C K'] of one transmission. Flooding, twice as many iterations: a layered one
    does as much as two.
    """
    cuts = np.cumsum(point.segmentation.sent)[:-1]
    parts = [
        _ldpc(point, part.shape[1])[1](tf.constant(-part)).numpy()
        for part in np.split(llr, cuts, axis=1)
    ]
    return np.concatenate(parts, axis=1) > 0.5


# Channel: backend="sionna"


@lru_cache(maxsize=64)
def _model(state: ChannelState) -> TDL | CDL:
    speed_mps = state.doppler_hz * SPEED_OF_LIGHT_MPS / _CARRIER_HZ
    letter, delay_spread_s = state.channel[-1].upper(), state.delay_spread_ns * 1e-9
    if state.channel.startswith("tdl"):
        return TDL(
            letter,
            delay_spread_s,
            _CARRIER_HZ,
            min_speed=speed_mps,
            los_angle_of_arrival=LOS_ANGLE_RAD,
            num_rx_ant=state.num_rx,
            num_tx_ant=state.num_tx,
        )
    rx, tx = (
        PanelArray(
            num_rows_per_panel=1,
            num_cols_per_panel=num_ant,
            polarization="single",
            polarization_type="V",
            antenna_pattern="omni",
            carrier_frequency=_CARRIER_HZ,
        )
        for num_ant in (state.num_rx, state.num_tx)
    )
    return CDL(letter, delay_spread_s, _CARRIER_HZ, rx, tx, "downlink", min_speed=speed_mps)


def realise(
    state: ChannelState,
    num_slots: int,
    seed: int,
    times_s: tuple[float, ...],
    frequencies_hz: tuple[float, ...],
) -> np.ndarray:
    """As twin.chain.channel.realise, drawn by Sionna; uncorrelated antennas, and times on the grid
    of the first two.

    Raises ValueError for what Sionna's models do not have.
    """
    if state.antenna_correlation != "low" or (
        state.channel[:3] == "tdl" and state.channel[-1] in "de" and state.num_rx * state.num_tx > 1
    ):
        raise ValueError(
            f"backend='sionna': {state.channel} has no antenna correlation and no array response in"
            " Sionna"
        )
    shape = (num_slots, state.num_rx, state.num_tx, len(times_s), len(frequencies_hz))
    config.seed = seed
    if state.channel == "awgn":
        return np.ones(shape, np.complex64)
    if state.channel == "rayleigh":
        # [S, 1, rx, 1, tx, 1, 1]
        a, _ = RayleighBlockFading(1, state.num_rx, 1, state.num_tx)(num_slots, 1)
        return np.ascontiguousarray(np.broadcast_to(a.numpy()[:, 0, :, 0, :, :, :], shape))
    step_s = times_s[1] - times_s[0]
    at = np.round((np.array(times_s) - times_s[0]) / step_s).astype(int)
    # [S, 1, rx, 1, tx, paths, time], [S, 1, 1, paths]
    a, tau = _model(state)(num_slots, int(at[-1]) + 1, 1 / step_s)
    a, tau = a.numpy()[:, 0, :, 0][..., at], tau.numpy()[0, 0, 0].astype(float)
    transform = np.exp(-2j * np.pi * np.outer(tau, frequencies_hz)).astype(np.complex64)
    return np.ascontiguousarray(a.swapaxes(-1, -2)) @ transform


# Detection


def map_symbols(coded: np.ndarray, bits_per_symbol: int) -> np.ndarray:
    """Symbols [S, G / m] of the coded bits in the order of transmission."""
    return Mapper("qam", bits_per_symbol)(tf.cast(coded, tf.float32)).numpy()


def receive(
    y: np.ndarray,
    g: np.ndarray,
    variance: np.ndarray,
    symbols: np.ndarray,
    method: str,
    bits_per_symbol: int,
) -> np.ndarray:
    """As twin.chain.detection.receive, with kbest and ep besides."""
    num_slots, num_layers = len(y), g.shape[2]
    # [E, R, L]
    g = np.ascontiguousarray(g[:, :, :, symbols].transpose(0, 3, 4, 1, 2)).reshape(
        -1, g.shape[1], num_layers
    )
    y = np.ascontiguousarray(y.transpose(0, 2, 3, 1)).reshape(len(g), -1)  # [E, R]
    noise = np.repeat(
        variance[:, symbols].reshape(-1), len(g) // (num_slots * len(symbols))
    ).astype(np.float32)
    g = g * np.float32(num_layers**-0.5)
    if method in ("kbest", "ep"):
        logits = _nonlinear(y, g, noise, method, bits_per_symbol)
    else:
        if method == "mrc" and num_layers > 1:
            raise ValueError("backend='sionna': Sionna has no matched filter for several layers")
        s = noise[:, None, None] * np.eye(y.shape[1], dtype=np.complex64)
        x_hat, no = (lmmse_equalizer if method == "lmmse" else zf_equalizer)(y, g, s)
        logits = Demapper("app", "qam", bits_per_symbol)(x_hat, tf.maximum(no, 1e-9)).numpy()
    return -logits.reshape(num_slots, -1)


def _nonlinear(y, g, noise, method: str, bits_per_symbol: int) -> np.ndarray:
    """Logits [E, L m] of y [E, R] = g [E, R, L] x + noise, BATCH resource elements at a time."""
    num_layers = g.shape[2]
    strongest = np.max(np.sum(np.abs(g) ** 2, axis=1), axis=1)
    y, g = square(y, g, np.maximum(noise, strongest * np.float32(10 ** (-MAX_GAIN_DB / 10))))
    parts = []
    for first in range(0, len(y), BATCH):
        some = slice(first, first + BATCH)
        missing = BATCH - len(y[some])
        padded = (
            np.pad(y[some], ((0, missing), (0, 0))),
            np.pad(g[some], ((0, missing), (0, 0), (0, 0))) + _padding(missing, num_layers),
        )
        try:
            part = _detector(method, num_layers, bits_per_symbol)(*padded)
        # layers that arrive as one: the matrix that EP inverts is singular in single precision
        except tf.errors.InvalidArgumentError:
            part = _detector(method, num_layers, bits_per_symbol, "double")(*padded)
        parts.append(part.numpy().reshape(BATCH, -1)[: BATCH - missing])
    return np.concatenate(parts)


def _padding(missing: int, num_layers: int) -> np.ndarray:
    """The identity for the elements that fill a batch, nothing for the others."""
    eye = np.zeros((BATCH, num_layers, num_layers), np.complex64)
    eye[BATCH - missing :] = np.eye(num_layers)
    return eye


def square(y, g, noise) -> tuple[np.ndarray, np.ndarray]:
    """Sufficient statistics of y = g x + n with unit noise: [E, L] = upper triangular [E, L, L] x +
    n'.

    g^H g / noise = r^H r by Cholesky, y' = r^-H g^H y / noise. So the detectors do not depend on
    the receive antennas.
    """
    size = g.shape[2]
    gram = np.einsum("eri,erj->eij", g.conj(), g) / noise[:, None, None]
    z = np.einsum("eri,er->ei", g.conj(), y) / noise[:, None]
    gram = gram.astype(np.complex128)
    power = np.real(np.einsum("eii->ei", gram))
    # The second is for a layer that hardly arrives: without it the matrices that EP inverts are
    # singular.
    gram += np.maximum(1e-6 * power, 1e-9 * power.max(1, keepdims=True))[:, None, :] * np.eye(size)
    low = np.linalg.cholesky(gram)
    out = np.linalg.solve(low, z[..., None].astype(np.complex128))[..., 0]
    return out.astype(np.complex64), np.ascontiguousarray(low.conj().swapaxes(1, 2)).astype(
        np.complex64
    )


@lru_cache(maxsize=32)
def _detector(name: str, num_layers: int, bits_per_symbol: int, precision: str = "single"):
    """Sionna's detector for [batch, L] = [batch, L, L] x + unit noise, to logits [batch, L, Q]. XLA
    only where it helps.
    """
    if name == "kbest":
        survivors = min(NUM_SURVIVORS, 2 ** (bits_per_symbol * num_layers))
        detector = KBestDetector(
            "bit", num_layers, survivors, "qam", bits_per_symbol, precision=precision
        )
    else:
        detector = EPDetector("bit", bits_per_symbol, l=NUM_EP_ITERATIONS, precision=precision)

    @tf.function(jit_compile=name == "kbest")
    def run(y, g):
        traced(name, num_layers, bits_per_symbol)
        dtype = tf.complex64 if precision == "single" else tf.complex128
        return tf.cast(
            detector(
                tf.cast(y, dtype),
                tf.cast(g, dtype),
                tf.eye(num_layers, batch_shape=[BATCH], dtype=dtype),
            ),
            tf.float32,
        )

    return run

"""DeepRx: a convolutional receiver, from the received grid and its pilots to the logits of all
  bits.

After Honkala, Korpi and Huttunen, "DeepRx: Fully Convolutional Deep Learning Receiver" (IEEE Trans.
Wireless Commun., 2021):
pre-activation residual blocks of depthwise separable 3 x 3 convolutions over time and frequency,
and nested Gray labels, so that one network serves all modulation orders: logits of bits that an
order does not have are not looked at. As in Cammerer et al., "A Neural Receiver for 5G NR
Multi-User MIMO" (2023), it is unrolled: each of a few stages refines the channel of every antenna
with the same weights, combines the antennas, and hands its soft decisions to the next one, to which
all data are pilots then. The first stage starts from interpolated least squares. Norms are over the
channels, so that a grid's result does not depend on others in the batch; convolutions know no
width, so that one set of weights serves every grant. It takes over estimation, detection and
demapping of one spatial layer. Trained by experiments.train_deeprx.

In TensorFlow, which the twin has for Sionna; Sionna itself is not imported. Letters: S slots, R
receive antennas, T = 14 symbols of a slot, D of them with DM-RS, F subcarriers of the grant, C
channels of the network, G coded bits.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

from ..delay import DEEPRX, DEEPRX_FEATURES
from ..physical import Point
from ..spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT
from .estimation import estimate, estimator
from .grid import DMRS_SYMBOLS, comb, data_symbols
from .traces import traced

MAX_BITS = 8
# between neighbours, of QPSK .. 256QAM
HALF_DISTANCE = np.array([1 / 2, 1 / 10, 1 / 42, 1 / 170], np.float32) ** 0.5
# In half distances, by level and order: where the points of a level's two halves are centred, +-8,
# then +-4 about that, ...
CENTRES = np.array([[1, 2, 4, 8], [0, 1, 2, 4], [0, 0, 1, 2], [0, 0, 0, 1]], np.float32)
# resource elements times antennas that the network sees at a time, or one slot
MAX_ELEMENTS = 1 << 15
WEIGHTS = Path(__file__).parents[1] / "weights"


def observe(
    y: np.ndarray, pilots: np.ndarray, variance: float, bits_per_symbol: int
) -> tuple[np.ndarray, ...]:
    """What the network is given of y [S, R, T - D, F], received in the data symbols, and of the
    DM-RS symbols [S, R, D, F]:
    signal and least-squares estimate [S, R, T, F, 2], known symbols [S, T, F], which are data [S,
    T, F], noise variance [S], one-hot modulation order [S, 4]. Real numbers in float32.
    """
    num_slots, num_rx, num_dmrs, num_sc = pilots.shape
    with_pilots, with_data = list(DMRS_SYMBOLS[num_dmrs]), data_symbols(num_dmrs)
    grid = np.empty((num_slots, num_rx, SYMBOLS_PER_SLOT, num_sc), np.complex64)
    grid[:, :, with_pilots], grid[:, :, with_data] = pilots, y
    least_squares = estimator(
        "ls", None, 0, num_sc // SUBCARRIERS_PER_PRB, 0, 1, num_dmrs, 1.0, 1.0
    )
    h, _ = estimate(pilots, [least_squares])
    known, data = np.zeros((2, num_slots, SYMBOLS_PER_SLOT, num_sc), np.float32)
    known[:, with_pilots, :: comb(1)] = np.sqrt(comb(1))
    data[:, with_data] = 1
    order = np.tile(np.eye(4, dtype=np.float32)[bits_per_symbol // 2 - 1], (num_slots, 1))

    def pairs(z):
        return np.ascontiguousarray(z).view(np.float32).reshape(*grid.shape, 2)

    return pairs(grid), pairs(h), known, data, np.full(num_slots, variance, np.float32), order


def initial(size: str, seed: int) -> dict[str, np.ndarray]:
    """Random parameters by name. Every stage corrects nothing to begin with: the receiver is that
    of least squares.
    """
    channels, stages = DEEPRX[size]
    rng = np.random.default_rng(seed)

    def matrix(*shape, fan_in, scale=1.0):
        return (rng.standard_normal(shape) * scale * np.sqrt(2 / fan_in)).astype(np.float32)

    params = {}
    for stage, dilations in enumerate(stages):
        params[f"{stage}.stem.w"] = matrix(DEEPRX_FEATURES, channels, fan_in=DEEPRX_FEATURES)
        params[f"{stage}.stem.b"] = np.zeros(channels, np.float32)
        for layer in range(2 * len(dilations)):
            name = f"{stage}.{layer}"
            params[f"{name}.scale"] = np.ones(channels, np.float32)
            params[f"{name}.depthwise"] = matrix(3, 3, channels, 1, fan_in=9)
            params[f"{name}.w"] = matrix(
                channels, channels, fan_in=channels, scale=0.3 if layer % 2 else 1.0
            )
            params[f"{name}.b"] = np.zeros(channels, np.float32)
        params[f"{stage}.head.w"] = matrix(channels, 3, fan_in=channels, scale=0.01)
        params[f"{stage}.head.b"] = np.array([0, 0, -3], np.float32)
    return params


def network(params: dict, observed: tuple, size: str) -> list:
    """Logits log(P(bit = 1) / P(bit = 0)) [S, T, F, MAX_BITS] after every stage, of what `observe`
    returns.
    """
    y, h, known, data, variance, order = observed
    noise = variance[:, None, None]
    symbol, certainty, logits = known, tf.cast(known > 0, tf.float32), []
    symbol = tf.stack([symbol, tf.zeros_like(symbol)], axis=-1)
    for stage, dilations in enumerate(DEEPRX[size][1]):
        correction = refine(params, stage, dilations, y, h, symbol, certainty, noise)
        h = h + correction[..., :2]
        power = tf.reduce_sum(h * h, axis=(1, 4)) + 1e-6
        # of the channel, as a share of the noise or alone
        error = tf.reduce_mean(tf.exp(correction[..., 2]), axis=1)
        matched = tf.reduce_sum(conjugate_times(h, y), axis=1) / power[..., None]
        spread = (noise + error) / power
        logits.append(demap(matched, spread, order))
        symbol, certainty = soft_symbols(logits[-1], order)
        symbol = data[..., None] * symbol + tf.stack([known, tf.zeros_like(known)], axis=-1)
        certainty = data * certainty + tf.cast(known > 0, tf.float32)
    return logits


def conjugate_times(a, b):
    """a* b of complex numbers as pairs [..., 2]."""
    return tf.stack(
        [
            a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1],
            a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0],
        ],
        axis=-1,
    )


def refine(params, stage, dilations, y, h, symbol, certainty, noise):
    """Correction of every antenna's channel and the logarithm of its remaining error, [S, R, T, F,
    3].
    """
    shape = tf.shape(h)
    symbol, certainty, noise = (
        symbol[:, None],
        certainty[:, None, ..., None],
        noise[:, None, ..., None],
    )
    residual = y - tf.stack(
        [
            h[..., 0] * symbol[..., 0] - h[..., 1] * symbol[..., 1],
            h[..., 0] * symbol[..., 1] + h[..., 1] * symbol[..., 0],
        ],
        axis=-1,
    )
    gradient = conjugate_times(symbol, residual)  # of the squared residual by the channel
    certainty, noise = (
        tf.broadcast_to(v, tf.concat([shape[:-1], [1]], 0))
        for v in (certainty, tf.math.log(noise) / 4)
    )
    x = tf.concat([h, gradient, certainty * gradient, certainty, noise], axis=-1)
    x = tf.reshape(x, tf.concat([[-1], shape[2:-1], [DEEPRX_FEATURES]], 0))

    def dense(x, name):
        return tf.tensordot(x, params[f"{stage}.{name}.w"], 1) + params[f"{stage}.{name}.b"]

    def separable(x, name, dilation):
        x = tf.nn.relu(
            x
            * tf.math.rsqrt(tf.reduce_mean(x * x, axis=-1, keepdims=True) + 1e-6)
            * params[f"{stage}.{name}.scale"]
        )
        x = tf.nn.depthwise_conv2d(
            x,
            params[f"{stage}.{name}.depthwise"],
            [1, 1, 1, 1],
            "SAME",
            dilations=[dilation, dilation],
        )
        return dense(x, name)

    x = dense(x, "stem")
    for block, dilation in enumerate(dilations):
        x = x + separable(separable(x, 2 * block, dilation), 2 * block + 1, dilation)
    return tf.reshape(dense(x, "head"), tf.concat([shape[:-1], [3]], 0))


def demap(symbol, variance, order):
    """Logits [S, T, F, MAX_BITS] of symbols [S, T, F, 2] with errors of this variance [S, T, F].

    Nested Gray labels fold: bit 0 of a dimension is its sign, the next one says on which side of a
    threshold its magnitude lies, and so on. The logits are those of the two nearest points, 4 x
    distance from the border x half distance of points / variance.
    """
    unit, centres = _constellation(order)
    levels, side = [symbol], symbol
    for centre in centres[:-1]:
        side = unit * centre - tf.abs(side)
        levels.append(side)
    return tf.clip_by_value(
        -4 * unit * tf.concat(levels, axis=-1) / variance[..., None], -40.0, 40.0
    )


def soft_symbols(logits, order):
    """Means [S, T, F, 2] of the symbols that independent bits with these logits make, and how
    certain they are, [S, T, F] in 0 .. 1.
    """
    sign = -tf.tanh(logits / 2)  # mean of 1 - 2 bit
    unit, centres = _constellation(order)
    offset = tf.zeros_like(sign[..., :2])
    for level in (3, 2, 1, 0):
        offset = sign[..., 2 * level : 2 * level + 2] * (centres[level] - offset)
    used = tf.repeat(
        tf.concat([tf.cast(centre > 0, tf.float32) for centre in centres], axis=-1), 2, axis=-1
    )
    return unit * offset, tf.reduce_sum(used * sign**2, axis=-1) / tf.reduce_sum(used, axis=-1)


def _constellation(order):
    """Half the distance between neighbours, and CENTRES by level, of one-hot orders [S, 4]: tensors
    [S, 1, 1, 1].
    """
    unit, *centres = (
        tf.matmul(order, row[:, None])[:, None, None] for row in (HALF_DISTANCE, *CENTRES)
    )
    return unit, centres


@cache
def _receiver(size: str):
    """What `observe` returns to the last stage's logits [S, T, F, MAX_BITS]: one graph for any
    slots, antennas and width.
    """
    params = {
        name: tf.constant(value)
        for name, value in load_file(WEIGHTS / f"{size}.safetensors").items()
    }
    grid = [None, SYMBOLS_PER_SLOT, None]
    shapes = [None, *grid, 2], [None, *grid, 2], grid, grid, [None], [None, 4]

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec(shape, tf.float32) for shape in shapes]
    )
    def run(*observed):
        traced(size)
        return network(params, observed, size)[-1]

    return run


def llr(point: Point, y: np.ndarray, pilots: np.ndarray, variance: float) -> np.ndarray:
    """LLRs log(P(bit = 0) / P(bit = 1)) [S, G] float32 in the order of transmission, subcarrier by
    subcarrier and symbol by symbol, of what was received in the data symbols, y [S, R, T - D, F],
    and in the DM-RS symbols [S, R, D, F].
    """
    num_slots, num_rx, _, num_sc = y.shape
    run, data, m = _receiver(point.detector), data_symbols(point.num_dmrs), point.bits_per_symbol
    out = np.empty((num_slots, len(data) * num_sc * m), np.float32)
    step = max(1, MAX_ELEMENTS // (num_rx * SYMBOLS_PER_SLOT * num_sc))
    for first in range(0, num_slots, step):
        some = slice(first, first + step)
        logits = run(*map(tf.constant, observe(y[some], pilots[some], variance, m))).numpy()
        out[some] = -logits[:, data, :, :m].reshape(len(logits), -1)
    return out

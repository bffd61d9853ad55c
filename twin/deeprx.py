"""DeepRx: a convolutional receiver, from the received grid and its pilots to the logits of all bits.

After Honkala, Korpi and Huttunen, "DeepRx: Fully Convolutional Deep Learning Receiver" (IEEE Trans. Wireless Commun., 2021):
pre-activation residual blocks of depthwise separable 3 x 3 convolutions over time and frequency, and nested Gray labels, so that
one network serves all modulation orders: logits of bits that an order does not have are not looked at. As in Cammerer et al., "A
Neural Receiver for 5G NR Multi-User MIMO" (2023), it is unrolled: each of a few stages refines the channel of every antenna with the same
weights, combines the antennas, and hands its soft decisions to the next one, to which all data are pilots then. The first stage
starts from interpolated least squares. Norms are over the channels, so that a grid's result does not depend on others in
the batch. It takes over estimation, detection and demapping of one spatial layer. Trained by experiments.train_deeprx.

In TensorFlow, since the workers that run it have it for Sionna. Letters: S slots, E resource elements of the slice (symbol by
symbol), R receive antennas, T symbols, F subcarriers, C channels of the network.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

from .coding import traced
from .delay import DEEPRX, DEEPRX_FEATURES
from .estimation import interpolation
from .grid import DMRS_SYMBOLS, NUM_SC, comb, pilot_index
from .spec import SYMBOLS_PER_SLOT

MAX_BITS = 8
HALF_DISTANCE = np.array([1 / 2, 1 / 10, 1 / 42, 1 / 170], np.float32) ** 0.5  # between neighbours, of QPSK .. 256QAM
# In half distances, by level and order: where the points of a level's two halves are centred, +-8, then +-4 about that, ...
CENTRES = np.array([[1, 2, 4, 8], [0, 1, 2, 4], [0, 0, 1, 2], [0, 0, 0, 1]], np.float32)
WEIGHTS = Path(__file__).with_name("weights")


def transmitted(data: np.ndarray, num_dmrs: int) -> np.ndarray:
    """Symbols [S, E] with the pilots of one layer in place of the data of the DM-RS symbols."""
    sent = data.copy().reshape(len(data), SYMBOLS_PER_SLOT, NUM_SC)
    sent[:, list(DMRS_SYMBOLS[num_dmrs])] = 0
    sent = sent.reshape(data.shape)
    sent[:, pilot_index(0, 1, num_dmrs)] = np.sqrt(comb(1))
    return sent


@cache
def _pilots(num_dmrs: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the interpolation from the pilots to every resource element [E, pilots], and which ones are data [E]."""
    everywhere = np.arange(SYMBOLS_PER_SLOT * NUM_SC)
    weights = interpolation(pilot_index(0, 1, num_dmrs), everywhere, nearest=False).astype(np.float32)
    return weights, ~np.isin(everywhere // NUM_SC, DMRS_SYMBOLS[num_dmrs])


def observe(y: np.ndarray, variance: float, num_dmrs: int, bits_per_symbol: int) -> tuple[np.ndarray, ...]:
    """What the network is given of y [R, S, E]: signal and least-squares estimate [S, R, T, F, 2], known symbols [S, T, F],
    which are data [S, T, F], noise variance [S], one-hot modulation order [S, 4]. Real numbers in float32."""
    weights, data = _pilots(num_dmrs)
    h = y[..., pilot_index(0, 1, num_dmrs)] / np.sqrt(np.float32(comb(1))) @ weights.T
    num_slots, grid = y.shape[1], (SYMBOLS_PER_SLOT, NUM_SC)
    known = np.real(transmitted(np.zeros((num_slots, data.size), np.complex64), num_dmrs)).astype(np.float32)

    def pairs(z):  # [R, S, E] to [S, R, T, F, 2]
        return np.ascontiguousarray(z.swapaxes(0, 1)).astype(np.complex64).view(np.float32).reshape(num_slots, len(y), *grid, 2)

    order = np.tile(np.eye(4, dtype=np.float32)[bits_per_symbol // 2 - 1], (num_slots, 1))
    data = np.tile(data.astype(np.float32), (num_slots, 1))
    return pairs(y), pairs(h), known.reshape(-1, *grid), data.reshape(-1, *grid), np.full(num_slots, variance, np.float32), order


def initial(size: str, seed: int) -> dict[str, np.ndarray]:
    """Random parameters by name. Every stage corrects nothing to begin with: the receiver is that of least squares."""
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
            params[f"{name}.w"] = matrix(channels, channels, fan_in=channels, scale=0.3 if layer % 2 else 1.0)
            params[f"{name}.b"] = np.zeros(channels, np.float32)
        params[f"{stage}.head.w"] = matrix(channels, 3, fan_in=channels, scale=0.01)
        params[f"{stage}.head.b"] = np.array([0, 0, -3], np.float32)
    return params


def network(params: dict, observed: tuple, size: str) -> list:
    """Logits log(P(bit = 1) / P(bit = 0)) [S, T, F, MAX_BITS] after every stage, of what `observe` returns."""
    y, h, known, data, variance, order = observed
    noise = variance[:, None, None]
    symbol, certainty, logits = known, tf.cast(known > 0, tf.float32), []
    symbol = tf.stack([symbol, tf.zeros_like(symbol)], axis=-1)
    for stage, dilations in enumerate(DEEPRX[size][1]):
        correction = refine(params, stage, dilations, y, h, symbol, certainty, noise)
        h = h + correction[..., :2]
        power = tf.reduce_sum(h * h, axis=(1, 4)) + 1e-6
        error = tf.reduce_mean(tf.exp(correction[..., 2]), axis=1)  # of the channel, as a share of the noise or alone
        matched = tf.reduce_sum(conjugate_times(h, y), axis=1) / power[..., None]
        spread = (noise + error) / power
        logits.append(demap(matched, spread, order))
        symbol, certainty = soft_symbols(logits[-1], order)
        symbol = data[..., None] * symbol + tf.stack([known, tf.zeros_like(known)], axis=-1)
        certainty = data * certainty + tf.cast(known > 0, tf.float32)
    return logits


def conjugate_times(a, b):
    """a* b of complex numbers as pairs [..., 2]."""
    return tf.stack([a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1], a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]], axis=-1)


def refine(params, stage, dilations, y, h, symbol, certainty, noise):
    """Correction of every antenna's channel and the logarithm of its remaining error, [S, R, T, F, 3]."""
    symbol, certainty, noise = symbol[:, None], certainty[:, None, ..., None], tf.broadcast_to(noise[:, None, ..., None], [*h.shape[:-1], 1])
    residual = y - tf.stack([h[..., 0] * symbol[..., 0] - h[..., 1] * symbol[..., 1], h[..., 0] * symbol[..., 1] + h[..., 1] * symbol[..., 0]], axis=-1)
    gradient = conjugate_times(tf.broadcast_to(symbol, h.shape), residual)  # of the squared residual by the channel
    certainty = tf.broadcast_to(certainty, [*h.shape[:-1], 1])
    x = tf.concat([h, gradient, certainty * gradient, certainty, tf.math.log(noise) / 4], axis=-1)
    x = tf.reshape(x, [-1, *x.shape[2:]])

    def dense(x, name):
        w = params[f"{stage}.{name}.w"]
        return tf.reshape(tf.reshape(x, [-1, w.shape[0]]) @ w, [*x.shape[:-1], w.shape[1]]) + params[f"{stage}.{name}.b"]

    def separable(x, name, dilation):
        x = tf.nn.relu(x * tf.math.rsqrt(tf.reduce_mean(x * x, axis=-1, keepdims=True) + 1e-6) * params[f"{stage}.{name}.scale"])
        x = tf.nn.depthwise_conv2d(x, params[f"{stage}.{name}.depthwise"], [1, 1, 1, 1], "SAME", dilations=[dilation, dilation])
        return dense(x, name)

    x = dense(x, "stem")
    for block, dilation in enumerate(dilations):
        x = x + separable(separable(x, 2 * block, dilation), 2 * block + 1, dilation)
    return tf.reshape(dense(x, "head"), [*h.shape[:-1], 3])


def demap(symbol, variance, order):
    """Logits [S, T, F, MAX_BITS] of symbols [S, T, F, 2] with errors of this variance [S, T, F].

    Nested Gray labels fold: bit 0 of a dimension is its sign, the next one says on which side of a threshold its magnitude lies, and
    so on. The logits are those of the two nearest points, 4 x distance from the border x half distance of points / variance.
    """
    unit, centres = _constellation(order)
    levels, side = [symbol], symbol
    for centre in centres[:-1]:
        side = unit * centre - tf.abs(side)
        levels.append(side)
    return tf.clip_by_value(-4 * unit * tf.concat(levels, axis=-1) / variance[..., None], -40.0, 40.0)


def soft_symbols(logits, order):
    """Means [S, T, F, 2] of the symbols that independent bits with these logits make, and how certain they are, [S, T, F] in 0 .. 1."""
    sign = -tf.tanh(logits / 2)  # mean of 1 - 2 bit
    unit, centres = _constellation(order)
    offset = tf.zeros_like(sign[..., :2])
    for level in (3, 2, 1, 0):
        offset = sign[..., 2 * level : 2 * level + 2] * (centres[level] - offset)
    used = tf.repeat(tf.concat([tf.cast(centre > 0, tf.float32) for centre in centres], axis=-1), 2, axis=-1)
    return unit * offset, tf.reduce_sum(used * sign**2, axis=-1) / tf.reduce_sum(used, axis=-1)


def _constellation(order):
    """Half the distance between neighbours, and CENTRES by level, of one-hot orders [S, 4]: tensors [S, 1, 1, 1]."""
    unit, *centres = (tf.matmul(order, row[:, None])[:, None, None] for row in (HALF_DISTANCE, *CENTRES))
    return unit, centres


@cache
def _receiver(size: str, num_rx: int):
    params = {name: tf.constant(value) for name, value in load_file(WEIGHTS / f"{size}.safetensors").items()}

    @tf.function(autograph=False)
    def run(*observed):
        traced(size, num_rx)
        return network(params, observed, size)[-1]

    return run


def receive(y: np.ndarray, variance: float, num_dmrs: int, bits_per_symbol: int, size: str) -> np.ndarray:
    """Logits [S, E, bits_per_symbol] of what was received, y [R, S, E]."""
    logits = _receiver(size, len(y))(*map(tf.constant, observe(y, variance, num_dmrs, bits_per_symbol))).numpy()
    return logits.reshape(*y.shape[1:], MAX_BITS)[..., :bits_per_symbol]

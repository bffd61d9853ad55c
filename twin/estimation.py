"""Channel estimation as one linear map from pilots to data resource elements, one matrix per layer."""

from __future__ import annotations

import numpy as np

from .channel import correlation
from .grid import NUM_SC, comb, data_index, pilot_index
from .physical import ChannelState
from .spec import SYMBOLS_PER_SLOT


def interpolation(pilots: np.ndarray, data: np.ndarray, nearest: bool) -> np.ndarray:
    """Weights [num_data, num_pilots] of linear (or nearest) interpolation in frequency, then in time.

    Outside the outermost pilots the estimate is held constant.
    """
    def weights(at, knots):
        dense = np.stack([np.interp(at, knots, row) for row in np.eye(len(knots))], axis=1)
        return np.eye(len(knots))[dense.argmax(1)] if nearest else dense

    symbols, carriers = np.unique(pilots // NUM_SC), np.unique(pilots % NUM_SC)
    in_time, in_frequency = weights(data // NUM_SC, symbols), weights(data % NUM_SC, carriers)
    return (in_time[:, :, None] * in_frequency[:, None, :]).reshape(len(data), len(pilots))


def wiener(pilots, data, state: ChannelState, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights R_dp (R_pp + noise I)^-1 [num_data, num_pilots] and error variance 1 - diag(W R_pd) [num_data].

    The linear minimum mean square error estimate for the channel's own correlations; `noise` is the noise variance of a
    pilot observation relative to the channel's power 1.
    """
    in_time, in_frequency = correlation(state)

    def covariance(a, b):
        dt = np.subtract.outer(a // NUM_SC, b // NUM_SC) + SYMBOLS_PER_SLOT - 1
        df = np.subtract.outer(a % NUM_SC, b % NUM_SC) + NUM_SC - 1
        return sum(t[dt] * f[df] for t, f in zip(in_time, in_frequency))

    r_pp, r_dp = covariance(pilots, pilots), covariance(data, pilots)
    weights = np.linalg.solve((r_pp + noise * np.eye(len(pilots))).T, r_dp.T).T
    return weights, np.clip(1 - np.real(np.sum(weights * r_dp.conj(), axis=1)), 0, None)


def estimator(
    state: ChannelState, num_dmrs: int, method: str, noise: float, gains: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The estimator of every layer: weights [L, num_data, num_pilots] complex64, error variance [L, num_data] float32.

    The data elements are those of QPSK; higher orders use the first of them. `noise` is the noise variance per resource
    element relative to a transmitted power of 1, `gains` the mean powers of the layers' channels. Errors are in units of
    the layer's channel without its share 1 / L of the power. What a receiver that only interpolates knows of its error is
    the noise.
    """
    num_layers = state.num_layers
    data, noise = data_index(2, num_layers), noise * num_layers / comb(num_layers)
    rows = []
    for layer, gain in enumerate(gains):
        pilots = pilot_index(layer, num_layers, num_dmrs)
        if method == "lmmse":
            weights, error = wiener(pilots, data, state, noise / gain)
            rows.append((weights, gain * error))
        else:
            weights = interpolation(pilots, data, nearest=method == "ls-nearest")
            rows.append((weights, noise * np.sum(weights**2, axis=1)))
    weights, errors = zip(*rows)
    return np.stack(weights).astype(np.complex64), np.stack(errors).astype(np.float32)

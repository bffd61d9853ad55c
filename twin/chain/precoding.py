"""Precoding from what the transmitter knows: estimates of past slots, taken as they are (svd) or
carried forward (deeptx).

The transmitter sounds the reciprocal uplink once a slot. When a slot begins, the latest estimate is
CSI_AGE slots old, so that a moving terminal's channel has turned away from it. DeepTx predicts the
channel in the middle of the slot from the last CSI_SLOTS estimates, after Huttunen, Korpi and
Honkala, "DeepTx: Deep Learning Beamforming with Channel Prediction" (IEEE Trans. Wireless Commun.,
2023): here a network reads the estimates' autocorrelation, which tells the Doppler spectrum, and
answers with the weights of a linear prediction. So the prediction turns and scales with the
channel, and serves any number of antennas. Numpy alone; trained by experiments.train_deeptx.

Letters: S slots, F sounded subcarriers of the grant, P past estimates.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ..delay import CSI_SLOTS

CSI_AGE = 3  # slots
SOUNDING_COMB = 4  # every so many subcarriers are sounded, and an estimate averages over as many
# before the slot at hand, oldest first
PAST_SLOTS = tuple(CSI_AGE + slot for slot in range(CSI_SLOTS))[::-1]
HIDDEN = 64
WEIGHTS = Path(__file__).parents[1] / "weights" / "deeptx.safetensors"


def sounded(h: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """Noisy estimates [rx, tx, S, P, F] of past channels h [S, rx, tx, P, all subcarriers], as good
    as the link's SNR makes them:
    an estimate averages over the SOUNDING_COMB subcarriers that it stands for.
    """
    h = h[..., SOUNDING_COMB // 2 :: SOUNDING_COMB].transpose(1, 2, 0, 3, 4)
    noise = (
        np.random.default_rng([seed, 2])
        .standard_normal((*h.shape, 2), dtype=np.float32)
        .view(np.complex64)[..., 0]
    )
    return h + noise * np.float32(np.sqrt(0.5 * 10 ** (-snr_db / 10) / SOUNDING_COMB))


def autocorrelation(past: np.ndarray) -> np.ndarray:
    """Of estimates [rx, tx, S, P, F] over 1 .. P - 1 slots, relative to their power, real and
    imaginary parts: [S, 2 (P - 1)].
    """
    power = np.mean(np.abs(past) ** 2, axis=(0, 1, 3, 4))
    lags = [
        np.mean(past[..., k:, :] * past[..., :-k, :].conj(), axis=(0, 1, 3, 4)) / power
        for k in range(1, CSI_SLOTS)
    ]
    return np.concatenate([np.real(lags), np.imag(lags)]).T.astype(np.float32)


def weights(params: dict, x):
    """Prediction weights, real parts then imaginary parts [S, 2 P], of autocorrelations x [S, 2 (P
    - 1)]: three dense layers.
    """
    for layer in range(3):
        x = x @ params[f"dense{layer}.w"] + params[f"dense{layer}.b"]
        x = (x + abs(x)) / 2 if layer < 2 else x  # relu, of numpy and of TensorFlow alike
    return x


@cache
def _params() -> dict[str, np.ndarray]:
    return load_file(WEIGHTS)


def predict(past: np.ndarray) -> np.ndarray:
    """The channel in the middle of the slot, [rx, tx, S, F], from estimates [rx, tx, S, P, F]."""
    w = weights(_params(), autocorrelation(past))
    return np.einsum(
        "sp,rispf->risf", w[:, :CSI_SLOTS] + 1j * w[:, CSI_SLOTS:], past, optimize=True
    ).astype(np.complex64)


def directions(past: np.ndarray, num_layers: int, precoder: str) -> np.ndarray:
    """The num_layers strongest right singular directions of what is known of the channel, [S, tx,
    L], from estimates [rx, tx, S, P, F].

    One matrix for slot and grant, from the covariance over the sounded subcarriers. Orthonormal
    columns, so that the total power does not change.
    """
    known = predict(past) if precoder == "deeptx" else past[..., -1, :]
    covariance = np.einsum("risf,rjsf->sij", known.conj(), known, optimize=True)
    return np.linalg.eigh(covariance)[1][..., ::-1][..., :num_layers].astype(np.complex64)

"""Separation of the layers. Letters as in link.py: S slots, N resource elements, L layers."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import tensorflow as tf
from sionna.phy.mimo import EPDetector, KBestDetector

from .coding import NUM_SLOTS, demap, traced
from .delay import NUM_SURVIVORS

NUM_EP_ITERATIONS = 5


def detect(y, g, noise, detector: str, bits_per_symbol: int) -> np.ndarray:
    """Logits of the coded bits [S, n], from y [rx, S, N], channels g [rx, L, S, N] and noise variances [S, N]."""
    if detector in ("kbest", "ep"):
        y, g = _square(y, g, noise)
        run = _detector(detector, len(y), bits_per_symbol)
        logits = run(tf.constant(y.reshape(len(y), -1).T), tf.constant(np.moveaxis(g.reshape(*g.shape[:2], -1), -1, 0))).numpy()
        return logits.reshape(NUM_SLOTS, -1)
    x_hat, no_eff = matched(y, g, noise) if detector == "mrc" else linear(y, g, noise, lmmse=detector == "lmmse")
    return demap(x_hat.transpose(1, 2, 0), no_eff.transpose(1, 2, 0), bits_per_symbol)


def _square(y, g, noise) -> tuple[np.ndarray, np.ndarray]:
    """Sufficient statistics of y = g x + n with unit noise: [L, ...] = upper triangular [L, L, ...] x + n'.

    g^H g / noise = r^H r by Cholesky, y' = r^-H g^H y / noise. So the detectors do not depend on the receive antennas.
    """
    gram = np.einsum("ri...,rj...->ij...", g.conj(), g) / noise
    z = np.einsum("ri...,r...->i...", g.conj(), y) / noise
    size = len(gram)
    r = np.zeros_like(gram)
    for i in range(size):
        pivot = np.real(gram[i, i]) - np.sum(np.abs(r[:i, i]) ** 2, axis=0)
        r[i, i] = np.sqrt(np.maximum(pivot, np.float32(1e-6) * np.real(gram[i, i])))
        for j in range(i + 1, size):
            r[i, j] = (gram[i, j] - np.sum(r[:i, i].conj() * r[:i, j], axis=0)) / r[i, i]
    out = np.zeros_like(z)
    for i in range(size):
        out[i] = (z[i] - np.sum(r[:i, i].conj() * out[:i], axis=0)) / r[i, i]
    return out, r


@lru_cache(maxsize=32)
def _detector(name: str, num_layers: int, bits_per_symbol: int):
    """Sionna's detector for [batch, L] = [batch, L, L] x + unit noise, to logits [batch, L, Q]. XLA only where it helps."""
    if name == "kbest":
        survivors = min(NUM_SURVIVORS, 2 ** (bits_per_symbol * num_layers))
        detector = KBestDetector("bit", num_layers, survivors, "qam", bits_per_symbol)
    else:
        detector = EPDetector("bit", bits_per_symbol, l=NUM_EP_ITERATIONS)

    @tf.function(jit_compile=name == "kbest")
    def run(y, g):
        traced(name, num_layers, bits_per_symbol)
        return detector(y, g, tf.eye(num_layers, batch_shape=[y.shape[0]], dtype=tf.complex64))

    return run


def matched(y, g, noise) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-ratio combining of every layer by itself, the others taken for noise. Arguments and result as in `linear`."""
    gram = np.einsum("ri...,rj...->ij...", g.conj(), g)
    power = np.maximum(np.real(np.einsum("ii...->i...", gram)), np.float32(1e-20))
    interference = np.sum(np.abs(gram) ** 2, axis=1) - power**2
    return np.einsum("ri...,r...->i...", g.conj(), y) / power, (noise + np.maximum(interference, 0) / power) / power


def linear(y, g, noise, lmmse: bool) -> tuple[np.ndarray, np.ndarray]:
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

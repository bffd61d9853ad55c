"""Channel estimation from DM-RS: a filter over frequency in every pilot symbol, then one over time.
One pair a layer.

ls-nearest, ls: the nearest pilot, or linear interpolation; outside the outermost pilots the
estimate is held.
lmmse: the Wiener filter for the worst statistics that a receiver has to expect, which it need not
  measure: a flat power delay profile as long as the cyclic prefix (Edfors et al., 1998), which
  begins an eighth of it before the first tap, and a flat Doppler spectrum up to the edge of the
  terminal's speed class; its noise variance is measured on every slot, from what the filter takes
  away from the pilots.
genie: the Wiener filter for the channel's own correlations, which no receiver is told.

Every method tells the detector how large it takes its error to be: least squares knows of the
noise, not of speed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..delay import WIENER_TAPS
from ..memory import remember
from ..physical import ChannelState, Point
from ..spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT, slot_ms
from .channel import correlation, residual_interference
from .grid import DMRS_SYMBOLS, comb, pilot_carriers

# at 1 kHz: divide by the subcarrier spacing in kHz (TS 38.211 5.3.1)
CYCLIC_PREFIX_S = 144 / 2048 * 1e-3
DOPPLER_CLASSES_HZ = (10.0, 40.0, 160.0, 640.0, 2560.0, 30_000.0)  # upper edges
# of the cyclic prefix: a first tap on the edge of the profile would lose half of its power to the
# filter
EARLY = 1 / 8
WIENER = ("lmmse", "genie")
CLASS_DB = 3.0  # step of the noise variances that an lmmse filter is made for


@dataclass(frozen=True)
class Filter:
    """Of one layer. in_frequency [F, P] complex64; in_time [14, D] float32 or complex64.

    error: error variance by symbol [14] float32, as the method takes it to be, of a channel of
      power `gain`
    residual: share of a pilot's noise variance that in_frequency takes away at the pilots
      themselves
    """

    in_frequency: np.ndarray
    in_time: np.ndarray
    error: np.ndarray
    residual: float


def _held(at: np.ndarray, knots: np.ndarray, nearest: bool) -> np.ndarray:
    """Weights [at, knots] of linear or nearest interpolation, held outside the knots."""
    dense = np.stack([np.interp(at, knots, row) for row in np.eye(len(knots))], axis=1)
    return np.eye(len(knots))[dense.argmax(1)] if nearest else dense


def statistics(
    method: str, state: ChannelState, scs_khz: int, lags_s, lags_hz
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations over time [terms, lags] and frequency [terms, lags] that a Wiener filter is made
    for.
    """
    if method == "genie":
        return correlation(state, lags_s, lags_hz)
    edge_hz = next(
        edge
        for edge in DOPPLER_CLASSES_HZ
        if edge >= state.doppler_hz or edge == DOPPLER_CLASSES_HZ[-1]
    )
    x = np.asarray(lags_hz) * CYCLIC_PREFIX_S / scs_khz
    return (
        np.sinc(2 * edge_hz * np.asarray(lags_s))[None],
        (np.sinc(x) * np.exp(-2j * np.pi * (1 / 2 - EARLY) * x))[None],
    )


def _wiener(method, state, scs_khz, pilots, num_sc, symbols, noise):
    """Filter of a layer with these pilots, for a pilot's noise variance `noise` relative to the
    channel's power.
    """
    lags = np.arange(1 - num_sc, num_sc)
    # all lags at once: the terms of another set would be others
    ends = np.concatenate([np.arange(SYMBOLS_PER_SLOT), symbols])
    lag_s = np.subtract.outer(ends, symbols) * slot_ms(scs_khz) * 1e-3 / SYMBOLS_PER_SLOT
    in_time, in_frequency = statistics(method, state, scs_khz, lag_s.ravel(), lags * scs_khz * 1e3)
    in_time, among = np.split(in_time.reshape(-1, *lag_s.shape), [SYMBOLS_PER_SLOT], axis=1)
    taps = min(WIENER_TAPS, len(pilots))  # that a subcarrier's estimate is made of
    window = pilots[:taps] - pilots[0]
    terms = [r[np.subtract.outer(window, window) + num_sc - 1] for r in in_frequency]  # R(p - p')
    still = among[:, 0, 0]  # correlation over time at no lag, by term
    inverse = np.linalg.inv(np.einsum("k,kpq->pq", still, terms) + noise * np.eye(taps))
    dense, known = np.zeros((num_sc, len(pilots)), complex), {}
    spacing = pilots[1] - pilots[0] if len(pilots) > 1 else 1
    # means over the subcarriers of E[h g*], E[g g*] by term, and of the noise's share
    sums = np.zeros((3, len(terms)))
    for f in range(num_sc):
        first = int(np.clip(round((f - pilots[0]) / spacing) - taps // 2, 0, len(pilots) - taps))
        offset = f - pilots[first]
        if offset not in known:
            cross = [r[offset - window + num_sc - 1] for r in in_frequency]
            w = still @ cross @ inverse
            known[offset] = (
                w,
                np.array(
                    [
                        [np.real(c @ w.conj()) for c in cross],
                        [np.real(w @ t @ w.conj()) for t in terms],
                        [np.sum(np.abs(w) ** 2)] * len(terms),
                    ]
                ),
            )
        dense[f, first : first + taps], moments = known[offset]
        sums += moments
    rho, kappa, share = sums / num_sc
    cross = np.einsum("k,kij->ij", rho, in_time)
    covariance = np.einsum("k,kij->ij", kappa, among) + noise * share[0] * np.eye(len(symbols))
    over_time = np.linalg.solve(covariance.T, cross.T).T
    error = 1 - np.real(np.sum(over_time * cross.conj(), axis=1))
    at_pilots = dense[pilots]
    residual = np.mean(np.sum(np.abs(np.eye(len(pilots)) - at_pilots) ** 2, axis=1))
    return dense, over_time, np.clip(error, 0, None), residual


def quantised_noise(noise: float) -> float:
    """The variance in the middle of its class of CLASS_DB, for which filters are kept."""
    step = CLASS_DB * np.log(10) / 10
    return float(np.exp(step * round(np.log(max(noise, 1e-9)) / step)))


@remember(max_bytes=128 << 20)
def _made(method, state, scs_khz, num_prb, layer, num_layers, num_dmrs, noise):
    pilots, num_sc = pilot_carriers(layer, num_layers, num_prb), num_prb * SUBCARRIERS_PER_PRB
    symbols = np.array(DMRS_SYMBOLS[num_dmrs])
    if method in WIENER:
        frequency, time, error, residual = _wiener(
            method, state, scs_khz, pilots, num_sc, symbols, noise
        )
    else:
        nearest = method == "ls-nearest"
        frequency = _held(np.arange(num_sc), pilots, nearest)
        time = _held(np.arange(SYMBOLS_PER_SLOT), symbols, nearest)
        error = noise * np.mean(np.sum(frequency**2, axis=1)) * np.sum(time**2, axis=1)
        residual = 0.0
    return (
        frequency.astype(np.complex64),
        time.astype(np.complex64),
        error.astype(np.float32),
        np.array(residual),
    )


def estimator(
    method: str,
    state: ChannelState,
    scs_khz: int,
    num_prb: int,
    layer: int,
    num_layers: int,
    num_dmrs: int,
    noise: float,
    gain: float,
) -> Filter:
    """A layer's filter for the variance `noise` per resource element, relative to a transmitted
    power of 1 over all layers, and a mean power `gain` of the layer's channel.
    """
    noise = noise * num_layers / comb(num_layers)
    relative = (
        quantised_noise(noise / gain)
        if method == "lmmse"
        else noise / gain
        if method == "genie"
        else 1.0
    )
    statistics_of = state if method in WIENER else None
    frequency, time, error, residual = _made(
        method, statistics_of, scs_khz, num_prb, layer, num_layers, num_dmrs, relative
    )
    return Filter(
        frequency, time, error * np.float32(gain if method in WIENER else noise), float(residual)
    )


def pilots_received(h: np.ndarray, noise: np.ndarray, sigma: float, num_dmrs: int) -> np.ndarray:
    """What is received in the DM-RS symbols, [S, rx, D, F], over channels h [S, rx, L, 14, F] with
    noise of unit variance [S, rx, D, F] times sigma; every layer in its own places, the other
    subcarriers hold noise.
    """
    num_layers = h.shape[2]
    at, spacing = list(DMRS_SYMBOLS[num_dmrs]), comb(num_layers)
    y = np.float32(sigma) * noise
    amplitude = np.float32(np.sqrt(spacing / num_layers))
    for layer in range(num_layers):
        y[..., layer::spacing] += amplitude * h[:, :, layer, at, layer::spacing]
    return y


def noise_variance(point: Point, gains: tuple[float, ...]) -> float:
    """Of a resource element: thermal noise, and what Doppler and late taps leave of the layers'
    power.
    """
    return (
        10 ** (-point.snr_db / 10)
        + residual_interference(point.state, point.scs_khz) * sum(gains) / point.num_layers
    )


def knowledge(
    point: Point, h: np.ndarray, gains: tuple[float, ...], noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the receiver takes the layers' channels h [S, rx, L, 14, F] for, and the noise variance
    that it reckons with by symbol [S, 14], its estimate's error included. noise: of the DM-RS
    symbols, [S, rx, D, F]; gains: mean powers of the layers' channels.
    """
    variance, num_layers = noise_variance(point, gains), point.num_layers
    known = np.full((len(h), SYMBOLS_PER_SLOT), variance, np.float32)
    if point.estimator == "perfect":
        return h, known
    filters = [
        estimator(
            point.estimator,
            point.state,
            point.scs_khz,
            point.num_prb,
            layer,
            num_layers,
            point.num_dmrs,
            variance,
            gain,
        )
        for layer, gain in enumerate(gains)
    ]
    g, measured = estimate(pilots_received(h, noise, np.sqrt(variance), point.num_dmrs), filters)
    if measured is not None and point.estimator == "lmmse":
        known[:] = measured[:, None] * comb(num_layers) / num_layers
    return g, known + sum(f.error for f in filters) / num_layers


def estimate(y: np.ndarray, filters: list[Filter]) -> tuple[np.ndarray, np.ndarray | None]:
    """Channels [S, rx, L, 14, F] of the layers from what was received in the DM-RS symbols, y [S,
    rx, D, F], a pilot of amplitude sqrt(comb / L) in every layer's places; in units of a channel
    without its share of the power.

    Also the variance of a pilot's noise on every slot [S], measured from what Wiener filters took
    away; None for the others.
    """
    num_slots, num_rx, num_dmrs, num_sc = y.shape
    num_layers = len(filters)
    amplitude = np.float32(np.sqrt(comb(num_layers) / num_layers))
    out = np.empty((num_slots, num_rx, num_layers, SYMBOLS_PER_SLOT, num_sc), np.complex64)
    taken = np.zeros(num_slots)
    for layer, f in enumerate(filters):
        carriers = slice(layer, num_sc, comb(num_layers))
        observed = np.ascontiguousarray(y[..., carriers]) / amplitude
        smooth = observed.reshape(-1, observed.shape[-1]) @ f.in_frequency.T
        smooth = smooth.reshape(num_slots, num_rx, num_dmrs, num_sc)
        part = f.in_time[:, 0, None] * smooth[:, :, :1]
        for d in range(1, num_dmrs):
            part += f.in_time[:, d, None] * smooth[:, :, d : d + 1]
        out[:, :, layer] = part
        if f.residual:
            taken += (
                np.mean(np.abs(observed - smooth[..., carriers]) ** 2, axis=(1, 2, 3))
                / f.residual
                / num_layers
            )
    return out, taken if filters[0].residual else None

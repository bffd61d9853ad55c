"""Channel realisations from Sionna, and what is known of their statistics."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import j0
from sionna.phy import config
from sionna.phy.channel import RayleighBlockFading
from sionna.phy.channel.tr38901 import CDL, TDL, PanelArray

from .grid import NUM_SC
from .physical import SPEED_OF_LIGHT_MPS, ChannelState
from .spec import SYMBOLS_PER_SLOT, slot_ms

CYCLIC_PREFIX = 144 / 2048  # of the useful symbol (TS 38.211 5.3.1)
LOS_ANGLE_RAD = np.pi / 4  # Sionna's angle of arrival of the line of sight
_CARRIER_HZ = 1e9  # Sionna asks for carrier and speed; only their product counts


def transmit_antennas(state: ChannelState) -> int:
    """One per layer without a precoder."""
    return state.num_layers if state.precoder == "none" else state.num_tx


@lru_cache(maxsize=256)
def _model(state: ChannelState) -> TDL | CDL:
    speed_mps = state.doppler_hz * SPEED_OF_LIGHT_MPS / _CARRIER_HZ
    letter, delay_spread_s = state.channel[-1].upper(), state.delay_spread_ns * 1e-9
    if state.channel.startswith("tdl"):
        return TDL(letter, delay_spread_s, _CARRIER_HZ, min_speed=speed_mps, los_angle_of_arrival=LOS_ANGLE_RAD,
                   num_rx_ant=state.num_rx, num_tx_ant=transmit_antennas(state))
    rx, tx = (
        PanelArray(num_rows_per_panel=1, num_cols_per_panel=num_ant, polarization="single", polarization_type="V",
                   antenna_pattern="omni", carrier_frequency=_CARRIER_HZ)
        for num_ant in (state.num_rx, transmit_antennas(state))
    )
    return CDL(letter, delay_spread_s, _CARRIER_HZ, rx, tx, "downlink", min_speed=speed_mps)


def realise(state: ChannelState, num_slots: int, seed: int, at_symbols: tuple[int, ...] = tuple(range(SYMBOLS_PER_SLOT))) -> np.ndarray:
    """Frequency responses, [num_rx, num_tx, num_slots, symbols * NUM_SC] complex64, unit average power.

    `at_symbols`: the symbols to return, in ascending order, counted from the slot's first one; below 0 for those before it.

    awgn: one fixed matrix of unit-modulus entries, the DFT of size num_rx, whose first num_rx columns are orthogonal: without
    a precoder every layer has gain num_rx.
    rayleigh: independent CN(0, 1) per antenna pair and slot, the same in the symbols before it. tdl: TR 38.901 7.7.2, uncorrelated antennas. cdl: TR 38.901
    7.7.1, downlink, uniform linear arrays of omnidirectional antennas half a wavelength apart, velocity in a random
    direction.
    """
    num_tx = transmit_antennas(state)
    shape = (state.num_rx, num_tx, num_slots, len(at_symbols) * NUM_SC)
    if state.channel == "awgn":
        dft = np.exp(-2j * np.pi * np.outer(np.arange(state.num_rx), np.arange(num_tx)) / state.num_rx)
        return np.broadcast_to(dft.astype(np.complex64)[:, :, None, None], shape)
    config.seed = seed
    if state.channel == "rayleigh":
        a, _ = RayleighBlockFading(1, state.num_rx, 1, num_tx)(num_slots, 1)  # [S, 1, rx, 1, L, 1, 1]
        return np.broadcast_to(a.numpy()[:, 0, :, 0, :, 0].transpose(1, 2, 0, 3), shape)
    symbol_s = slot_ms(state.scs_khz) * 1e-3 / SYMBOLS_PER_SLOT
    first, last = at_symbols[0], at_symbols[-1]
    a, tau = _model(state)(num_slots, last - first + 1, 1 / symbol_s)  # [S, 1, rx, 1, L, paths, time], [S, 1, 1, paths]
    a = a.numpy()[:, 0, :, 0][..., np.array(at_symbols) - first]
    return ofdm_response(a, tau.numpy()[0, 0, 0], state.scs_khz).reshape(shape)


def ofdm_response(a: np.ndarray, tau: np.ndarray, scs_khz: int) -> np.ndarray:
    """Response on the slice's subcarriers, [rx, L, S, 14, NUM_SC], of paths a [S, rx, L, paths, 14] with delays tau [paths].

    Same as sionna.phy.channel.cir_to_ofdm_channel; delays that all slots share make it one matrix product.
    """
    frequencies_hz = (np.arange(NUM_SC) - NUM_SC // 2) * scs_khz * 1e3
    transform = np.exp(-2j * np.pi * np.outer(tau.astype(float), frequencies_hz)).astype(np.complex64)
    return np.ascontiguousarray(a.transpose(1, 2, 0, 4, 3)) @ transform


def _profile(state: ChannelState) -> tuple[np.ndarray, np.ndarray, float]:
    """Delays in s and mean powers of the taps, and how much of the first one's power is a specular part of fixed angle."""
    model = _model(state)
    if state.channel.startswith("cdl"):  # its line of sight turns with the random velocity like every other ray
        return model.delays.numpy().astype(float), model.powers.numpy().astype(float), 0.0
    los = float(model.mean_power_los) if model.los else 0.0
    return model.delays.numpy().astype(float), model.mean_powers.numpy().astype(float), los


def correlation(state: ChannelState) -> tuple[np.ndarray, np.ndarray]:
    """Correlations E[h(t + dt, f + df) h*(t, f)] of the channel model, as used by the Wiener filter.

    Returns the sum of separable terms: time [terms, 27] for lags -13 .. 13 symbols, frequency [terms, 2 NUM_SC - 1] for
    lags of -(NUM_SC - 1) .. NUM_SC - 1 subcarriers. With x = 2 pi fD dt, diffuse taps of tdl: Jakes J0(x) times the
    profile's transform; its line of sight: exp(j x cos(angle)), at the first tap's delay; cdl: mean of J0(x sin(theta)) over
    the random elevation theta of the velocity, J0(x / 2)^2, for rays that arrive close to the horizon.
    """
    if state.channel in ("awgn", "rayleigh"):
        return np.ones((1, 2 * SYMBOLS_PER_SLOT - 1)), np.ones((1, 2 * NUM_SC - 1))
    delays_s, powers, los = _profile(state)
    lag_s = np.arange(1 - SYMBOLS_PER_SLOT, SYMBOLS_PER_SLOT) * slot_ms(state.scs_khz) * 1e-3 / SYMBOLS_PER_SLOT
    lag_hz = np.arange(1 - NUM_SC, NUM_SC) * state.scs_khz * 1e3
    phase = 2 * np.pi * state.doppler_hz * lag_s
    transform = np.exp(-2j * np.pi * np.outer(lag_hz, delays_s))
    if state.channel.startswith("cdl"):
        return j0(phase / 2)[None] ** 2, (transform @ powers)[None]
    specular = los * transform[:, 0]
    diffuse = transform @ powers - specular
    return np.stack([j0(phase), np.exp(1j * phase * np.cos(LOS_ANGLE_RAD))]), np.stack([diffuse, specular])


def residual_interference(state: ChannelState) -> float:
    """Power of what a cyclic-prefix receiver with one-tap equalisation cannot use, relative to the received power 1.

    Inter-carrier interference of Jakes fading within a symbol, 1 - 2 int_0^1 (1 - x) J0(2 pi fD T x) dx (Russell and
    Stuber, 1995), and taps beyond the cyclic prefix: a tap late by e symbols keeps (1 - e)^2 of its power, and the rest
    is inter-symbol and inter-carrier interference. Both are added to the noise as Gaussian.
    """
    if state.channel in ("awgn", "rayleigh"):
        return 0.0
    symbol_s = 1e-3 / state.scs_khz
    x = (np.arange(200) + 0.5) / 200
    doppler = 1 - 2 * np.mean((1 - x) * j0(2 * np.pi * state.doppler_hz * symbol_s * x))
    delays_s, powers, _ = _profile(state)
    late = np.clip(delays_s / symbol_s - CYCLIC_PREFIX, 0, 1)
    return float(max(0.0, doppler) + np.sum(powers * (2 * late - late**2)))

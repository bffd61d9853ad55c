"""Channel realisations of TR 38.901's link-level models, and what is known of their statistics.

Draws in numpy of the models that Sionna 1.2 draws in TensorFlow; the profiles are read from
Sionna's data files, and Sionna is not imported.

What was left out: polarisation (one polarisation at both ends, so that the cross-polarisation ratio
has no effect), antenna patterns, and the sub-clusters of step 11 in 7.5, which 7.7.1 has not
either. Both models are
stationary: the times given may be as far apart as those of retransmissions.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import j0

from ..physical import ChannelState

CYCLIC_PREFIX = 144 / 2048  # of the useful symbol (TS 38.211 5.3.1)
# Line of sight of tdl against the velocity, as in Sionna: a Doppler shift of 0.707 fD, where 7.7.2
# has 0.7 fD
LOS_ANGLE_RAD = np.pi / 4
# Gains at the gNB and the UE (TS 38.104 table G.2.3.1.2-1)
ANTENNA_CORRELATION = {"low": (0.0, 0.0), "medium": (0.9, 0.3), "high": (0.9, 0.9)}
# Offsets of the rays of a cluster for an angle spread of 1 (TR 38.901 table 7.5-3)
_OFFSETS = (0.0447, 0.1413, 0.2492, 0.3715, 0.5129, 0.6797, 0.8844, 1.1481, 1.5195, 2.1551)
RAY_OFFSETS = np.outer(_OFFSETS, (1, -1)).ravel()

_LOST_POWER = 1e-5  # of every entry at most, by leaving out the weakest components
_CHUNK_SLOTS = 16  # of cdl at a time: its rays stay in the processor's cache


class Profile(NamedTuple):
    """A table of TR 38.901 7.7, powers normalised to the sum 1. C clusters, by their place in the
    table.

    Of the first one's power, `los` is a specular part. Angles (cdl) in radians: arrival and
    departure, azimuth and zenith, of every ray [C, 20]; those of the line of sight, in the same
    order, [4].
    """

    delays: np.ndarray  # [C], in units of the delay spread
    powers: np.ndarray  # [C]
    los: float
    # azimuth and zenith of arrival, azimuth and zenith of departure
    rays: tuple[np.ndarray, ...] = ()
    los_angles: np.ndarray | None = None


@lru_cache(maxsize=None)
def profile(channel: str) -> Profile:
    """The profile of tdl-a .. tdl-e (TR 38.901 tables 7.7.2-1 to 5), cdl-a .. cdl-e (tables 7.7.1-1
    to 5).
    """
    models = Path(find_spec("sionna").submodule_search_locations[0], "phy/channel/tr38901/models")
    table = json.loads((models / f"{channel.upper()}.json").read_text())
    delays, powers = np.array(table["delays"]), 10 ** (np.array(table["powers"]) / 10)
    powers, los = powers / powers.sum(), 0.0
    first = int(table["los"])  # with a line of sight, the table's first row is that
    if first:
        los, powers, delays = float(powers[0]), powers[1:].copy(), delays[1:]
        powers[0] += los
    if channel.startswith("tdl"):
        return Profile(delays, powers, los)
    angles = [np.deg2rad(table[name]) for name in ("aoa", "zoa", "aod", "zod")]
    spreads = [np.deg2rad(table[name]) for name in ("cASA", "cZSA", "cASD", "cZSD")]
    # (7.7-0a)
    rays = tuple(a[first:, None] + spread * RAY_OFFSETS for a, spread in zip(angles, spreads))
    return Profile(delays, powers, los, rays, np.array([a[0] for a in angles]))


def realise(
    state: ChannelState,
    num_slots: int,
    seed: int,
    times_s: tuple[float, ...],
    frequencies_hz: tuple[float, ...],
) -> np.ndarray:
    """Frequency responses, [num_slots, num_rx, num_tx, T, F] complex64, E|h|^2 = 1, independent
    over slots.

    times_s [T]: any, relative to the slot's start. frequencies_hz [F]: relative to the carrier.

    awgn: a line of sight, all ones; of rank one.
    rayleigh: CN(0, 1), the same at all times and frequencies.
    tdl: TR 38.901 7.7.2. All taps have the spectrum of Jakes, so that the diffuse part is Gaussian
    with a correlation that is a product over antennas, time and frequency. A line of sight has rank
    one: a random direction per slot at each end, for uniform linear arrays of half a wavelength.
    cdl: TR 38.901 7.7.1, downlink, uniform linear arrays of omnidirectional antennas half a
    wavelength apart, velocity in a random direction with azimuth and zenith uniform (as in Sionna).
    A line of sight has a random phase per slot, for a random distance in (7.5-29), which Sionna's
    has not.
    """
    shape = (num_slots, state.num_rx, state.num_tx, len(times_s), len(frequencies_hz))
    if state.channel == "awgn":
        return np.ones(shape, np.complex64)
    rng = np.random.default_rng(seed)
    if state.channel == "rayleigh":
        return np.ascontiguousarray(np.broadcast_to(_diffuse(state, rng, num_slots, 1, 1), shape))
    h = np.empty(shape, np.complex64)
    draw = _tdl if state.channel.startswith("tdl") else _cdl
    draw(state, rng, tuple(times_s), tuple(frequencies_hz), h)
    return h


def _expand(time: np.ndarray, z: np.ndarray, frequency: np.ndarray, out: np.ndarray) -> None:
    """out [S, rx, tx, T, F] = time z frequency, of real time [T, K], z [S, rx, tx, K, R] and
    frequency [R, F].

    Frequency first: K is at most T, and a real matrix costs half of a complex one.
    """
    k, (t, f) = time.shape[1], out.shape[-2:]
    in_frequency = (z.reshape(-1, z.shape[-1]) @ frequency).view(np.float32)
    np.matmul(
        time, in_frequency.reshape(-1, k, 2 * f), out=out.view(np.float32).reshape(-1, t, 2 * f)
    )


def _enough(powers: np.ndarray) -> int:
    """How many of the components, powers [components, entries], lose no entry more than
    `_LOST_POWER`.
    """
    kept = np.cumsum(powers, axis=0)
    return 1 + int(np.argmax(np.all(kept >= (1 - _LOST_POWER) * kept[-1], axis=1)))


# tdl and rayleigh


@lru_cache(maxsize=64)
def correlation_matrix(gain: float, num_antennas: int) -> np.ndarray:
    """Correlation of the antennas of a uniform linear array, [n, n]: gain^((i - j)^2 / (n - 1)^2).

    TS 38.104 tables G.2.3.1.1-1 (gNB) and -2 (UE) for one, two and four antennas; three by the same
    law. A Gaussian of i - j, hence positive semidefinite: the clause's `a` mends what it loses by
    rounding to four digits.
    """
    index = np.arange(num_antennas)
    return float(gain) ** (np.subtract.outer(index, index) / max(1, num_antennas - 1)) ** 2


@lru_cache(maxsize=64)
def _root(gain: float, num_antennas: int) -> np.ndarray:
    """The symmetric square root of the correlation matrix, [n, n] float32."""
    power, basis = np.linalg.eigh(correlation_matrix(gain, num_antennas))
    return ((basis * np.sqrt(np.clip(power, 0, None))) @ basis.T).astype(np.float32)


def _diffuse(
    state: ChannelState, rng: np.random.Generator, num_slots: int, k: int, r: int
) -> np.ndarray:
    """CN(0, 1), [num_slots, num_rx, num_tx, k, r] complex64, correlated over antennas (the gNB
    receives).
    """
    z = rng.standard_normal((num_slots, state.num_rx, state.num_tx, k * r * 2), dtype=np.float32)
    z *= np.float32(np.sqrt(0.5))
    gnb, ue = ANTENNA_CORRELATION[state.antenna_correlation]
    if ue and state.num_tx > 1:
        z = _root(ue, state.num_tx) @ z
    if gnb and state.num_rx > 1:
        z = (_root(gnb, state.num_rx) @ z.reshape(num_slots, state.num_rx, -1)).reshape(z.shape)
    return z.view(np.complex64).reshape(z.shape[:3] + (k, r))


@lru_cache(maxsize=256)
def _jakes_basis(doppler_hz: float, times_s: tuple[float, ...]) -> np.ndarray:
    """A [T, K] float32 with A A^T = J0(2 pi fD (t - t')), but for weak components."""
    lags_s = np.subtract.outer(times_s, times_s)
    powers, basis = np.linalg.eigh(j0(2 * np.pi * doppler_hz * lags_s))
    basis = (basis * np.sqrt(np.clip(powers, 0, None)))[:, ::-1]  # the strongest first
    basis = basis[:, : _enough(basis.T**2)]
    return (basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=256)
def _delay_basis(
    channel: str, delay_spread_ns: float, frequencies_hz: tuple[float, ...], diffuse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Q [C, R] and U [R, F] complex64: Q U = sqrt(power) exp(-j 2 pi f tau) of the taps, but for
    weak components.

    U alone makes Gaussian taps of independent gains. With `diffuse`, powers without the specular
    part.
    """
    delays, powers, los = profile(channel)[:3]
    powers = powers - los * diffuse * (np.arange(len(powers)) == 0)
    delays_s = delays * delay_spread_ns * 1e-9
    # [C, F]
    response = np.exp(-2j * np.pi * np.outer(delays_s, frequencies_hz)) * np.sqrt(powers)[:, None]
    q, s, u = np.linalg.svd(response, full_matrices=False)
    u *= s[:, None]
    rank = _enough(np.abs(u) ** 2)
    q, u = q[:, :rank], u[:rank]
    u *= np.sqrt(powers.sum()) / np.linalg.norm(u, axis=0)
    return q.astype(np.complex64), np.ascontiguousarray(u, np.complex64)


def _steering(rng: np.random.Generator, num_slots: int, num_antennas: int) -> np.ndarray:
    """Response [num_slots, num_antennas] of a uniform half-wavelength linear array to a random
    azimuth.
    """
    direction = np.sin(2 * np.pi * rng.random(num_slots))
    return np.exp(1j * np.pi * np.outer(direction, np.arange(num_antennas)))


def _tdl(state, rng, times_s, frequencies_hz, out) -> None:
    """Draw into `out` [S, rx, tx, T, F]; see `realise`."""
    num_slots = len(out)
    time = _jakes_basis(state.doppler_hz, times_s)
    _, frequency = _delay_basis(state.channel, state.delay_spread_ns, frequencies_hz, True)
    k, r = time.shape[1], len(frequency)
    z = _diffuse(state, rng, num_slots, k, r)
    delays, _, los = profile(state.channel)[:3]
    # cos + j sin are two more components in time, the first tap's delay is one more in frequency
    if los:
        shift = 2 * np.pi * state.doppler_hz * np.cos(LOS_ANGLE_RAD) * np.array(times_s)
        time = np.column_stack([time, np.cos(shift), np.sin(shift)]).astype(np.float32)
        tap = np.exp(
            -2j * np.pi * delays[0] * state.delay_spread_ns * 1e-9 * np.array(frequencies_hz)
        )
        frequency = np.vstack([frequency, np.sqrt(los) * tap]).astype(np.complex64)
        phase = np.exp(2j * np.pi * rng.random(num_slots))
        rx, tx = (_steering(rng, num_slots, n) for n in (state.num_rx, state.num_tx))
        diffuse, z = z, np.zeros(z.shape[:3] + (k + 2, r + 1), np.complex64)
        z[..., :k, :r] = diffuse
        z[..., k, r] = phase[:, None, None] * rx[:, :, None] * tx[:, None, :]
        z[..., k + 1, r] = 1j * z[..., k, r]
    _expand(time, z, frequency, out)


# cdl


def _lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Polynomial interpolation from Chebyshev nodes [K] to points [T], [T, K] (barycentric
    form).
    """
    k = len(nodes)
    weights = np.sin((2 * np.arange(k) + 1) * np.pi / (2 * k)) * (-1.0) ** np.arange(k)
    gap = np.subtract.outer(at, nodes)
    gap[gap == 0] = 1e-300  # at a node, all weight is on it
    terms = weights / gap
    return terms / terms.sum(axis=1, keepdims=True)


@lru_cache(maxsize=256)
def _doppler_basis(doppler_hz: float, times_s: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Instants [K] in s and a matrix [T, K] float32 that carries exp(j 2 pi f t), |f| <= fD, from
    them to the times.

    As few Chebyshev nodes as lose no more than `_LOST_POWER` of any such wave; the times themselves
    if they are too far apart for that.
    """
    times = np.array(times_s)
    middle, half = (times.max() + times.min()) / 2, (times.max() - times.min()) / 2
    at = (times - middle) / (half or 1)
    wave = 2j * np.pi * doppler_hz * np.linspace(0, 1, 65)
    exact = np.exp(np.outer(times - middle, wave))
    for k in range(1, len(times)):
        nodes = np.cos((2 * np.arange(k) + 1) * np.pi / (2 * k))
        matrix = _lagrange(nodes, at)
        if np.max(np.abs(matrix @ np.exp(np.outer(half * nodes, wave)) - exact)) ** 2 < _LOST_POWER:
            return middle + half * nodes, matrix.astype(np.float32)
    return times, np.eye(len(times), dtype=np.float32)


def _cis(phase: np.ndarray) -> np.ndarray:
    """exp(j phase), complex64 of float32."""
    z = np.empty(phase.shape, np.complex64)
    np.cos(phase, out=z.real)
    np.sin(phase, out=z.imag)
    return z


def _cdl(state, rng, times_s, frequencies_hz, out) -> None:
    """Draw into `out` [S, rx, tx, T, F]; see `realise`."""
    instants_s, time = _doppler_basis(state.doppler_hz, times_s)
    clusters, frequency = _delay_basis(state.channel, state.delay_spread_ns, frequencies_hz, False)
    for first in range(0, len(out), _CHUNK_SLOTS):
        part = out[first : first + _CHUNK_SLOTS]
        gains = _cluster_gains(state, rng, len(part), instants_s)
        _expand(time, gains @ clusters, frequency, part)


def _unit_vector(azimuth: np.ndarray, zenith: np.ndarray) -> np.ndarray:
    """(7.5-23), [3, ...]."""
    horizontal = np.sin(zenith)
    return np.stack([horizontal * np.cos(azimuth), horizontal * np.sin(azimuth), np.cos(zenith)])


def _cluster_gains(state, rng, s: int, instants_s: np.ndarray) -> np.ndarray:
    """Gain of every cluster over the root of its power, [s, rx, tx, K, C] complex64; (7.5-28) to
    (7.5-30).
    """
    _, powers, los, rays, los_angles = profile(state.channel)
    num_rx, num_tx, c, k = state.num_rx, state.num_tx, len(powers), len(instants_s)
    # Arrays along y, the receiver's turned to face the transmitter (bearing pi), as Sionna has them
    array = -np.pi * np.arange(num_rx)[:, None], np.pi * np.arange(num_tx)
    velocity = _unit_vector(*np.pi * np.array([[2.0], [1.0]]) * rng.random((2, s)))  # [3, s]
    turn = 2 * np.pi * state.doppler_hz * instants_s  # of a ray along the velocity, [K]

    # Step 8, random coupling: only the order of three of the angles against the fourth matters
    zenith, *departure = (
        rng.permuted(np.broadcast_to(angle.astype(np.float32), (s, c, 20)), axis=2)
        for angle in (rays[1:] if num_tx > 1 else rays[1:2])
    )
    arrival = _unit_vector(rays[0].astype(np.float32), zenith)  # [3, s, C, 20]
    along = np.sum(velocity.astype(np.float32)[:, :, None, None] * arrival, axis=0)
    phase = np.float32(2 * np.pi) * rng.random((s, c, 1, 1, 20), dtype=np.float32)  # step 10
    phase = phase + array[0].astype(np.float32)[..., None] * arrival[1][:, :, None, None]
    if num_tx > 1:
        sideways = _unit_vector(*departure)[1]
        phase = phase + array[1].astype(np.float32)[:, None] * sideways[:, :, None, None]
    rotation = _cis(along[..., None] * turn.astype(np.float32))  # [s, C, 20, K]
    gains = _cis(phase).reshape(s, c, num_rx * num_tx, 20) @ rotation
    gains *= np.sqrt((1 - los * (np.arange(c) == 0) / powers) / 20).astype(np.float32)[
        :, None, None
    ]
    if los:
        arrival, departure = _unit_vector(*los_angles[:2]), _unit_vector(*los_angles[2:])
        # [rx * tx, 1]
        at_antennas = (array[0] * arrival[1] + array[1] * departure[1]).reshape(-1, 1)
        in_time = np.outer(arrival @ velocity, turn)[:, None]  # [s, 1, K]
        phase = 2 * np.pi * rng.random((s, 1, 1)) + at_antennas + in_time
        gains[:, 0] += np.sqrt(los / powers[0]) * np.exp(1j * phase)
    return np.ascontiguousarray(gains.transpose(0, 2, 3, 1)).reshape(s, num_rx, num_tx, k, c)


# what a receiver may know


def correlation(
    state: ChannelState, lags_s: np.ndarray, lags_hz: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation E[h(t + dt, f + df) h*(t, f)] of an antenna pair, as used by the Wiener filter.

    The sum over terms of time [terms, A] for lags_s [A] times frequency [terms, B] for lags_hz [B].
    With x = 2 pi fD dt:

    tdl: J0(x) times the diffuse taps' transform, and exp(j x cos(angle)) at the line of sight's
      delay.
    cdl: a ray of zenith theta has J0(x cos^2(theta / 2)) J0(x sin^2(theta / 2)), the mean over a
    velocity of uniform azimuth and zenith (Gradshteyn and Ryzhik 6.688); the clusters are merged
    into few terms.
    """
    lags_s, lags_hz = np.asarray(lags_s, float), np.asarray(lags_hz, float)
    if state.channel in ("awgn", "rayleigh"):
        return np.ones((1, len(lags_s))), np.ones((1, len(lags_hz)), complex)
    delays, powers, los, rays, los_angles = profile(state.channel)
    phase = 2 * np.pi * state.doppler_hz * lags_s
    # [C, B]
    transform = np.exp(-2j * np.pi * np.outer(delays * state.delay_spread_ns * 1e-9, lags_hz))
    specular, diffuse = los * transform[:1], powers - los * (np.arange(len(powers)) == 0)
    if state.channel.startswith("tdl"):
        time, frequency = j0(phase)[None], (diffuse @ transform)[None]
        if los:
            time = np.vstack([time, np.exp(1j * phase * np.cos(LOS_ANGLE_RAD))])
            frequency = np.vstack([frequency, specular])
        return time, frequency

    def over_velocities(zenith):
        return j0(phase * np.cos(zenith / 2) ** 2) * j0(phase * np.sin(zenith / 2) ** 2)

    time = over_velocities(rays[1][..., None]).mean(axis=1)  # [C, A]
    frequency = diffuse[:, None] * transform
    if los:
        time = np.vstack([time, over_velocities(los_angles[1])])
        frequency = np.vstack([frequency, specular])
    mix, s, time = np.linalg.svd(time, full_matrices=False)
    rank = int(np.sum(s > 1e-9 * s[0]))  # below any noise, so that covariances stay positive
    return time[:rank], (mix[:, :rank] * s[:rank]).T @ frequency


@lru_cache(maxsize=1024)
def residual_interference(state: ChannelState, scs_khz: float) -> float:
    """Power of what a cyclic-prefix receiver with one-tap equalisation cannot use, relative to the
    received power 1.

    Inter-carrier interference of Jakes fading within a symbol, 1 - 2 int_0^1 (1 - x) J0(2 pi fD T
    x) dx (Russell and Stuber, 1995), and taps beyond the cyclic prefix: a tap late by e symbols
    keeps (1 - e)^2 of its power, and the rest is inter-symbol and inter-carrier interference. Both
    are added to the noise as Gaussian.
    """
    if state.channel in ("awgn", "rayleigh"):
        return 0.0
    symbol_s = 1e-3 / scs_khz
    x = (np.arange(200) + 0.5) / 200
    doppler = 1 - 2 * np.mean((1 - x) * j0(2 * np.pi * state.doppler_hz * symbol_s * x))
    delays, powers = profile(state.channel)[:2]
    late = np.clip(delays * state.delay_spread_ns * 1e-9 / symbol_s - CYCLIC_PREFIX, 0, 1)
    return float(max(0.0, doppler) + np.sum(powers * (2 * late - late**2)))

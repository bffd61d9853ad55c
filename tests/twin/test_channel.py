"""The channel's draws against the statistics of TR 38.901 and TS 38.104; sionna_channel.py has
Sionna's.

Statistical bounds are multiples of the standard error over independent slots, and `agrees` is never
vague: it fails where the standard error is so large that an error of 0.1 would pass.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import j0

from twin.chain import channel
from twin.chain.channel import (
    ChannelState,
    correlation,
    correlation_matrix,
    profile,
    realise,
    residual_interference,
)
from twin.spec import CHANNELS

TDL, CDL = ([f"{kind}-{letter}" for letter in "abcde"] for kind in ("tdl", "cdl"))
FADING = ["rayleigh", *TDL, *CDL]
SLOT_S = tuple(np.arange(14) * 0.5e-3 / 14)
HARQ_S = tuple(np.concatenate([np.array(SLOT_S) + start for start in (0.0, 4e-3, 12e-3)]))
GRID_HZ = tuple((np.arange(288) - 144) * 30e3)


def agrees(samples, expected, what=""):
    """The mean over slots of samples [S, ...] is `expected` [...] to 5 standard errors, none above
    0.02.
    """
    samples = np.asarray(samples)
    for part in (np.real, np.imag):
        error = part(samples).std(axis=0) / np.sqrt(len(samples))
        gap = np.abs(part(samples.mean(axis=0) - expected))
        assert np.all(error < 0.02), what
        assert np.all(gap <= 5 * error + 1e-4), (what, gap.max(), error.max())


def lagged(h, dt, df):
    """h(t + dt, f + df) h*(t, f) at the first t and f, mean over antennas, [S]."""
    return np.mean(h[..., dt, df] * h[..., 0, 0].conj(), axis=(1, 2))


# power and determinism


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("antennas", ["low", "high"])
def test_every_entry_has_unit_power(name, antennas):
    state = ChannelState(name, 2, 3, 300.0, 300.0, antennas)
    h = realise(state, 6000, 1, (-1e-3, 0.0, 5e-3), (-4e6, 0.0, 4e6))
    assert h.shape == (6000, 2, 3, 3, 3) and h.dtype == np.complex64 and h.flags.c_contiguous
    agrees(np.abs(h) ** 2, 1.0)


@pytest.mark.parametrize("name", CHANNELS)
def test_the_same_seed_gives_the_same_bytes_and_another_another_channel(name):
    state = ChannelState(name, 2, 2, 100.0, 50.0, "medium")
    first = realise(state, 20, 5, SLOT_S, GRID_HZ[::16])
    for name_of in ("_jakes_basis", "_delay_basis", "_doppler_basis", "_root", "profile"):
        getattr(channel, name_of).cache_clear()
    assert first.tobytes() == realise(state, 20, 5, SLOT_S, GRID_HZ[::16]).tobytes()
    if name != "awgn":
        assert np.all(first != realise(state, 20, 6, SLOT_S, GRID_HZ[::16]))


@pytest.mark.parametrize("name", FADING)
def test_slots_are_independent(name):
    """Across the chunks of cdl too. Of the line of sight, the phase is independent."""
    h = realise(ChannelState(name, 1, 1, 100.0, 50.0), 6001, 2, (0.0,), (0.0,))[:, 0, 0, 0, 0]
    for gap in (1, 16, 32):
        products = h[gap:] * h[:-gap].conj()
        agrees(products, 0.0, gap)


@given(
    st.sampled_from([*TDL, *CDL]),
    st.floats(0, 3000),
    st.floats(0, 5000),
    st.lists(st.floats(-0.02, 0.02), min_size=1, max_size=20),
    st.lists(st.floats(-2e7, 2e7), min_size=1, max_size=20),
)
def test_any_times_and_frequencies_are_drawn(name, doppler_hz, spread_ns, times_s, frequencies_hz):
    h = realise(
        ChannelState(name, 2, 2, spread_ns, doppler_hz), 3, 0, tuple(times_s), tuple(frequencies_hz)
    )
    assert h.shape == (3, 2, 2, len(times_s), len(frequencies_hz)) and np.all(np.isfinite(h))
    # the same instant, the same channel
    for i, j in zip(*np.nonzero(np.equal.outer(times_s, times_s))):
        np.testing.assert_allclose(h[..., i, :], h[..., j, :], atol=1e-3)


@pytest.mark.parametrize("name", FADING)
def test_without_doppler_and_delay_a_channel_is_flat(name):
    h = realise(ChannelState(name, 2, 2), 8, 0, HARQ_S, GRID_HZ)
    np.testing.assert_allclose(h, np.broadcast_to(h[..., :1, :1], h.shape), atol=1e-5)


# time and frequency


@pytest.mark.parametrize("name", ["tdl-a", "tdl-b", "tdl-c"])
def test_taps_decorrelate_as_j0_also_between_retransmissions(name):
    times = (0.0, 0.2e-3, 1e-3, 2e-3, 4e-3, 12e-3, -3e-3)
    for doppler_hz in (20.0, 117.0, 1000.0):
        h = realise(ChannelState(name, 2, 2, 100.0, doppler_hz), 6000, 3, times, (0.0, 1e6))
        for i, t in enumerate(times):
            agrees(lagged(h, i, 0), j0(2 * np.pi * doppler_hz * t), (doppler_hz, t))


def test_the_line_of_sight_of_tdl_keeps_turning_with_its_own_doppler_shift():
    """E[h(t + dt) h*(t)] = K / (K + 1) exp(j 2 pi 0.707 fD dt) + J0 / (K + 1), where J0 alone is
    near 0.
    """
    powers_db = [
        -0.2,
        -13.5,
        -18.8,
        -21,
        -22.8,
        -17.9,
        -20.1,
        -21.9,
        -22.9,
        -27.8,
        -23.6,
        -24.8,
        -30,
        -27.7,
    ]
    los = 10**-0.02 / np.sum(10 ** (np.array(powers_db) / 10))  # TR 38.901 table 7.7.2-4
    times = (0.0, 1e-3, 4e-3, -4e-3)
    h = realise(ChannelState("tdl-d", 1, 2, 100.0, 383.0), 6000, 3, times, (0.0,))
    for i, t in enumerate(times):
        turn = 2 * np.pi * 383.0 * t
        agrees(lagged(h, i, 0), los * np.exp(1j * turn * np.sqrt(0.5)) + (1 - los) * j0(turn), t)


def test_frequency_correlation_is_the_transform_of_the_profile_in_the_standards_table():
    """TR 38.901 table 7.7.2-1 (TDL-A), typed in here."""
    taps = """
        0 -13.4, 0.3819 0, 0.4025 -2.2, 0.5868 -4, 0.4610 -6, 0.5375 -8.2, 0.6708 -9.9, 0.5750 -10.5,
        0.7618 -7.5, 1.5375 -15.9, 1.8978 -6.6, 2.2242 -16.7, 2.1718 -12.4, 2.4942 -15.2, 2.5119 -10.8,
        3.0582 -11.3, 4.0810 -12.7, 4.4579 -16.2, 4.5695 -18.3, 4.7966 -18.9, 5.0066 -16.6, 5.3043 -19.9,
        9.6586 -29.7"""  # noqa: E501
    delays, powers_db = np.array([tap.split() for tap in taps.split(",")], float).T
    powers = 10 ** (powers_db / 10)
    frequencies = (0.0, 30e3, 0.3e6, 1e6, 2e6, 4e6)
    h = realise(ChannelState("tdl-a", 2, 2, 300.0, 100.0), 6000, 4, (0.0,), frequencies)
    for i, f in enumerate(frequencies):
        expected = np.sum(powers * np.exp(-2j * np.pi * f * 300e-9 * delays)) / powers.sum()
        agrees(lagged(h, 0, i), expected, f)


@pytest.mark.parametrize("name", [*TDL, *CDL])
def test_profiles_have_unit_power_and_about_the_delay_spread_that_is_asked_for(name):
    delays, powers = profile(name)[:2]
    mean = powers @ delays
    assert abs(powers.sum() - 1) < 1e-12
    assert abs(np.sqrt(powers @ delays**2 - mean**2) - 1) < 0.03


@pytest.mark.parametrize("name", FADING)
def test_correlation_is_that_of_the_draws(name):
    state = ChannelState(name, 2, 2, 200.0, 250.0)
    times, frequencies = (0.0, 0.3e-3, 1e-3, 4e-3), (0.0, 0.4e6, 3e6)
    h = realise(state, 6000, 9, times, frequencies)
    in_time, in_frequency = correlation(state, np.array(times), np.array(frequencies))
    expected = in_time.T @ in_frequency
    for i in range(len(times)):
        for j in range(len(frequencies)):
            agrees(lagged(h, i, j), expected[i, j], (i, j))


@given(st.sampled_from(FADING), st.floats(0, 2000), st.floats(0, 3000))
def test_correlation_is_one_at_no_lag_hermitian_and_positive_semidefinite(
    name, doppler_hz, spread_ns
):
    state = ChannelState(name, 1, 1, spread_ns, doppler_hz)
    at = np.arange(6)
    lags = np.arange(-5, 6)
    in_time, in_frequency = correlation(state, lags * 0.3e-3, lags * 0.6e6)
    assert len(in_time) == len(in_frequency)
    gap = np.subtract.outer(at, at) + 5
    matrix = sum(np.kron(t[gap], f[gap]) for t, f in zip(in_time, in_frequency))
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-8)
    np.testing.assert_allclose(matrix, matrix.conj().T, atol=1e-8)
    assert np.linalg.eigvalsh(matrix)[0] > -1e-7


def test_a_ray_of_cdl_has_the_mean_over_the_velocities_directions():
    """The formula in `correlation` against the integral over the velocity's zenith."""
    theta = (np.arange(4000) + 0.5) * np.pi / 4000
    for zenith in (0.3, 1.0, np.pi / 2, 2.0):
        for x in (0.5, 3.0, 20.0):
            across, up = np.sin(zenith) * np.sin(theta), np.cos(zenith) * np.cos(theta)
            integral = np.mean(j0(x * across) * np.cos(x * up))
            assert (
                abs(integral - j0(x * np.cos(zenith / 2) ** 2) * j0(x * np.sin(zenith / 2) ** 2))
                < 1e-9
            )


times = st.lists(st.floats(-0.02, 0.02), min_size=1, max_size=30)


@given(st.floats(0, 2000), times)
def test_the_time_basis_holds_j0(doppler_hz, times_s):
    basis = channel._jakes_basis(doppler_hz, tuple(times_s)).astype(float)
    expected = j0(2 * np.pi * doppler_hz * np.subtract.outer(times_s, times_s))
    np.testing.assert_allclose(basis @ basis.T, expected, atol=5e-5)


@given(
    st.sampled_from([*TDL, *CDL]),
    st.floats(0, 5000),
    st.lists(st.floats(-2e7, 2e7), min_size=1, max_size=40),
)
def test_the_frequency_basis_holds_the_profile(name, spread_ns, frequencies_hz):
    for diffuse in (True, False):
        taps, basis = channel._delay_basis(name, spread_ns, tuple(frequencies_hz), diffuse)
        delays, powers, los = profile(name)[:3]
        powers = powers - diffuse * los * (np.arange(len(powers)) == 0)
        turns = np.outer(delays * spread_ns * 1e-9, frequencies_hz)
        response = np.exp(-2j * np.pi * turns) * np.sqrt(powers)[:, None]
        expected = response.T @ response.conj()
        np.testing.assert_allclose(basis.T @ basis.conj(), expected, atol=5e-5)
        assert np.max(np.sum(np.abs(taps @ basis - response) ** 2, axis=0)) < 3e-5


@given(st.floats(0, 2000), times, st.floats(-1, 1))
def test_the_doppler_basis_carries_every_wave(doppler_hz, times_s, along):
    instants, matrix = channel._doppler_basis(doppler_hz, tuple(times_s))
    wave = 2j * np.pi * doppler_hz * along
    np.testing.assert_allclose(
        matrix @ np.exp(wave * instants), np.exp(wave * np.array(times_s)), atol=5e-3
    )


def test_a_slot_needs_few_components_and_retransmissions_more():
    assert channel._jakes_basis(117.0, SLOT_S).shape[1] <= 4
    assert channel._doppler_basis(117.0, SLOT_S)[1].shape[1] <= 4
    assert channel._delay_basis("tdl-c", 100.0, GRID_HZ, True)[1].shape[0] <= 14
    assert channel._jakes_basis(1000.0, HARQ_S).shape[1] >= 10


# antennas


def test_antenna_correlation_is_that_of_38_104():
    """Figures of the tables for high correlation, divided by 1 + a there, a = 0.00012 (four
    antennas).
    """
    np.testing.assert_allclose(correlation_matrix(0.9, 2), [[1, 0.9], [0.9, 1]])
    four = correlation_matrix(0.9, 4)
    off = four - np.eye(4)
    np.testing.assert_allclose(off[0] / 1.00012, [0, 0.9882, 0.9541, 0.8999], atol=1e-4)
    np.testing.assert_allclose(off[1] / 1.00012, [0.9882, 0, 0.9882, 0.9541], atol=1e-4)
    np.testing.assert_allclose(correlation_matrix(0.3, 4)[0], [1, 0.8748, 0.5856, 0.3], atol=1e-4)
    high = np.kron(correlation_matrix(0.9, 2), correlation_matrix(0.9, 2))  # R_high of 2x2
    np.testing.assert_allclose(high[0], [1, 0.9, 0.9, 0.81])
    # R_medium of 2x2, UE first
    medium = np.kron(correlation_matrix(0.3, 2), correlation_matrix(0.9, 2))
    np.testing.assert_allclose(medium[0], [1, 0.9, 0.3, 0.27])
    np.testing.assert_allclose(correlation_matrix(0.9, 3)[0], [1, 0.9**0.25, 0.9])
    np.testing.assert_array_equal(correlation_matrix(0.0, 4), np.eye(4))
    np.testing.assert_array_equal(correlation_matrix(0.9, 1), [[1]])


@given(st.floats(0, 1), st.integers(1, 8))
def test_antenna_correlation_is_positive_semidefinite(gain, n):
    matrix = correlation_matrix(gain, n)
    assert np.linalg.eigvalsh(matrix)[0] > -1e-12
    root = channel._root(gain, n)
    np.testing.assert_allclose(root @ root.T, matrix, atol=1e-5)


@pytest.mark.parametrize("name", ["rayleigh", "tdl-a"])
@pytest.mark.parametrize(
    "antennas, gnb, ue", [("low", 0.0, 0.0), ("medium", 0.9, 0.3), ("high", 0.9, 0.9)]
)
@pytest.mark.parametrize("num_rx, num_tx", [(2, 2), (4, 2), (3, 1), (1, 4)])
def test_draws_have_the_correlations_kronecker_product(name, antennas, gnb, ue, num_rx, num_tx):
    """The gNB receives."""
    h = realise(
        ChannelState(name, num_rx, num_tx, 100.0, 100.0, antennas), 8000, 3, (0.0, 1e-3), (0.0,)
    )
    h = h[:, :, :, 1, 0].reshape(8000, -1)
    expected = np.kron(correlation_matrix(gnb, num_rx), correlation_matrix(ue, num_tx))
    agrees(h[:, :, None] * h[:, None, :].conj(), expected)


def test_awgn_and_the_line_of_sight_of_tdl_have_rank_one(monkeypatch):
    assert np.all(realise(ChannelState("awgn", 4, 3), 2, 0, SLOT_S, GRID_HZ[::32]) == 1)

    def no_diffuse_part(state, rng, s, k, r):
        return np.zeros((s, 4, 3, k, r), np.complex64)

    monkeypatch.setattr(channel, "_diffuse", no_diffuse_part)
    for name in ("tdl-d", "tdl-e"):
        h = realise(ChannelState(name, 4, 3, 300.0, 200.0), 500, 0, HARQ_S, GRID_HZ[::32])
        los = profile(name).los
        np.testing.assert_allclose(np.abs(h) ** 2, los, rtol=1e-3)
        matrices = h[:, :, :, 5, 3]
        singular = np.linalg.svd(matrices, compute_uv=False)
        assert np.all(singular[:, 1] < 1e-3 * singular[:, 0])
        for at_end in (matrices, matrices.transpose(0, 2, 1)):
            # the same from one antenna to the next
            step = at_end[:, 1:] * at_end[:, :-1].conj() / los
            np.testing.assert_allclose(
                step, np.broadcast_to(step[:, :1, :1], step.shape), atol=1e-3
            )
            # |sin| of a uniform direction
            agrees(np.abs(np.angle(step[:, 0, 0])) / np.pi, 2 / np.pi)
        turned = h[..., 1:, :] * h[..., :-1, :].conj() / los
        steps = 2 * np.pi * 200.0 * np.sqrt(0.5) * np.diff(HARQ_S)
        expected = np.broadcast_to(np.exp(1j * steps)[:, None], turned.shape)
        np.testing.assert_allclose(turned, expected, atol=2e-3)


@pytest.mark.parametrize("name", ["tdl-d", "tdl-e", "cdl-d", "cdl-e"])
def test_layers_share_the_direction_of_a_line_of_sight(name):
    """Share of the weaker of two directions: below half of what is diffuse; 1 / 8 of Wishart's."""

    def weakest(state):
        h = realise(state, 4000, 0, (0.0,), (0.0,))[..., 0, 0]
        return np.mean(np.linalg.svd(h, compute_uv=False)[:, 1] ** 2) / 4

    assert weakest(ChannelState(name, 2, 2, 100.0, 30.0)) < 0.5 * (1 - profile(name).los)
    assert abs(weakest(ChannelState("tdl-a", 2, 2, 100.0, 30.0)) - 1 / 8) < 0.01


@pytest.mark.parametrize("name", ["cdl-b", "cdl-c"])
def test_arrays_of_cdl_see_the_clusters_of_their_side(name):
    """Against the sum over all rays; every angle meets every other of its cluster equally often."""
    h = realise(ChannelState(name, 2, 2, 100.0, 30.0), 12_000, 0, (0.0,), (0.0,))[..., 0, 0]
    _, powers, _, (aoa, zoa, aod, zod), _ = profile(name)

    def neighbours(azimuth, zenith):  # in every cluster, [C]
        shift = np.pi * np.sin(azimuth)[:, :, None] * np.sin(zenith)[:, None, :]
        return np.exp(1j * shift).mean(axis=(1, 2))

    receive, transmit = neighbours(aoa, zoa).conj(), neighbours(aod, zod)
    agrees(np.mean(h[:, 1] * h[:, 0].conj(), axis=1), powers @ receive)
    agrees(np.mean(h[:, :, 1] * h[:, :, 0].conj(), axis=1), powers @ transmit)
    agrees(h[:, 1, 1] * h[:, 0, 0].conj(), powers @ (receive * transmit))
    agrees(h[:, 1, 0] * h[:, 0, 1].conj(), powers @ (receive * transmit.conj()))


@pytest.mark.parametrize("name, arrival_deg, departure_deg", [("cdl-a", 11, 5), ("cdl-c", 15, 2)])
def test_clusters_of_cdl_have_the_tables_azimuth_spreads(name, arrival_deg, departure_deg):
    """cASA and cASD of TR 38.901 tables 7.7.1-1 and -3, as standard deviations."""
    azimuths = profile(name).rays[::2]
    for azimuth, spread in zip(azimuths, (arrival_deg, departure_deg)):
        np.testing.assert_allclose(np.rad2deg(azimuth.std(axis=1)), spread, rtol=1e-3)


def test_the_line_of_sight_of_cdl_turns_with_the_rays_from_its_direction():
    state = ChannelState("cdl-d", 1, 1, 0.0, 100.0)
    gains = channel._cluster_gains(state, np.random.default_rng(0), 4000, np.array([0.0, 4e-3]))
    power = np.abs(gains[:, 0, 0, :, 0]) ** 2
    assert np.corrcoef(power.T)[0, 1] > 0.8  # 0.2 if they turned against each other


# interference


def test_interference_is_that_of_jakes_and_of_late_taps():
    assert residual_interference(ChannelState("rayleigh", 1, 1), 30) == 0
    for doppler_hz in (50.0, 400.0):
        a = 2 * np.pi * doppler_hz / 30e3  # 1 - 2 int (1 - x) J0(a x) dx = a^2 / 24 to second order
        found = residual_interference(ChannelState("tdl-a", 1, 1, 0.0, doppler_hz), 30)
        assert abs(found / (a**2 / 24) - 1) < 0.01
    delays, powers = profile("tdl-a")[:2]
    # a prefix of 1.17 us
    found = residual_interference(ChannelState("tdl-a", 1, 1, 1000.0, 0.0), 60)
    late = np.maximum(delays * 1e-6 * 60e3 - 144 / 2048, 0)
    assert found > 0.03 and abs(found - np.sum(powers * (2 * late - late**2))) < 1e-5
    assert residual_interference(ChannelState("tdl-a", 1, 1, 100.0, 0.0), 15) < 1e-6


@given(st.sampled_from([*TDL, *CDL]), st.floats(0, 1000), st.floats(0, 2000))
def test_interference_grows_with_doppler_and_delay(name, doppler_hz, spread_ns):
    state = ChannelState(name, 1, 1, spread_ns, doppler_hz)
    found = residual_interference(state, 30)
    assert (
        0 <= found <= residual_interference(replace(state, doppler_hz=doppler_hz + 50), 30) + 1e-12
    )
    assert (
        found <= residual_interference(replace(state, delay_spread_ns=spread_ns + 50), 30) + 1e-12
    )


# processes of their own

FILE = Path(__file__).with_name("sionna_channel.py")


def run(*arguments):
    env = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(FILE.parents[2]),
    }
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=os.environ | env
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def test_drawing_imports_neither_tensorflow_nor_sionna():
    code = (
        "import sys; from twin.chain.channel import ChannelState, realise\n"
        "for name in ('tdl-d', 'cdl-d'):\n"
        "    realise(ChannelState(name, 2, 2, 100.0, 9.0), 1, 0, (0.0,), (0.0,))\n"
        "print({'tensorflow', 'sionna'} & set(sys.modules))"
    )
    assert run("-c", code) == "set()"


@pytest.fixture(scope="session")
def outcome():
    return json.loads(run(str(FILE)))


@pytest.mark.parametrize("name", re.findall(r"@check\ndef (\w+)", FILE.read_text()))
def test_against_sionna(name, outcome):
    assert outcome[name] is None, outcome[name]

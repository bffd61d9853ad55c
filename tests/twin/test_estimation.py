"""Channel estimation against direct formulas.

A filter's mean square error follows exactly from its weights and the channel's correlation, so most
bounds here are not statistical.
"""

from dataclasses import replace

import numpy as np
import pytest
from checking import complex_gaussian

from twin import Scenario, Workflow, physical
from twin.chain import link
from twin.chain.channel import correlation, realise
from twin.chain.estimation import estimate, estimator, knowledge, noise_variance, quantised_noise
from twin.chain.grid import (
    DMRS_SYMBOLS,
    comb,
    data_symbols,
    frequencies_hz,
    pilot_carriers,
    symbol_times_s,
)
from twin.physical import ChannelState

STATES = [
    ChannelState("tdl-a", 1, 1, 30.0, 35.0),
    ChannelState("tdl-a", 1, 1, 300.0, 10.0),
    ChannelState("tdl-b", 1, 1, 100.0, 400.0),
    ChannelState("tdl-c", 1, 1, 1000.0, 100.0),
    ChannelState("tdl-d", 1, 1, 100.0, 200.0),
    ChannelState("cdl-b", 1, 1, 100.0, 100.0),
    ChannelState("rayleigh", 1, 1),
]
STATE_IDS = [f"{s.channel}-{s.delay_spread_ns:g}ns-{s.doppler_hz:g}Hz" for s in STATES]
SCS_KHZ = 30


def places(num_prb, num_dmrs, layer=0, num_layers=1):
    """Times and frequencies of the grid [14 F] and of a layer's pilots [D P], symbol by symbol."""
    times, frequencies = (
        np.array(symbol_times_s(SCS_KHZ)),
        np.array(frequencies_hz(num_prb, SCS_KHZ)),
    )
    carriers, symbols = pilot_carriers(layer, num_layers, num_prb), list(DMRS_SYMBOLS[num_dmrs])
    everywhere = np.repeat(times, len(frequencies)), np.tile(frequencies, len(times))
    return everywhere, (
        np.repeat(times[symbols], len(carriers)),
        np.tile(frequencies[carriers], len(symbols)),
    )


def covariance(state, one, other):
    """E[h(one) h*(other)] of places as above."""
    dt, df = (np.subtract.outer(a, b).ravel() for a, b in zip(one, other))
    time, frequency = correlation(state, dt, df)
    return np.einsum("kn,kn->n", time, frequency).reshape(len(one[0]), len(other[0]))


def joint_weights(f):
    """Of every pilot [D P] for every element [14 F]."""
    return np.einsum("td,fp->tfdp", f.in_time, f.in_frequency).reshape(
        f.in_time.shape[0] * f.in_frequency.shape[0], -1
    )


def squared_error(state, f, noise, num_prb, num_dmrs, layer=0, num_layers=1):
    """Exact mean square error [14, F] of a filter, for a pilot's noise variance `noise`."""
    grid, pilots = places(num_prb, num_dmrs, layer, num_layers)
    w, cross = joint_weights(f).astype(complex), covariance(state, grid, pilots)
    among = covariance(state, pilots, pilots) + noise * np.eye(len(pilots[0]))
    error = (
        1
        - 2 * np.real(np.sum(w * cross.conj(), axis=1))
        + np.real(np.einsum("gp,pq,gq->g", w, among, w.conj()))
    )
    return error.reshape(14, -1)


def dense_error(state, noise, num_prb, num_dmrs):
    """Mean square error [14, F] of the Wiener filter over all pilots at once: no linear estimate is
    better.
    """
    grid, pilots = places(num_prb, num_dmrs)
    cross = covariance(state, grid, pilots)
    among = covariance(state, pilots, pilots) + noise * np.eye(len(pilots[0]))
    return (1 - np.real(np.sum(np.linalg.solve(among, cross.conj().T).T * cross, axis=1))).reshape(
        14, -1
    )


def filter_of(method, state, noise, num_prb=4, num_dmrs=2, layer=0, num_layers=1):
    return estimator(
        method,
        state,
        SCS_KHZ,
        num_prb,
        layer,
        num_layers,
        num_dmrs,
        noise * comb(num_layers) / num_layers,
        1.0,
    )


@pytest.mark.parametrize("num_dmrs", [1, 2])
@pytest.mark.parametrize("noise", [0.3, 0.01])
@pytest.mark.parametrize("state", STATES, ids=STATE_IDS)
def test_the_genies_filter_is_the_wiener_filter_but_for_a_little(state, noise, num_dmrs):
    """One over frequency, then one over time, against one over both: never better, and in the mean
    no more than 35 % worse.
    """
    best = dense_error(state, noise, 4, num_dmrs).mean(axis=1)
    ours = squared_error(
        state, filter_of("genie", state, noise, 4, num_dmrs), noise, 4, num_dmrs
    ).mean(axis=1)
    assert np.all(ours > best - 1e-5) and ours.mean() < 1.35 * best.mean(), (
        ours.mean() / best.mean()
    )


@pytest.mark.parametrize("num_dmrs", [1, 2])
@pytest.mark.parametrize("noise", [0.3, 0.01])
@pytest.mark.parametrize("state", STATES, ids=STATE_IDS)
def test_the_genies_filter_knows_its_error(state, noise, num_dmrs):
    f = filter_of("genie", state, noise, 4, num_dmrs)
    actual = squared_error(state, f, noise, 4, num_dmrs).mean(axis=1)
    np.testing.assert_allclose(f.error, actual, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("num_layers", [2, 3, 4])
def test_layers_are_estimated_each_from_its_own_pilots(num_layers):
    state = ChannelState("tdl-c", 1, 1, 300.0, 100.0)
    for layer in range(num_layers):
        f = filter_of("genie", state, 0.05, 4, 2, layer, num_layers)
        actual = squared_error(state, f, 0.05, 4, 2, layer, num_layers).mean(axis=1)
        np.testing.assert_allclose(f.error, actual, rtol=0.02)
        assert f.in_frequency.shape == (48, len(pilot_carriers(layer, num_layers, 4)))


# no taps beyond the cyclic prefix, no line of sight
INSIDE = [s for s in STATES if s.delay_spread_ns < 1000 and s.channel != "tdl-d"]


@pytest.mark.parametrize("num_dmrs", [1, 2])
@pytest.mark.parametrize(
    "state", INSIDE, ids=[f"{s.channel}-{s.delay_spread_ns:g}ns" for s in INSIDE]
)
def test_a_robust_filter_lies_between_the_genies_and_interpolation(state, num_dmrs):
    """On what it was made for: channels whose taps lie within the cyclic prefix, and a diffuse
    Doppler spectrum. It takes its error for no less than half of what it is, and no more than three
    times that.
    """
    for noise in (0.3, 0.03, 0.003):
        f = filter_of("lmmse", state, noise, 4, num_dmrs)
        genie, robust, ls = (
            squared_error(
                state, filter_of(method, state, noise, 4, num_dmrs), noise, 4, num_dmrs
            ).mean()
            for method in ("genie", "lmmse", "ls")
        )
        assert genie < robust < ls, (noise, genie, robust, ls)
        assert 0.45 < f.error.mean() / robust < 3, (noise, f.error.mean() / robust)


@pytest.mark.parametrize("num_dmrs", [1, 2])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_ls_is_linear_interpolation_held_outside(num_dmrs, num_layers):
    rng = np.random.default_rng(0)
    for layer in range(num_layers):
        f = filter_of("ls", None, 0.1, 2, num_dmrs, layer, num_layers)
        at, symbols = pilot_carriers(layer, num_layers, 2), list(DMRS_SYMBOLS[num_dmrs])
        observed = complex_gaussian(rng, num_dmrs, len(at)).astype(complex)
        rows = np.array(
            [
                np.interp(np.arange(24), at, row.real) + 1j * np.interp(np.arange(24), at, row.imag)
                for row in observed
            ]
        )
        expected = np.array(
            [
                np.interp(np.arange(14), symbols, c.real)
                + 1j * np.interp(np.arange(14), symbols, c.imag)
                for c in rows.T
            ]
        ).T
        np.testing.assert_allclose(
            (joint_weights(f) @ observed.ravel()).reshape(14, 24), expected, atol=1e-6
        )


def test_ls_nearest_takes_the_nearest_pilot():
    f = filter_of("ls-nearest", None, 0.1, 2, 2, 1, 4)
    at, symbols = pilot_carriers(1, 4, 2), np.array(DMRS_SYMBOLS[2])
    value = np.arange(2 * len(at)).reshape(2, -1)
    ours = np.real(joint_weights(f) @ value.ravel()).reshape(14, 24)
    for t, k in np.ndindex(14, 24):
        near = [
            np.flatnonzero(np.abs(x - here) == np.abs(x - here).min())
            for x, here in ((symbols, t), (at, k))
        ]
        assert ours[t, k] in value[np.ix_(*near)]


@pytest.mark.parametrize("method", ["ls", "ls-nearest"])
def test_least_squares_claims_the_noise_that_it_lets_through(method):
    """And nothing of what it loses of a channel that changes."""
    for num_layers, num_dmrs, noise in ((1, 1, 0.5), (2, 2, 0.1), (4, 2, 0.02)):
        f = filter_of(method, None, noise, 4, num_dmrs, num_layers - 1, num_layers)
        let_through = noise * np.sum(np.abs(joint_weights(f)) ** 2, axis=1).reshape(14, -1).mean(
            axis=1
        )
        np.testing.assert_allclose(f.error, let_through, rtol=1e-5)
        flat = squared_error(
            ChannelState("rayleigh", 1, 1), f, noise, 4, num_dmrs, num_layers - 1, num_layers
        )
        np.testing.assert_allclose(f.error, flat.mean(axis=1), rtol=1e-4)


def test_one_pilot_symbol_loses_a_fast_channel_and_two_hold_it():
    fast = ChannelState("tdl-a", 1, 1, 30.0, 700.0)
    one, two = (
        squared_error(fast, filter_of("genie", fast, 0.01, 4, n), 0.01, 4, n).mean(axis=1)
        for n in (1, 2)
    )
    assert one[13] > 0.5 and two.max() < 0.5 * one.max() and one.mean() > 2 * two.mean()
    # the further from the pilots, the worse
    assert one.argmin() == 2 and np.all(np.diff(one[2:]) > 0)


@pytest.mark.parametrize("method", ["genie", "ls", "lmmse"])
@pytest.mark.parametrize("num_layers, num_dmrs", [(1, 1), (2, 2), (4, 1)])
def test_estimates_in_the_link_err_as_the_filters_weights_say(method, num_layers, num_dmrs):
    """From what the antennas receive to the estimate, with pilots, their boost and the noise of the
    link.
    """
    pair = (
        Scenario(
            channel="tdl-c", snr_db=7, num_tx_ant=4, num_rx_ant=4, delay_spread_ns=100, speed_mps=10
        ),
        Workflow(num_layers=num_layers, num_dmrs=num_dmrs, estimator=method, num_prb=4),
    )
    point = physical(*pair)
    gains, slots = (1.0,) * num_layers, 1000
    h = realise(point.state, slots, 3, symbol_times_s(30), frequencies_hz(4, 30))
    noise = complex_gaussian(np.random.default_rng(4), slots, 4, num_dmrs, 48)
    g, known = knowledge(point, h, gains, noise)
    variance, single = noise_variance(point, gains), replace(point.state, num_rx=1, num_tx=1)
    claimed, error = 0.0, np.mean(np.abs(g - h) ** 2, axis=(1, 4))  # [S, L, 14]
    for layer in range(num_layers):
        f = estimator(method, single, 30, 4, layer, num_layers, num_dmrs, variance, 1.0)
        expected = squared_error(
            single, f, variance * num_layers / comb(num_layers), 4, num_dmrs, layer, num_layers
        ).mean(axis=1)
        spread = error[:, layer].std(axis=0) / np.sqrt(slots)
        assert np.all(np.abs(error[:, layer].mean(axis=0) - expected) < 5 * spread + 1e-4), (
            layer,
            expected,
        )
        claimed = claimed + f.error / num_layers
    if method != "lmmse":  # which measures the noise
        np.testing.assert_allclose(known, np.tile(variance + claimed, (slots, 1)), rtol=1e-3)


@pytest.mark.parametrize(
    "state",
    [ChannelState("rayleigh", 2, 2), ChannelState("tdl-a", 2, 2, 100.0, 30.0)],
    ids=["flat", "tdl-a"],
)
@pytest.mark.parametrize("noise", [0.5, 0.05])
def test_a_robust_receiver_measures_its_noise(state, noise):
    """From what its filter takes away over a grant of 8 PRB: no less than there is, and little more
    (what it takes from the channel).
    """
    h = realise(state, 400, 3, symbol_times_s(30), frequencies_hz(8, 30))
    filters = [estimator("lmmse", state, 30, 8, layer, 2, 1, noise, 1.0) for layer in range(2)]
    at = list(DMRS_SYMBOLS[1])
    y = np.sqrt(noise).astype(np.float32) * complex_gaussian(
        np.random.default_rng(1), 400, 2, 1, 96
    )
    for layer in range(2):
        y[..., layer::2] += h[:, :, layer, at, layer::2]
    measured = estimate(y, filters)[1]
    assert 0.97 < measured.mean() / noise < 1.4, measured.mean() / noise
    assert measured.std() < 0.2 * noise


def test_filters_are_kept_for_noise_in_classes_of_three_decibels():
    classes = {quantised_noise(10 ** (db / 10)) for db in np.arange(-30, 30, 0.1)}
    assert len(classes) == 21
    assert all(abs(np.log10(quantised_noise(x) / x)) <= 0.1501 for x in np.logspace(-3, 3, 500))


def test_pilots_of_layers_do_not_meet_each_other_or_data():
    for num_layers in (1, 2, 3, 4):
        used = np.concatenate([pilot_carriers(layer, num_layers, 3) for layer in range(num_layers)])
        assert len(set(used)) == len(used)
        for num_dmrs in (1, 2):
            assert not set(data_symbols(num_dmrs)) & set(DMRS_SYMBOLS[num_dmrs])
            assert len(data_symbols(num_dmrs)) == 14 - num_dmrs


def test_noise_is_white_of_unit_variance_and_new_for_every_transmission():
    (one,), (other,) = (link.unit_noise(32, 2, 14, 48, link.seed_of(9, "noise", k)) for k in (0, 1))
    assert abs(np.mean(np.abs(one) ** 2) - 1) < 4 / np.sqrt(one.size)
    for a, b in (
        (one[:, 0], one[:, 1]),
        (one, other),
        (one[..., 1:], one[..., :-1]),
        (one[:, :, 1:], one[:, :, :-1]),
    ):
        assert abs(np.mean(a * b.conj())) < 4 / np.sqrt(a.size)
    assert abs(np.mean(one**2)) < 4 / np.sqrt(one.size)  # circular

"""Channel draws against Sionna's TDL and CDL. Imports TensorFlow, so test_channel.py runs it in a
process of its own: `python sionna_channel.py` writes {check: traceback or null} as JSON to its last
line.

Every comparison is of two samples of independent slots and rejects equal ones with probability
FALSE_ALARM. Below 200 of them, together they raise a false alarm for one seed in 500. The controls
show what they see.
"""

import json
import traceback
from dataclasses import replace
from functools import cache

import numpy as np
from checking import CHECKS, check
from scipy.stats import ks_2samp, norm
from sionna.phy import config
from sionna.phy.channel import cir_to_ofdm_channel
from sionna.phy.channel.tr38901 import CDL, TDL, PanelArray

from twin.chain.channel import (
    ANTENNA_CORRELATION,
    ChannelState,
    correlation_matrix,
    profile,
    realise,
)

FALSE_ALARM = 1e-5
SLOTS, BATCH = 4000, 500
STEP_S, DOPPLER_HZ = 1e-3, 180.0
TIMES_S = (0.0, STEP_S, 2 * STEP_S)
FREQUENCIES_HZ = tuple(np.arange(12) * 0.4e6 - 2e6)
CARRIER_HZ = 1e9
SPEED_MPS = DOPPLER_HZ * 299_792_458.0 / CARRIER_HZ


def array(num_antennas: int) -> PanelArray:
    return PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=num_antennas,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=CARRIER_HZ,
    )


@cache
def sionnas(state: ChannelState) -> np.ndarray:
    """As `realise`, [SLOTS, rx, tx, T, F], by Sionna."""
    config.seed = 11
    letter, spread_s = state.channel[-1].upper(), state.delay_spread_ns * 1e-9
    if state.channel.startswith("tdl"):
        gnb, ue = ANTENNA_CORRELATION[state.antenna_correlation]
        model = TDL(
            letter,
            spread_s,
            CARRIER_HZ,
            min_speed=SPEED_MPS,
            num_rx_ant=state.num_rx,
            num_tx_ant=state.num_tx,
            rx_corr_mat=correlation_matrix(gnb, state.num_rx),
            tx_corr_mat=correlation_matrix(ue, state.num_tx),
        )
    else:
        rx, tx = array(state.num_rx), array(state.num_tx)
        model = CDL(letter, spread_s, CARRIER_HZ, rx, tx, "downlink", min_speed=SPEED_MPS)
    draws = []
    for _ in range(SLOTS // BATCH):
        a, tau = model(BATCH, len(TIMES_S), 1 / STEP_S)
        h = cir_to_ofdm_channel(np.array(FREQUENCIES_HZ, np.float32), a, tau).numpy()
        draws.append(h[:, 0, :, 0])
    return np.concatenate(draws)


@cache
def ours(state: ChannelState) -> np.ndarray:
    return realise(state, SLOTS, 12, TIMES_S, FREQUENCIES_HZ)


def products(h, across_antennas: bool) -> dict[str, np.ndarray]:
    """Second-order statistics of every slot, [SLOTS] each, by the name of what they estimate."""
    found = {"power": np.abs(h[:, 0, 0, 0, 0]) ** 2}
    for dt, df in ((1, 0), (2, 0), (0, 1), (0, 3), (0, 11), (1, 2), (2, 5)):
        a, b = h[..., dt:, df:], h[..., : h.shape[3] - dt, : h.shape[4] - df]
        found[f"lag {dt}, {df}"] = np.mean(a * b.conj(), axis=(1, 2, 3, 4))
    if across_antennas:
        for name, a, b in (
            ("receive", h[:, 1:], h[:, :-1]),
            ("transmit", h[:, :, 1:], h[:, :, :-1]),
            ("crosswise", h[:, 1:, 1:], h[:, :-1, :-1]),
            ("receive, next time", h[:, 1:, :, 1:], h[:, :-1, :, :-1]),
        ):
            found[f"{name} antennas"] = np.mean(a * b.conj(), axis=(1, 2, 3, 4))
    return found


def distributions(h) -> dict[str, np.ndarray]:
    """Random variables that decide on block errors, [SLOTS] each."""
    singular = np.linalg.svd(h[:, :, :, 0, 0], compute_uv=False) ** 2
    return {
        "wideband power": np.mean(np.abs(h[:, 0, 0, 0]) ** 2, axis=-1),
        "power over antennas": np.sum(np.abs(h[:, :, :, 0, 0]) ** 2, axis=(1, 2)),
        "weakest direction's share": singular[:, -1] / singular.sum(axis=1),
        "change over time": np.mean(np.abs(h[:, 0, 0, 1] - h[:, 0, 0, 0]) ** 2, axis=-1),
    }


def differences(a, b, across_antennas: bool) -> list[str]:
    """What two samples differ in."""
    found, z = [], norm.isf(FALSE_ALARM / 4)  # real and imaginary part, both sides
    theirs = products(b, across_antennas)
    for name, x in products(a, across_antennas).items():
        gap = x.mean() - theirs[name].mean()
        for part in (np.real, np.imag):
            error = np.hypot(part(x).std(), part(theirs[name]).std()) / np.sqrt(SLOTS)
            if abs(part(gap)) > z * error + 1e-9:
                found.append(f"{name}: {x.mean():.4f} against {theirs[name].mean():.4f}")
    theirs = distributions(b)
    pvalues = {name: ks_2samp(x, theirs[name]).pvalue for name, x in distributions(a).items()}
    return found + [name for name, pvalue in pvalues.items() if pvalue < FALSE_ALARM]


def state_of(channel, correlation="low", num_rx=2, num_tx=2):
    return ChannelState(channel, num_rx, num_tx, 200.0, DOPPLER_HZ, correlation)


def same(state: ChannelState, across_antennas: bool) -> None:
    found = differences(ours(state), sionnas(state), across_antennas)
    assert not found, (state, found)


@check
def tdl_is_sionnas():
    for channel in ("tdl-a", "tdl-b", "tdl-c"):
        same(state_of(channel), True)


@check
def tdl_with_correlated_antennas_is_sionnas():
    for state in (state_of("tdl-a", "medium"), state_of("tdl-c", "high", 3, 2)):
        same(state, True)


@check
def tdl_with_a_line_of_sight_is_sionnas_at_an_antenna():
    """Across antennas Sionna has the same phase everywhere, this model a random direction."""
    for channel in ("tdl-d", "tdl-e"):
        same(state_of(channel), False)


@check
def cdl_is_sionnas():
    for state in (state_of("cdl-a"), state_of("cdl-b", num_rx=3), state_of("cdl-c", num_tx=3)):
        same(state, True)


@check
def cdl_with_a_line_of_sight_is_sionnas():
    for channel in ("cdl-d", "cdl-e"):
        same(state_of(channel), True)


@check
def the_comparison_sees_a_tenth_more_doppler_and_a_fifth_more_delay_and_arrays_turned_round():
    for channel in ("tdl-c", "cdl-c"):
        state = state_of(channel)
        assert differences(
            ours(replace(state, doppler_hz=1.1 * DOPPLER_HZ)), sionnas(state), True
        ), channel
        assert differences(ours(replace(state, delay_spread_ns=240.0)), sionnas(state), True), (
            channel
        )
    state = state_of("cdl-c")
    assert differences(ours(state)[:, ::-1], sionnas(state), True)
    assert differences(ours(state)[:, :, ::-1], sionnas(state), True)
    assert differences(ours(state_of("tdl-a", "low")), sionnas(state_of("tdl-a", "medium")), True)
    assert differences(ours(state_of("tdl-d")), sionnas(state_of("tdl-e")), False)


@check
def profiles_are_sionnas():
    for letter in "abcde":
        tdl = TDL(letter.upper(), 1e-6, CARRIER_HZ)
        cdl = CDL(letter.upper(), 1e-6, CARRIER_HZ, array(1), array(1), "downlink")
        for name, model, powers in (("tdl", tdl, tdl.mean_powers), ("cdl", cdl, cdl.powers)):
            mine = profile(f"{name}-{letter}")
            np.testing.assert_allclose(
                mine.delays * 1e-6, model.delays.numpy(), rtol=1e-5, atol=1e-12
            )
            np.testing.assert_allclose(mine.powers, powers.numpy(), rtol=1e-5)
            if mine.los:
                ratio = mine.los / (mine.powers[0] - mine.los)
                np.testing.assert_allclose(ratio, float(model.k_factor.numpy()), rtol=1e-4)


if __name__ == "__main__":
    outcome = {}
    for function in CHECKS:
        try:
            function()
            outcome[function.__name__] = None
        except Exception:  # the test reports it
            outcome[function.__name__] = traceback.format_exc()
    print(json.dumps(outcome))

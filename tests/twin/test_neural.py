"""The neural modules through the whole chain, on channel profiles that they were not trained on. Seeds are fixed."""

from dataclasses import replace

import numpy as np
import pytest
from test_link import never_worse

from experiments.deeprx_curves import curves, gains
from twin import Scenario, Twin, Workflow

MOBILE = Scenario(channel="tdl-b", speed_mps=30, delay_spread_ns=100, num_tx_ant=1, num_rx_ant=2)
NEURAL = ("deeprx-small", "deeprx")


@pytest.fixture(scope="module")
def fine():
    with Twin(workers=2, max_blocks=256, enough_block_errors=40, enough_bits=1 << 40) as twin:
        yield twin


@pytest.mark.parametrize("channel, bits_per_symbol", [("tdl-b", 2), ("tdl-b", 4), ("cdl-c", 6)])
def test_one_pilot_symbol_is_worth_a_decibel_more_to_a_neural_receiver(fine, channel, bits_per_symbol):
    """At 30 m/s and BLER 10 %, against least squares and LMMSE, which 16QAM and 64QAM stay above at any SNR; and it stays
    behind perfect channel knowledge."""
    receivers = ("LS + LMMSE", "DeepRx small", "DeepRx", "perfect CSI")
    rows = gains(curves(fine, (channel,), (bits_per_symbol,), (30.0,), receivers, (1,), until=0.1))
    ls, small, base, perfect = (row["snr_db"] for row in rows)
    assert perfect < min(small, base) and max(small, base) < (np.inf if np.isnan(ls) else ls - 1), (ls, small, base, perfect)


@pytest.mark.parametrize("detector", NEURAL)
def test_perfect_estimation_bounds_a_neural_receiver(twin, detector):
    rng = np.random.default_rng(0)
    pairs = []
    for channel in ("awgn", "rayleigh", "tdl-b", "tdl-d", "cdl-c"):
        for m, near_db in ((2, 0), (4, 6), (6, 11), (8, 16)):
            s = replace(MOBILE, channel=channel, num_rx_ant=int(rng.integers(1, 5)), snr_db=float(near_db + rng.integers(-3, 4)))
            pairs.append((s, Workflow(bits_per_symbol=m, num_dmrs=int(rng.integers(1, 3)), detector=detector)))
    never_worse(twin, pairs, [(s, replace(w, detector="lmmse", estimator="perfect")) for s, w in pairs])


def test_the_estimator_of_a_neural_receiver_does_not_matter(twin):
    one, other = twin.evaluate([(MOBILE, Workflow(detector="deeprx-small", estimator=e)) for e in ("ls", "lmmse")])
    assert one.block_errors == other.block_errors and one.delay_ms == other.delay_ms


MOVING = Scenario(channel="tdl-b", speed_mps=10, delay_spread_ns=100, num_tx_ant=4, num_rx_ant=1)


def test_prediction_pays_where_the_channel_moves(fine):
    """Beamforming from four antennas to one: an outdated direction loses much of the array's gain, a predicted one little."""
    workflow = Workflow(bits_per_symbol=4, num_dmrs=2, estimator="lmmse")
    for snr_db in (4, 6):
        moving = replace(MOVING, snr_db=snr_db)
        outdated, predicted = fine.evaluate([(moving, replace(workflow, precoder=p)) for p in ("svd", "deeptx")])
        assert predicted.bler < 0.5 * outdated.bler, (snr_db, outdated.bler, predicted.bler)


def test_prediction_costs_nothing_but_time_where_the_channel_holds_still(twin):
    workflow = Workflow(bits_per_symbol=4, num_dmrs=2, estimator="lmmse")
    for channel in ("tdl-b", "rayleigh"):
        still = replace(MOVING, channel=channel, speed_mps=0, snr_db=3)
        svd, deeptx = twin.evaluate([(still, replace(workflow, precoder=p)) for p in ("svd", "deeptx")])
        assert deeptx.bler_interval(4)[0] <= svd.bler_interval(4)[1] and svd.bler_interval(4)[0] <= deeptx.bler_interval(4)[1]
        assert deeptx.delay_ms > svd.delay_ms

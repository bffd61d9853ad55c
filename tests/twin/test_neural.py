"""The neural modules through the whole chain, on channel profiles that they were not trained on.
Seeds are fixed.
"""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from experiments.networks.deeprx_curves import RECEIVERS, curves, gains
from twin import Scenario, Twin, Workflow
from twin.statistics import block_limits

MOBILE = Scenario(channel="tdl-b", speed_mps=30, delay_spread_ns=100, num_tx_ant=1, num_rx_ant=2)
NEURAL = ("deeprx-small", "deeprx")
RISK = 6e-5  # of a false alarm of one comparison: four standard deviations


@pytest.fixture(scope="module")
def fine():
    with Twin(workers=2, max_blocks=384, enough_block_errors=1 << 30, method="link") as twin:
        yield twin


def limits(qos):
    return block_limits(qos.block_errors, qos.num_blocks, RISK)


def test_the_receiver_runs_without_sionna():
    code = "import sys, twin.chain.deeprx; sys.exit('sionna' in sys.modules)"
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


@pytest.mark.parametrize("channel, bits_per_symbol", [("tdl-b", 2), ("tdl-b", 4), ("cdl-c", 6)])
def test_one_pilot_symbol_is_worth_a_decibel_more_to_a_neural_receiver(
    fine, channel, bits_per_symbol
):
    """At 30 m/s and BLER 10 %, against least squares, which 16QAM and 64QAM stay above at any SNR,
    and against the Wiener filter; and it stays behind perfect channel knowledge, by less than 6 dB.
    """
    receivers = ("LS + LMMSE", "LMMSE + LMMSE", "DeepRx small", "DeepRx", "perfect CSI")
    rows = gains(curves(fine, (channel,), (bits_per_symbol,), (30.0,), receivers, (1,), until=0.1))
    ls, lmmse, small, base, perfect = (row["snr_db"] for row in rows)
    for classical in (ls, lmmse):
        assert np.isnan(classical) or max(small, base) < classical - 1, (
            ls,
            lmmse,
            small,
            base,
            perfect,
        )
    assert perfect < min(small, base) and max(small, base) < perfect + 6, (
        ls,
        lmmse,
        small,
        base,
        perfect,
    )


@pytest.mark.parametrize("num_prb", (1, 8, 20))
@pytest.mark.parametrize("receiver", ("DeepRx small", "DeepRx"))
def test_a_neural_receiver_is_between_least_squares_and_perfect_knowledge_on_grants_of_any_width(
    fine, receiver, num_prb
):
    """Apart from both, and with few errors where least squares has many: at 10 m/s, QPSK, one DM-RS
    symbol.
    """
    near = replace(MOBILE, channel="tdl-d", speed_mps=10, snr_db=1.0)
    workflow = Workflow(num_prb=num_prb, scs_khz=30)
    ls, neural, perfect = fine.evaluate(
        [
            (near, replace(workflow, **RECEIVERS[name]))
            for name in ("LS + LMMSE", receiver, "perfect CSI")
        ]
    )
    assert limits(perfect)[0] <= limits(neural)[1] and limits(neural)[1] < limits(ls)[0], (
        ls.bler,
        neural.bler,
        perfect.bler,
    )


@pytest.mark.parametrize("detector", NEURAL)
def test_perfect_estimation_bounds_a_neural_receiver(twin, detector):
    rng = np.random.default_rng(0)
    pairs = []
    for channel in ("awgn", "rayleigh", "tdl-b", "tdl-d", "cdl-c"):
        for m, near_db in ((2, 0), (4, 6), (6, 11), (8, 16)):
            s = replace(
                MOBILE,
                channel=channel,
                num_rx_ant=int(rng.integers(1, 5)),
                snr_db=float(near_db + rng.integers(-3, 4)),
            )
            pairs.append(
                (
                    s,
                    Workflow(
                        num_prb=int(rng.integers(1, 9)),
                        bits_per_symbol=m,
                        num_dmrs=int(rng.integers(1, 3)),
                        detector=detector,
                    ),
                )
            )
    neural = twin.evaluate(pairs)
    perfect = twin.evaluate(
        [(s, replace(w, detector="lmmse", estimator="perfect")) for s, w in pairs]
    )
    for pair, one, other in zip(pairs, neural, perfect):
        assert limits(other)[0] <= limits(one)[1], (pair, one.bler, other.bler)


@pytest.mark.parametrize("detector", NEURAL)
def test_a_neural_receiver_delivers_where_the_link_is_good(twin, detector):
    """Every modulation and number of pilots, one to four antennas, on each channel."""
    pairs = [
        (
            replace(
                MOBILE,
                channel=channel,
                num_rx_ant=rx,
                speed_mps=3,
                snr_db=10.0 + 4 * m - 5 * np.log2(rx),
            ),
            Workflow(num_prb=3, bits_per_symbol=m, num_dmrs=1 + rx % 2, detector=detector),
        )
        for channel in ("awgn", "tdl-b", "cdl-c")
        for m, rx in ((2, 4), (4, 3), (6, 2), (8, 1))
    ]
    for pair, qos in zip(pairs, twin.evaluate(pairs)):
        assert qos.block_errors <= 0.2 * qos.num_blocks, (pair, qos.bler)


def test_the_estimator_of_a_neural_receiver_does_not_matter(twin):
    one, other = twin.evaluate(
        [(MOBILE, Workflow(detector="deeprx-small", estimator=e)) for e in ("ls", "lmmse")]
    )
    assert one.block_errors == other.block_errors and one.delay_ms == other.delay_ms


def test_retransmissions_of_few_slots_take_the_same_receiver(fine):
    """HARQ: combined transmissions are never worse, and worth much where the first one mostly
    fails.
    """
    one, two = fine.evaluate(
        [
            (
                replace(MOBILE, snr_db=1.0),
                Workflow(num_prb=4, detector="deeprx-small", num_transmissions=n),
            )
            for n in (1, 2)
        ]
    )
    assert limits(two)[1] < limits(one)[0], (one.bler, two.bler)
    assert 1 - two.delivered[0] == pytest.approx(one.block_errors / one.num_blocks, abs=0.25)


MOVING = Scenario(channel="tdl-b", speed_mps=10, delay_spread_ns=100, num_tx_ant=4, num_rx_ant=1)
BEAM = Workflow(num_prb=8, bits_per_symbol=4, num_dmrs=2, estimator="lmmse")


def test_prediction_pays_where_the_channel_moves(fine):
    """Beamforming from four antennas to one: an outdated direction loses much of the array's gain,
    a predicted one little.
    """
    for snr_db in (6, 8):
        moving = replace(MOVING, snr_db=snr_db)
        outdated, predicted = fine.evaluate(
            [(moving, replace(BEAM, precoder=p)) for p in ("svd", "deeptx")]
        )
        assert (
            predicted.bler < 0.6 * outdated.bler and limits(predicted)[1] < limits(outdated)[0]
        ), (snr_db, outdated.bler, predicted.bler)


def test_prediction_costs_nothing_but_time_where_the_channel_holds_still(twin):
    """On wide grants and on one resource block, where estimates of a weak link are at their
    noisiest.
    """
    for channel in ("tdl-b", "rayleigh"):
        for num_prb, bits_per_symbol, snr_db in ((8, 4, 5), (1, 2, -1), (1, 4, 5)):
            still = replace(MOVING, channel=channel, speed_mps=0, snr_db=snr_db)
            workflow = replace(BEAM, num_prb=num_prb, bits_per_symbol=bits_per_symbol)
            svd, deeptx = twin.evaluate(
                [(still, replace(workflow, precoder=p)) for p in ("svd", "deeptx")]
            )
            assert limits(deeptx)[0] <= limits(svd)[1] and limits(svd)[0] <= limits(deeptx)[1]
            # where one could see it
            assert 0 < svd.block_errors < svd.num_blocks, (channel, num_prb, svd.bler)
            assert deeptx.delay_ms > svd.delay_ms

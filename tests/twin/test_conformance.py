"""The chain against Sionna's phy.nr PUSCH chain (experiments/truth/conformance.py says what was
made equal) and TS 38.104.
"""

import json
import subprocess
import sys
from dataclasses import replace
from math import log

import pytest
from scipy.stats import chi2

from twin import Scenario, Workflow
from twin.physical import SPEED_OF_LIGHT_MPS, physical


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """In a process of its own: TensorFlow."""
    out = tmp_path_factory.mktemp("conformance") / "rows.json"
    command = [
        sys.executable,
        "-m",
        "experiments.truth.conformance",
        "--slots",
        "200",
        "--out",
        str(out),
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(out.read_text())["links"]


@pytest.mark.slow
def test_error_rates_are_those_of_sionnas_pusch(rows):
    """Each link alone at a risk of 1 in 1000, and all together (Fisher's sum of -2 ln p)."""
    assert len(rows) >= 8
    for row in rows:
        assert 0.015 < row["sionna"]["bler"][0] < 0.85, row
        assert row["bler_p"] > 1e-3 and abs(row["ber_z"]) < 3.5, row
    together = sum(-2 * log(row["bler_p"]) for row in rows)
    assert together < chi2.isf(1e-3, 2 * len(rows)), together


@pytest.mark.slow
def test_the_noise_is_sionnas(rows):
    """The received ratio of signal to noise is the scenario's: both chains mean the same by
    snr_db.
    """
    for row in rows:
        measured, error = row["sionna"]["snr_db"]
        assert abs(measured - row["snr_db"]) < 0.05 + 4 * error, row


@pytest.mark.slow
def test_the_decoder_corrects_what_sionnas_does_after_its_own_detector(rows):
    """The same LLRs through both decoders: 10 layered iterations against 20 flooding ones."""
    for row in rows:
        theirs, ours = row["sionna"]["errors"], row["sionna"]["errors, the twin's decoder"]
        assert abs(theirs - ours) <= 3 + 0.1 * theirs, row


# TS 38.104 8.2.1: Es/N0 in dB at which 70 % of the largest throughput must be had, with 2, 4 and 8
# receive antennas. The QPSK rows are of rate 193/1024; ours is the lowest of the toolbox, which
# asks 0.3 dB more
REQUIRED = {
    ("tdl-b", 100, 400, 2, 0.2): (-2.8, -5.8, -8.7),
    ("tdl-c", 300, 100, 4, 658 / 1024): (10.2, 6.5, 3.2),
    ("tdl-a", 30, 10, 6, 567 / 1024): (13.0, 9.0, 5.8),
}


@pytest.mark.parametrize("row", REQUIRED, ids=lambda row: row[0])
def test_the_receiver_meets_38_104_with_the_margin_of_a_sound_one(row, simulate):
    """At the required SNR, and no longer 4 dB below: the figures carry about 2 dB for the
    implementation. 25 PRB of 15 kHz, two DM-RS symbols, up to four transmissions of redundancy
    versions 0, 2, 3, 1.
    """
    channel, spread_ns, doppler_hz, bits_per_symbol, rate = row
    scenario = Scenario(
        channel=channel,
        delay_spread_ns=spread_ns,
        carrier_ghz=3.5,
        num_tx_ant=1,
        speed_mps=doppler_hz * SPEED_OF_LIGHT_MPS / 3.5e9,
    )
    workflow = Workflow(
        num_prb=25,
        scs_khz=15,
        bits_per_symbol=bits_per_symbol,
        code_rate=rate,
        num_dmrs=2,
        estimator="lmmse",
        num_transmissions=4,
    )
    points = []
    for num_rx, required_db in zip((2, 4, 8), REQUIRED[row]):
        for snr_db in (required_db, required_db - 4):
            point = physical(replace(scenario, snr_db=snr_db), workflow)
            state = replace(point.state, num_rx=num_rx)  # more antennas than a scenario may have
            points.append(replace(point, state=state, rounds=(0, 256 // 16)))
    shares = []
    for counts in simulate(points):
        n = counts.num_blocks
        transmissions = n + sum(counts.failed[:-1])
        shares.append((n - counts.failed[-1]) / transmissions)
    assert min(shares[::2]) >= 0.7 > max(shares[1::2]), shares

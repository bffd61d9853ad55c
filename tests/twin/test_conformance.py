"""Equal configurations through Sionna's phy.nr PUSCH chain and through the twin (see pusch.py for what was made equal)."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from twin import Scenario, Workflow
from twin.physical import physical

FILE = Path(__file__).with_name("pusch.py")
SLOTS = 600


def case(snr_db, channel="awgn", rx=1, speed=3.0, spread=100.0, estimator="perfect", **workflow):
    layers = workflow.get("num_layers", 1)
    return (Scenario(channel=channel, snr_db=snr_db, num_tx_ant=layers, num_rx_ant=rx, speed_mps=speed, delay_spread_ns=spread),
            Workflow(estimator=estimator, decoder_iterations=10, **workflow))


CASES = (  # block error rates between 0.03 and 0.8
    case(1.4, num_prb=4, bits_per_symbol=2, code_rate=526 / 1024),
    case(14.2, num_prb=10, bits_per_symbol=6, code_rate=666 / 1024),
    case(22.2, num_prb=8, bits_per_symbol=8, code_rate=841 / 1024),
    case(4.0, "tdl-a", 2, num_prb=8, bits_per_symbol=2, code_rate=526 / 1024),
    case(8.0, "tdl-a", 2, speed=1.0, spread=30.0, num_prb=24, bits_per_symbol=4, code_rate=490 / 1024),
    case(5.0, "tdl-a", 2, estimator="ls", num_prb=8, bits_per_symbol=2, code_rate=449 / 1024),
    case(12.0, "tdl-b", 2, speed=30.0, estimator="ls", num_prb=25, bits_per_symbol=4, code_rate=490 / 1024),
    case(9.5, "tdl-b", 2, speed=10.0, estimator="ls", num_prb=12, bits_per_symbol=4, code_rate=490 / 1024, num_dmrs=2),
    case(10.5, "tdl-c", 4, spread=300.0, estimator="ls", num_prb=10, bits_per_symbol=4, code_rate=490 / 1024, num_layers=2),
    case(10.0, "tdl-c", 2, spread=300.0, num_prb=10, bits_per_symbol=4, code_rate=340 / 1024, num_layers=2),
)


def run(mode, text=""):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(FILE.parents[2])}
    done = subprocess.run([sys.executable, str(FILE), mode], input=text, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_transport_blocks_and_their_coded_bits_are_sionnas():
    """Sizes, code blocks and E_r of every MCS, number of resource blocks and layers; coded bits, bit for bit, of 32 grants."""
    answer = run("blocks")
    assert answer["sizes"]["wrong"] == [] and answer["sizes"]["compared"] > 50_000
    assert all(row["wrong"] == 0 and row["base_graph"][0] == row["base_graph"][1] for row in answer["coded"]), answer["coded"]
    assert {row["blocks"] > 1 for row in answer["coded"]} == {True, False}


@pytest.mark.slow
def test_block_error_rates_are_those_of_sionnas_pusch(simulate):
    """Each within 3.5 standard errors of the difference, all together within what chance allows (a chi-square of one in ten thousand)."""
    asked = [dict(scenario=asdict(s), workflow=asdict(w), slots=SLOTS, seed=7) for s, w in CASES]
    theirs = run("links", json.dumps(asked))
    points = [physical(*pair) for pair in CASES]
    ours = simulate([replace(p, rounds=(0, -(-2 * SLOTS // p.slots_per_round))) for p in points])
    total = 0.0
    for pair, a, b in zip(CASES, ours, theirs):
        p, q = a.block_errors / a.num_blocks, b["errors"] / b["blocks"]
        both = (a.block_errors + b["errors"]) / (a.num_blocks + b["blocks"])
        z = (p - q) / math.sqrt(both * (1 - both) * (1 / a.num_blocks + 1 / b["blocks"]))
        total += z * z
        assert 0.02 < q < 0.9 and abs(z) < 3.5, (pair, p, q, z)
        assert abs(b["ratio"] * 10 ** (-pair[0].snr_db / 10) - 1) < max(0.03, 5 * b["ratio_error"]), (pair, b)
    assert total < 35.6, total  # chi-square, 10 degrees of freedom

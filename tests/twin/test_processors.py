"""What a processor without AVX-512, and one without AVX2, makes of the same points: code for
another processor, in other processes.
"""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json
from dataclasses import asdict, replace
from twin import Scenario, Settings, Workflow
from twin.chain import link
from twin.physical import physical

points = [physical(Scenario(channel=channel, snr_db=snr_db, num_tx_ant=layers, num_rx_ant=2, speed_mps=5.0), Workflow(
    num_prb=4, bits_per_symbol=bits, code_rate=0.5, num_layers=layers, estimator=estimator, decoder_iterations=6))
    for channel, snr_db, bits, layers, estimator in (
        ("tdl-a", 4.0, 2, 1, "ls"), ("tdl-c", 13.0, 4, 2, "lmmse"), ("cdl-b", 9.0, 4, 1, "lmmse"), ("rayleigh", 9.0, 4, 1, "ls"))]
print(json.dumps([asdict(link.simulate(replace(p, rounds=(0, 2)), 0, Settings(method=method)))
                  for method in ("link", "esm") for p in points]))
"""  # noqa: E501
AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"


def counts(tmp_path, **environment):
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(tmp_path)} | environment
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_another_processors_instructions_change_no_more_than_a_rare_decision(tmp_path):
    """Sums in other orders change last bits of channels and LLRs, so that a block on the edge may
    fall to the other side; of 64 slots a point at most one, and expectations by a part in a
    thousand.
    """
    here = counts(tmp_path / "here")
    other = counts(
        tmp_path / "other",
        NUMBA_CPU_NAME="haswell",
        NUMBA_CPU_FEATURES="+avx2,+fma",
        OPENBLAS_CORETYPE="Haswell",
        NPY_DISABLE_CPU_FEATURES=AVX512,
    )
    assert [one["num_blocks"] for one in here] == [one["num_blocks"] for one in other]
    half = len(here) // 2
    for one, two in zip(here[:half], other[:half]):
        assert (
            0 < one["failed"][-1] < one["num_blocks"]
            and abs(one["failed"][-1] - two["failed"][-1]) <= 1
        ), (one, two)
    for one, two in zip(here[half:], other[half:]):
        assert two["failed"][-1] == pytest.approx(one["failed"][-1], rel=1e-3), (one, two)

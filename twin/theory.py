"""What is known without simulating: closed forms for uncoded Gray QAM, Sionna's own tables for the
LDPC code in AWGN, and the modulation and coding schemes of TS 38.214.
"""

from __future__ import annotations

import functools
import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np

# TS 38.214 table 5.1.3.1-1: (bits per symbol, code rate x 1024) by MCS index
MCS_TABLE_1 = (
    *((2, r) for r in (120, 157, 193, 251, 308, 379, 449, 526, 602, 679)),
    *((4, r) for r in (340, 378, 434, 490, 553, 616, 658)),
    *((6, r) for r in (438, 466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948)),
)


def _q(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))


@functools.cache
def _terms(bits_per_symbol: int) -> tuple[tuple[float, float], ...]:
    """(c, d) such that the BER of Gray square QAM in AWGN is the sum of c Q(d sqrt(Es/N0)) (Cho and
    Yoon, 2002, eq. 14).
    """
    per_dimension = bits_per_symbol // 2
    levels = 2**per_dimension
    weights = {}
    for k in range(1, per_dimension + 1):
        for i in range(int((1 - 2.0**-k) * levels)):
            step = i * 2 ** (k - 1) / levels
            weight = (-1) ** math.floor(step) * (2 ** (k - 1) - math.floor(step + 0.5))
            weights[i] = weights.get(i, 0) + 2 * weight / (levels * per_dimension)
    scale = math.sqrt(3 / (levels**2 - 1))
    return tuple((weight, (2 * i + 1) * scale) for i, weight in weights.items())


def awgn_ber(bits_per_symbol: int, es_n0_db: float) -> float:
    """BER of uncoded Gray QAM in AWGN with decisions for the nearest symbol."""
    snr = 10 ** (es_n0_db / 10)
    return sum(c * _q(d * math.sqrt(snr)) for c, d in _terms(bits_per_symbol))


def rayleigh_ber(bits_per_symbol: int, es_n0_db: float, branches: int = 1) -> float:
    """The same in Rayleigh fading with maximum-ratio combining of independent branches (Proakis
    14.4-15).
    """
    snr = 10 ** (es_n0_db / 10)

    def average_q(d):
        mu = math.sqrt(d * d * snr / 2 / (1 + d * d * snr / 2))
        ways = sum(math.comb(branches - 1 + k, k) * ((1 + mu) / 2) ** k for k in range(branches))
        return ((1 - mu) / 2) ** branches * ways

    return sum(c * average_q(d) for c, d in _terms(bits_per_symbol))


def table_bler(mcs: int, num_info_bits: float) -> tuple[np.ndarray, np.ndarray]:
    """Es/N0 in dB and BLER of a code block in Sionna's PDSCH table 1 (LDPC, 20 iterations of belief
    propagation, AWGN).

    Interpolated in log BLER between code blocks of 500, 1000 and 2000 bits; a shorter or longer one
    is taken for the nearest.
    """
    path = Path(
        find_spec("sionna").submodule_search_locations[0], "sys", "bler_tables", "PDSCH_table1.json"
    )
    entry = json.loads(path.read_text())["category"]["1"]["index"]["1"]["MCS"][str(mcs)]
    sizes = (500, 1000, 2000)
    rows = np.log([np.maximum(entry["CBS"][str(size)]["BLER"], 1e-5) for size in sizes])
    return np.array(entry["SNR_db"]), np.exp(
        [np.interp(num_info_bits, sizes, column) for column in rows.T]
    )


def nearest_mcs(bits_per_symbol: int, code_rate: float) -> int | None:
    """The MCS of this modulation with this code rate to within 0.02, if there is one."""
    distance = {
        i: abs(r / 1024 - code_rate) for i, (q, r) in enumerate(MCS_TABLE_1) if q == bits_per_symbol
    }
    best = min(distance, key=distance.get, default=None)
    return best if best is not None and distance[best] < 0.02 else None

"""What is known without simulating: closed forms for uncoded Gray QAM, Sionna's own tables for the LDPC code in AWGN, and
the transport blocks and modulation and coding schemes of TS 38.214."""

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
# TS 38.214 table 5.1.3.2-1: transport blocks of up to 3824 bits, in steps of 8, 16, ... between these sizes
_SMALL_BLOCKS = sorted(
    {*range(24, 193, 8), *range(208, 385, 16), *range(408, 577, 24), *range(608, 769, 32), *range(808, 929, 40), 984, 1032, 1064,
     *range(1128, 1353, 32), *range(1416, 1929, 64), *range(2024, 2281, 64), *range(2408, 2857, 64), 2976, 3104,
     *range(3240, 3753, 128), 3824}
)


def transport_block_bits(num_prb: int, num_data_per_prb: int, bits_per_symbol: int, num_layers: int, code_rate: float) -> int:
    """Transport block size of a slot (TS 38.214 5.1.3.2); `num_data_per_prb` data resource elements per PRB and layer.

    The twin's throughput counts code_rate x coded bits instead, which differs by the rounding done here.
    """
    info = num_prb * min(156, num_data_per_prb) * code_rate * bits_per_symbol * num_layers
    if info <= 3824:
        step = 2 ** max(3, math.floor(math.log2(info)) - 6)
        quantised = max(24, step * math.floor(info / step))
        return next(size for size in _SMALL_BLOCKS if size >= quantised)
    step = 2 ** (math.floor(math.log2(info - 24)) - 5)
    quantised = max(3840, step * math.floor((info - 24) / step + 0.5))
    largest = 3816 if code_rate <= 1 / 4 else 8424
    num_blocks = math.ceil((quantised + 24) / largest) if code_rate <= 1 / 4 or quantised > 8424 else 1
    return 8 * num_blocks * math.ceil((quantised + 24) / (8 * num_blocks)) - 24


def _q(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))


@functools.cache
def _terms(bits_per_symbol: int) -> tuple[tuple[float, float], ...]:
    """(c, d) such that the BER of Gray square QAM in AWGN is the sum of c Q(d sqrt(Es/N0)) (Cho and Yoon, 2002, eq. 14)."""
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
    """The same in Rayleigh fading with maximum-ratio combining of independent branches (Proakis 14.4-15)."""
    snr = 10 ** (es_n0_db / 10)

    def average_q(d):
        mu = math.sqrt(d * d * snr / 2 / (1 + d * d * snr / 2))
        ways = sum(math.comb(branches - 1 + k, k) * ((1 + mu) / 2) ** k for k in range(branches))
        return ((1 - mu) / 2) ** branches * ways

    return sum(c * average_q(d) for c, d in _terms(bits_per_symbol))


def table_bler(mcs: int, num_info_bits: float) -> tuple[np.ndarray, np.ndarray]:
    """Es/N0 in dB and BLER of Sionna's PDSCH table 1 (LDPC, 20 iterations of belief propagation, AWGN).

    For code blocks between 500 and 1000 bits, interpolated in log BLER.
    """
    path = Path(find_spec("sionna").submodule_search_locations[0], "sys", "bler_tables", "PDSCH_table1.json")
    entry = json.loads(path.read_text())["category"]["1"]["index"]["1"]["MCS"][str(mcs)]
    small, large = (np.log(np.maximum(entry["CBS"][size]["BLER"], 1e-5)) for size in ("500", "1000"))
    share = min(max((num_info_bits - 500) / 500, 0), 1)
    return np.array(entry["SNR_db"]), np.exp((1 - share) * small + share * large)


def nearest_mcs(bits_per_symbol: int, code_rate: float) -> int | None:
    """The MCS of this modulation with this code rate to within 0.02, if there is one."""
    distance = {i: abs(r / 1024 - code_rate) for i, (q, r) in enumerate(MCS_TABLE_1) if q == bits_per_symbol}
    best = min(distance, key=distance.get, default=None)
    return best if best is not None and distance[best] < 0.02 else None

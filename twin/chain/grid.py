"""The OFDM grid of a grant: where pilots and data are.

A slot of 14 symbols, all subcarriers of the granted resource blocks. DM-RS: layer l of L sends
pilots on every comb-th subcarrier from l on, in symbol 2, or in symbols 2 and 11; nothing else is
sent in these symbols. A pilot has comb / L of the symbol power against 1 / L for a layer's data
symbol: the boost of TS 38.214 table 4.1-1. For one and two layers this is DM-RS type 1 with a port
in each CDM group; NR's codes over frequency for more layers are combs here.

Data: modulation symbols fill layers first, then subcarriers, then symbols (TS 38.211 6.3.1.3,
  6.3.1.6).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT, slot_ms

DMRS_SYMBOLS = {1: (2,), 2: (2, 11)}


def comb(num_layers: int) -> int:
    """Subcarriers from one pilot of a layer to its next."""
    return max(2, num_layers)


def pilot_carriers(layer: int, num_layers: int, num_prb: int) -> np.ndarray:
    """Subcarriers of a layer's pilots in a DM-RS symbol."""
    return np.arange(layer, num_prb * SUBCARRIERS_PER_PRB, comb(num_layers))


@cache
def data_symbols(num_dmrs: int) -> np.ndarray:
    """The OFDM symbols that carry data."""
    return np.array([s for s in range(SYMBOLS_PER_SLOT) if s not in DMRS_SYMBOLS[num_dmrs]])


@cache
def symbol_times_s(scs_khz: int) -> tuple[float, ...]:
    """Start of every symbol of a slot; all of one length."""
    return tuple(s * slot_ms(scs_khz) * 1e-3 / SYMBOLS_PER_SLOT for s in range(SYMBOLS_PER_SLOT))


@cache
def frequencies_hz(num_prb: int, scs_khz: int) -> tuple[float, ...]:
    """Subcarriers of the grant relative to its centre."""
    count = num_prb * SUBCARRIERS_PER_PRB
    return tuple((np.arange(count) - count // 2) * scs_khz * 1e3)

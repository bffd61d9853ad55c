"""The slice of the OFDM grid that is simulated: where pilots and data are.

A slice of 4 PRB x 14 symbols stands for the whole grant, whatever num_prb is: code blocks are independent given the
channel, so more resource blocks carry more blocks of the same kind. What the slice leaves out is the extra frequency
diversity of a wide grant.

DM-RS: layer l of L sends pilots on every comb-th subcarrier from l on, in symbol 2, or in symbols 2 and 11. A pilot symbol
carries no data, so that a pilot has comb / L of the symbol power against 1 / L for a layer's data symbol: the boost of
TS 38.214 table 4.1-1.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .physical import CODE_LENGTH
from .spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT

NUM_SC = 4 * SUBCARRIERS_PER_PRB
DMRS_SYMBOLS = {1: (2,), 2: (2, 11)}


def comb(num_layers: int) -> int:
    """Subcarriers from one pilot of a layer to its next."""
    return max(2, num_layers)


def pilots_per_slice(num_layers: int, num_dmrs: int) -> int:
    """Pilots of one layer in a slice."""
    return NUM_SC // comb(num_layers) * num_dmrs


@cache
def pilot_index(layer: int, num_layers: int, num_dmrs: int) -> np.ndarray:
    """Where in the slice (symbol * NUM_SC + subcarrier) a layer's pilots are, [num_pilots]."""
    return np.concatenate([s * NUM_SC + np.arange(layer, NUM_SC, comb(num_layers)) for s in DMRS_SYMBOLS[num_dmrs]])


@cache
def data_index(bits_per_symbol: int, num_layers: int) -> np.ndarray:
    """Resource elements that carry the simulated code block, spread over the slice at random but always the same.

    Those of a higher order are the first of those of a lower one. They avoid the symbols of both DM-RS patterns, so that a
    comparison of the two patterns is one of estimates alone.
    """
    symbols = [s for s in range(SYMBOLS_PER_SLOT) if s not in DMRS_SYMBOLS[2]]
    free = np.add.outer(np.array(symbols) * NUM_SC, np.arange(NUM_SC)).ravel()
    return np.random.default_rng(0).permutation(free)[: CODE_LENGTH // (bits_per_symbol * num_layers)]

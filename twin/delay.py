"""Delay and capacity from formulas: operation counts, never a wall clock, so that a workflow costs the same everywhere.

delay = slot time + operations of every module for the granted resource blocks / operations per second of the platform.
A complex multiply-accumulate counts as 8 operations.
"""

from __future__ import annotations

import math
from itertools import accumulate

from .grid import NUM_SC, pilots_per_slice
from .physical import effective_rate
from .spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT, Scenario, Workflow, slot_ms

CMAC = 8
OPS_PER_EDGE = 6  # min-sum message passing, per edge and iteration
# Degrees of the check nodes, row by row (TS 38.212 tables 5.3.2-2 and 5.3.2-3): 316 and 197 edges
_BG1 = (19, 19, 19, 19, 3, 8, 9, 7, 10, 9, 7, 8, 7, 6, 7, 7, 6, 6, 6, 6, 6, 6, 5, 5, 6, 5, 5, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5,
        4, 5, 5, 4, 5, 4, 5, 5, 4)
_BG2 = (8, 10, 8, 10, 4, 6, 6, 6, 4, 5, 5, 5, 4, 5, 5, 4, 5, 5, 4, 4, 4, 4, 3, 4, 4, 3, 5, 3, 4, 3, 5, 3, 4, 4, 4, 4, 4, 3,
        4, 4, 4, 4)
_EDGES = {22: tuple(accumulate(_BG1)), 10: tuple(accumulate(_BG2))}  # by information columns: edges of the first rows


def data_elements(workflow: Workflow) -> int:
    """Data resource elements of the granted slot, per layer."""
    return workflow.num_prb * SUBCARRIERS_PER_PRB * (SYMBOLS_PER_SLOT - workflow.num_dmrs)


def information_bits(workflow: Workflow) -> float:
    """Information bits of the granted slot, over all layers, at the rate that is simulated."""
    w = workflow
    return data_elements(w) * w.bits_per_symbol * w.num_layers * effective_rate(w)


def throughput_mbps(workflow: Workflow, bler: float) -> float:
    """Information bits of the slot x (1 - BLER) / slot time, Mbit/s."""
    return information_bits(workflow) * (1 - bler) / slot_ms(workflow.scs_khz) * 1e-3


def edges_per_bit(num_info_bits: float, rate: float) -> float:
    """Edges of the pruned LDPC graph per information bit.

    Base graph as in TS 38.212 7.2.2. Of it, a decoder needs the rows of the columns that are sent: columns / rate plus
    the two that are never sent.
    """
    small = num_info_bits <= 292 or (num_info_bits <= 3824 and rate <= 0.67) or rate <= 0.25
    columns = 10 if small else 22
    edges = _EDGES[columns]
    rows = min(max(4, math.ceil(columns / rate) + 2 - columns), len(edges))
    return edges[rows - 1] / columns


def operations(scenario: Scenario, workflow: Workflow) -> dict[str, float]:
    """Operations per slot of every module, for all resource blocks of the grant.

    encode, decode: one exclusive-or per edge; iterations x edges x 6 (golden figure: 4 to 6 per edge)
    fft: 5 N log2 N per receive antenna and symbol, N the next power of two
    estimate: per layer, receive antenna and resource element: 4 multiply-accumulates to interpolate linearly in
      two dimensions, 1 for the nearest pilot, one per pilot of the 4-PRB window for the Wiener filter, whose matrix
      changes only with the statistics and is not counted
    detect: per resource element Gram matrix and matched filter, rx L (L + 3) / 2; its inverse and product, L^3 + L^2; for
      lmmse also the noise loading and the unbiased scaling, 2 L^2
    demap: per layer symbol two PAM of 2^(Q/2) points: a distance each and a comparison per bit
    """
    s, w = scenario, workflow
    rx, layers, num_elements = s.num_rx_ant, w.num_layers, data_elements(w)
    num_bits = information_bits(w)
    edges = 0.0 if w.code == "none" else num_bits * edges_per_bit(num_bits, w.code_rate)
    fft_size = 2 ** math.ceil(math.log2(w.num_prb * SUBCARRIERS_PER_PRB))
    grid_elements = w.num_prb * SUBCARRIERS_PER_PRB * SYMBOLS_PER_SLOT
    taps = {"perfect": 0, "ls": 4, "ls-nearest": 1, "lmmse": pilots_per_slice(layers, w.num_dmrs)}[w.estimator]
    per_element = rx * layers * (layers + 3) / 2 + layers**3 + layers**2 + (2 * layers**2 if w.detector == "lmmse" else 0)
    per_dimension = 2 ** (w.bits_per_symbol // 2)
    return {
        "encode": edges,
        "fft": 5 * fft_size * math.log2(fft_size) * SYMBOLS_PER_SLOT * rx,
        "estimate": CMAC * taps * grid_elements * layers * rx,
        "detect": CMAC * per_element * num_elements,
        "demap": 2 * per_dimension * (2 + w.bits_per_symbol / 2) * num_elements * layers,
        "decode": OPS_PER_EDGE * w.decoder_iterations * edges,
    }


def breakdown(scenario: Scenario, workflow: Workflow) -> dict[str, float]:
    """Delay by module in ms: the slot itself, then every module of `operations` on the scenario's platform."""
    ops = operations(scenario, workflow)
    return {"slot": slot_ms(workflow.scs_khz)} | {k: n / scenario.compute_gflops * 1e-6 for k, n in ops.items()}


def delay_ms(scenario: Scenario, workflow: Workflow) -> float:
    """Sum of `breakdown`."""
    return math.fsum(breakdown(scenario, workflow).values())

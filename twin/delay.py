"""Delay and capacity from formulas: operation counts, never a wall clock, so that a workflow costs the same everywhere.

delay = slot time + operations of every module for the granted resource blocks / operations per second of the platform.
A complex multiply-accumulate counts as 8 operations.
"""

from __future__ import annotations

import math
from itertools import accumulate

from .grid import pilots_per_slice
from .physical import BLOCK_LENGTH, effective_rate, num_info_bits
from .precoding import CSI_SLOTS, NUM_DEEPTX_WEIGHTS, SOUNDED
from .spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT, Scenario, Workflow, slot_ms
from .toolbox import is_neural

CMAC = 8
POLAR_LIST_SIZE = 8
NUM_SURVIVORS = 16  # of K-Best
DEEPRX_FEATURES = 8
DEEPRX = {  # channels, and by stages the dilations of the residual blocks
    "deeprx-small": (24, ((1, 2), (1, 2))),
    "deeprx": (32, ((1, 2, 3), (1, 2), (1, 2))),
}
N2_SYMBOLS = {15: 10, 30: 12, 60: 23, 120: 36}
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


def _code_operations(workflow: Workflow) -> tuple[float, float]:
    """Operations to encode and to decode the slot's blocks.

    ldpc: an exclusive-or per edge; iterations x edges x 6. polar: N log2 N exclusive-ors per block; for every path of the
    list N log2 N node updates of 2 operations (Tal and Vardy, 2015).
    """
    num_bits = information_bits(workflow)
    if workflow.code == "ldpc":
        edges = num_bits * edges_per_bit(num_bits, workflow.code_rate)
        return edges, OPS_PER_EDGE * workflow.decoder_iterations * edges
    if workflow.code == "polar":
        size = 2 ** math.ceil(math.log2(BLOCK_LENGTH["polar"]))
        updates = num_bits / num_info_bits("polar", workflow.code_rate) * size * math.log2(size)
        return updates, 2 * POLAR_LIST_SIZE * updates
    return 0.0, 0.0


def _detector_cmacs(scenario: Scenario, workflow: Workflow) -> float:
    """Multiply-accumulates of detection per resource element.

    Gram matrix and matched filter, rx L (L + 3) / 2, then
    mrc: the interference from the Gram matrix, L^2
    zf: inverse and product, L^3 + L^2; lmmse: also noise loading and unbiased scaling, 2 L^2
    ep: 5 iterations, each an lmmse solution and moments of L sqrt(M) points per dimension
    kbest: Cholesky factor, L^3 / 3, and K M candidates extended in each of L steps, (L + 1) / 2 terms on average
    """
    rx, layers, points = scenario.num_rx_ant, workflow.num_layers, 2**workflow.bits_per_symbol
    solve = layers**3 + layers**2
    after = {
        "mrc": layers**2,
        "zf": solve,
        "lmmse": solve + 2 * layers**2,
        "ep": 5 * (solve + 2 * layers**2 + 2 * layers * math.sqrt(points)),
        "kbest": layers**3 / 3 + NUM_SURVIVORS * points * layers * (layers + 1) / 2,
    }
    return rx * layers * (layers + 3) / 2 + after[workflow.detector]


def deeprx_operations(size: str) -> int:
    """Operations of the neural receiver per resource element and antenna: two for every weight of its matrices and convolutions.

    Against a published figure: the real-time neural receiver of Cammerer et al. (2023) has 49 thousand weights in an
    iteration, which takes 0.36 ms for 132 PRB on an A100, on top of 0.25 ms. That is a platform of about 6000 of our GFLOP/s.
    """
    channels, stages = DEEPRX[size]
    separable = 9 * channels + channels**2
    return 2 * sum(DEEPRX_FEATURES * channels + 2 * len(dilations) * separable + 3 * channels for dilations in stages)


def operations(scenario: Scenario, workflow: Workflow) -> dict[str, float]:
    """Operations per slot of every module, for all resource blocks of the grant.

    encode, decode: see _code_operations; detect: see _detector_cmacs
    precode: per slice of 4 PRB the covariance of an estimate on F sounded subcarriers and its eigenvectors, F rx tx^2 +
      10 tx^3; L tx per data element; deeptx also the autocorrelation of P estimates and the prediction from them,
      F rx tx (P (P - 1) / 2 + P), and its network's weights, a quarter each since they are real
    fft: 5 N log2 N per receive antenna and symbol, N the next power of two
    estimate: per layer, receive antenna and resource element: 4 multiply-accumulates to interpolate linearly in
      two dimensions, 1 for the nearest pilot, one per pilot of the 4-PRB window for the Wiener filter, whose matrix
      changes only with the statistics and is not counted
    A neural receiver: interpolation, then deeprx_operations for every antenna and element of the grid, all under detect.
    demap: per layer symbol two PAM of 2^(Q/2) points: a distance each and a comparison per bit
    """
    s, w = scenario, workflow
    rx, tx, layers, num_elements = s.num_rx_ant, s.num_tx_ant, w.num_layers, data_elements(w)
    encode, decode = _code_operations(w)
    per_slice = len(SOUNDED) * rx * tx**2 + 10 * tx**3
    if w.precoder == "deeptx":
        per_slice += len(SOUNDED) * rx * tx * CSI_SLOTS * (CSI_SLOTS + 1) / 2 + NUM_DEEPTX_WEIGHTS / 4
    precode = 0 if w.precoder == "none" else w.num_prb / 4 * per_slice + layers * tx * num_elements
    fft_size = 2 ** math.ceil(math.log2(w.num_prb * SUBCARRIERS_PER_PRB))
    grid_elements = w.num_prb * SUBCARRIERS_PER_PRB * SYMBOLS_PER_SLOT
    taps = {"perfect": 0, "ls": 4, "ls-nearest": 1, "lmmse": pilots_per_slice(layers, w.num_dmrs)}[w.estimator]
    per_dimension = 2 ** (w.bits_per_symbol // 2)
    if neural := is_neural(w.detector):
        detect = grid_elements * rx * (CMAC * 4 + deeprx_operations(w.detector))
    else:
        detect = CMAC * _detector_cmacs(s, w) * num_elements
    return {
        "encode": encode,
        "precode": CMAC * precode,
        "fft": 5 * fft_size * math.log2(fft_size) * SYMBOLS_PER_SLOT * rx,
        "estimate": 0 if neural else CMAC * taps * grid_elements * layers * rx,
        "detect": detect,
        "demap": 0 if neural else 2 * per_dimension * (2 + w.bits_per_symbol / 2) * num_elements * layers,
        "decode": decode,
    }


def breakdown(scenario: Scenario, workflow: Workflow) -> dict[str, float]:
    """Delay by module in ms: the slot itself, then every module of `operations` on the scenario's platform."""
    ops = operations(scenario, workflow)
    return {"slot": slot_ms(workflow.scs_khz)} | {k: n / scenario.compute_gflops * 1e-6 for k, n in ops.items()}


def delay_ms(scenario: Scenario, workflow: Workflow) -> float:
    """Sum of `breakdown`: the delay of a block that needs one transmission."""
    return math.fsum(breakdown(scenario, workflow).values())


def harq_round_trip_ms(scenario: Scenario, workflow: Workflow) -> float:
    """From the start of a transmission to the start of the next one of the same block, in whole slots.

    The slot, its processing on the platform, a symbol of feedback, and the transmitter's preparation time N2 (TS 38.214
    table 6.4-1, capability 1).
    """
    slot = slot_ms(workflow.scs_khz)
    return slot * math.ceil((delay_ms(scenario, workflow) + slot * (1 + N2_SYMBOLS[workflow.scs_khz]) / SYMBOLS_PER_SLOT) / slot)

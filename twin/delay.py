"""Delay and capacity from formulas. Operations are counted, not timed: a workflow costs the same
everywhere.

delay = wait for the slot + slot time + operations of every module / operations per second of the
platform.

The unit of work, here and wherever a GFLOP is written: one operation is an addition, a
multiplication, a comparison or an exclusive-or of one real number, whatever its width. A vector
instruction on n numbers is n operations, a real multiply-accumulate 2, a complex one 8.
`Scenario.compute_gflops` is 1e9 of these a second.

What platforms sustain in this unit. Each rate is one number for a published series, of which
test_delay.py holds every point to within 30 %:
CORE_GOPS: 1e9 a second for every byte of a core's vectors. Software LDPC decoder of 8-bit messages
  on one core of a Xeon Gold 6154: 135.5, 64.9 and 37.8 us a block
  (github.com/SherlockHsu/5G-SIMD-LDPC). That floating-point modules run at the same rate is an
  assumption: with AVX-512 it is a third of the peak, 16 numbers x 2 units x 2 a cycle. A server of
  32 such cores sustains about 2000.
TERMINAL_GOPS: the modem of a 5G terminal, which decodes the widest slot in N1 symbols (TS 38.214
  table 5.3-1). N1 differs 1.6-fold between 15 and 30 kHz for the same work: the best rate is 27 %
  off at 30 kHz.
A100_GOPS: convolutions in half precision on a whole A100 GPU. Neural receiver of Cammerer et al.
  (2023):
  0.25 ms and 0.36 ms an iteration for 132 PRB. That takes no launch overhead: the 0.25 ms are its
  input and output layers.
"""

from __future__ import annotations

import math
from itertools import accumulate

from .spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT, Scenario, Workflow, slot_ms
from .toolbox import is_neural
from .transport import (
    POLAR_CRC,
    POLAR_LENGTH,
    Segmentation,
    data_elements,
    information_bits,
    num_polar_blocks,
    polar_info_bits,
    segmentation,
)

__all__ = [
    "A100_GOPS",
    "CORE_GOPS",
    "CSI_SLOTS",
    "DEEPRX",
    "DEEPRX_FEATURES",
    "NUM_SURVIVORS",
    "POLAR_LIST_SIZE",
    "TERMINAL_GOPS",
    "WIENER_TAPS",
    "breakdown",
    "data_elements",
    "decoder_edges",
    "deeprx_operations",
    "delay_ms",
    "dense_operations",
    "fft_size",
    "harq_round_trip_ms",
    "harq_round_trip_slots",
    "information_bits",
    "operations",
    "scheduling_slots",
    "separable_operations",
    "throughput_mbps",
]

CORE_GOPS = {"sse": 16.0, "avx2": 32.0, "avx512": 64.0}
TERMINAL_GOPS = 850.0
A100_GOPS = 12_500.0

CMAC = 8  # operations of a complex multiply-accumulate
OPS_PER_EDGE = 6  # offset min-sum, per edge and iteration: subtract, sign, two minima, offset, add
POLAR_LIST_SIZE = 8
NUM_SURVIVORS = 16  # of K-Best
NUM_EP_ITERATIONS = 5
WIENER_SUBCARRIERS = 48  # the Wiener filter's window, 4 PRB
WIENER_TAPS = 24  # of the robust filter, in frequency
SOUNDED = 12  # subcarriers that are sounded in every 4 PRB
CSI_SLOTS = 6  # past estimates that deeptx predicts from
NUM_DEEPTX_WEIGHTS = 2 * (CSI_SLOTS - 1) * 64 + 64**2 + 64 * 2 * CSI_SLOTS
DEEPRX_FEATURES = 8
DEEPRX = {  # channels, and by stages the dilations of the residual blocks
    "deeprx-small": (24, ((1, 2), (1, 2))),
    "deeprx": (32, ((1, 2, 3), (1, 2), (1, 2))),
}
MIN_FFT_SIZE = 128
N2_SYMBOLS = {15: 10, 30: 12, 60: 23, 120: 36}  # TS 38.214 table 6.4-1, capability 1
# Degrees of the check nodes, row by row (TS 38.212 tables 5.3.2-2 and 5.3.2-3): 316 and 197 edges
_BG1 = (
    19,
    19,
    19,
    19,
    3,
    8,
    9,
    7,
    10,
    9,
    7,
    8,
    7,
    6,
    7,
    7,
    6,
    6,
    6,
    6,
    6,
    6,
    5,
    5,
    6,
    5,
    5,
    4,
    5,
    5,
    5,
    5,
    5,
    5,
    5,
    5,
    5,
    4,
    5,
    5,
    4,
    5,
    4,
    5,
    5,
    4,
)
_BG2 = (
    8,
    10,
    8,
    10,
    4,
    6,
    6,
    6,
    4,
    5,
    5,
    5,
    4,
    5,
    5,
    4,
    5,
    5,
    4,
    4,
    4,
    4,
    3,
    4,
    4,
    3,
    5,
    3,
    4,
    3,
    5,
    3,
    4,
    4,
    4,
    4,
    4,
    3,
    4,
    4,
    4,
    4,
)
# by base graph: edges of the first rows
_EDGES = {1: tuple(accumulate(_BG1)), 2: tuple(accumulate(_BG2))}


def throughput_mbps(workflow: Workflow, bler: float) -> float:
    """Transport block of the slot (TS 38.214 5.1.3.2) x (1 - BLER) / slot time, Mbit/s."""
    return information_bits(workflow) * (1 - bler) / slot_ms(workflow.scs_khz) * 1e-3


def decoder_edges(seg: Segmentation) -> int:
    """Edges of the pruned graphs of all code blocks of a transport block, as first sent.

    The E_r sent bits and the F filler bits among them reach into the first (E_r + F) / Z columns of
    the circular buffer, before which 2 columns are never sent. Beyond the information columns each
    column that is reached needs its row of the base graph, and the 4 rows of the core are always
    needed. Each edge is Z.
    """
    edges, total = _EDGES[seg.base_graph], 0
    for bits in set(seg.sent):
        rows = math.ceil((bits + seg.filler) / seg.lifting) + 2 - seg.columns
        total += seg.sent.count(bits) * seg.lifting * edges[min(max(4, rows), len(edges)) - 1]
    return total


def _polar_mother_length(info: int) -> int:
    """Length N of the polar code that carries `info` bits, CRC and all, in POLAR_LENGTH (TS 38.212
    5.3.1).
    """
    n = math.ceil(math.log2(POLAR_LENGTH))
    if POLAR_LENGTH <= 9 / 8 * 2 ** (n - 1) and info / POLAR_LENGTH < 9 / 16:
        n -= 1
    return 2 ** max(5, min(n, math.ceil(math.log2(8 * info))))


def _code_operations(workflow: Workflow) -> tuple[float, float]:
    """Operations to encode and to decode the slot's blocks.

    ldpc: an exclusive-or per edge; iterations x edges x OPS_PER_EDGE
    polar: N log2 N exclusive-ors per block; for every path of the list N log2 N node updates of 2
      operations (Tal and Vardy, "List Decoding of Polar Codes", 2015)
    """
    w = workflow
    if w.code == "ldpc":
        edges = decoder_edges(segmentation(w))
        return edges, OPS_PER_EDGE * w.decoder_iterations * edges
    if w.code == "polar":
        size = _polar_mother_length(polar_info_bits(w.code_rate) + POLAR_CRC)
        updates = num_polar_blocks(w) * size * math.log2(size)
        return updates, 2 * POLAR_LIST_SIZE * updates
    return 0.0, 0.0


def _estimator_cmacs(estimator: str, num_layers: int, num_dmrs: int) -> float:
    """Complex multiply-accumulates of estimation per layer, receive antenna and resource element.

    ls-nearest: 1, the nearest pilot
    ls, lmmse: 2 pilots, or WIENER_TAPS, in the DM-RS symbols, then one per DM-RS symbol over time;
      lmmse also 2 per pilot to learn the noise from residuals and the Doppler spread from the
      pilots
    genie: one per pilot of the 4-PRB window of a Wiener filter; its matrix changes only with the
      statistics and is not counted
    """
    pilots = WIENER_SUBCARRIERS // max(2, num_layers) * num_dmrs
    return {
        "perfect": 0,
        "ls-nearest": 1,
        "ls": (2 / SYMBOLS_PER_SLOT + 1) * num_dmrs,
        "lmmse": (
            (WIENER_TAPS / SYMBOLS_PER_SLOT + 1) * num_dmrs
            + 2 * pilots / (WIENER_SUBCARRIERS * SYMBOLS_PER_SLOT)
        ),
        "genie": pilots,
    }[estimator]


def _detector_cmacs(scenario: Scenario, workflow: Workflow) -> float:
    """Complex multiply-accumulates of detection per resource element.

    Gram matrix and matched filter, rx L (L + 3) / 2, then
    mrc: the interference from the Gram matrix, L^2
    zf: inverse and product, L^3 + L^2; lmmse: also noise loading and unbiased scaling, 2 L^2
    ep: NUM_EP_ITERATIONS, each an lmmse solution and moments of L sqrt(M) points per dimension
    kbest: Cholesky factor, L^3 / 3, and K M candidates in each of L steps, (L + 1) / 2 terms on
      average
    """
    rx, layers, points = scenario.num_rx_ant, workflow.num_layers, 2**workflow.bits_per_symbol
    solve = layers**3 + layers**2
    after = {
        "mrc": layers**2,
        "zf": solve,
        "lmmse": solve + 2 * layers**2,
        "ep": NUM_EP_ITERATIONS * (solve + 2 * layers**2 + 2 * layers * math.sqrt(points)),
        "kbest": layers**3 / 3 + NUM_SURVIVORS * points * layers * (layers + 1) / 2,
    }
    return rx * layers * (layers + 3) / 2 + after[workflow.detector]


def dense_operations(inputs: int, outputs: int) -> int:
    """Operations of a dense layer per resource element: two for every weight."""
    return 2 * inputs * outputs


def separable_operations(inputs: int, outputs: int) -> int:
    """Operations per resource element of a depthwise separable 3 x 3 convolution: two for every
    weight.
    """
    return 2 * 9 * inputs + dense_operations(inputs, outputs)


def deeprx_operations(size: str) -> int:
    """Operations of the neural receiver's weights, per resource element and receive antenna."""
    channels, stages = DEEPRX[size]
    return sum(
        dense_operations(DEEPRX_FEATURES, channels)
        + 2 * len(dilations) * separable_operations(channels, channels)
        + dense_operations(channels, 3)
        for dilations in stages
    )


def fft_size(max_prb: int) -> int:
    """Points of the FFT: the power of two that holds the bandwidth part, MIN_FFT_SIZE at least."""
    return max(MIN_FFT_SIZE, 2 ** math.ceil(math.log2(max_prb * SUBCARRIERS_PER_PRB)))


def operations(scenario: Scenario, workflow: Workflow) -> dict[str, float]:
    """Operations per slot of every module, for all resource blocks of the grant.

    encode, decode: see _code_operations. Retransmissions are counted as the first one, combining as
      nothing
    precode: per slice of 4 PRB the covariance of an estimate on F sounded subcarriers and its
      eigenvectors, F rx tx^2 + 10 tx^3; L tx per data element; deeptx also the autocorrelation of P
      estimates and the prediction from them, F rx tx (P (P - 1) / 2 + P), and its network's
      weights, a quarter each: all real
    fft: 5 N log2 N per receive antenna and symbol of the bandwidth part, max_prb, whatever is
      granted
    estimate, detect: see _estimator_cmacs and _detector_cmacs. A neural receiver interpolates, then
      takes deeprx_operations for every antenna and element of the grid, all under detect
    demap: per layer symbol two PAM of 2^(Q/2) points: a distance each and a comparison per bit
    """
    s, w = scenario, workflow
    rx, tx, layers, num_elements = s.num_rx_ant, s.num_tx_ant, w.num_layers, data_elements(w)
    encode, decode = _code_operations(w)
    per_slice = SOUNDED * rx * tx**2 + 10 * tx**3
    if w.precoder == "deeptx":
        per_slice += SOUNDED * rx * tx * CSI_SLOTS * (CSI_SLOTS + 1) / 2 + NUM_DEEPTX_WEIGHTS / 4
    precode = 0 if w.precoder == "none" else w.num_prb / 4 * per_slice + layers * tx * num_elements
    size = fft_size(s.max_prb)
    grid_elements = w.num_prb * SUBCARRIERS_PER_PRB * SYMBOLS_PER_SLOT
    per_dimension = 2 ** (w.bits_per_symbol // 2)
    if is_neural(w.detector):
        per_element = CMAC * _estimator_cmacs("ls", layers, w.num_dmrs) + deeprx_operations(
            w.detector
        )
        receive = {"estimate": 0.0, "detect": grid_elements * rx * per_element, "demap": 0.0}
    else:
        cmacs = _estimator_cmacs(w.estimator, layers, w.num_dmrs)
        receive = {
            "estimate": CMAC * cmacs * grid_elements * layers * rx,
            "detect": CMAC * _detector_cmacs(s, w) * num_elements,
            "demap": 2 * per_dimension * (2 + w.bits_per_symbol / 2) * num_elements * layers,
        }
    return {
        "encode": encode,
        "precode": CMAC * precode,
        "fft": 5 * size * math.log2(size) * SYMBOLS_PER_SLOT * rx,
        **receive,
        "decode": decode,
    }


def scheduling_slots(scs_khz: int) -> int:
    """Whole slots from the start of the one with a scheduling request to the start of the one it is
    granted.

    The request has the first symbol of a slot and is granted in the first symbol of the next. The
    terminal then prepares its data in N2 symbols (TS 38.214 6.4) and sends as the next slot begins:
    1, 1, 2, 3 slots after the grant, as in TS 38.214 table 6.1.2.1.1-4.

    >>> [scheduling_slots(khz) for khz in (15, 30, 60, 120)]
    [2, 2, 3, 4]
    """
    return 1 + math.ceil((1 + N2_SYMBOLS[scs_khz]) / SYMBOLS_PER_SLOT)


def _processing_ms(scenario: Scenario, workflow: Workflow) -> dict[str, float]:
    """Time of every module of `operations` on the scenario's platform, ms."""
    return {
        k: n / scenario.compute_gflops * 1e-6 for k, n in operations(scenario, workflow).items()
    }


def breakdown(scenario: Scenario, workflow: Workflow) -> dict[str, float]:
    """Delay by term in ms.

    alignment: mean wait for the next slot to begin, half a slot; 0 if Scenario.access is
      "immediate"
    scheduling: see scheduling_slots; 0 unless Scenario.access is "scheduled"
    slot: the slot itself, and then every module of `operations`
    """
    slot = slot_ms(workflow.scs_khz)
    return {
        "alignment": 0.0 if scenario.access == "immediate" else slot / 2,
        "scheduling": (
            slot * scheduling_slots(workflow.scs_khz) if scenario.access == "scheduled" else 0.0
        ),
        "slot": slot,
    } | _processing_ms(scenario, workflow)


def delay_ms(scenario: Scenario, workflow: Workflow) -> float:
    """Sum of `breakdown`, ms: the delay of a block that needs one transmission."""
    return math.fsum(breakdown(scenario, workflow).values())


def harq_round_trip_slots(scenario: Scenario, workflow: Workflow) -> int:
    """Whole slots from the start of a transmission to the start of the next one of the same block.

    The slot, its processing on the platform, a symbol of feedback, and the transmitter's
    preparation time N2 (TS 38.214 table 6.4-1, capability 1). Who sends again neither waits for
    alignment nor asks for a grant.
    """
    processing = math.fsum(_processing_ms(scenario, workflow).values()) / slot_ms(workflow.scs_khz)
    return math.ceil(1 + processing + (1 + N2_SYMBOLS[workflow.scs_khz]) / SYMBOLS_PER_SLOT)


def harq_round_trip_ms(scenario: Scenario, workflow: Workflow) -> float:
    """`harq_round_trip_slots` in ms."""
    return slot_ms(workflow.scs_khz) * harq_round_trip_slots(scenario, workflow)

"""The transport block of a grant: its size, CRCs, code blocks and their coded bits (TS 38.214
5.1.3.2, TS 38.212 5.1, 5.2.2, 5.4.2).

Formulas over plain numbers; the bits themselves are twin.chain.ldpc's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spec import Workflow

SYMBOLS_PER_SLOT = 14
SUBCARRIERS_PER_PRB = 12
# table 5.3.2-1
LIFTING_SIZES = tuple(
    sorted(a << j for a in (2, 3, 5, 7, 9, 11, 13, 15) for j in range(8) if a << j <= 384)
)
REDUNDANCY_VERSIONS = (0, 2, 3, 1)  # by transmission
# of a redundancy version, in columns: table 5.4.2.1-2
_START = {1: (0, 17, 33, 56), 2: (0, 13, 25, 43)}
POLAR_LENGTH = 288  # coded bits of a polar block
MAX_POLAR_BLOCKS = 8  # in a slot: a code for short blocks
POLAR_CRC = 11
# TS 38.214 table 5.1.3.2-1: sizes up to 3824 bits
_SMALL_SIZES = (
    24,
    32,
    40,
    48,
    56,
    64,
    72,
    80,
    88,
    96,
    104,
    112,
    120,
    128,
    136,
    144,
    152,
    160,
    168,
    176,
    184,
    192,
    208,
    224,
    240,
    256,
    272,
    288,
    304,
    320,
    336,
    352,
    368,
    384,
    408,
    432,
    456,
    480,
    504,
    528,
    552,
    576,
    608,
    640,
    672,
    704,
    736,
    768,
    808,
    848,
    888,
    928,
    984,
    1032,
    1064,
    1128,
    1160,
    1192,
    1224,
    1256,
    1288,
    1320,
    1352,
    1416,
    1480,
    1544,
    1608,
    1672,
    1736,
    1800,
    1864,
    1928,
    2024,
    2088,
    2152,
    2216,
    2280,
    2408,
    2472,
    2536,
    2600,
    2664,
    2728,
    2792,
    2856,
    2976,
    3104,
    3240,
    3368,
    3496,
    3624,
    3752,
    3824,
)


@dataclass(frozen=True)
class Segmentation:
    """How a transport block is cut and coded (TS 38.212 5.2.2).

    size: information bits A; crc: bits of the block's own CRC; num_blocks: code blocks C, each with
      a CRC of 24 bits if C > 1
    base_graph: 1 | 2; lifting: Z; info: bits of a code block with its CRCs, K'; sent: coded bits of
      every code block, E_r
    """

    size: int
    crc: int
    num_blocks: int
    base_graph: int
    lifting: int
    info: int
    sent: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Information columns of the base graph."""
        return 22 if self.base_graph == 1 else 10

    @property
    def filler(self) -> int:
        """Bits that are known and not sent, F = K - K'."""
        return self.columns * self.lifting - self.info

    @property
    def mother_length(self) -> int:
        """Bits of the circular buffer, N_cb = N."""
        return (66 if self.base_graph == 1 else 50) * self.lifting

    def start(self, redundancy_version: int) -> int:
        """Where in the circular buffer a redundancy version begins (table 5.4.2.1-2)."""
        return _START[self.base_graph][redundancy_version] * self.lifting


def data_elements(workflow: Workflow) -> int:
    """Data resource elements of the granted slot, per layer: all but the DM-RS symbols."""
    return workflow.num_prb * SUBCARRIERS_PER_PRB * (SYMBOLS_PER_SLOT - workflow.num_dmrs)


def coded_bits(workflow: Workflow) -> int:
    """Coded bits G of the granted slot, over all layers."""
    return data_elements(workflow) * workflow.bits_per_symbol * workflow.num_layers


@lru_cache(maxsize=1 << 16)
def transport_block_bits(
    num_prb: int, elements_per_prb: int, bits_per_symbol: int, num_layers: int, code_rate: float
) -> int:
    """Transport block size A in bits (TS 38.214 5.1.3.2)."""
    information = num_prb * min(156, elements_per_prb) * code_rate * bits_per_symbol * num_layers
    if information <= 3824:
        step = 2 ** max(3, math.floor(math.log2(max(information, 1))) - 6)
        quantised = max(24, step * math.floor(information / step))
        return next(size for size in _SMALL_SIZES if size >= quantised)
    step = 2 ** (math.floor(math.log2(information - 24)) - 5)
    quantised = max(3840, step * math.floor((information - 24) / step + 0.5))
    largest = 3816 if code_rate <= 1 / 4 else 8424
    num_blocks = (
        math.ceil((quantised + 24) / largest) if code_rate <= 1 / 4 or quantised > 8424 else 1
    )
    return 8 * num_blocks * math.ceil((quantised + 24) / (8 * num_blocks)) - 24


@lru_cache(maxsize=1 << 14)
def segment(size: int, code_rate: float, coded: int, symbol_bits: int) -> Segmentation:
    """Segmentation of `size` information bits at a nominal rate into `coded` bits; symbol_bits: of
    a symbol on all layers.
    """
    base_graph = (
        2 if size <= 292 or (size <= 3824 and code_rate <= 0.67) or code_rate <= 0.25 else 1
    )
    crc = 24 if size > 3824 else 16
    largest = 8448 if base_graph == 1 else 3840
    with_crc = size + crc
    num_blocks = 1 if with_crc <= largest else math.ceil(with_crc / (largest - 24))
    info = math.ceil((with_crc + 24 * num_blocks * (num_blocks > 1)) / num_blocks)
    columns = (
        22
        if base_graph == 1
        else 10
        if with_crc > 640
        else 9
        if with_crc > 560
        else 8
        if with_crc > 192
        else 6
    )
    lifting = next(z for z in LIFTING_SIZES if columns * z >= info)
    symbols, short = coded // symbol_bits, num_blocks - coded // symbol_bits % num_blocks
    sent = tuple(symbol_bits * (symbols // num_blocks + (r >= short)) for r in range(num_blocks))
    return Segmentation(size, crc, num_blocks, base_graph, lifting, info, sent)


@lru_cache(maxsize=1 << 14)
def segmentation(workflow: Workflow) -> Segmentation:
    """The LDPC transport block of a grant."""
    w = workflow
    return segment(
        information_bits(w), w.code_rate, coded_bits(w), w.bits_per_symbol * w.num_layers
    )


def num_polar_blocks(workflow: Workflow) -> int:
    """Polar blocks that the slot has room for."""
    return coded_bits(workflow) // POLAR_LENGTH


def polar_info_bits(code_rate: float) -> int:
    """Information bits of a polar block: a multiple of 8 at about the code rate."""
    return 8 * max(math.ceil(POLAR_LENGTH / 5 / 8), round(code_rate * POLAR_LENGTH / 8))


def information_bits(workflow: Workflow) -> int:
    """Information bits that a slot carries if it is received: the transport block of ldpc
    (5.1.3.2), all blocks of polar, all coded bits without a code.
    """
    w = workflow
    if w.code == "none":
        return coded_bits(w)
    if w.code == "polar":
        return num_polar_blocks(w) * polar_info_bits(w.code_rate)
    per_prb = data_elements(w) // w.num_prb
    return transport_block_bits(w.num_prb, per_prb, w.bits_per_symbol, w.num_layers, w.code_rate)

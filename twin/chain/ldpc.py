"""The LDPC code of TS 38.212 5.3.2 and 5.4.2, natively: encoder, rate matching, layered offset min-sum decoder.

The decoder works in 16-bit integers, so that its decisions are the same on every processor. A layer is a row of the base graph: its
Z checks share no bit, and those of several code blocks lie side by side (lane = z B + b), so that a cyclic shift is two
contiguous runs whatever Z is, and every inner loop is a few vector instructions. Sionna's tables hold the base graphs.

Letters: S slots, C code blocks of a transport block, N bits of a code block's circular buffer, G coded bits of a slot,
Z lifting size, B code blocks decoded side by side.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..transport import REDUNDANCY_VERSIONS, Segmentation

LLR_SCALE = 8  # steps of the decoder's integers in a nat
MAX_LLR = 1023  # of one received bit, in steps
MAX_MESSAGE = 4095
MAX_POSTERIOR = 16383
OFFSET = 4  # half a nat
LANES = 512  # at least, where there are blocks enough
_jit = numba.njit(cache=True, error_model="numpy")


@lru_cache(maxsize=512)
def base_graph(number: int, lifting: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as (start of a row's entries, their columns, their shifts mod Z), int32 (tables 5.3.2-2 and 5.3.2-3)."""
    family = next(i for i, a in enumerate((2, 3, 5, 7, 9, 11, 13, 15)) if lifting % a == 0 and ((lifting // a) & (lifting // a - 1)) == 0)
    path = Path(find_spec("sionna").submodule_search_locations[0], "phy", "fec", "ldpc", "codes", f"5G_bg{number}.csv")
    with open(path, newline="") as file:
        rows = list(csv.reader(file, delimiter=";"))[2:]
    row, entries = 0, []
    for cells in rows:
        row = int(cells[0]) if cells[0] else row
        entries.append((row, int(cells[1]), int(cells[2 + family]) % lifting))
    rows, columns, shifts = np.array(entries, np.int32).T
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int32)
    return starts, np.ascontiguousarray(columns), np.ascontiguousarray(shifts)


@_jit
def _xor_shifted(out, block, shift):
    """out[z] ^= block[(z + shift) mod Z]."""
    n = out.shape[0]
    for z in range(n - shift):
        out[z] ^= block[z + shift]
    for z in range(shift):
        out[n - shift + z] ^= block[z]


@_jit
def _encode(starts, columns, shifts, num_info, coded):
    """Fill the parity columns of coded [B, columns, Z] uint8, whose first num_info columns are set.

    The first parity column stands three times in the first four rows, twice with one shift: their sum leaves it alone, turned by the
    third shift. Each of the next three follows from the row before; every other one has a row of its own.
    """
    size = coded.shape[2]
    for b in range(coded.shape[0]):
        c = coded[b]
        total = np.zeros(size, np.uint8)
        turn = 0  # shift that is left of the first parity column
        for row in range(4):
            for e in range(starts[row], starts[row + 1]):
                if columns[e] < num_info:
                    _xor_shifted(total, c[columns[e]], shifts[e])
                elif columns[e] == num_info:
                    odd = 0
                    for other in range(starts[4]):
                        odd += columns[other] == num_info and shifts[other] == shifts[e]
                    if odd % 2 == 1:
                        turn = shifts[e]
        for z in range(size):
            c[num_info, (z + turn) % size] = total[z]
        for row in range(3):  # row i holds parity columns 0 .. i + 1 only, the last one unturned
            known = np.zeros(size, np.uint8)
            for e in range(starts[row], starts[row + 1]):
                if columns[e] < num_info + 1 + row:
                    _xor_shifted(known, c[columns[e]], shifts[e])
            c[num_info + 1 + row] = known
        for row in range(4, starts.shape[0] - 1):
            known = np.zeros(size, np.uint8)
            for e in range(starts[row], starts[row + 1] - 1):
                _xor_shifted(known, c[columns[e]], shifts[e])
            c[num_info + row] = known


def encode(code: Segmentation, bits: np.ndarray) -> np.ndarray:
    """Circular buffers [B, N] uint8 of code blocks' bits [B, K'], CRCs included: all but the first 2 Z bits of the codeword."""
    starts, columns, shifts = base_graph(code.base_graph, code.lifting)
    coded = np.zeros((len(bits), columns.max() + 1, code.lifting), np.uint8)
    flat = coded.reshape(len(bits), -1)
    flat[:, : code.info] = bits
    _encode(starts, columns, shifts, code.columns, coded)
    return flat[:, 2 * code.lifting :]


@lru_cache(maxsize=256)
def places(code: Segmentation, bits_per_symbol: int, redundancy_version: int = 0) -> np.ndarray:
    """Where in the slot's buffers [C N] every transmitted bit comes from, [G] int32, in the order of transmission.

    Bit selection from the redundancy version's start around the buffer without the filler bits (5.4.2.1), then the interleaver: bit
    i E / Q + j of a code block goes to place i + j Q (5.4.2.2), code block after code block (5.5).
    """
    length, z = code.mother_length, code.lifting
    known = np.arange(code.info - 2 * z, code.columns * z - 2 * z)
    ring = np.roll(np.arange(length), -code.start(redundancy_version))
    ring = ring[~np.isin(ring, known)]
    parts = []
    for block, sent in enumerate(code.sent):
        chosen = ring[np.arange(sent) % len(ring)]
        parts.append(block * length + chosen.reshape(bits_per_symbol, -1).T.ravel())
    return np.concatenate(parts).astype(np.int32)


@lru_cache(maxsize=1024)
def rows_needed(code: Segmentation, num_transmissions: int) -> int:
    """Rows of the base graph that a decoder needs after so many transmissions: those of the parity columns that were sent.

    An extension row whose own bit was never sent tells nothing.
    """
    reach = 0
    for version in REDUNDANCY_VERSIONS[:num_transmissions]:
        end = code.start(version) + max(code.sent) + code.filler
        reach = max(reach, min(end, code.mother_length))
    columns = -(-reach // code.lifting) + 2
    return int(np.clip(columns - code.columns, 4, 46 if code.base_graph == 1 else 42))


@_jit
def recover(llr, place, buffer):
    """Add the slots' LLRs [S, G] (positive for a bit 0, in nats) to their buffers [S, C N] int16."""
    for s in range(llr.shape[0]):
        for g in range(place.shape[0]):
            value = llr[s, g] * np.float32(LLR_SCALE)
            step = np.int32(np.rint(min(max(value, np.float32(-MAX_LLR)), np.float32(MAX_LLR))))
            total = step + np.int32(buffer[s, place[g]])
            buffer[s, place[g]] = min(max(total, -MAX_MESSAGE), MAX_MESSAGE)


def _int16_instruction(name):
    """An LLVM instruction of two 16-bit integers. Numba widens int16 to int64, which the vectoriser cannot undo for comparisons."""

    @intrinsic
    def instruction(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            kind = ir.IntType(16)
            function = builder.module.declare_intrinsic(f"llvm.{name}", [kind], fnty=ir.FunctionType(kind, [kind, kind]))
            return builder.call(function, arguments)

        return types.int16(types.int16, types.int16), generate

    return instruction


_lesser, _greater = _int16_instruction("smin"), _int16_instruction("smax")


# Inner loops over lanes, of slices with one index: numba does not vectorise them with two.


@_jit
def _extrinsic(posterior, message, out):
    for i in range(out.shape[0]):
        out[i] = posterior[i] - message[i]


@_jit
def _two_least(x, least, second, parity):
    """Running least and second least magnitude; the sign bits of `parity` are the parity of the signs."""
    for i in range(x.shape[0]):
        a = _greater(x[i], np.int16(-x[i]))
        second[i] = _lesser(second[i], _greater(a, least[i]))
        least[i] = _lesser(a, least[i])
        parity[i] = parity[i] ^ x[i]


@_jit
def _reply(x, least, second, parity, message):
    """The check's message to the bit that said x: the least of the others' magnitudes less the offset, with their parity."""
    for i in range(x.shape[0]):
        value, one, two = x[i], least[i], second[i]
        magnitude = two if _greater(value, np.int16(-value)) == one else one
        magnitude = _lesser(_greater(np.int16(magnitude - np.int16(OFFSET)), np.int16(0)), np.int16(MAX_MESSAGE))
        sign = np.int16(parity[i] ^ value) >> 15
        message[i] = (magnitude ^ sign) - sign


@_jit
def _posterior(x, message, out):
    for i in range(x.shape[0]):
        out[i] = _greater(_lesser(np.int16(x[i] + message[i]), np.int16(MAX_POSTERIOR)), np.int16(-MAX_POSTERIOR))


@_jit
def _add_parity(posterior, parity):
    for i in range(posterior.shape[0]):
        parity[i] = parity[i] ^ posterior[i]


@_jit
def _satisfied(starts, columns, shifts, num_rows, step, posterior, parity):
    n = posterior.shape[1]
    for row in range(num_rows):
        parity[:] = 0
        for e in range(starts[row], starts[row + 1]):
            turn, of = shifts[e] * step, posterior[columns[e]]
            _add_parity(of[turn:], parity[: n - turn])
            _add_parity(of[:turn], parity[n - turn :])
        for i in range(n):
            if parity[i] < 0:
                return False
    return True


@_jit
def _decode(starts, columns, shifts, num_rows, iterations, num_side, num_info, info, lifting, buffer, decided):
    """Hard decisions [B, K'] of buffers [B, N] int16, num_side blocks at a time; returns the iterations spent by all groups."""
    num_blocks, n, z2 = buffer.shape[0], num_side * lifting, 2 * lifting
    posterior = np.empty((columns.max() + 1, n), np.int16)
    message = np.empty((starts[num_rows], n), np.int16)
    x = np.empty((19, n), np.int16)  # a row has at most 19 entries
    least, second, parity = np.empty(n, np.int16), np.empty(n, np.int16), np.empty(n, np.int16)
    spent = 0
    for first in range(0, num_blocks, num_side):
        here = min(num_side, num_blocks - first)
        posterior[:] = MAX_MESSAGE  # lanes without a block are a codeword of zeros, filler bits are zeros
        for b in range(here):
            for z in range(z2):
                posterior[z // lifting, z % lifting * num_side + b] = 0
            for i in range(buffer.shape[1]):
                if info - z2 <= i < num_info * lifting - z2:
                    continue
                posterior[(i + z2) // lifting, (i + z2) % lifting * num_side + b] = buffer[first + b, i]
        message[:] = 0
        for _ in range(iterations):
            spent += here
            for row in range(num_rows):
                least[:], second[:], parity[:] = MAX_POSTERIOR, MAX_POSTERIOR, 0
                for e in range(starts[row], starts[row + 1]):
                    turn, of, to, out = shifts[e] * num_side, posterior[columns[e]], message[e], x[e - starts[row]]
                    _extrinsic(of[turn:], to[: n - turn], out[: n - turn])
                    _extrinsic(of[:turn], to[n - turn :], out[n - turn :])
                    _two_least(out, least, second, parity)
                for e in range(starts[row], starts[row + 1]):
                    turn, of, to, out = shifts[e] * num_side, posterior[columns[e]], message[e], x[e - starts[row]]
                    _reply(out, least, second, parity, to)
                    _posterior(out[: n - turn], to[: n - turn], of[turn:])
                    _posterior(out[n - turn :], to[n - turn :], of[:turn])
            if _satisfied(starts, columns, shifts, num_rows, num_side, posterior, parity):
                break
        for b in range(here):
            for i in range(info):
                decided[first + b, i] = posterior[i // lifting, i % lifting * num_side + b] < 0
    return spent


def decode(code: Segmentation, buffer: np.ndarray, iterations: int, num_rows: int) -> np.ndarray:
    """Decided bits [B, K'] uint8 of code blocks' buffers [B, N] int16 (see `recover`); stops where all checks are met."""
    decided = np.empty((len(buffer), code.info), np.uint8)
    side = max(1, min(-(-LANES // code.lifting), len(buffer)))
    _decode(*base_graph(code.base_graph, code.lifting), num_rows, iterations, side, code.columns, code.info, code.lifting, buffer, decided)
    return decided

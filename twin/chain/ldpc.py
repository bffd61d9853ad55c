"""The LDPC code of TS 38.212 5.3.2 and 5.4.2, natively: encoder, rate matching, layered offset
min-sum decoder.

The decoder works in 16-bit integers, so that its decisions are the same on every processor. A layer
is a row of the base graph: its Z checks share no bit, and those of several code blocks lie side by
side (lane = z B + b), so that a cyclic shift is two contiguous runs whatever Z is, and every inner
loop is a few vector instructions. A column of posteriors is left turned as the check that wrote it
last had it: only reading turns. Sionna's tables hold the base graphs.

Letters: S slots, C code blocks of a transport block, N bits of a code block's circular buffer, G
coded bits of a slot, Z lifting size, B code blocks decoded side by side.
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
BIT_LANES = 4096  # of the encoder, at most
VECTOR = 32  # arrays are whole multiples of so many integers, so that loops have no remainder
_jit = numba.njit(cache=True, error_model="numpy")
_inline = numba.njit(cache=True, error_model="numpy", forceinline=True)


@lru_cache(maxsize=512)
def base_graph(number: int, lifting: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as (start of a row's entries, their columns, their shifts mod Z), int32 (tables 5.3.2-2
    and 5.3.2-3).
    """
    family = next(
        i
        for i, a in enumerate((2, 3, 5, 7, 9, 11, 13, 15))
        if lifting % a == 0 and ((lifting // a) & (lifting // a - 1)) == 0
    )
    path = Path(
        find_spec("sionna").submodule_search_locations[0],
        "phy",
        "fec",
        "ldpc",
        "codes",
        f"5G_bg{number}.csv",
    )
    with open(path, newline="") as file:
        rows = list(csv.reader(file, delimiter=";"))[2:]
    row, entries = 0, []
    for cells in rows:
        row = int(cells[0]) if cells[0] else row
        entries.append((row, int(cells[1]), int(cells[2 + family]) % lifting))
    rows, columns, shifts = np.array(entries, np.int32).T
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int32)
    return starts, np.ascontiguousarray(columns), np.ascontiguousarray(shifts)


@_inline
def _add(bits, out):
    for i in range(out.shape[0]):
        out[i] = out[i] ^ bits[i]


@_jit
def _add_turned(column, turn, out):
    """out[i] ^= column[(i + turn) mod n]."""
    rest = column.shape[0] - turn
    _add(column[turn:], out[:rest])
    _add(column[:turn], out[rest:])


@_jit
def _encode(starts, columns, shifts, num_rows, num_side, num_info, lifting, bits, coded):
    """Fill the buffers coded [B, N] uint8, but for parity bits of rows from num_rows on, with bits
    [B, K'] and parity.

    The first parity column stands three times in the first four rows, twice with one shift: their
    sum leaves it alone, turned by the third shift. Each of the next three follows from the row
    before; every other one has a row of its own.
    """
    info, n, z2 = bits.shape[1], num_side * lifting, 2 * lifting
    turn = 0  # shift that is left of the first parity column
    for e in range(starts[4]):
        if columns[e] == num_info:
            odd = 0
            for other in range(starts[4]):
                odd += columns[other] == num_info and shifts[other] == shifts[e]
            if odd % 2 == 1:
                turn = shifts[e]
    c = np.zeros((num_info + num_rows, n), np.uint8)
    for first in range(0, bits.shape[0], num_side):
        here = min(num_side, bits.shape[0] - first)
        for b in range(here):
            lane, some, out = c.ravel()[b:], bits[first + b], coded[first + b]
            for i in range(info):
                lane[i * num_side] = some[i]
            for i in range(z2, info):
                out[i - z2] = some[i]
        c[num_info:] = 0
        total = c[num_info + 1]  # where it is not needed yet
        for row in range(4):
            for e in range(starts[row], starts[row + 1]):
                if columns[e] < num_info:
                    _add_turned(c[columns[e]], shifts[e] * num_side, total)
        _add_turned(total, (lifting - turn) % lifting * num_side, c[num_info])
        total[:] = 0
        for row in range(3):  # row i holds parity columns 0 .. i + 1 only, the last one unturned
            for e in range(starts[row], starts[row + 1]):
                if columns[e] < num_info + 1 + row:
                    _add_turned(c[columns[e]], shifts[e] * num_side, c[num_info + 1 + row])
        for row in range(4, num_rows):
            for e in range(starts[row], starts[row + 1] - 1):
                _add_turned(c[columns[e]], shifts[e] * num_side, c[num_info + row])
        for b in range(here):
            lane, out = c[num_info:].ravel()[b:], coded[first + b, num_info * lifting - z2 :]
            for i in range(num_rows * lifting):
                out[i] = lane[i * num_side]


def encode(code: Segmentation, bits: np.ndarray, num_rows: int | None = None) -> np.ndarray:
    """Circular buffers [B, N] uint8 of code blocks' bits [B, K'] with CRCs: all but the first 2 Z
    bits of the codeword.

    num_rows: of the base graph, at least four; the parity bits of later rows are left 0. None: all.
    """
    starts, columns, shifts = base_graph(code.base_graph, code.lifting)
    coded = np.zeros((len(bits), code.mother_length), np.uint8)
    side = max(1, min(BIT_LANES // code.lifting, len(bits)))
    _encode(
        starts,
        columns,
        shifts,
        num_rows or len(starts) - 1,
        side,
        code.columns,
        code.lifting,
        bits,
        coded,
    )
    return coded


@lru_cache(maxsize=256)
def places(code: Segmentation, bits_per_symbol: int, redundancy_version: int = 0) -> np.ndarray:
    """Where in the slot's buffers [C N] every transmitted bit comes from, [G] int32, in the order
    of transmission.

    Bit selection from the redundancy version's start around the buffer without the filler bits
    (5.4.2.1), then the interleaver: bit i E / Q + j of a code block goes to place i + j Q
    (5.4.2.2), code block after code block (5.5).
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
    """Rows of the base graph that a decoder needs after so many transmissions: those of the parity
    columns that were sent.

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
    """Add the slots' LLRs [S, G] (positive for a bit 0, in nats) to their buffers [S, C N]
    int16.
    """
    for s in range(llr.shape[0]):
        for g in range(place.shape[0]):
            value = llr[s, g] * np.float32(LLR_SCALE)
            step = np.int32(np.rint(min(max(value, np.float32(-MAX_LLR)), np.float32(MAX_LLR))))
            total = step + np.int32(buffer[s, place[g]])
            buffer[s, place[g]] = min(max(total, -MAX_MESSAGE), MAX_MESSAGE)


def _int16_instruction(name):
    """An LLVM instruction of two 16-bit integers. Numba widens int16 to int64, which the vectoriser
    cannot undo for comparisons.
    """

    @intrinsic
    def instruction(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            kind = ir.IntType(16)
            function = builder.module.declare_intrinsic(
                f"llvm.{name}", [kind], fnty=ir.FunctionType(kind, [kind, kind])
            )
            return builder.call(function, arguments)

        return types.int16(types.int16, types.int16), generate

    return instruction


_lesser, _greater = _int16_instruction("smin"), _int16_instruction("smax")


# Inner loops over lanes, of slices with one index: numba does not vectorise them with two. Inlined,
# as a call costs as much as a loop.


@_inline
def _turn(column, turn, out):
    """out[i] = column[(i + turn) mod n]."""
    rest = column.shape[0] - turn
    ahead, back, front = column[turn:], out[:rest], out[rest:]
    for i in range(rest):
        back[i] = ahead[i]
    for i in range(turn):
        front[i] = column[i]


@_inline
def _two_least(x, message, least, second, parity):
    """Take the check's own message from a bit's posterior: what the bit says, x. Running least and
    second least magnitude of these; the sign bits of `parity` are the parity of the signs.
    """
    for i in range(x.shape[0]):
        said = np.int16(x[i] - message[i])
        a = _greater(said, np.int16(-said))
        x[i] = said
        second[i] = _lesser(second[i], _greater(a, least[i]))
        least[i] = _lesser(a, least[i])
        parity[i] = parity[i] ^ said


@_inline
def _reply(x, least, second, parity, message, posterior):
    """The check's message to the bit that said x: the least of the others' magnitudes less the
    offset, with their parity.
    """
    for i in range(x.shape[0]):
        magnitude = second[i] if _greater(x[i], np.int16(-x[i])) == least[i] else least[i]
        magnitude = _lesser(
            _greater(np.int16(magnitude - np.int16(OFFSET)), np.int16(0)), np.int16(MAX_MESSAGE)
        )
        sign = np.int16(parity[i] ^ x[i]) >> 15
        answer = np.int16((magnitude ^ sign) - sign)
        message[i] = answer
        posterior[i] = _greater(
            _lesser(np.int16(x[i] + answer), np.int16(MAX_POSTERIOR)), np.int16(-MAX_POSTERIOR)
        )


@_jit
def _satisfied(starts, columns, shifts, num_rows, num_side, lifting, turned, posterior, parity):
    n = num_side * lifting
    for row in range(num_rows):
        parity[:] = 0
        for e in range(starts[row], starts[row + 1]):
            turn = (shifts[e] - turned[columns[e]]) % lifting * num_side
            _add_turned(posterior[columns[e], :n], turn, parity[:n])
        for i in range(n):
            if parity[i] < 0:
                return False
    return True


@_jit
def _decode(
    starts,
    columns,
    shifts,
    num_rows,
    iterations,
    num_side,
    num_info,
    info,
    lifting,
    buffer,
    decided,
):
    """Hard decisions [B, K'] of buffers [B, N] int16, num_side blocks at a time; returns the
    iterations spent by all groups.
    """
    num_blocks, num_columns, n = buffer.shape[0], num_info + num_rows, num_side * lifting
    whole = -(-n // VECTOR) * VECTOR
    posterior = np.empty((num_columns, whole), np.int16)
    # by how much a column lies turned: the shift of the check that wrote it
    turned = np.empty(num_columns, np.int64)
    message = np.empty((starts[num_rows], whole), np.int16)
    x = np.zeros((19, whole), np.int16)  # a row has at most 19 entries
    least, second, parity = (
        np.empty(whole, np.int16),
        np.empty(whole, np.int16),
        np.empty(whole, np.int16),
    )
    spent = 0
    for first in range(0, num_blocks, num_side):
        here = min(num_side, num_blocks - first)
        posterior[:2] = 0  # the first two columns are never sent
        # lanes without a block are a codeword of zeros, filler bits are zeros
        posterior[2:] = MAX_MESSAGE
        for column in range(2, num_columns):
            known = min(max(info - column * lifting, 0), lifting) if column < num_info else lifting
            for b in range(here):
                lane, sent = posterior[column, b:], buffer[first + b, (column - 2) * lifting :]
                for z in range(known):
                    lane[z * num_side] = sent[z]
        turned[:] = 0
        message[:] = 0
        for _ in range(iterations):
            spent += here
            for row in range(num_rows):
                start = starts[row]
                least[:], second[:], parity[:] = MAX_POSTERIOR, MAX_POSTERIOR, 0
                for e in range(start, starts[row + 1]):
                    turn = (shifts[e] - turned[columns[e]]) % lifting * num_side
                    _turn(posterior[columns[e], :n], turn, x[e - start, :n])
                    _two_least(x[e - start], message[e], least, second, parity)
                for e in range(start, starts[row + 1]):
                    _reply(x[e - start], least, second, parity, message[e], posterior[columns[e]])
                    turned[columns[e]] = shifts[e]
            if _satisfied(
                starts, columns, shifts, num_rows, num_side, lifting, turned, posterior, parity
            ):
                break
        for b in range(here):
            for column in range(-(-info // lifting)):
                start, end = column * lifting, min((column + 1) * lifting, info)
                lane, out = posterior[column, b:], decided[first + b, start:end]
                ahead = lifting - turned[column]
                for z in range(out.shape[0]):
                    out[z] = (
                        lane[(z + ahead if z < turned[column] else z - turned[column]) * num_side]
                        < 0
                    )
    return spent


def decode(code: Segmentation, buffer: np.ndarray, iterations: int, num_rows: int) -> np.ndarray:
    """Decided bits [B, K'] uint8 of code blocks' buffers [B, N] int16 (see `recover`); stops where
    all checks are met.
    """
    decided = np.empty((len(buffer), code.info), np.uint8)
    side = max(1, min(-(-LANES // code.lifting), len(buffer)))
    _decode(
        *base_graph(code.base_graph, code.lifting),
        num_rows,
        iterations,
        side,
        code.columns,
        code.info,
        code.lifting,
        buffer,
        decided,
    )
    return decided

"""The LDPC code against clauses 5.3.2, 5.4.2.1 and 5.4.2.2 of TS 38.212, written here as they stand
there, bit by bit.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.chain import ldpc
from twin.transport import REDUNDANCY_VERSIONS, segment

RNG = np.random.default_rng(0)
# Both base graphs, one and several code blocks, with and without fillers, high and low rates,
# repetition
CODES = [
    segment(size, rate, coded, step)
    for size, rate, coded, step in (
        (24, 0.5, 120, 2),
        (288, 0.33, 900, 4),
        (640, 0.5, 1296, 6),
        (1864, 0.67, 2784, 8),
        (3824, 0.67, 5712, 2),
        (3904, 0.89, 4392, 6),
        (8448, 0.5, 16_896, 8),
        (10_504, 0.2, 52_520, 2),
        (20_496, 0.83, 24_696, 4),
        (528, 0.2, 4000, 2),
        (96, 0.2, 1200, 4),
    )
]
IDS = [f"bg{c.base_graph}-z{c.lifting}-{c.num_blocks}x{c.info}" for c in CODES]


def codewords(code, number):
    """Bits [number, K'] and the whole codewords [number, columns, Z], the 2 Z bits that are never
    sent in front.
    """
    bits = RNG.integers(0, 2, (number, code.info), dtype=np.uint8)
    buffers = ldpc.encode(code, bits)
    known = np.zeros((number, code.columns * code.lifting), np.uint8)
    known[:, : code.info] = bits
    words = np.concatenate([known[:, : 2 * code.lifting], buffers], axis=1)
    assert np.array_equal(words[:, : known.shape[1]], known)  # systematic, fillers zero
    return bits, words.reshape(number, -1, code.lifting)


def syndrome(code, words):
    """H c, [number, rows, Z]: entry (row, column, shift) adds bit (z + shift) mod Z of its
    column.
    """
    starts, columns, shifts = ldpc.base_graph(code.base_graph, code.lifting)
    out = np.zeros((len(words), len(starts) - 1, code.lifting), np.uint8)
    for row in range(len(starts) - 1):
        for e in range(starts[row], starts[row + 1]):
            out[:, row] ^= np.roll(words[:, columns[e]], -shifts[e], axis=1)
    return out


@pytest.mark.parametrize("number, rows, columns, edges", [(1, 46, 68, 316), (2, 42, 52, 197)])
def test_the_base_graphs_have_the_tables_size(number, rows, columns, edges):
    starts, cols, _ = ldpc.base_graph(number, 384)
    assert (len(starts) - 1, cols.max() + 1, len(cols)) == (rows, columns, edges)


@pytest.mark.parametrize("code", CODES, ids=IDS)
def test_codewords_meet_all_checks(code):
    _, words = codewords(code, 5)
    assert not syndrome(code, words).any()
    words[0, 3, 1] ^= 1
    assert syndrome(code, words)[0].any()


def sent_by_the_clause(code, coded, bits_per_symbol, version):
    """The bits [G] that are sent of codewords [C, columns, Z]: steps of 5.4.2.1 and 5.4.2.2 in the
    clause's variables.
    """
    sent = []
    for r, e_r in enumerate(code.sent):
        d = coded[r].ravel()[2 * code.lifting :].astype(int)
        d[code.info - 2 * code.lifting : (code.columns - 2) * code.lifting] = -1  # <NULL>
        n_cb, z = len(d), code.lifting
        k_0 = {1: (0, 17, 33, 56), 2: (0, 13, 25, 43)}[code.base_graph][version]
        k_0 = k_0 * n_cb // ((66 if code.base_graph == 1 else 50) * z) * z
        e, k, j = [], 0, 0
        while k < e_r:
            if d[(k_0 + j) % n_cb] != -1:
                e.append(d[(k_0 + j) % n_cb])
                k += 1
            j += 1
        f = [None] * e_r
        for j in range(e_r // bits_per_symbol):
            for i in range(bits_per_symbol):
                f[i + j * bits_per_symbol] = e[i * e_r // bits_per_symbol + j]
        sent += f
    return np.array(sent)


@pytest.mark.parametrize("version", REDUNDANCY_VERSIONS)
@pytest.mark.parametrize("code", CODES, ids=IDS)
def test_every_redundancy_version_sends_the_clauses_bits(code, version):
    _, words = codewords(code, code.num_blocks)
    m = next(m for m in (8, 6, 4, 2) if all(e % m == 0 for e in code.sent))
    place = ldpc.places(code, m, version)
    buffers = words.reshape(code.num_blocks, -1)[:, 2 * code.lifting :].reshape(-1)
    np.testing.assert_array_equal(buffers[place], sent_by_the_clause(code, words, m, version))


def noisy(code, words, sigma, versions=(0,)):
    """Buffers [B, N] int16 of BPSK in noise, as after transmissions of these versions of every word
    by itself.
    """
    buffer = np.zeros((len(words), code.mother_length), np.int16)
    flat = words.reshape(len(words), -1)[:, 2 * code.lifting :]
    single = segment(code.size, 0.5, code.sent[0], 2) if code.num_blocks == 1 else None
    for version in versions:
        place = ldpc.places(single or code, 2, version)[: code.sent[0]] % code.mother_length
        x = 1.0 - 2.0 * flat[:, place]
        llr = (2 / sigma**2 * (x + sigma * RNG.standard_normal(x.shape))).astype(np.float32)
        ldpc.recover(llr, place.astype(np.int32), buffer)
    return buffer


@pytest.mark.parametrize("code", CODES, ids=IDS)
def test_little_noise_is_decoded_and_much_is_not(code):
    bits, words = codewords(code, 20)
    rows = ldpc.rows_needed(code, 1)
    rate = code.info / code.sent[0]
    capacity_sigma = 1 / np.sqrt(2 ** (2 * rate) - 1)  # Gaussian inputs, a real channel
    assert np.array_equal(
        ldpc.decode(code, noisy(code, words, 0.4 * capacity_sigma), 20, rows), bits
    )
    hopeless = ldpc.decode(code, noisy(code, words, 1.5 * capacity_sigma), 20, rows)
    assert np.all(np.any(hopeless != bits, axis=1)) or code.info < 64


@pytest.mark.parametrize("code", CODES[:9], ids=IDS[:9])
def test_decisions_do_not_depend_on_the_batch(code):
    """Near the threshold, where some blocks fail: alone, in pairs, in odd batches, in any order."""
    bits, words = codewords(code, 23)
    rate = code.info / code.sent[0]
    buffer = noisy(code, words, 0.75 / np.sqrt(2 ** (2 * rate) - 1))
    rows = ldpc.rows_needed(code, 1)
    together = ldpc.decode(code, buffer, 6, rows)
    for size in (1, 2, 7, 16):
        parts = [ldpc.decode(code, buffer[i : i + size], 6, rows) for i in range(0, 23, size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    np.testing.assert_array_equal(ldpc.decode(code, buffer[::-1], 6, rows)[::-1], together)


@pytest.mark.parametrize("versions", [(0,), (0, 2), (0, 2, 3, 1)])
@pytest.mark.parametrize("code", [CODES[i] for i in (2, 3, 6)], ids=[IDS[i] for i in (2, 3, 6)])
def test_rows_that_are_left_out_tell_nothing(code, versions):
    """A decoder with all rows of the base graph corrects the same blocks."""
    bits, words = codewords(code, 60)
    rate = code.info / min(len(versions) * code.sent[0], code.mother_length)
    sigma = 0.72 / np.sqrt(2 ** (2 * rate) - 1)
    buffer, all_rows = (
        noisy(code, words, sigma, versions),
        len(ldpc.base_graph(code.base_graph, code.lifting)[0]) - 1,
    )
    needed = ldpc.rows_needed(code, len(versions))
    assert needed < all_rows or len(versions) > 1
    wrong = [
        np.any(ldpc.decode(code, buffer, 12, rows) != bits, axis=1) for rows in (needed, all_rows)
    ]
    assert np.count_nonzero(wrong[0] != wrong[1]) <= 1
    if needed > 6:  # one row too few costs blocks, or at least is another decoder
        fewer = ldpc.decode(code, buffer, 12, max(4, needed - 3))
        assert np.count_nonzero(np.any(fewer != bits, axis=1)) >= np.count_nonzero(wrong[0])


def test_what_is_received_is_scaled_rounded_and_limited():
    buffer = np.zeros((1, 6), np.int16)
    llr = np.array([[0.06, 0.07, -1.0, 1e9, -1e9, 0.3]], np.float32)
    ldpc.recover(llr, np.arange(6, dtype=np.int32), buffer)
    assert buffer.tolist() == [[0, 1, -8, ldpc.MAX_LLR, -ldpc.MAX_LLR, 2]]


def test_transmissions_add_up_and_saturate():
    # bit 2 twice in a transmission
    buffer, place = np.zeros((2, 4), np.int16), np.array([2, 0, 2], np.int32)
    llr = np.array([[1.0, -2.0, 0.5], [200.0, -200.0, 200.0]], np.float32)
    ldpc.recover(llr, place, buffer)
    assert buffer.tolist() == [[-16, 0, 12, 0], [-ldpc.MAX_LLR, 0, 2 * ldpc.MAX_LLR, 0]]
    for _ in range(50):
        ldpc.recover(llr, place, buffer)
    assert buffer[1].tolist() == [-ldpc.MAX_MESSAGE, 0, ldpc.MAX_MESSAGE, 0]


def test_a_saturated_buffer_is_decoded():
    """The largest integers everywhere: nothing overflows into another sign."""
    for code in (CODES[2], CODES[6]):
        bits, words = codewords(code, 9)
        sign = 1 - 2 * words.reshape(9, -1)[:, 2 * code.lifting :].astype(np.int16)
        buffer = (ldpc.MAX_MESSAGE * sign).astype(np.int16)
        rows = 46 if code.base_graph == 1 else 42
        np.testing.assert_array_equal(ldpc.decode(code, buffer, 20, rows), bits)
        flipped = buffer.copy()  # a few certain bits are wrong, and still outvoted
        flipped[:, 3::97] *= -1
        np.testing.assert_array_equal(ldpc.decode(code, flipped, 20, rows), bits)


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_the_code_is_linear(seed):
    code, rng = CODES[3], np.random.default_rng(seed)
    a, b = rng.integers(0, 2, (2, 1, code.info), dtype=np.uint8)
    np.testing.assert_array_equal(
        ldpc.encode(code, a) ^ ldpc.encode(code, b), ldpc.encode(code, a ^ b)
    )


@pytest.mark.parametrize("code", CODES, ids=IDS)
def test_parity_that_is_not_sent_is_not_computed(code):
    """And nothing else is missing, for any number of blocks side by side."""
    bits = RNG.integers(0, 2, (70, code.info), dtype=np.uint8)
    for transmissions in (1, 2):
        rows = ldpc.rows_needed(code, transmissions)
        some, every = ldpc.encode(code, bits, rows), ldpc.encode(code, bits)
        for version in REDUNDANCY_VERSIONS[:transmissions]:
            place = ldpc.places(code, 2, version) % code.mother_length
            np.testing.assert_array_equal(some[:, place], every[:, place])
    np.testing.assert_array_equal(ldpc.encode(code, bits[33:34])[0], every[33])

"""The transport block's formulas against the clauses' own words; sionna_stages.py has Sionna's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import workflows

from twin import Workflow
from twin.theory import MCS_TABLE_1
from twin.toolbox import refusal
from twin.transport import (
    _SMALL_SIZES,
    LIFTING_SIZES,
    MAX_POLAR_BLOCKS,
    POLAR_LENGTH,
    coded_bits,
    data_elements,
    information_bits,
    num_polar_blocks,
    polar_info_bits,
    segment,
    segmentation,
    transport_block_bits,
)

RATES = [r / 1024 for _, r in MCS_TABLE_1 if 0.2 <= r / 1024 <= 0.93]


def test_the_largest_transport_block_is_the_published_one():
    assert transport_block_bits(273, 156, 8, 4, 948 / 1024) == 1_277_992
    assert len(_SMALL_SIZES) == 93


@pytest.mark.parametrize("steps, expected", [(34.5, 35), (35.5, 36), (34.49, 34), (34.51, 35)])
def test_a_tie_is_broken_towards_the_next_larger_size(steps, expected):
    """38.214 5.1.3.2: ties go "towards the next largest integer", of steps of 128 bits here. To
    even, 34.5 would be 34.
    """
    information = 24 + 128 * steps
    assert transport_block_bits(1, 1, 1, 1, information) == 128 * expected


def test_there_are_51_lifting_sizes():
    assert len(LIFTING_SIZES) == 51 and LIFTING_SIZES[0] == 2 and LIFTING_SIZES[-1] == 384


@pytest.mark.parametrize(
    "size, rate, graph",
    [
        (292, 0.9, 2),
        (293, 0.68, 1),
        (3824, 0.67, 2),
        (3824, 0.68, 1),
        (3848, 0.67, 1),
        (3848, 0.25, 2),
        (60_000, 0.2, 2),
    ],
)
def test_the_base_graph_is_that_of_clause_7_2_2(size, rate, graph):
    assert segment(size, rate, math.ceil(size / rate / 8) * 8, 8).base_graph == graph


def test_redundancy_versions_start_where_the_table_says():
    """Table 5.4.2.1-2 with N_cb = N: floor(17 N / 66 Z) Z and so on."""
    for size, rate, steps, columns in (
        (5000, 0.5, (0, 17, 33, 56), 66),
        (1000, 0.5, (0, 13, 25, 43), 50),
    ):
        code = segment(size, rate, 10_080, 2)
        for version, step in enumerate(steps):
            assert (
                code.start(version)
                == step * code.mother_length // (columns * code.lifting) * code.lifting
            )


@given(w=workflows(code=st.just("ldpc")))
def test_a_grants_blocks_are_cut_as_the_clauses_say(w):
    """38.212 5.2.2 and 5.4.2.1, and what they imply: all information and all coded bits are there,
    once.
    """
    code, total = segmentation(w), coded_bits(w)
    size = information_bits(w)
    assert size % 8 == 0 and code.size == size and code.crc == (16 if size <= 3824 else 24)
    # whole bits: no block is padded
    assert code.num_blocks * code.info == size + code.crc + 24 * code.num_blocks * (
        code.num_blocks > 1
    )
    largest = 8448 if code.base_graph == 1 else 3840
    assert code.info <= largest and (code.num_blocks == 1) == (size + code.crc <= largest)
    if code.num_blocks > 1:
        assert (code.num_blocks - 1) * (largest - 24) < size + code.crc
    # smallest lifting size
    assert code.lifting in LIFTING_SIZES and 0 <= code.filler < code.columns * code.lifting
    smaller = [z for z in LIFTING_SIZES if z < code.lifting]
    b = size + code.crc
    columns = (
        22 if code.base_graph == 1 else 10 if b > 640 else 9 if b > 560 else 8 if b > 192 else 6
    )
    assert not smaller or columns * smaller[-1] < code.info <= columns * code.lifting
    # rate matching: whole symbols on all layers, the longer blocks last
    step = w.bits_per_symbol * w.num_layers
    assert sum(code.sent) == total == data_elements(w) * step
    assert all(e % step == 0 for e in code.sent) and list(code.sent) == sorted(code.sent)
    assert code.sent[-1] - code.sent[0] in (0, step)


@given(w=workflows(code=st.just("ldpc"), code_rate=st.sampled_from(RATES)))
def test_the_code_rate_of_a_block_is_the_nominal_one(w):
    """The TBS quantises it by at most a 64th of N_info for large blocks, 8 + 24 bits and 5 % for
    small ones.
    """
    rate, total = information_bits(w) / coded_bits(w), coded_bits(w)
    assert abs(rate - w.code_rate) * total <= 8 + 24 + 0.05 * w.code_rate * total


@given(w=workflows(code=st.just("polar"), num_layers=st.just(1), num_prb=st.integers(1, 7)))
def test_polar_blocks_fill_the_grant(w):
    number = num_polar_blocks(w)
    assert number * POLAR_LENGTH <= coded_bits(w) < (number + 1) * POLAR_LENGTH
    assert information_bits(w) == number * polar_info_bits(w.code_rate)
    assert abs(polar_info_bits(w.code_rate) / POLAR_LENGTH - w.code_rate) <= 8 / POLAR_LENGTH
    assert (refusal((), w, validation=True) is None) == (1 <= number <= MAX_POLAR_BLOCKS)


def test_uncoded_blocks_are_all_the_grant():
    w = Workflow(code="none", num_prb=3, num_dmrs=2, bits_per_symbol=6)
    assert information_bits(w) == coded_bits(w) == 3 * 12 * 12 * 6

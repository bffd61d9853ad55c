"""Mapper and demapper against the formulas of TS 38.211 5.1.3 to 5.1.6 and sums over all points in
float64.
"""

import numpy as np
import pytest
from checking import exact_llr, labels, qam_point
from hypothesis import given
from hypothesis import strategies as st

from twin.chain import qam

ORDERS = (2, 4, 6, 8)


@pytest.mark.parametrize("m", ORDERS)
def test_the_points_are_those_of_the_clause(m):
    expected = np.array([qam_point(b) for b in labels(m)])
    np.testing.assert_allclose(qam.constellation(m), expected, atol=1e-6)
    assert np.mean(np.abs(qam.constellation(m)) ** 2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("m", ORDERS)
def test_the_mapper_takes_bits_from_their_places(m):
    rng = np.random.default_rng(m)
    coded, place = (
        rng.integers(0, 2, (3, 50 * m), dtype=np.uint8),
        rng.permutation(50 * m)[: 40 * m].astype(np.int32),
    )
    x = qam.map_symbols(coded, place, m)
    expected = [
        [qam_point(coded[s, place[i * m : (i + 1) * m]]) for i in range(40)] for s in range(3)
    ]
    np.testing.assert_allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize("m", ORDERS)
def test_nearest_neighbours_differ_in_one_bit(m):
    x, b = qam.constellation(m).astype(complex), labels(m)
    distance = np.abs(x[:, None] - x)
    near = (distance > 0) & (distance < 1.01 * distance[distance > 1e-9].min())
    assert np.all(np.sum(b[:, None] != b[None], axis=2)[near] == 1) and near.any(axis=1).all()


def demap(y, noise, m):
    """LLRs [symbols, m] by the demapper: a row of real parts, one of imaginary parts."""
    out = np.empty(len(y) * m, np.float32)
    for first, part in enumerate((y.real, y.imag)):
        part, noise = np.ascontiguousarray(part, np.float32), np.asarray(noise, np.float32)
        qam.demap_row(part, noise, *qam.ladder(m), m // 2, out, first, m)
    return out.reshape(-1, m)


LIMIT = 30.0  # nats: nothing that a decoder tells from certainty. Likelihoods end at 1e-17, 39 nats


@pytest.mark.parametrize("m", ORDERS)
@given(
    seed=st.integers(0, 2**31), noise_db=st.floats(-40, 15), scale=st.sampled_from((0.5, 1.0, 3.0))
)
def test_the_demapper_is_exact(m, seed, noise_db, scale):
    """Up to LIMIT; beyond it LLRs keep their sign and are no smaller."""
    rng = np.random.default_rng(seed)
    y = (scale * (rng.standard_normal(64) + 1j * rng.standard_normal(64))).astype(np.complex64)
    noise = (10 ** (noise_db / 10) * rng.uniform(0.5, 2, 64)).astype(np.float32)
    ours, reference = demap(y, noise, m), exact_llr(y.astype(complex), noise.astype(float), m)
    np.testing.assert_allclose(
        np.clip(ours, -LIMIT, LIMIT), np.clip(reference, -LIMIT, LIMIT), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("m", ORDERS)
def test_extremes_stay_finite_and_on_the_right_side(m):
    x = qam.constellation(m)
    for noise in (1e-9, 1e-4, 1e9):
        llr = demap(x, np.full(len(x), noise), m)
        assert np.all(np.isfinite(llr))
        if noise < 1:
            assert np.array_equal(llr < 0, labels(m) == 1)
    assert np.all(np.isfinite(demap(np.array([1e6 + 1e6j]), np.array([1e-9]), m)))

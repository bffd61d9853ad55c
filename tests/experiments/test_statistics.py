"""Intervals that are what they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.statistics import mean_interval, paired_difference, wilson


def test_wilson_is_the_textbook_figure():
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_proportion_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_covers_the_truth_about_95_times_in_100():
    hits = [
        low <= 0.3 <= high
        for low, high in (
            wilson(int(k), 200) for k in np.random.default_rng(0).binomial(200, 0.3, 2000)
        )
    ]
    assert 0.93 < np.mean(hits) < 0.97


def test_the_mean_s_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    hits = [
        low <= 0.5 <= high
        for low, high in (mean_interval(rng.random(80), resamples=500) for _ in range(400))
    ]
    assert 0.91 < np.mean(hits) < 0.98


def test_nothing_has_no_interval():
    assert all(map(math.isnan, mean_interval([])))


def test_paired_differences_drop_what_both_share():
    rng = np.random.default_rng(2)
    shared = 10 * rng.random(100)
    mean, (low, high) = paired_difference(shared + 0.1, shared + 0.01 * rng.random(100))
    assert low <= mean <= high and high - low < 0.01

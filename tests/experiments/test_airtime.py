"""Ranks under a budget of bits: what fits is sent, what is sent arrives, the greedy choices are
what they say.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.studies import airtime

SHAPES = {"a": (6, 4), "b": (3, 8), "c": (5, 5)}


def drawn(seed):
    rng = np.random.default_rng(seed)
    return {
        name: airtime.Delta(*np.linalg.svd(rng.normal(size=shape), full_matrices=False))
        for name, shape in SHAPES.items()
    }


def energy(some, ranks):
    return sum(float((one.strength[: ranks[name]] ** 2).sum()) for name, one in some.items())


@given(st.integers(0, 1000), st.integers(0, 12_000))
def test_what_is_chosen_fits_and_another_rank_of_all_would_not(seed, budget):
    some = drawn(seed)
    norms = dict(zip(some, np.random.default_rng(seed).uniform(0.1, 1, len(some))))
    whole = airtime.full(some)
    for ranks in (
        airtime.fixed(some, budget),
        airtime.by_gradient(some, norms, budget),
        airtime.by_energy(some, budget),
    ):
        assert airtime.bits(some, ranks) <= budget
        assert all(0 <= ranks[name] <= whole[name] for name in some)
        if budget >= airtime.bits(some, whole):
            assert ranks == whole
    ranks = airtime.fixed(some, budget)
    more = {name: min(whole[name], max(ranks.values()) + 1) for name in some}
    assert more == ranks or airtime.bits(some, more) > budget


@given(st.integers(0, 1000), st.integers(0, 12_000))
def test_greedy_energy_is_within_one_direction_of_every_choice(seed, budget):
    """Of all ranks that fit none has more energy than the greedy ones and their next direction."""
    some = drawn(seed)
    ranks, whole = airtime.by_energy(some, budget), airtime.full(some)
    rest = [
        float(some[name].strength[ranks[name]] ** 2) for name in some if ranks[name] < whole[name]
    ]
    best = max(
        energy(some, dict(zip(some, choice)))
        for choice in np.ndindex(*(one + 1 for one in whole.values()))
        if airtime.bits(some, dict(zip(some, choice))) <= budget
    )
    assert energy(some, ranks) <= best + 1e-9
    assert best <= energy(some, ranks) + max(rest, default=0.0) + 1e-9


def test_all_ranks_give_the_servers_parameters_and_none_its_vectors_alone():
    rng = np.random.default_rng(0)
    device, server = (
        {
            "stack": rng.normal(size=(3, 4, 6)),
            "matrix": rng.normal(size=(5, 2)),
            "scale": np.full(7, k),
        }
        for k in (1.0, 2.0)
    )
    some = airtime.deltas(device, server)
    assert len(some) == 4
    whole = airtime.sent(device, server, some, airtime.full(some))
    for name, leaf in server.items():
        np.testing.assert_allclose(whole[name], leaf, atol=1e-5)
    nothing = airtime.sent(device, server, some, {})
    for name in ("stack", "matrix"):
        np.testing.assert_array_equal(nothing[name], device[name])
    np.testing.assert_array_equal(nothing["scale"], server["scale"])
    one = airtime.sent(device, server, some, {"['stack'][1]": 1})
    changed = [not np.allclose(a, b) for a, b in zip(one["stack"], device["stack"])]
    assert changed == [False, True, False]
    assert np.linalg.matrix_rank(one["stack"][1] - device["stack"][1], tol=1e-5) == 1


@pytest.mark.parametrize("seed", range(3))
def test_measured_growth_follows_the_largest_gain_a_bit(seed):
    """The loss is the energy that is missing: every step takes what a search over all doublings
    would, and the last one fits.
    """
    some = drawn(seed)
    missing = lambda ranks: energy(some, airtime.full(some)) - energy(some, ranks)
    budget = airtime.bits(some, airtime.full(some)) // 2
    steps = airtime.by_measure(some, missing, budget)
    assert all(one <= budget for one in (airtime.bits(some, ranks) for ranks in steps))
    assert set(steps[0].values()) == {0} and len(steps) > 3
    whole = airtime.full(some)
    for before, after in zip(steps, steps[1:]):
        gains = {}
        for name in some:
            more = before | {name: min(whole[name], max(1, 2 * before[name]))}
            size = airtime.bits(some, more) - airtime.bits(some, before)
            if size and airtime.bits(some, more) <= budget:
                gains[name] = (missing(before) - missing(more)) / size
        (grown,) = [name for name in some if after[name] != before[name]]
        assert gains[grown] == pytest.approx(max(gains.values()))

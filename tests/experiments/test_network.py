"""The network world's problems: every exact solver against another one, bounds above all points,
and the closed form of massive MIMO against its own channel.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp, minimize

from experiments.network import oracles
from experiments.network.problems import (
    KINDS,
    OBJECTIVES,
    Assignment,
    Bandwidth,
    Cells,
    Power,
    Slicing,
    WaterFilling,
    alpha_fair,
    draw,
    draw_cells,
)

SEEDS = st.integers(0, 2**32 - 1)


def problems(kind, low=2, high=8):
    return st.builds(
        lambda seed, size: draw(kind, np.random.default_rng(seed), size),
        SEEDS,
        st.integers(low, high),
    )


def compositions(total, parts):
    """Every way to give at most `total` units to `parts` users."""
    for cut in itertools.combinations(range(total + parts), parts):
        edges = (-1, *cut)
        yield np.diff(edges) - 1


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.5, 500), min_size=2, max_size=4),
    st.integers(2, 9),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, math.inf]),
    st.floats(0, 0.9),
    st.booleans(),
)
@example([1.0, 1.0, 1.0], 2, 0.0, 1e-10, False)  # a rate within the rounding of what is asked
def test_bandwidth_is_the_best_of_all_ways_to_share(snr, units, alpha, demand, literal):
    problem = Bandwidth(units, tuple(snr), alpha, literal=literal)
    equal = problem.rates(np.full(len(snr), units / len(snr)))
    problem = dataclasses.replace(problem, least=tuple(demand * equal))
    every = [b for b in compositions(units, len(snr)) if problem.violation(b) == 0]
    found = oracles.solve(problem)
    if not every:
        assert found is None
        return
    best = max(map(problem.utility, every))
    assert problem.violation(found.solution) == 0 and found.exact
    assert found.utility == best or found.utility == pytest.approx(best, rel=1e-9)


def test_taken_literally_proportional_fairness_is_the_equal_split():
    """Rates linear in the units: log(b log2(1 + s)) has the same slope for every s. With a power
    that is shared by a user's units it is not.
    """
    literal = Bandwidth(12, (1.0, 30.0, 900.0), 1.0, literal=True)
    shared = dataclasses.replace(literal, literal=False)
    assert oracles.bandwidth(literal).tolist() == [4, 4, 4]
    assert oracles.bandwidth(shared).tolist() != [4, 4, 4]


@given(problems("water-filling"))
def test_water_filling_against_a_general_solver(problem):
    found = oracles.solve(problem)
    assert problem.violation(found.solution) == 0
    noise, wet = np.asarray(problem.noise), found.solution > 1e-9
    level = (found.solution + noise)[wet]
    assert np.ptp(level) < 1e-9 * level.max() and (noise[~wet] >= level.min() - 1e-9).all()
    other = minimize(
        lambda p: -problem.utility(p),
        np.full(problem.size, problem.power / problem.size),
        jac=lambda p: -1 / (np.asarray(problem.noise) + p) / math.log(2),
        bounds=[(0, problem.power)] * problem.size,
        constraints={"type": "eq", "fun": lambda p: p.sum() - problem.power},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.utility == pytest.approx(-other.fun, rel=1e-6)


def with_objective(objective):
    return problems("power", 2, 12).map(lambda one: dataclasses.replace(one, objective=objective))


@settings(max_examples=20)
@given(with_objective("max-min"))
def test_max_min_power_against_bisection_over_linear_programs(problem):
    found = oracles.solve(problem)
    sinr = problem.sinr(found.solution)
    assert problem.violation(found.solution) == 0
    assert np.ptp(sinr) < 1e-6 * sinr.max()
    F, n, g = map(np.asarray, (problem.interference, problem.noise, problem.gain))
    n_scaled, low, high = n / problem.power, 0.0, float((g / n).max() * problem.power)
    for _ in range(60):
        t = (low + high) / 2  # t (F p + n) <= g p, sum p <= 1
        rows = np.vstack([t * F - np.diag(g), np.ones(problem.size)])
        program = linprog(
            np.zeros(problem.size), rows, np.append(-t * n_scaled, 1.0), bounds=(0, None)
        )
        low, high = (t, high) if program.status == 0 else (low, t)
    assert found.utility == pytest.approx(low, rel=1e-6)


@settings(max_examples=20)
@given(with_objective("max-product"))
def test_max_product_power_against_a_general_solver(problem):
    found = oracles.solve(problem)
    assert problem.violation(found.solution) == 0
    other = minimize(
        lambda y: -problem.utility(np.exp(y)) / problem.size,
        np.full(problem.size, math.log(problem.power / problem.size)),
        constraints={"type": "ineq", "fun": lambda y: 1 - np.exp(y).sum() / problem.power},
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    assert found.utility == pytest.approx(-other.fun * problem.size, rel=1e-6, abs=1e-6)


@settings(max_examples=20)
@given(with_objective("sum-rate"), SEEDS)
def test_the_sum_rates_bound_is_above_and_its_point_below(problem, seed):
    found, rng = oracles.solve(problem), np.random.default_rng(seed)
    assert problem.violation(found.solution) == 0
    assert found.utility <= found.bound * (1 + 1e-9)
    others = problem.power * rng.dirichlet(np.full(problem.size, 0.5), 300)
    assert max(map(problem.utility, others)) <= found.utility * (1 + 1e-3)
    assert problem.utility(oracles.max_min(problem)) <= found.utility * (1 + 1e-9)


def test_without_interference_the_sum_rate_is_water_filling_and_known():
    problem = Power(5.0, (1.0, 2.0, 4.0), ((0.0,) * 3,) * 3, (1.0, 1.0, 8.0), "sum-rate")
    found = oracles.solve(problem)
    assert found.exact
    filled = oracles.water_filling(WaterFilling(5.0, (1.0, 0.5, 2.0)))
    np.testing.assert_allclose(found.solution, filled, atol=1e-3)


@given(problems("assignment", 2, 6))
def test_assignment_is_the_best_of_all(problem):
    found = oracles.solve(problem)
    columns = range(len(problem.value[0]))
    best = max(map(problem.utility, itertools.permutations(columns, problem.size)))
    assert problem.violation(found.solution) == 0
    assert found.utility == pytest.approx(best, abs=1e-9)


@given(problems("slicing", 2, 14))
def test_slicing_against_integer_programming(problem):
    found = oracles.solve(problem)
    other = milp(
        -np.asarray(problem.worth),
        integrality=np.ones(problem.size),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.asarray(problem.wanted), ub=problem.blocks),
    )
    assert problem.violation(found.solution) == 0
    assert found.utility == pytest.approx(-other.fun, abs=1e-6)


@pytest.mark.parametrize(
    "problem, wrong",
    [
        (Bandwidth(4, (1.0, 2.0)), [[3, 2], [2, -1], [1.5, 1], [4], [math.nan, 1]]),
        (Bandwidth(4, (1.0, 2.0), least=(1.0, 0.0)), [[0, 4]]),
        (WaterFilling(2.0, (1.0, 1.0)), [[1.5, 0.6], [2.1, -0.1], [1], [math.inf, 0]]),
        (Assignment(((1.0, 2.0), (3.0, 4.0))), [[0, 0], [0, 2], [0], [0.5, 1]]),
        (Slicing(5, (3, 3), (1.0, 1.0)), [[1, 1], [2, 0], [1]]),
    ],
)
def test_what_breaks_a_constraint_is_seen(problem, wrong):
    assert problem.violation(oracles.solve(problem).solution) == 0
    for solution in wrong:
        assert problem.violation(solution) > 0, solution


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=6))
def test_alpha_fairness_goes_from_the_sum_to_the_smallest(rates):
    rates = np.asarray(rates)
    assert alpha_fair(rates, 0) == pytest.approx(rates.sum())
    assert alpha_fair(rates, 1) == pytest.approx(np.log(rates).sum())
    assert alpha_fair(rates, 2) == pytest.approx(-(1 / rates).sum())
    assert alpha_fair(rates, math.inf) == rates.min()


def simulated(cells: Cells, power: np.ndarray, draws: int, rng) -> np.ndarray:
    """SINRs (L, K) of the downlink with maximum ratio precoding, out of drawn channels: pilots,
    MMSE estimates, precoders, and the moments that use-and-then-forget asks for.
    """
    beta, gamma = np.asarray(cells.gain), cells.estimated()
    L, _, K = beta.shape
    shape = (draws, L, L, K, cells.antennas)
    normal = lambda *size: (rng.normal(size=size) + 1j * rng.normal(size=size)) / math.sqrt(2)
    g = np.sqrt(beta)[..., None] * normal(*shape)  # draw, base station j, cell l, user k, antenna
    same = np.equal.outer(cells.groups, cells.groups)
    noise = normal(draws, L, max(cells.groups) + 1, K, cells.antennas)[:, :, list(cells.groups)]
    sent = math.sqrt(cells.pilot_snr) * np.einsum("lm,djmka->djlka", same, g) + noise
    heard = 1 + cells.pilot_snr * np.einsum("lm,jmk->jlk", same, beta)
    estimate = (math.sqrt(cells.pilot_snr) * beta / heard)[..., None] * sent
    own = estimate[:, range(L), range(L)]  # draw, l, k, antenna
    w = own / np.sqrt(cells.antennas * gamma[range(L), range(L)])[..., None]
    # coefficient of user (l, k) with the precoder of (j, i)
    a = np.einsum("djlka,djia->dlkji", g.conj(), w)
    mean = a.mean(0)
    second = (np.abs(a) ** 2).mean(0)
    p = power.reshape(L, K)
    wanted = np.abs(np.einsum("lklk->lk", mean)) ** 2 * p
    return wanted / (np.einsum("lkji,ji->lk", second, p) - wanted + 1)


@pytest.mark.parametrize("reuse", [1, 2])
def test_the_closed_form_of_maximum_ratio_is_what_the_channel_gives(reuse):
    rng = np.random.default_rng(0)
    cells = draw_cells(rng, 2, 3, 16, reuse)
    gain, interference, noise = cells.maximum_ratio()
    power = rng.uniform(0.2, 1.0, 6)
    problem = Power(6.0, tuple(gain), tuple(map(tuple, interference)), tuple(noise))
    expected = problem.sinr(power)
    found = simulated(cells, power, 20_000, rng).reshape(-1)
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_sharing_pilots_costs():
    one, two = (draw_cells(np.random.default_rng(3), 4, 2, 64, reuse) for reuse in (1, 2))
    for cells in (one, two):
        assert (cells.estimated() < np.asarray(cells.gain)).all()
    power = np.ones(8)
    shared, apart = (
        Power(8.0, *(tuple(map(tuple, x)) if x.ndim > 1 else tuple(x) for x in c.maximum_ratio()))
        for c in (one, two)
    )
    assert apart.sinr(power).min() > shared.sinr(power).min()


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_is_repeatable_and_gives_problems_that_can_be_solved(kind):
    solved = 0
    for seed in range(30):
        one, again = (draw(kind, np.random.default_rng(seed), 5) for _ in range(2))
        assert one == again
        found = oracles.solve(one)
        if found is not None:
            solved += 1
            assert one.violation(found.solution) == 0
            assert one.utility(found.solution) == found.utility <= found.bound
    assert solved >= 25
    objectives = {draw("power", np.random.default_rng(s), 4).objective for s in range(40)}
    assert objectives == set(OBJECTIVES)
    with pytest.raises(ValueError, match="kind = 'routing': expected one of bandwidth, "):
        draw("routing", np.random.default_rng(0), 3)

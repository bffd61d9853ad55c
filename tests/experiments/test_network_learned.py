"""The learned tools: whatever the order of users, within the power, nearer to the optimum than
equal shares.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.network import learned
from experiments.network.learned import KINDS
from experiments.network.oracles import max_min
from experiments.network.problems import Power


def drawn(name, users, seed=0, count=1):
    return KINDS[name].draw(np.random.default_rng(seed), count, users)


def one(problems):
    return jax.tree.map(lambda x: x[0], problems)


def parameters(name, seed=0):
    node, edge = KINDS[name].features(one(drawn(name, 4)))
    return learned.init(jax.random.key(seed), (node.shape[-1], edge.shape[-1]), KINDS[name].outputs)


def in_order(name, problem, order):
    if name == "beams":
        return problem[order]
    return learned.Coupled(problem.coupling_NxN[np.ix_(order, order)], problem.noise_N[order])


@pytest.mark.parametrize("name", KINDS)
@given(order=st.permutations(range(6)), seed=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_users_in_another_order_get_the_same_in_that_order(name, order, seed):
    kind, params = KINDS[name], parameters(name)
    problem, order = one(drawn(name, 6, seed)), np.array(order)
    share = learned.shares(params, *kind.features(problem))
    other = learned.shares(params, *kind.features(in_order(name, problem, order)))
    np.testing.assert_allclose(other, share[order], rtol=1e-4, atol=1e-6)
    assert (share > 0).all() and np.ptp(share[:, 0]) > 0
    np.testing.assert_allclose(share.sum(0), 1, rtol=1e-5)
    utilities = [
        float(kind.utility(x, y))
        for x, y in ((problem, share), (in_order(name, problem, order), other))
    ]
    assert utilities[0] == pytest.approx(utilities[1], rel=1e-3)


@given(seed=st.integers(0, 50), users=st.sampled_from((2, 3, 6)))
@settings(max_examples=20, deadline=None)
def test_beams_spend_the_power_and_equal_shares_are_regularised_zero_forcing(seed, users):
    h = one(drawn("beams", users, seed))
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(users), 2).T.astype(np.float32)
    w = np.asarray(learned.beams(h, share))
    assert (np.abs(w) ** 2).sum() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose((np.abs(w) ** 2).sum(1), share[:, 1], rtol=1e-3)
    zf = h.T @ np.linalg.inv(h.conj() @ h.T + users * np.eye(users))
    zf = (zf / np.linalg.norm(zf, axis=0)).T / np.sqrt(users)
    equal = np.asarray(learned.beams(h, jnp.full((users, 2), 1 / users)))
    np.testing.assert_allclose(np.abs(np.sum(equal.conj() * zf, 1)), 1 / users, rtol=2e-3)


def plain_sum_rate(h, w):
    rates = []
    for k in range(len(h)):
        heard = [abs(np.vdot(h[k], beam)) ** 2 for beam in w]
        rates.append(np.log2(1 + heard[k] / (sum(heard) - heard[k] + 1)))
    return sum(rates)


@given(seed=st.integers(0, 50), users=st.sampled_from((2, 4, 8)))
@settings(max_examples=15, deadline=None)
def test_wmmse_keeps_to_the_power_and_no_small_change_of_its_beams_is_better(seed, users):
    h = one(drawn("beams", users, seed))
    w = np.asarray(learned.wmmse(h))
    assert (np.abs(w) ** 2).sum() == pytest.approx(1, rel=1e-4)
    rate = plain_sum_rate(h, w)
    assert rate == pytest.approx(float(learned.sum_rate(h, w)), rel=1e-4)
    assert rate >= plain_sum_rate(h, learned.beams(h, jnp.full((users, 2), 1 / users))) - 1e-3
    rng = np.random.default_rng(seed)
    for _ in range(30):
        other = w + 0.03 * (rng.normal(size=w.shape) + 1j * rng.normal(size=w.shape)) / users
        other /= np.sqrt((np.abs(other) ** 2).sum())
        assert plain_sum_rate(h, other) <= rate * (1 + 2e-3)


def test_the_solver_that_is_timed_is_as_good_as_it_has_to_be():
    h = drawn("beams", 6, count=50)
    best, start = (learned.solve_channels(h, n).mean() for n in (200, 1))
    assert start < best
    between = (start + best) / 2
    assert between <= learned.as_good(h, between)().mean() <= best
    np.testing.assert_allclose(learned.as_good(h, 2 * best)().mean(), best)


def test_the_solver_makes_all_sinrs_equal_and_nobody_reaches_more():
    problems = drawn("max_min_power", 6, count=20)
    best = learned.solve_coupled(problems)
    for i, (A, b) in enumerate(zip(*problems)):
        one = Power(1.0, (1.0,) * 6, tuple(map(tuple, A.tolist())), tuple(b.tolist()))
        assert one.utility(max_min(one)) == pytest.approx(best[i], rel=1e-6)
    rng = np.random.default_rng(0)
    for i in range(20):
        problem = jax.tree.map(lambda x: x[i], problems)  # noqa: B023
        for share in rng.dirichlet(np.ones(6), 50):
            assert learned.sinr(problem, share[:, None]).min() <= best[i] * (1 + 1e-5)


@pytest.mark.parametrize("name, users", [("max_min_power", 12), ("beams", 6)])
def test_a_minute_of_training_beats_equal_shares_on_problems_it_has_not_seen(name, users):
    kind = KINDS[name]
    params = learned.train(kind, 100, 0, say=lambda text: None)
    problems = drawn(name, users, seed=1, count=200)
    best = kind.solve(problems)
    learnt, equal = (
        learned.utilities(kind, some, problems) / best
        for some in (params, jax.tree.map(jnp.zeros_like, params))
    )
    gain = learnt - equal
    assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))
    assert learnt.max() < 1.02

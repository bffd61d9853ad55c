"""What is best: an exact solver for each problem, or, for the sum rate of users that disturb each
other, a good point and a bound, which is no oracle.
"""

import heapq
import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment, minimize

from experiments.network.problems import (
    MAX_MIN,
    MAX_PRODUCT,
    TOLERANCE,
    Assignment,
    Bandwidth,
    Leftover,
    Power,
    Problem,
    Slicing,
    WaterFilling,
    alpha_fair,
)


class Solved(NamedTuple):
    """solution: the best point that is known, feasible; bound: no point has a higher utility."""

    solution: Any  # an array; of sub-tasks a tuple of them
    utility: float
    bound: float

    @property
    def exact(self) -> bool:
        if math.isinf(self.utility):  # nobody can be served by what there is
            return self.bound == self.utility
        return self.bound <= self.utility + 1e-6 * max(1.0, abs(self.utility))


def solve(problem: Problem) -> Solved | None:
    """The optimum, or a good point with a bound; None where no solution is feasible."""
    if isinstance(problem, Power) and problem.objective not in (MAX_MIN, MAX_PRODUCT):
        found = sum_rate(problem)
        return Solved(found, problem.utility(found), sum_rate_bound(problem))
    solution: Any
    if isinstance(problem, Leftover):
        served = slicing(problem.services)
        shared = bandwidth(problem.after(served)) if problem.left(served) else None
        solution = None if shared is None else (served, shared)
    elif isinstance(problem, Bandwidth):
        solution = bandwidth(problem)
    elif isinstance(problem, WaterFilling):
        solution = water_filling(problem)
    elif isinstance(problem, Power):
        solution = max_min(problem) if problem.objective == MAX_MIN else max_product(problem)
    elif isinstance(problem, Assignment):
        solution = linear_sum_assignment(problem.value, maximize=True)[1]
    else:
        solution = slicing(problem)
    if solution is None:
        return None
    utility = problem.utility(solution)
    return Solved(solution, utility, utility)


def bandwidth(problem: Bandwidth) -> np.ndarray | None:
    """Units one by one to whom the next one is worth most, after the smallest numbers that the
    least rates ask for. Exact: rates are concave in the units and the utility is a sum of
    increasing concave functions of them, of which marginals never grow (Fox 1966); for max-min the
    next unit goes to the smallest rate, whoever else gets it leaves that as it is.
    """
    units = np.zeros(problem.size, int)
    if problem.least is not None:
        for user, least in enumerate(problem.least):
            while problem.rates(units)[user] < least - TOLERANCE:
                units[user] += 1
                if units.sum() > problem.units:
                    return None
    if units.sum() > problem.units:
        return None

    def worth(user: int) -> float:
        """Minus the gain of the next unit, for a heap."""
        now, then = (
            problem.rates(np.full(problem.size, units[user] + more))[user] for more in (0, 1)
        )
        if math.isinf(problem.alpha):
            return now
        before = alpha_fair(np.array([now]), problem.alpha)
        after = alpha_fair(np.array([then]), problem.alpha)
        return before - after if np.isfinite(before) else -math.inf

    queue = [(worth(user), user) for user in range(problem.size)]
    heapq.heapify(queue)
    for _ in range(problem.units - units.sum()):
        _, user = heapq.heappop(queue)
        units[user] += 1
        heapq.heappush(queue, (worth(user), user))
    return units


def water_filling(problem: WaterFilling) -> np.ndarray:
    """p = (level - noise)+, the level that spends all the power: exact, by the noises in order."""
    noise = np.sort(problem.noise)
    levels = (problem.power + np.cumsum(noise)) / np.arange(1, problem.size + 1)
    level = levels[np.flatnonzero(levels > noise)[-1]]
    return np.maximum(level - np.asarray(problem.noise), 0)


def max_min(problem: Power) -> np.ndarray:
    """The largest smallest SINR under a power in all: at the optimum all SINRs are one t and all
    power is spent, so that p / t = D (F + n 1^T / P) p, D = diag(1 / g); p is the Perron vector of
    that matrix and t one over its spectral radius (Tan, Chiang and Srikant, 2011). Exact.
    """
    F, n = np.asarray(problem.interference), np.asarray(problem.noise)
    matrix = (F + n[:, None] / problem.power) / np.asarray(problem.gain)[:, None]
    values, vectors = np.linalg.eig(matrix)
    perron = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
    return problem.power * perron / perron.sum()


def max_product(problem: Power) -> np.ndarray:
    """The largest product of SINRs: a geometric program, concave in the logarithms of the powers
    (Chiang et al., 2007). All power is spent, so shares are searched, by L-BFGS with the gradient.
    """
    F, n, g = map(np.asarray, (problem.interference, problem.noise, problem.gain))

    def cost(x):
        share = np.exp(x - x.max())
        share /= share.sum()
        p = problem.power * share
        heard = F @ p + n
        # d/dp of sum log heard - sum log(g p), then through the softmax
        slope = p * (F.T @ (1 / heard)) - 1
        return np.log(heard).sum() - np.log(g * p).sum(), slope - share * slope.sum()

    found = minimize(
        cost,
        np.zeros(problem.size),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10},
    )
    share = np.exp(found.x - found.x.max())
    return problem.power * share / share.sum()


def sum_rate(problem: Power, rounds: int = 2000) -> np.ndarray:
    """A stationary point of the sum rate by WMMSE (Shi et al., 2011), with the power in all met by
    bisection on its price; the best of three starts.
    """
    F, n, g = map(np.asarray, (problem.interference, problem.noise, problem.gain))
    starts = (np.full(problem.size, problem.power / problem.size), max_min(problem))
    alone = np.full(problem.size, 1e-9 * problem.power)
    alone[np.argmax(g / n)] = problem.power
    points = [_wmmse(problem, F, n, g, p, rounds) for p in (*starts, alone)]
    return max(points, key=problem.utility)


def _wmmse(problem: Power, F, n, g, p, rounds: int) -> np.ndarray:
    value = -math.inf
    for _ in range(rounds):
        v = np.sqrt(p)
        received = g * p + F @ p + n
        u = np.sqrt(g) * v / received  # the receivers
        w = 1 / np.maximum(1 - u * np.sqrt(g) * v, 1e-12)  # the weights
        quadratic = w * u**2 * g + F.T @ (w * u**2)
        linear = w * u * np.sqrt(g)
        spent = lambda price: ((linear / (quadratic + price)) ** 2).sum()  # noqa: B023
        price = 0.0
        if spent(0.0) > problem.power:
            low, high = 0.0, 1.0
            while spent(high) > problem.power:
                high *= 2
            for _ in range(50):
                price = (low + high) / 2
                low, high = (price, high) if spent(price) > problem.power else (low, price)
            price = high
        p = (linear / (quadratic + price)) ** 2
        if (now := problem.utility(p)) <= value + 1e-8 * abs(value):
            break
        value = now
    return p


def sum_rate_bound(problem: Power) -> float:
    """As if nobody disturbed anybody else: the smaller of what all have with all the power each,
    and of parallel channels filled with water. Never below the optimum.
    """
    gain, noise = np.asarray(problem.gain), np.asarray(problem.noise)
    own = np.diag(problem.interference)  # what disturbs a user with its own power
    most = np.log2(1 + gain * problem.power / (own * problem.power + noise)).sum()
    alone = WaterFilling(problem.power, tuple(map(float, noise / gain)))
    return float(min(most, alone.utility(water_filling(alone))))


def slicing(problem: Slicing) -> np.ndarray:
    """The 0-1 knapsack by dynamic programming over the blocks: exact."""
    worth = np.zeros((problem.size + 1, problem.blocks + 1))
    for i, (blocks, value) in enumerate(zip(problem.wanted, problem.worth), 1):
        worth[i] = worth[i - 1]
        if blocks <= problem.blocks:
            served = worth[i - 1, : problem.blocks + 1 - blocks] + value
            worth[i, blocks:] = np.maximum(worth[i, blocks:], served)
    chosen, left = np.zeros(problem.size, int), problem.blocks
    for i in range(problem.size, 0, -1):
        if worth[i, left] > worth[i - 1, left]:
            chosen[i - 1], left = 1, left - problem.wanted[i - 1]
    return chosen

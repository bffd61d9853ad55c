"""Requests to the coordinator in words, and what an answer to one is worth.

A request has the problem's figures and says in one of many ways what is wanted; some give ratios in
dB, where the tools take them linear. An answer is a call of a tool, or the numbers themselves.
"""

import dataclasses
import functools
import json
import math
import random
from typing import NamedTuple

import numpy as np

from experiments.network import oracles, tools
from experiments.network.problems import (
    MAX_MIN,
    MAX_PRODUCT,
    SUM_RATE,
    Assignment,
    Bandwidth,
    Power,
    Problem,
    WaterFilling,
    draw,
)

NOTHING = -1.0  # the reward of an answer that cannot be read
# what is wanted, in words of training; the last of each is held out
GOALS: dict[object, tuple[str, ...]] = {
    0.0: (
        "get as many bits through as possible in all",
        "the sum of their rates counts, nothing else",
        "squeeze the most throughput out of the carrier",
    ),
    1.0: (
        "be proportionally fair",
        "the product of their rates shall be as large as possible",
        "a doubled rate is worth the same to everybody, weak or strong",
    ),
    2.0: (
        "keep the mean time to send a file short",
        "make the sum of 1 / rate small",
        "the time that all of them need for a file each, added up, is to be small",
    ),
    math.inf: (
        "make the slowest user as fast as possible",
        "nobody shall be left behind: maximise the minimum rate",
        "we are judged by whoever is worst off",
    ),
    MAX_MIN: (
        "make the worst SINR as good as possible",
        "fairness first: the smallest SINR counts",
        "a complaint from any single user is what we fear",
    ),
    MAX_PRODUCT: (
        "make the product of the SINRs as large as possible",
        "find a compromise: the sum of the SINRs in decibels counts",
        "every decibel counts the same, whoever gets it",
    ),
    SUM_RATE: (
        "get the largest sum of rates",
        "only the total throughput of all cells counts",
        "the operator sells bits, and does not care to whom",
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    problem: Problem
    request: str

    @functools.cached_property
    def best(self) -> oracles.Solved:
        """The optimum, or the best point that is known."""
        found = oracles.solve(self.problem)
        assert found is not None  # `tasks` leaves out what cannot be served
        return found


def _figures(values, unit: str = "") -> str:
    return ", ".join(f"{value:g}" for value in values) + (f" {unit}" if unit else "")


def _ratios(values, rng: random.Random, thing: str) -> str:
    """Linear, or one time in three in dB, to a tenth."""
    if rng.random() < 1 / 3:
        return f"{thing} in dB: {_figures(np.round(10 * np.log10(values), 1))}"
    return f"{thing}: {_figures(values)}"


def in_words(problem: Problem, rng: random.Random, held_out: bool) -> tuple[Problem, str]:
    """(the problem with the figures as they are said, the request)."""

    def goal(key: object) -> str:
        *train, last = GOALS[key]
        return last if held_out else rng.choice(train)

    if isinstance(problem, Bandwidth):
        ratios = _ratios(problem.snr, rng, "SNR of each with all its power in one unit")
        problem = dataclasses.replace(problem, snr=said(ratios))
        least = (
            "" if problem.least is None else f" Each needs at least {_figures(problem.least)} bits."
        )
        return problem, (
            f"{problem.size} users share {problem.units} units of bandwidth. {ratios}.{least}"
            f" Give each a whole number of units; {goal(problem.alpha)}."
        )
    if isinstance(problem, WaterFilling):
        ratios = _ratios(problem.noise, rng, "Noise over gain of each")
        problem = dataclasses.replace(problem, noise=said(ratios))
        return problem, (
            f"{problem.size} parallel channels, {problem.power:g} units of power. {ratios}. "
            f"Split the power; {goal(SUM_RATE) if held_out else 'get the largest sum of rates'}."
        )
    if isinstance(problem, Power):
        rounded = dataclasses.replace(
            problem,
            gain=_significant(problem.gain),
            interference=tuple(map(_significant, problem.interference)),
        )
        rows = "; ".join(_figures(row) for row in rounded.interference)
        return rounded, (
            f"{problem.size} users of several cells, {problem.power:g} units of power in all."
            f" Gains: {_figures(rounded.gain)}. What each hears of a unit of everybody's power:"
            f" {rows}. Noise: {_figures(problem.noise)}. Set the powers; {goal(problem.objective)}."
        )
    if isinstance(problem, Assignment):
        rows = "; ".join(_figures(row) for row in problem.value)
        wish = "no unit goes to two of them" if held_out else "assign one to each, none twice"
        return problem, (
            f"{problem.size} users, {len(problem.value[0])} resource units. What each user gets"
            f" from each unit: {rows}. Make the most of them; {wish}."
        )
    wish = (
        "half a slice is worth nothing"
        if held_out
        else "a service takes all that it wants, or none"
    )
    return problem, (
        f"A grant of {problem.blocks} resource blocks for {problem.size} services that want"
        f" {_figures(problem.wanted)} and are worth {_figures(problem.worth)}. Choose whom to"
        f" serve; {wish}."
    )


def said(ratios: str) -> tuple[float, ...]:
    """What a reader takes for the linear values of `_ratios`."""
    thing, _, figures = ratios.partition(": ")
    values = [float(figure) for figure in figures.split(", ")]
    return tuple(float(10 ** (x / 10)) for x in values) if "in dB" in thing else tuple(values)


def _significant(values) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in values)


def tasks(seed: int, count: int, sizes: tuple[int, int], held_out: bool = False) -> list[Task]:
    """Requests of all kinds in turn, of sizes in a range; held_out: in words of their own."""
    from experiments.network.problems import KINDS

    rng, found = random.Random(f"network {seed} {held_out}"), []
    numbers = np.random.default_rng((seed, int(held_out)))
    while len(found) < count:
        problem = draw(KINDS[len(found) % len(KINDS)], numbers, int(numbers.integers(*sizes)))
        problem, request = in_words(problem, rng, held_out)
        if oracles.solve(problem) is not None:
            found.append(Task(problem, request))
    return found


class Verdict(NamedTuple):
    reward: float
    share: float  # of the best level that is known; 0 of an infeasible answer
    failure: str | None
    cost: int  # of the tool


def judged(task: Task, solution: np.ndarray, cost: int = 0) -> Verdict:
    """1 minus the regret of a feasible solution, the regret being what it lacks of the best level
    that is known, as a share; -1 plus a closeness of at most 1/2 of one that is not.
    """
    violation = task.problem.violation(solution)
    if math.isinf(violation):
        return Verdict(NOTHING, 0.0, "no solution of this problem", cost)
    if violation > 0:
        return Verdict(NOTHING + 0.5 / (1 + violation), 0.0, "breaks a constraint", cost)
    levels = [task.problem.level(u) for u in (task.problem.utility(solution), task.best.utility)]
    share = min(1.0, levels[0] / levels[1]) if levels[1] > 0 else 1.0
    return Verdict(share, share, None, cost)


def judge(task: Task, answer: str) -> Verdict:
    """Of an answer's text: a call, or {"solution": [...]}."""
    try:
        direct = json.loads(answer)
        if isinstance(direct, dict) and direct.keys() == {"solution"}:
            if not tools.FORMS["list of numbers"](direct["solution"]):
                return Verdict(NOTHING, 0.0, "no list of numbers", 0)
            return judged(task, np.asarray(direct["solution"], float))
    except (ValueError, RecursionError):
        return Verdict(NOTHING, 0.0, "no JSON", 0)
    try:
        tool, solution = tools.call(answer)
    except tools.CallError as error:
        return Verdict(NOTHING, 0.0, str(error), 0)
    return judged(task, solution, tool.cost)

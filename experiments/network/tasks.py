"""Requests to the coordinator in words, and what an answer to one is worth.

A request has the problem's figures and says in one of many ways what is wanted; some give ratios in
dB, where the tools take them linear. An answer is a call of a tool, whose arguments may refer to
the request's figures, or the numbers themselves.
"""

import dataclasses
import functools
import json
import math
import random
import re
from typing import Any, NamedTuple, Sequence

import numpy as np

from experiments.network import oracles, tools
from experiments.network.phrases import ALL_CHANNELS, ALL_OR_NONE, GOALS, ONE_EACH, Phrases
from experiments.network.problems import (
    KINDS,
    MAX_MIN,
    MAX_PRODUCT,
    SUM_RATE,
    Assignment,
    Bandwidth,
    Leftover,
    Power,
    Problem,
    Slicing,
    WaterFilling,
    draw,
)
from experiments.network.tools import Tool

NOTHING = -1.0  # the reward of an answer that cannot be read


@dataclasses.dataclass(frozen=True)
class Task:
    """prompt: the request as a policy reads it, which names lists of figures ("@snr") where the
    request has them; decibels: the request gives its ratios so.
    """

    problem: Problem
    request: str
    prompt: str
    decibels: bool = False

    @functools.cached_property
    def figures(self) -> dict[str, Any]:
        """The request's figures as it says them, by the names that tools have for them."""
        found = figures(self.problem)
        for name in ("snr", "noise") if self.decibels else ():
            if name in found:
                found[name] = [round(10 * math.log10(x), 1) for x in found[name]]
        return found

    @functools.cached_property
    def solved(self) -> oracles.Solved | None:
        """Of `oracles.solve`, asked once; None where nothing is feasible."""
        return oracles.solve(self.problem)

    @property
    def best(self) -> oracles.Solved:
        """The optimum, or the best point that is known."""
        assert self.solved is not None  # `tasks` leaves out what cannot be served
        return self.solved


def _figures(values) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _ratios(values, rng: random.Random, thing: str) -> str:
    """Linear, or one time in three in dB, to a tenth."""
    if rng.random() < 1 / 3:
        return f"{thing} in dB: {_figures(np.round(10 * np.log10(values), 1))}"
    return f"{thing}: {_figures(values)}"


def figures(problem: Problem) -> dict[str, Any]:
    """A problem's figures by the names that tools have for them."""
    if isinstance(problem, Bandwidth):
        return {
            "snr": list(problem.snr),
            "units": problem.units,
            "alpha": "inf" if math.isinf(problem.alpha) else problem.alpha,
            "least": None if problem.least is None else list(problem.least),
        }
    if isinstance(problem, Leftover):
        users = figures(problem.users)
        users.pop("units")
        return figures(problem.services) | users
    found = dataclasses.asdict(problem)
    found.pop("objective", None)
    return json.loads(json.dumps(found))  # lists for tuples


def in_words(problem: Problem, rng: random.Random, held_out: bool) -> Task:
    """A request for the problem, whose figures are then as they are said."""

    def one_of(phrases: Phrases) -> str:
        return rng.choice(phrases.held_out if held_out else phrases.training)

    lists: dict[str, str] = {}  # of figures, as the request has them

    def named(name: str, values) -> str:
        lists[name] = _figures(values)
        return f"@{name}"

    def ratios(name: str, values, thing: str) -> tuple[str, tuple[float, ...]]:
        """(what the prompt says, what a reader takes for the values)."""
        text = _ratios(values, rng, thing)
        thing, _, lists[name] = text.partition(": ")
        return f"{thing}: @{name}", said(text)

    if isinstance(problem, Bandwidth):
        snr, linear = ratios("snr", problem.snr, "SNR of each with all its power in one unit")
        problem = dataclasses.replace(problem, snr=linear)
        least = (
            ""
            if problem.least is None
            else f" Each needs at least {named('least', problem.least)} bits."
        )
        prompt = (
            f"{problem.size} users share {problem.units} units of bandwidth. {snr}.{least}"
            f" Give each a whole number of units; {one_of(GOALS[problem.alpha])}."
        )
    elif isinstance(problem, WaterFilling):
        noise, linear = ratios("noise", problem.noise, "Noise over gain of each")
        problem = dataclasses.replace(problem, noise=linear)
        prompt = (
            f"{problem.size} parallel channels, {problem.power:g} units of power. {noise}. "
            f"Split the power; {one_of(ALL_CHANNELS)}."
        )
    elif isinstance(problem, Power):
        problem = dataclasses.replace(
            problem,
            gain=_significant(problem.gain),
            interference=tuple(map(_significant, problem.interference)),
        )
        lists["interference"] = "; ".join(_figures(row) for row in problem.interference)
        prompt = (
            f"{problem.size} users of several cells, {problem.power:g} units of power in all."
            f" Gains: {named('gain', problem.gain)}. What each hears of a unit of everybody's"
            f" power: @interference. Noise: {named('noise', problem.noise)}. Set the powers;"
            f" {one_of(GOALS[problem.objective])}."
        )
    elif isinstance(problem, Assignment):
        lists["value"] = "; ".join(_figures(row) for row in problem.value)
        prompt = (
            f"{problem.size} users, {len(problem.value[0])} resource units. What each user gets"
            f" from each unit: @value. Make the most of them; {one_of(ONE_EACH)}."
        )
    elif isinstance(problem, Leftover):
        services = problem.services
        snr, linear = ratios(
            "snr", problem.users.snr, "SNR of each with all its power in one block"
        )
        users = dataclasses.replace(problem.users, snr=linear)
        problem = dataclasses.replace(problem, users=users)
        prompt = (
            f"A grant of {services.blocks} resource blocks. First the {services.size} services that"
            f" want {named('wanted', services.wanted)} and are worth"
            f" {named('worth', services.worth)}: {one_of(ALL_OR_NONE)}. What they leave is for"
            f" {users.size} users. {snr}. Give each a whole number of blocks;"
            f" {one_of(GOALS[users.alpha])}."
        )
    else:
        prompt = (
            f"A grant of {problem.blocks} resource blocks for {problem.size} services that want"
            f" {named('wanted', problem.wanted)} and are worth {named('worth', problem.worth)}."
            f" Choose whom to serve; {one_of(ALL_OR_NONE)}."
        )
    request = re.sub(r"@(\w+)", lambda name: lists[name[1]], prompt)
    return Task(problem, request, prompt, "in dB" in prompt)


def said(ratios: str) -> tuple[float, ...]:
    """What a reader takes for the linear values of `_ratios`."""
    thing, _, figures = ratios.partition(": ")
    values = [float(figure) for figure in figures.split(", ")]
    return tuple(float(10 ** (x / 10)) for x in values) if "in dB" in thing else tuple(values)


def _significant(values) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in values)


def tasks(seed: int, count: int, sizes: tuple[int, int], held_out: bool = False) -> list[Task]:
    """Requests of all kinds in turn, of sizes in a range; held_out: in words of their own."""
    rng, found = random.Random(f"network {seed} {held_out}"), []
    numbers = np.random.default_rng((seed, int(held_out)))
    while len(found) < count:
        problem = draw(KINDS[len(found) % len(KINDS)], numbers, int(numbers.integers(*sizes)))
        task = in_words(problem, rng, held_out)
        if task.solved is not None:
            found.append(task)
    return found


def right_tools(problem: Problem) -> list[Tool]:
    """That of each step."""
    if isinstance(problem, Leftover):
        return right_tools(problem.services) + right_tools(problem.users)
    names = {
        Bandwidth.kind: "bandwidth_marginal",
        WaterFilling.kind: "water_filling",
        Assignment.kind: "hungarian",
        Slicing.kind: "slice_exact",
        MAX_MIN: "max_min_power",
        MAX_PRODUCT: "max_product_power",
        SUM_RATE: "wmmse",
    }
    return [tools.BY_NAME[names[getattr(problem, "objective", problem.kind)]]]


def right_steps(task: Task) -> list[tuple[str, dict[str, Any]]]:
    """(tool, arguments) of each."""
    found = figures(task.problem)
    if isinstance(task.problem, Leftover):
        found["units"] = task.problem.left(task.best.solution[0])
    return [
        (tool.name, {name: found[name] for name in tool.arguments})
        for tool in right_tools(task.problem)
    ]


class Verdict(NamedTuple):
    reward: float
    share: float  # of the best level that is known; 0 of an infeasible answer
    failure: str | None
    cost: int  # of the tools
    steps: tuple[tools.Step, ...] = ()  # those that have run

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of problems that its tools are for: its plan."""
        return tuple(step.tool.kind for step in self.steps)


def judged(task: Task, solution: Any, cost: int = 0) -> Verdict:
    """1 minus the regret of a feasible solution, the regret being what it lacks of the best level
    that is known, as a share; -1 plus a closeness of at most 1/2 of one that is not.
    """
    violation = task.problem.violation(solution)
    if math.isinf(violation):
        return Verdict(NOTHING, 0.0, "no solution of this problem", cost)
    if violation > 0:
        return Verdict(NOTHING + 0.5 / (1 + violation), 0.0, "breaks a constraint", cost)
    reached = share(task.problem, solution, task.best.solution)
    return Verdict(reached, reached, None, cost)


def share(problem: Problem, solution: Any, best: Any) -> float:
    """What a feasible solution reaches of the best level that is known, at most 1; of two sub-tasks
    the mean.
    """
    if isinstance(problem, Leftover):
        most = problem.after(best[0])
        if not problem.left(solution[0]):
            return share(problem.services, solution[0], best[0]) / 2
        levels = [
            users.level(users.utility(units))
            for users, units in ((problem.after(solution[0]), solution[1]), (most, best[1]))
        ]
        then = min(1.0, levels[0] / levels[1]) if levels[1] > 0 else 1.0
        return (share(problem.services, solution[0], best[0]) + then) / 2
    levels = [problem.level(problem.utility(one)) for one in (solution, best)]
    return min(1.0, levels[0] / levels[1]) if levels[1] > 0 else 1.0


def judge(
    task: Task, answer: str, shown: Sequence[str] | None = None, run: tools.Run = tools.directly
) -> Verdict:
    """Of an answer's text: a call or a plan, see `tools.carry_out`, or {"solution": [...]}."""
    try:
        direct = json.loads(answer)
    except (ValueError, RecursionError):
        return Verdict(NOTHING, 0.0, "no JSON", 0)
    if isinstance(direct, dict) and direct.keys() == {"solution"}:
        written = direct["solution"]
        parts = written if isinstance(task.problem, Leftover) else [written]
        if not isinstance(parts, list) or not all(map(tools.FORMS["list of numbers"], parts)):
            return Verdict(NOTHING, 0.0, "no list of numbers", 0)
        solution = tuple(np.asarray(part, float) for part in parts)
        return judged(task, solution if isinstance(task.problem, Leftover) else solution[0])
    try:
        steps = tools.carry_out(answer, task.figures, shown, run)
    except tools.CallError as error:
        return Verdict(NOTHING, 0.0, str(error), 0)
    cost = sum(step.tool.cost for step in steps)
    two = isinstance(task.problem, Leftover)
    if two and tuple(step.tool.kind for step in steps) != (Slicing.kind, Bandwidth.kind):
        verdict = Verdict(NOTHING, 0.0, "another plan than the two steps that it takes", cost)
    elif two:
        verdict = judged(task, (steps[0].solution, steps[1].solution), cost)
    else:
        verdict = judged(task, steps[-1].solution, cost)
    return verdict._replace(steps=tuple(steps))

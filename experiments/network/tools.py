"""The coordinator's toolbox of models: solvers, heuristics, and decoys that look right and are not.

A tool takes plain arguments, data and never code, and returns a solution; its card says what for,
with which arguments and units, at what cost, and when it is valid. `call` checks a call against the
card before anything runs.
"""

import json
import math
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from experiments.network import oracles
from experiments.network.problems import (
    MAX_MIN,
    MAX_PRODUCT,
    SUM_RATE,
    Assignment,
    Bandwidth,
    Power,
    Slicing,
    WaterFilling,
)

LONGEST = 64  # entries of a list
LARGEST = 100_000  # of a whole number
LARGEST_NUMBER = 1e12


STEPS = 4  # of a plan


class CallError(ValueError):
    """A call that is no JSON, names no tool, does not fit its card or takes too long."""


class Tool(NamedTuple):
    """arguments: name -> form, of FORMS; cost: in units of the cheapest."""

    name: str
    kind: str  # the problems that it is for
    does: str
    arguments: dict[str, str]
    valid: str
    cost: int
    run: Callable[..., np.ndarray]

    def card(self) -> str:
        """A line for a prompt."""
        said = ", ".join(f"{name}: {form}" for name, form in self.arguments.items())
        return f"{self.name}({said})  # {self.does} Valid {self.valid}. Cost {self.cost}."

    def brief(self) -> str:
        """Less of it."""
        return f"{self.name}({', '.join(self.arguments)}): {self.does}"


def _number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and -LARGEST_NUMBER <= value <= LARGEST_NUMBER
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def _list(value: Any, entry: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and 0 < len(value) <= LONGEST and all(map(entry, value))


FORMS: dict[str, Callable[[Any], bool]] = {
    "whole number": _whole,
    "positive number": lambda x: _number(x) and x > 0,
    "number >= 0 or 'inf'": lambda x: x == "inf" or _number(x) and x >= 0,
    "list of numbers": lambda x: _list(x, _number),
    "list of positive numbers": lambda x: _list(x, lambda y: _number(y) and y > 0),
    "list of whole numbers": lambda x: _list(x, _whole),
    "list of numbers >= 0, or null": lambda x: (
        x is None or _list(x, lambda y: _number(y) and y >= 0)
    ),
    "rows of numbers >= 0": lambda x: (
        _list(x, lambda row: _list(row, lambda y: _number(y) and y >= 0))
        and len({len(row) for row in x}) == 1
    ),
}

SNR = "list of positive numbers"
USERS = {"snr": SNR, "units": "whole number"}
CHANNELS = {"power": "positive number", "noise": SNR}
CELLS = CHANNELS | {"gain": SNR, "interference": "rows of numbers >= 0"}


def greedy_bandwidth(snr, units, alpha, least) -> np.ndarray:
    return _found(
        Bandwidth(units, tuple(snr), float(alpha), tuple(least) if least is not None else None)
    )


def power_solver(objective: str):
    def run(power, gain, interference, noise) -> np.ndarray:
        return _found(
            Power(power, tuple(gain), tuple(map(tuple, interference)), tuple(noise), objective)
        )

    return run


def _found(problem) -> np.ndarray:
    solved = oracles.solve(problem)
    if solved is None:
        raise CallError("no solution meets the constraints")
    return solved.solution


def shares(weights, units) -> np.ndarray:
    """Whole units in proportion to weights, by largest remainder."""
    exact = units * np.asarray(weights, float) / np.sum(weights)
    found = np.floor(exact).astype(int)
    for user in np.argsort(-(exact - found), kind="stable")[: units - found.sum()]:
        found[user] += 1
    return found


def one_by_one(value) -> np.ndarray:
    """Each user in turn takes the best unit that is left."""
    value, taken = np.array(value, float), []
    for row in value:
        row[taken] = -math.inf
        taken.append(int(np.argmax(row)))
    return np.array(taken)


def by_density(blocks, wanted, worth) -> np.ndarray:
    served, left = np.zeros(len(wanted), int), blocks
    for i in np.argsort(-np.asarray(worth) / np.asarray(wanted), kind="stable"):
        if wanted[i] <= left:
            served[i], left = 1, left - wanted[i]
    return served


TOOLS = (
    Tool(
        "bandwidth_marginal",
        Bandwidth.kind,
        "Gives whole units of bandwidth to users so that an alpha-fair utility is largest"
        " (0 sum of rates, 1 proportional fairness, 'inf' the smallest rate), with least rates.",
        USERS | {"alpha": "number >= 0 or 'inf'", "least": "list of numbers >= 0, or null"},
        "where a user's power is shared by its units; snr linear, of all power in one unit",
        2,
        greedy_bandwidth,
    ),
    Tool(
        "bandwidth_equal",
        Bandwidth.kind,
        "Gives every user the same number of units.",
        USERS,
        "as a quick start, or where rates are linear in the units",
        1,
        lambda snr, units: shares(np.ones(len(snr)), units),
    ),
    Tool(
        "bandwidth_by_gain",
        Bandwidth.kind,
        "Gives units in proportion to the SNR, so that strong links carry most.",
        USERS,
        "for throughput alone, roughly",
        1,
        lambda snr, units: shares(snr, units),
    ),
    Tool(
        "water_filling",
        WaterFilling.kind,
        "Splits power over parallel channels so that the sum of rates is largest.",
        CHANNELS,
        "for channels that do not disturb each other; noise linear, over the gain",
        1,
        lambda power, noise: oracles.water_filling(WaterFilling(power, tuple(noise))),
    ),
    Tool(
        "power_equal",
        WaterFilling.kind,
        "Splits power equally over channels.",
        CHANNELS,
        "at high SNR",
        1,
        lambda power, noise: np.full(len(noise), power / len(noise)),
    ),
    Tool(
        "channel_inversion",
        WaterFilling.kind,
        "Splits power so that all channels have the same rate.",
        CHANNELS,
        "where every channel has to carry the same",
        1,
        lambda power, noise: power * np.asarray(noise) / np.sum(noise),
    ),
    Tool(
        "max_min_power",
        Power.kind,
        "Powers of users in several cells with the largest smallest SINR, for fairness.",
        CELLS,
        "for coupled users under a power in all; all values linear",
        2,
        power_solver(MAX_MIN),
    ),
    Tool(
        "max_product_power",
        Power.kind,
        "Powers of users in several cells with the largest product of SINRs, a compromise.",
        CELLS,
        "for coupled users under a power in all; all values linear",
        4,
        power_solver(MAX_PRODUCT),
    ),
    Tool(
        "wmmse",
        Power.kind,
        "Powers of users in several cells with a large sum of rates, to a stationary point.",
        CELLS,
        "for coupled users under a power in all; all values linear",
        8,
        power_solver(SUM_RATE),
    ),
    Tool(
        "water_filling_cells",
        Power.kind,
        "Water-filling over the users of several cells: the best sum of rates of their channels.",
        CELLS,
        "for channels that do not disturb each other",
        1,
        lambda power, gain, interference, noise: oracles.water_filling(
            WaterFilling(power, tuple(np.asarray(noise) / np.asarray(gain)))
        ),
    ),
    Tool(
        "power_full",
        Power.kind,
        "The same power for every user.",
        CELLS,
        "without knowledge of the channels",
        1,
        lambda power, gain, interference, noise: np.full(len(gain), power / len(gain)),
    ),
    Tool(
        "hungarian",
        Assignment.kind,
        "One unit for each user, none twice, with the largest sum of values.",
        {"value": "rows of numbers >= 0"},
        "with at least as many units as users",
        2,
        lambda value: oracles.linear_sum_assignment(value, maximize=True)[1],
    ),
    Tool(
        "best_unit",
        Assignment.kind,
        "The unit with the largest value for each user.",
        {"value": "rows of numbers >= 0"},
        "where users may share a unit",
        1,
        lambda value: np.argmax(value, axis=1),
    ),
    Tool(
        "one_by_one",
        Assignment.kind,
        "Each user in turn takes the best unit that is left.",
        {"value": "rows of numbers >= 0"},
        "as a quick start",
        1,
        one_by_one,
    ),
    Tool(
        "slice_exact",
        Slicing.kind,
        "Which services a grant serves so that what they are worth is largest.",
        {"blocks": "whole number", "wanted": "list of whole numbers", "worth": SNR},
        "for services that take all that they want or nothing",
        2,
        lambda blocks, wanted, worth: oracles.slicing(Slicing(blocks, tuple(wanted), tuple(worth))),
    ),
    Tool(
        "slice_by_density",
        Slicing.kind,
        "Serves services by what a resource block of theirs is worth, while there is room.",
        {"blocks": "whole number", "wanted": "list of whole numbers", "worth": SNR},
        "where services are small beside the grant",
        1,
        by_density,
    ),
    Tool(
        "slice_by_worth",
        Slicing.kind,
        "Serves the services that are worth most first, while there is room.",
        {"blocks": "whole number", "wanted": "list of whole numbers", "worth": SNR},
        "where all want about the same",
        1,
        lambda blocks, wanted, worth: by_density(blocks, wanted, np.asarray(worth) * wanted),
    ),
)
BY_NAME = {tool.name: tool for tool in TOOLS}


def referred(value: Any, figures: dict[str, Any]) -> Any:
    """What "@snr", or "@snr from dB", stands for: a figure of the request, as it is said there or
    made linear. Any other value is itself.

    Raises:
      CallError: there is no such figure, or it is no list of ratios.
    """
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    name, _, unit = value[1:].partition(" from ")
    if name not in figures or unit not in ("", "dB"):
        raise CallError(f"{value!r}: expected @ and one of {', '.join(figures)}"[:300])
    found = figures[name]
    if not unit:
        return found
    if not _list(found, lambda x: _number(x) and abs(x) <= 120):
        raise CallError(f"{value!r}: expected a list of ratios in dB")
    return [10 ** (x / 10) for x in found]


class Step(NamedTuple):
    """A call that was carried out: with which arguments, all references resolved, and its
    solution.
    """

    tool: Tool
    arguments: dict[str, Any]
    solution: np.ndarray


Run = Callable[[str, dict[str, Any]], np.ndarray]  # (name of a tool, arguments) -> solution


def directly(name: str, arguments: dict[str, Any]) -> np.ndarray:
    """Runs a tool here and now; `worker.Worker` runs it within limits."""
    return np.asarray(BY_NAME[name].run(**arguments))


def carry_out(
    text: str,
    figures: dict[str, Any] | None = None,
    shown: Sequence[str] | None = None,
    run: Run = directly,
) -> list[Step]:
    """Runs a call, {"tool": name, "arguments": {...}}, or a plan, a list of calls that each have an
    "id" too. A step depends on those that its arguments refer to, which stand before it: "@id" is a
    step's solution, "@id.left" the blocks that a slicing has left.

    figures: of the request, which arguments may refer to as well, see `referred`. shown: the tools
      that may be called; None: all.

    Raises:
      CallError: in a line that names what is wrong and what was expected; what stands behind the
        wrong step is not run.
    """
    try:
        asked = json.loads(text, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        raise CallError("expected one JSON object with tool and arguments") from None
    plan = asked if isinstance(asked, list) else [asked]
    if not 1 <= len(plan) <= STEPS:
        raise CallError(f"expected a call, or a plan of at most {STEPS}")
    known, steps = dict(figures or {}), []
    for one in plan:
        if not isinstance(one, dict) or one.keys() - {"id"} != {"tool", "arguments"}:
            raise CallError("expected one JSON object with tool and arguments, and nothing else")
        step = _carried_out(one, known, shown, run)
        steps.append(step)
        if (name := one.get("id")) is not None:
            if not isinstance(name, str) or not name.isidentifier() or name in known:
                raise CallError(f"id = {name!r}: expected a word that nothing else is called"[:300])
            known[name] = step.solution.tolist()
            if step.tool.kind == Slicing.kind:
                blocks, wanted = step.arguments["blocks"], step.arguments["wanted"]
                known[f"{name}.left"] = blocks - int(step.solution @ np.asarray(wanted))
    return steps


def _carried_out(
    asked: dict[str, Any], known: dict[str, Any], shown: Sequence[str] | None, run: Run
) -> Step:
    names = BY_NAME if shown is None else shown
    if not isinstance(asked["tool"], str) or asked["tool"] not in names:
        raise CallError(f"tool = {asked['tool']!r}: expected one of {', '.join(names)}"[:300])
    tool, arguments = BY_NAME[asked["tool"]], asked["arguments"]
    if not isinstance(arguments, dict) or arguments.keys() != tool.arguments.keys():
        raise CallError(f"{tool.name}: expected the arguments {', '.join(tool.arguments)}")
    arguments = {name: referred(value, known) for name, value in arguments.items()}
    for name, form in tool.arguments.items():
        if not FORMS[form](arguments[name]):
            raise CallError(f"{tool.name}: {name}: expected {form}")
    sizes = {
        len(value)
        for name, value in arguments.items()
        if isinstance(value, list) and not (tool.kind == Assignment.kind and name != "value")
    }
    square = arguments.get("interference")
    if len(sizes) > 1 or square is not None and len(square[0]) != len(square):
        raise CallError(f"{tool.name}: expected lists of one length")
    if tool.kind == Assignment.kind and len(arguments["value"][0]) < len(arguments["value"]):
        raise CallError(f"{tool.name}: value: expected at least as many units as users")
    return Step(tool, arguments, run(tool.name, arguments))


def call(text: str, figures: dict[str, Any] | None = None) -> tuple[Tool, np.ndarray]:
    """(the tool, its solution) of a single call; raises CallError as `carry_out`."""
    step = carry_out(text, figures)[-1]
    return step.tool, step.solution

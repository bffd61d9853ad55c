"""The coordinator's toolbox of models: solvers, heuristics, and decoys that look right and are not.

A tool takes plain arguments, data and never code, and returns a solution; its card says what for,
with which arguments and units, at what cost, and when it is valid. `call` checks a call against the
card before anything runs.
"""

import json
import math
from typing import Any, Callable, NamedTuple

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


class CallError(ValueError):
    """A call that is no JSON, names no tool or does not fit its card."""


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


def call(text: str, figures: dict[str, Any] | None = None) -> tuple[Tool, np.ndarray]:
    """Runs a call, {"tool": name, "arguments": {...}}: (the tool, its solution).

    figures: what an argument may refer to, see `referred`.

    Raises:
      CallError: in a line that names what is wrong and what was expected.
    """
    try:
        asked = json.loads(text, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        raise CallError("expected one JSON object with tool and arguments") from None
    if not isinstance(asked, dict) or asked.keys() != {"tool", "arguments"}:
        raise CallError("expected one JSON object with tool and arguments, and nothing else")
    if not isinstance(asked["tool"], str) or asked["tool"] not in BY_NAME:
        raise CallError(f"tool = {asked['tool']!r}: expected one of {', '.join(BY_NAME)}"[:300])
    tool, arguments = BY_NAME[asked["tool"]], asked["arguments"]
    if not isinstance(arguments, dict) or arguments.keys() != tool.arguments.keys():
        raise CallError(f"{tool.name}: expected the arguments {', '.join(tool.arguments)}")
    arguments = {name: referred(value, figures or {}) for name, value in arguments.items()}
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
    return tool, np.asarray(tool.run(**arguments))

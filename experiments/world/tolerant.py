"""f(a) by a reader that puts up with damage (the `tolerant` translator), as a language model would:
beside `orchestration.translate`, which does not.

Of a field that stands more than once the last valid value counts, and a field without one takes the
first value that the platform offers, the whole grant for `num_prb`. Every such repair costs PRICE
of the reward, so that damage to a word is not damage to the service, and still not free.
"""

from collections import defaultdict
from typing import NamedTuple

from experiments.world.orchestration import BITS, END_THINK, FIELDS, THINK, values
from experiments.world.search import combining, written
from twin import Scenario, Workflow

PRICE = 0.05  # of R, for one repair
MAX_ITERATIONS = 20  # any number up to it is valid, not only those that a search tries


class Mended(NamedTuple):
    """workflow: None where the response holds no valid value at all; repairs: how many it took."""

    workflow: Workflow | None
    failure: str | None
    repairs: int


def mend(response: str, scenario: Scenario) -> Mended:
    """The workflow that a response can be taken to ask for on this platform."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, start, stop in values(response):
        found[name].append(response[start:stop])
    valid = {
        name: good[-1]
        for name, texts in found.items()
        if (good := [text for text in texts if _valid(scenario, name, text)])
    }
    if not set(valid) & set(FIELDS):
        return Mended(None, "empty", 0)
    repairs = sum(len(texts) - (name in valid) for name, texts in found.items())
    repairs += THINK in response.rpartition(END_THINK)[2]
    for name in FIELDS:
        if name not in valid:
            offers = written(scenario, name)
            valid[name] = offers[-1] if name == "num_prb" else offers[0]
            repairs += 1
    once = int(valid.get("num_transmissions", 1)) == 1
    return Mended(
        Workflow(
            num_prb=int(valid["num_prb"]),
            scs_khz=int(valid["scs_khz"]),
            bits_per_symbol=BITS[valid["bits_per_symbol"]],
            num_layers=int(valid["num_layers"]),
            code=valid["code"].lower(),
            code_rate=float(valid["code_rate"]),
            decoder_iterations=int(valid["decoder_iterations"]),
            num_dmrs=int(valid["num_dmrs"]),
            estimator=valid["estimator"],
            detector=valid["detector"],
            precoder=valid.get("precoder", "none"),
            num_transmissions=int(valid.get("num_transmissions", 1)),
            combining="ir" if once else valid.get("combining", combining(scenario, 2)),
        ),
        None,
        repairs,
    )


def _valid(scenario: Scenario, name: str, text: str) -> bool:
    if name == "decoder_iterations":
        return 1 <= int(text) <= MAX_ITERATIONS
    return text in written(scenario, name) or (name, text) in (
        ("precoder", "none"),
        ("num_transmissions", "1"),
    )

"""How a service request is put into words, and the quality of service that a reader infers from it.

A request is of one of three KINDS. `stated` names the service and its targets, in any unit and any
notation. `named` only names the service. `described` tells a situation from which a reader infers
the service class. All words are in data/wording.json. A part of every table there is held out, so
that a test can put to a reader what no training request has said:

  plans         sentences with slots: {s} a service's name, {x} a situation, {a} {b} {c} the targets
                as nouns and {A} {B} {C} the same as clauses, in an order that is drawn
  phrases       those nouns and clauses, with one slot for a figure
  spellings     the figure: units, notations, numerals and words
  services      names and situations of the classes of data/qos_classes.csv
  distractors   facts that have nothing to do with the link
  remarks       what people add; without figures

In any of them [one|another] is a choice and [2..30] a whole number of that range, which `request`
draws.
"""

import csv
import functools
import json
import math
import os
import random
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

KINDS = ("stated", "named", "described")
TARGETS = ("throughput", "delay", "error")
RATES_MBPS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # the 1-2-5 series
DELAYS_MS = (0.5, 1.0, 2.0, 4.0)
DELAY_SHARE = 0.10  # of the packet delay budget that the physical layer may use
DISTRACTOR_SHARE, REMARK_SHARE = 0.4, 0.4  # of the requests
MAX_ERROR = 3.0  # decades: the worst that one target, or a missing intent, counts in `intent_error`

_DATA = os.path.join(os.path.dirname(__file__), "data")
with open(os.path.join(_DATA, "wording.json"), encoding="utf-8") as _file:
    WORDING: dict[str, Any] = json.load(_file)

_DIGITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_POWERS = (
    "one",
    "ten",
    "a hundred",
    "a thousand",
    "ten thousand",
    "a hundred thousand",
    "a million",
)
_SLOT = re.compile(r"\{(\w+)\}")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = r"((?:0|[1-9]\d{0,8})(?:\.\d{1,24})?)"
_INTENT = re.compile(
    rf"QoS: {_NUMBER} (Mbps|kbps), {_NUMBER} (ms|us), " r"PER ([1-9](?:\.\d{1,16})?e-\d{1,2})\. ",
    re.ASCII,
)
_WORD = re.compile(r"\w+(?:[.'^/-]\w+)*")


@functools.cache
def service_classes() -> tuple[dict[str, str], ...]:
    """The rows of data/qos_classes.csv."""
    with open(os.path.join(_DATA, "qos_classes.csv"), newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def nominal_targets(service: str) -> tuple[float, float, float]:
    """What a request that states no figures asks for: the canonical targets of its class.

    Args:
      service: a class of data/qos_classes.csv.

    Returns:
      (delay_ms, throughput_mbps, error_rate): 10 % of the packet delay budget, at most 4 ms,
      rounded to DELAYS_MS; the geometric mean of the class's range, rounded to RATES_MBPS; the
      class's packet error rate. Rounding goes to the figure whose ratio to the value is nearest to
      one, up or down.

    Raises:
      ValueError: no such class.
    """
    row = next((row for row in service_classes() if row["service"] == service), None)
    if row is None:
        raise ValueError(f"service = {service!r}: no class of qos_classes.csv")
    share_ms = min(DELAY_SHARE * float(row["packet_delay_budget_ms"]), max(DELAYS_MS))
    mean_mbps = math.sqrt(float(row["rate_mbps_low"]) * float(row["rate_mbps_high"]))
    return _nearest(DELAYS_MS, share_ms), _nearest(RATES_MBPS, mean_mbps), float(row["error_rate"])


def request(
    rng: random.Random,
    service: str,
    delay_ms: float,
    throughput_mbps: float,
    error_rate: float,
    kind: str,
    held_out: bool = False,
) -> str:
    """One of many ways to ask for a service.

    Args:
      rng: the only source of chance; the same state gives the same request.
      service: a class of data/qos_classes.csv.
      delay_ms, throughput_mbps, error_rate: the targets: in ms, in Mbps, both above 1e-9 and below
        1e6, and a packet error rate above 1e-9 and below 1. A `stated` request says them exactly;
        the other kinds do not look at them.
      kind: one of KINDS.
      held_out: True draws from the held-out part of every table only, False from the rest only.

    Returns:
      Sentences, the first word with a capital letter.

    Raises:
      ValueError: an unknown service or kind, or a stated target out of range.
    """
    if service not in WORDING["services"]:
        raise ValueError(f"service = {service!r}: no class of qos_classes.csv")
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}: expected one of {', '.join(KINDS)}")
    part = "held_out" if held_out else "train"
    plan = rng.choice(WORDING["plans"][kind][part])
    if kind == "described":
        slots = {"x": rng.choice(WORDING["services"][service]["situations"][part])}
    else:
        slots = {"s": rng.choice(WORDING["services"][service]["names"][part])}
    if kind == "stated":
        figures = _figures(delay_ms, throughput_mbps, error_rate)
        for letter, target in zip("abc", rng.sample(TARGETS, len(TARGETS))):
            spelled = _spellings(target, figures[target], part)
            slots[letter] = _phrase(rng, target, "noun", spelled, part)
            slots[letter.upper()] = _phrase(rng, target, "clause", spelled, part)
    sentences = [plan.format(**slots)]
    if rng.random() < DISTRACTOR_SHARE:
        sentences.insert(rng.randrange(2), rng.choice(WORDING["distractors"][part]))
    if rng.random() < REMARK_SHARE:
        sentences.append(rng.choice(WORDING["remarks"][part]))
    text = _CHOICE.sub(lambda match: _draw(rng, match[1]), " ".join(sentences))
    return re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda match: match[0].upper(), text)


def describe_intent(delay_ms: float, throughput_mbps: float, error_rate: float) -> str:
    """The inferred QoS that a response begins with: "QoS: 5 Mbps, 2 ms, PER 1e-3. ".

    Args:
      delay_ms, throughput_mbps: in ms and Mbps, above 1e-9 and below 1e6; written exactly, as whole
        numbers of their unit or else in thousandths of it.
      error_rate: a packet error rate, above 1e-9 and below 1; written exactly.

    Raises:
      ValueError: a target out of range.
    """
    figures = _figures(delay_ms, throughput_mbps, error_rate)
    rate, time, error = (figures[target] for target in TARGETS)
    return (
        f"QoS: {_whole(rate, 'mbps', 'Mbps', 'kbps')}, {_whole(time, 'ms', 'ms', 'us')}, "
        f"PER {error['m']}e-{error['k']}. "
    )


def read_intent(text: str) -> tuple[float, float, float] | None:
    """The inverse of `describe_intent`; whatever follows in the text does not matter.

    Returns:
      (delay_ms, throughput_mbps, error_rate) in ms and Mbps, or None where the text does not begin
      with an intent in exactly that form, the space after it included. Any number in either unit
      will do, except 0. Raises nothing, and the work does not grow with the text.
    """
    match = _INTENT.match(text)
    if not match:
        return None
    rate, rate_unit, time, time_unit, error = match.groups()
    throughput_mbps = float(Decimal(rate) / (1000 if rate_unit == "kbps" else 1))
    delay_ms = float(Decimal(time) / (1000 if time_unit == "us" else 1))
    return (delay_ms, throughput_mbps, float(error)) if delay_ms and throughput_mbps else None


def intent_error(
    inferred: tuple[float, float, float] | None, true: tuple[float, float, float]
) -> float:
    """How far an inferred QoS is from the true one, in decades.

    Args:
      inferred: (delay_ms, throughput_mbps, error_rate), all above 0; None where none was read.
      true: likewise.

    Returns:
      The mean of |log10(inferred / true)| over the three, each at most 3; 3 for None. 0 is exact,
      and a factor of ten in one of the three counts a third.
    """
    if inferred is None:
        return MAX_ERROR
    errors = [
        min(abs(math.log10(a) - math.log10(b)), MAX_ERROR)
        for a, b in zip(inferred, true, strict=True)
    ]
    return sum(errors) / len(errors)


def variety(train: Sequence[str], test: Sequence[str]) -> dict[str, float]:
    """How different requests are from one another, and those of a test from those of the training.

    Args:
      train, test: requests, at least one of each.

    Returns:
      requests, distinct_requests: of train, the number of all and of different ones.
      distinct_1 ... distinct_4: different n-grams of words over all n-grams, in train.
      nearest_mean, nearest_above_0.8: the Jaccard similarity over sets of word trigrams between a
      test request and the train request most similar to it: the mean, and the share above 0.8. 1 is
      a copy. Case and punctuation do not count as differences.

    Raises:
      ValueError: train or test is empty.
    """
    if not train or not test:
        raise ValueError("variety: needs at least one request of train and one of test")
    words = [_WORD.findall(text.lower()) for text in train]
    result: dict[str, float] = {"requests": len(train), "distinct_requests": len(set(train))}
    for n in range(1, 5):
        grams = [gram for request_words in words for gram in _ngrams(request_words, n)]
        result[f"distinct_{n}"] = len(set(grams)) / max(len(grams), 1)
    rows: dict[tuple[str, ...], list[int]] = {}  # of the train requests that hold a trigram
    sizes = np.zeros(len(train))
    for row, request_words in enumerate(words):
        trigrams = _trigrams(request_words)
        sizes[row] = len(trigrams)
        for trigram in trigrams:
            rows.setdefault(trigram, []).append(row)
    index = {trigram: np.array(where) for trigram, where in rows.items()}
    nearest = []
    for text in test:
        trigrams = _trigrams(_WORD.findall(text.lower()))
        hits = [index[trigram] for trigram in trigrams if trigram in index]
        hits.append(np.array([], dtype=int))
        shared = np.bincount(np.concatenate(hits), minlength=len(train))
        nearest.append(float(np.max(shared / (sizes + len(trigrams) - shared))))
    result["nearest_mean"] = sum(nearest) / len(nearest)
    result["nearest_above_0.8"] = sum(value > 0.8 for value in nearest) / len(nearest)
    return result


def _nearest(series: Sequence[float], value: float) -> float:
    return min(series, key=lambda figure: abs(math.log(figure / value)))


def _figures(delay_ms: float, throughput_mbps: float, error_rate: float) -> dict[str, dict]:
    """{target: the fields of its spellings that suit its value}."""
    for name, value, limit in (
        ("delay_ms", delay_ms, 1e6),
        ("throughput_mbps", throughput_mbps, 1e6),
        ("error_rate", error_rate, 1),
    ):
        if not 1e-9 < value < limit:
            raise ValueError(f"{name} = {value!r}: expected a number > 1e-9 and < {limit:g}")
    return {
        "throughput": _rate_fields(Decimal(repr(float(throughput_mbps)))),
        "delay": _delay_fields(Decimal(repr(float(delay_ms)))),
        "error": _error_fields(Decimal(repr(float(error_rate)))),
    }


def _rate_fields(mbps: Decimal) -> dict[str, str]:
    fields = {"mbps": _plain(mbps)}
    if mbps <= 10:
        fields["kbps"] = _plain(mbps * 1000)
    if mbps >= 50:
        fields["gbps"] = _plain(mbps / 1000)
    return fields


def _delay_fields(ms: Decimal) -> dict[str, str]:
    fields = {"ms": _plain(ms)}
    if ms < 10:
        fields["us"] = _plain(ms * 1000)
    if ms == Decimal("0.5"):
        fields["half"] = "half"
    if ms in range(1, 10):
        fields["word"] = _DIGITS[int(ms) - 1]
    return fields


def _error_fields(rate: Decimal) -> dict[str, str]:
    """m and k of m * 10^-k, that as a power, as a decimal, in percent and as a share of 10^k, in
    numerals and in words; the percentage of packets delivered, and its nines."""
    k = -rate.adjusted()
    mantissa = rate.scaleb(k)
    m = _plain(mantissa)
    fields = {
        "m": m,
        "k": str(k),
        "power": f"10^-{k}" if m == "1" else f"{m}x10^-{k}",
        "decimal": _plain(rate),
        "percent": _plain(rate * 100),
        "rest": _plain(100 - rate * 100),
    }
    if mantissa in range(1, 10) and k < len(_POWERS):
        fields |= {"word": _DIGITS[int(mantissa) - 1], "n": str(10**k), "n_words": _POWERS[k]}
        if m == "1" and k > 1:
            fields["nines"] = _DIGITS[k - 1]
    return fields


def _spellings(target: str, fields: dict[str, str], part: str) -> dict[str, list[str]]:
    """{slot of the target's phrases: what may stand there}, without slots that nothing suits."""
    spelled = {
        slot: [
            _plural(spelling.format(**fields))
            for spelling in spellings[part]
            if fields.keys() >= set(_SLOT.findall(spelling))
        ]
        for slot, spellings in WORDING["spellings"][target].items()
    }
    return {slot: texts for slot, texts in spelled.items() if texts}


def _phrase(
    rng: random.Random, target: str, form: str, spelled: dict[str, list[str]], part: str
) -> str:
    """A target as a "noun" or a "clause"."""
    phrase = rng.choice(
        [
            phrase
            for phrase in WORDING["phrases"][target][form][part]
            if _SLOT.search(phrase)[1] in spelled
        ]
    )
    return _SLOT.sub(lambda match: rng.choice(spelled[match[1]]), phrase)


def _draw(rng: random.Random, choice: str) -> str:
    low, dots, high = choice.partition("..")
    return str(rng.randint(int(low), int(high))) if dots else rng.choice(choice.split("|"))


def _whole(fields: dict[str, str], key: str, unit: str, small_unit: str) -> str:
    value = Decimal(fields[key])
    if value == int(value):
        return f"{fields[key]} {unit}"
    return f"{_plain(value * 1000)} {small_unit}"


def _plural(text: str) -> str:
    return text.replace("(s)", "" if re.match(r"(?:1|one) ", text) else "s")


def _plain(value: Decimal) -> str:
    """Without exponent and without trailing zeros."""
    return format(value.normalize(), "f")


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n))))


def _trigrams(words: list[str]) -> set[tuple[str, ...]]:
    """All of the words where there are fewer than three."""
    return set(_ngrams(words, 3)) or {tuple(words)}

"""Requests say their targets exactly, hold out what they say they hold out, and do not repeat
themselves; an inferred QoS reads back as written."""

import functools
import itertools
import math
import random
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.world import wording
from experiments.world.wording import KINDS, WORDING, request

SERVICES = tuple(row["service"] for row in wording.service_classes())
DRAWS = 5000

POWERS = {
    "ten": 1,
    "a hundred": 2,
    "a thousand": 3,
    "ten thousand": 4,
    "a hundred thousand": 5,
    "a million": 6,
}
DIGITS = dict(zip("one two three four five six seven eight nine".split(), range(1, 10)))
MBPS = {
    "Gbps": 1000,
    "Mbps": 1,
    "Mbit/s": 1,
    "Mb/s": 1,
    "megabit per second": 1,
    "kbps": 1e-3,
    "kbit/s": 1e-3,
}
MS = {
    "ms": 1,
    "msec": 1,
    "millisecond": 1,
    "thousandth of a second": 1,
    "us": 1e-3,
    "usec": 1e-3,
    "microsecond": 1e-3,
}
DIGIT = "|".join(DIGITS)
NUMBER = r"(?<![\w.])\d+(?:\.\d+)?"
RATE = re.compile(rf"({NUMBER}) ({'|'.join(MBPS)}|megabits per second)(?!\w)")
TIME = re.compile(
    rf"({NUMBER}|\b(?:half a|{DIGIT})) "
    r"(ms|msec|us|usec|milliseconds?|microseconds?|thousandths? of a second)(?!\w)",
    re.IGNORECASE,
)
ERROR = re.compile(  # what is delivered comes before what is lost, since both are percentages
    rf"probability of ({NUMBER}) (?:%|percent)"
    rf"|({NUMBER}) (?:%|percent) "
    r"(?:packet delivery|of (?:the|all) packets (?:delivered|must|should))"
    rf"|({NUMBER}) (?:%|percent)"
    r"|\b(\d)e-(\d)(?!\d)|(?<![\w^.-])(?:(\d)x)?10\^-(\d)(?!\d)"
    r"|(?:packet errors of|PER may be) (0\.\d+)\b(?! percent)"
    rf"|\b({DIGIT}|\d) (?:packets? )?(?:in|out of) "
    rf"({'|'.join(sorted(POWERS, key=len)[::-1])}|\d+)\b"
    rf"|\b({DIGIT}) nines\b",
    re.IGNORECASE,
)


def read_targets(text):
    """Every (delay_ms, throughput_mbps, error_rate) that the text could be read to state."""
    rates = [
        float(number) * MBPS[unit.replace("bits", "bit")] for number, unit in RATE.findall(text)
    ]
    times = []
    for number, unit in TIME.findall(text):
        value = {"half a": 0.5, **DIGITS}.get(number.lower()) or float(number)
        times.append(value * MS[re.sub(r"s(?= of|$)", "", unit) if len(unit) > 4 else unit])
    errors = []
    for groups in ERROR.findall(text):
        chance, rest, lost, m, k, m_power, k_power, decimal, share, out_of, nines = groups
        if chance or rest:
            errors.append(1 - float(chance or rest) / 100)
        elif lost:
            errors.append(float(lost) / 100)
        elif k or k_power:
            errors.append(float(m or m_power or 1) * 10.0 ** -int(k or k_power))
        elif decimal:
            errors.append(float(decimal))
        elif share:
            share = DIGITS.get(share.lower()) or float(share)
            errors.append(share / (10 ** POWERS[out_of] if out_of in POWERS else float(out_of)))
        else:
            errors.append(10.0 ** -DIGITS[nines.lower()])
    return times, rates, errors


def two_digits(low, high):
    """Figures of two significant digits between low and high."""
    return st.builds(
        lambda digits, exponent: float(f"{digits}e{exponent}"),
        st.integers(10, 99),
        st.integers(-4, 1),
    ).filter(lambda value: low <= value <= high)


rates = st.sampled_from(wording.RATES_MBPS) | two_digits(0.05, 100)
delays = st.sampled_from(wording.DELAYS_MS) | two_digits(0.2, 20)
error_rates = st.builds(
    lambda digit, exponent: float(f"{digit}e-{exponent}"),
    st.sampled_from((1, 2, 5)),
    st.integers(1, 6),
)


@functools.cache
def draws(seed, count, kind=None, held_out=False):
    """Requests of all services in turn, all kinds in turn unless one is given, random targets."""
    rng = random.Random(f"draws {seed}")
    kinds = itertools.cycle(KINDS if kind is None else [kind])
    return tuple(
        request(
            rng,
            service,
            rng.choice(wording.DELAYS_MS),
            rng.choice(wording.RATES_MBPS),
            10.0 ** -rng.randint(1, 6),
            next(kinds),
            held_out,
        )
        for service in itertools.islice(itertools.cycle(SERVICES), count)
    )


def tables(node=WORDING, name=""):
    """(name, train, held out) of every table."""
    if node.keys() == {"train", "held_out"}:
        yield name, node["train"], node["held_out"]
    else:
        for key, child in node.items():
            yield from tables(child, f"{name}/{key}")


def fragment(template):
    """The longest piece of a template that stands in each text made of it."""
    return max(re.split(r"\{\w+\}|\[[^\]]*\]", template), key=len).lower()


@settings(max_examples=1000)
@given(st.integers(0, 2**32), st.sampled_from(SERVICES), delays, rates, error_rates, st.booleans())
def test_a_stated_request_says_its_three_targets_once_and_exactly(
    seed, service, delay_ms, throughput_mbps, error_rate, held_out
):
    text = request(
        random.Random(seed), service, delay_ms, throughput_mbps, error_rate, "stated", held_out
    )
    times, throughputs, errors = read_targets(text)
    assert times == pytest.approx([delay_ms], rel=1e-12), text
    assert throughputs == pytest.approx([throughput_mbps], rel=1e-12), text
    assert errors == pytest.approx([error_rate], rel=1e-9), text


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", ["named", "described"])
def test_a_request_without_targets_has_nothing_that_reads_as_one(kind, held_out):
    for text in draws(0, 3000, kind, held_out):
        assert read_targets(text) == ([], [], []), text
        assert not re.search(r"\d ?(%|[a-zA-Z]*(bit|bps|B/s|Hz|dB|sec|ms|us|PRB|m/s)\b)", text)
        assert not re.search(r"\d\s*(x|\^|e-)\s*\d|\d\.\d", text), text


@pytest.mark.parametrize("held_out", [False, True])
def test_every_plan_name_and_situation_is_reached(held_out):
    for kind in KINDS:
        text = "\n".join(draws(1, DRAWS, kind, held_out)).lower()
        part = "held_out" if held_out else "train"
        for plan in WORDING["plans"][kind][part]:
            assert fragment(plan) in text, plan
        for service in SERVICES:
            words = WORDING["services"][service]["situations" if kind == "described" else "names"]
            for template in words[part]:
                assert fragment(template) in text, template
    for spelling in (
        "Gbps",
        "kbit/s",
        "microseconds",
        "half a millisecond",
        "nines",
        "10^-",
        "e-",
        " %",
        "in a thousand",
    ):
        assert any(spelling in text for text in draws(1, DRAWS, "stated")), spelling


def test_tables_are_large_without_duplicates_and_hold_a_part_out():
    for name, train, held_out in tables():
        both = [text.lower() for text in train + held_out]
        assert len(set(both)) == len(both), name
        assert train and (held_out or name.endswith("nines")), name
        if "spellings" not in name:
            assert 0.12 <= len(held_out) / len(both) <= 0.35, name
    plans = {kind: len(WORDING["plans"][kind]["train"]) for kind in KINDS}
    assert plans["stated"] >= 24 and plans["named"] >= 24 and plans["described"] >= 12
    assert WORDING["services"].keys() == set(SERVICES) and len(SERVICES) == 20
    for words in WORDING["services"].values():
        assert len(words["situations"]["train"]) >= 8 and len(words["situations"]["held_out"]) >= 2
        assert len(words["names"]["train"]) >= 5 and len(words["names"]["held_out"]) >= 2
    names = [
        name
        for words in WORDING["services"].values()
        for name in words["names"]["train"] + words["names"]["held_out"]
    ]
    assert len(set(names)) == len(names)  # no name stands for two classes


def test_nothing_held_out_occurs_in_train_requests():
    text = "\n".join(draws(2, DRAWS)).lower()
    for name, _, held_out in tables():
        if "spellings" in name:
            continue
        for template in held_out:
            assert len(fragment(template)) >= 8, template
            assert fragment(template) not in text, template
    assert not re.search(r"mb/s|megabit|[mu]sec\b|thousandths? of|percent|\d (in|out of) \d", text)
    assert not re.search(r"(PER|errors) (may be|of) 0\.\d+\b(?! %)", text, re.IGNORECASE)


def test_held_out_requests_are_made_of_held_out_words_only():
    text = "\n".join(draws(2, DRAWS, held_out=True)).lower()
    for name, train, _ in tables():
        if name.startswith(("/services", "/distractors", "/remarks")):
            for template in train:
                piece = fragment(template).strip()
                found = piece in text and re.search(rf"\b{re.escape(piece)}\b", text)
                assert not found, template
    assert not re.search(r"mbps|kbps|gbps|bit/s|\d ms\b|\d us\b|%|\^|\de-\d|nines", text)


def test_a_situation_does_not_name_its_class_and_holds_no_figures():
    for service, words in WORDING["services"].items():
        names = [
            re.sub(r"^(an?|the) ", "", name).lower()
            for part in words["names"].values()
            for name in part
        ] + [service.lower()]
        for situation in words["situations"]["train"] + words["situations"]["held_out"]:
            assert not any(name in situation.lower() for name in names), (service, situation)
            assert not re.search(r"\d", situation) and situation.endswith(".")


def test_requests_are_sentences():
    for text in draws(3, DRAWS) + draws(3, 2000, held_out=True):
        assert not text[0].islower() and text[-1] in ".?", text
        assert text.isascii() and "  " not in text, text
        assert not re.search(r"[\[\]{}|]|\(s\)", text), text
        assert not re.search(r"[.?!] [a-z]|\b(a|an) (a|an|the)\b|[.,;:] ?[.,;]", text), text


def test_the_same_seed_gives_the_same_requests_and_another_seed_others():
    for kind in KINDS:
        first, again, other = (
            [request(random.Random(seed), service, 1, 5, 1e-3, kind) for service in SERVICES]
            for seed in (0, 0, 1)
        )
        assert first == again and first != other


def test_requests_differ_from_one_another_and_held_out_ones_from_all():
    train, test = draws(4, DRAWS), draws(5, 1000)
    begin = time.perf_counter()
    seen = wording.variety(train, test)
    unseen = wording.variety(train, draws(5, 1000, held_out=True))
    assert time.perf_counter() - begin < 60
    assert seen["requests"] == DRAWS and seen["distinct_requests"] > 0.93 * DRAWS
    floors = {"distinct_1": 0.012, "distinct_2": 0.07, "distinct_3": 0.17, "distinct_4": 0.28}
    for name, floor in floors.items():
        assert seen[name] > floor, (name, seen[name])
    assert unseen["nearest_mean"] < 0.1 and unseen["nearest_above_0.8"] == 0
    assert unseen["nearest_mean"] < seen["nearest_mean"] < 0.75
    stated = wording.variety(draws(4, 3000, "stated"), draws(5, 500, "stated"))
    assert stated["distinct_requests"] > 0.999 * 3000
    assert stated["nearest_mean"] < 0.5 and stated["nearest_above_0.8"] < 0.01


def test_variety_counts_what_it_says():
    figures = wording.variety(["a b c d", "A b, c d.", "x y z w v"], ["a b c e", "x y z w v", "q"])
    assert figures["requests"] == 3 and figures["distinct_requests"] == 3
    assert figures["distinct_1"] == 9 / 13 and figures["distinct_4"] == 3 / 4
    assert figures["nearest_mean"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert figures["nearest_above_0.8"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="variety"):
        wording.variety([], ["a"])


def test_nominal_targets_lie_within_the_class():
    for row in wording.service_classes():
        delay_ms, throughput_mbps, error_rate = wording.nominal_targets(row["service"])
        low, high = float(row["rate_mbps_low"]), float(row["rate_mbps_high"])
        assert low / 1.3 <= throughput_mbps <= 1.4 * high and throughput_mbps in wording.RATES_MBPS
        assert delay_ms in wording.DELAYS_MS
        assert delay_ms <= 0.14 * float(row["packet_delay_budget_ms"])
        assert error_rate == float(row["error_rate"])
    assert wording.nominal_targets("conversational video") == (4, 5, 1e-3)  # sqrt(10) = 3.16
    assert wording.nominal_targets("telesurgery haptics") == (0.5, 0.2, 1e-4)


@given(
    delays | st.floats(2e-9, 9e5),
    rates | st.floats(2e-9, 9e5),
    error_rates | st.floats(2e-9, 0.9),
    st.text(),
)
def test_an_intent_reads_back_as_written_whatever_follows(
    delay_ms, throughput_mbps, error_rate, rest
):
    true = (delay_ms, throughput_mbps, error_rate)
    text = wording.describe_intent(*true)
    assert wording.read_intent(text + rest) == true
    assert wording.intent_error(wording.read_intent(text), true) == 0
    assert wording.read_intent(" " + text) is None and wording.read_intent(text[:-1]) is None


def test_intents_look_as_documented():
    assert wording.describe_intent(2, 5, 1e-3) == "QoS: 5 Mbps, 2 ms, PER 1e-3. "
    assert wording.describe_intent(0.5, 0.05, 2e-5) == "QoS: 50 kbps, 500 us, PER 2e-5. "
    assert wording.describe_intent(1.5, 37, 0.1) == "QoS: 37 Mbps, 1500 us, PER 1e-1. "


@given(
    st.text()
    | st.text(alphabet="QoS: 0123456789.e-,MkbpsmuPER\u0663 ")
    | st.builds(
        "QoS: {} {}, {} {}, PER {}. ".format,
        st.text(max_size=5),
        st.text(max_size=4),
        st.floats(),
        st.sampled_from(("ms", "us")),
        st.floats(),
    )
)
def test_reading_an_intent_never_fails(text):
    inferred = wording.read_intent(text)
    assert inferred is None or all(0 < value < math.inf for value in inferred)
    assert 0 <= wording.intent_error(inferred, (1.0, 1.0, 1e-3)) <= wording.MAX_ERROR


@pytest.mark.parametrize(
    "text",
    [
        "",
        "QoS:",
        "QoS: 5 Mbps, 2 ms, PER 1e-3.",
        "qos: 5 Mbps, 2 ms, PER 1e-3. ",
        "QoS: 0 Mbps, 2 ms, PER 1e-3. ",
        "QoS: 5 Mbps, 0.0 us, PER 1e-3. ",
        "QoS: -5 Mbps, 2 ms, PER 1e-3. ",
        "QoS: 05 Mbps, 2 ms, PER 1e-3. ",
        "QoS: 5 Gbps, 2 ms, PER 1e-3. ",
        "QoS: 5 Mbps, 2 ms, PER 0e-3. ",
        "QoS: 2 ms, 5 Mbps, PER 1e-3. ",
        "QoS: 5 Mbps, 2 ms, PER 0.001. ",
        "QoS: \u0665 Mbps, 2 ms, PER 1e-3. ",
        "QoS: " + "9" * 1_000_000,
    ],
    ids=lambda text: text[:20],
)
def test_anything_but_an_intent_reads_as_none(text):
    assert wording.read_intent(text) is None


def test_an_intent_s_error_is_in_decades_with_each_target_capped():
    true = (1.0, 10.0, 1e-3)
    assert wording.intent_error((1.0, 1.0, 1e-3), true) == pytest.approx(1 / 3)
    assert wording.intent_error((10.0, 1.0, 1e-2), true) == pytest.approx(1)
    assert wording.intent_error((1e-9, 10.0, 1e-3), true) == pytest.approx(1)
    assert wording.intent_error(None, true) == 3


@pytest.mark.parametrize(
    "change, word",
    [
        ({"service": "fax"}, "service"),
        ({"kind": "sung"}, "kind"),
        ({"delay_ms": 0}, "delay_ms"),
        ({"throughput_mbps": float("nan")}, "throughput_mbps"),
        ({"error_rate": 1}, "error_rate"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(change, word):
    right = {
        "service": "cloud gaming",
        "delay_ms": 1,
        "throughput_mbps": 5,
        "error_rate": 1e-3,
        "kind": "stated",
    }
    with pytest.raises(ValueError, match=word):
        request(random.Random(0), **right | change)
    with pytest.raises(ValueError, match="service"):
        wording.nominal_targets("fax")


def test_the_module_needs_neither_jax_nor_the_twin():
    code = (
        "import sys, experiments.world.wording\n"
        "assert not {'jax', 'twin', 'experiments.world.tasks'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

"""Questions whose answers can be checked: what a radio engineer knows by heart or works out on a
slip of paper, and instructions that have nothing to do with radio.

The kinds of the domain are taken from the toolbox, the service classes, the arithmetic of slots,
rates, decibels and delays, and the abbreviations of a corpus; those of GENERAL show what a model
that learns the domain forgets. What is held out: the figures of a question that works with figures,
and one wording in three of a question that asks for a fact.
"""

import random
import re
from collections import Counter
from typing import Callable, Iterable, Iterator, NamedTuple

from experiments.world.orchestration import QAM, number
from experiments.world.wording import service_classes
from twin.toolbox import BY_FIELD, TOOLS

HOW = "Think first; then write Answer: and the answer alone on a line of its own."
HELD_OUT = 3  # one in so many
ABBREVIATION = re.compile(r"((?:\b[A-Z][a-z]+[ -]){2,6})\(([A-Z]{2,6})\)")
WORDS = "river stone window garden market ladder candle bridge basket winter copper harbour".split()


class Question(NamedTuple):
    kind: str
    prompt: str
    reasoning: str
    answer: str
    held_out: bool

    @property
    def response(self) -> str:
        return f"{self.reasoning}\nAnswer: {self.answer}"


def fact(kind: str, wordings: tuple[str, str, str], which: int, reasoning: str, answer: str):
    """A question about something that is the same however it is asked: the last wording is held
    out.
    """
    return Question(kind, f"{wordings[which]} {HOW}", reasoning, answer, which == HELD_OUT - 1)


def figures(kind: str, prompt: str, held: int, reasoning: str, answer: str):
    """A question about figures, of which `held` stands for the ones that decide its side."""
    return Question(kind, f"{prompt} {HOW}", reasoning, answer, held % HELD_OUT == HELD_OUT - 1)


def slot(rng: random.Random) -> Question:
    scs, slots = rng.choice((15, 30, 60, 120)), rng.randint(1, 40)
    each = 15 / scs
    return figures(
        "slot",
        f"How many milliseconds do {slots} slots take at a subcarrier spacing of {scs} kHz?",
        slots,
        f"A slot takes 15 / {scs} = {number(each)} ms, {slots} slots take {slots} x"
        f" {number(each)} = {number(slots * each)} ms.",
        f"{number(slots * each)} ms",
    )


def carried(rng: random.Random) -> Question:
    bits, prb, symbols = rng.choice(tuple(QAM)), rng.randint(1, 60), rng.choice((10, 11, 12, 13))
    elements = 12 * symbols
    return figures(
        "carried",
        f"How many coded bits fit into {prb} resource blocks of 12 subcarriers with {symbols} data"
        f" symbols, {QAM[bits]}, one layer?",
        prb,
        f"A block has 12 x {symbols} = {elements} resource elements, {prb} blocks have"
        f" {elements * prb}. {QAM[bits]} carries {bits} bits each: {elements * prb} x {bits} ="
        f" {elements * prb * bits}.",
        str(elements * prb * bits),
    )


def budget(rng: random.Random) -> Question:
    terms = [rng.randint(1, 30) / 10 for _ in range(3)]
    limit, total = rng.randint(10, 80) / 10, round(sum(terms), 1)
    names = rng.sample(("alignment", "the slot", "decoding", "detection", "a retransmission"), 3)
    said = ", ".join(f"{name} takes {number(term)} ms" for name, term in zip(names, terms))
    return figures(
        "budget",
        f"{said.capitalize()}. Is a delay of {number(limit)} ms kept, yes or no?",
        round(10 * (total + limit)),
        f"Together {' + '.join(map(number, terms))} = {number(total)} ms, which is"
        f" {'not more' if total <= limit else 'more'} than {number(limit)} ms.",
        "yes" if total <= limit else "no",
    )


def units(rng: random.Random) -> Question:
    value = rng.randint(1, 999)
    large, small, thing = rng.choice(
        (("ms", "us", "delay"), ("Mbps", "kbps", "rate"), ("GHz", "MHz", "carrier"))
    )
    amount = number(value / 100)
    return figures(
        "units",
        f"A {thing} of {amount} {large}: how much is that in {small}?",
        value,
        f"1 {large} is 1000 {small}: {amount} x 1000 = {value * 10} {small}.",
        f"{value * 10} {small}",
    )


def decibels(rng: random.Random) -> Question:
    snr, (antennas, gain) = rng.randint(-5, 35), rng.choice(((1, 0), (2, 3), (4, 6)))
    return figures(
        "decibels",
        f"The SNR is {snr} dB at each of {antennas} receive antenna{'s' * (antennas > 1)}. What is"
        " it after maximum ratio combining, in whole dB?",
        snr,
        f"Combining {antennas} adds 10 log10({antennas}) = {gain} dB: {snr} + {gain} ="
        f" {snr + gain} dB.",
        f"{snr + gain} dB",
    )


def module(rng: random.Random) -> Question:
    tool, which = rng.choice(TOOLS), rng.randrange(HELD_OUT)
    return fact(
        "module",
        (
            f"Which module of the toolbox does this? {tool.description}",
            f"Name the module that this describes: {tool.description}",
            f"{tool.description} Which tool is meant?",
        ),
        which,
        f"That is a module that runs on the {tool.stage} side.",
        tool.name,
    )


def argument(rng: random.Random) -> Question:
    found, which = rng.choice(list(BY_FIELD.values())), rng.randrange(HELD_OUT)
    tool = next(tool for tool in TOOLS if found in tool.arguments)
    values = (
        ", ".join(map(str, found.choices))
        if found.choices
        else f"{number(found.low)} to {number(found.high)}"
    )
    return fact(
        "argument",
        (
            f"Which values does {found.name} of {tool.name} take?",
            f"What may be written for {found.name} in {tool.name}(...)?",
            f"List what {tool.name} accepts as {found.name}.",
        ),
        which,
        f"{found.name} is an argument of {tool.name}.",
        values,
    )


def service(rng: random.Random) -> Question:
    row, which = rng.choice(service_classes()), rng.randrange(HELD_OUT)
    name, value, unit = rng.choice(
        (
            ("packet delay budget", row["packet_delay_budget_ms"], " ms"),
            ("packet error rate", row["error_rate"], ""),
        )
    )
    return fact(
        "service",
        (
            f"What is the {name} of the service class {row['service']}?",
            f"The class {row['service']} needs which {name}?",
            f"Say the {name} for {row['service']}.",
        ),
        which,
        f"{row['service']} is one of the standardised classes.",
        f"{value}{unit}",
    )


def abbreviation(rng: random.Random, known: dict[str, str]) -> Question:
    short, which = rng.choice(sorted(known)), rng.randrange(HELD_OUT)
    return fact(
        "abbreviation",
        (
            f"What does {short} stand for?",
            f"Spell out the abbreviation {short}.",
            f"In a protocol specification, what is {short}?",
        ),
        which,
        f"{short} is an abbreviation of {len(known[short].split())} words.",
        known[short],
    )


def repeat(rng: random.Random) -> Question:
    word, times = rng.choice(WORDS), rng.randint(2, 9)
    return figures(
        "repeat",
        f"Write the word {word} {times} times, with spaces between.",
        times + WORDS.index(word),
        f"The word is {word}, the number {times}.",
        " ".join([word] * times),
    )


def order(rng: random.Random) -> Question:
    some = rng.sample(range(10, 100), 4)
    return figures(
        "order",
        f"Sort these numbers from small to large: {', '.join(map(str, some))}.",
        sum(some),
        f"The smallest is {min(some)}, the largest {max(some)}.",
        ", ".join(map(str, sorted(some))),
    )


def capitals(rng: random.Random) -> Question:
    some = rng.sample(WORDS, 3)
    return figures(
        "capitals",
        f"Write in capital letters: {' '.join(some)}.",
        sum(map(WORDS.index, some)),
        "Every letter becomes a capital one.",
        " ".join(some).upper(),
    )


def choose(rng: random.Random) -> Question:
    some, which = rng.sample(WORDS, 4), rng.randrange(4)
    place = ("first", "second", "third", "fourth")[which]
    return figures(
        "choose",
        f"Which is the {place} of these words: {', '.join(some)}?",
        which + sum(map(WORDS.index, some)),
        f"The words are numbered from the left; number {which + 1} is asked for.",
        some[which],
    )


DOMAIN: tuple[Callable[[random.Random], Question], ...] = (
    slot,
    carried,
    budget,
    units,
    decibels,
    module,
    argument,
    service,
)
GENERAL: tuple[Callable[[random.Random], Question], ...] = (repeat, order, capitals, choose)
DOMAIN_KINDS = (*(kind.__name__ for kind in DOMAIN), "abbreviation")
GENERAL_KINDS = tuple(kind.__name__ for kind in GENERAL)


def abbreviations(texts: Iterable[str], most: int = 200) -> dict[str, str]:
    """What abbreviations stand for: those that texts spell out, in words with these initials, the
    most frequent first; of several meanings the most frequent.
    """
    seen: Counter[tuple[str, str]] = Counter()
    for text in texts:
        for long, short in ABBREVIATION.findall(text):
            words = re.split("[ -]", long.strip())[-len(short) :]
            if "".join(word[0] for word in words) == short:
                seen[short, " ".join(words)] += 1
    found: dict[str, str] = {}
    for (short, long), _ in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        found.setdefault(short, long)
    return dict(list(found.items())[:most])


def questions(
    seed: object, general: float, held_out: bool, known: dict[str, str]
) -> Iterator[Question]:
    """Questions without end of one side, a share of them general; known: abbreviations, if any."""
    rng = random.Random(f"questions {seed} {held_out}")
    domain = [*DOMAIN, *([lambda rng: abbreviation(rng, known)] if known else [])]
    while True:
        kinds = GENERAL if rng.random() < general else domain
        asked = rng.choice(kinds)(rng)
        if asked.held_out == held_out:
            yield asked


def right(question: Question, response: str) -> bool:
    """Whether the response's last line that begins with Answer: says the answer, or its last line
    where none does; case, spaces and a full stop at the end do not count, but for the question
    about capital letters.
    """
    lines = response.strip().splitlines() or [""]
    said = re.findall(r"^\s*Answer:[ \t]*(.*)$", response, re.MULTILINE) or lines[-1:]

    def plain(text: str) -> str:
        text = " ".join(text.split()).removesuffix(".")
        return text if question.kind == "capitals" else text.casefold()

    return plain(said[-1]) == plain(question.answer)

"""Fuzz `parse`: python tests/twin/fuzz_program.py [inputs] [seed]. Mutated programs, grammar soup,
noise.

Anything but a Workflow or a WorkflowError is a failure; so is a message of more than 200 characters
or with some that cannot be printed, and so is an input that takes 10 ms of CPU time or more.
"""

import random
import re
import sys
import time

from twin import TOOLS, Workflow, WorkflowError, parse, render

WORDS = (
    [t.name for t in TOOLS]
    + [a.name for t in TOOLS for a in t.arguments]
    + [
        "__class__",
        "__import__",
        "eval",
        "lambda",
        "not",
        "await",
        "yield",
        "if",
        "else",
        "None",
        "True",
        "nan",
        "inf",
        "1e999",
        "0x1f",
        "1_0",
        "1j",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "=",
        ":=",
        "==",
        ",",
        ".",
        ";",
        ":",
        "-",
        "+",
        "*",
        "**",
        "/",
        "|",
        "@",
        "~",
        "\\",
        "'",
        '"',
        '"""',
        "#",
        "\n",
        "\r",
        "\t",
        "\f",
        " ",
        "\0",
        "\x1a",
        "é",
        "ｇ",
        "і",
        "\u202e",
        "\ud800",
        "f'",
        "b'",
        "\\N{DIGIT ONE}",
        "9" * 30,
        "(" * 50,
        "-" * 50,
        "a." * 50,
    ]
)
LONG_WORDS = [
    "a" * 3000,
    "0x" + "f" * 3000,
    "0b" + "1" * 3000,
    f"'{'b' * 3000}'",
    "'''\n\t" * 500 + "'''",
]


def mutate(text, rng):
    characters = list(text)
    for _ in range(rng.randint(1, 8)):
        at, kind = rng.randrange(len(characters) + 1), rng.randrange(4)
        if kind == 0:
            characters.insert(at, rng.choice(WORDS))
        elif kind == 1:
            del characters[at : at + rng.randint(1, 12)]
        elif kind == 2:
            characters[at:at] = characters[at : at + rng.randint(1, 60)]
        else:
            characters.insert(at, chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))))
    return "".join(characters)


def replace_a_value(text, rng):
    """A good program with any one word in place of a name or value."""
    parts = re.split(r"([\w.\"]+)", text)
    parts[rng.randrange(1, len(parts), 2)] = rng.choice(rng.choice((WORDS, LONG_WORDS)))
    return "".join(parts)


def inputs(rng):
    other = Workflow(code_rate=0.83, detector="kbest", precoder="svd", num_transmissions=4)
    good = [render(Workflow()), render(other)]
    while True:
        yield mutate(rng.choice(good), rng)
        yield "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 120)))
        yield replace_a_value(rng.choice(good), rng)
        yield "".join(chr(rng.randrange(256)) for _ in range(rng.randint(0, 400)))
        yield rng.choice(WORDS) * rng.choice((1, 10, 1000, 100_000))


def timed(text):
    """(message or "" for a workflow, seconds of CPU time)."""
    message, start = "", time.thread_time()
    try:
        assert isinstance(parse(text), Workflow)
    except WorkflowError as error:
        message = str(error)
    return message, time.thread_time() - start


def main(number=100_000, seed=0):
    rng, slowest, read = random.Random(seed), (0.0, ""), 0
    for _, text in zip(range(number), inputs(rng)):
        message, seconds = timed(text)
        if seconds > 0.01:  # again, for it may have been the garbage collector
            seconds = min(timed(text)[1] for _ in range(3))
        read += not message
        slowest = max(slowest, (seconds, text))
        if len(message) > 200 or not message.isprintable():
            sys.exit(f"message {message!r} of {text[:200]!r}")
        if slowest[0] > 0.01:
            sys.exit(f"{slowest[0] * 1e3:.1f} ms: {slowest[1][:200]!r}")
    print(f"{number} inputs, {read} of them workflows, slowest {slowest[0] * 1e3:.2f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Fuzz `parse`: python tests/twin/fuzz_program.py [inputs] [seed]. Mutations of good programs, grammar soup, raw noise.

Anything but a Workflow or a WorkflowError is a failure, and so is an input that takes 10 ms of CPU time or more.
"""

import random
import sys
import time

from twin import TOOLS, Workflow, WorkflowError, parse, render

WORDS = [t.name for t in TOOLS] + [a.name for t in TOOLS for a in t.arguments] + [
    "__class__", "__import__", "eval", "lambda", "not", "await", "yield", "if", "else", "None", "True", "nan", "inf", "1e999", "0x1f", "1_0", "1j",
    "(", ")", "[", "]", "{", "}", "=", ":=", "==", ",", ".", ";", ":", "-", "+", "*", "**", "/", "|", "@", "~", "\\", "'", '"', '"""', "#", "\n",
    "\r", "\t", "\f", " ", "\0", "\x1a", "é", "ｇ", "і", "\u202e", "\ud800", "f'", "b'", "\\N{DIGIT ONE}", "9" * 30, "(" * 50, "-" * 50, "a." * 50,
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


def inputs(rng):
    good = [render(Workflow()), render(Workflow(code_rate=0.83, detector="kbest", precoder="svd", num_transmissions=4))]
    while True:
        yield mutate(rng.choice(good), rng)
        yield "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 120)))
        yield "".join(chr(rng.randrange(256)) for _ in range(rng.randint(0, 400)))
        yield rng.choice(WORDS) * rng.choice((1, 10, 1000, 100_000))


def main(number=100_000, seed=0):
    rng, slowest, read = random.Random(seed), (0.0, ""), 0
    for _, text in zip(range(number), inputs(rng)):
        start = time.thread_time()
        try:
            read += isinstance(parse(text), Workflow)
        except WorkflowError:
            pass
        slowest = max(slowest, (time.thread_time() - start, text))
        if slowest[0] > 0.01:
            sys.exit(f"{slowest[0] * 1e3:.1f} ms: {slowest[1][:200]!r}")
    print(f"{number} inputs, {read} of them workflows, slowest {slowest[0] * 1e3:.2f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Fuzz everything that reads a response: f(a), strict and tolerant, the inferred quality of
service, the judge, and the verdict as the demo sends it.

python tests/faults/fuzz_responses.py [inputs] [seed]            a grammar of damaged responses
python tests/faults/fuzz_responses.py coverage [-runs=1000000]   guided by coverage, from these on

The second one needs atheris (pip install atheris).

A failure is anything but a Workflow or a word for what is wrong, a WorkflowError that cannot be
printed, a reward that is no number in [-1, 1], a verdict that is no JSON, a reader that takes 10 ms
of CPU time, memory that grows.
"""

import json
import math
import os
import random
import resource
import sys
import tempfile
import time
import types

from experiments.stages.orchestrate import held_against, result
from experiments.world import wording
from experiments.world.orchestration import (
    FIELDS,
    OPTIONAL,
    describe_workflow,
    read,
    translate,
    values,
)
from experiments.world.scoring import judge_readings
from experiments.world.tasks import Task, random_workflow
from experiments.world.tolerant import mend
from twin import QoS, Scenario, Workflow, WorkflowError

LIMIT_S = 0.01
LONGEST = 20_000  # characters; a response has some thousand tokens at most
MEMORY_MB = 64  # that a run may grow by once it is warm
SCENARIO = Scenario(absent=("detect.ep", "modulate.8"))
TASK = Task("hostile", "words", SCENARIO, 1.0, 5.0, 1e-3, kind="described")
SOUP = (
    [
        "<think>",
        "</think>",
        "QoS:",
        " Mbps",
        " kbps",
        " ms",
        " us",
        "PER 1e-",
        "PER 1e-999",
        "1e999",
    ]
    + [
        "9" * 4000,
        "0." + "0" * 300 + "1",
        "-1",
        "nan",
        "inf",
        "\0",
        "\u202e",
        "\ud800",
        "１２",
        "²",
    ]
    + ["120 kHz", "QPSK", "1 layer", "LDPC rate 0.20", "polar", "14 iterations", "1 DMRS"]
    + ["lmmse estimation", "ep detection", "deeprx detection", "svd precoding", "9 transmissions"]
    + ["chase combining", "12 PRB", "0 PRB", "9999 PRB", "<|im_end|>", "<result>", "</result>"]
    + ['"; import os', "grid(num_prb=1)", "__class__", "{}", "%s", "\n", "\r", "\t", ",", ".", " "]
)


class Instant:
    """A twin that answers at once: readers and judge are what is fuzzed."""

    def evaluate(self, pairs, progress=None):
        return [QoS(1.0, 5.0, 1e-4, 1e-4, 64, delays_ms=(1.0,), delivered=(1.0,)) for _ in pairs]


class Clock:
    """Calls functions; `slowest` is the CPU time of the longest call."""

    def __init__(self):
        self.slowest = 0.0

    def __call__(self, function, *arguments):
        start = time.thread_time()
        try:
            return function(*arguments)
        finally:
            self.slowest = max(self.slowest, time.thread_time() - start)


def checked(text: str) -> tuple[bool, float]:
    """(whether the text holds a workflow, CPU time of the slowest reader); raises AssertionError
    for a failure."""
    clock = Clock()
    try:
        assert isinstance(clock(translate, text), str)
    except WorkflowError as error:
        assert len(str(error)) <= 400 and "\n" not in str(error), str(error)[:500]
    workflow, failure = clock(read, text)
    assert (workflow is None) != (failure is None) and isinstance(failure or "", str)
    assert workflow is None or isinstance(workflow, Workflow)
    for name, start, stop in clock(values, text):
        assert name in FIELDS | OPTIONAL and 0 <= start < stop <= len(text)
    mended = clock(mend, text, SCENARIO)
    assert (mended.workflow is None) == (mended.failure is not None) and mended.repairs >= 0
    intent = clock(wording.read_intent, text)
    assert intent is None or all(math.isfinite(x) and x > 0 for x in intent), intent
    for inferred in (False, True):
        task, reading = clock(held_against, TASK, inferred, text)
        (judgement,) = clock(judge_readings, [task], [reading], Instant())
        assert -1 <= judgement.R <= 1, judgement
        json.dumps(clock(result, task, text, judgement), allow_nan=False)
    return workflow is not None, clock.slowest


def inputs(rng: random.Random):
    while True:
        good = TASK.response(random_workflow(rng, SCENARIO))
        yield good
        yield mutate(good, rng)
        yield describe_workflow(random_workflow(rng, Scenario())) + rng.choice(SOUP)
        yield "".join(rng.choice(SOUP) for _ in range(rng.randint(1, 80)))
        yield rng.choice(SOUP) * rng.choice((1, 10, 1000))
        yield "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randint(0, 300)))


def mutate(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(len(text) + 1), rng.randint(0, 20)
        insert = rng.choice((rng.choice(SOUP), text[at : at + 40], str(rng.randrange(10**6)), ""))
        text = text[:at] + insert + text[at + length :]
    return text


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(number: int = 100_000, seed: int = 0) -> None:
    rng, slowest, read_, warm = random.Random(seed), (0.0, ""), 0, 0.0
    for i, text in zip(range(number), inputs(rng)):
        text = text[:LONGEST]
        if i == number // 3:
            warm = memory_mb()
        try:
            is_workflow, seconds = checked(text)
        except Exception as error:
            sys.exit(f"{type(error).__name__}: {str(error)[:300]} of {text[:300]!r}")
        if seconds > LIMIT_S:  # again, for it may have been the garbage collector
            seconds = min(checked(text)[1] for _ in range(3))
        read_, slowest = read_ + is_workflow, max(slowest, (seconds, text))
        if seconds > LIMIT_S:
            sys.exit(f"{seconds * 1e3:.1f} ms: {text[:200]!r}")
    if (grown := memory_mb() - warm) > MEMORY_MB:
        sys.exit(f"memory grew by {grown:.0f} MB over the last two thirds of {number} inputs")
    print(
        f"{number} inputs, {read_} of them workflows, slowest {slowest[0] * 1e3:.2f} ms,"
        f" memory grew by {grown:.0f} MB"
    )


def guided(arguments: list[str]) -> None:
    import atheris

    # of what reads; all of JAX's and numba's functions would take minutes
    for module in list(sys.modules.values()):
        name = getattr(module, "__name__", None) or ""
        if name.startswith(("experiments.world", "twin.program")):
            for function in list(vars(module).values()):
                function = getattr(function, "__wrapped__", function)
                if isinstance(function, types.FunctionType) and function.__module__ == name:
                    atheris.instrument_func(function)

    def one(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        if checked(text)[1] > LIMIT_S:
            assert min(checked(text)[1] for _ in range(3)) <= LIMIT_S, text[:200]

    with tempfile.TemporaryDirectory() as corpus:
        for i, text in zip(range(300), inputs(random.Random(0))):
            with open(os.path.join(corpus, str(i)), "wb") as file:
                file.write(text[:4000].encode("utf-8", "replace"))
        atheris.Setup([sys.argv[0], *arguments, corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["coverage"]:
        guided(sys.argv[2:])
    else:
        main(*map(int, sys.argv[1:]))

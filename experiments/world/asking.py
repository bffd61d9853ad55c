"""Conversations of the link world: before it answers, a policy may ask what a workflow would do.

A question is a message that ends with `<call>...</call>`, a workflow in words inside. Where a quick
run of the twin finds all targets met, that workflow is the answer; else the world says in
`<result>...</result>` what was measured, on noise of its own, which is not the judge's, and which
targets it misses, and the policy goes on. It speaks as a user does in the chat; who wrote what is
known by the turn, so these words mean nothing elsewhere. The last message is the answer, question
or not.
"""

from typing import Sequence

from experiments.world.orchestration import END_THINK, number, power_of_ten, quantity, read
from experiments.world.scoring import Judgement, judge_readings
from experiments.world.tasks import Task
from rldtf_jax.reward import RewardConfig
from twin import Twin

CALL, END_CALL, RESULT, END_RESULT = "<call>", "</call>", "<result>", "</result>"
SLOTS = 16  # of a quick run of the twin


def question(text: str) -> str | None:
    """What a message asks about; None of an answer."""
    text = text.rstrip()
    if not text.endswith(END_CALL) or CALL not in text:
        return None
    return text.removesuffix(END_CALL).rpartition(CALL)[2]


def asking(response: str) -> str:
    """A response as a question about its workflow: what it says of its reasons stays outside.

    >>> asking("<think> 9 dB</think> Use 30 kHz.")
    '<think> 9 dB</think> <call>Use 30 kHz.</call>'
    """
    head, end, rest = response.rpartition(END_THINK)
    space = " " if end else ""
    return f"{head}{end}{space}{CALL}{rest.lstrip()}{END_CALL}"


def results(
    tasks: Sequence[Task], questions: Sequence[str], twin: Twin, config: RewardConfig
) -> list[str | None]:
    """The world's words to each question; None to one whose workflow meets all targets."""
    judgements = judge_readings(tasks, list(map(read, questions)), twin, config)
    return [None if one.fulfilled else said(task, one) for task, one in zip(tasks, judgements)]


def said(task: Task, judgement: Judgement) -> str:
    if judgement.qos is None:
        return f"{RESULT}cannot run: {judgement.failure}{END_RESULT}"
    delay_ms, throughput_mbps, errors = task.measured(judgement.qos)
    wanted_ms, wanted_mbps, wanted_errors = task.required
    missed = [
        name
        for name, misses in (
            ("delay", delay_ms > wanted_ms),
            ("throughput", throughput_mbps < wanted_mbps),
            ("errors", errors > wanted_errors),
        )
        if misses
    ]
    figures = ", ".join(
        (
            quantity(_two_digits(delay_ms), "ms", "us"),
            quantity(_two_digits(throughput_mbps), "Mbps", "kbps"),
            f"errors {power_of_ten(float(f'{errors:.0e}')) if errors else number(0)}",
        )
    )
    return (
        f"{RESULT}{figures}: {'misses ' + ', '.join(missed) if missed else 'all met'}{END_RESULT}"
    )


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")

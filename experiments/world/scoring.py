"""The judge, and a scorer for anyone's answers: text or workflow in, table out. Needs no JAX."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.statistics import mean_interval, shown, wilson
from experiments.world import wording
from experiments.world.orchestration import read
from experiments.world.reading import task_id
from experiments.world.search import judged, runs
from experiments.world.tasks import Task
from rldtf_jax.reward import NO_SERVICE, RewardConfig
from twin import QoS, Twin, Workflow

Answer = str | Workflow | None
Reading = tuple[Workflow | None, str | None]  # a workflow, or a word for why there is none
MEASURES = {  # of `score`, with the heads of `as_text`
    "fulfilment": "fulfilment",
    "score": "score of fulfilled",
    "mean_R": "mean R",
    "regret": "regret",
    "unusable": "unusable",
    "intent_error": "intent error",
}


class Judgement(NamedTuple):
    """R: Eq. 2; fulfilled: whether all targets are met; failure: None, or a word for why nothing
    was simulated; qos: what the twin measured, None after a failure."""

    R: float
    fulfilled: bool
    failure: str | None
    qos: QoS | None


def read_answer(answer: Answer) -> Reading:
    """(workflow, None), or (None, a word for what is wrong) of a text that does not parse and of no
    answer at all ("missing")."""
    if isinstance(answer, str):
        return read(answer)
    return answer, "missing" if answer is None else None


def judge(
    tasks: Sequence[Task],
    answers: Sequence[Answer],
    twin: Twin,
    config: RewardConfig = RewardConfig(),
) -> list[Judgement]:
    """What each answer is worth to its task: text, a workflow, or None for no answer.

    What does not parse, or asks for what the scenario lacks, gets NO_SERVICE and no simulation.

    Raises:
      ValueError: not as many answers as tasks.
    """
    return judge_readings(tasks, [read_answer(answer) for answer in answers], twin, config)


def judge_readings(
    tasks: Sequence[Task],
    readings: Sequence[Reading],
    twin: Twin,
    config: RewardConfig = RewardConfig(),
    progress: Callable[[int, int], None] | None = None,
) -> list[Judgement]:
    """Likewise of answers that were read already; a workflow that the scenario cannot run fails
    with the word "scenario". progress: see `Twin.evaluate`."""
    result, asked = [], []
    for i, (task, (workflow, failure)) in enumerate(zip(tasks, readings, strict=True)):
        if failure is None and not runs(task.scenario, workflow):
            failure = "scenario"
        if failure is None:
            asked.append(i)
        result.append(Judgement(NO_SERVICE, False, failure, None))
    pairs = [(tasks[i], readings[i][0]) for i in asked]
    for i, (R, met, qos) in zip(asked, judged(pairs, twin, config, progress)):
        result[i] = Judgement(R, met, None, qos)
    return result


def score(
    tasks: Sequence[Task],
    answers: Sequence[Answer],
    twin: Twin,
    config: RewardConfig = RewardConfig(),
) -> dict[str, list[dict[str, Any]]]:
    """One answer to every task, judged and summarised.

    Args:
      answers: text, a workflow, or None for no answer, which is judged as one that does not parse.
      twin: its noise should be none that tasks or answers were chosen on: give it the seed
        `worlds.noise_seed(seed, "evaluate")`.

    Returns:
      table: a row for all tasks and one for every kind of request, split and group of channels:
        {"stratum", "tasks": their number} and the MEASURES, each [value, low, high] with its 95 %
        interval (Wilson's of shares, bootstrapped of means), or None where there is nothing to
        measure:
          fulfilment     share of the tasks whose targets are all met
          score          mean R (Eq. 2) of these
          mean_R         mean R of all
          regret         mean of R of the task's witness, on the same noise, less R; of tasks that
                         have a witness. It may be negative.
          unusable       share of what does not parse, asks for what is not there, or is missing
          intent_error   mean `wording.intent_error` in decades, of the quality of service that a
                         text infers where the request does not state it; workflows infer none
      answers: {"task": its id, "R", "fulfilled", "failure"} in the order of the tasks.

    Raises:
      ValueError: not as many answers as tasks.
    """
    judgements = judge(tasks, answers, twin, config)
    known = [i for i, task in enumerate(tasks) if task.witness]
    witnesses = judge([tasks[i] for i in known], [tasks[i].witness for i in known], twin, config)
    regrets = {i: best.R - judgements[i].R for i, best in zip(known, witnesses)}
    intents = {
        i: wording.intent_error(wording.read_intent(answer or ""), task.required)
        for i, (task, answer) in enumerate(zip(tasks, answers))
        if task.infers and not isinstance(answer, Workflow)
    }
    strata: dict[str, list[int]] = {"all": list(range(len(tasks)))}
    for name, stratum in (
        ("kind", lambda task: task.kind),
        ("split", lambda task: task.split),
        ("channel", lambda task: task.scenario.channel.partition("-")[0]),
    ):
        for i in sorted(range(len(tasks)), key=lambda i: stratum(tasks[i])):
            strata.setdefault(f"{name} {stratum(tasks[i])}", []).append(i)
    table = []
    for name, rows in strata.items():
        some = [judgements[i] for i in rows]
        table.append(
            {
                "stratum": name,
                "tasks": len(rows),
                "fulfilment": _share([one.fulfilled for one in some]),
                "score": _mean([one.R for one in some if one.fulfilled]),
                "mean_R": _mean([one.R for one in some]),
                "regret": _mean([regrets[i] for i in rows if i in regrets]),
                "unusable": _share([one.failure is not None for one in some]),
                "intent_error": _mean([intents[i] for i in rows if i in intents]),
            }
        )
    return {
        "table": table,
        "answers": [
            {"task": task_id(task), "R": one.R, "fulfilled": one.fulfilled, "failure": one.failure}
            for task, one in zip(tasks, judgements)
        ],
    }


def as_text(table: Sequence[dict[str, Any]]) -> str:
    """The table of `score` in columns of text."""
    lines = [["", "tasks", *MEASURES.values()]]
    for row in table:
        estimates = (row[measure] for measure in MEASURES)
        lines.append(
            [
                row["stratum"],
                str(row["tasks"]),
                *("-" if one is None else shown(one) for one in estimates),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def _share(hits: Sequence[bool]) -> list[float] | None:
    return [sum(hits) / len(hits), *wilson(sum(hits), len(hits))] if hits else None


def _mean(values: Sequence[float]) -> list[float] | None:
    return [math.fsum(values) / len(values), *mean_interval(values)] if values else None

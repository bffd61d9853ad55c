"""A surrogate of the twin in training: the emulator's networks answer where all of them are sure
whether a workflow meets its targets, the twin everywhere else, and now and then there too.

Never asked in evaluation. What it spares and where it is wrong is counted (`Spared`).
"""

import hashlib
from typing import Callable, NamedTuple, Sequence

import numpy as np

from experiments.world.emulator import Emulator
from experiments.world.scoring import Judgement, Reading
from experiments.world.search import runs
from experiments.world.tasks import Task
from twin import Workflow


class Spared(NamedTuple):
    """Of N workflows: what the networks expect R to be, whether the targets are met, whether they
    answer instead of the twin, and whether the twin is asked all the same, to see.
    """

    reward_N: np.ndarray
    fulfilled_N: np.ndarray
    sure_N: np.ndarray
    audited_N: np.ndarray


Ask = Callable[[Sequence[Task], Sequence[Reading]], Sequence[Judgement]]  # of the twin


class Surrogate(NamedTuple):
    """sure: the probability, by every network, beyond which it answers. audit: the share of its
    answers that the twin is asked about, by the workflow and its task alone.
    """

    emulator: Emulator
    sure: float = 0.95
    audit: float = 0.05

    def __call__(self, pairs: Sequence[tuple[Task, Workflow]]) -> Spared:
        R_KxN, p_KxN = self.emulator.each(pairs)
        sure_N = (p_KxN.min(0) >= self.sure) | (p_KxN.max(0) <= 1 - self.sure)
        drawn_N = np.array([drawn(*pair) for pair in pairs])
        return Spared(R_KxN.mean(0), p_KxN.mean(0) > 0.5, sure_N, sure_N & (drawn_N < self.audit))

    def judge(
        self, tasks: Sequence[Task], readings: Sequence[Reading], ask: Ask
    ) -> tuple[list[Judgement], dict[str, float]]:
        """`judge_readings` by `ask`, but for what is spared; how many different workflows were, how
        many were audited, and of these how many verdicts were wrong.
        """
        pairs = {
            i: (task, workflow)
            for i, (task, (workflow, failure)) in enumerate(zip(tasks, readings))
            if failure is None and runs(task.scenario, workflow)
        }
        different = list(dict.fromkeys(pairs.values()))
        if not different:
            return list(ask(tasks, readings)), {}
        found, number = self(different), {pair: n for n, pair in enumerate(different)}
        of = {i: number[pair] for i, pair in pairs.items()}
        said = {
            i: Judgement(float(found.reward_N[n]), bool(found.fulfilled_N[n]), None, None)
            for i, n in of.items()
            if found.sure_N[n] and not found.audited_N[n]
        }
        asked = [i for i in range(len(tasks)) if i not in said]
        answers = ask([tasks[i] for i in asked], [readings[i] for i in asked])
        judgements = said | dict(zip(asked, answers))
        wrong = {
            n
            for i, n in of.items()
            if found.audited_N[n] and judgements[i].fulfilled != found.fulfilled_N[n]
        }
        return [judgements[i] for i in range(len(tasks))], {
            "spared": int((found.sure_N & ~found.audited_N).sum()),
            "audited": int(found.audited_N.sum()),
            "wrong": len(wrong),
        }


def drawn(task: Task, workflow: Workflow) -> float:
    """Uniform in [0, 1), a function of its arguments."""
    digest = hashlib.sha256(repr((task.request, task.scenario, workflow)).encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56

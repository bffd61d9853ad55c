"""What has been tried on links and what it earned, asked for the nearest: an answer without a model
and without the twin.

A link is its figures; the workflow that earned most on the nearest known one is taken over, on a
grant that carries as much beyond what is asked as it did there.
"""

import dataclasses
import math
from typing import Sequence

import numpy as np

from experiments.world.search import runs
from experiments.world.tasks import Task
from twin import Workflow


def figures(task: Task, channels: Sequence[str]) -> np.ndarray:
    """(F,) float64 of a request and its link, on scales on which a step is worth about as much
    everywhere.
    """
    s = task.scenario
    return np.array(
        [
            math.log10(task.throughput_mbps),
            math.log10(task.delay_ms),
            math.log10(task.ber),
            s.snr_db,
            math.log10(s.delay_spread_ns + 1),
            math.log10(s.speed_mps + 0.1),
            math.log2(s.num_tx_ant),
            math.log2(s.num_rx_ant),
            math.log10(s.max_prb),
            math.log10(s.compute_gflops),
            *(s.channel == channel for channel in channels),
        ],
        np.float64,
    )


class LinkMemory:
    """Tasks, workflows and rewards; of each task the workflow that earned most counts."""

    def __init__(self, known: Sequence[tuple[Task, Workflow, float]]):
        """Raises ValueError of nothing."""
        best: dict[Task, tuple[float, Workflow]] = {}
        for task, workflow, reward in known:
            if task not in best or reward > best[task][0]:
                best[task] = reward, workflow
        if not best:
            raise ValueError("known: expected a workflow and its reward at least")
        self.tasks = list(best)
        self.workflows = [workflow for _, workflow in best.values()]
        self.channels = tuple(sorted({task.scenario.channel for task in self.tasks}))
        rows = np.array([figures(task, self.channels) for task in self.tasks])
        self.mean, self.scale = rows.mean(0), rows.std(0) + 1e-9
        self.rows = (rows - self.mean) / self.scale

    def nearest(self, task: Task) -> Workflow | None:
        """Of the nearest known link whose workflow runs on this one; the task itself is not asked.
        None where none runs.
        """
        far = np.linalg.norm(
            self.rows - (figures(task, self.channels) - self.mean) / self.scale, axis=1
        )
        for i in np.argsort(far, kind="stable"):
            if self.tasks[i] != task:
                workflow = taken_over(self.workflows[i], self.tasks[i], task)
                if runs(task.scenario, workflow):
                    return workflow
        return None


def taken_over(workflow: Workflow, there: Task, here: Task) -> Workflow:
    """On the grant that carries as many times what is asked here as it did there, as far as there
    are resource blocks.
    """
    times = here.throughput_mbps / there.throughput_mbps
    blocks = math.ceil(workflow.num_prb * times - 1e-9)
    return dataclasses.replace(workflow, num_prb=max(1, min(here.scenario.max_prb, blocks)))

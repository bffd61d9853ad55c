"""A memory of links: what the nearest one did, on a grant of the same spare share."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.world import memory, worlds
from experiments.world.baselines import sturdiest
from experiments.world.memory import LinkMemory, figures, taken_over
from experiments.world.orchestration import each_prb_mbps
from experiments.world.search import runs

TASKS = [
    task
    for task in itertools.islice(worlds.candidates(worlds.family("link-lite"), "memory"), 60)
    if sturdiest(task)
]
KNOWN = [(task, sturdiest(task), 0.5) for task in TASKS]


@pytest.fixture(scope="module")
def full():
    return LinkMemory(KNOWN)


def test_a_link_that_hardly_differs_gets_the_workflow_that_earned_most(full):
    for task, workflow, _ in KNOWN[:10]:
        twin = dataclasses.replace(
            task, scenario=dataclasses.replace(task.scenario, snr_db=task.scenario.snr_db + 0.01)
        )
        assert full.nearest(twin) == taken_over(workflow, task, twin)
        worse = dataclasses.replace(workflow, num_prb=1)
        both = LinkMemory([(task, worse, 0.2), *KNOWN, (task, worse, 0.4)])
        assert both.nearest(twin) == full.nearest(twin)


def test_a_link_is_not_told_its_own_answer(full):
    alone = LinkMemory(KNOWN[:1])
    assert alone.nearest(TASKS[0]) is None
    others = LinkMemory(KNOWN[1:])
    # the scale of figures is that of all that is known, so distances agree but for a factor
    others.mean, others.scale = full.mean, full.scale
    others.rows = full.rows[1:]
    assert full.nearest(TASKS[0]) == others.nearest(TASKS[0])


@given(st.sampled_from(TASKS), st.sampled_from(range(len(KNOWN))))
def test_what_is_taken_over_carries_as_much_beyond_what_is_asked(here, i):
    there, workflow, _ = KNOWN[i]
    moved = taken_over(workflow, there, here)
    each = each_prb_mbps(workflow)
    assert dataclasses.replace(moved, num_prb=workflow.num_prb) == workflow
    spare = workflow.num_prb * each / there.throughput_mbps
    if moved.num_prb < here.scenario.max_prb:
        assert moved.num_prb * each >= spare * here.throughput_mbps * (1 - 1e-9)
    assert moved.num_prb == 1 or (moved.num_prb - 1) * each < spare * here.throughput_mbps
    assert taken_over(workflow, there, there) == workflow


@given(st.sampled_from(TASKS))
def test_what_it_answers_runs_on_the_platform(full, task):
    found = full.nearest(task)
    assert found is not None and runs(task.scenario, found)
    assert np.isfinite(figures(task, full.channels)).all()


def test_of_nothing_there_is_no_memory():
    with pytest.raises(ValueError, match="expected a workflow"):
        memory.LinkMemory([])

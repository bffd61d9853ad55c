"""Rejection sampling: what is kept, and the round of practice before the first."""

import os

import numpy as np
from hypothesis import given, strategies as st

from experiments.config import ExperimentConfig, RejectConfig, TasksConfig
from experiments.stages.reject import keep, practise, practised_rows
from experiments.stages.run import Run
from experiments.world import tasks as task_files
from experiments.world import worlds
from rldtf_jax.tokenizer import train_bpe
from twin import Twin

ROWS = st.lists(st.fixed_dictionaries({
    "task": st.integers(0, 3), "response": st.sampled_from("abcde"), "reward": st.floats(-1, 1), "fulfilled": st.booleans()}), max_size=40)


@given(ROWS, st.integers(1, 3), st.sampled_from(("newest", "reward")))
def test_kept_are_distinct_responses_that_fulfil_at_most_so_many_a_task(rows, number, by):
    kept = keep(rows, number, by)
    assert all(row["fulfilled"] for row in kept)
    for task in range(4):
        mine = [row for row in kept if row["task"] == task]
        good = {row["response"] for row in rows if row["task"] == task and row["fulfilled"]}
        assert len({row["response"] for row in mine}) == len(mine) == min(number, len(good))
        best = sorted((max(row["reward"] for row in rows if row["task"] == task and row["fulfilled"] and row["response"] == response)
                       for response in good), reverse=True)
        if by == "reward":
            assert [row["reward"] for row in mine] == best[:number]


def test_newest_keeps_the_first_rows():
    rows = [{"task": 0, "response": name, "reward": reward, "fulfilled": True} for name, reward in (("a", 0.1), ("b", 0.9), ("c", 0.5))]
    assert [row["response"] for row in keep(rows, 2, "newest")] == ["a", "b"]
    assert [row["response"] for row in keep(rows, 2, "reward")] == ["b", "c"]


def test_practice_finds_tasks_with_workflows_that_fulfil_them_on_the_noise_of_training(tmp_path):
    config = ExperimentConfig(run_dir=str(tmp_path), tasks=TasksConfig(family="link-lite"), reject=RejectConfig(practice=80))
    train = task_files.load_splits(os.path.join(task_files.DATA, "link-lite"))["train"][:5]
    with Twin(workers=2, cache=None, seed=worlds.noise_seed(0, "train"), method="esm", max_blocks=128) as twin:
        run = Run(config, lambda purpose: twin, {"train": train}, train_bpe([task.prompt() for task in train], 400))
        practise(run)
        found = run.practised()
        assert 4 < len(found) < 60 and {task.split for task in found} == {"train"}
        assert [task.scenario for task in run.environment("train").tasks] == [task.scenario for task in [*train, *found]]
        rows = practised_rows(run)
        verdict = run.environment("train").judge_text(found, [row["response"] for row in rows])
        np.testing.assert_array_equal(verdict.reward_M, np.float32([row["reward"] for row in rows]))
        assert verdict.fulfilled_M.all() and [row["task"] for row in rows] == list(range(5, 5 + len(found)))
        before = os.stat(path := run.path("reject", "practised.jsonl")).st_mtime_ns
        practise(run)
        assert os.stat(path).st_mtime_ns == before

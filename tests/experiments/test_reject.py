"""Rejection sampling: what is kept, and which tasks are left to RLDTF."""

import json
import os
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from experiments.config import ExperimentConfig, TasksConfig
from experiments.stages.reject import feasible, keep, practised
from experiments.stages.run import Run
from experiments.world import tasks as task_files
from rldtf_jax.tokenizer import train_bpe

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "task": st.integers(0, 3),
            "response": st.sampled_from("abcde"),
            "reward": st.floats(-1, 1),
            "fulfilled": st.booleans(),
        }
    ),
    max_size=40,
)


@given(ROWS, st.integers(1, 3))
def test_kept_are_distinct_responses_that_fulfil_at_most_so_many_a_task(rows, number):
    kept = keep(rows, number)
    assert all(row["fulfilled"] for row in kept)
    for task in range(4):
        mine = [row for row in kept if row["task"] == task]
        good = {row["response"] for row in rows if row["task"] == task and row["fulfilled"]}
        assert len({row["response"] for row in mine}) == len(mine) == min(number, len(good))
        assert [row["response"] for row in mine] == list(
            dict.fromkeys(
                # the first, newest ones
                row["response"]
                for row in rows
                if row["task"] == task and row["fulfilled"]
            )
        )[:number]


def test_rldtf_trains_on_what_a_search_or_a_sampled_response_has_fulfilled(tmp_path):
    config = ExperimentConfig(
        run_dir=str(tmp_path), tasks=TasksConfig(family="link-lite", practice=6)
    )
    train = task_files.load_splits(os.path.join(task_files.DATA, "link-lite"))["train"][:3]
    run = Run(
        config,
        lambda purpose: None,
        {"train": train},
        train_bpe([task.prompt() for task in train], 400),
    )
    everything = run.environment("train").tasks
    assert everything == [*train, *run.practice] and len(run.practice) == 6
    assert feasible(run) == [0, 1, 2]
    for number, rows in ((1, [(1, True), (4, False), (5, True)]), (2, [(8, True), (5, False)])):
        path = tmp_path / "reject" / f"round_{number}" / "sampled.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(
            "".join(
                json.dumps({"task": i, "response": "", "reward": 0.0, "fulfilled": good}) + "\n"
                for i, good in rows
            )
        )
    assert feasible(run) == [0, 1, 2, 5, 8]
    assert run.environment("train", only=feasible(run)).tasks == [
        everything[i] for i in (0, 1, 2, 5, 8)
    ]
    assert practised(run) == feasible(run)
    run.config = replace(config, tasks=replace(config.tasks, only_feasible=False))
    assert practised(run) == list(range(9))

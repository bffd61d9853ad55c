"""What phase 1 practises on: tasks of the split train alone, and rows of which none pads all
others.
"""

import dataclasses
import itertools
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import ExperimentConfig, TasksConfig, load
from experiments.stages.instruct import LONGEST, instruct, reading, trimmed
from experiments.stages.run import Run, practice, prepare_tokenizer, stage_model
from rldtf_jax import hf
from rldtf_jax.config import ConfigError
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.sft import Sequences
from twin import Workflow


def test_practice_is_drawn_anew_without_end_and_never_from_a_held_out_split(drawn):
    config = ExperimentConfig(tasks=TasksConfig(family="link-lite"))
    some, other = (
        list(itertools.islice(practice(dataclasses.replace(config, seed=seed), drawn), 300))
        for seed in (0, 1)
    )
    assert {task.split for task in some} == {"train"} and {task.family for task in some} == {
        "link-lite"
    }
    assert len({(task.scenario, task.required) for task in some + other}) > 590


def test_what_later_stages_practise_on_is_not_what_phase_1_has_seen(drawn):
    config = ExperimentConfig(tasks=TasksConfig(family="link-lite"))
    first, later = (
        list(itertools.islice(practice(config, drawn, stage), 200)) for stage in ("", "practice")
    )
    assert not {(task.scenario, task.required) for task in first} & {
        (task.scenario, task.required) for task in later
    }


def test_practice_on_ones_own_tasks_is_these_again_and_again(drawn, tmp_path):
    config = ExperimentConfig(tasks=TasksConfig(directory=str(tmp_path)))
    assert list(itertools.islice(practice(config, drawn[:3]), 7)) == [
        *drawn[:3],
        *drawn[:3],
        drawn[0],
    ]


def test_a_phase_1_that_ships_is_taken_as_it_is_and_can_be_gone_on_from(drawn, tmp_path):
    config = load(["preset=quickstart", f"run_dir={tmp_path}"])
    tok = prepare_tokenizer(config, drawn)
    run = Run(config, lambda purpose: None, {"train": drawn}, tok)
    ours, shipped = (nnx.state(model) for model in (instruct(run), hf.load(config.model.directory)))
    jax.tree.map(np.testing.assert_array_equal, ours, shipped)
    again = load(
        ["preset=quickstart", f"run_dir={tmp_path}", f"model.hf_dir={tmp_path}/instruct/model"]
    )
    assert prepare_tokenizer(again, drawn).apply_chat(drawn[0].prompt()) == tok.apply_chat(
        drawn[0].prompt()
    )
    assert (
        json.loads((tmp_path / "instruct" / "model" / "config.json").read_text())["eos_token_id"]
        == tok.eos_id
    )


def test_an_hf_directory_in_bfloat16_is_trained_in_float32_and_computed_in_bfloat16(
    drawn, tmp_path
):
    tok = prepare_tokenizer(load(["preset=smoke", f"run_dir={tmp_path}"]), drawn)
    shape = Qwen2Config.preset(
        "tiny", vocab_size=tok.vocab_size, dtype="bfloat16", param_dtype="bfloat16"
    )
    hf.save(
        Qwen2(shape, rngs=nnx.Rngs(0)),
        tmp_path / "theirs",
        {"tokenizer.json": tok.backend.to_str()},
        tok.eos_id,
    )
    config = load(
        [
            "preset=smoke",
            "model=hf",
            f"model.hf_dir={tmp_path}/theirs",
            f"run_dir={tmp_path}/run",
            "instruct.teacher=random",
            "instruct.reading=null",
            "instruct.pairs=40",
            "instruct.per_task=1",
            "instruct.sft.steps=2",
            "instruct.sft.batch_size=8",
        ]
    )
    run = Run(config, lambda purpose: None, {"train": drawn}, tok)
    trained, theirs = instruct(run), hf.load(tmp_path / "theirs")
    for model in (trained, stage_model(run, "instruct")):
        assert (model.config.dtype, model.config.param_dtype, model.config.remat) == (
            "bfloat16",
            "float32",
            True,
        )
        for x, y in zip(*(jax.tree.leaves(nnx.state(one)) for one in (model, theirs))):
            assert (
                x.dtype == np.float32
                and y.dtype == jax.numpy.bfloat16
                and np.any(np.asarray(x) != np.asarray(y, np.float32))
            )
    again = hf.load(tmp_path / "run" / "instruct" / "model")
    assert again.config.param_dtype == "float32"


def test_without_steps_there_must_be_a_model():
    with pytest.raises(
        ConfigError, match="instruct.sft = None: expected steps to train for, or a model.hf_dir"
    ):
        load(["preset=quickstart", "model=tiny"])


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=60))
def test_only_the_longest_rows_are_left_out_and_no_token_of_the_others(sizes):
    rows = Sequences.of([([7] * p, [8] * r) for p, r in sizes])
    kept = trimmed(rows)
    width = kept.tokens.shape[1]
    left_out = np.sort(rows.lengths)[len(kept.lengths) :]
    assert (
        len(left_out) <= LONGEST * len(sizes)
        and kept.lengths.max() <= width <= rows.tokens.shape[1]
        and width % 8 == 0
    )
    assert (left_out > kept.lengths.max()).all()
    assert (np.count_nonzero(kept.tokens, axis=1) == kept.lengths).all()


def test_the_think_line_begins_with_a_literal_copy_of_the_prompt(drawn):
    for task in drawn:
        copied = re.search(r"<think> (SNR .*? PRB):", task.response(Workflow()))
        assert copied and copied.group(1) in task.prompt()


def test_lessons_in_reading_ask_for_the_think_line_and_show_no_tools(drawn):
    for task, (read, thought) in zip(drawn, reading(drawn), strict=True):
        assert (
            "Tools:" not in read
            and task.request not in read
            and thought in task.response(Workflow())
        )

"""The rival that learns from the twin's verdicts: it learns what can be learnt, and answers with
what the platform can run.
"""

import dataclasses
import os
import random
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import EmulatorConfig, load
from experiments.files import json_lines
from experiments.stages.emulate import emulated
from experiments.stages.reject import all_sampled
from experiments.stages.rldtf import practice_environment, value_model
from experiments.stages.run import opened, stage_model
from experiments.studies import emulator as study
from experiments.studies import fresh, seeds
from experiments.world import emulator
from experiments.world.baselines import rewards
from experiments.world.orchestration import read
from experiments.world.search import runs
from experiments.world.tasks import HELD_OUT, random_workflow
from experiments.world.worlds import family
from rldtf_jax import metrics, rldtf
from rldtf_jax.config import ConfigError
from rldtf_jax.reward import RewardConfig


def made_up(R, seed=0, n=1500):
    """Verdicts of 300 tasks; R and fulfilment are functions of six figures."""
    x = np.random.default_rng(seed).normal(3.0, 2.0, (n, 6)).astype(np.float32)
    rewards = R(x).astype(np.float32)
    return emulator.Verdicts(x, rewards, (rewards > 0).astype(np.float32), np.arange(n) % 300)


def test_what_is_a_function_of_the_figures_is_learnt_and_noise_is_not():
    data = made_up(lambda x: np.tanh(x[:, 0] - x[:, 1] + 0.5 * np.sin(x[:, 2])))
    fitted = emulator.fit(data)
    assert fitted.explained_variance > 0.9 and fitted.accuracy > 0.9
    R, p = fitted.of_figures(data.features)
    assert (
        np.corrcoef(R, data.rewards)[0, 1] > 0.95
        and ((p > 0.5) == (data.fulfilled > 0)).mean() > 0.9
    )
    noise = emulator.fit(made_up(lambda x: np.random.default_rng(1).normal(size=len(x))), epochs=5)
    assert noise.explained_variance < 0.1 and 0.3 < noise.accuracy < 0.7


@given(st.integers(0, 1 << 31))
@settings(max_examples=20, deadline=None)
def test_every_figure_is_finite_and_every_answer_runs(drawn, seed):
    rng = random.Random(seed)
    task, channels = rng.choice(drawn), ["awgn", "tdl-a"]
    x = emulator.features(task, random_workflow(rng, task.scenario), channels)
    assert np.isfinite(x).all() and x[-2:].tolist() == [
        float(task.scenario.channel == channel) for channel in channels
    ]
    options = study.answers(task, rng, RewardConfig())
    assert len(set(options)) == len(options) and all(runs(task.scenario, w) for w in options)


def test_it_answers_the_held_out_tasks_of_a_run(finished, tmp_path):
    with opened(load(["preset=smoke", f"run_dir={finished[0]}", "rldtf.steps=6"])) as run:
        found = study.study(run)
        assert set(HELD_OUT) < set(found) and found["explained_variance"] < 1
        for split in HELD_OUT:
            assert (
                0 <= found[split]["emulator"]["fulfilment"] <= 1
                and found[split]["emulator"]["reward"] <= 1
            )
        assert study.table(found).count("\n") == 1 + len(HELD_OUT)
    with opened(load(["preset=smoke", f"run_dir={tmp_path}/new"]), start_twin=False) as run:
        with pytest.raises(ConfigError, match="expected samples of rejection sampling"):
            study.study(run)


def test_the_twin_is_asked_about_what_the_emulator_likes_best_and_a_kill_asks_nothing_again(
    finished, tmp_path
):
    with opened(load(["preset=smoke", f"run_dir={finished[0]}", "rldtf.steps=6"])) as first:
        run = dataclasses.replace(
            first,
            config=dataclasses.replace(
                first.config, run_dir=str(tmp_path), emulator=EmulatorConfig(rounds=2, starts=25)
            ),
        )
        shutil.copytree(first.path("reject"), run.path("reject"))
        tasks, sampled = run.tasks_of("train"), all_sampled(run)
        emulated(run)
        asked = [json_lines(run.path("emulator", f"round_{number}.jsonl")) for number in (1, 2)]
        before = {(row["task"], read(row["response"])[0]) for row in sampled}
        for rows in asked:
            pairs = [(row["task"], read(row["response"])[0]) for row in rows]
            assert (
                25 <= len(pairs) <= 50 and len(set(pairs)) == len(pairs) and not before & set(pairs)
            )
            R, good = rewards(
                [tasks[i] for i, _ in pairs],
                [w for _, w in pairs],
                run.twin,
                run.config.rldtf.reward,
            )
            np.testing.assert_allclose([row["reward"] for row in rows], R)
            assert [row["fulfilled"] for row in rows] == good.tolist()
            before |= set(pairs)
        liked = emulated(run)([(tasks[row["task"]], read(row["response"])[0]) for row in asked[1]])[
            0
        ].mean()
        ran = [
            (tasks[row["task"]], w)
            for row in sampled
            if (w := read(row["response"])[0]) and runs(tasks[row["task"]].scenario, w)
        ]
        assert liked > emulated(run)(ran)[0].mean()
        whole = open(run.path("emulator", "emulator.npz"), "rb").read()
        os.remove(run.path("emulator", "emulator.npz"))
        os.remove(run.path("emulator", "round_2.jsonl"))
        simulated = run.twin.stats.simulated
        emulated(run)
        assert (
            open(run.path("emulator", "emulator.npz"), "rb").read() == whole
            and run.twin.stats.simulated == simulated
        )


def test_fresh_tasks_are_of_their_splits_and_compared_as_the_others_are(finished, monkeypatch):
    monkeypatch.setattr(fresh, "TASKS", {"test": 9, "new-links": 5})
    drawn = fresh.draw(family("link-lite"), fresh.TASKS)
    assert {
        split: len(some) for split, some in drawn.items()
    } == fresh.TASKS and drawn == fresh.draw(family("link-lite"), fresh.TASKS)
    assert all(task.split == split for split, some in drawn.items() for task in some)
    with opened(load(["preset=smoke", f"run_dir={finished[0]}", "rldtf.steps=6"])) as run:
        found = fresh.study(run)
        assert {
            split: part["num_tasks"]
            for split, part in {"test": found, **found["elsewhere"]}.items()
        } == fresh.TASKS
        assert set(found["methods"]) == {
            "instruct",
            "reject",
            "rldtf",
            "sturdiest",
            "rule",
        } and os.path.exists(run.path("fresh_at_1.json"))
        assert len(run.tasks["test"]) == 12  # the run's own are as they were
        result = seeds.compare([seeds.load(run.config.run_dir, "fresh_at_1.json")] * 2)
        assert set(result["test"]["sturdiest"]["gain"]) == {"fulfilled", "reward"}


def test_rldtf_learns_from_what_an_emulator_of_its_run_expects(finished, tmp_path):
    """`advantage=expected`: fitted once, kept, and asked about the policy's own alternatives."""
    with opened(load(["preset=smoke", f"run_dir={finished[0]}", "rldtf.steps=6"])) as first:
        config = dataclasses.replace(
            first.config.rldtf,
            advantage="expected",
            with_critic=False,
            perturb="paper",
            alpha=0.0,
            steps=2,
        )
        run = dataclasses.replace(
            first,
            config=dataclasses.replace(
                first.config, run_dir=str(tmp_path), emulator=EmulatorConfig(rounds=2, starts=20)
            ),
        )
        with pytest.raises(ConfigError, match="expected samples of rejection sampling"):
            practice_environment(run, config)
        shutil.copytree(first.path("reject"), run.path("reject"))
        environment = practice_environment(run, config)
        again = practice_environment(run, config).emulator
        pairs = [(task, task.witness) for task in environment.tasks[:5]]
        np.testing.assert_array_equal(environment.emulator(pairs), again(pairs))
        assert again.channels == tuple(
            sorted({task.scenario.channel for task in run.tasks_of("train")})
        )
        policy = stage_model(run, "reject")
        model = rldtf.train(
            policy,
            value_model(policy, 0),
            environment,
            config,
            seed=0,
            directory=run.path("rldtf"),
            boards=(),
        )
        seen = metrics.read(run.path("rldtf"))
        assert len(seen) == 2 and all(
            row["imagined/workflows"] >= 0 and np.isfinite(row["loss"]) for row in seen
        )
        moved = [
            np.abs(x - y).max()
            for x, y in zip(
                *(
                    map(np.asarray, jax.tree.leaves(nnx.state(m)))
                    for m in (model, stage_model(run, "reject"))
                )
            )
        ]
        assert max(moved) > 0

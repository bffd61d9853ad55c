"""RLDTF runs: the caller's models, divergence, kills and interrupts in real processes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from resuming import assert_killed_and_resumed_equals_never_killed, moments, start
from tiny_training import RL, HighTokens, critic, policy

from rldtf_jax import lora, rldtf
from rldtf_jax.checkpoint import OtherState
from rldtf_jax.loop import Diverged
from rldtf_jax.metrics import read

POLICY, CRITIC = policy(0), critic(1)
ONE = dataclasses.replace(RL, epochs=1, minibatches=1)  # one update a step


def assert_equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_training_leaves_the_callers_models_alone_and_returns_the_policy_it_saved(tmp_path):
    before = jax.device_get((nnx.state(POLICY), nnx.state(CRITIC)))
    config = dataclasses.replace(ONE, steps=3)
    trained, again = (
        rldtf.train(
            POLICY, CRITIC, HighTokens(), config, seed=3, directory=str(tmp_path), boards=()
        )
        for _ in range(2)
    )
    assert_equal(jax.device_get((nnx.state(POLICY), nnx.state(CRITIC))), before)
    assert_equal(nnx.state(trained), nnx.state(again))
    assert not jax.tree.all(jax.tree.map(np.array_equal, nnx.state(trained), nnx.state(POLICY)))
    assert len(read(str(tmp_path))) == 3


def test_with_lora_the_checkpoints_hold_the_deltas_and_the_model_comes_back_merged(tmp_path):
    config = dataclasses.replace(ONE, steps=2, lora_rank=2)
    trained, again = (
        rldtf.train(
            POLICY, CRITIC, HighTokens(), config, seed=3, directory=str(tmp_path), boards=()
        )
        for _ in range(2)
    )
    assert_equal(nnx.state(trained), nnx.state(again))  # the second only reads the last checkpoint
    deltas = lora.split(nnx.state(POLICY), 2, jax.random.key(0))[1]
    for name, (a, b) in deltas.items():  # noqa: B007
        key = name.split("'")[-2]
        delta = np.asarray(trained.layers[key][...] - POLICY.layers[key][...], np.float64)
        assert 0 < np.abs(delta).max() and (np.linalg.matrix_rank(delta, tol=1e-4) <= 2).all()
    np.testing.assert_array_equal(trained.embed[...], POLICY.embed[...])
    record = json.loads((tmp_path / "checkpoints" / "2" / "meta" / "metadata").read_text())[
        "record"
    ]
    in_checkpoint = "".join(name for name in record["layout"])
    assert "wq" in in_checkpoint and "embed" not in in_checkpoint


def test_a_checkpoint_knows_its_run_and_goes_on_in_no_other(tmp_path):  # TRAPS 13
    def train(config=ONE, seed=3, sweep="alpha"):
        return rldtf.train(
            POLICY,
            CRITIC,
            HighTokens(),
            dataclasses.replace(config, steps=2),
            seed=seed,
            directory=str(tmp_path),
            boards=(),
            sweep=sweep,
        )

    train()
    record = json.loads((tmp_path / "checkpoints" / "2" / "meta" / "metadata").read_text())[
        "record"
    ]
    meta, layout = record["meta"], record["layout"]
    for part in (
        "learner.policy",
        "learner.critic",
        "learner.opt_policy",
        "learner.opt_critic",
        ".reference",
    ):
        assert any(part in name for name in layout), part
    assert meta["seed"] == 3 and meta["sweep"] == "alpha" and meta["config.alpha"] == ONE.alpha
    assert (
        meta["config.policy.lr"] == ONE.policy.lr
        and meta["position.data"] == 2 * ONE.prompts_per_step
    )
    assert (
        meta["position.prng_key_data"]
        == np.asarray(jax.random.key_data(rldtf.step_key(3, 2))).tolist()
    )
    assert meta["metrics_position"] == os.path.getsize(tmp_path / "metrics.jsonl")
    for other, message in [
        (
            dict(config=dataclasses.replace(ONE, alpha=2.0)),
            "config.alpha is 1.0 there and 2.0 here",
        ),
        (dict(sweep="lr"), "sweep is 'alpha' there and 'lr' here"),
        (dict(seed=4), r"position.prng_key_data is \[0, 3\]|position.prng_key_data is"),
    ]:
        with pytest.raises(
            OtherState, match=f"the checkpoint of step 2 is of another run: {message}"
        ):
            train(**other)


def test_a_run_whose_newest_checkpoint_is_damaged_says_so_goes_back_one_and_ends_the_same(tmp_path):
    def train():
        model = rldtf.train(
            POLICY,
            CRITIC,
            HighTokens(),
            dataclasses.replace(ONE, steps=3),
            seed=3,
            directory=str(tmp_path),
            boards=(),
        )
        return jax.device_get(nnx.state(model)), (tmp_path / "metrics.jsonl").read_bytes()

    params, metrics = train()
    largest = max((tmp_path / "checkpoints" / "3" / "state").rglob("d/*"), key=os.path.getsize)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(content)
    with pytest.warns(
        UserWarning,
        match="checkpoints/3 is damaged and was moved to .* going back to the one before",
    ):
        again = train()
    assert_equal(again[0], params)
    assert again[1] == metrics


def test_three_updates_in_a_row_that_are_not_finite_stop_the_run_and_a_rerun_goes_on(tmp_path):
    def train(env):
        return rldtf.train(POLICY, CRITIC, env, ONE, seed=3, directory=str(tmp_path), boards=())

    class BreaksAt2(HighTokens):
        def judge(self, tasks, responses, policy=None):
            broken = getattr(self, "calls", 0) >= 2
            self.calls = getattr(self, "calls", 0) + 1
            verdict = super().judge(tasks, responses)
            return verdict._replace(reward_M=verdict.reward_M * np.nan) if broken else verdict

    with pytest.raises(Diverged, match="3 updates in a row were not finite by step 5"):
        train(BreaksAt2())
    assert [row["skipped"] for row in read(str(tmp_path))] == [0, 0, 1, 2, 3]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(nnx.state(train(HighTokens()))))
    assert [row["skipped_in_a_row"] for row in read(str(tmp_path))] == [0, 0, 1, 2, 3, 0, 0, 0]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Compiled programs that the processes share."""
    return tmp_path_factory.mktemp("programs")


# TRAPS 26
def test_killed_at_any_moment_and_resumed_it_ends_as_a_run_never_killed(tmp_path, programs):
    ten = moments(0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 6)
    assert_killed_and_resumed_equals_never_killed("rldtf", tmp_path, programs, ten)


def test_an_interrupt_ends_cleanly_with_the_step_saved(tmp_path, programs):
    stopped = start("rldtf", tmp_path, signal.SIGINT.value, 2, 0, cache=programs)
    rows = read(str(tmp_path))
    assert (
        stopped.stdout == "[1]\n"
        and f"Interrupted: {tmp_path}: stopped after step {len(rows)} of 8" in stopped.stderr
    )
    assert 2 <= len(rows) < 8 and str(len(rows)) in os.listdir(tmp_path / "checkpoints")
    assert start("rldtf", tmp_path, cache=programs).returncode == 0
    assert [row["step"] for row in read(str(tmp_path))] == list(range(8))


def test_the_package_imports_neither_torch_nor_the_twin_nor_the_experiments():
    modules = subprocess.run(
        [sys.executable, "-c", "import sys, rldtf_jax.rldtf, rldtf_jax.sft; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "tensorflow", "sionna", "twin", "experiments"} & set(modules)

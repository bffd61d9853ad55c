"""RLDTF as a call, and the names that stay."""

import dataclasses
import importlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_training import ONE, SHAPE, HighTokens, Recording, critic, policy

import rldtf_jax
from rldtf_jax import rldtf
from rldtf_jax.loop import Diverged

QUICK = dataclasses.replace(ONE, steps=4)


def weights(model):
    return list(map(np.asarray, jax.tree.leaves(nnx.state(model))))


def test_a_call_trains_and_leaves_the_given_policy_and_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, seen = policy(), []
    before = weights(given)
    trained, history = rldtf_jax.train(
        given,
        HighTokens(),
        QUICK,
        critic=critic(),
        seed=3,
        on_step=lambda step, row: seen.append((step, row["reward"])),
    )
    assert [row["step"] for row in history] == list(range(4)) and seen == [
        (row["step"], row["reward"]) for row in history
    ]
    assert all((a == b).all() for a, b in zip(before, weights(given)))
    assert any((a != b).any() for a, b in zip(before, weights(trained)))
    assert not list(tmp_path.iterdir())


def test_it_is_the_stages_training_to_the_bit_with_a_directory_or_without(tmp_path):
    asked = dict(critic=critic(), seed=3)
    free, history = rldtf_jax.train(policy(), HighTokens(), QUICK, **asked)
    kept, recorded = rldtf_jax.train(
        policy(), HighTokens(), QUICK, directory=str(tmp_path / "kept"), **asked
    )
    staged = rldtf.train(
        policy(),
        critic(),
        HighTokens(),
        QUICK,
        seed=3,
        directory=str(tmp_path / "staged"),
        boards=(),
    )
    for other in (kept, staged):
        assert all((a == b).all() for a, b in zip(weights(free), weights(other), strict=True))
    assert [row["reward"] for row in recorded] == pytest.approx(
        [float(row["reward"]) for row in history], rel=1e-6
    )


def test_without_a_critic_a_fresh_head_stands_on_the_policys_backbone():
    env = Recording()
    trained, _ = rldtf_jax.train(policy(), env, dataclasses.replace(QUICK, steps=1))
    assert trained.config == SHAPE and env.asked


def test_what_is_not_finite_ends_it():
    with pytest.raises(Diverged, match="by step 3"):
        rldtf_jax.train(
            policy(),
            Recording(lambda R: R * np.nan),
            dataclasses.replace(QUICK, steps=6, advantage="paper"),
            critic=critic(),
        )


def test_the_stable_names_are_there_and_come_from_where_they_are_documented():
    for name in rldtf_jax.__all__:
        found = getattr(rldtf_jax, name)
        assert (
            found is getattr(importlib.import_module(f"rldtf_jax.{rldtf_jax._HOME[name]}"), name)
            and (found.__doc__ or "").strip()
        ), name
    assert set(rldtf_jax.__all__) <= set(dir(rldtf_jax))
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = rldtf_jax.nosuch


def test_the_reward_alone_needs_no_jax():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, rldtf_jax; rldtf_jax.RewardConfig(); assert 'jax' not in sys.modules",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

"""Arms that train together do what each does alone: the same questions to the twin, the same
results.

To the bit where a group is one arm. Wider groups are other programs, which round otherwise;
learning rates are small here, since larger ones let a rounding error grow tenfold in a step.
"""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from one_learner import assert_close, assert_equal
from tiny_training import RL as FAST
from tiny_training import HighTokens, critic, policy

from rldtf_jax import arms as together
from rldtf_jax import rldtf
from rldtf_jax.config import ConfigError, OptimConfig
from rldtf_jax.judge import Arm
from rldtf_jax.loop import MAX_SKIPPED_IN_A_ROW, Diverged, run

POLICY, CRITIC = policy(0), critic(1)
RL = dataclasses.replace(
    FAST, policy=OptimConfig(lr=1e-3, warmup_steps=2), critic=OptimConfig(lr=1e-3)
)


class Seeded(HighTokens):
    """The environment with an order of its own for every seed; remembers what was asked."""

    def __init__(self, seed=0):
        self.seed, self.calls = seed, []

    def batch(self, step, num_prompts):
        return super().batch(step + 1000 * self.seed, num_prompts)

    def judge(self, tasks, responses, policy=None):
        self.calls.append([np.asarray(ids).tolist() for ids in responses])
        return super().judge(tasks, responses)


def grid(base=RL, seeds=(3, 4), **axes):
    return [
        Arm(dataclasses.replace(base, **dict(zip(axes, values))), seed, Seeded(seed))
        for *values, seed in itertools.product(*axes.values(), seeds)
    ]


def train_together(arms, width, steps=4, mesh=None, base_policy=POLICY):
    models, states = together.initial(base_policy, CRITIC, arms, width, mesh)
    history = []
    for step in range(steps):
        states, metrics = rldtf.rldtf_step(models, arms, states, step)
        history.append(jax.device_get(metrics))
    return [jax.device_get(together.take(models, states, i)) for i in range(len(arms))], history


def train_alone(arm, steps=4, base_policy=POLICY):
    models, state = rldtf.initial(base_policy, CRITIC, arm.config, arm.seed)
    states, arm, history = (state,), arm._replace(env=Seeded(arm.seed)), []
    for step in range(steps):
        states, metrics = rldtf.rldtf_step(models, [arm], states, step)
        history.append(jax.device_get(metrics["arms"][0]))
    return jax.device_get(states[0]), history


def assert_near(state, other, arm, share=0.01):
    """The parameters went the same way, to this share of the way."""
    start = rldtf.initial(POLICY, CRITIC, arm.config, arm.seed)[1]

    def distance(a, b):
        return np.sqrt(
            sum(
                np.sum((np.asarray(x) - np.asarray(y)) ** 2)
                for x, y in zip(*map(jax.tree.leaves, (a, b)))
            )
        )

    for model in ("policy", "critic"):
        mine, alone, first = (getattr(s.learner, model) for s in (state, other, start))
        assert 0 < distance(alone, first) and distance(mine, alone) < share * distance(
            alone, first
        ), model


PAPER = {}
OTHER = dict(
    advantage="gae",
    whiten=True,
    weights="mean-one",
    aggregation="token-mean",
    kl_target="old",
    adaptive_kl=0.05,
)


@pytest.mark.parametrize(
    "width, changes",
    [
        (1, PAPER),
        (1, OTHER),
        (3, OTHER),
        (3, dict(lora_rank=2)),
        (3, dict(learn_from=4)),
        (3, dict(advantage="expected")),
        (3, dict(advantage="prefix", perturb="completion", prefixes=2, staleness=1)),
    ],
)
def test_every_arm_is_what_it_is_alone(width, changes):
    arms = grid(dataclasses.replace(RL, **changes), alpha=(0.0, 2.0), threshold=(0.02,)) + grid(
        dataclasses.replace(RL, **changes, beta_kl=0.3, policy=OptimConfig(lr=5e-4)),
        seeds=(5,),
        num_perturb=(3,),
    )
    states, history = train_together(arms, width)
    for i, arm in enumerate(arms):
        state, alone = train_alone(arm)
        if width == 1:
            assert_equal(states[i], state)
        else:
            assert_near(states[i], state, arm)
        for step, metrics in enumerate(alone):
            mine = history[step]["arms"][i]
            assert mine.keys() == metrics.keys()
            (assert_equal if width == 1 else functools.partial(assert_close, rtol=5e-3, atol=1e-3))(
                mine, metrics
            )
            # the twin's part
            assert all(mine[name] == metrics[name] for name in ("reward", "weight/mean", "tokens"))


def test_one_call_of_the_judge_serves_all_arms():
    arms = grid(alpha=(0.0, 1.0, 2.0))
    _, history = train_together(arms, 2, steps=2)
    assert [len(arm.env.calls) for arm in arms] == [2, 0, 0, 0, 0, 0]
    alone = []
    for arm in arms:
        env = Seeded(arm.seed)
        models, state = rldtf.initial(POLICY, CRITIC, arm.config, arm.seed)
        rldtf.rldtf_step(models, [arm._replace(env=env)], (state,), 0)
        alone += env.calls[0]
    assert arms[0].env.calls[0] == alone
    assert history[0]["runtime"] == {"twin/sequences": len(alone)}


def test_other_values_compile_nothing(compilations):
    train_together(grid(alpha=(0.0, 1.0)), 2, steps=4)
    with compilations() as compiled:
        train_together(
            grid(
                dataclasses.replace(RL, clip=0.1, beta_ent=0.2, k1=0.3, lam=1e-3, num_perturb=2),
                alpha=(0.5, 4.0),
                threshold=(0.3,),
            ),
            2,
            steps=4,
        )
    assert compiled == []


@pytest.mark.parametrize("advantage", ["paper", "expected"])
def test_a_diverging_arm_is_frozen_and_the_others_go_on(advantage):
    arms = grid(
        dataclasses.replace(RL, epochs=1, minibatches=1, advantage=advantage),
        k1=(0.5, float("inf"), 1.0),
        seeds=(3,),
    )
    states, history = train_together(arms, 3, steps=MAX_SKIPPED_IN_A_ROW + 2)
    start = together.take(*together.initial(POLICY, CRITIC, arms, 3), 1)
    assert_equal(states[1].learner.policy, jax.device_get(start.learner.policy))
    assert states[1].learner.skipped == MAX_SKIPPED_IN_A_ROW
    assert [step["arms"][1] == {"diverged": True} for step in history] == [
        False
    ] * MAX_SKIPPED_IN_A_ROW + [True] * 2
    assert [int(step["running"]) for step in history] == [3] * MAX_SKIPPED_IN_A_ROW + [2] * 2
    assert all(step["skipped_in_a_row"] == 0 for step in history)
    for i in (0, 2):
        assert_near(states[i], train_alone(arms[i], MAX_SKIPPED_IN_A_ROW + 2)[0], arms[i])


def test_when_all_arms_have_diverged_training_ends(tmp_path):
    arms = grid(
        dataclasses.replace(RL, k1=float("inf"), epochs=1, minibatches=1),
        alpha=(0.0, 1.0, 2.0),
        seeds=(3,),
    )
    models, states = together.initial(POLICY, CRITIC, arms, 3)
    with pytest.raises(Diverged):
        run(
            lambda states, step: rldtf.rldtf_step(models, arms, states, step),
            states,
            steps=20,
            save_every=10,
            directory=str(tmp_path),
            identity={},
            position=lambda step: {},
            boards=(),
        )


def test_what_shapes_the_programs_may_not_differ():
    with pytest.raises(
        ConfigError,
        match="aggregation = 'token-mean' in one arm and 'sum' in another: expected one value",
    ):
        together.initial(POLICY, CRITIC, grid(aggregation=("sum", "token-mean")), 1)
    with pytest.raises(
        ConfigError, match="advantage = 'expected' in one arm and another in another"
    ):
        together.initial(POLICY, CRITIC, grid(advantage=("paper", "expected")), 1)
    with pytest.raises(ConfigError, match="adaptive_kl = null in one arm"):
        together.initial(POLICY, CRITIC, grid(adaptive_kl=(None, 0.1)), 1)


@pytest.mark.parametrize("updates, together_, width", [(0.5, 1, 1), (2.5, 6, 2), (100, 6, 6)])
def test_the_plan_takes_as_many_arms_as_the_memory_of_the_programs_allows(
    updates, together_, width
):
    arm = grid()[0]
    one = together.step_bytes(POLICY, CRITIC, arm, 1)
    state = together.plan(POLICY, CRITIC, arm, 1).bytes_of_state
    assert one > 2 * state > 0 and together.step_bytes(POLICY, CRITIC, arm, 3) > 2 * one
    memory = int((updates * one + 6 * state if updates > 1 else state) / together.SHARE_OF_MEMORY)
    planned = together.plan(POLICY, CRITIC, arm, 6, memory=memory)
    assert (planned.together, planned.width) == (together_, width)
    assert planned.width == 1 or together.step_bytes(POLICY, CRITIC, arm, planned.width) <= memory


def on_devices():
    mesh = together.arm_mesh()
    arms = grid(alpha=(0.0, 1.0, 2.0), seeds=(3, 4))
    # the last group has two arms and two copies
    states, _ = train_together(arms, 4, steps=3, mesh=mesh)
    for state, arm in zip(states, arms):
        assert_near(state, train_alone(arm, 3)[0], arm)
    _, groups = together.initial(POLICY, CRITIC, arms, 4, mesh)
    weights = jax.tree.leaves(groups[0].learner.policy)[0]
    assert {shard.data.shape[0] for shard in weights.addressable_shards} == {1} and len(
        weights.sharding.device_set
    ) == 4

    with_lora = grid(
        dataclasses.replace(RL, lora_rank=2, epochs=1, minibatches=1), alpha=(0.0, 1.0), seeds=(3,)
    )
    # as a model that was loaded is
    committed = nnx.merge(*jax.device_put(nnx.split(POLICY), jax.devices()[0]))
    (state, _), _ = train_together(
        with_lora, 2, steps=1, mesh=together.arm_mesh(2), base_policy=committed
    )
    assert_near(state, train_alone(with_lora[0], 1)[0], with_lora[0])


def test_arms_are_sharded_over_devices():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run(
        [sys.executable, "-c", "import test_arms; test_arms.on_devices()"],
        check=True,
        env=environment,
        cwd=os.path.dirname(os.path.abspath(__file__)),
    )

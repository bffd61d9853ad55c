"""The memory plan reads what it says out of the compiled programs, and says no where it must."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.benchmarks import plan
from experiments.config import CONFIGS, load
from rldtf_jax import mesh
from rldtf_jax.mesh import RULES
from rldtf_jax.qwen2 import Qwen2Config, param_table


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.plan", *arguments],
        cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def config(*arguments):
    return load(list(arguments), plan.PlanConfig, os.path.join(CONFIGS, "plan"), "qwen2.5-7b")


@pytest.fixture(scope="module")
def tiny():
    return command("preset=tiny")


def figure(output, name):
    (line,) = (line for line in output.splitlines() if line.strip().startswith(name))
    return float(line.split(name)[1].split()[-1])


def test_a_plan_that_fits_prints_every_share_of_a_device(tiny):
    assert tiny.returncode == 0, tiny.stderr
    assert tiny.stdout.splitlines()[-1].startswith("fits: ")
    shape = Qwen2Config.preset("tiny")
    share = lambda spec: (
        math.prod(spec.shape)
        / (4 if any("fsdp" in RULES.get(axis, ()) for axis in spec.axes) else 1)
    )
    expected = [
        4 * sum(share(spec) for spec in param_table(shape, head).values())
        for head in ("lm", "value")
    ]
    policy, critic = expected
    assert figure(tiny.stdout, "weights: policy, critic, reference") == round(
        (2 * policy + critic) / 1e9, 3
    )
    assert figure(tiny.stdout, "gradients, accumulated") == round((policy + critic) / 1e9, 3)
    assert figure(tiny.stdout, "optimiser: Adam's moments") == round(2 * (policy + critic) / 1e9, 3)
    # k and v, 4 layers, bfloat16
    assert figure(tiny.stdout, "KV cache") == round(2 * 4 * 64 * 128 * 64 * 2 / 4 / 1e9, 3)
    for name in (
        "activations and gathered weights",
        "peak of values and reference",
        "peak of sampling",
        "together",
    ):
        assert figure(tiny.stdout, name) > 0


RUN = """
import dataclasses, json, os
import jax, jax.numpy as jnp
from experiments.benchmarks import plan
from experiments.config import CONFIGS, load
from experiments.stages.run import fresh_model
from rldtf_jax import mesh, rldtf
from rldtf_jax.config import RLDTFConfig

config = load(["preset=tiny"], plan.PlanConfig, os.path.join(CONFIGS, "plan"), "tiny")
device_mesh = mesh.make_mesh(**dataclasses.asdict(config.mesh))
with jax.set_mesh(device_mesh):
    shapes = plan.shapes(config, device_mesh)
    policy, critic = (
        fresh_model(config.qwen2, head, 0, device_mesh) for head in ("lm", "value")
    )
    settings = RLDTFConfig(microbatches=config.microbatches, logit_chunk=config.logit_chunk)
    models, state = rldtf.initial(policy, critic, settings, 0)
    del policy, critic
    rows = jax.tree.map(
        lambda x: jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding), shapes.rollouts
    )
    rows = rows._replace(lengths_B=rows.lengths_B + 2)
    hyper = rldtf.hyper_at(settings, 0)
    asked = models.static, state.learner, state.reference, rows, hyper
    compiled = rldtf.update.lower(*asked).compile().memory_analysis()
    planned = plan.lower_update(config, shapes).compile().memory_analysis()
    learner, _ = rldtf.update(*asked)
    held = {str(device): 0 for device in jax.devices()}
    for leaf in jax.tree.leaves((learner, state.reference)):
        for shard in leaf.addressable_shards:
            held[str(shard.device)] += shard.data.nbytes
print(json.dumps({
    "planned": plan.per_device((shapes.learner, shapes.reference)),
    "held": list(held.values()),
    "working": [planned.temp_size_in_bytes, compiled.temp_size_in_bytes],
}))
"""


def test_a_run_holds_and_works_in_the_bytes_that_were_planned():
    """After a real update on four virtual devices."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["held"] == [found["planned"]] * 4
    planned, working = found["working"]
    assert planned > found["planned"] / 10  # activations are no rounding error
    assert working == planned


def test_each_saving_lowers_the_peak_of_the_update(tiny):
    peak = figure(tiny.stdout, "peak of update: all three savings")
    for saving in (
        "recomputed layers (remat)",
        "gradient accumulation",
        "chunked log-prob, entropy and KL",
    ):
        assert figure(tiny.stdout, f"without {saving}") > 1.05 * peak


def test_a_plan_that_does_not_fit_says_so(monkeypatch, capsys):
    monkeypatch.setattr(plan, "scratch", lambda lowered: 0.9e9)
    one = mesh.make_mesh(devices=jax.devices()[:1])
    for memory_gb, fits in ((0.9, False), (1, True)):
        assert (
            plan.plan(
                config("preset=tiny", "mesh.fsdp=1", "compare=false", f"memory_gb={memory_gb}"), one
            )
            == fits
        )
        assert (
            capsys.readouterr()
            .out.splitlines()[-1]
            .startswith("fits: " if fits else "does not fit: ")
        )


def test_a_wrong_plan_is_one_line():
    for argument, message in (
        ("mesh.fsdp=3", "batch = 128: expected a multiple of data x fsdp x microbatches = 24"),
        ("model=qwen2.5-70b", "model = 'qwen2.5-70b': expected one of tiny, "),
        ("mesh.experts=2", "mesh.experts: no such key"),
        ("preset=phone", "preset = 'phone': expected one of "),
    ):
        with pytest.raises(ValueError, match=message) as error:
            config(argument)
        assert "\n" not in str(error.value)
    fifteen = config("mesh.fsdp=15", "batch=120")
    with pytest.raises(
        ValueError, match="embed: its embed axis of 3584 does not divide into 15 pieces"
    ):
        plan.shapes(fifteen, jax.sharding.AbstractMesh((1, 15, 1), mesh.AXES))


@pytest.mark.parametrize("remat", [True, False])
def test_the_operations_are_those_that_xla_counts(monkeypatch, remat):
    """With one layer, one micro-batch and no chunks no loop is left, in which XLA would count one
    turn only.
    """
    one = dataclasses.replace(
        Qwen2Config.preset("tiny"), hidden_size=256, num_hidden_layers=1, head_dim=32, remat=remat
    )
    monkeypatch.setattr(plan.PlanConfig, "qwen2", one)
    small = config(
        "preset=tiny",
        "mesh.fsdp=1",
        "microbatches=1",
        "logit_chunk=null",
        f"remat={str(remat).lower()}",
    )
    s = plan.shapes(small, mesh.make_mesh(devices=jax.devices()[:1]))
    counted = plan.flops(small)
    for name, lowered in (
        ("update", plan.lower_update(small, s)),
        ("values and reference", plan.lower_old_states(small, s)),
    ):
        assert lowered.cost_analysis()["flops"] == pytest.approx(counted[name], rel=0.1)

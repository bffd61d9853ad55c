"""One table places everything, and a mesh changes where things are computed but not what."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from on_devices import CONFIG, MESHES

from rldtf_jax import mesh
from rldtf_jax.qwen2 import Qwen2Config, param_table

SCRIPT = Path(__file__).with_name("on_devices.py")
ROOT = SCRIPT.parents[2]


def start(*arguments, devices):
    # Most of the time is compilation; code that runs once needs no optimisation.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    try:
        out, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return out, errors


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    out, errors = finish(start("meshes", tmp_path_factory.mktemp("hf"), devices=8))
    return json.loads(out.splitlines()[-1]), errors


@pytest.fixture(params=map(str, MESHES))
def on_mesh(request, on_eight):
    return on_eight[0][request.param], dict(
        zip(mesh.AXES, json.loads(request.param.replace("(", "[").replace(")", "]")))
    )


def test_logits_loss_and_one_training_step_equal_the_one_device_result(on_mesh):
    got, _ = on_mesh
    assert got["init"] == 0  # the same random numbers, wherever they are drawn
    assert got["logits"] <= 1e-5 and got["loss"] <= 1e-5
    # Adam's first step is about the learning rate 0.01 whatever the gradient; rounding shows where
    # a gradient is near 0.
    assert got["moved"] > 0.009 and got["step"] <= 1e-3


def test_one_rldtf_update_equals_the_one_device_result(on_eight):
    got = on_eight[0]["rldtf"]
    assert got["metrics"] <= 1e-4 and got["update"] <= 1e-3
    assert got["shards"] == on_eight[0]["(2, 2, 2)"]["stepped_shards"]


def test_sampling_on_a_mesh_draws_the_same_tokens(on_mesh):
    assert on_mesh[0]["same_tokens"]


def test_every_shard_has_the_size_the_table_says(on_mesh):
    got, sizes = on_mesh
    for path, spec in param_table(CONFIG).items():
        expected = []
        for length, axis in zip(spec.shape, spec.axes):
            pieces = np.prod(
                [sizes[mesh_axis] for mesh_axis in mesh.RULES.get(axis, ())], dtype=int
            )
            expected.append(length // pieces)
        for what in ("shards", "moment_shards", "stepped_shards", "loaded_shards"):
            assert got[what][path] == expected, (what, path)
    assert got["batch_shard"] == [16 // (sizes["data"] * sizes["fsdp"]), 12]


def test_weights_loaded_onto_a_mesh_are_the_saved_ones(on_mesh):
    assert on_mesh[0]["loaded"] == 0


def test_initialisation_holds_no_parameter_whole_on_one_device(on_eight):
    whole, eighth = "[2,32,48]", "[2,4,48]"  # w_gate, w_up and their moments
    assert whole in on_eight[0]["(8, 1, 1)"]["init_program"]
    assert whole not in on_eight[0]["(1, 8, 1)"]["init_program"]
    assert eighth in on_eight[0]["(1, 8, 1)"]["init_program"]


def test_weights_are_gathered_where_they_are_sharded_and_nothing_is_rematerialised(on_eight):
    results, errors = on_eight
    assert results["(1, 8, 1)"]["gathers"] > 0 == results["(8, 1, 1)"]["gathers"]
    assert "Involuntary full rematerialization" not in errors


def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    finish(start("step", 0, 1, port, tmp_path / "single.json", devices=4))
    for process in [
        start("step", rank, 2, port, tmp_path / f"{rank}.json", devices=2) for rank in range(2)
    ]:
        finish(process)
    first, second, alone = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0", "1", "single")
    )
    assert (first["devices"], first["local_devices"], alone["local_devices"]) == (4, 2, 4)
    assert first["local_bytes"] == alone["local_bytes"] / 2
    assert (
        first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-5)
    )
    assert first["norms"] == second["norms"] == pytest.approx(alone["norms"], rel=1e-4, abs=1e-5)


def test_two_dimensions_on_one_mesh_axis_collide():
    assert mesh.partition_spec(("layers", "embed", "heads")) == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert mesh.partition_spec(("batch", "time", None)) == PartitionSpec(
        ("data", "fsdp"), None, None
    )
    with pytest.raises(ValueError, match="fsdp twice"):
        mesh.partition_spec(("batch", "time", "embed"))
    with pytest.raises(ValueError, match="'sequence'"):
        mesh.partition_spec(("batch", "sequence"))


@pytest.mark.parametrize("head", ["lm", "value"])
@pytest.mark.parametrize("name", ["tiny", "qwen2.5-0.5b", "qwen2.5-7b", "smollm2-135m"])
def test_no_parameter_of_any_size_collides(name, head):
    for spec in param_table(Qwen2Config.preset(name), head).values():
        assert len(spec.axes) == len(spec.shape)
        mesh.partition_spec(spec.axes)


def test_a_mesh_must_fit_the_devices():
    one = jax.devices()[:1]
    assert dict(mesh.make_mesh(devices=one).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    for sizes in ((2, 1, 1), (1, -1, 2), (1, 0, 1), (-1, -1, 1)):
        with pytest.raises(ValueError, match="does not fit 1 devices"):
            mesh.make_mesh(*sizes, devices=one)


def test_a_size_that_does_not_divide_is_named():
    abstract = {"embed": jax.ShapeDtypeStruct((50, 31), np.float32)}
    device_mesh = jax.sharding.AbstractMesh((1, 8, 1), mesh.AXES)
    with pytest.raises(
        ValueError, match="embed: its embed axis of 31 does not divide into 8 pieces"
    ):
        mesh.shardings(device_mesh, abstract, param_table(CONFIG))


def test_what_is_no_parameter_is_replicated_and_leading_arm_axes_are_not_split():
    device_mesh = jax.sharding.AbstractMesh((1, 8, 1), mesh.AXES)
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    tree = {"step": leaf(), "arms": {"layers": {"wq": leaf(5, 2, 32, 32)}}, "history": leaf(9)}
    got = jax.tree.map(
        lambda sharding: sharding.spec, mesh.shardings(device_mesh, tree, param_table(CONFIG))
    )
    assert got["arms"]["layers"]["wq"] == PartitionSpec(None, None, "fsdp", "tensor")
    assert got["step"] == got["history"] == PartitionSpec()

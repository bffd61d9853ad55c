"""Several processes as one run: the numbers of one process, whatever is killed in between."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from running import finish, start, wait_for

from experiments.benchmarks.faults import descendants, differences, digests
from experiments.config import ConfigError, load
from rldtf_jax import hosts
from rldtf_jax.metrics import read

RLDTF, INSTRUCT = "experiments.stages.rldtf", "experiments.stages.instruct"


def keys(run_dir, *more):
    few = ("instruct.reading=null", "instruct.sft.steps=4", "instruct.pairs=100", "twin.workers=1")
    return ["preset=smoke", f"run_dir={run_dir}", *few, *more]


def devices(count):
    """Of each process."""
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


def test_two_processes_and_a_kill(tmp_path):
    """They sample, judge and learn as one process with as many devices does, but for the last
    digits of sums over devices.
    """
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    mesh = ("mesh.data=2", "rldtf.steps=3")
    process = start(*keys(two, "hosts=2", *mesh), module=RLDTF, env=devices(1))
    wait_for(os.path.join(two, "rldtf", "checkpoints", "1"), process)
    family = descendants(process.pid)
    ours = [pid for pid in family if f"run_dir={two}" in command_of(pid)]
    os.kill(ours[-1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not any(f"run_dir={two}" in command_of(pid) for pid in family)

    for run_dir, more, each in ((two, ["hosts=2"], 1), (one, [], 2)):
        code, _, err = finish(*keys(run_dir, *more, *mesh), module=RLDTF, env=devices(each))
        assert code == 0, err
    found = digests(two)
    assert len(found) > 8
    assert {name for name in differences(found, digests(one)) if "rldtf/" not in name} == set()
    for expected, row in zip(*(read(os.path.join(run, "rldtf")) for run in (one, two))):
        assert row["response_tokens"] == expected["response_tokens"]
        for name in ("reward", "loss", "policy_loss", "entropy", "grad_norm", "critic_grad_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5), name
    assert not [name for name in os.listdir(two) if "partial" in name]


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def test_four_processes_and_a_stop(tmp_path):
    """Over four, gradients are summed in another order than over four devices of one process."""
    one, four = str(tmp_path / "one"), str(tmp_path / "four")
    mesh = ("mesh.data=2", "mesh.fsdp=2", "instruct.sft.save_every=1")
    process = start(*keys(four, "hosts=4", *mesh), module=INSTRUCT, env=devices(1))
    wait_for(os.path.join(four, "instruct", "checkpoints", "1"), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.count("The same command goes on from there.") == 1
    code, _, err = finish(*keys(four, "hosts=4", *mesh), module=INSTRUCT, env=devices(1))
    assert code == 0, err
    code, _, err = finish(*keys(one, *mesh), module=INSTRUCT, env=devices(4))
    assert code == 0, err
    rows = [read(os.path.join(run, "instruct")) for run in (one, four)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [0, 1, 2, 3]
    for expected, found in zip(*rows):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


TELL = """
import sys
import jax
import numpy as np
from experiments import hosts as starting
from rldtf_jax import hosts, mesh

starting.join(2)
mine = {"process": jax.process_index(), "long": "x" * 10_000 * (1 + jax.process_index())}
told = hosts.told(mine)
with jax.set_mesh(mesh.make_mesh(2, 1)) as device_mesh:
    rows = np.arange(6.0).reshape(2, 3)
    sharding = jax.sharding.NamedSharding(
        jax.sharding.get_mesh(), jax.sharding.PartitionSpec("data")
    )
    part = jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)
    whole = hosts.fetched({"part": part, "text": "as it is"})
assert not part.is_fully_addressable and (whole["part"] == rows).all(), whole
assert told == {"process": 0, "long": "x" * 10_000} and whole["text"] == "as it is"
hosts.say("first" if hosts.first() else "never")
"""


def test_what_the_first_process_knows_is_told_and_arrays_are_fetched_whole():
    address = {"RLDTF_COORDINATOR": "localhost:29876"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TELL],
            env=os.environ | address | {"RLDTF_PROCESS": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "first" in said[0] and "never" not in said[1] and "first" not in said[1]


CHILD = """
import os, time
from experiments import hosts
hosts.end_with(int(os.environ["RLDTF_PARENT"]))
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_no_process_outlives_the_command_that_started_it():
    command = f"from experiments import hosts; hosts.launch(2, ['-c', {CHILD!r}])"
    parent = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    children = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(command_of(pid) for pid in children)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(command_of(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(command_of(pid) for pid in children)


def test_alone_everything_is_free():
    assert hosts.first() and not hosts.several()
    value = object()
    assert hosts.told(value) is value and hosts.fetched(value) is value


def test_a_mesh_that_the_processes_do_not_share_is_refused_before_any_starts(tmp_path):
    with pytest.raises(ConfigError, match="hosts = 2: expected a divisor of the devices of mesh"):
        load(keys(str(tmp_path), "hosts=2"))
    code, out, err = finish(*keys(str(tmp_path / "run"), "hosts=3", "mesh.data=2"), module=INSTRUCT)
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert not os.path.exists(tmp_path / "run")


def test_another_config_is_one_line_from_one_of_them(tmp_path):
    run_dir = str(tmp_path / "run")
    os.makedirs(run_dir)
    code, _, err = finish(*keys(run_dir), module=INSTRUCT)
    assert code == 0, err
    more = ("hosts=2", "mesh.data=2", "seed=5")
    code, _, err = finish(*keys(run_dir, *more), module=INSTRUCT, env=devices(1))
    assert code == 2
    assert [line for line in err.splitlines() if line.startswith("error")] == [
        f"error: {run_dir}/config.yaml: made with another config, seed is 0 there and 5 here;"
        " choose another run_dir or remove that one"
    ]
    assert "mesh" not in json.dumps(err.partition("error")[2])

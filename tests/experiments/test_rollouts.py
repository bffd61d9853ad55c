"""A run whose rollouts come from a process of their own, whatever of it is killed: the run of one
process, to the bit.
"""

import multiprocessing
import os
import signal
import time

import pytest
from running import finish, start, wait_for

from experiments.benchmarks.faults import descendants, differences, digests
from experiments.config import ConfigError, load
from experiments.stages import rollouts
from experiments.studies.grid import SweepConfig

RLDTF = "experiments.stages.rldtf"
FEW = ("preset=smoke", "instruct.reading=null", "instruct.sft.steps=4", "instruct.pairs=100")
KEYS = (*FEW, "twin.workers=1", "rldtf.steps=9", "rldtf.staleness=1")


def is_worker(pid):
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            return "spawn_main" in file.read()
    except FileNotFoundError:
        return False


def programs(run_dir):
    """Environment of processes that share what they compile."""
    return {
        "JAX_COMPILATION_CACHE_DIR": f"{run_dir}.programs",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def begun(run_dir, steps):
    """(process, its rollout worker) once so many steps are saved."""
    apart = (f"run_dir={run_dir}", "rollouts.apart=true")
    process = start(*KEYS, *apart, module=RLDTF, env=programs(run_dir))
    wait_for(os.path.join(run_dir, "rldtf", "checkpoints", str(steps)), process)
    return process, next(pid for pid in descendants(process.pid) if is_worker(pid))


def test_whatever_is_killed(tmp_path):
    alone, apart = str(tmp_path / "alone"), str(tmp_path / "apart")
    code, _, err = finish(*KEYS, f"run_dir={alone}", module=RLDTF)
    assert code == 0, err

    process, worker = begun(apart, 2)
    os.kill(worker, signal.SIGKILL)
    wait_for(os.path.join(apart, "rldtf", "checkpoints", "4"), process)
    family = descendants(process.pid)
    assert any(map(is_worker, family)) and worker not in family
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in family if os.path.exists(f"/proc/{pid}")]

    process, worker = begun(apart, 6)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert not os.path.exists(f"/proc/{worker}")

    # Who samples may change where a run goes on.
    code, _, err = finish(*KEYS, f"run_dir={apart}", module=RLDTF, env=programs(apart))
    assert code == 0, err
    found = digests(apart)
    assert len(found) > 8 and differences(found, digests(alone)) == []


def test_a_worker_that_cannot_start_says_why():
    def refuse(*_):
        raise ConfigError("mesh = 3: expected another")

    ours, theirs = multiprocessing.Pipe()
    before = {one: signal.getsignal(one) for one in rollouts.SIGNALS}
    try:
        rollouts._work(theirs, refuse, load(["preset=smoke"]), os.getpid())
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert ours.recv() == (-1, "failed", "ConfigError: mesh = 3: expected another")


def test_staleness_is_of_the_run_and_one_process_samples(tmp_path):
    with pytest.raises(ConfigError, match=r"rollouts.apart = True: expected hosts = 1, not 2"):
        load(["preset=smoke", "hosts=2", "mesh.data=2", "rollouts.apart=true"])
    with pytest.raises(ConfigError, match=r"rldtf.staleness = -1: expected a number >= 0"):
        load(["preset=smoke", "rldtf.staleness=-1"])
    with pytest.raises(ConfigError, match=r"rollouts.devices = '1': expected apart = True"):
        load(["preset=smoke", "rollouts.devices='1'"])
    with pytest.raises(ConfigError, match=r"rollouts.apart = True: expected False in a sweep"):
        load(["preset=smoke", "rollouts.apart=true"], SweepConfig)

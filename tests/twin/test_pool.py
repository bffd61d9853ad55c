"""Robustness of the pool and of Twin around it, with workers that answer without simulating (toy_worker.py)."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import toy_pool

from twin import Scenario, Twin, TwinError, Workflow

DEADLY, DEADLY_ONCE, FAULTY = 13, 14, 15  # dB, to the toy worker


def pairs(*snrs):
    return [(Scenario(snr_db=snr), Workflow()) for snr in snrs]


def test_results_come_in_order_and_each_simulation_runs_once(toy_twin):
    snrs = [3, 1, 2, 1, 3, 3]
    assert [q.bit_errors for q in toy_twin.evaluate(pairs(*snrs))] == [100 + s for s in snrs]
    grants = [(Scenario(snr_db=1), Workflow(num_prb=n)) for n in range(1, 200)]
    toy_twin.evaluate(grants)
    assert (toy_twin.stats.requests, toy_twin.stats.distinct, toy_twin.stats.simulated) == (205, 4, 3)
    assert toy_twin.stats.memory_hits == 1


def test_a_worker_that_dies_is_replaced_and_its_point_tried_again(toy_twin):
    snrs = [*range(0, 13), DEADLY_ONCE, *range(16, 40)]
    assert [q.bit_errors for q in toy_twin.evaluate(pairs(*snrs))] == [100 + s for s in snrs]


def test_a_point_that_kills_twice_fails_alone(toy_twin):
    answers = toy_twin.evaluate(pairs(1, DEADLY, 2, FAULTY, 3), return_exceptions=True)
    assert [isinstance(a, TwinError) for a in answers] == [False, True, False, True, False]
    assert "killed its worker twice" in str(answers[1]) and "ValueError: 15 dB" in str(answers[3])
    assert "snr_db=13" in str(answers[1])


def test_a_failure_is_raised_after_the_rest_is_stored(toy_twin):
    with pytest.raises(TwinError):
        toy_twin.evaluate(pairs(1, 2, DEADLY, *range(20, 40)))
    simulated = toy_twin.stats.simulated
    toy_twin.evaluate(pairs(1, 2, *range(20, 40)))
    assert toy_twin.stats.simulated == simulated == 22


def test_an_infeasible_pair_is_named_before_anything_runs(toy_twin):
    with pytest.raises(ValueError, match="pair 1: num_layers=4"):
        toy_twin.evaluate([*pairs(1), (Scenario(num_rx_ant=2), Workflow(num_layers=4))])
    assert toy_twin.stats.simulated == 0


def test_an_interrupted_call_keeps_what_is_done_and_harms_no_later_one(toy_twin):
    def interrupt(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_twin.evaluate(pairs(*range(-30, 12)), progress=interrupt)
    assert toy_twin.stats.simulated == 5
    assert [q.bit_errors for q in toy_twin.evaluate(pairs(*range(-30, 12)))] == [100 + s for s in range(-30, 12)]
    assert toy_twin.stats.simulated == 42


def test_killing_idle_workers_goes_unnoticed(toy_twin):
    toy_twin.evaluate(pairs(1, 2))
    for worker in toy_twin._pool.workers.values():
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
    assert len(toy_twin.evaluate(pairs(3, 4, 5))) == 3


def test_the_cache_serves_another_twin_that_never_starts_a_worker(tmp_path):
    with Twin(cache=tmp_path / "c.sqlite", pool=toy_pool) as first:
        answers = first.evaluate(pairs(*range(10)))
    with Twin(cache=tmp_path / "c.sqlite", pool=toy_pool) as second:
        assert second.evaluate(pairs(*range(10))) == answers
        assert second.stats.disk_hits == 10 and not second._pool.workers


def test_a_failure_is_not_cached(tmp_path):
    for _ in range(2):
        with Twin(cache=tmp_path / "c.sqlite", pool=toy_pool) as twin, pytest.raises(TwinError):
            twin.evaluate(pairs(FAULTY))


def test_progress_counts_to_the_number_of_simulations(toy_twin):
    seen = []
    toy_twin.evaluate(pairs(*range(5)), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]


def test_empty_batches_are_answered(toy_twin):
    assert toy_twin.evaluate([]) == []


def test_settings_are_checked():
    with pytest.raises(ValueError, match="unknown settings blocks"):
        Twin(blocks=3)
    with pytest.raises(ValueError, match="check_node"):
        Twin(check_node="magic")
    with pytest.raises(ValueError, match="workers"):
        Twin(workers=0)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(how):
    script = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background hands on an ignored SIGINT
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import toy_pool
from twin import Scenario, Twin, Workflow
twin = Twin(workers=2, pool=toy_pool)
twin.evaluate([(Scenario(snr_db=1), Workflow())])
print(*(w.process.pid for w in twin._pool.workers.values()), flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(_alive, pids))
    parent.send_signal(how)
    parent.wait()
    for _ in range(600):
        if not any(map(_alive, pids)):
            return
        time.sleep(0.1)
    pytest.fail("workers are still there a minute later")


def test_ctrl_c_does_not_reach_the_workers(toy_twin):
    toy_twin.evaluate(pairs(1))
    for worker in toy_twin._pool.workers.values():
        assert os.getsid(worker.process.pid) == worker.process.pid != os.getsid(0)


def test_a_pool_that_does_not_start_is_an_error_not_a_loop():
    broken = partial(toy_pool.func, command=(sys.executable, "-c", "import sys; sys.exit('no such module')"))
    with Twin(workers=2, pool=broken) as twin, pytest.raises(TwinError, match="do not start[^$]*no such module"):
        twin.evaluate(pairs(1))

"""Robustness of the pool and of Twin around it, with workers that do not simulate
(toy_worker.py).
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from toys import TOY_WORKER, toy_pool

from twin import Scenario, Settings, Twin, TwinError, Workflow, physical
from twin.pool import Pool, limit_share

DEADLY, DEADLY_ONCE, FAULTY = 13, 14, 15  # dB, to the toy worker
ENDLESS, ENDLESS_ONCE, STOPPING, HALF_ANSWERED = 70, 71, 72, 73
SLOW = [60 + n / 100 for n in range(12)]  # 0.4 s each
hasty_pool = partial(toy_pool, point_limit_s=1.0)


def pairs(*snrs):
    return [(Scenario(snr_db=snr), Workflow()) for snr in snrs]


def test_results_come_in_order_and_each_simulation_runs_once(toy_twin):
    snrs = [3, 1, 2, 1, 3, 3]
    assert [q.bit_errors for q in toy_twin.evaluate(pairs(*snrs))] == [100 + s for s in snrs]
    toy_twin.evaluate([(Scenario(snr_db=1, compute_gflops=n), Workflow()) for n in range(1, 200)])
    assert (toy_twin.stats.requests, toy_twin.stats.distinct, toy_twin.stats.simulated) == (
        205,
        4,
        3,
    )
    assert toy_twin.stats.memory_hits == 1


def test_a_worker_that_dies_is_replaced_and_its_point_tried_again(toy_twin):
    snrs = [*range(0, 13), DEADLY_ONCE, *range(16, 40)]
    assert [q.bit_errors for q in toy_twin.evaluate(pairs(*snrs))] == [100 + s for s in snrs]


def test_a_point_that_kills_twice_fails_alone(toy_twin):
    answers = toy_twin.evaluate(pairs(1, DEADLY, 2, FAULTY, 3), return_exceptions=True)
    assert [isinstance(a, TwinError) for a in answers] == [False, True, False, True, False]
    assert "killed its worker twice" in str(answers[1]) and "ValueError: 15 dB" in str(answers[3])
    assert "snr_db=13" in str(answers[1])


def test_a_worker_killed_for_its_memory_is_replaced(toy_twin):
    killed = []

    def kill_one(done, total):
        if not killed:
            killed.append(next(iter(toy_twin._pool.workers.values())).process)
            killed[0].send_signal(signal.SIGKILL)

    assert len(toy_twin.evaluate(pairs(*range(-40, 10), *SLOW[:4]), progress=kill_one)) == 54
    assert killed[0].wait() == -signal.SIGKILL


@pytest.mark.parametrize("snr", [ENDLESS, STOPPING])
def test_a_point_that_hangs_its_worker_twice_fails_alone(snr):
    with Twin(workers=2, pool=hasty_pool) as twin:
        started = time.monotonic()
        answers = twin.evaluate(pairs(*range(10), snr, *range(20, 30)), return_exceptions=True)
        assert time.monotonic() - started < 30
        assert [isinstance(a, TwinError) for a in answers] == [False] * 10 + [True] + [False] * 10
        assert "killed its worker twice (no answer in time, no answer in time)" in str(answers[10])
        assert len(twin.evaluate(pairs(*range(30, 40)))) == 10  # and the pool is whole


def test_a_point_that_hangs_once_is_tried_again():
    with Twin(workers=1, pool=hasty_pool) as twin:
        assert [q.bit_errors for q in twin.evaluate(pairs(1, ENDLESS_ONCE, 2))] == [101, 171, 102]


def test_a_worker_that_stops_inside_a_message_stops_nobody_else(monkeypatch):
    monkeypatch.setattr("twin.pool.MESSAGE_LIMIT_S", 1)
    with Twin(workers=2, pool=hasty_pool) as twin:
        answers = twin.evaluate(pairs(1, HALF_ANSWERED, 2), return_exceptions=True)
    assert [isinstance(a, TwinError) for a in answers] == [False, True, False]


def test_workers_stopped_from_outside_are_replaced():
    with Twin(workers=2, pool=hasty_pool) as twin:
        twin.evaluate(pairs(1, 2))
        stopped = [worker.process for worker in twin._pool.workers.values()]
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        assert [q.bit_errors for q in twin.evaluate(pairs(*range(3, 12)))] == [
            100 + s for s in range(3, 12)
        ]
        assert all(process.poll() == -signal.SIGKILL for process in stopped)


def test_progress_point_by_point_is_no_hang():
    with Twin(workers=1, pool=hasty_pool) as twin:  # one chunk of 12 points, 4.8 s
        twin.evaluate(pairs(1))
        before = [worker.process.pid for worker in twin._pool.workers.values()]
        assert len(twin.evaluate(pairs(*SLOW))) == 12
        assert [worker.process.pid for worker in twin._pool.workers.values()] == before


def test_neither_an_idle_worker_nor_a_busy_caller_is_a_hang():
    with Twin(workers=2, pool=hasty_pool) as twin:
        twin.evaluate(pairs(1))
        before = {worker.process.pid for worker in twin._pool.workers.values()}
        time.sleep(1.5)
        twin.evaluate(
            pairs(*range(2, 12)), progress=lambda done, total: time.sleep(1.5 * (done == 1))
        )
        twin.evaluate(pairs(*SLOW[:5], 20))  # one of two workers waits for longer than the limit
        assert {worker.process.pid for worker in twin._pool.workers.values()} == before


def test_the_limit_grows_with_what_a_point_may_cost():
    point = physical(Scenario(num_rx_ant=4), Workflow(num_prb=24))
    assert limit_share(point, Settings(max_blocks=16)) == limit_share(point, Settings()) == 1
    assert limit_share(point, Settings(max_blocks=1024)) == 8
    assert limit_share(replace(point, num_transmissions=4, num_prb=240), Settings()) == 40
    assert limit_share(replace(point, rounds=(0, 1)), Settings(max_blocks=1 << 20)) == 1
    assert (
        limit_share(replace(point, rounds=(64, 128)), Settings())
        == 64 * point.slots_per_round / 128
    )
    # 1.6 s
    with Twin(workers=1, pool=partial(toy_pool, point_limit_s=0.2), max_blocks=1024) as twin:
        twin.evaluate(pairs(1))
        before = twin._pool.workers[0].process.pid
        assert len(twin.evaluate(pairs(*SLOW[:3]))) == 3
        assert twin._pool.workers[0].process.pid == before


def test_the_clock_may_jump(monkeypatch):
    jumps = iter(range(0, 10**9, 10**4))
    monkeypatch.setattr(time, "time", lambda: 1e9 - next(jumps))
    with Twin(workers=1, pool=hasty_pool) as twin:
        assert len(twin.evaluate(pairs(*SLOW[:4]))) == 4
        assert isinstance(twin.evaluate(pairs(ENDLESS), return_exceptions=True)[0], TwinError)


def test_warming_has_the_limit_of_every_point_together():
    with Twin(workers=1, pool=hasty_pool) as twin:
        twin.warm(pairs(*SLOW[:4]))
        before = twin._pool.workers[0].process.pid
        twin.warm(pairs(*SLOW[:4]))
        twin.warm([])
        assert twin._pool.workers[0].process.pid == before
        twin.warm(pairs(ENDLESS))
        assert twin._pool.workers[0].process.pid != before


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ValueError, match="limits above 0 s"):
        Twin(pool=partial(toy_pool, point_limit_s=limit))


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
    snrs = range(-30, 12)
    assert [q.bit_errors for q in toy_twin.evaluate(pairs(*snrs))] == [100 + s for s in snrs]
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
    with pytest.raises(ValueError, match="Settings.backend"):
        Twin(backend="magic")
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
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toys import toy_pool
from twin import Scenario, Twin, Workflow
twin = Twin(workers=2, pool=toy_pool)
twin.evaluate([(Scenario(snr_db=1), Workflow())])
print(*(w.process.pid for w in twin._pool.workers.values()), flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
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
    broken = partial(Pool, command=(sys.executable, "-c", "import sys; sys.exit('no such module')"))
    with Twin(workers=2, pool=broken) as twin:
        for _ in range(2):
            with pytest.raises(TwinError, match="do not start[^$]*no such module"):
                twin.evaluate(pairs(1))


def test_a_start_may_take_longer_than_a_point():
    script = f"import runpy, time; time.sleep(1.5); runpy.run_path({TOY_WORKER[1]!r})"
    slow = partial(Pool, command=(sys.executable, "-c", script), point_limit_s=1.0)
    with Twin(workers=1, pool=slow) as twin:
        assert len(twin.evaluate(pairs(1, 2))) == 2


def test_a_start_that_hangs_is_an_error_too():
    hung = partial(
        Pool, command=(sys.executable, "-c", "import time; time.sleep(600)"), start_limit_s=0.5
    )
    with (
        Twin(workers=2, pool=hung) as twin,
        pytest.raises(TwinError, match="do not start in 0.5 s"),
    ):
        twin.evaluate(pairs(1))

"""The service: same answers whatever the batch, the workers and the cache; no retrace once warm."""

import math
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from twin import Scenario, Twin, Workflow, WorkflowError, check
from twin.statistics import block_limits
from twin.toolbox import BY_FIELD

# a cdl takes ten times as long
COMMON_CHANNELS = ("awgn", "rayleigh", *(f"tdl-{letter}" for letter in "abcde"), "cdl-c")
DETECTORS = ("mrc", "zf", "lmmse")


def random_pairs(number, seed, detectors=DETECTORS):
    """Feasible pairs of the toolbox, all distinct; by default of what has native stages."""
    rng = random.Random(seed)
    offered = {field: a.choices or range(a.low, a.high + 1) for field, a in BY_FIELD.items()}
    offered |= dict(
        code=("ldpc",), detector=detectors, num_transmissions=(1, 1, 1, 2), num_prb=range(1, 9)
    )
    pairs = {}
    while len(pairs) < number:
        s = Scenario(
            channel=rng.choice(COMMON_CHANNELS),
            snr_db=rng.randint(-5, 30),
            num_tx_ant=rng.choice((1, 2, 4)),
            num_rx_ant=rng.choice((1, 2, 4)),
            delay_spread_ns=rng.choice((30, 100, 300)),
            speed_mps=rng.choice((1, 10, 30)),
        )
        w = Workflow(**{field: rng.choice(values) for field, values in offered.items()})
        try:
            check(s, w)
        except WorkflowError:
            continue
        pairs[s, w] = None
    return list(pairs)


@pytest.fixture(scope="module")
def pairs():
    return random_pairs(60, seed=5)


@pytest.fixture(scope="module")
def answers(twin, pairs):
    return twin.evaluate(pairs)


def test_answers_do_not_depend_on_the_batch_the_workers_or_the_cache(pairs, answers, tmp_path):
    order = random.Random(1).sample(range(len(pairs)), len(pairs))
    with Twin(workers=1, cache=tmp_path / "c.sqlite", seed=0) as other:
        shuffled = other.evaluate([pairs[i] for i in order[:40]])  # other order, one worker
        singly = [other.evaluate([pairs[i]])[0] for i in order[40:]]  # batches of one
        assert [answers[i] for i in order] == shuffled + singly
    with Twin(workers=3, cache=tmp_path / "c.sqlite", seed=0) as warm:
        assert warm.evaluate(pairs * 2) == answers * 2
        assert warm.stats.simulated == 0


def test_a_worker_killed_mid_batch_changes_nothing(pairs, answers):
    killed = []

    def kill(done, total):
        if done == 5:
            killed.append(next(w for w in twin._pool.workers.values() if w.busy).process)
            killed[0].kill()

    with Twin(workers=2, seed=0) as twin:
        assert twin.evaluate(pairs[:30], progress=kill) == answers[:30]
        assert killed[0].returncode == -signal.SIGKILL


def test_another_seed_gives_other_blocks_of_the_same_statistics(pairs, answers):
    with Twin(workers=2, seed=1) as other:
        others = other.evaluate(pairs)
    differ = sum(a.bit_errors != b.bit_errors for a, b in zip(answers, others))
    assert differ > len(pairs) / 4
    for a, b in zip(answers, others):
        wide = [block_limits(q.block_errors, q.num_blocks, 1e-5) for q in (a, b)]
        assert wide[0][0] <= wide[1][1] and wide[1][0] <= wide[0][1]


def test_once_warm_a_thousand_pairs_trace_nothing():
    """What Sionna runs is warmed by a pair that uses it; grants of other widths are other batches
    of the same program.
    """
    nonlinear = [
        (Scenario(), Workflow(num_prb=2, num_layers=2, bits_per_symbol=4, detector=d))
        for d in ("kbest", "ep")
    ]
    with Twin(workers=2, max_blocks=32) as twin:
        twin.warm()
        assert twin.traces == 0
        twin.warm(nonlinear)
        traces = twin.traces
        assert traces > 0
        twin.evaluate(
            random_pairs(960, seed=8)
            + [
                (replace(s, snr_db=snr), replace(w, num_prb=1 + snr % 3))
                for s, w in nonlinear
                for snr in range(20)
            ]
        )
        assert twin.traces == traces


def test_a_native_worker_is_small_and_knows_no_tensorflow(pairs):
    with Twin(workers=1) as twin:
        twin.evaluate(pairs[:40])
        (worker,) = twin._pool.workers.values()
        proc = Path(f"/proc/{worker.process.pid}")
        assert "tensorflow" not in (proc / "maps").read_text()
        resident_kib = int(
            next(
                line
                for line in (proc / "status").read_text().splitlines()
                if line.startswith("VmRSS")
            ).split()[1]
        )
    assert resident_kib < 500 * 1024


def test_the_effective_sinr_method_answers_the_same_in_any_batch(pairs):
    with Twin(workers=2, method="esm", max_blocks=64) as twin:
        together = twin.evaluate(pairs[:20])
    with Twin(workers=1, method="esm", max_blocks=64) as other:
        assert [other.evaluate([pair])[0] for pair in pairs[19::-1]][::-1] == together


@pytest.mark.slow
def test_both_backends_agree_on_a_fading_link():
    """Sionna's channel, code, mapper, equaliser, demapper and decoder in the place of ours: joint
    99.9 % interval of each point.
    """
    links = [
        (
            Scenario(channel="tdl-a", num_tx_ant=1, num_rx_ant=2, snr_db=5),
            Workflow(num_prb=6, estimator="ls"),
        ),
        (
            Scenario(channel="tdl-c", num_tx_ant=2, num_rx_ant=2, delay_spread_ns=300, snr_db=13),
            Workflow(
                num_prb=4, bits_per_symbol=4, num_layers=2, code_rate=0.33, estimator="perfect"
            ),
        ),
    ]
    settings = dict(max_blocks=1024, enough_block_errors=1 << 30)
    with (
        Twin(workers=2, **settings) as native,
        Twin(workers=2, backend="sionna", **settings) as sionna,
    ):
        for a, b in zip(native.evaluate(links), sionna.evaluate(links)):
            p, q = (x.block_errors / x.num_blocks for x in (a, b))
            assert 0.02 < p < 0.6 and abs(p - q) < 3.3 * math.sqrt(
                (p * (1 - p) + q * (1 - q)) / 1024
            ), (p, q)

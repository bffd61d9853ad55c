"""The service: same answers whatever the batch, the workers and the cache; no retrace once warm."""

import random
import signal
from dataclasses import replace

import pytest
from strategies import TOOLBOX_RATES

from twin import WorkflowError, Scenario, Twin, Workflow, check
from twin.toolbox import BY_FIELD

COMMON_CHANNELS = ("awgn", "rayleigh", *(f"tdl-{letter}" for letter in "abcde"), "cdl-c")  # a cdl takes ten times as long
DETECTORS = ("mrc", "zf", "lmmse")


def random_pairs(number, seed, rates=TOOLBOX_RATES, detectors=DETECTORS):
    """Feasible pairs of the toolbox, all distinct; by default of what `Twin.warm` compiles."""
    rng = random.Random(seed)
    offered = {field: a.choices or range(a.low, a.high + 1) for field, a in BY_FIELD.items()}
    offered |= dict(code=("ldpc",), code_rate=rates, detector=detectors, num_transmissions=(1, 1, 1, 2))
    pairs = {}
    while len(pairs) < number:
        s = Scenario(
            channel=rng.choice(COMMON_CHANNELS), snr_db=rng.randint(-5, 30), num_tx_ant=rng.choice((1, 2, 4)),
            num_rx_ant=rng.choice((1, 2, 4)), delay_spread_ns=rng.choice((30, 100, 300)), speed_mps=rng.choice((1, 10, 30)),
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
    return random_pairs(60, seed=5, rates=(0.33, 0.67))


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
        assert a.bler_interval(4.5)[0] <= b.bler_interval(4.5)[1] and b.bler_interval(4.5)[0] <= a.bler_interval(4.5)[1]


def test_once_warm_a_thousand_pairs_trace_nothing(twin):
    """`warm()` is for linear detection; K-Best and expectation propagation are warmed by a pair that uses them."""
    nonlinear = [(Scenario(), Workflow(num_layers=2, bits_per_symbol=4, detector=d)) for d in ("kbest", "ep")]
    twin.warm()
    twin.warm(nonlinear)
    traces = twin.traces
    assert traces > 0
    twin.evaluate(random_pairs(960, seed=8) + [(replace(s, snr_db=snr), w) for s, w in nonlinear for snr in range(20)])
    assert twin.traces == traces

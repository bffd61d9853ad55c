"""Rule and oracle, on the real twin."""

import dataclasses

import numpy as np
import pytest

from experiments import baselines
from experiments.baselines import CODE_RATES, QAM_BITS
from rldtf_jax.reward import RewardConfig, reward
from twin import check


@pytest.fixture(scope="module")
def feasible(twin, drawn):
    found = baselines.witnesses(drawn, twin)
    return [dataclasses.replace(task, witness=w) for task, w in zip(drawn, found) if w is not None]


def values(twin, tasks, workflows):
    measured = twin.evaluate([(task.scenario, w) for task, w in zip(tasks, workflows)])
    triples = np.array([(q.delay_ms, q.throughput_mbps, q.ber) for q in measured])
    return np.asarray(reward(triples, np.array([task.required for task in tasks]))), [
        baselines.meets(task, q) for task, q in zip(tasks, measured)]


def test_a_witness_is_a_runnable_workflow_that_meets_all_targets(twin, feasible):
    assert len(feasible) >= 12
    for task in feasible:
        check(task.scenario, task.witness)
    assert all(values(twin, feasible, [task.witness for task in feasible])[1])


def test_the_oracle_meets_all_targets_and_is_never_below_the_witness_or_the_rule(twin, feasible):
    best = baselines.oracle(feasible, twin, RewardConfig())
    for task, workflow in zip(feasible, best):
        check(task.scenario, workflow)
    oracle_R, met = values(twin, feasible, best)
    witness_R, _ = values(twin, feasible, [task.witness for task in feasible])
    assert all(met) and (oracle_R >= witness_R).all() and oracle_R.mean() > witness_R.mean()
    rule = baselines.tuned_rule(feasible, twin)
    assert values(twin, feasible, [rule(task) for task in feasible])[0].mean() < oracle_R.mean()


def test_the_rule_gives_a_workflow_that_the_scenario_can_run(twin, drawn):
    rule = baselines.tuned_rule(drawn[:8], twin)
    for task in drawn:
        check(task.scenario, rule(task))


def test_the_bler_table_asks_more_snr_for_more_bits_and_for_a_lower_bler(twin):
    table, strict = baselines.bler_thresholds(twin, 0.1), baselines.bler_thresholds(twin, 0.01)
    for bits in QAM_BITS:
        thresholds = [table[bits, rate] for rate in CODE_RATES]
        assert thresholds == sorted(thresholds) and len(set(thresholds)) == len(thresholds)
    assert all(table[mode] <= strict[mode] for mode in table)

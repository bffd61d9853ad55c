"""Rule and oracle, on the real twin."""

import dataclasses
import hashlib
import itertools
import random

import numpy as np
import pytest

from experiments.world import baselines, tasks
from experiments.world.baselines import CODE_RATES, QAM_BITS
from rldtf_jax.reward import RewardConfig, reward
from twin import Scenario, check


@pytest.fixture(scope="module")
def feasible(twin, drawn):
    found = baselines.witnesses(drawn, twin)
    return [dataclasses.replace(task, witness=w) for task, w in zip(drawn, found) if w is not None]


def values(twin, tasks, workflows):
    measured = twin.evaluate([(task.scenario, w) for task, w in zip(tasks, workflows)])
    triples = np.array([task.measured(q) for task, q in zip(tasks, measured)])
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


@pytest.mark.parametrize("absent, layers, count, digest", [
    ((), 1, 960, "c1ddde4c70ee9fda"), ((), 2, 2880, "7ad147be936cf002"),
    (("estimate.lmmse", "detect.lmmse", "modulate.8"), 2, 720, "09beabd088088eff"),
])
def test_the_search_on_a_plain_platform_is_the_one_of_the_published_results(absent, layers, count, digest):
    """Recorded before there were neural modules and ways of combining, workflow by workflow in order."""
    for num_tx_ant in (1, 2, 4):
        space = baselines.search_space(tasks.ALWAYS_ABSENT + absent, layers, baselines.ITERATIONS, num_tx_ant)
        assert len(space) == count
        assert hashlib.sha256(repr([dataclasses.astuple(w)[:12] for w in space]).encode()).hexdigest()[:16] == digest


def test_a_full_platform_adds_its_neural_modules_where_they_work():
    plain, full = (baselines.search_space(absent, 2, baselines.ITERATIONS, 4) for absent in (tasks.ALWAYS_ABSENT, ()))
    assert set(plain) < set(full) and len(set(full)) == len(full)
    added = {(w.detector, w.precoder, w.num_layers) for w in set(full) - set(plain)}
    classical = set(itertools.product(("zf", "lmmse"), ("svd", "deeptx"), (1, 2))) - set(itertools.product(("zf",), ("svd", "deeptx"), (1,)))
    assert added == classical | set(itertools.product(("deeprx-small", "deeprx"), ("none", "svd", "deeptx"), (1,)))
    for workflow in full:
        check(Scenario(num_tx_ant=4, num_rx_ant=2), workflow)
    assert {w.precoder for w in baselines.search_space((), 2, (10,), 2) if w.num_layers == 2} == {"none"}


def test_a_failure_rules_out_nothing_of_another_module():
    rng, space = random.Random(0), baselines.search_space((), 2, (8, 20), 4)
    for failed, other in zip(rng.choices(space, k=5000), rng.choices(space, k=5000)):
        if baselines.no_less(failed, other):
            assert (failed.detector, failed.precoder, failed.num_layers) == (other.detector, other.precoder, other.num_layers)
            assert baselines.sturdiness(failed)[0] <= baselines.sturdiness(other)[0]
    assert all(baselines.no_less(workflow, workflow) for workflow in space)


def test_a_random_workflow_of_a_full_platform_runs_there():
    rng, scenario = random.Random(0), Scenario(num_tx_ant=2, num_rx_ant=4)
    for _ in range(200):
        check(scenario, tasks.random_workflow(rng, scenario))

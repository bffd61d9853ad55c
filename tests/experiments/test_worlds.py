"""Search, witnesses and baselines on the real twin, with small simulations."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from experiments.world import baselines, worlds
from experiments.world.search import (
    confirmed,
    granted,
    judged,
    limit,
    modes,
    offered,
    possible,
    search,
    shortlist,
    steps,
)
from rldtf_jax.reward import RewardConfig
from twin import Twin, check
from twin.delay import delay_ms, throughput_mbps

CONFIG = RewardConfig()
FAMILY = worlds.family("link-native")


def twin_for(purpose):
    return Twin(workers=1, seed=worlds.noise_seed(0, purpose), method="esm", max_blocks=64)


@pytest.fixture(scope="module")
def candidates():
    return list(itertools.islice(worlds.candidates(FAMILY, 1), 40))


@pytest.fixture(scope="module")
def world():
    """Tasks with witnesses, by split, and the twin of the evaluation."""
    with (
        twin_for("search") as searching,
        twin_for("confirm 1") as one,
        twin_for("confirm 2") as two,
    ):
        wanted = {"train": 8, "validation": 4, "test": 4}
        drawn, counts = worlds.draw(FAMILY, wanted, 3, searching, [one, two], CONFIG, budget=12)
    with twin_for("evaluate") as fresh:
        yield drawn, counts, fresh


def test_every_purpose_has_a_noise_of_its_own():
    seeds = {
        (base, purpose): worlds.noise_seed(base, purpose)
        for base in range(5)
        for purpose in worlds.NOISE
    }
    assert len(set(seeds.values())) == len(seeds)


def test_modes_are_workflows_that_run_and_that_the_formulas_allow(candidates):
    found = [(task, w) for task in candidates for w in modes(task)]
    assert len(found) > 500
    for task, w in random.Random(0).sample(found, 300):
        check(task.scenario, w)
        assert (
            delay_ms(task.scenario, w) <= task.delay_ms
            and throughput_mbps(w, 0.0) >= task.throughput_mbps
        )
        assert w.num_prb <= task.scenario.max_prb


def test_a_grant_is_the_narrowest_that_carries_the_throughput(candidates):
    for task in candidates:
        for w in modes(task)[:20]:
            assert throughput_mbps(w, 0.0) >= task.throughput_mbps * (1 - 1e-9)
            if w.num_prb > 1:
                assert (
                    throughput_mbps(replace(w, num_prb=w.num_prb - 1), 0.0) < task.throughput_mbps
                )
            half = granted(task, w, bler=0.5)
            assert half is None or throughput_mbps(half, 0.5) >= task.throughput_mbps * (1 - 1e-9)


def test_a_step_changes_one_choice_and_leads_to_every_module_in_the_end(candidates):
    """Between any two workflows of a platform there is a way of steps: each field's every value is
    one step away.
    """
    task = max(candidates, key=lambda t: len(modes(t)))
    start = shortlist(task, CONFIG)[0]
    near = list(steps(task, start))
    for w in near:
        check(task.scenario, w)
        assert possible(task, w)
        changed = {f for f in vars(w) if getattr(w, f) != getattr(start, f)} - {
            "num_prb",
            "combining",
        }
        assert len(changed) <= 1
    reached = {(f, getattr(w, f)) for w in near for f in ("estimator", "detector")}
    for field in ("estimator", "detector"):
        for value in offered(task.scenario, field):
            alone = granted(task, replace(start, **{field: value}))
            assert (field, value) in reached or not possible(task, alone)


def test_no_workflow_earns_more_than_its_limit(candidates):
    with twin_for("search") as twin:
        pairs = [(task, w) for task in candidates[:12] for w in shortlist(task, CONFIG)[:3]]
        for (task, w), (R, good, qos) in zip(pairs, judged(pairs, twin, CONFIG)):
            if good and w.num_transmissions == 1:
                # errors below the target's only cost; block errors lower the throughput, never
                # below the target
                assert (
                    R <= limit(task, w, CONFIG) + CONFIG.weight_satisfied[1] * qos.bler * 2 + 1e-6
                )


def test_a_larger_budget_never_finds_less(candidates):
    with twin_for("search") as twin:
        some = candidates[:10]
        few, more = (search(some, twin, CONFIG, budget) for budget in (6, 20))
    assert all(a.R <= b.R + 1e-9 for a, b in zip(few, more)) and any(
        a.R < b.R for a, b in zip(few, more)
    )
    assert all(one.tries <= 20 for one in more)


def test_witnesses_meet_their_targets_on_every_noise_that_confirmed_them(world):
    drawn, counts, _ = world
    tasks = [task for some in drawn.values() for task in some]
    assert {split: len(some) for split, some in drawn.items()} == {
        "train": 8,
        "validation": 4,
        "test": 4,
    }
    assert all(task.split == split for split, some in drawn.items() for task in some)
    assert counts["feasible"] >= len(tasks) and counts["candidates"] > counts["feasible"]
    for purpose in ("search", "confirm 1", "confirm 2"):
        with twin_for(purpose) as twin:
            assert baselines.rewards(tasks, [task.witness for task in tasks], twin, CONFIG)[1].all()


def test_what_no_noise_confirms_is_not_feasible(candidates):
    with twin_for("search") as twin, twin_for("confirm 1") as other:
        found = search(candidates[:10], twin, CONFIG, 12)
        harder = [replace(task, ber=task.ber * 1e-9) for task in candidates[:10]]
        assert all(
            one.workflow is None and one.R == -1
            for one in confirmed(harder, found, [other], CONFIG)
        )


def test_baselines_run_where_they_are_asked_and_the_oracle_beats_them(world):
    drawn, _, fresh = world
    tasks = drawn["train"] + drawn["test"]
    with twin_for("select") as selecting, twin_for("train") as training:
        rule = baselines.tuned_rule(drawn["validation"], selecting, CONFIG)
        constant = baselines.best_constant(drawn["train"], training, CONFIG, pool=6)
        methods = {
            "sturdiest": list(map(baselines.sturdiest, tasks)),
            "rule": list(map(rule, tasks)),
            "rule_2": baselines.outer_loop(tasks, rule, training, CONFIG, 2),
            "constant": [constant] * len(tasks),
        }
    for name in ("sturdiest", "rule", "rule_2"):
        for task, w in zip(tasks, methods[name]):
            assert w is None or check(task.scenario, w) is None
    mean = {
        name: baselines.rewards(tasks, workflows, fresh, CONFIG)[0].mean()
        for name, workflows in methods.items()
    }
    oracle = baselines.rewards(tasks, [task.witness for task in tasks], fresh, CONFIG)[0].mean()
    assert oracle > max(mean.values()) and min(mean, key=mean.get) == "constant", (oracle, mean)


def test_the_tuned_rule_is_no_worse_than_the_sturdiest_on_what_it_was_tuned_on(world):
    drawn, _, _ = world
    tasks = drawn["validation"]
    with twin_for("select") as twin:
        rule = baselines.tuned_rule(tasks, twin, CONFIG)
        R = [
            baselines.rewards(tasks, list(map(one, tasks)), twin, CONFIG)[0].mean()
            for one in (rule, baselines.sturdiest)
        ]
    assert R[0] >= R[1] - 1e-9


def test_asking_the_twin_twice_is_no_worse_on_its_noise_than_once(world):
    drawn, _, _ = world
    tasks = drawn["train"]
    with twin_for("train") as twin, twin_for("select") as selecting:
        rule = baselines.tuned_rule(drawn["validation"], selecting, CONFIG)
        R = [
            baselines.rewards(
                tasks, baselines.outer_loop(tasks, rule, twin, CONFIG, tries), twin, CONFIG
            )[0]
            for tries in (1, 4)
        ]
    assert (R[1] >= R[0] - 1e-9).all() and isinstance(R[0], np.ndarray)

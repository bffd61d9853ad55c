"""Demonstrations: sturdy and promising modes with random details, kept in files that a second start
goes on from.
"""

import collections
import dataclasses
import random

from experiments.world import engineer
from experiments.world.baselines import sturdiest
from experiments.world.engineer import STURDIEST, WIDER, demonstrate, demonstrations, with_details
from experiments.world.search import MODE, possible, promises
from rldtf_jax.reward import RewardConfig
from twin.delay import throughput_mbps

DETAILS = ("num_prb", "decoder_iterations", "precoder")


def mode(workflow):
    """All but the details."""
    return dataclasses.replace(
        workflow,
        num_prb=1,
        decoder_iterations=2,
        precoder="none" if workflow.precoder == "none" else "svd",
    )


def test_demonstrations_run_in_time_and_their_grants_carry_what_is_asked(drawn):
    found = [(task, w) for task in drawn for w in demonstrate(task, random.Random(0), 4)]
    assert len(found) > 3 * len(drawn)
    for task, w in found:
        assert possible(task, w) and throughput_mbps(w, 0.0) >= task.throughput_mbps * (1 - 1e-9)


def test_the_sturdiest_mode_has_its_share_and_the_others_are_promising(drawn):
    task, number = next(task for task in drawn if sturdiest(task)), 4000
    counts = collections.Counter(map(mode, demonstrate(task, random.Random(1), number)))
    assert counts[mode(sturdiest(task))] / number > STURDIEST - 0.04
    others = [w for w in counts if w != mode(sturdiest(task))]
    assert 1 <= len(others) and sum(counts[w] for w in others) / number < 1 - STURDIEST + 0.04


def test_details_are_drawn_and_nothing_else_is(drawn):
    tasks = [task for task in drawn if sturdiest(task)]
    seen = collections.defaultdict(set)
    for task in tasks:
        first = sturdiest(task)
        for seed in range(30):
            w = with_details(task, first, random.Random(seed))
            assert mode(w) == mode(first) and (w.precoder == "none") == (first.precoder == "none")
            assert (
                first.num_prb
                <= w.num_prb
                <= min(task.scenario.max_prb, -(-first.num_prb * WIDER[-1] // 1))
            )
            for field in DETAILS:
                seen[field].add(getattr(w, field))
    assert (
        len(seen["decoder_iterations"]) > 4
        and {"svd", "deeptx"} <= seen["precoder"]
        and len(seen["num_prb"]) > 4
    )


def test_promising_modes_are_drawn_by_their_promise(drawn, monkeypatch):
    monkeypatch.setattr(engineer, "STURDIEST", 0.0)
    monkeypatch.setattr(engineer, "with_details", lambda task, mode, rng: mode)
    task = next(task for task in drawn if sturdiest(task))
    counts = collections.Counter(demonstrate(task, random.Random(2), 4000))
    value = dict(zip(counts, promises(task, list(counts), RewardConfig())))
    best, often = max(value, key=value.get), counts.most_common(1)[0][0]
    assert value[often] > value[best] - engineer.TEMPERATURE
    assert min(value.values()) > value[best] - 12 * engineer.TEMPERATURE  # one in exp(12)
    assert len({tuple(getattr(w, field) for field in MODE) for w in counts}) == len(counts) > 1


def test_no_demonstration_where_nothing_is_in_time(drawn):
    assert demonstrate(dataclasses.replace(drawn[0], delay_ms=1e-6), random.Random(0), 3) == []


def test_files_are_those_of_one_go_whatever_was_there(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(engineer, "CHUNK", 6)
    tasks = drawn[:10]
    whole = demonstrations(tasks[:6], 2, str(tmp_path / "a"), seed=3)
    again = demonstrations(tasks, 2, str(tmp_path / "a"), seed=3)  # the second chunk is new
    assert again[: len(whole)] == whole and len(again) > len(whole)
    assert (
        again[len(whole) :] == demonstrations(tasks, 2, str(tmp_path / "b"), seed=3)[len(whole) :]
    )
    assert {pair.prompt for pair in whole} <= {task.prompt() for task in drawn}

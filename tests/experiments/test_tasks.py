"""The task generator: seeded, split by hash, within its classes, and readable again."""

import dataclasses
import itertools
import json
import random

import pytest

from experiments.world import tasks
from experiments.world.orchestration import quantity
from experiments.world.tasks import MAX_DELAY_MS, Task
from twin import QoS


def draw(seed, count):
    return list(itertools.islice(tasks.candidates(seed), count))


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others():
    assert draw(3, 50) == draw(3, 50)
    assert draw(3, 50) != draw(4, 50)


def test_targets_lie_within_their_service_class():
    rows = {row["service"]: row for row in tasks.service_classes()}
    seen = set()
    for task in draw(0, 2000):
        row = rows[task.service]
        assert task.ber == float(row["error_rate"]) and task.errors == "packet"
        assert task.delay_ms <= MAX_DELAY_MS
        assert task.delay_ms <= max(0.3 * float(row["packet_delay_budget_ms"]), min(tasks.DELAYS_MS))
        low, high = float(row["rate_mbps_low"]), float(row["rate_mbps_high"])
        assert min(tasks.RATES_MBPS) <= task.throughput_mbps <= max(high * 1.3, min(tasks.RATES_MBPS))
        assert task.throughput_mbps >= low / 1.5
        seen.add(task.service)
    assert seen == set(rows)


def test_requests_are_phrased_in_many_ways_and_prompts_say_the_targets():
    drawn = draw(1, 500)
    assert len({task.request for task in drawn}) > 300
    for task in drawn:
        assert task.prompt().startswith(task.request)
        assert f"PER {task.ber:.0e}".replace("e-0", "e-") in task.prompt()
        assert quantity(task.delay_ms, "ms", "us") in task.prompt()


def test_splits_are_a_function_of_the_problem_and_not_of_its_words():
    rng = random.Random(0)
    for task in draw(2, 200):
        words = tasks.phrase(rng, task.service)
        assert dataclasses.replace(task, request=words).split == task.split
    shares = [sum(task.split == split for task in draw(2, 2000)) / 2000 for split in tasks.SPLITS]
    assert abs(shares[0] - 0.80) < 0.04 and abs(shares[1] - 0.05) < 0.02 and abs(shares[2] - 0.15) < 0.03


def test_modules_that_joined_the_toolbox_later_change_neither_prompts_nor_splits():
    for task in draw(2, 200):
        before = dataclasses.replace(task.scenario, absent=tuple(m for m in task.scenario.absent if m not in tasks.YOUNGER))
        assert dataclasses.replace(task, scenario=before).split == task.split and "deep" not in task.prompt()


def test_tasks_read_back_as_written(tmp_path):
    drawn = [dataclasses.replace(task, witness=tasks.random_workflow(random.Random(0), task.scenario))
             for task in draw(5, 20)]
    path = str(tmp_path / "tasks.jsonl")
    tasks.save(drawn, path)
    assert tasks.load(path) == drawn


@pytest.mark.parametrize("change, word", [
    ({"delay_ms": -1}, "delay_ms"), ({"ber": "low"}, "ber"), ({"delay_ms": float("inf")}, "delay_ms"), ({"errors": "symbol"}, "errors"), ({"colour": "red"}, "colour"),
    ({"scenario": {"channel": "tdl-z"}}, "channel"),
])
def test_a_wrong_task_is_refused_with_its_line_and_field(tmp_path, change, word):
    path = tmp_path / "tasks.jsonl"
    good = json.dumps(tasks.to_dict(draw(0, 1)[0]))
    path.write_text(good + "\n" + json.dumps(json.loads(good) | change) + "\n")
    with pytest.raises(ValueError, match=rf"tasks\.jsonl:2: .*{word}"):
        tasks.load(str(path))


def test_packet_errors_are_held_against_blocks_and_bit_errors_against_bits():
    qos = QoS(delay_ms=1.5, throughput_mbps=9.0, ber=1e-4, bler=1e-2, num_blocks=64, delays_ms=(1.0, 3.0), delivered=(0.9, 0.99))
    packet = draw(0, 1)[0]
    bit = dataclasses.replace(packet, errors="bit")
    assert packet.measured(qos) == (3.0, 9.0, 1e-2) and bit.measured(qos) == (3.0, 9.0, 1e-4)
    assert "BER" in bit.prompt() and "BER" not in packet.prompt()


def test_one_s_own_task_needs_no_witness():
    row = tasks.to_dict(draw(0, 1)[0])
    del row["witness"]
    assert isinstance(tasks.from_dict(row), Task)


def test_a_response_is_the_workflow_with_or_without_thoughts_before_it():
    task = draw(0, 1)[0]
    workflow = tasks.random_workflow(random.Random(0), task.scenario)
    assert task.response(workflow).endswith(f"</think> {task.response(workflow, think=False)}")
    assert task.response(workflow, think=False).startswith("Use ")

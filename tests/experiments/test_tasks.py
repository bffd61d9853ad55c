"""The task generator: seeded, split by hash, within its classes, and readable again."""

import dataclasses
import itertools
import json
import math
import os
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.world import families, tasks, wording, worlds
from experiments.world.orchestration import quantity
from experiments.world.reading import to_task
from experiments.world.tasks import Task
from twin import TOOLS, QoS
from twin.toolbox import MODULES

FAMILIES = {name: worlds.family(name) for name in ("link", "link-native", "plain")}


def draw(seed, count, family="link"):
    return list(itertools.islice(worlds.candidates(FAMILIES[family], seed), count))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_tasks_and_another_seed_others(family):
    assert draw(3, 50, family) == draw(3, 50, family)
    assert draw(3, 50, family) != draw(4, 50, family)


def test_targets_lie_within_their_service_class():
    rows = {row["service"]: row for row in wording.service_classes()}
    seen = set()
    for task in draw(0, 5000):
        row = rows[task.service]
        assert task.ber == float(row["error_rate"]) and task.errors == "packet"
        assert task.delay_ms <= worlds.MAX_DELAY_MS
        low, high = float(row["rate_mbps_low"]), float(row["rate_mbps_high"])
        assert task.throughput_mbps <= max(high * 1.5, 0.05) and task.throughput_mbps >= low / 1.6
        if task.infers:
            assert task.required == wording.nominal_targets(task.service)
        seen.add((task.service, task.kind))
    assert seen == set(itertools.product(rows, wording.KINDS))


def test_a_stated_request_says_its_targets_and_the_others_do_not():
    for task in draw(1, 600):
        assert task.prompt().startswith(
            task.request
        ) and "Targets:" not in task.prompt().removeprefix(task.request)
    for task in draw(1, 100, "plain"):
        assert (
            f"PER {task.ber:.0e}".replace("e-0", "e-") in task.prompt()
            and quantity(task.delay_ms, "ms", "us") in task.prompt()
        )


def test_a_response_to_an_unstated_request_begins_with_the_inferred_targets():
    for task in draw(2, 200):
        text = task.response(tasks.random_workflow(random.Random(0), task.scenario))
        inferred = wording.read_intent(text)
        assert (inferred is not None) == task.infers
        if inferred:
            assert wording.intent_error(inferred, task.required) == 0


# Splits


def test_splits_are_a_function_of_scenario_and_targets_alone():
    for task in draw(2, 200):
        again = dataclasses.replace(
            task, request="other words", service="V2X messages", kind="named", witness=None
        )
        assert again.split == task.split


def test_splits_have_their_shares():
    counts = Counter(task.split for task in draw(2, 4000))
    shares = {split: counts[split] / 4000 for split in tasks.SPLITS}
    assert set(counts) == set(tasks.SPLITS) and 0.6 < shares["train"] < 0.75
    assert all(0.03 < shares[split] < 0.12 for split in tasks.SPLITS if split != "train"), shares


@pytest.mark.parametrize("family", FAMILIES)
def test_no_split_leaks(family):
    """No problem of two splits; no cell of links of new-links and no platform of new-platforms
    elsewhere; words of new-words nowhere else.
    """
    by_split = {split: [] for split in tasks.SPLITS}
    for task in draw(6, 3000, family):
        by_split[task.split].append(task)

    def of(split, what):
        return {what(task) for task in by_split[split]}

    def cell(task):
        s = task.scenario
        return s.channel, math.floor(s.snr_db / tasks.SNR_CELL_DB), s.num_tx_ant, s.num_rx_ant

    def platform(task):
        return task.scenario.absent, task.scenario.compute_gflops

    for split in tasks.SPLITS:
        others = [s for s in tasks.SPLITS if s != split]
        assert not of(split, lambda t: (t.scenario, t.required)) & set().union(
            *(of(s, lambda t: (t.scenario, t.required)) for s in others)
        )
        if split != "new-links":
            assert not of(split, cell) & of("new-links", cell)
        if split not in ("new-platforms", "new-links"):
            assert not of(split, platform) & of("new-platforms", platform)
        if split != "new-words":
            assert not of(split, lambda t: t.request) & of("new-words", lambda t: t.request)


# Families


def test_every_module_is_present_on_some_platforms_and_absent_from_others():
    platforms = [set(task.scenario.absent) for task in draw(7, 1500)]
    always = {"modulate.2", "precode.none", "harq.1"}
    for module in MODULES:
        absent = sum(module in platform for platform in platforms) / len(platforms)
        assert absent < 0.95 and (absent > 0.02 or module in always), (module, absent)
    for task in draw(7, 300, "link-native"):
        assert {
            "encode.polar",
            "detect.ep",
            "detect.kbest",
            "detect.deeprx-small",
            "detect.deeprx",
        } <= set(task.scenario.absent)


def test_every_choice_of_the_toolbox_is_an_oracles_on_link():
    """Of the tasks that ship, at least one in a hundred."""
    witnesses = [
        task.witness
        for some in tasks.load_splits(os.path.join(tasks.DATA, "link")).values()
        for task in some
    ]
    for tool in TOOLS:
        for argument in tool.arguments:
            for value in argument.choices:
                share = sum(getattr(w, argument.field) == value for w in witnesses) / len(witnesses)
                assert share >= 0.01, (argument.field, value, share)


def test_whoever_has_a_neural_receiver_has_an_accelerator():
    for task in draw(9, 600):
        neural = not set(families.NEURAL_RECEIVERS) <= set(task.scenario.absent)
        assert task.scenario.compute_gflops in (
            FAMILIES["link"].accelerated_gflops if neural else FAMILIES["link"].compute_gflops
        )


def test_some_method_of_every_stage_stays():
    for task in draw(8, 1500):
        for tool in TOOLS:
            for argument in tool.arguments:
                names = {f"{tool.name}.{value}" for value in argument.choices}
                assert not names or names - set(task.scenario.absent)


@given(
    st.sampled_from(wording.RATES_MBPS),
    st.floats(0.1, 0.9),
    st.integers(1, 50),
    st.sampled_from([(1, 1), (2, 2), (4, 1), (2, 4)]),
    st.sampled_from((15, 30, 60, 120)),
)
def test_the_load_is_what_the_snr_makes_it(throughput, load, num_prb, antennas, scs_khz):
    """At the SNR that follows from a load Shannon's bound carries throughput / load, within half a
    dB of rounding.
    """
    tx, rx = antennas
    snr_db = families.loaded_snr_db(throughput, load, num_prb, tx, rx, scs_khz=scs_khz)

    def carried(snr_db):
        snr, layers = 10 ** (snr_db / 10), min(tx, rx)
        bits = max(math.log2(1 + snr * rx * tx), layers * math.log2(1 + snr * rx / layers))
        # Mbit/s: resource elements of a slot of 15 / scs ms
        return bits * num_prb * 12 * 14 * scs_khz / 15 * 1e-3

    if snr_db < 100:
        assert carried(snr_db - 0.51) <= throughput / load <= carried(snr_db + 0.51)


def test_a_platform_with_one_spacing_is_loaded_on_that_one():
    """The same draws as with 30 kHz, but for the SNR, which a load on half the bandwidth raises and
    on more of it lowers.
    """
    own, fixed = (
        dataclasses.replace(
            FAMILIES["link"],
            load_khz=khz,
            snr_db=(-39, 79, 1),
            short_of_power=0.0,
            present={"grid": 0.0, "grid.15": 1.0},
        )
        for khz in (None, 30)
    )
    pairs = [
        (
            families.draw_scenario(random.Random(seed), own, 2.0),
            families.draw_scenario(random.Random(seed), fixed, 2.0),
        )
        for seed in range(200)
    ]
    higher = [a.snr_db - b.snr_db for a, b in pairs if a and b]
    assert len(higher) > 150
    assert min(higher) >= 1 and max(higher) > 4


def test_a_drifting_site_changes_little_from_step_to_step():
    steps = list(itertools.islice(worlds.drift(FAMILIES["link"], 0), 400))
    assert steps == list(itertools.islice(worlds.drift(FAMILIES["link"], 0), 400))
    assert steps != list(itertools.islice(worlds.drift(FAMILIES["link"], 1), 400))
    changes = 0
    for a, b in zip(steps, steps[1:]):
        before, after = a.scenario, b.scenario
        assert (before.channel, before.num_tx_ant, before.num_rx_ant) == (
            after.channel,
            after.num_tx_ant,
            after.num_rx_ant,
        )
        assert (
            abs(before.snr_db - after.snr_db) <= 1
            and abs(before.speed_mps - after.speed_mps) <= 0.5
        )
        changes += before.absent != after.absent
    assert 5 < changes < 60
    asked = {task.service for task in itertools.islice(worlds.drift(FAMILIES["link"], 0), 3000)}
    # the rarest, IMS signalling, in one of 300 steps: its load is light where an SNR is in range
    assert len(asked) == 20


def test_tasks_read_back_as_written(tmp_path):
    drawn = [
        dataclasses.replace(task, witness=tasks.random_workflow(random.Random(0), task.scenario))
        for task in draw(5, 20)
    ]
    path = str(tmp_path / "tasks.jsonl")
    tasks.save(drawn, path)
    assert tasks.load(path) == drawn


@pytest.mark.parametrize(
    "change, word",
    [
        ({"delay_ms": -1}, "delay_ms"),
        ({"ber": "low"}, "ber"),
        ({"delay_ms": float("inf")}, "delay_ms"),
        ({"errors": "symbol"}, "errors"),
        ({"colour": "red"}, "colour"),
        ({"scenario": {"channel": "tdl-z"}}, "channel"),
    ],
)
def test_a_wrong_task_is_refused_with_its_line_and_field(tmp_path, change, word):
    path = tmp_path / "tasks.jsonl"
    good = json.dumps(tasks.to_dict(draw(0, 1)[0]))
    path.write_text(good + "\n" + json.dumps(json.loads(good) | change) + "\n")
    with pytest.raises(ValueError, match=rf"tasks\.jsonl:2: .*{word}"):
        tasks.load(str(path))


def test_packet_errors_are_held_against_blocks_and_bit_errors_against_bits():
    qos = QoS(
        delay_ms=1.5,
        throughput_mbps=9.0,
        ber=1e-4,
        bler=1e-2,
        num_blocks=64,
        delays_ms=(1.0, 3.0),
        delivered=(0.9, 0.99),
    )
    packet = draw(0, 1)[0]
    bit = dataclasses.replace(packet, errors="bit")
    assert packet.measured(qos) == (3.0, 9.0, 1e-2) and bit.measured(qos) == (3.0, 9.0, 1e-4)
    listed = dataclasses.replace(bit, kind="listed")
    assert (
        "BER" in listed.prompt()
        and "BER" not in dataclasses.replace(packet, kind="listed").prompt()
    )


def test_one_s_own_task_needs_no_witness():
    row = tasks.to_dict(draw(0, 1)[0])
    del row["witness"]
    assert isinstance(to_task(row), Task)


def test_a_response_is_the_workflow_with_or_without_thoughts_before_it():
    task = next(task for task in draw(0, 20) if not task.infers)
    workflow = tasks.random_workflow(random.Random(0), task.scenario)
    assert task.response(workflow).endswith(f"</think> {task.response(workflow, think=False)}")
    assert task.response(workflow, think=False).startswith("Use ")

"""The language between policy and twin: what is written reads back, and nothing else gets
through.
"""

import random
import re
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.world import tasks, worlds
from experiments.world.orchestration import (
    THINK,
    describe_link,
    describe_state,
    describe_targets,
    describe_tools,
    describe_workflow,
    number,
    power_of_ten,
    quantity,
    think,
    translate,
)
from experiments.world.search import granted, sized_workflow
from twin import Scenario, Workflow, WorkflowError, check, parse
from twin.delay import throughput_mbps
from twin.toolbox import MODULES

LINK = worlds.family("link")
workflows = st.builds(
    Workflow,
    num_prb=st.integers(1, 273),
    scs_khz=st.sampled_from((15, 30, 60, 120)),
    code=st.sampled_from(("ldpc", "polar")),
    code_rate=st.sampled_from((0.2, 0.33, 0.5, 0.67, 0.83)),
    decoder_iterations=st.integers(1, 20),
    bits_per_symbol=st.sampled_from((2, 4, 6, 8)),
    num_layers=st.integers(1, 4),
    num_dmrs=st.sampled_from((1, 2)),
    estimator=st.sampled_from(("ls-nearest", "ls", "lmmse")),
    detector=st.sampled_from(("zf", "lmmse", "ep", "kbest", "deeprx")),
    precoder=st.sampled_from(("none", "svd", "deeptx")),
    num_transmissions=st.integers(1, 4),
)


@given(workflows)
def test_a_described_workflow_translates_to_code_of_the_same_workflow(workflow):
    assert parse(translate(describe_workflow(workflow))) == workflow


@given(workflows, st.integers(0, 2**32))
def test_a_whole_response_of_a_drawn_task_reads_back(workflow, seed):
    task = next(worlds.candidates(LINK, seed))
    assert parse(translate(task.response(workflow))) == workflow


@given(st.integers(0, 2**32))
def test_every_random_workflow_is_one_that_its_scenario_can_run(seed):
    rng, scenario = random.Random(seed), next(worlds.candidates(LINK, seed)).scenario
    workflow = tasks.random_workflow(rng, scenario)
    check(scenario, workflow)
    assert parse(translate(describe_workflow(workflow))) == workflow


@settings(max_examples=500)
@given(st.text(max_size=300))
def test_arbitrary_text_is_a_workflow_error(text):
    with pytest.raises(WorkflowError):
        parse(translate(text))


@settings(max_examples=500)
@given(workflows, st.data())
def test_a_response_with_any_slice_replaced_gives_a_workflow_or_a_workflow_error(workflow, data):
    text = describe_workflow(workflow)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    try:
        assert isinstance(
            parse(translate(text[:start] + data.draw(st.text(max_size=20)) + text[end:])), Workflow
        )
    except WorkflowError:
        pass


@pytest.mark.parametrize(
    "change",
    [
        ("ls estimation", '") or __import__("os").system("true") # estimation'),
        ("ls estimation", "__class__ estimation"),
        ("8 iterations", "9" * 5000 + " iterations"),
        ("8 iterations", "٨ iterations"),
        ("rate 0.50", "rate 0.5e9"),
        ("rate 0.50", "rate nan"),
        ("24 PRB", "24 PRB, 25 PRB"),
        ("24 PRB", "24 PRB, svd precoding, svd precoding"),
        ("24 PRB", "24 PRB, 5 transmissions"),
        ("24 PRB", "-24 PRB"),
        ("24 PRB", "x24 PRB"),
        ("24 PRB", "1.24 PRB"),
        ("16QAM", "116QAM"),
        ("16QAM", "16QAM QPSK"),
        ("Use", THINK),
    ],
)
def test_hostile_or_ambiguous_responses_are_workflow_errors(change):
    text = (
        "Use 30 kHz, 16QAM on 1 layer, LDPC rate 0.50 with 8 iterations, 1 DMRS, ls estimation, zf"
        " detection, 24 PRB."
    )
    assert parse(translate(text)).num_prb == 24
    with pytest.raises(WorkflowError):
        parse(translate(text.replace(*change)))


def test_the_words_of_the_think_part_are_not_part_of_the_workflow():
    workflow = Workflow()
    assert (
        parse(translate(f"<think>99 PRB, 15 kHz, 7 layers</think>{describe_workflow(workflow)}"))
        == workflow
    )


def test_the_think_line_repeats_the_prompts_figures_and_adds_the_array_gain_to_the_snr():
    scenario = next(t.scenario for t in worlds.candidates(LINK, 0) if t.scenario.num_rx_ant == 4)
    size = f"SNR {scenario.snr_db:.0f} dB, {scenario.num_tx_ant}x4 antennas, {scenario.max_prb} PRB"
    assert size in describe_link(scenario)
    assert (
        think(scenario, 12.0, 0.5)
        == f"<think> {size}: {scenario.snr_db:.0f} + 6 = {scenario.snr_db + 6:.0f} dB; 12 Mbps, 500"
        " us</think> "
    )


def test_a_described_workflow_states_what_a_prb_carries_and_what_its_grant_is_for():
    workflow = Workflow(num_prb=10, scs_khz=60, code_rate=0.5, bits_per_symbol=4)
    # bits of the transport block over a slot of 250 us
    assert throughput_mbps(workflow, 0.0) == pytest.approx(3104 / 250)
    # 12 x 13 x 4 x 0.5 bits in 250 us
    assert describe_workflow(workflow).endswith(" 1.2 Mbps a PRB, 10 Mbps on 10 PRB.")
    assert describe_workflow(workflow, 12.0).endswith(" 12 Mbps on 10 PRB.")
    assert describe_workflow(workflow, 13.0).endswith(" 10 Mbps on 10 PRB.")  # more than it carries
    slow = Workflow(num_prb=3, scs_khz=15, code_rate=0.2, bits_per_symbol=2)
    assert describe_workflow(slow, 0.1).endswith(" 62 kbps a PRB, 100 kbps on 3 PRB.")


@given(seed=st.integers(0, 2**32))
def test_the_practised_grant_is_the_least_that_carries_what_is_asked(seed):
    task = next(worlds.candidates(LINK, seed))
    workflow = sized_workflow(random.Random(seed), task)
    check(task.scenario, workflow)
    fewest = granted(task, workflow)
    assert fewest == workflow or fewest is None
    if fewest and workflow.num_prb > 1:
        fewer = replace(workflow, num_prb=workflow.num_prb - 1)
        assert throughput_mbps(workflow, 0.0) >= task.throughput_mbps > throughput_mbps(fewer, 0.0)


@given(
    snr=st.floats(-20, 60),
    compute=st.floats(1e-6, 1e9),
    spread=st.floats(0, 3000),
    speed=st.floats(0, 300),
    power=st.floats(0.01, 100),
    delay=st.floats(1e-9, 1e6, exclude_min=True),
    rate=st.floats(1e-9, 1e6, exclude_min=True),
    errors=st.floats(1e-9, 1, exclude_min=True, exclude_max=True),
)
def test_a_prompt_says_the_numbers_that_the_judge_goes_by(
    snr, compute, spread, speed, power, delay, rate, errors
):
    scenario = Scenario(
        channel="tdl-b",
        snr_db=snr,
        compute_gflops=compute,
        delay_spread_ns=spread,
        speed_mps=speed,
        full_power_mhz=power,
    )
    text, targets = describe_link(scenario), describe_targets(delay, rate, errors)
    assert "e-" not in text and "-0 " not in text
    read = re.fullmatch(
        r"Link: tdl-b (\S+) ns at (\S+) m/s, SNR (\S+) dB, .* PRB, full power up to (\S+) MHz,"
        r" (\S+) GFLOPS\.",
        text,
    )
    assert tuple(map(float, read.groups())) == (spread, speed, snr, power, compute)
    assert describe_state(scenario).count(f" {read[3]} dB ") == 1
    wanted, unit, late, small, rare = re.fullmatch(
        r"Targets: (\S+) (Mbps|kbps), (\S+) (ms|us), BER (\S+)\.", targets
    ).groups()
    assert (
        float(Decimal(wanted) / (1 if unit == "Mbps" else 1000)) == rate
        and float(Decimal(late) / (1 if small == "ms" else 1000)) == delay
    )
    assert float(rare) == errors


@pytest.mark.parametrize(
    "value, text",
    [(-0.0, "0"), (-0.5, "-0.5"), (12.0, "12"), (1e-6, "0.000001"), (1e9, "1000000000"), (7, "7")],
)
def test_numbers_are_written_as_people_write_them(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    "value, text", [(1e-3, "1e-3"), (1.5e-3, "1.5e-3"), (1e-6, "1e-6"), (0.25, "2.5e-1")]
)
def test_error_rates_are_powers_of_ten(value, text):
    assert power_of_ten(value) == text


@pytest.mark.parametrize(
    "value, text",
    [
        (0.1, "100 kbps"),
        (1.5, "1500 kbps"),
        (12, "12 Mbps"),
        (0.3, "300 kbps"),
        (1.1, "1100 kbps"),
        (0.0001, "0.1 kbps"),
    ],
)
def test_quantities_are_whole_numbers_of_a_unit(value, text):
    assert quantity(value, "Mbps", "kbps") == text


def test_what_a_platform_has_is_shown_and_can_be_asked_for():
    full = Scenario(num_tx_ant=4, num_rx_ant=2)
    assert (
        describe_tools(full)
        == "Tools: 15 30 60 120 kHz; QPSK 16QAM 64QAM 256QAM; LDPC polar; rate 0.20 0.33 0.50 0.67"
        " 0.83 0.89; 1 2 DMRS; ls-nearest ls lmmse estimation; mrc zf lmmse ep kbest"
        " deeprx-small deeprx detection; none svd deeptx precoding; 1 2 3 4 transmissions; ir"
        " chase combining."
    )
    for module in MODULES:
        assert describe_tools(replace(full, absent=(module,))) != describe_tools(full), module
    workflow = Workflow(detector="deeprx-small", precoder="deeptx")
    assert parse(translate(describe_workflow(workflow))) == workflow


def test_both_prompts_say_all_that_the_twin_reads_of_a_scenario():
    """Any change of a field that matters changes both descriptions."""
    base = Scenario(
        channel="tdl-b",
        snr_db=3.0,
        num_tx_ant=2,
        num_rx_ant=4,
        delay_spread_ns=120.0,
        speed_mps=4.5,
        max_prb=7,
        compute_gflops=5.0,
    )
    changes = dict(
        channel="cdl-c",
        snr_db=4.0,
        num_tx_ant=1,
        num_rx_ant=2,
        delay_spread_ns=125.0,
        speed_mps=5.0,
        max_prb=8,
        compute_gflops=10.0,
        antenna_correlation="high",
        full_power_mhz=0.72,
        access="aligned",
    )
    for describe in (describe_link, describe_state):
        for field, value in changes.items():
            assert describe(replace(base, **{field: value})) != describe(base), (describe, field)


def test_the_long_prompt_lists_the_tools_that_are_present_with_their_arguments():
    task = next(
        t
        for t in worlds.candidates(LINK, 0)
        if "detect.zf" in t.scenario.absent and "grid.15" in t.scenario.absent
    )
    prompt = task.prompt("long")
    line = next(line for line in prompt.splitlines() if line.startswith("grid("))
    assert "15" not in line.partition("scs_khz=")[2].partition(")")[0] and "num_prb=1..273" in line
    assert task.request in prompt and describe_state(task.scenario) in prompt
    detect = next(line for line in prompt.splitlines() if line.startswith("detect(method="))
    assert "zf" not in detect.partition("method=")[2].partition(")")[0].split("|")

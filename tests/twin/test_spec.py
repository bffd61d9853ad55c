import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import scenarios, workflows

from twin import QoS, Scenario, Workflow, WorkflowError, check, physical
from twin.spec import SCENARIO_RULES, WORKFLOW_RULES


def test_importing_twin_imports_neither_tensorflow_nor_jax():
    code = "import sys, twin; assert not {'tensorflow', 'sionna', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_field_has_a_default():
    check(Scenario(), Workflow())


@pytest.mark.parametrize("cls, rules", [(Scenario, SCENARIO_RULES), (Workflow, WORKFLOW_RULES)])
@given(value=st.one_of(st.none(), st.booleans(), st.text(max_size=4), st.just(float("nan")), st.just(float("inf")), st.just(-7)))
def test_a_bad_value_is_refused_by_field_and_value(cls, rules, value):
    for name, (rule, *limits) in rules.items():
        if type(value) in (int, float, str) and (value in limits[0] if len(limits) == 1 else -7 >= limits[0]):
            continue
        with pytest.raises(ValueError, match=rf"{cls.__name__}\.{name}.*got"):
            cls(**{name: value})


@given(s=scenarios(), w=workflows())
def test_specs_survive_pickling_and_numpy_scalars(s, w):
    assert pickle.loads(pickle.dumps((s, w))) == (s, w) == copy.deepcopy((s, w))
    assert Workflow(num_prb=np.int64(w.num_prb), code_rate=np.float64(w.code_rate)).num_prb == w.num_prb
    assert hash(Scenario(snr_db=np.float64(3))) == hash(Scenario(snr_db=3))


@pytest.mark.parametrize(
    "scenario, workflow, words",
    [
        (Scenario(max_prb=10), Workflow(num_prb=11), "at most 10"),
        (Scenario(num_rx_ant=1), Workflow(num_layers=2), "at most 1"),
        (Scenario(num_tx_ant=1), Workflow(num_layers=2), "at most 1"),
        (Scenario(absent=("estimate.lmmse",)), Workflow(estimator="lmmse"), "lacks"),
        (Scenario(), Workflow(detector="deeprx", num_layers=2), "one layer"),
        (Scenario(absent=("detect.deeprx",)), Workflow(detector="deeprx"), "lacks"),
        (Scenario(), Workflow(estimator="perfect"), "offers"),
        (Scenario(), Workflow(code="none"), "offers"),
        (Scenario(), Workflow(code_rate=0.41), "offers"),
    ],
)
def test_what_a_scenario_lacks_cannot_be_used(scenario, workflow, words):
    with pytest.raises(WorkflowError, match=words):
        check(scenario, workflow)


@pytest.mark.parametrize("absent", ["estimate.lmmse", ("estimate.lmse",), (3,)])
def test_absent_modules_are_those_of_the_toolbox(absent):
    with pytest.raises(ValueError, match="Scenario.absent"):
        Scenario(absent=absent)


def test_an_absent_choice_takes_no_number_of_another_argument_with_it():
    """grid.120 is a subcarrier spacing, not a number of resource blocks; modulate.4 is 16QAM, not four layers."""
    link = Scenario(num_tx_ant=4, num_rx_ant=4, absent=("grid.120", "modulate.4"))
    check(link, Workflow(num_prb=120, num_layers=4))
    for workflow in (Workflow(scs_khz=120), Workflow(bits_per_symbol=4)):
        with pytest.raises(WorkflowError, match="lacks"):
            check(link, workflow)


def test_validation_modules_pass_only_as_validation():
    check(Scenario(), Workflow(estimator="perfect", code="none", code_rate=0.41), validation=True)


@given(s=scenarios(), w=workflows(), prb=st.integers(1, 273), gflops=st.floats(1, 1000))
def test_error_rates_do_not_depend_on_the_grant_or_the_platform(s, w, prb, gflops):
    from dataclasses import replace

    other = physical(replace(s, max_prb=prb, compute_gflops=gflops), replace(w, num_prb=prb))
    assert other == physical(s, w)


def test_a_channel_without_memory_does_not_depend_on_speed_spread_or_numerology():
    for channel in ("awgn", "rayleigh"):
        still = physical(Scenario(channel=channel, speed_mps=0, delay_spread_ns=10), Workflow(scs_khz=15))
        assert still == physical(Scenario(channel=channel, speed_mps=90, carrier_ghz=28), Workflow(scs_khz=120))
    assert physical(Scenario(speed_mps=0), Workflow()) != physical(Scenario(speed_mps=9), Workflow())


def test_wilson_interval_of_no_errors_is_about_three_over_n():
    low, high = QoS(1, 1, 3 / 64000, 3 / 64000, 64, 64000).bler_interval()
    assert low == 0 and 2 / 64 < high < 4 / 64

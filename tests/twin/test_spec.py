import copy
import math
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import scenarios, workflows

from twin import QoS, Scenario, Workflow, WorkflowError, check, physical
from twin.spec import SCENARIO_RULES, WORKFLOW_RULES


def test_importing_twin_imports_neither_tensorflow_nor_jax():
    code = (
        "import sys, twin; assert not {'tensorflow', 'sionna', 'jax', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_field_has_a_default():
    check(Scenario(), Workflow())


@pytest.mark.parametrize("cls, rules", [(Scenario, SCENARIO_RULES), (Workflow, WORKFLOW_RULES)])
@given(
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.text(max_size=4),
        st.just(float("nan")),
        st.just(float("inf")),
        st.just(-7),
    )
)
def test_a_bad_value_is_refused_by_field_and_value(cls, rules, value):
    for name, (rule, *limits) in rules.items():  # noqa: B007
        if type(value) in (int, float, str) and (
            value in limits[0] if len(limits) == 1 else -7 >= limits[0]
        ):
            continue
        with pytest.raises(ValueError, match=rf"{cls.__name__}\.{name}.*got"):
            cls(**{name: value})


@given(s=scenarios(), w=workflows())
def test_specs_survive_pickling_and_numpy_scalars(s, w):
    assert pickle.loads(pickle.dumps((s, w))) == (s, w) == copy.deepcopy((s, w))
    assert (
        Workflow(num_prb=np.int64(w.num_prb), code_rate=np.float64(w.code_rate)).num_prb
        == w.num_prb
    )
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
    """grid.120 is a subcarrier spacing, not a number of resource blocks; modulate.4 is 16QAM, not
    four layers.
    """
    link = Scenario(num_tx_ant=4, num_rx_ant=4, absent=("grid.120", "modulate.4"))
    check(link, Workflow(num_prb=120, num_layers=4))
    for workflow in (Workflow(scs_khz=120), Workflow(bits_per_symbol=4)):
        with pytest.raises(WorkflowError, match="lacks"):
            check(link, workflow)


def test_validation_modules_pass_only_as_validation():
    check(Scenario(), Workflow(estimator="perfect", code="none", code_rate=0.41), validation=True)


@given(s=scenarios(), w=workflows(), prb=st.integers(1, 273), gflops=st.floats(1, 1000))
def test_the_platform_and_its_bandwidth_act_through_harqs_round_trip_alone(s, w, prb, gflops):
    one, other = physical(s, w), physical(replace(s, max_prb=prb, compute_gflops=gflops), w)
    assert replace(one, round_trip_s=0) == replace(other, round_trip_s=0)
    assert one == other or (w.num_transmissions > 1 and s.channel not in ("awgn", "rayleigh"))


def test_a_slow_platform_meets_another_channel_when_it_sends_again():
    w = Workflow(num_transmissions=2)
    fast, slow = (physical(Scenario(compute_gflops=g), w).round_trip_s for g in (1000, 1))
    assert 0 < fast < slow and round(fast / 0.5e-3, 9).is_integer()


@given(s=scenarios(), w=workflows())
def test_one_transmission_has_nothing_to_combine(s, w):
    once = replace(w, num_transmissions=1)
    assert physical(s, replace(once, combining="ir")) == physical(
        s, replace(once, combining="chase")
    )


@pytest.mark.parametrize("detector", ["mrc", "zf", "lmmse", "ep", "kbest"])
def test_one_layer_has_nothing_to_separate(detector):
    assert physical(Scenario(), Workflow(detector=detector)) == physical(Scenario(), Workflow())


def test_a_channel_without_memory_does_not_depend_on_speed_spread_or_numerology():
    for channel in ("awgn", "rayleigh"):
        still = physical(
            Scenario(channel=channel, speed_mps=0, delay_spread_ns=10), Workflow(scs_khz=15)
        )
        moving = Scenario(channel=channel, speed_mps=90, carrier_ghz=28)
        assert still == physical(moving, Workflow(scs_khz=120))
    assert physical(Scenario(speed_mps=0), Workflow()) != physical(
        Scenario(speed_mps=9), Workflow()
    )


def test_a_grant_wider_than_the_power_reaches_shares_it():
    """Four times 5 MHz: 6 dB less a resource element, and the same simulation as without the
    limit.
    """
    wide = Workflow(num_prb=100, scs_khz=15)  # 18 MHz
    limited = physical(Scenario(snr_db=10, full_power_mhz=4.5), wide)
    assert limited.snr_db == pytest.approx(10 - 10 * math.log10(4))
    assert limited == physical(Scenario(snr_db=limited.snr_db), wide)
    narrow = Workflow(num_prb=25, scs_khz=15)
    assert physical(Scenario(snr_db=10, full_power_mhz=4.5), narrow) == physical(
        Scenario(snr_db=10), narrow
    )


def test_a_delay_quantile_is_that_of_the_delivered_blocks():
    """50 % after one transmission, 80 % after two, 90 % at all: 8 of 9 delivered blocks took two or
    fewer.
    """
    qos = QoS(1, 1, 0.1, 0.1, 100, delays_ms=(1.0, 3.0, 5.0), delivered=(0.5, 0.8, 0.9))
    asked = {0.5: 1.0, 0.55: 1.0, 0.56: 3.0, 0.88: 3.0, 0.89: 5.0, 1.0: 5.0}
    assert {share: qos.delay_quantile_ms(share) for share in asked} == asked
    assert (
        QoS(1, 0, 1, 1, 9, delays_ms=(2.0, 4.0), delivered=(0.0, 0.0)).delay_quantile_ms(0.99)
        == 2.0
    )

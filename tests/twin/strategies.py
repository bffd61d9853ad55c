"""Hypothesis strategies over the whole schema."""

from hypothesis import strategies as st

from twin import Scenario, Workflow
from twin.spec import CHANNELS
from twin.toolbox import BY_FIELD, MAX_ANT, MAX_PRB

# every kind; cdl takes ten times as long
SOME_CHANNELS = ("awgn", "rayleigh", "tdl-a", "tdl-b", "tdl-d", "cdl-c")
TOOLBOX_RATES = BY_FIELD["code_rate"].choices


def values(argument):
    """Every value of a Workflow field, by its entry in the toolbox."""
    if argument.choices and argument.high:
        return st.floats(argument.low, argument.high)
    if argument.choices:
        return st.sampled_from(argument.choices + argument.validation)
    return st.integers(argument.low, argument.high)


def scenarios(**given):
    fields = dict(
        channel=st.sampled_from(CHANNELS),
        snr_db=st.integers(-10, 40).map(float),
        num_tx_ant=st.integers(1, MAX_ANT),
        num_rx_ant=st.integers(1, MAX_ANT),
        delay_spread_ns=st.sampled_from((10.0, 100.0, 300.0, 1000.0)),
        speed_mps=st.sampled_from((0.0, 3.0, 30.0, 120.0)),
        carrier_ghz=st.sampled_from((0.7, 3.5, 28.0)),
        max_prb=st.integers(1, MAX_PRB),
        compute_gflops=st.floats(1, 1000),
    )
    return st.builds(Scenario, **fields | given)


def workflows(**given):
    return st.builds(
        Workflow, **{field: values(argument) for field, argument in BY_FIELD.items()} | given
    )


@st.composite
def feasible_pairs(draw, scenario=None, **given):
    """A scenario and a workflow it can run, by default of what compiles fast: the toolbox's code
    rates, linear detection.
    """
    s = draw(scenarios(channel=st.sampled_from(SOME_CHANNELS)) if scenario is None else scenario)
    rank = min(s.num_tx_ant, s.num_rx_ant)
    fields = dict(
        code=st.sampled_from(("ldpc", "none")),
        code_rate=st.sampled_from(TOOLBOX_RATES),
        detector=st.sampled_from(("mrc", "zf", "lmmse")),
        num_layers=st.integers(1, rank),
        num_prb=st.integers(1, s.max_prb),
    )
    return s, draw(workflows(**fields | given))

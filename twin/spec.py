"""What the twin is asked and what it answers: a Scenario, a Workflow, a QoS.

Frozen dataclasses of plain numbers and strings. Every field has a default and is checked where it
is set: an error names the field, the value and what was expected.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass

from .toolbox import BY_FIELD, MAX_ANT, MAX_PRB, MODULES, Argument, refusal
from .transport import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT  # noqa: F401 of a slot, for those who speak of one

CHANNELS = (
    "awgn",
    "rayleigh",
    *(f"{kind}-{letter}" for kind in ("tdl", "cdl") for letter in "abcde"),
)


class WorkflowError(ValueError):
    """A workflow that cannot be read, or that the scenario at hand cannot run."""


def _choice(cls, name, value, choices):
    kind = type(value)
    if (
        kind is not str
        and kind is not int
        and kind is not bool
        and isinstance(value, numbers.Integral)
    ):
        value = int(value)
    if type(value) is not type(choices[0]) or value not in choices:
        raise ValueError(
            f"{cls}.{name}: expected one of {', '.join(map(str, choices))}, got {value!r}"
        )
    return value


def _int(cls, name, value, low, high):
    # the common case; an abstract class takes its time
    if type(value) is int and low <= value <= high:
        return value
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or not low <= value <= high
    ):
        raise ValueError(f"{cls}.{name}: expected an integer in [{low}, {high}], got {value!r}")
    return int(value)


def _float(cls, name, value, low, high):
    if type(value) is float and low <= value <= high:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high:
        raise ValueError(f"{cls}.{name}: expected a number in [{low:g}, {high:g}], got {value!r}")
    return float(value)


SCENARIO_RULES = {
    "channel": (_choice, CHANNELS),
    "snr_db": (_float, -40, 80),
    "num_tx_ant": (_int, 1, MAX_ANT),
    "num_rx_ant": (_int, 1, MAX_ANT),
    "delay_spread_ns": (_float, 0, 5000),
    "speed_mps": (_float, 0, 300),
    "carrier_ghz": (_float, 0.1, 100),
    "max_prb": (_int, 1, MAX_PRB),
    "compute_gflops": (_float, 1e-6, 1e9),
    "antenna_correlation": (_choice, ("low", "medium", "high")),
    "full_power_mhz": (_float, 0, 1000),
    "access": (_choice, ("immediate", "aligned", "scheduled")),
}


def _rule(argument: Argument) -> tuple:
    if argument.choices and argument.high:
        return _float, argument.low, argument.high
    return (
        (_choice, argument.choices + argument.validation)
        if argument.choices
        else (_int, argument.low, argument.high)
    )


WORKFLOW_RULES = {field: _rule(argument) for field, argument in BY_FIELD.items()}


def _check_fields(spec, rules):
    """Replace every field by its checked value, numpy scalars by Python ones; raises ValueError."""
    for name, (rule, *limits) in rules.items():
        value = getattr(spec, name)
        if (checked := rule(type(spec).__name__, name, value, *limits)) is not value:
            object.__setattr__(spec, name, checked)


@dataclass(frozen=True)
class Scenario:
    """State of one radio link and of the platform that processes it.

    channel: awgn | rayleigh (flat block fading, independent over antennas and slots) | tdl-a ..
      tdl-e, cdl-a .. cdl-e (TR 38.901 7.7)
    snr_db: Es/N0 per resource element at each receive antenna, average channel gain 1, total over
      the layers
    antenna_correlation: low | medium | high, TS 38.104 annex G.2.3.1 (tdl and rayleigh; cdl has its
      arrays)
    full_power_mhz: the widest grant that the transmitter feeds at snr_db; a wider one shares the
      same power, so that the SNR of every resource element falls by 10 log10(bandwidth /
      full_power_mhz)
    access: when a packet may leave. immediate: it arrives as a slot begins; aligned: it waits for
      the next slot; scheduled: it also asks for its grant first (TS 38.214 6.4)
    absent: modules the platform lacks, written tool.method, such as "estimate.lmmse"
    """

    channel: str = "tdl-a"
    snr_db: float = 15.0  # dB
    num_tx_ant: int = 2
    num_rx_ant: int = 2
    delay_spread_ns: float = 100.0  # RMS, ns
    speed_mps: float = 3.0  # m/s
    carrier_ghz: float = 3.5  # GHz
    max_prb: int = MAX_PRB
    compute_gflops: float = 40.0  # 1e9 operations per second
    antenna_correlation: str = "low"
    full_power_mhz: float = 0.0  # MHz; 0: the power is never short
    access: str = "immediate"
    absent: tuple[str, ...] = ()

    def __post_init__(self):
        if self.absent != ():
            if isinstance(self.absent, str) or not set(self.absent) <= MODULES:
                raise ValueError(
                    "Scenario.absent: expected names of modules such as 'estimate.lmmse', got"
                    f" {self.absent!r}"
                )
            object.__setattr__(self, "absent", tuple(sorted(self.absent)))
        _check_fields(self, SCENARIO_RULES)


@dataclass(frozen=True)
class Workflow:
    """One physical-layer workflow: what is sent in a slot and how it is received.

    code: ldpc (a transport block of TS 38.214 5.1.3.2 and TS 38.212 5.2.2, 5.3.2) | polar (5.3.1,
      blocks of 288 coded bits, CRC-aided list of 8) | none (validation)
    estimator: ls (linear interpolation) | ls-nearest | lmmse (a Wiener filter for the worst profile
      that the cyclic prefix and the terminal's speed class allow) | genie (the same for the
      channel's own statistics, validation) | perfect (validation)
    detector: mrc | zf | lmmse | kbest (16 survivors) | ep (expectation propagation) |
      deeprx-small | deeprx (one layer; the estimator is not used)
    precoder: none (layer i on antenna i) | svd (along the channel's strongest directions as they
      were a few slots ago) | deeptx (along those that a network predicts from past estimates)
    num_transmissions: HARQ, at most so many transmissions of a block, each in a slot of its own
    combining: ir (redundancy versions 0, 2, 3, 1) | chase (the same bits again); polar and uncoded
      blocks always chase
    """

    num_prb: int = 24  # physical resource blocks granted, 12 subcarriers each
    scs_khz: int = 30  # subcarrier spacing, kHz
    code: str = "ldpc"
    code_rate: float = 0.5  # information bits per coded bit
    decoder_iterations: int = 10
    bits_per_symbol: int = 2  # 2 QPSK, 4 16QAM, 6 64QAM, 8 256QAM
    num_layers: int = 1  # spatial layers
    num_dmrs: int = 1  # OFDM symbols of the slot that carry DM-RS
    estimator: str = "ls"
    detector: str = "lmmse"
    precoder: str = "none"
    num_transmissions: int = 1
    combining: str = "ir"

    def __post_init__(self):
        _check_fields(self, WORKFLOW_RULES)


@dataclass(frozen=True)
class QoS:
    """What a workflow delivers in a scenario.

    The independent sample is the slot: one channel, one transport block. Rates are means over
    slots; `twin.statistics` has what they rest on.

    delay_ms: mean, of a block's last transmission; `delay_quantile_ms` is what a latency target
      asks
    throughput_mbps: delivered information bits over the slots spent
    ber: bit error rate after decoding; bler: transport block error rate, after HARQ. Both are above
      0 where no error was seen:
      estimates that half an error would give (Jeffreys), which never put a worse link below a
      better one
    ber_interval, bler_interval: 95 %
    block_errors, bit_errors: counted; expected, where slots say probabilities
      (Settings.method="esm")
    delays_ms, delivered: delay of a block that takes 1, 2, ... transmissions, and the share of all
      blocks delivered by then
    """

    delay_ms: float
    throughput_mbps: float
    ber: float
    bler: float
    num_blocks: int
    num_bits: int = 0
    block_errors: float = 0
    bit_errors: float = 0
    ber_interval: tuple[float, float] = (0.0, 1.0)
    bler_interval: tuple[float, float] = (0.0, 1.0)
    mean_transmissions: float = 1.0  # per block, HARQ
    delays_ms: tuple[float, ...] = ()
    delivered: tuple[float, ...] = ()

    @property
    def ber_is_bound(self) -> bool:
        """No bit error was seen: what is known of `ber` is the upper end of its interval."""
        return self.bit_errors == 0

    def delay_quantile_ms(self, reliability: float) -> float:
        """The delay within which a share `reliability` of the delivered blocks is there; the last
        one where none is delivered.
        """
        return next(
            d
            for d, share in zip(self.delays_ms, self.delivered)
            if share >= reliability * self.delivered[-1]
        )


def slot_ms(scs_khz: int) -> float:
    """Slot duration in ms: 14 symbols, 1 ms at 15 kHz (TS 38.211 4.3.2)."""
    return 15.0 / scs_khz


def check(scenario: Scenario, workflow: Workflow, validation: bool = False) -> None:
    """Raise WorkflowError if the scenario cannot run the workflow.

    With `validation`, the modules that exist only to validate the twin (perfect estimation, no
    code) are let through, and so are values between the toolbox's choices: only what cannot be
    simulated is refused.
    """
    rank = min(scenario.num_tx_ant, scenario.num_rx_ant)
    if workflow.num_prb > scenario.max_prb:
        raise WorkflowError(
            f"num_prb={workflow.num_prb}: the scenario grants at most {scenario.max_prb} PRB"
        )
    if workflow.num_layers > rank:
        raise WorkflowError(
            f"num_layers={workflow.num_layers}: {scenario.num_tx_ant} transmit and"
            f" {scenario.num_rx_ant} receive antennas carry at most {rank}"
        )
    if reason := refusal(scenario.absent, workflow, validation):
        raise WorkflowError(reason)

"""The part of Scenario x Workflow that error rates depend on: the key of the cache, and all a worker is told.

Error rates do not depend on num_prb, max_prb or compute_gflops. A channel without memory has no delay spread or Doppler,
carrier and speed act only through the Doppler shift, perfect estimation has no pilots to choose, and one layer has
nothing to separate: every classical detector is then maximum-ratio combining. A neural receiver uses no estimator.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from functools import lru_cache

from .spec import Scenario, Workflow
from .toolbox import is_neural

LINEAR = ("mrc", "zf", "lmmse")  # detectors that leave a scalar channel per layer
SPEED_OF_LIGHT_MPS = 299_792_458.0
CODE_LENGTH = 1152  # coded bits in a slot's simulated resource elements; every modulation x layers divides it
BLOCK_LENGTH = {"none": CODE_LENGTH, "ldpc": CODE_LENGTH, "polar": 288}  # coded bits of the slot's one code block


@dataclass(frozen=True)
class Settings:
    """How points are simulated; part of the cache's key.

    Blocks come in rounds of 32 slots, one code block each, until there are `enough_block_errors`, or no error in
    `enough_bits` information bits, or `max_blocks`. So hopeless and easy points cost a round or two, and the blocks go to
    the threshold region.
    """

    check_node: str = "offset-minsum"  # LDPC check-node update: offset-minsum | minsum | boxplus-phi (belief propagation)
    max_blocks: int = 128
    enough_block_errors: int = 20
    enough_bits: int = 20_000

    def __post_init__(self):
        if self.check_node not in ("offset-minsum", "minsum", "boxplus-phi"):
            raise ValueError(f"Settings.check_node: expected offset-minsum, minsum or boxplus-phi, got {self.check_node!r}")
        for name in ("max_blocks", "enough_block_errors", "enough_bits"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"Settings.{name}: expected a positive integer, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Counts:
    """What a simulation counted. The sums of squares over slots give the variance between independent channels."""

    num_blocks: int = 0
    num_bits: int = 0
    block_errors: int = 0
    bit_errors: int = 0
    bit_errors_squared: int = 0  # sum over blocks of (bit errors of the block)^2
    num_transmissions: int = 0

    def enough(self, settings: Settings) -> bool:
        return (
            self.num_blocks >= settings.max_blocks
            or self.block_errors >= settings.enough_block_errors
            or (self.block_errors == 0 and self.num_bits >= settings.enough_bits)
        )


@dataclass(frozen=True)
class ChannelState:
    """What the layers' channels depend on. Nominal values (0) where a channel does not depend on a field."""

    channel: str
    num_rx: int
    num_layers: int
    num_tx: int = 0  # antennas that transmit, with a precoder; without, one per layer
    precoder: str = "none"
    delay_spread_ns: float = 0.0
    doppler_hz: float = 0.0
    scs_khz: int = 0


@dataclass(frozen=True)
class Point:
    """One distinct simulation."""

    state: ChannelState
    snr_db: float
    code: str
    num_info_bits: int
    decoder_iterations: int
    bits_per_symbol: int
    num_dmrs: int
    estimator: str
    detector: str
    num_transmissions: int

    def key(self) -> str:
        return repr(astuple(self))

    def signatures(self) -> set[tuple]:
        """What has to be compiled for this point: a tuple for every stage that is."""
        m, layers = self.bits_per_symbol, self.state.num_layers
        front = ("demap", m) if self.detector in LINEAR else (self.detector, self.state.num_rx) if is_neural(self.detector) else (self.detector, layers, m)
        return {front, ("decode", self.num_info_bits)} if self.code == "ldpc" else {front}


def num_info_bits(code: str, code_rate: float) -> int:
    """Information bits k of the simulated block: a multiple of 8, so that there are at most 106 different codes."""
    n = BLOCK_LENGTH[code]
    return n if code == "none" else 8 * max(math.ceil(n / 5 / 8), round(code_rate * n / 8))


def effective_rate(workflow: Workflow) -> float:
    """Information bits per coded bit as simulated: code_rate to within 4 information bits, or 1 without a code."""
    return num_info_bits(workflow.code, workflow.code_rate) / BLOCK_LENGTH[workflow.code]


@lru_cache(maxsize=1 << 16)
def physical(scenario: Scenario, workflow: Workflow) -> Point:
    """The distinct simulation that a pair stands for. Pairs with the same Point have the same ber and bler."""
    s, w = scenario, workflow
    memory, precoding, neural = {}, {}, is_neural(w.detector)
    if w.precoder != "none" and s.num_tx_ant > 1:
        precoding = dict(num_tx=s.num_tx_ant, precoder=w.precoder)
    if s.channel not in ("awgn", "rayleigh"):
        doppler_hz = s.speed_mps * s.carrier_ghz * 1e9 / SPEED_OF_LIGHT_MPS
        memory = dict(delay_spread_ns=s.delay_spread_ns, doppler_hz=doppler_hz, scs_khz=w.scs_khz)
    return Point(
        state=ChannelState(s.channel, s.num_rx_ant, w.num_layers, **precoding, **memory),
        snr_db=s.snr_db,
        code=w.code,
        num_info_bits=num_info_bits(w.code, w.code_rate),
        decoder_iterations=w.decoder_iterations if w.code == "ldpc" else 0,
        bits_per_symbol=w.bits_per_symbol,
        num_dmrs=w.num_dmrs if neural or w.estimator != "perfect" else 0,
        estimator="none" if neural else w.estimator,
        detector="mrc" if w.num_layers == 1 and not neural else w.detector,
        num_transmissions=w.num_transmissions,
    )

"""The part of Scenario x Workflow that error rates depend on: the key of the cache, and all a
worker is told.

Error rates do not depend on max_prb, and on compute_gflops only through HARQ's round trip. A
channel without memory has no delay spread or Doppler, carrier and speed act only through the
Doppler shift, and one layer has nothing to separate: every classical detector is then maximum-ratio
combining. A neural receiver uses no estimator.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache

from .delay import harq_round_trip_slots
from .spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT, Scenario, Workflow, slot_ms
from .toolbox import is_neural
from .transport import Segmentation, coded_bits, information_bits, segment

LINEAR = ("mrc", "zf", "lmmse")  # detectors that leave a scalar channel per layer
SPEED_OF_LIGHT_MPS = 299_792_458.0
MAX_SLOTS = 32  # of a round
MAX_ELEMENTS = 1 << 22  # complex channel coefficients of a round


@dataclass(frozen=True)
class Settings:
    """How points are simulated; part of the cache's key.

    method: link (blocks are coded, sent and decoded, and errors counted) | esm (the channel, its
      estimate and the detector's SINR are simulated, and the code's block error rate is looked up:
      several times as fast, and each slot says a probability; what has no table, such as neural
      receivers, goes through the link)
    backend: native | sionna (the same chain with Sionna's channel, code, mapper and demapper: the
    oracle of the native stages) Blocks come in rounds of independent slots, one transport block
    each, until there are `enough_block_errors` or `max_blocks`. So hopeless points cost a round,
    and the blocks go to the threshold region and below.
    """

    method: str = "link"
    backend: str = "native"
    max_blocks: int = 128
    enough_block_errors: int = 30

    def __post_init__(self):
        for name, choices in (("method", ("link", "esm")), ("backend", ("native", "sionna"))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"Settings.{name}: expected {' or '.join(choices)}, got {getattr(self, name)!r}"
                )
        if (self.method, self.backend) == ("esm", "sionna"):
            raise ValueError("Settings.method='esm': expected backend='native', got 'sionna'")
        for name in ("max_blocks", "enough_block_errors"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(
                    f"Settings.{name}: expected a positive integer, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class Counts:
    """What a simulation counted, over independent slots of one transport block each.

    failed: blocks in error after 1, 2, ... transmissions; the last one is the number of block
      errors
    error_share, error_share_squared: sums over the blocks of their share of wrong bits, and of its
      square
    failed_squared: sums over slots of the squared probability of failure, where these are
      probabilities (method="esm") and everything else is an expectation; empty where errors were
      counted
    """

    num_blocks: int = 0
    num_bits: int = 0
    bit_errors: float = 0
    failed: tuple[float, ...] = (0,)
    error_share: float = 0.0
    error_share_squared: float = 0.0
    failed_squared: tuple[float, ...] = ()

    def __post_init__(self):
        for name in ("failed", "failed_squared"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def block_errors(self) -> float:
        return self.failed[-1]

    @property
    def error_draws(self) -> float:
        """Slots that make up the block errors: their number if counted; of probabilities p, (sum
        p)^2 / sum p^2 (Kish).
        """
        return (
            self.failed[-1] ** 2 / max(self.failed_squared[-1], 1e-300)
            if self.failed_squared
            else self.failed[-1]
        )

    def __add__(self, other: Counts) -> Counts:
        if not self.num_blocks:
            return other

        def sums(a, b):
            return (
                tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b
            )

        return Counts(*map(sums, astuple(self), astuple(other)))

    def enough(self, settings: Settings) -> bool:
        return (
            self.num_blocks >= settings.max_blocks
            or self.error_draws >= settings.enough_block_errors
        )


@dataclass(frozen=True)
class ChannelState:
    """What the channel between the antennas depends on. Nominal values (0) where a channel does not
    depend on a field.

    antenna_correlation: low | medium | high, TS 38.104 annex G.2.3.1
    """

    channel: str
    num_rx: int
    num_tx: int
    delay_spread_ns: float = 0.0
    doppler_hz: float = 0.0
    antenna_correlation: str = "low"


@dataclass(frozen=True)
class Point:
    """One distinct simulation.

    snr_db: per resource element, after a power limit; round_trip_s: from one transmission to the
      next
    rounds: which rounds to simulate, from and to; None: as Settings say
    """

    state: ChannelState
    snr_db: float
    scs_khz: int
    num_prb: int
    num_dmrs: int
    bits_per_symbol: int
    num_layers: int
    code: str
    code_rate: float
    decoder_iterations: int
    estimator: str
    detector: str
    precoder: str
    num_transmissions: int
    combining: str
    round_trip_s: float
    rounds: tuple[int, int] | None = None

    def key(self) -> str:
        return repr(astuple(self))

    @property
    def slots_per_round(self) -> int:
        """A power of two, fewer for wide grants with many antennas."""
        per_slot = self.state.num_rx * self.state.num_tx * SYMBOLS_PER_SLOT * SUBCARRIERS_PER_PRB
        fitting = MAX_ELEMENTS // (per_slot * self.num_prb * self.num_transmissions)
        return max(2, min(MAX_SLOTS, 1 << max(fitting.bit_length() - 1, 0)))

    @cached_property
    def workflow(self) -> Workflow:
        """A workflow of this transport block."""
        return Workflow(
            num_prb=self.num_prb,
            num_dmrs=self.num_dmrs,
            bits_per_symbol=self.bits_per_symbol,
            num_layers=self.num_layers,
            code=self.code,
            code_rate=self.code_rate,
        )

    @cached_property
    def segmentation(self) -> Segmentation:
        """Of the LDPC transport block."""
        return segment(
            information_bits(self.workflow),
            self.code_rate,
            coded_bits(self.workflow),
            self.bits_per_symbol * self.num_layers,
        )


@lru_cache(maxsize=1 << 16)
def physical(scenario: Scenario, workflow: Workflow) -> Point:
    """The distinct simulation that a pair stands for. Pairs with the same Point have the same ber
    and bler.
    """
    s, w = scenario, workflow
    neural, memory = is_neural(w.detector), s.channel not in ("awgn", "rayleigh")
    precoder = w.precoder if s.num_tx_ant > 1 else "none"
    fading = (
        dict(
            delay_spread_ns=s.delay_spread_ns,
            doppler_hz=s.speed_mps * s.carrier_ghz * 1e9 / SPEED_OF_LIGHT_MPS,
        )
        if memory
        else {}
    )
    correlated = s.antenna_correlation if s.channel.startswith(("tdl", "rayleigh")) else "low"
    snr_db = s.snr_db
    if s.full_power_mhz:
        bandwidth_mhz = w.num_prb * SUBCARRIERS_PER_PRB * w.scs_khz * 1e-3
        snr_db -= 10 * math.log10(max(1.0, bandwidth_mhz / s.full_power_mhz))
    repeats = w.num_transmissions > 1
    return Point(
        state=ChannelState(
            s.channel,
            s.num_rx_ant,
            w.num_layers if precoder == "none" else s.num_tx_ant,
            antenna_correlation=correlated,
            **fading,
        ),
        snr_db=snr_db,
        scs_khz=w.scs_khz if memory else 30,
        num_prb=w.num_prb,
        num_dmrs=w.num_dmrs,
        bits_per_symbol=w.bits_per_symbol,
        num_layers=w.num_layers,
        code=w.code,
        code_rate=w.code_rate,
        decoder_iterations=w.decoder_iterations if w.code == "ldpc" else 0,
        estimator="none" if neural else w.estimator,
        detector="mrc" if w.num_layers == 1 and not neural else w.detector,
        precoder=precoder,
        num_transmissions=w.num_transmissions,
        combining=w.combining if repeats else "ir",
        round_trip_s=(
            harq_round_trip_slots(s, w) * slot_ms(w.scs_khz) * 1e-3 if repeats and memory else 0.0
        ),
    )

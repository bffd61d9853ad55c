"""Families of tasks: which links, platforms and loads a world is drawn from. One YAML file of
configs/world each.

A load is what a request asks of its grant: the target throughput over what Shannon's bound lets the
grant's resource elements carry, data and overhead alike, with the array gain of all antennas. Near
1 nothing meets it; the higher it is drawn, the scarcer the link.
"""

import dataclasses
import math
import random

from rldtf_jax.config import ConfigError
from twin import Scenario
from twin.spec import SUBCARRIERS_PER_PRB
from twin.toolbox import BY_FIELD, MODULES, TOOLS

SPACINGS_KHZ = BY_FIELD["scs_khz"].choices
# OFDM symbols per ms and kHz of subcarrier spacing: 14 in a slot of 15 / scs ms
SYMBOLS_PER_MS_KHZ = 14 / 15
NEURAL_RECEIVERS = ("detect.deeprx-small", "detect.deeprx")


@dataclasses.dataclass(frozen=True)
class Family:
    """A distribution of tasks.

    environments: {name: [channels, [low, high] delay spread in ns, [low, high] speed in m/s]},
      equally likely
    antennas: (transmit, receive), equally likely; snr_db: (lowest, highest, step)
    load: (low, high), from which the SNR follows (`loaded_snr_db`); None: any SNR is equally likely
    load_khz: the subcarrier spacing of the grant that is loaded; None: the middle one of those that
      the platform has
    max_prb: grants, log-uniform between the first and the last one where there is a load, else
      equally likely
    compute_gflops, full_power_mhz, delays_ms: choices; short_of_power, correlated, aligned: shares
      of the platforms
    accelerated_gflops: choices of compute where a neural receiver is installed; empty: as anywhere
    present: {tool or module: share of the platforms that have it}; of each stage's methods one
      stays
    kinds: {kind of request, see wording.KINDS: its share}
    """

    name: str
    environments: dict[str, tuple[tuple[str, ...], tuple[float, float], tuple[float, float]]]
    antennas: tuple[tuple[int, int], ...]
    snr_db: tuple[int, int, int]
    max_prb: tuple[int, ...]
    compute_gflops: tuple[float, ...]
    delays_ms: tuple[float, ...]
    kinds: dict[str, float]
    accelerated_gflops: tuple[float, ...] = ()
    load: tuple[float, float] | None = None
    load_khz: int | None = 30
    full_power_mhz: tuple[float, ...] = (1.44,)
    short_of_power: float = 0.0
    correlated: float = 0.0
    aligned: float = 0.0
    present: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        known = MODULES | {tool.name for tool in TOOLS}
        if wrong := sorted(set(self.present) - known):
            raise ConfigError(f"present.{wrong[0]}: expected a tool or a module such as detect.zf")


def draw_absent(rng: random.Random, family: Family) -> tuple[str, ...]:
    """The modules that a platform lacks."""
    absent = []
    for tool in TOOLS:
        for argument in tool.arguments:
            shares = {
                f"{tool.name}.{value}": family.present.get(
                    f"{tool.name}.{value}", family.present.get(tool.name, 1.0)
                )
                for value in argument.choices
            }
            lacking = [name for name, share in shares.items() if rng.random() >= share]
            if shares and len(lacking) == len(shares):
                lacking.remove(rng.choice([name for name, share in shares.items() if share > 0]))
            absent += lacking
    return tuple(sorted(absent))


def draw_scenario(rng: random.Random, family: Family, throughput_mbps: float) -> Scenario | None:
    """A link and platform of the family for this throughput; None where the load takes an SNR that
    the family does not have.
    """
    channels, spread, speed = family.environments[rng.choice(list(family.environments))]
    num_tx, num_rx = rng.choice(family.antennas)
    power_mhz = rng.choice(family.full_power_mhz) if rng.random() < family.short_of_power else 0.0
    low, high, step = family.snr_db
    if family.load is None:
        max_prb, snr_db = rng.choice(family.max_prb), rng.randrange(low, high + 1, step)
    else:
        max_prb, snr_db = (
            round(family.max_prb[0] * (family.max_prb[-1] / family.max_prb[0]) ** rng.random()),
            math.nan,
        )
        load = rng.uniform(*family.load)
    scenario = dict(
        channel=rng.choice(channels),
        num_tx_ant=num_tx,
        num_rx_ant=num_rx,
        carrier_ghz=3.5,
        delay_spread_ns=_log_uniform(rng, *spread, step=5),
        speed_mps=_log_uniform(rng, *speed, step=0.5),
        max_prb=max_prb,
        compute_gflops=rng.choice(family.compute_gflops),
        antenna_correlation=(
            rng.choice(("medium", "high")) if rng.random() < family.correlated else "low"
        ),
        full_power_mhz=power_mhz,
        access="aligned" if rng.random() < family.aligned else "immediate",
        absent=draw_absent(rng, family),
    )
    if family.accelerated_gflops and not set(NEURAL_RECEIVERS) <= set(scenario["absent"]):
        scenario["compute_gflops"] = rng.choice(family.accelerated_gflops)
    if family.load is not None:
        spacings = [khz for khz in SPACINGS_KHZ if f"grid.{khz}" not in scenario["absent"]]
        khz = family.load_khz or spacings[(len(spacings) - 1) // 2]
        snr_db = loaded_snr_db(throughput_mbps, load, max_prb, num_tx, num_rx, power_mhz, step, khz)
    return Scenario(snr_db=float(snr_db), **scenario) if low <= snr_db <= high else None


def loaded_snr_db(
    throughput_mbps: float,
    load: float,
    num_prb: int,
    num_tx: int,
    num_rx: int,
    full_power_mhz: float = 0.0,
    step: int = 1,
    scs_khz: int = 30,
) -> int:
    """The SNR in dB, a multiple of step, at which the throughput loads a grant of resource blocks
    of this spacing by `load`: one beam of all antennas, or as many layers as there are, whichever
    carries more.
    """
    bandwidth_mhz = num_prb * SUBCARRIERS_PER_PRB * scs_khz * 1e-3
    power = min(1.0, full_power_mhz / bandwidth_mhz) if full_power_mhz else 1.0
    # bits a resource element
    efficiency = (
        throughput_mbps
        / load
        / (num_prb * SUBCARRIERS_PER_PRB * scs_khz * SYMBOLS_PER_MS_KHZ * 1e-3)
    )
    layers = min(num_tx, num_rx)
    snr = min(
        (2 ** min(efficiency, 99) - 1) / (num_rx * num_tx),
        (2 ** min(efficiency / layers, 99) - 1) * layers / num_rx,
    )
    return step * round(10 * math.log10(snr / power) / step)


def _log_uniform(rng: random.Random, low: float, high: float, step: float) -> float:
    """In [low, high], a multiple of step."""
    value = low * (high / low) ** rng.random() if high > low else high
    return round(value / step) * step

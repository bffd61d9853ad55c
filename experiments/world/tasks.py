"""Service requests with QoS targets and a link state: seeded, feasible by a witness, split by hash.

A task's targets come from its service class (data/qos_classes.csv):
  throughput  log-uniform over the class's range, the nearest figure of the 1-2-5 series;
  delay       the physical layer's share, 5-20 % of the packet delay budget, at most 4 ms;
  error rate  the class's packet error rate, which is held against the transport block error rate.
Scenarios lie on a coarse grid, so that the twin's cache earns.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import math
import os
import random
from typing import Any, Iterator

from twin import COMPUTE_TIERS_GFLOPS, TOOLS, QoS, Scenario, Workflow
from twin.toolbox import is_neural
from twin.transport import MAX_POLAR_BLOCKS, num_polar_blocks

from experiments.files import whole
from experiments.world import orchestration

MAX_DELAY_MS = 4.0
RELIABILITY = 0.99  # share of the delivered blocks that a delay target is about
DELAYS_MS = (0.5, 1.0, 2.0, 4.0)
RATES_MBPS = orchestration.RATES_MBPS[1:]
ENVIRONMENTS = {  # channel, delay spread in ns, speed in m/s
    "fixed line of sight": ("awgn", 0.0, 0.0),
    "indoor": ("tdl-a", 30.0, 1.0),
    "street": ("tdl-b", 100.0, 10.0),
    "highway": ("tdl-c", 300.0, 30.0),
}
ANTENNAS = ((1, 1), (1, 2), (2, 2), (2, 4))  # transmit, receive
SNRS_DB = tuple(range(0, 29, 4))
GRANTS_PRB = (6, 12, 25, 50)
YOUNGER = ("detect.deeprx-small", "detect.deeprx", "precode.deeptx", "harq.chase")  # than the splits, which do not depend on them
ALWAYS_ABSENT = (  # the platforms of these tasks are plain ones, so that a small model learns them in minutes
    "grid.120",  # not for data below 6 GHz (TS 38.101-1 5.3.5)
    "encode.polar", "encode.0.89", "estimate.ls-nearest", "detect.mrc", "detect.ep", "detect.kbest", "precode.svd",
    "harq.2", "harq.3", "harq.4", "harq.chase", *YOUNGER)
ABSENT = {"modulate.8": 0.25, "estimate.lmmse": 0.25, "detect.lmmse": 0.15}  # module: share of platforms without it
SPLITS = ("train", "validation", "test")

SERVICES = {
    "conversational voice": ("a voice call", "conversational voice", "a telephone conversation"),
    "conversational video": ("a video call", "conversational video", "a video conference"),
    "real-time gaming or V2X or process monitoring": ("real-time gaming", "process monitoring", "an online game"),
    "buffered video": ("buffered video", "a film stream", "video on demand"),
    "IMS signalling": ("IMS signalling", "call set-up signalling"),
    "TCP web or progressive video": ("web browsing", "a file download", "progressive video"),
    "live interactive streaming": ("live interactive streaming", "a live stream with chat"),
    "live uplink streaming": ("a live uplink stream", "a reporter's camera", "live uplink streaming"),
    "V2X messages": ("V2X messages", "warnings between vehicles"),
    "low-latency eMBB or AR": ("augmented reality", "low-latency broadband"),
    "discrete automation": ("discrete automation", "a robot cell", "a factory controller"),
    "intelligent transport": ("intelligent transport", "traffic control"),
    "remote driving or HV electricity": ("remote driving", "a teleoperated truck", "grid protection"),
    "advanced V2X": ("advanced V2X", "cooperative driving"),
    "interactive motion tracking": ("motion tracking", "interactive motion tracking"),
    "split rendering": ("split rendering", "cloud-rendered AR"),
    "AR/VR downlink": ("a VR headset", "an AR downlink", "virtual reality"),
    "cloud gaming": ("cloud gaming", "a streamed game"),
    "platooning": ("truck platooning", "a platoon of trucks"),
    "telesurgery haptics": ("telesurgery haptics", "a surgeon's haptic link"),
}
OPENERS = (
    "Please set up the radio link for {s}.", "We are about to start {s}.", "A user asks for {s}.", "Serve {s}.",
    "Configure the network for {s}.", "The application is {s}.", "Our customer runs {s}.", "Find a workflow for {s}.",
    "New session: {s}.", "The slice carries {s}.", "How should the link be run for {s}?", "Plan the link for {s}.",
    "There is a request for {s}.", "{s} starts in a moment.", "Get the air interface ready for {s}.",
    "What would you run for {s}?", "This site hosts {s} from now on.", "Take care of {s}.",
)
REMARKS = (
    "Keep to the targets, no more.", "Do not waste resources.", "It has just started.", "The user is moving on.",
    "Many users depend on it.", "Mind the delay.", "Errors are costly.", "Just meet what is asked.", "It is urgent.",
    "The last plan failed.",
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One request; the targets are what Eq. 2 judges by."""

    service: str  # class of data/qos_classes.csv
    request: str  # natural language
    scenario: Scenario
    delay_ms: float  # at most
    throughput_mbps: float  # at least
    ber: float  # at most
    witness: Workflow | None = None  # a workflow that the twin has shown to meet all targets
    errors: str = "bit"  # what `ber` is a rate of: "bit" errors, or "packet" errors

    def measured(self, qos: QoS) -> tuple[float, float, float]:
        """What the targets are held against, in their order: the delay within which a share RELIABILITY of the delivered blocks is
        there, the throughput, and the bit or the transport block error rate."""
        return qos.delay_quantile_ms(RELIABILITY), qos.throughput_mbps, qos.bler if self.errors == "packet" else qos.ber

    @property
    def required(self) -> tuple[float, float, float]:
        """(delay_ms, throughput_mbps, ber), the order of `rldtf_jax.reward`."""
        return self.delay_ms, self.throughput_mbps, self.ber

    @property
    def split(self) -> str:
        """train (80 %), validation (5 %) or test (15 %), by a hash of what is asked in which state of the link, not of
        how it is phrased: no test problem is trained on in other words."""
        scenario = dataclasses.asdict(self.scenario)
        scenario["absent"] = [module for module in self.scenario.absent if module not in YOUNGER]
        problem = json.dumps([self.service, scenario, self.required], sort_keys=True)
        bucket = int.from_bytes(hashlib.sha256(problem.encode()).digest()[:4], "big") % 100
        return "train" if bucket < 80 else "validation" if bucket < 85 else "test"

    def prompt(self) -> str:
        """u: the request, the tools that are present, the state of the link and the targets."""
        return (f"{self.request} {orchestration.describe_tools(self.scenario)} "
                f"{orchestration.describe_link(self.scenario)} "
                f"{orchestration.describe_targets(self.delay_ms, self.throughput_mbps, self.ber, self.errors)}")

    def response(self, workflow: Workflow, think: bool = True) -> str:
        """a: the think part, if wanted, then `workflow` in structured natural language."""
        thoughts = orchestration.think(self.scenario, self.throughput_mbps, self.delay_ms) if think else ""
        return thoughts + orchestration.describe_workflow(workflow)


@functools.cache
def service_classes() -> tuple[dict[str, str], ...]:
    """The rows of data/qos_classes.csv."""
    with open(os.path.join(os.path.dirname(__file__), "data", "qos_classes.csv"), newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def candidates(seed: int) -> Iterator[Task]:
    """An endless stream of tasks, not yet known to be feasible."""
    rng = random.Random(f"tasks {seed}")
    while True:
        row = rng.choice(service_classes())
        low, high = float(row["rate_mbps_low"]), float(row["rate_mbps_high"])
        throughput = _nearest(RATES_MBPS, low * (high / low) ** rng.random())
        budget = float(row["packet_delay_budget_ms"]) * rng.uniform(0.05, 0.20)
        delay = _nearest(DELAYS_MS, min(budget, MAX_DELAY_MS))
        scenario = draw_scenario(rng)
        request = phrase(rng, row["service"])
        yield Task(row["service"], request, scenario, delay, throughput, float(row["error_rate"]), errors="packet")


def draw_scenario(rng: random.Random) -> Scenario:
    channel, delay_spread_ns, speed_mps = ENVIRONMENTS[rng.choice(list(ENVIRONMENTS))]
    num_tx, num_rx = rng.choice(ANTENNAS)
    return Scenario(
        channel=channel, delay_spread_ns=delay_spread_ns, speed_mps=speed_mps, carrier_ghz=3.5,
        snr_db=float(rng.choice(SNRS_DB)), num_tx_ant=num_tx, num_rx_ant=num_rx, max_prb=rng.choice(GRANTS_PRB),
        compute_gflops=rng.choice(COMPUTE_TIERS_GFLOPS),
        absent=ALWAYS_ABSENT + tuple(module for module, share in ABSENT.items() if rng.random() < share))


def phrase(rng: random.Random, service: str) -> str:
    """One of many ways to ask for a service."""
    opener = rng.choice(OPENERS).format(s=rng.choice(SERVICES[service]))
    remark = f" {rng.choice(REMARKS)}" if rng.random() < 0.5 else ""
    return opener[0].upper() + opener[1:] + remark


def random_workflow(rng: random.Random, scenario: Scenario) -> Workflow:
    """A valid workflow of the scenario's modules, every choice at random: teaches the format, nothing about quality."""
    choices = {argument.field: [v for v in argument.choices if f"{tool.name}.{v}" not in scenario.absent]
               for tool in TOOLS for argument in tool.arguments if argument.choices}
    rank = min(scenario.num_tx_ant, scenario.num_rx_ant)
    workflow = Workflow(
        num_prb=round(scenario.max_prb ** rng.random()), num_layers=rng.randint(1, min(rank, 2)),
        decoder_iterations=rng.choice((2, 4, 6, 8, 10, 12, 16, 20)),
        **{field: rng.choice(values) for field, values in choices.items()})
    if is_neural(workflow.detector):
        workflow = dataclasses.replace(workflow, num_layers=1)
    if workflow.code == "polar" and not 1 <= num_polar_blocks(workflow) <= MAX_POLAR_BLOCKS:
        workflow = dataclasses.replace(workflow, code="ldpc")
    return workflow


def save(tasks: list[Task], path: str) -> None:
    """JSON lines, in place at once or not at all."""
    with whole(path) as file:
        for task in tasks:
            file.write(json.dumps(to_dict(task)) + "\n")


def load(path: str) -> list[Task]:
    """Reads tasks in the form that `save` writes; one's own requests come in by this door.

    Raises:
      ValueError: a line that is no task, with its number and what is wrong.
    """
    tasks = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                tasks.append(from_dict(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {type(error).__name__} {error}") from error
    return tasks


def to_dict(task: Task) -> dict[str, Any]:
    return dataclasses.asdict(task)


def from_dict(row: dict[str, Any]) -> Task:
    scenario = dict(row["scenario"])
    scenario["absent"] = tuple(scenario.get("absent", ()))
    witness = row.get("witness")
    task = Task(**row | {"scenario": Scenario(**scenario), "witness": Workflow(**witness) if witness else None})
    for name in ("delay_ms", "throughput_mbps", "ber"):
        value = getattr(task, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{name} = {value!r}: expected a number > 0")
    if task.errors not in ("bit", "packet"):
        raise ValueError(f"errors = {task.errors!r}: expected 'bit' or 'packet'")
    return task


def _nearest(grid: tuple[float, ...], value: float) -> float:
    return min(grid, key=lambda g: abs(g - value))

"""A task: a service request, its targets, and the state of a link and a platform.

Targets come from the request's service class (data/qos_classes.csv). Stated ones are drawn:
throughput log-uniform over the class's range, the nearest figure of the 1-2-5 series; delay the
physical layer's share, 5-20 % of the packet delay budget, at most 4 ms; error rate the class's
packet error rate, which is held against the transport block error rate. Of a service that is named
or described they are the class's own (`wording.nominal_targets`). `worlds` draws them, `families`
says of which links.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import random
from typing import Any

from experiments.world import orchestration, wording
from twin import TOOLS, QoS, Scenario, Workflow
from twin.toolbox import describe, is_neural
from twin.transport import MAX_POLAR_BLOCKS, num_polar_blocks

RELIABILITY = 0.99  # share of the delivered blocks that a delay target is about
KINDS = (*wording.KINDS, "listed")  # listed: targets in a line of their own
SPLITS = ("train", "validation", "test", "new-links", "new-platforms", "new-words")
ELSEWHERE = SPLITS[3:]  # links, platforms and words that training has not seen
HELD_OUT = SPLITS[2:]
SNR_CELL_DB = 4.0
DATA = os.path.join(os.path.dirname(__file__), "data")


@dataclasses.dataclass(frozen=True)
class Task:
    """One request; the targets are what Eq. 2 judges by."""

    service: str  # class of data/qos_classes.csv
    request: str  # natural language
    scenario: Scenario
    delay_ms: float  # at most
    throughput_mbps: float  # at least
    ber: float  # at most
    # the best workflow that a search found; it meets all targets on noise that it was not found on
    witness: Workflow | None = None
    errors: str = "bit"  # what `ber` is a rate of: "bit" errors, or "packet" errors
    kind: str = "listed"  # of request, see KINDS
    family: str = ""  # the family that it was drawn from

    def measured(self, qos: QoS) -> tuple[float, float, float]:
        """What the targets are held against, in their order: the delay within which a share
        RELIABILITY of the delivered blocks is there, the throughput, and the bit or the transport
        block error rate.
        """
        return (
            qos.delay_quantile_ms(RELIABILITY),
            qos.throughput_mbps,
            qos.bler if self.errors == "packet" else qos.ber,
        )

    @property
    def required(self) -> tuple[float, float, float]:
        """(delay_ms, throughput_mbps, ber), the order of `rldtf_jax.reward`."""
        return self.delay_ms, self.throughput_mbps, self.ber

    @property
    def split(self) -> str:
        return split_of(self.scenario, self.required)

    @property
    def infers(self) -> bool:
        """Whether the response begins with the quality of service that the writer infers."""
        return self.kind in ("named", "described")

    def prompt(self, form: str = "short") -> str:
        """u: the request, the tools that are present, the state of the link and, of a listed
          request, the targets.

        form: short, for small models; long, with every tool's description and arguments and the
          state in words, for pretrained ones.
        """
        parts = [
            self.request,
            *(
                (
                    orchestration.describe_tools(self.scenario),
                    orchestration.describe_link(self.scenario),
                )
                if form == "short"
                else (
                    f"\nTools of this platform:\n{describe(absent=self.scenario.absent)}\n",
                    orchestration.describe_state(self.scenario),
                )
            ),
        ]
        if self.kind == "listed":
            parts.append(
                orchestration.describe_targets(
                    self.delay_ms, self.throughput_mbps, self.ber, self.errors
                )
            )
        return " ".join(parts)

    def response(self, workflow: Workflow, think: bool = True) -> str:
        """a: the inferred quality of service if the request does not state it, the think part, if
        wanted, then `workflow` in structured natural language.
        """
        intent = (
            wording.describe_intent(self.delay_ms, self.throughput_mbps, self.ber)
            if self.infers
            else ""
        )
        thoughts = (
            orchestration.think(self.scenario, self.throughput_mbps, self.delay_ms) if think else ""
        )
        return intent + thoughts + orchestration.describe_workflow(workflow, self.throughput_mbps)


def split_of(scenario: Scenario, required: tuple[float, float, float]) -> str:
    """The split of a problem, by hashes of what is asked in which state, not of the service or how
    it is phrased: no test problem is trained on in other words.

    new-links: cells of (channel, SNR within SNR_CELL_DB, antennas), 8 % of them; new-platforms:
    sets of modules with their compute, 8 %. Of the other problems 80 % are train, 5 % validation, 8
    % test and 7 % new-words.
    """
    s = scenario
    if (
        _percent("link", s.channel, math.floor(s.snr_db / SNR_CELL_DB), s.num_tx_ant, s.num_rx_ant)
        < 8
    ):
        return "new-links"
    if _percent("platform", s.absent, s.compute_gflops) < 8:
        return "new-platforms"
    bucket = _percent("problem", dataclasses.asdict(scenario), required)
    return (
        "train"
        if bucket < 80
        else "validation"
        if bucket < 85
        else "test"
        if bucket < 93
        else "new-words"
    )


def _percent(*what) -> int:
    return (
        int.from_bytes(
            hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest()[:4], "big"
        )
        % 100
    )


@functools.lru_cache(maxsize=1 << 12)
def present(absent: tuple[str, ...]) -> dict[str, tuple]:
    """{field of a workflow: what a platform without these modules offers for it}, of the fields
    with choices.
    """
    return {
        argument.field: tuple(v for v in argument.choices if f"{tool.name}.{v}" not in absent)
        for tool in TOOLS
        for argument in tool.arguments
        if argument.choices
    }


def random_workflow(rng: random.Random, scenario: Scenario) -> Workflow:
    """A valid workflow of the scenario's modules, every choice at random: teaches the format,
    nothing about quality.
    """
    rank = min(scenario.num_tx_ant, scenario.num_rx_ant)
    workflow = Workflow(
        num_prb=round(scenario.max_prb ** rng.random()),
        num_layers=rng.randint(1, min(rank, 2)),
        decoder_iterations=rng.choice((2, 4, 6, 8, 10, 12, 16, 20)),
        **{field: rng.choice(values) for field, values in present(scenario.absent).items()},
    )
    if is_neural(workflow.detector):
        workflow = dataclasses.replace(workflow, num_layers=1)
    if workflow.num_transmissions == 1:
        # as a text that says nothing of it reads
        workflow = dataclasses.replace(workflow, combining="ir")
    while workflow.code == "polar" and num_polar_blocks(workflow) > MAX_POLAR_BLOCKS:
        workflow = dataclasses.replace(workflow, num_prb=workflow.num_prb // 2)
    return workflow


def save(tasks: list[Task], path: str) -> None:
    """JSON lines, in place at once or not at all; compressed where the name ends with .gz."""
    from experiments.world.reading import write_lines

    write_lines(map(to_dict, tasks), path)


def load(path: str) -> list[Task]:
    """Reads tasks in the form that `save` writes; one's own requests come in by this door.

    Raises:
      ConfigError: (a ValueError) see `reading.read_tasks`.
    """
    from experiments.world.reading import read_tasks

    return read_tasks(path)


def save_splits(tasks: dict[str, list[Task]], directory: str) -> None:
    """<directory>/<split>.jsonl each; the directory is there when all are, or not at all."""
    os.makedirs(partial := f"{directory}.partial", exist_ok=True)
    for split, some in tasks.items():
        save(some, os.path.join(partial, f"{split}.jsonl"))
    os.replace(partial, directory)


def load_splits(directory: str) -> dict[str, list[Task]]:
    """What `save_splits` wrote, or one's own: train, validation and test, and the other SPLITS that
    are there.
    """
    paths = {split: os.path.join(directory, f"{split}.jsonl") for split in SPLITS}
    return {
        split: load(path)
        for split, path in paths.items()
        if split not in ELSEWHERE or os.path.exists(path)
    }


def to_dict(task: Task) -> dict[str, Any]:
    return dataclasses.asdict(task)

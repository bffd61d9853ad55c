"""The modules an orchestration may call: one entry each, the only table of them. Prompts show
`describe()`; what a Workflow accepts follows from it (see spec.WORKFLOW_RULES).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .transport import MAX_POLAR_BLOCKS, POLAR_LENGTH, num_polar_blocks

MAX_PRB = 273
MAX_ANT = 4
# 1e9 operations a second as counted in twin.delay: a 30th, a 6th and most of an AVX-512 core (64)
COMPUTE_TIERS_GFLOPS = (2.0, 10.0, 50.0)


@dataclass(frozen=True)
class Argument:
    """A keyword argument of a tool, the Workflow field it sets, and its values.

    choices: the values offered; without them, any integer in [low, high]
    low, high: with choices, the range of a number that can be simulated between them
    validation: values that can be simulated but are not offered
    """

    name: str
    field: str
    choices: tuple = ()
    low: float = 0
    high: float = 0
    validation: tuple = ()

    def offers(self, value) -> bool:
        return value in self.choices if self.choices else self.low <= value <= self.high

    def __str__(self):
        shown = "|".join(map(str, self.choices)) if self.choices else f"{self.low}..{self.high}"
        return f"{self.name}={shown}"


@dataclass(frozen=True)
class Tool:
    name: str
    stage: str  # transmit | receive
    description: str
    arguments: tuple[Argument, ...]
    # its terms in the delay: see delay.breakdown, and delay.harq_round_trip_ms
    delay: tuple[str, ...] = ()
    optional: bool = False  # a program without it means the defaults of Workflow


TOOLS = (
    Tool(
        "grid",
        "transmit",
        "Takes num_prb resource blocks at a subcarrier spacing; wider spacing shortens the slot.",
        (
            Argument("num_prb", "num_prb", low=1, high=MAX_PRB),
            Argument("scs_khz", "scs_khz", (15, 30, 60, 120)),
        ),
        delay=("alignment", "scheduling", "slot", "fft"),
    ),
    Tool(
        "modulate",
        "transmit",
        "QAM order and spatial layers; both raise the rate and need more SNR.",
        (
            Argument("bits_per_symbol", "bits_per_symbol", (2, 4, 6, 8)),
            Argument("num_layers", "num_layers", low=1, high=MAX_ANT),
        ),
        delay=("demap",),
    ),
    Tool(
        "encode",
        "transmit",
        "5G channel code, polar for short blocks; a lower rate corrects more errors and carries"
        " fewer bits.",
        (
            Argument("code", "code", ("ldpc", "polar"), validation=("none",)),
            Argument(
                "code_rate", "code_rate", (0.2, 0.33, 0.5, 0.67, 0.83, 0.89), low=0.2, high=0.93
            ),
        ),
        delay=("encode",),
    ),
    Tool(
        "pilots",
        "transmit",
        "DM-RS symbols per slot; two follow a channel that changes with speed, at a cost in rate.",
        (Argument("num_dmrs", "num_dmrs", (1, 2)),),
    ),
    Tool(
        "precode",
        "transmit",
        "svd sends along the channel's strongest directions as they were some slots ago; deeptx"
        " predicts them for a channel that moves.",
        (Argument("method", "precoder", ("none", "svd", "deeptx")),),
        delay=("precode",),
        optional=True,
    ),
    Tool(
        "harq",
        "transmit",
        "Sends a failed block again and combines, up to so many transmissions; each one takes time."
        " ir sends other parity bits, chase the same bits.",
        (
            Argument("transmissions", "num_transmissions", (1, 2, 3, 4)),
            Argument("combining", "combining", ("ir", "chase")),
        ),
        delay=("harq",),
        optional=True,
    ),
    Tool(
        "estimate",
        "receive",
        "Channel estimation: ls interpolates, lmmse filters noise and costs more.",
        (
            Argument(
                "method",
                "estimator",
                ("ls-nearest", "ls", "lmmse"),
                validation=("genie", "perfect"),
            ),
        ),
        delay=("estimate",),
    ),
    Tool(
        "detect",
        "receive",
        "Separates the layers: mrc (takes the others for noise), zf, lmmse (weighs the noise too),"
        " ep and kbest, in order of cost. deeprx-small and deeprx are neural: they also estimate,"
        " for one layer, at a high cost.",
        (
            Argument(
                "method",
                "detector",
                ("mrc", "zf", "lmmse", "ep", "kbest", "deeprx-small", "deeprx"),
            ),
        ),
        delay=("detect",),
    ),
    Tool(
        "decode",
        "receive",
        "Decoder iterations; more correct more errors and take longer.",
        (Argument("iterations", "decoder_iterations", low=1, high=20),),
        delay=("decode",),
    ),
)

BY_NAME = {tool.name: tool for tool in TOOLS}
BY_FIELD = {argument.field: argument for tool in TOOLS for argument in tool.arguments}
MODULES = {  # what a platform may lack: tool.choice, such as estimate.lmmse, modulate.8 or harq.2
    f"{tool.name}.{value}"
    for tool in TOOLS
    for argument in tool.arguments
    for value in argument.choices
}


def is_neural(detector: str) -> bool:
    """A receiver that estimates, detects and demaps in one network (twin/deeprx.py)."""
    return detector.startswith("deeprx")


def describe(tools: tuple[Tool, ...] = TOOLS, absent: tuple[str, ...] = ()) -> str:
    """The toolbox as a prompt shows it, without the modules `absent`: one line per tool."""
    lines = []
    for t in tools:
        arguments = (
            replace(a, choices=tuple(v for v in a.choices if f"{t.name}.{v}" not in absent))
            for a in t.arguments
        )
        lines.append(
            f"{t.name}({', '.join(map(str, arguments))})  #"
            f" {'(optional) ' if t.optional else ''}{t.description}"
        )
    return "\n".join(lines)


def refusal(absent: tuple[str, ...], workflow, validation: bool = False) -> str | None:
    """Why a platform that lacks the modules `absent` cannot run the workflow, or None. See
    `twin.check`.
    """
    if is_neural(workflow.detector) and workflow.num_layers > 1:
        return (
            f"detector={workflow.detector!r}: receives one layer, not"
            f" num_layers={workflow.num_layers}"
        )
    if workflow.code == "polar" and not 1 <= num_polar_blocks(workflow) <= MAX_POLAR_BLOCKS:
        return (
            f"code='polar': the grant has room for {num_polar_blocks(workflow)} blocks of"
            f" {POLAR_LENGTH} coded bits, expected 1 to {MAX_POLAR_BLOCKS}"
        )
    for tool in TOOLS:
        for argument in tool.arguments:
            value = getattr(workflow, argument.field)
            if argument.field == "combining" and workflow.num_transmissions == 1:
                continue  # nothing to combine
            if argument.choices and f"{tool.name}.{value}" in absent:
                return f"{tool.name}({argument.name}={value!r}): the platform lacks this module"
            if not validation and not argument.offers(value):
                return f"{tool.name}({argument.name}={value!r}): the toolbox offers {argument}"
    return None

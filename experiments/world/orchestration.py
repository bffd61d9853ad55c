"""The language between policy and twin: a link's state as a prompt, a workflow as structured
natural language, and f(a), the deterministic translation of that language into the twin's code
(III.B, the `grammar` translator).
"""

import functools
import math
import re
from decimal import Decimal

import numpy as np

from experiments.world.wording import RATES_MBPS
from twin import Scenario, Workflow, WorkflowError, parse
from twin.delay import throughput_mbps as full_throughput_mbps
from twin.spec import slot_ms
from twin.toolbox import BY_FIELD
from twin.transport import data_elements

QAM = {2: "QPSK", 4: "16QAM", 6: "64QAM", 8: "256QAM"}
THINK, END_THINK = "<think>", "</think>"

# One pattern a workflow field, exactly one match each; whatever stands between them does not
# matter.
_START, _END = r"(?<![\w.+-])", r"(?![\w+-]|\.\d)"
FIELDS = {
    "scs_khz": r"(\d{1,4}) kHz",
    "bits_per_symbol": r"(QPSK|16QAM|64QAM|256QAM)",
    "num_layers": r"(\d{1,4}) layers?",
    "code": r"(LDPC|polar)",
    "code_rate": r"rate (\d\.\d{1,4})",
    "decoder_iterations": r"(\d{1,4}) iterations?",
    "num_dmrs": r"(\d{1,4}) DMRS",
    "estimator": r"([\w-]+) estimation",
    "detector": r"([\w-]+) detection",
    "num_prb": r"(\d{1,4}) PRB",
}
OPTIONAL = {  # at most one match each
    "precoder": r"([\w-]+) precoding",
    "num_transmissions": r"(\d{1,4}) transmissions?",
    "combining": r"(ir|chase) combining",
}
_PATTERN = re.compile(  # all of them in one pass: a training step reads thousands of responses
    _START
    + "(?:"
    + "|".join(
        pattern.replace("(", f"(?P<{name}>", 1) for name, pattern in (FIELDS | OPTIONAL).items()
    )
    + ")"
    + _END,
    re.ASCII,
)
BITS = {name: bits for bits, name in QAM.items()}


def number(value: float | Decimal) -> str:
    """A number as people write it, without a digit less or more than it has: what a prompt says is
    what the judge goes by.
    """
    return f"{Decimal(repr(value + 0.0)) if isinstance(value, float) else Decimal(value):f}".removesuffix(  # noqa: E501
        ".0"
    )


def power_of_ten(value: float) -> str:
    """The same of an error rate: 1e-3, 1.5e-3."""
    return np.format_float_scientific(value, trim="-", exp_digits=1)


def quantity(value: float, unit: str, small_unit: str) -> str:
    """A value in whole numbers of its unit, or else in thousandths of it: (0.5, "ms", "us") -> "500
    us".
    """
    if value >= 1 and float(value).is_integer():
        return f"{value:.0f} {unit}"
    return f"{number((Decimal(repr(float(value))) * 1000).normalize())} {small_unit}"


def describe_link(scenario: Scenario) -> str:
    """The state of link and platform, as the short prompt shows it."""
    s = scenario
    channel = s.channel + (
        f" {number(s.delay_spread_ns)} ns at {number(s.speed_mps)} m/s"
        if s.channel.startswith(("tdl", "cdl"))
        else ""
    )
    more = (
        [f"{s.antenna_correlation} correlation"] * (s.antenna_correlation != "low")
        + ([f"full power up to {number(s.full_power_mhz)} MHz"] if s.full_power_mhz else [])
        + [f"{s.access} access"] * (s.access != "immediate")
    )
    return ", ".join([f"Link: {channel}", _size(s), *more, f"{number(s.compute_gflops)} GFLOPS."])


def _size(s: Scenario) -> str:
    return f"SNR {number(s.snr_db)} dB, {s.num_tx_ant}x{s.num_rx_ant} antennas, {s.max_prb} PRB"


def describe_state(scenario: Scenario) -> str:
    """The same in words, as the long prompt shows it."""
    s = scenario
    fading = (
        f"The channel is {s.channel.upper()} with a delay spread of {number(s.delay_spread_ns)} ns;"
        f" the terminal moves at {number(s.speed_mps)} m/s."
        if s.channel.startswith(("tdl", "cdl"))
        else (
            "The channel is a line of sight."
            if s.channel == "awgn"
            else "The channel is flat and fades from slot to slot."
        )
    )
    power = (
        f" The transmitter has full power up to {number(s.full_power_mhz)} MHz; a wider grant"
        " shares it."
        if s.full_power_mhz
        else ""
    )
    access = {
        "immediate": "",
        "aligned": " A packet waits for the next slot.",
        "scheduled": " A packet waits for the next slot and asks for its grant first.",
    }[s.access]
    return (
        f"State: {fading} The SNR is {number(s.snr_db)} dB at each receive antenna; {s.num_tx_ant}"
        f" transmit and {s.num_rx_ant} receive antennas, {s.antenna_correlation} correlation;"
        f" carrier {number(s.carrier_ghz)} GHz.{power}{access} The grant has at most {s.max_prb}"
        f" resource blocks. The platform sustains {number(s.compute_gflops)} GFLOPS."
    )


# what the short prompt says of a platform, in an answer's order and words: tool, its values, how
# one is written, a frame
SHOWN = (
    ("grid", (15, 30, 60, 120), str, "{} kHz"),
    ("modulate", tuple(QAM), QAM.get, "{}"),
    ("encode", ("ldpc", "polar"), {"ldpc": "LDPC", "polar": "polar"}.get, "{}"),
    ("encode", BY_FIELD["code_rate"].choices, "{:.2f}".format, "rate {}"),
    ("pilots", (1, 2), str, "{} DMRS"),
    ("estimate", ("ls-nearest", "ls", "lmmse"), str, "{} estimation"),
    (
        "detect",
        ("mrc", "zf", "lmmse", "ep", "kbest", "deeprx-small", "deeprx"),
        str,
        "{} detection",
    ),
    ("precode", ("none", "svd", "deeptx"), str, "{} precoding"),
    ("harq", (1, 2, 3, 4), str, "{} transmissions"),
    ("harq", ("ir", "chase"), str, "{} combining"),
)


def describe_tools(scenario: Scenario) -> str:
    """The modules that are present, those of a kind together; `twin.toolbox.describe()` is the
    whole toolbox.
    """
    return (
        "Tools: "
        + "; ".join(
            frame.format(
                " ".join(
                    show(value) for value in values if f"{tool}.{value}" not in scenario.absent
                )
            )
            for tool, values, show, frame in SHOWN
        )
        + "."
    )


def describe_targets(
    delay_ms: float, throughput_mbps: float, ber: float, errors: str = "bit"
) -> str:
    """What the request comes with."""
    return (
        f"Targets: {quantity(throughput_mbps, 'Mbps', 'kbps')}, {quantity(delay_ms, 'ms', 'us')}, "
        f"{'PER' if errors == 'packet' else 'BER'} {power_of_ten(ber)}."
    )


def think(scenario: Scenario, throughput_mbps: float, delay_ms: float) -> str:
    """What a response begins with: the SNR, antennas and grant as the prompt has them, the SNR with
    the array's gain, and what is to be met.
    """
    gain_db = round(10 * math.log10(scenario.num_rx_ant))
    return (
        f"{THINK} {_size(scenario)}: {number(scenario.snr_db)} + {gain_db} ="
        f" {number(round(scenario.snr_db + gain_db, 9))} dB;"
        f" {quantity(throughput_mbps, 'Mbps', 'kbps')},"
        f" {quantity(delay_ms, 'ms', 'us')}{END_THINK} "
    )


def each_prb_mbps(w: Workflow) -> float:
    """What one resource block of the grant carries without block errors, before sizes are
    rounded.
    """
    return (
        data_elements(w)
        / w.num_prb
        * w.num_layers
        * w.bits_per_symbol
        * w.code_rate
        / slot_ms(w.scs_khz)
        * 1e-3
    )


def describe_workflow(w: Workflow, wanted_mbps: float | None = None) -> str:
    """A workflow in structured natural language, what the policy learns to write; `translate` reads
    it back.

    Before the grant stand what one PRB carries and the throughput that the grant is for, without
    block errors: wanted_mbps, or the round figure below what it carries. `translate` reads neither;
    they let a writer decide on a throughput and divide.
    """
    carried = full_throughput_mbps(w, 0.0)
    figure = (
        wanted_mbps
        if wanted_mbps and wanted_mbps <= carried
        else max((rate for rate in RATES_MBPS if rate <= carried), default=RATES_MBPS[0])
    )
    return (
        f"Use {w.scs_khz} kHz, {QAM[w.bits_per_symbol]} on {w.num_layers}"
        f" layer{'s' * (w.num_layers > 1)}, {'LDPC' if w.code == 'ldpc' else w.code} rate"
        f" {w.code_rate:.2f} with {w.decoder_iterations} iterations, {w.num_dmrs} DMRS,"
        f" {w.estimator} estimation, {w.detector} detection,"
        f" {f'{w.precoder} precoding, ' if w.precoder != 'none' else ''}"
        f"{f'{w.num_transmissions} transmissions, ' if w.num_transmissions > 1 else ''}"
        f"{f'{w.combining} combining, ' if w.combining != 'ir' else ''}"
        f"{_two_digits(each_prb_mbps(w))} a PRB, {quantity(figure, 'Mbps', 'kbps')} on {w.num_prb} PRB."  # noqa: E501
    )


def values(response: str) -> list[tuple[str, int, int]]:
    """(field, start, stop) of every value that `translate` reads in the answer."""
    start = response.rfind(END_THINK) + len(END_THINK) if END_THINK in response else 0
    return [
        (match.lastgroup, *match.span(match.lastgroup))
        for match in _PATTERN.finditer(response, start)
    ]


def grant_agrees(response: str) -> bool | None:
    """Whether the answer's grant carries the throughput that stands before it; None of one without
    either or that cannot be read.
    """
    workflow, _ = read(response)
    figure = re.search(r"(\d{1,6}) ([Mk])bps on \d+ PRB", response)
    if workflow is None or figure is None:
        return None
    return full_throughput_mbps(workflow, 0.0) >= int(figure[1]) * (1 if figure[2] == "M" else 1e-3)


def _two_digits(mbps: float) -> str:
    return f"{float(f'{mbps:.2g}'):g} Mbps" if mbps >= 1 else f"{float(f'{mbps * 1e3:.2g}'):g} kbps"


def translate(response: str) -> str:
    """c = f(a): the response's workflow as the twin's code, ready for `twin.parse`.

    Only digits and known words pass from the response into the code.

    Raises:
      WorkflowError: a part is missing, stands twice, or the think part does not end.
    """
    return _translate_answer(answer(response))


def answer(response: str) -> str:
    """What follows the think part.

    Raises:
      WorkflowError: the think part does not end.
    """
    text = response.rpartition(END_THINK)[2]
    if THINK in text:
        raise WorkflowError(f"think: the part does not end with {END_THINK}")
    return text


def read(text: str) -> tuple[Workflow | None, str | None]:
    """(workflow, None), or (None, the word for what is wrong with the text).

    >>> workflow, _ = read(describe_workflow(Workflow(num_prb=4)))
    >>> workflow == Workflow(num_prb=4), read("Use 30 kHz.")
    (True, (None, 'bits_per_symbol'))
    """
    try:
        code = translate(text)
    except WorkflowError as error:
        return None, str(error).partition(":")[0]
    return read_program(code)


@functools.lru_cache(maxsize=1 << 16)
def read_program(code: str) -> tuple[Workflow | None, str | None]:
    """Likewise of a program."""
    try:
        return parse(code), None
    except WorkflowError:
        return None, "parse"


@functools.lru_cache(maxsize=1 << 14)
def _translate_answer(answer: str) -> str:
    found: dict[str, str] = {}
    for match in _PATTERN.finditer(answer):
        if match.lastgroup in found:
            raise WorkflowError(f"{match.lastgroup}: stands twice in the answer")
        found[match.lastgroup] = match.group(match.lastgroup)
    missing = next((name for name in FIELDS if name not in found), None)
    if missing:
        raise WorkflowError(f"{missing}: expected {FIELDS[missing]!r} in the answer")
    code = (
        f"grid(num_prb={int(found['num_prb'])}, scs_khz={int(found['scs_khz'])})\n"
        f"modulate(bits_per_symbol={BITS[found['bits_per_symbol']]},"
        f" num_layers={int(found['num_layers'])})\n"
        f'encode(code="{found["code"].lower()}", code_rate={found["code_rate"]})\n'
        f"pilots(num_dmrs={int(found['num_dmrs'])})\n"
        f'estimate(method="{_word("estimation", found["estimator"])}")\n'
        f'detect(method="{_word("detection", found["detector"])}")\n'
        f"decode(iterations={int(found['decoder_iterations'])})\n"
    )
    if "precoder" in found:
        code += f'precode(method="{_word("precoding", found["precoder"])}")\n'
    if "num_transmissions" in found:
        code += (
            f"harq(transmissions={int(found['num_transmissions'])},"
            f' combining="{found.get("combining", "ir")}")\n'
        )
    return code


def _word(stage: str, text: str) -> str:
    """A method's name may hold lower-case ASCII letters, digits and dashes; what it means is for
    the twin to say.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,15}", text, flags=re.ASCII):
        raise WorkflowError(f"{stage}: {text[:20]!r} is no method's name")
    return text

"""python -m twin run scenario.yaml workflow.txt | sweep scenario.yaml workflow.txt | toolbox"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import yaml

from . import QoS, Scenario, Twin, Workflow, breakdown, check, describe, parse
from .theory import awgn_ber, nearest_mcs, rayleigh_ber, table_bler
from .transport import (
    POLAR_LENGTH,
    information_bits,
    num_polar_blocks,
    polar_info_bits,
    segmentation,
)

RELIABILITY = 0.99  # of the delay quantile that is printed


def read_scenario(path: str) -> Scenario:
    """A YAML mapping of Scenario fields; raises ValueError naming the file."""
    with open(path) as file:
        content = yaml.safe_load(file) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of scenario fields")
    if unknown := set(content) - {f.name for f in fields(Scenario)}:
        raise ValueError(f"{path}: unknown scenario fields {', '.join(sorted(map(str, unknown)))}")
    return Scenario(**content)


def read_workflow(path: str) -> Workflow:
    with open(path) as file:
        return parse(file.read())


def describe_block(workflow: Workflow) -> str:
    """The block of a slot, and how it is cut and coded."""
    w, size = workflow, f"{information_bits(workflow)} bits"
    if w.code == "polar":
        return (
            f"{size} in {num_polar_blocks(w)} polar block(s) of {polar_info_bits(w.code_rate)},"
            f" {POLAR_LENGTH} coded"
        )
    if w.code == "none":
        return f"{size}, uncoded"
    seg = segmentation(w)
    return (
        f"{size} (TS 38.214 5.1.3.2) in {seg.num_blocks} code block(s) of {seg.info},"
        f" {sum(seg.sent)} coded, base graph {seg.base_graph}, Z = {seg.lifting}, {seg.filler}"
        " filler bits"
    )


def rates(qos: QoS) -> str:
    """Bit and block error rates, a line each, and what they rest on."""
    lines = []
    for name, rate, (low, high), seen in (
        ("BER", qos.ber, qos.ber_interval, f"{qos.bit_errors:g} of {qos.num_bits} bits"),
        ("BLER", qos.bler, qos.bler_interval, f"{qos.block_errors:g} of {qos.num_blocks} blocks"),
    ):
        lines.append(f"{name:10} {rate:10.2e}   95 % in [{low:.2e}, {high:.2e}], {seen}")
    return "\n".join(lines)


def run(arguments) -> None:
    """Print the QoS, what is delivered by transmission, and the delay by module."""
    scenario, workflow = read_scenario(arguments.scenario), read_workflow(arguments.workflow)
    check(scenario, workflow, validation=True)
    with Twin(workers=1, cache=arguments.cache, seed=arguments.seed) as twin:
        qos = twin.evaluate([(scenario, workflow)])[0]
    print(f"block      {describe_block(workflow)}")
    print(f"throughput {qos.throughput_mbps:10.3f} Mbit/s")
    print(rates(qos))
    print(f"sent       {qos.mean_transmissions:10.2f} times on average")
    for number, (share, ms) in enumerate(zip(qos.delivered, qos.delays_ms), 1):
        print(f"  after {number}  {100 * share:10.2f} % delivered, {ms:.4f} ms")
    quantile = qos.delay_quantile_ms(RELIABILITY)
    print(
        f"delay      {qos.delay_ms:10.4f} ms, {100 * RELIABILITY:g} % of what is delivered within"
        f" {quantile:.4f} ms, of which"
    )
    parts = breakdown(scenario, workflow)
    parts["harq"] = qos.delay_ms - sum(parts.values())
    for module, ms in parts.items():
        print(f"  {module:10}{ms:10.4f} {'#' * round(50 * ms / qos.delay_ms)}")


def reference(
    scenario: Scenario, workflow: Workflow, snrs_db
) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(label, Es/N0 in dB, rate) of the curve that the sweep should lie on, where one is known."""
    m, branches = workflow.bits_per_symbol, scenario.num_rx_ant
    gain_db = 10 * np.log10(branches)
    if workflow.num_layers > 1:
        return None
    if workflow.code == "none" and scenario.channel == "awgn":
        return (
            "BER, closed form",
            snrs_db,
            np.array([awgn_ber(m, snr + gain_db) for snr in snrs_db]),
        )
    if workflow.code == "none" and scenario.channel == "rayleigh":
        return (
            "BER, closed form",
            snrs_db,
            np.array([rayleigh_ber(m, snr, branches) for snr in snrs_db]),
        )
    mcs = nearest_mcs(m, workflow.code_rate)
    if workflow.code == "ldpc" and scenario.channel == "awgn" and mcs is not None and mcs >= 3:
        code = segmentation(workflow)
        snr, bler = table_bler(mcs, code.info)
        bler = 1 - (1 - bler) ** code.num_blocks
        counted = bler > 1e-4  # the tables' resolution
        return f"BLER, Sionna's table, MCS {mcs}", (snr - gain_db)[counted], bler[counted]
    return None


def sweep(arguments) -> None:
    """Print and draw BER and BLER over SNR, with 95 % intervals."""
    scenario, workflow = read_scenario(arguments.scenario), read_workflow(arguments.workflow)
    if not Path(arguments.out).parent.is_dir():
        raise FileNotFoundError(f"{arguments.out}: no directory {Path(arguments.out).parent}")
    start, stop, step = arguments.snr
    snrs_db = np.arange(start, stop + step / 2, step)
    pairs = [(replace(scenario, snr_db=snr), workflow) for snr in snrs_db]
    check(*pairs[0], validation=True)
    budget = dict(max_blocks=arguments.max_blocks, enough_block_errors=100)
    with Twin(
        workers=arguments.workers, cache=arguments.cache, seed=arguments.seed, **budget
    ) as twin:
        answers = twin.evaluate(pairs)
    print(" SNR/dB       BER  95 % interval             BLER  95 % interval          blocks")
    for snr, q in zip(snrs_db, answers):
        (ber_low, ber_high), (low, high) = q.ber_interval, q.bler_interval
        print(
            f"{snr:7.2f} {q.ber:9.2e}  [{ber_low:.2e}, {ber_high:.2e}] {q.bler:9.2e}  [{low:.2e},"
            f" {high:.2e}] {q.num_blocks:6d}"
        )
    draw(scenario, workflow, snrs_db, answers, arguments.out)
    print(arguments.out)


def draw(scenario, workflow, snrs_db, answers, path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    seen = np.array([not q.ber_is_bound for q in answers])
    for name in ("bler", "ber"):
        rate = np.array([getattr(q, name) for q in answers])
        low, high = np.transpose([getattr(q, f"{name}_interval") for q in answers])
        bars = np.clip([rate - low, high - rate], 0, None)[:, seen]
        line = axes.errorbar(
            snrs_db[seen], rate[seen], yerr=bars, fmt="o-", capsize=3, label=f"{name.upper()}, 95 %"
        )
        label = f"{name.upper()} below: no error seen"
        axes.plot(
            snrs_db[~seen], high[~seen], "v", mfc="none", color=line[0].get_color(), label=label
        )
    if known := reference(scenario, workflow, snrs_db):
        axes.plot(known[1], known[2], "k--", marker=".", label=known[0])
    axes.set(
        xlim=(snrs_db[0] - 0.5, snrs_db[-1] + 0.5),
        xlabel="Es/N0 per receive antenna, dB",
        ylabel="error rate",
    )
    axes.set(yscale="log", ylim=(10 ** np.floor(np.log10(min(q.ber for q in answers))), 1.5))
    w = workflow
    axes.set_title(
        f"{scenario.channel}, {w.bits_per_symbol} bits/symbol, {w.code} {w.code_rate:g},"
        f" {w.num_layers} layer(s)"
    )
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)


def snr_range(text: str) -> tuple[float, float, float]:
    start, stop, step = (float(part) for part in text.split(":"))
    if not step > 0 or not start <= stop or (stop - start) / step > 1000:
        raise argparse.ArgumentTypeError(f"{text}: expected start:stop:step in dB")
    return start, stop, step


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m twin", description="A link-level digital twin on Sionna."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("scenario", help="YAML file of scenario fields")
    common.add_argument("workflow", help="text file with one toolbox call per line")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--cache", default=None, help="SQLite file that keeps results")
    commands.add_parser("run", parents=[common], help="QoS and delay of one workflow").set_defaults(
        action=run
    )
    sweeper = commands.add_parser(
        "sweep", parents=[common], help="BER and BLER over SNR, as a table and a figure"
    )
    sweeper.add_argument(
        "--snr", type=snr_range, default=(-5.0, 25.0, 1.0), metavar="START:STOP:STEP", help="dB"
    )
    sweeper.add_argument("--max-blocks", type=int, default=512)
    sweeper.add_argument("--workers", type=int, default=2)
    sweeper.add_argument("--out", default="sweep.svg")
    sweeper.set_defaults(action=sweep)
    commands.add_parser("toolbox", help="what a prompt shows").set_defaults(
        action=lambda _: print(describe())
    )
    arguments = parser.parse_args(argv)
    try:
        arguments.action(arguments)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        print(f"twin: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

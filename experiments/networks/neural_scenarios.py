"""python -m experiments.networks.neural_scenarios [--out DIR]: what the neural modules are worth to
a network, and where they are not.

scenarios.csv: for some requests the oracle's workflow where the platform has the neural modules and
where it lacks them. beams.csv and needs.csv: block error rates of the precoders over SNR and speed,
and the SNR that 10 % takes. throughput.csv and throughput.png: the throughput of the best mode with
a block error rate of at most 10 %, by receiver and DM-RS symbols. About a quarter of an hour on two
cores.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.networks.deeprx_curves import MODE, RECEIVERS, crossing_db, write
from experiments.world.search import judged, search
from experiments.world.tasks import Task
from rldtf_jax.reward import NO_SERVICE, RewardConfig
from twin import Scenario, Twin, Workflow
from twin.delay import throughput_mbps
from twin.toolbox import is_neural

CODE_RATES = (0.2, 0.33, 0.5, 0.67, 0.83)
PRECODERS = ("none", "svd", "deeptx")
SNRS_DB = tuple(range(0, 22, 3))
SPEEDS_MPS = (10.0, 30.0)
ESTIMATING = tuple(name for name in RECEIVERS if name not in ("genie + LMMSE", "perfect CSI"))
SETTINGS = dict(max_blocks=256, enough_block_errors=30, method="link")
NEURAL = ("detect.deeprx-small", "detect.deeprx", "precode.deeptx")
# a cell of 30 kHz, terminals without 256QAM
PLAIN = (
    "grid.15",
    "grid.60",
    "grid.120",
    "modulate.8",
    "encode.polar",
    "detect.ep",
    "detect.kbest",
    "harq.2",
    "harq.3",
    "harq.4",
)
CAR = Scenario(
    channel="tdl-b",
    delay_spread_ns=100,
    speed_mps=10,
    num_tx_ant=1,
    num_rx_ant=2,
    snr_db=9,
    max_prb=10,
    compute_gflops=50,
    absent=PLAIN,
)
UPLINK = Task(
    "live uplink streaming",
    "A live uplink stream from a car.",
    CAR,
    delay_ms=4.0,
    throughput_mbps=5.0,
    ber=0.1,
    errors="packet",
)
REQUESTS = {  # `ber` is a rate of packet errors here, the block error rate
    "DeepRx: a moving terminal, a weak link": replace(
        UPLINK, scenario=replace(CAR, snr_db=3), throughput_mbps=2.25
    ),
    "DeepRx without a Wiener filter: a moving terminal": replace(
        UPLINK, scenario=replace(CAR, absent=(*PLAIN, "estimate.lmmse"))
    ),
    "DeepTx: beams towards a moving terminal": Task(
        "cloud gaming",
        "Cloud gaming on the road.",
        replace(
            CAR,
            num_tx_ant=4,
            num_rx_ant=1,
            snr_db=8,
            absent=(*PLAIN, "detect.deeprx-small", "detect.deeprx"),
        ),
        delay_ms=4.0,
        throughput_mbps=4.5,
        ber=0.1,
        errors="packet",
    ),
    "classical: little compute": replace(
        UPLINK, scenario=replace(CAR, compute_gflops=2.0), throughput_mbps=3.0
    ),
}


def without_neural(task: Task) -> Task:
    return replace(
        task, scenario=replace(task.scenario, absent=tuple({*task.scenario.absent, *NEURAL}))
    )


def scenarios(twin: Twin, requests: dict[str, Task] = REQUESTS, budget: int = 160) -> list[dict]:
    """Three rows a request: the oracle's workflow with the neural modules and without them, and the
    classical one with DeepRx in the place of its receiver.
    """
    config, rows = RewardConfig(), []
    every = [*requests.values(), *map(without_neural, requests.values())]
    found = [one.workflow for one in search(every, twin, config, budget=budget)]
    for i, (name, task) in enumerate(requests.items()):
        full, classical = found[i], found[i + len(requests)]
        choices = {"oracle, all modules": full, "oracle, classical modules": classical}
        if classical is not None and classical.num_layers == 1:
            choices["the same with DeepRx small"] = replace(classical, detector="deeprx-small")
        for choice, workflow in choices.items():
            rows.append(dict(request=name, choice=choice) | described(twin, task, workflow, config))
    return rows


def described(twin: Twin, task: Task, w: Workflow | None, config: RewardConfig) -> dict:
    """What a workflow sets and delivers; R is that of Eq. 2."""
    asked = dict(target_ms=task.delay_ms, target_mbps=task.throughput_mbps, target_bler=task.ber)
    if w is None:
        return (
            asked
            | dict(meets=False)
            | dict.fromkeys(
                (
                    "scs_khz",
                    "bits_per_symbol",
                    "code_rate",
                    "iterations",
                    "layers",
                    "dmrs",
                    "estimator",
                    "detector",
                    "precoder",
                    "num_prb",
                    "delay_ms",
                    "throughput_mbps",
                    "bler",
                    "ber",
                    "R",
                ),
                "",
            )
        )
    R, met, qos = judged([(task, w)], twin, config)[0]
    return asked | dict(
        meets=met,
        scs_khz=w.scs_khz,
        bits_per_symbol=w.bits_per_symbol,
        code_rate=w.code_rate,
        iterations=w.decoder_iterations,
        layers=w.num_layers,
        dmrs=w.num_dmrs,
        estimator="" if is_neural(w.detector) else w.estimator,
        detector=w.detector,
        precoder=w.precoder,
        num_prb=w.num_prb,
        delay_ms=qos.delay_ms,
        throughput_mbps=qos.throughput_mbps,
        bler=qos.bler,
        ber=qos.ber,
        R=R if met else NO_SERVICE,
    )


def throughput(
    twin: Twin,
    snrs_db=SNRS_DB,
    speeds_mps=SPEEDS_MPS,
    receivers=ESTIMATING,
    orders=(2, 4, 6),
    rates=CODE_RATES,
    target: float = 0.1,
    progress=None,
) -> list[dict]:
    """The mode (modulation, code rate) of most throughput per resource block among those with BLER
    <= target, for each speed, SNR, receiver and number of DM-RS symbols; on CAR's link, up to
    64QAM, MODE's grant. The interval is that of its block error rate.
    """
    keys = list(itertools.product(speeds_mps, snrs_db, receivers, (1, 2)))
    modes = {
        key: [
            replace(MODE, bits_per_symbol=m, code_rate=rate, num_dmrs=key[3], **RECEIVERS[key[2]])
            for m in orders
            for rate in rates
            if m * rate <= np.log2(1 + CAR.num_rx_ant * 10 ** (key[1] / 10))
        ]
        for key in keys
    }
    pairs = [
        (replace(CAR, speed_mps=key[0], snr_db=key[1], absent=()), workflow)
        for key in keys
        for workflow in modes[key]
    ]
    measured, rows = iter(twin.evaluate(pairs, progress=progress)), []
    for key in keys:
        row = dict(zip(("speed_mps", "snr_db", "receiver", "num_dmrs"), key)) | dict(
            mbps_per_prb=0.0, low=0.0, high=0.0, bits_per_symbol="", code_rate="", bler=""
        )
        for workflow in modes[key]:
            qos = next(measured)
            bler = qos.block_errors / qos.num_blocks
            if (
                bler <= target
                and (most := throughput_mbps(workflow, bler) / workflow.num_prb)
                > row["mbps_per_prb"]
            ):
                high, low = (
                    throughput_mbps(workflow, rate) / workflow.num_prb for rate in qos.bler_interval
                )
                row |= dict(
                    mbps_per_prb=most,
                    low=low,
                    high=high,
                    bits_per_symbol=workflow.bits_per_symbol,
                    code_rate=workflow.code_rate,
                    bler=bler,
                )
        rows.append(row)
    return rows


def beams(
    twin: Twin,
    snrs_db=range(-4, 21),
    speeds_mps=(3.0, 10.0, 30.0),
    precoders=PRECODERS,
    progress=None,
) -> list[dict]:
    """Block error rates of precoders from four antennas to one: 16QAM at rate 1/2, two DM-RS
    symbols, LMMSE estimation, MODE's grant.
    """
    keys = list(itertools.product(speeds_mps, precoders, snrs_db))
    measured = twin.evaluate(
        [
            (
                replace(CAR, num_tx_ant=4, num_rx_ant=1, speed_mps=speed, snr_db=snr, absent=()),
                replace(MODE, bits_per_symbol=4, num_dmrs=2, estimator="lmmse", precoder=precoder),
            )
            for speed, precoder, snr in keys
        ],
        progress=progress,
    )
    return [
        dict(zip(("speed_mps", "precoder", "snr_db"), key), bler=qos.bler)
        | dict(zip(("low", "high"), qos.bler_interval))
        for key, qos in zip(keys, measured)
    ]


def needs(rows: list[dict]) -> list[dict]:
    """The SNR at which every curve of `beams` falls to a block error rate of 10 %, and where its
    limits do; nan if none does.
    """
    curves = itertools.groupby(rows, key=lambda row: (row["speed_mps"], row["precoder"]))
    table = []
    for (speed, precoder), some in curves:
        some = list(some)
        at = {
            name: crossing_db([row["snr_db"] for row in some], [row[rate] for row in some])
            for name, rate in (("snr_db", "bler"), ("low_db", "low"), ("high_db", "high"))
        }
        table.append(
            dict(speed_mps=speed, precoder=precoder)
            | {name: round(value, 2) for name, value in at.items()}
        )
    return table


def draw(rows: list[dict], path: Path) -> None:
    """Throughput over SNR, a panel for each speed: one DM-RS symbol solid, two dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(ESTIMATING, ("#999999", "#0072b2", "#e69f00", "#d55e00")))
    speeds = sorted({row["speed_mps"] for row in rows})
    figure, axes = plt.subplots(
        1,
        len(speeds),
        figsize=(5 * len(speeds), 3.6),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, speed in zip(axes.flat, speeds):
        for (name, colour), num_dmrs in itertools.product(colours.items(), (1, 2)):
            some = [
                r
                for r in rows
                if (r["speed_mps"], r["receiver"], r["num_dmrs"]) == (speed, name, num_dmrs)
            ]
            snr, mbps, low, high = (
                np.array([r[key] for r in some])
                for key in ("snr_db", "mbps_per_prb", "low", "high")
            )
            axis.errorbar(
                snr,
                mbps,
                (mbps - low, high - mbps),
                color=colour,
                ls="-" if num_dmrs == 1 else "--",
                marker="o" if num_dmrs == 1 else "s",
                mfc=colour if num_dmrs == 1 else "none",
                ms=4,
                lw=1.2,
                elinewidth=0.7,
                label=f"{name}, {num_dmrs} DM-RS",
            )
        axis.set_title(f"{speed:.0f} m/s", fontsize=10)
        axis.set(
            xlabel="Es/N0 per receive antenna, dB",
            ylabel="" if axis is not axes[0, 0] else "Mbit/s per resource block",
        )
        axis.grid(alpha=0.3, lw=0.5)
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.suptitle(
        "Best mode with a block error rate of at most 10 %: TDL-B, 100 ns, 3.5 GHz, 30 kHz,"
        f" {MODE.num_prb} PRB, 1 x 2 antennas",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(row: dict) -> str:
    mode = (
        "no workflow meets the targets"
        if row["detector"] == ""
        else (
            "{bits_per_symbol} bits x {code_rate}, {layers} layer, {dmrs} DM-RS, {estimator}"
            " {detector}, precoder {precoder}, {num_prb} PRB of {scs_khz} kHz: {delay_ms:.2f} ms,"
            " {throughput_mbps:.2f} Mbit/s, BLER {bler:.1e}, "
        ).format(**row)
        + ("meets" if row["meets"] else "misses")
        + " the targets"
    )
    return f"  {row['choice']:28} {mode}"


def main(argv=None) -> None:
    from experiments.world.environment import TwinBar

    parser = argparse.ArgumentParser(
        description="What the neural modules are worth to a network, and where they are not."
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results/deeprx"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--cache", help="a file of the twin's results, with which a run that was cut short goes on"
    )
    arguments = parser.parse_args(argv)
    try:
        with Twin(workers=arguments.workers, cache=arguments.cache, **SETTINGS) as twin:
            arguments.out.mkdir(parents=True, exist_ok=True)
            requests = scenarios(twin)
            precoded = beams(twin, progress=TwinBar(at_least=1))
            modes = throughput(twin, progress=TwinBar(at_least=1))
    except (OSError, ValueError) as error:
        sys.exit(f"neural_scenarios: {error}")
    write(arguments.out / "scenarios.csv", requests)
    write(arguments.out / "beams.csv", precoded)
    write(arguments.out / "needs.csv", needs(precoded))
    write(arguments.out / "throughput.csv", modes)
    draw(modes, arguments.out / "throughput.png")
    for name, some in itertools.groupby(requests, key=lambda row: row["request"]):
        print(name, *map(show, some), sep="\n")


if __name__ == "__main__":
    main()

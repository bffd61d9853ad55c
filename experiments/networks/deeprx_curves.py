"""python -m experiments.networks.deeprx_curves [--out DIR]: block error rates of the neural and the
classical receivers over SNR.

On channel profiles that the networks were not trained on, for one and two DM-RS symbols, at a speed
that one symbol still follows and at one where it hardly does. Writes curves.csv, gains.csv (SNR at
BLER 10 % and what is gained over LS + LMMSE, with 95 % intervals) and a figure for each speed.
About half an hour on two cores, nearly all of it for the networks.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from twin import Scenario, Twin, Workflow

RECEIVERS = {  # name: what it sets in the workflow
    "LS + LMMSE": dict(estimator="ls", detector="lmmse"),
    "LMMSE + LMMSE": dict(estimator="lmmse", detector="lmmse"),
    "genie + LMMSE": dict(estimator="genie", detector="lmmse"),
    "DeepRx small": dict(detector="deeprx-small"),
    "DeepRx": dict(detector="deeprx"),
    "perfect CSI": dict(estimator="perfect", detector="lmmse"),
}
CHANNELS = ("tdl-b", "tdl-d", "cdl-c")  # held out
SPEEDS_MPS = (10.0, 30.0)
# Es/N0 where every block still fails, by bits per symbol, two receive antennas
START_DB = {2: -4.0, 4: 2.0, 6: 7.0}
SPAN_DB = 20
MODULATIONS = {2: "QPSK", 4: "16QAM", 6: "64QAM"}
LINK = Scenario(num_tx_ant=1, num_rx_ant=2, delay_spread_ns=100, carrier_ghz=3.5)
MODE = Workflow(num_prb=8, scs_khz=30, code_rate=0.5, decoder_iterations=20)


def curves(
    twin: Twin,
    channels=CHANNELS,
    orders=tuple(START_DB),
    speeds_mps=SPEEDS_MPS,
    receivers=tuple(RECEIVERS),
    dmrs=(1, 2),
    until: float = 0.05,
    progress=None,
) -> list[dict]:
    """One row per speed, channel, modulation, number of DM-RS symbols, receiver and SNR, in steps
    of 1 dB, until a curve has fallen below `until`. All receivers meet the same channels, noise and
    bits.
    """
    rows, still = (
        [],
        [
            (v, c, m, n, r)
            for v in speeds_mps
            for c in channels
            for m in orders
            for n in dmrs
            for r in receivers
        ],
    )
    for step in range(SPAN_DB):
        measured = twin.evaluate(
            [
                (
                    replace(LINK, channel=c, speed_mps=v, snr_db=START_DB[m] + step),
                    replace(MODE, bits_per_symbol=m, num_dmrs=n, **RECEIVERS[r]),
                )
                for v, c, m, n, r in still
            ],
            progress=progress,
        )
        for (v, c, m, n, r), qos in zip(still, measured):
            low, high = qos.bler_interval
            rows.append(
                dict(
                    speed_mps=v,
                    channel=c,
                    bits_per_symbol=m,
                    num_dmrs=n,
                    receiver=r,
                    snr_db=START_DB[m] + step,
                    bler=qos.bler,
                    low=low,
                    high=high,
                    num_blocks=qos.num_blocks,
                )
            )
        still = [curve for curve, row in zip(still, rows[-len(still) :]) if row["bler"] >= until]
        if not still:
            break
    return rows


def crossing_db(snr_db, bler, target=0.1) -> float:
    """SNR at which the block error rate falls to `target`, by linear interpolation of its
    logarithm; nan beyond the curve.
    """
    snr_db, log = np.asarray(snr_db), np.log10(np.maximum(bler, 1e-5))
    for i in range(len(log) - 1):
        if log[i] > np.log10(target) >= log[i + 1]:
            return float(
                snr_db[i]
                + (snr_db[i + 1] - snr_db[i]) * (log[i] - np.log10(target)) / (log[i] - log[i + 1])
            )
    return float("nan")


def gains(rows: list[dict]) -> list[dict]:
    """SNR at BLER 10 % with the interval that the intervals of the block error rates give, and how
    much lower it is than that of LS + LMMSE, with the interval of both ends at their worst; nan
    where a curve does not get there.
    """
    found = {}
    for row in rows:
        found.setdefault(
            (
                row["speed_mps"],
                row["channel"],
                row["bits_per_symbol"],
                row["num_dmrs"],
                row["receiver"],
            ),
            [],
        ).append(row)
    at = {
        key: [
            crossing_db([x["snr_db"] for x in some], [x[rate] for x in some])
            for rate in ("bler", "low", "high")
        ]
        for key, some in found.items()
    }
    table = []
    for (*link, receiver), (snr, low, high) in at.items():
        reference, reference_low, reference_high = at[(*link, "LS + LMMSE")]
        numbers = dict(
            snr_db=snr,
            low_db=low,
            high_db=high,
            gain_db=reference - snr,
            gain_low_db=reference_low - high,
            gain_high_db=reference_high - low,
        )
        table.append(
            dict(
                zip(("speed_mps", "channel", "bits_per_symbol", "num_dmrs"), link),
                receiver=receiver,
            )
            | {name: round(value, 2) for name, value in numbers.items()}
        )
    return table


def draw(rows: list[dict], path: Path) -> None:
    """A panel for each channel and number of DM-RS symbols; shaded, 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    colours = dict(
        zip(RECEIVERS, ("#999999", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#000000"))
    )
    markers = {2: "o", 4: "s", 6: "^"}
    channels = list(dict.fromkeys(row["channel"] for row in rows))
    figure, axes = plt.subplots(
        len(channels),
        2,
        figsize=(10, 2.9 * len(channels)),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for (i, j), axis in np.ndenumerate(axes):
        for name, colour in colours.items():
            for m, marker in markers.items():
                some = [
                    r
                    for r in rows
                    if (r["channel"], r["num_dmrs"], r["receiver"], r["bits_per_symbol"])
                    == (channels[i], j + 1, name, m)
                ]
                snr, bler, low, high = (
                    np.array([r[key] for r in some]) for key in ("snr_db", "bler", "low", "high")
                )
                axis.plot(
                    snr,
                    bler,
                    color=colour,
                    marker=marker,
                    ms=3,
                    lw=1.1,
                    ls="--" if name == "perfect CSI" else "-",
                )
                axis.fill_between(snr, low, high, color=colour, alpha=0.12, lw=0)
        axis.axhline(0.1, color="k", lw=0.6, ls=":")
        axis.set_title(
            f"{channels[i].upper()}, {('one DM-RS symbol', 'two DM-RS symbols')[j]}", fontsize=10
        )
        axis.set(
            yscale="log",
            ylim=(1e-2, 1.1),
            xlim=(min(START_DB.values()), None),
            ylabel="" if j else "block error rate",
            xlabel="Es/N0 per receive antenna, dB" if i == len(channels) - 1 else "",
        )
        axis.grid(True, which="major", alpha=0.4, lw=0.5)
        axis.grid(True, which="minor", alpha=0.15, lw=0.4)
    lines = [
        Line2D([], [], color=colour, ls="--" if name == "perfect CSI" else "-", label=name)
        for name, colour in colours.items()
    ]
    lines += [
        Line2D([], [], color="k", marker=marker, ls="", ms=4, label=MODULATIONS[m])
        for m, marker in markers.items()
    ]
    figure.legend(
        handles=lines, loc="outside lower center", ncols=len(lines), fontsize=8, frameon=False
    )
    figure.suptitle(
        f"{rows[0]['speed_mps']:.0f} m/s, 3.5 GHz, 30 kHz, {MODE.num_prb} PRB, 1 x 2 antennas, LDPC"
        " rate 1/2, 95 % intervals",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write(path: Path, table: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{v:.5g}" if isinstance(v, float) else v for name, v in row.items()}
            for row in table
        )


def main(argv=None) -> None:
    from experiments.world.environment import TwinBar

    parser = argparse.ArgumentParser(
        description="Block error rates of the neural and the classical receivers over SNR."
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results/deeprx"))
    parser.add_argument(
        "--max-blocks",
        type=int,
        default=384,
        help="transport blocks of a point at most; it ends earlier at 40 block errors",
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--cache", help="a file of the twin's results, with which a run that was cut short goes on"
    )
    arguments = parser.parse_args(argv)
    try:
        with Twin(
            workers=arguments.workers,
            cache=arguments.cache,
            max_blocks=arguments.max_blocks,
            enough_block_errors=40,
            method="link",
        ) as twin:
            arguments.out.mkdir(parents=True, exist_ok=True)
            rows = curves(twin, progress=TwinBar(at_least=1))
    except (OSError, ValueError) as error:
        sys.exit(f"deeprx_curves: {error}")
    write(arguments.out / "curves.csv", rows)
    write(arguments.out / "gains.csv", table := gains(rows))
    for speed in SPEEDS_MPS:
        draw(
            [row for row in rows if row["speed_mps"] == speed],
            arguments.out / f"curves_{speed:.0f}mps.png",
        )
    for row in table:
        print(
            "{speed_mps:3.0f} m/s {channel:6} {bits_per_symbol} bits {num_dmrs} DM-RS {receiver:14}"
            " {snr_db:6.2f} dB [{low_db:.2f}, {high_db:.2f}]  gain {gain_db:5.2f}"
            " [{gain_low_db:.2f}, {gain_high_db:.2f}]".format(**row)
        )


if __name__ == "__main__":
    main()

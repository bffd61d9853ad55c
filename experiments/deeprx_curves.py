"""python -m experiments.deeprx_curves [--out DIR]: block error rates of the neural and the classical receivers over SNR.

On channel profiles that the networks were not trained on, with mobility, for one and two DM-RS symbols. Writes curves.csv, gains.csv
(SNR at BLER 10 % and its 95 % interval) and curves.png. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from twin import Scenario, Twin, Workflow

RECEIVERS = {  # name: what it sets in the workflow
    "LS + LMMSE": dict(estimator="ls", detector="lmmse"),
    "LMMSE + LMMSE": dict(estimator="lmmse", detector="lmmse"),
    "DeepRx small": dict(detector="deeprx-small"),
    "DeepRx": dict(detector="deeprx"),
    "perfect CSI": dict(estimator="perfect", detector="lmmse"),
}
CHANNELS = ("tdl-b", "tdl-d", "cdl-c")  # held out
NEAR_DB = {2: -1.0, 4: 5.0, 6: 10.0}  # Es/N0 about which BLER falls, by bits per symbol, two receive antennas
SPAN_DB = np.arange(-4, 13)


def curves(channels=CHANNELS, orders=tuple(NEAR_DB), max_blocks=512, speed_mps=30.0, workers=2, cache=None) -> list[dict]:
    """One row per channel, modulation, number of DM-RS symbols, receiver and SNR."""
    rows, pairs = [], []
    for channel in channels:
        for m in orders:
            for num_dmrs in (1, 2):
                for name, choice in RECEIVERS.items():
                    for snr_db in NEAR_DB[m] + SPAN_DB:
                        scenario = Scenario(channel=channel, snr_db=float(snr_db), num_tx_ant=1, num_rx_ant=2,
                                            delay_spread_ns=100, speed_mps=speed_mps, carrier_ghz=3.5)
                        workflow = Workflow(bits_per_symbol=m, code_rate=0.5, num_dmrs=num_dmrs, decoder_iterations=20, **choice)
                        pairs.append((scenario, workflow))
                        rows.append(dict(channel=channel, bits_per_symbol=m, num_dmrs=num_dmrs, receiver=name, snr_db=float(snr_db)))
    from tqdm import tqdm

    bar = tqdm(total=None, desc="simulations")

    def progress(done, total):
        bar.total = total
        bar.update(done - bar.n)

    with Twin(workers=workers, cache=cache, max_blocks=max_blocks, enough_block_errors=60, enough_bits=1 << 40) as twin:
        answers = twin.evaluate(pairs, progress=progress)
    for row, qos in zip(rows, answers):
        low, high = qos.bler_interval()
        row |= dict(bler=qos.block_errors / qos.num_blocks, low=low, high=high, num_blocks=qos.num_blocks)
    return rows


def crossing_db(snr_db, bler, target=0.1) -> float:
    """SNR at which the block error rate falls to `target`, by linear interpolation of its logarithm; nan beyond the curve."""
    snr_db, log = np.asarray(snr_db), np.log10(np.maximum(bler, 1e-5))
    for i in range(len(log) - 1):
        if log[i] > np.log10(target) >= log[i + 1]:
            return float(snr_db[i] + (snr_db[i + 1] - snr_db[i]) * (log[i] - np.log10(target)) / (log[i] - log[i + 1]))
    return float("nan")


def gains(rows: list[dict]) -> list[dict]:
    """SNR at BLER 10 %, with the interval that the intervals of the block error rates give."""
    found = {}
    for row in rows:
        found.setdefault((row["channel"], row["bits_per_symbol"], row["num_dmrs"], row["receiver"]), []).append(row)
    return [
        dict(channel=c, bits_per_symbol=m, num_dmrs=n, receiver=r,
             **{name: round(crossing_db([x["snr_db"] for x in some], [x[rate] for x in some]), 2)
                for name, rate in (("snr_db", "bler"), ("low_db", "low"), ("high_db", "high"))})
        for (c, m, n, r), some in found.items()
    ]


def draw(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = sorted({(row["channel"], row["num_dmrs"]) for row in rows})
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(11, 3.2 * len(panels) // 2), sharey=True, layout="constrained", squeeze=False)
    styles = {2: "-", 4: "--", 6: ":"}
    for axis, (channel, num_dmrs) in zip(axes.flat, panels):
        for colour, name in enumerate(RECEIVERS):
            for m, style in styles.items():
                some = [r for r in rows if (r["channel"], r["num_dmrs"], r["receiver"], r["bits_per_symbol"]) == (channel, num_dmrs, name, m)]
                snr, bler, low, high = (np.array([r[key] for r in some]) for key in ("snr_db", "bler", "low", "high"))
                if len(snr):
                    axis.plot(snr, np.maximum(bler, 1e-4), style, color=f"C{colour}", label=name if m == 2 else None)
                    axis.fill_between(snr, np.maximum(low, 1e-4), high, color=f"C{colour}", alpha=0.15, lw=0)
        axis.set(title=f"{channel}, {num_dmrs} DM-RS symbol{'s' * (num_dmrs > 1)}", yscale="log", ylim=(2e-3, 1.2), ylabel="BLER",
                 xlabel="Es/N0 per receive antenna, dB (solid QPSK, dashed 16QAM, dotted 64QAM)")
        axis.grid(True, which="both", alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path, dpi=110)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description="Block error rates of the neural and the classical receivers over SNR.")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/deeprx"))
    parser.add_argument("--max-blocks", type=int, default=512)
    parser.add_argument("--cache", default=None)
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = curves(max_blocks=arguments.max_blocks, cache=arguments.cache)
    for name, table in (("curves.csv", rows), ("gains.csv", gains(rows))):
        with open(arguments.out / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    draw(rows, arguments.out / "curves.png")
    for row in gains(rows):
        print("{channel:6} {bits_per_symbol} bits {num_dmrs} DM-RS {receiver:14} {snr_db:6.2f} dB [{low_db:.2f}, {high_db:.2f}]".format(**row))


if __name__ == "__main__":
    main()

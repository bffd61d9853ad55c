"""python -m experiments.truth.twin_truth [--out DIR]: what the twin says, held against what is
known; a few minutes on two cores.

residuals.csv: the effective-SINR method against the link, in dB, at block error rates of 10 % and 1
%, on links of every kind. findings.json: how often an interval excludes the truth where channels
fade, what the width of a grant is worth, what one DM-RS symbol costs a late code block, and what
HARQ is worth to a terminal that does not move.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.files import whole
from experiments.networks.deeprx_curves import crossing_db
from twin import Scenario, Settings, Workflow
from twin.physical import Counts, physical
from twin.pool import QUIET_AND_SINGLE_THREADED, Pool
from twin.statistics import rate_limits

AWGN = Scenario(channel="awgn", num_tx_ant=1, num_rx_ant=1)
A, B, C = (
    Scenario(
        channel=f"tdl-{letter}", num_tx_ant=1, num_rx_ant=2, delay_spread_ns=spread, speed_mps=speed
    )
    for letter, spread, speed in (("a", 30, 3), ("b", 100, 10), ("c", 300, 30))
)
LINKS = {  # title: scenario, workflow, lowest SNR of the curve in dB
    **{
        f"AWGN, {name}, rate {rate}": (
            AWGN,
            Workflow(num_prb=6, bits_per_symbol=bits, code_rate=rate, estimator="perfect"),
            start,
        )
        for bits, name, rate, start in (
            (2, "QPSK", 0.33, -2),
            (4, "16QAM", 0.5, 5),
            (6, "64QAM", 0.67, 13),
            (8, "256QAM", 0.83, 21),
        )
    },
    "TDL-A, QPSK 1/2, perfect": (A, Workflow(num_prb=8, estimator="perfect"), 0),
    "TDL-A, QPSK 1/2, ls": (A, Workflow(num_prb=8, estimator="ls"), 2),
    "TDL-A, QPSK 1/2, lmmse": (A, Workflow(num_prb=8, estimator="lmmse"), 0),
    "TDL-B, 16QAM 1/2, ls": (B, Workflow(num_prb=12, bits_per_symbol=4, estimator="ls"), 7),
    "TDL-B, 64QAM 2/3, lmmse": (
        B,
        Workflow(num_prb=12, bits_per_symbol=6, code_rate=0.67, estimator="lmmse", num_dmrs=2),
        13,
    ),
    "TDL-C, 16QAM 1/2, lmmse": (
        C,
        Workflow(num_prb=25, bits_per_symbol=4, estimator="lmmse", num_dmrs=2),
        6,
    ),
    "TDL-C, two layers, 16QAM 1/3, zf": (
        replace(C, num_tx_ant=2, num_rx_ant=4, speed_mps=3),
        Workflow(
            num_prb=8,
            bits_per_symbol=4,
            code_rate=0.33,
            num_layers=2,
            estimator="ls",
            detector="zf",
        ),
        4,
    ),
    "TDL-C, two layers, 16QAM 1/3, lmmse": (
        replace(C, num_tx_ant=2, speed_mps=3),
        Workflow(num_prb=8, bits_per_symbol=4, code_rate=0.33, num_layers=2, estimator="lmmse"),
        7,
    ),
}


def simulate(points, method: str = "link") -> list[Counts]:
    """Counts of every point, on two workers."""
    pool = Pool(2, Settings(method=method), seed=5)
    try:
        found = {
            point: answer
            for point, answer, _ in pool.run(sorted(set(points), key=lambda p: p.key()))
        }
    finally:
        pool.close()
    for answer in found.values():
        if not isinstance(answer, Counts):
            raise answer
    return [found[point] for point in points]


def residuals(rounds: int) -> list[dict]:
    rows, points = [], {}
    for title, (scenario, workflow, start) in LINKS.items():
        step = 0.3 if scenario.channel == "awgn" else 2.0
        grid = start + step * np.arange(10 if step < 1 else 8)
        points[title] = (
            grid,
            [
                replace(physical(replace(scenario, snr_db=snr), workflow), rounds=(0, rounds))
                for snr in grid
            ],
        )
    every = [point for _, some in points.values() for point in some]
    answers = {method: dict(zip(every, simulate(every, method))) for method in ("link", "esm")}
    for title, (grid, some) in points.items():
        row = {"link": title}
        for target in (0.1, 0.01):
            counted, expected = (
                crossing_db(
                    grid,
                    [c.block_errors / c.num_blocks for c in (answers[m][p] for p in some)],
                    target,
                )
                for m in ("link", "esm")
            )
            row |= {
                f"link at {target:g}": round(counted, 2),
                f"esm at {target:g}": round(expected, 2),
                f"residual at {target:g}": round(expected - counted, 2),
            }
        rows.append(row)
    return rows


def findings() -> dict:
    """The checks of this module's docstring; every number is a share or a block error rate, with
    its 95 % interval where it is counted.
    """
    found = {}
    fading = replace(A, speed_mps=1, snr_db=10)
    point = physical(fading, Workflow(num_prb=4, estimator="genie"))
    rounds = simulate([replace(point, rounds=(2 * i, 2 * i + 2)) for i in range(200)])
    total = sum(rounds[1:], rounds[0])
    truth = total.block_errors / total.num_blocks
    limits = [rate_limits(c, -1, 0.05) for c in rounds]
    found["TDL-A 30 ns, 1 m/s, 1x2, QPSK 1/2, 4 PRB, 10 dB"] = dict(
        bler=truth,
        ber=total.bit_errors / total.num_bits,
        samples_of_64_blocks=len(rounds),
        without_an_error=sum(c.block_errors == 0 for c in rounds),
        upper_limit_without_an_error=rate_limits(Counts(64, 1, 0, (0,)), -1, 0.05)[1],
        intervals_that_hold_the_truth=float(
            np.mean([low <= truth <= high for low, high in limits])
        ),
    )

    def rate(scenario, rounds=32, **fields):
        (c,) = simulate([replace(physical(scenario, Workflow(**fields)), rounds=(0, rounds))])
        return [
            round(c.block_errors / c.num_blocks, 4),
            *(round(x, 4) for x in rate_limits(c, -1, 0.05)),
        ]

    for prb in (4, 50):
        grid = np.arange(6.0, 12.1, 1.0)
        counts = simulate(
            [
                replace(
                    physical(
                        replace(A, snr_db=snr),
                        Workflow(num_prb=prb, bits_per_symbol=4, estimator="perfect"),
                    ),
                    rounds=(0, 24),
                )
                for snr in grid
            ]
        )
        found[f"TDL-A 30 ns, 1x2, 16QAM 1/2, perfect CSI: dB at BLER 10 % on {prb} PRB"] = round(
            crossing_db(grid, [c.block_errors / c.num_blocks for c in counts], 0.1), 2
        )
    late = replace(B, speed_mps=30, snr_db=12)
    for num_dmrs in (1, 2):
        found[f"TDL-B, 30 m/s, 12 dB, 16QAM 1/2, 50 PRB, genie, {num_dmrs} DM-RS: BLER"] = rate(
            late, 12, num_prb=50, bits_per_symbol=4, estimator="genie", num_dmrs=num_dmrs
        )
    for speed in (1.0, 30.0, 100.0):
        found[f"TDL-A 30 ns, {speed:g} m/s, 1x1, QPSK 1/2, 6 dB, 4 transmissions: BLER"] = rate(
            replace(A, num_rx_ant=1, speed_mps=speed, snr_db=6),
            64,
            num_prb=4,
            num_transmissions=4,
            combining="chase",
            estimator="genie",
        )
    return found


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description="What the twin says, held against what is known.")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/twin_truth"))
    parser.add_argument(
        "--rounds", type=int, default=64, help="of 32 slots, for every point of a curve"
    )
    arguments = parser.parse_args(argv)
    os.environ.update(QUIET_AND_SINGLE_THREADED)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = residuals(arguments.rounds)
    with whole(str(arguments.out / "residuals.csv")) as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*row.values(), sep="  ")
    found = findings()
    with whole(str(arguments.out / "findings.json")) as file:
        json.dump(found, file, indent=1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

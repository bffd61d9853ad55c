"""python -m experiments.truth.bler_tables [--out FILE] [--workers N]: block error rates of the
twin's own codes in Gaussian noise.

For a grid of code rates, code block lengths and decoder iterations: the mutual information per
coded bit at which a block fails half of the time, and the width of the transition: BLER = Q((I -
threshold) / width), fitted by maximum likelihood to counts around it. Also the share of wrong bits
in a wrong block. What is there already is not made again; about ten minutes on two cores. Beside it
polar.csv, the same of the polar blocks, by code rate (ten minutes more), and information.npz, what
the LLRs of a demapper are worth that takes gain or noise for others than they are
(twin.chain.information).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from experiments.files import whole
from twin.toolbox import BY_FIELD

RATES = (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.67, 0.68, 0.75, 0.83, 0.89, 0.93)
INFO_BITS = (40, 80, 160, 292, 320, 640, 1280, 2560, 3824, 4200, 8448)
ITERATIONS = (1, 2, 3, 4, 6, 8, 10, 14, 20)
FIELDS = ("rate", "info_bits", "iterations", "threshold", "width", "share", "blocks")
POLAR_FIELDS = ("rate", "info_bits", "threshold", "width", "share", "blocks")
UNREACHABLE = 0.9995  # mutual information beyond which a cell is given up


def measure(cell: tuple[float, int]) -> list[dict]:
    """Rows of all iterations of a (rate, info bits)."""
    from twin.chain import ldpc
    from twin.chain.information import snr_for
    from twin.transport import LIFTING_SIZES, Segmentation

    rate, info = cell
    graph = 2 if info <= 292 or (info <= 3824 and rate <= 0.67) else 1
    columns = (
        22 if graph == 1 else 10 if info > 640 else 9 if info > 560 else 8 if info > 192 else 6
    )
    lifting = next(z for z in LIFTING_SIZES if columns * z >= info)
    code = Segmentation(info - 16, 16, 1, graph, lifting, info, (round(info / rate),))
    place, rows = ldpc.places(code, 1), ldpc.rows_needed(code, 1)
    rng = np.random.default_rng([round(1000 * rate), info])

    def errors(level: float, iterations: int, num_blocks: int) -> tuple[int, float]:
        """Wrong blocks, and the sum of their shares of wrong bits."""
        snr = snr_for(np.array(level), 1)
        bits = rng.integers(0, 2, (num_blocks, info), dtype=np.uint8)
        sent = 1 - 2 * ldpc.encode(code, bits)[:, place].astype(np.float32)
        y = sent + rng.standard_normal(sent.shape, np.float32) * np.float32(np.sqrt(0.5 / snr))
        soft = np.zeros((num_blocks, code.mother_length), np.int16)
        ldpc.recover((4 * np.float32(snr) * y).astype(np.float32), place, soft)
        wrong = np.mean(ldpc.decode(code, soft, iterations, rows) != bits, axis=1)
        return int(np.count_nonzero(wrong)), float(wrong.sum())

    table, num = [], 64 if info > 3000 else 256
    for n in ITERATIONS:
        found = fitted(
            lambda level, blocks, n=n: errors(level, n, blocks), 0.8 * rate, code.sent[0], num
        )
        table.append(dict(zip(FIELDS, (rate, info, n, *found))))
    return table


def measure_polar(rate: float) -> dict:
    """The row of a code rate, of Sionna's encoder and decoder as the link runs them."""
    import tensorflow as tf

    from twin.chain import sionna_stages
    from twin.chain.information import snr_for
    from twin.transport import POLAR_LENGTH, polar_info_bits

    info = polar_info_bits(rate)
    encode, decode = sionna_stages._polar(info)
    rng = np.random.default_rng([round(1000 * rate), info])

    def errors(level: float, num_blocks: int) -> tuple[int, float]:
        snr = snr_for(np.array(level), 1)
        bits = rng.integers(0, 2, (num_blocks, info)).astype(np.float32)
        sent = 1 - 2 * encode(tf.constant(bits)).numpy()
        y = sent + rng.standard_normal(sent.shape, np.float32) * np.float32(np.sqrt(0.5 / snr))
        wrong = np.mean(
            (decode(tf.constant(-4 * np.float32(snr) * y)).numpy() > 0.5) != bits, axis=1
        )
        return int(np.count_nonzero(wrong)), float(wrong.sum())

    return dict(
        zip(
            POLAR_FIELDS,
            (rate, info, *fitted(errors, 0.8 * info / POLAR_LENGTH, POLAR_LENGTH, 1000)),
        )
    )


def fitted(errors, low: float, sent: int, num: int) -> tuple[float, float, float, int]:
    """(threshold, width, share of wrong bits in a wrong block, blocks) of errors(mutual
    information, blocks) -> (wrong blocks, sum of their shares of wrong bits), num blocks at each of
    some levels about the threshold, which lies above `low`; sent: bits of a block.
    """
    from scipy.optimize import minimize
    from scipy.special import log_ndtr

    high = UNREACHABLE
    if errors(high, 32)[0] > 16:
        return 2.0, 0.1, 0.1, 32
    guess = 0.5 / np.sqrt(sent)
    while high - low > guess:
        middle = (low + high) / 2
        low, high = (middle, high) if errors(middle, 32)[0] > 16 else (low, middle)
    centre, counted = (low + high) / 2, {}
    for widen in (1.0, 2.0):
        for step in (-1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0):
            level = centre + step * widen * guess
            if level < 1 - 1e-4 and level not in counted:
                counted[level] = errors(level, num)
    levels = np.array(sorted(counted))
    wrong, share = np.array([counted[level] for level in levels]).T

    def loss(parameters):
        x = (levels - parameters[0]) / np.exp(parameters[1])
        return -np.sum(wrong * log_ndtr(-x) + (num - wrong) * log_ndtr(x))

    threshold, log_width = minimize(loss, (centre, np.log(guess)), method="Nelder-Mead").x
    middle = (wrong > 0) & (wrong < 0.7 * num)
    typical = share[middle].sum() / max(wrong[middle].sum(), 1) if middle.any() else 0.1
    return float(threshold), float(np.exp(log_width)), float(typical), num * len(levels)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description="Block error rates of the twin's codes by mutual information."
    )
    parser.add_argument("--out", type=Path, default=Path("twin/tables/bler.csv"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    from twin.chain.information import mismatched

    if not (information := arguments.out.with_name("information.npz")).exists():
        with whole(str(information), "wb") as file:
            np.savez_compressed(file, **{str(m): mismatched(m) for m in (2, 4, 6, 8)})
    done = []
    if arguments.out.exists():
        with open(arguments.out, newline="") as file:
            done = list(csv.DictReader(file))
    have = {(float(row["rate"]), int(row["info_bits"])) for row in done}
    cells = [cell for cell in itertools.product(RATES, INFO_BITS) if cell not in have]
    with (
        open(arguments.out, "a", newline="") as file,
        ProcessPoolExecutor(arguments.workers) as pool,
    ):
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for cell, rows in zip(cells, pool.map(measure, cells)):
            writer.writerows(map(rounded, rows))
            file.flush()
            print(
                *cell,
                *(f"{row['threshold']:.3f}/{row['width']:.4f}" for row in rows),
                file=sys.stderr,
                flush=True,
            )
    polar = arguments.out.with_name("polar.csv")
    if not polar.exists():
        with (
            multiprocessing.get_context("spawn").Pool(arguments.workers) as pool,
            whole(str(polar)) as file,
        ):
            writer = csv.DictWriter(file, POLAR_FIELDS, lineterminator="\n")
            writer.writeheader()
            for row in pool.imap(measure_polar, BY_FIELD["code_rate"].choices):
                writer.writerow(rounded(row))
                print(row, file=sys.stderr, flush=True)


def rounded(row: dict) -> dict:
    return {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}


if __name__ == "__main__":
    main()

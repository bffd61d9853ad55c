"""python -m experiments.benchmarks.twin_speed [--pairs N] [--naive N] [--out FILE]: the twin against a Sionna chain per pair.

Random distinct pairs of the toolbox, none cached, on one core. The naive way builds Sionna's blocks for every pair and calls
`sim_ber` on a graph-compiled chain, for as many code blocks of the same length as the twin spent on the same pair. Prints, and
writes as JSON, pairs per second of both with 95 % intervals, cache hits per second, where the twin's time goes by stage, and
a worker's memory as evaluations go on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time
from dataclasses import replace

import numpy as np

from experiments.files import whole
from experiments.statistics import mean_interval
from twin.pool import QUIET_AND_SINGLE_THREADED
from twin import Scenario, Twin, Workflow
from twin.toolbox import BY_FIELD

PART = 50  # pairs per timed call


def random_pairs(number: int, seed: int = 0) -> list[tuple[Scenario, Workflow]]:
    """Distinct feasible pairs of the toolbox on a coarse grid of links."""
    rng, pairs = random.Random(seed), {}
    links = [
        Scenario(
            channel=rng.choice(("tdl-a", "tdl-b", "tdl-c", "rayleigh")), snr_db=rng.randint(-5, 30), num_tx_ant=ant[0], num_rx_ant=ant[1],
            delay_spread_ns=rng.choice((30, 100, 300)), speed_mps=rng.choice((1, 10, 30)),
        )
        for ant in ((1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)) for _ in range(10)
    ]
    while len(pairs) < number:
        s = rng.choice(links)
        s = replace(s, snr_db=rng.randint(-5, 30))
        w = Workflow(
            scs_khz=rng.choice((15, 30, 60)), code_rate=rng.choice(BY_FIELD["code_rate"].choices), decoder_iterations=rng.randint(1, 20),
            bits_per_symbol=rng.choice(BY_FIELD["bits_per_symbol"].choices), num_layers=rng.randint(1, min(s.num_tx_ant, s.num_rx_ant)),
            num_dmrs=rng.choice((1, 2)), estimator=rng.choice(("ls", "lmmse")), detector=rng.choice(("zf", "lmmse")),
        )
        pairs[s, w] = None
    return list(pairs)


def naive(scenario: Scenario, workflow: Workflow, num_blocks: int) -> float:
    """BER of one pair the way of Sionna's tutorials: OFDM grid, LS estimation, linear equaliser, sim_ber."""
    import tensorflow as tf
    from sionna.phy import Block
    from sionna.phy.channel import OFDMChannel, RayleighBlockFading
    from sionna.phy.channel.tr38901 import TDL
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
    from sionna.phy.mapping import BinarySource, Demapper, Mapper
    from sionna.phy.mimo import StreamManagement
    from sionna.phy.ofdm import LMMSEEqualizer, LSChannelEstimator, ResourceGrid, ResourceGridMapper, ZFEqualizer
    from sionna.phy.utils import sim_ber

    from twin.physical import CODE_LENGTH, num_info_bits

    s, w = scenario, workflow
    grid = ResourceGrid(14, 48, w.scs_khz * 1e3, num_streams_per_tx=w.num_layers, pilot_pattern="kronecker",
                        pilot_ofdm_symbol_indices=[2, 11][: w.num_dmrs])
    symbols = int(grid.num_data_symbols) * w.num_layers
    blocks_per_slot = symbols * w.bits_per_symbol // CODE_LENGTH

    class Chain(Block):
        def __init__(self):
            super().__init__()
            self.source, self.encoder = BinarySource(), LDPC5GEncoder(num_info_bits("ldpc", w.code_rate), CODE_LENGTH)
            self.decoder = LDPC5GDecoder(self.encoder, cn_update="offset-minsum", num_iter=w.decoder_iterations)
            self.mapper, self.demapper = Mapper("qam", w.bits_per_symbol), Demapper("app", "qam", w.bits_per_symbol)
            self.to_grid = ResourceGridMapper(grid)
            model = RayleighBlockFading(1, s.num_rx_ant, 1, w.num_layers) if s.channel == "rayleigh" else TDL(
                s.channel[-1].upper(), s.delay_spread_ns * 1e-9, s.carrier_ghz * 1e9, min_speed=s.speed_mps,
                num_rx_ant=s.num_rx_ant, num_tx_ant=w.num_layers)
            self.channel = OFDMChannel(model, grid)
            self.estimate = LSChannelEstimator(grid, interpolation_type="lin")
            self.equalise = (LMMSEEqualizer if w.detector == "lmmse" else ZFEqualizer)(grid, StreamManagement([[1]], w.num_layers))

        @tf.function
        def call(self, batch_size, ebno_db):
            bits = self.source([batch_size, blocks_per_slot, self.encoder.k])
            filler = self.source([batch_size, symbols * w.bits_per_symbol - blocks_per_slot * CODE_LENGTH])
            coded = tf.concat([tf.reshape(self.encoder(bits), [batch_size, blocks_per_slot * CODE_LENGTH]), filler], axis=1)
            coded = tf.reshape(coded, [batch_size, 1, w.num_layers, symbols // w.num_layers * w.bits_per_symbol])
            x = self.to_grid(self.mapper(coded))
            no = 10 ** (-ebno_db / 10) * w.num_layers
            y = self.channel(x, no)
            h, error = self.estimate(y, no)
            x_hat, no_eff = self.equalise(y, h, error, no)
            logits = tf.reshape(self.demapper(x_hat, no_eff), [batch_size, symbols * w.bits_per_symbol])[:, : blocks_per_slot * CODE_LENGTH]
            return bits, self.decoder(tf.reshape(logits, [batch_size, blocks_per_slot, CODE_LENGTH]))

    slots = -(-num_blocks // blocks_per_slot)
    ber, _ = sim_ber(Chain(), [s.snr_db], slots, max_mc_iter=1, verbose=False, soft_estimates=False)
    return float(ber[0])


def stages(pairs) -> dict[str, float]:
    """Milliseconds per pair in every stage of the link, in this process."""
    from twin import link
    from twin.physical import Settings, physical

    spent = {}

    def timed(module, name, label):
        function = getattr(module, name)

        def run(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            spent[label] = spent.get(label, 0) + time.perf_counter() - start
            return result

        setattr(module, name, run)

    points = sorted({physical(*pair) for pair in pairs}, key=lambda point: point.key())
    link.warm(sorted(set().union(*(p.signatures() for p in points)), key=repr), Settings())
    for name, label in (("surroundings", "channel and noise"), ("_estimator", "estimator"), ("symbols", "source, encoder, mapper"),
                        ("detect", "detector and demapper"), ("decode", "decoder")):
        timed(link, name, label)
    start = time.perf_counter()
    for point in points:
        link.simulate(point, 0, Settings())
    total = time.perf_counter() - start
    spent["rest: propagation, estimation"] = total - sum(spent.values())
    return {label: 1e3 * seconds / len(points) for label, seconds in sorted(spent.items(), key=lambda item: -item[1])}


def worker_megabytes(twin: Twin) -> float:
    """Resident memory of the twin's first worker."""
    pid = next(iter(twin._pool.workers.values())).process.pid
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def with_interval(seconds: list[float]) -> list[float]:
    """Mean, and its 95 % interval by the bootstrap."""
    return [float(np.mean(seconds)), *mean_interval(seconds)]


def measure(num_pairs: int, num_naive: int) -> dict:
    """Everything this benchmark reports; seconds are wall clock on one core."""
    pairs, result, seconds, answers = random_pairs(num_pairs), {"pairs": num_pairs}, [], []
    with Twin(workers=1) as twin:
        start = time.perf_counter()
        twin.warm()
        result["seconds to start and warm"] = time.perf_counter() - start
        memory = {0: worker_megabytes(twin)}
        for first in range(0, num_pairs, PART):
            start = time.perf_counter()
            answers += twin.evaluate(pairs[first : first + PART])
            seconds.append((time.perf_counter() - start) / len(pairs[first : first + PART]))
            if len(answers) % (num_pairs // 10) < PART:
                memory[len(answers)] = worker_megabytes(twin)
        result |= {"megabytes of the worker by evaluations": memory, "traces": twin.traces}
        result["blocks per pair"] = twin.stats.blocks / twin.stats.simulated
        start = time.perf_counter()
        twin.evaluate(pairs * 10)
        result["cache hits per second"] = 10 * num_pairs / (time.perf_counter() - start)
    result["seconds per pair, twin"] = with_interval(seconds)

    os.environ.update(QUIET_AND_SINGLE_THREADED)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    naive(*pairs[-1], 32)  # imports
    naive_seconds = []
    for pair, qos in list(zip(pairs, answers))[:num_naive]:
        start = time.perf_counter()
        naive(*pair, qos.num_blocks)
        naive_seconds.append(time.perf_counter() - start)
    result["seconds per pair, naive"] = with_interval(naive_seconds)
    ours, theirs = result["seconds per pair, twin"], result["seconds per pair, naive"]
    result["naive / twin"] = [theirs[0] / ours[0], theirs[1] / ours[2], theirs[2] / ours[1]]
    result["milliseconds per pair by stage"] = stages(pairs[:500])
    return result


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description="The twin against building a Sionna chain per pair, on one core.")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--naive", type=int, default=20, help="pairs that are simulated the naive way, too")
    parser.add_argument("--out", help="JSON file for the result")
    arguments = parser.parse_args(argv)
    text = json.dumps(measure(arguments.pairs, arguments.naive), indent=1)
    print(text)
    if arguments.out:
        with whole(arguments.out) as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()

"""python -m experiments.benchmarks.twin_speed [pairs] [naive pairs]: the twin against building a Sionna chain per pair, on one core.

Random distinct pairs of the toolbox, none cached. The naive way builds Sionna's blocks for every pair and calls `sim_ber` on a
graph-compiled chain, for as many code blocks of the same length as the twin spent on it. Prints pairs per second of both, cache
hits per second, the time of the twin's stages, and the growth of memory.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from dataclasses import replace

from twin.pool import QUIET_AND_SINGLE_THREADED
from twin.spec import BITS_PER_SYMBOL, Scenario, Workflow
from twin.toolbox import BY_NAME
from twin import Twin

RATES = next(a.choices for a in BY_NAME["encode"].arguments if a.field == "code_rate")


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
            scs_khz=rng.choice((15, 30, 60)), code_rate=rng.choice(RATES), decoder_iterations=rng.randint(1, 20),
            bits_per_symbol=rng.choice(BITS_PER_SYMBOL), num_layers=rng.randint(1, min(s.num_tx_ant, s.num_rx_ant)),
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


def stages(pairs) -> None:
    """Print the share of every stage of the link, in this process."""
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
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {label:32}{1e3 * seconds / len(points):7.2f} ms per pair {100 * seconds / total:5.0f} %")


def worker_megabytes(twin: Twin) -> float:
    """Resident memory of the twin's first worker."""
    pid = next(iter(twin._pool.workers.values())).process.pid
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main(num_pairs: int = 1000, num_naive: int = 10) -> None:
    pairs = random_pairs(num_pairs)
    with Twin(workers=1) as twin:
        start = time.perf_counter()
        twin.warm()
        print(f"start and warm: {time.perf_counter() - start:.1f} s, {worker_megabytes(twin):.0f} MB per worker")
        for part in range(4):
            some = pairs[part * num_pairs // 4 : (part + 1) * num_pairs // 4]
            start = time.perf_counter()
            answers = twin.evaluate(some)
            ours = len(some) / (time.perf_counter() - start)
            print(f"twin: {ours:.1f} distinct pairs/s on one worker, {twin.stats.blocks / twin.stats.simulated:.0f} blocks each, "
                  f"{worker_megabytes(twin):.0f} MB")
        start = time.perf_counter()
        twin.evaluate(some * 100)
        print(f"cache hits: {100 * len(some) / (time.perf_counter() - start):.0f} pairs/s")
    os.environ.update(QUIET_AND_SINGLE_THREADED)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    naive(*some[0], 32)  # imports
    start = time.perf_counter()
    for pair, qos in list(zip(some, answers))[:num_naive]:
        naive(*pair, qos.num_blocks)
    theirs = num_naive / (time.perf_counter() - start)
    print(f"naive: {theirs:.2f} pairs/s, {ours / theirs:.0f} times slower")
    print("where the twin's time goes:")
    stages(some)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

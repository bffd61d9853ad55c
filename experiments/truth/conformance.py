"""python -m experiments.truth.conformance [--slots N] [--out FILE]: Sionna's PUSCH chain and the
twin's on the same links, on one core.

Prints for every link both transport block error rates with 95 % intervals and the probability of as
large a difference where there is none (Fisher's exact test), both bit error rates, and milliseconds
per slot of both, compiled and warm. The link is the same one and the channels are others.

PUSCHTransmitter, OFDMChannel and PUSCHReceiver, with what the twin's receiver does by construction
in the place of three defaults:
exact demapping instead of max-log, layered offset min-sum instead of the flooding boxplus rule, and
least squares without the mean over pairs of pilots that separates the ports of a CDM group,
interpolated linearly and held outside the pilots (`Held`). Everything else is Sionna's: transport
block, scrambling, mapping, DM-RS, channel, noise, LMMSE detection, decoding, CRC. Its streams have
unit energy each, so the noise is the twin's times the number of layers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace

from twin.pool import QUIET_AND_SINGLE_THREADED

os.environ.update(QUIET_AND_SINGLE_THREADED)

import numpy as np
import tensorflow as tf
from scipy.stats import fisher_exact
from sionna.phy import config
from sionna.phy.channel import ChannelModel, OFDMChannel
from sionna.phy.channel.tr38901 import TDL
from sionna.phy.fec.ldpc import LDPC5GDecoder
from sionna.phy.mimo import StreamManagement
from sionna.phy.nr import PUSCHConfig, PUSCHReceiver, PUSCHTransmitter, TBDecoder
from sionna.phy.nr.utils import decode_mcs_index
from sionna.phy.ofdm import BaseChannelInterpolator, LinearDetector, LSChannelEstimator

from experiments.files import whole
from twin import Scenario, Settings, Workflow
from twin.chain import ldpc, link
from twin.physical import physical
from twin.statistics import block_limits
from twin.transport import segmentation


def case(
    snr_db, channel="awgn", rx=1, speed=3.0, spread=100.0, estimator="perfect", **workflow
) -> tuple[Scenario, Workflow]:
    scenario = Scenario(
        channel=channel,
        snr_db=snr_db,
        num_tx_ant=workflow.get("num_layers", 1),
        num_rx_ant=rx,
        speed_mps=speed,
        delay_spread_ns=spread,
    )
    return scenario, Workflow(estimator=estimator, decoder_iterations=10, **workflow)


# with block error rates between 0.02 and 0.8. Sionna has no block of base graph 1 below rate 1/3
LINKS = {
    "AWGN, QPSK 526, 4 PRB": case(1.4, num_prb=4, bits_per_symbol=2, code_rate=526 / 1024),
    "AWGN, 64QAM 666, 10 PRB": case(13.5, num_prb=10, bits_per_symbol=6, code_rate=666 / 1024),
    "AWGN, 256QAM 841, 4 PRB": case(22.2, num_prb=4, bits_per_symbol=8, code_rate=841 / 1024),
    "TDL-A, 1x2, QPSK 526, 8 PRB": case(
        4.0, "tdl-a", 2, num_prb=8, bits_per_symbol=2, code_rate=526 / 1024
    ),
    "TDL-A 30 ns, 1x2, 16QAM 490, 24 PRB": case(
        8.0, "tdl-a", 2, speed=1.0, spread=30.0, num_prb=24, bits_per_symbol=4, code_rate=490 / 1024
    ),
    "TDL-A, 1x2, QPSK 449, 8 PRB, LS": case(
        5.0, "tdl-a", 2, estimator="ls", num_prb=8, bits_per_symbol=2, code_rate=449 / 1024
    ),
    "TDL-B 30 m/s, 1x2, 16QAM 490, 12 PRB, LS": case(
        12.0,
        "tdl-b",
        2,
        speed=30.0,
        estimator="ls",
        num_prb=12,
        bits_per_symbol=4,
        code_rate=490 / 1024,
    ),
    "TDL-B 10 m/s, 1x2, 16QAM 490, 6 PRB, LS, two DM-RS": case(
        9.5,
        "tdl-b",
        2,
        speed=10.0,
        estimator="ls",
        num_prb=6,
        bits_per_symbol=4,
        code_rate=490 / 1024,
        num_dmrs=2,
    ),
    "TDL-C 300 ns, 2x4, 16QAM 490, two layers, 10 PRB, LS": case(
        9.0,
        "tdl-c",
        4,
        spread=300.0,
        estimator="ls",
        num_prb=10,
        bits_per_symbol=4,
        code_rate=490 / 1024,
        num_layers=2,
    ),
    "TDL-C 300 ns, 2x2, 16QAM 378, two layers, 6 PRB": case(
        10.5,
        "tdl-c",
        2,
        spread=300.0,
        num_prb=6,
        bits_per_symbol=4,
        code_rate=378 / 1024,
        num_layers=2,
    ),
}

BATCH = 100  # slots
MCS_TABLES = (1, 2, 3)  # TS 38.214 tables 5.1.3.1-1 to 3
SEED = 7


class LineOfSight(ChannelModel):
    """One path of gain 1 between all antennas."""

    def __init__(self, num_rx_ant: int, num_tx_ant: int):
        super().__init__()
        self.antennas = num_rx_ant, num_tx_ant

    def __call__(self, batch_size, num_time_steps, sampling_frequency):
        rx, tx = self.antennas
        return tf.ones([batch_size, 1, rx, 1, tx, 1, num_time_steps], tf.complex64), tf.zeros(
            [batch_size, 1, 1, 1]
        )


class Held(BaseChannelInterpolator):
    """Linear interpolation over subcarriers, then over DM-RS symbols; outside the outermost pilots
    the nearest one's estimate.
    """

    def __init__(self, pattern):
        super().__init__()
        # [streams, symbols, F], [streams, D F]
        mask, pilots = pattern.mask.numpy()[0], pattern.pilots.numpy()[0]
        symbols, num_sc = np.flatnonzero(mask[0].any(axis=1)), mask.shape[2]
        self.shape = len(symbols), num_sc
        weights = []
        for sent in np.abs(pilots.reshape(len(pilots), *self.shape)[:, 0]) > 0:
            at, dense = np.flatnonzero(sent), np.zeros((num_sc, num_sc))
            dense[:, at] = np.stack(
                [np.interp(np.arange(num_sc), at, row) for row in np.eye(len(at))], axis=1
            )
            weights.append(dense)
        self.frequency = np.array(weights)  # [streams, F, F]
        self.time = np.stack(
            [np.interp(np.arange(mask.shape[1]), symbols, row) for row in np.eye(len(symbols))],
            axis=1,
        )

    def _apply(self, x, power: int):
        x = tf.reshape(x, tf.concat([tf.shape(x)[:-1], self.shape], 0))
        over_frequency = tf.einsum("...lde,lfe->...ldf", x, tf.cast(self.frequency**power, x.dtype))
        return tf.einsum("...ldf,td->...ltf", over_frequency, tf.cast(self.time**power, x.dtype))

    def __call__(self, h_hat, err_var):
        variance = self._apply(err_var, 2)
        return self._apply(h_hat, 1), tf.broadcast_to(
            tf.reduce_mean(variance, axis=-1, keepdims=True), tf.shape(variance)
        )


def mcs_of(workflow: Workflow) -> tuple[int, int]:
    """Index and table of the MCS with this modulation and code rate."""
    for table in MCS_TABLES:
        for index in range(28 if table == 2 else 29):
            order, rate = decode_mcs_index(index, table, is_pusch=True, transform_precoding=False)
            if (
                int(order) == workflow.bits_per_symbol
                and abs(float(rate) - workflow.code_rate) < 1e-5
            ):
                return index, table
    raise ValueError(
        f"no MCS has {workflow.bits_per_symbol} bits per symbol and code rate {workflow.code_rate}"
    )


def pusch_config(workflow: Workflow) -> PUSCHConfig:
    """DM-RS type 1 in symbols 2 (and 11), no data beside it, the layers' ports in different CDM
    groups.
    """
    pusch = PUSCHConfig()
    pusch.carrier.subcarrier_spacing = workflow.scs_khz
    pusch.carrier.n_size_grid = workflow.num_prb
    pusch.num_layers = pusch.num_antenna_ports = workflow.num_layers
    pusch.symbol_allocation = [0, 14]
    pusch.mapping_type = "A"
    pusch.dmrs.type_a_position, pusch.dmrs.config_type = 2, 1
    pusch.dmrs.length, pusch.dmrs.additional_position = 1, workflow.num_dmrs - 1
    pusch.dmrs.num_cdm_groups_without_data = 2
    pusch.dmrs.dmrs_port_set = [[0], [0, 2]][workflow.num_layers - 1]
    pusch.tb.mcs_index, pusch.tb.mcs_table = mcs_of(workflow)
    return pusch


class Chain:
    def __init__(self, scenario: Scenario, workflow: Workflow):
        s, self.workflow = scenario, workflow
        self.send = PUSCHTransmitter(pusch_config(workflow))
        grid = self.send.resource_grid
        assert (
            sorted(set(np.flatnonzero(self.send.pilot_pattern.mask.numpy()[0, 0].any(axis=1))))
            == [2, 11][: workflow.num_dmrs]
        )
        if s.channel == "awgn":
            model = LineOfSight(s.num_rx_ant, workflow.num_layers)
        else:
            model = TDL(
                s.channel[-1].upper(),
                s.delay_spread_ns * 1e-9,
                s.carrier_ghz * 1e9,
                min_speed=s.speed_mps,
                num_rx_ant=s.num_rx_ant,
                num_tx_ant=workflow.num_layers,
            )
        self.channel = OFDMChannel(model, grid, return_channel=True)
        self.noise = workflow.num_layers * 10 ** (-s.snr_db / 10)
        estimator = (
            "perfect"
            if workflow.estimator == "perfect"
            else LSChannelEstimator(grid, interpolator=Held(grid.pilot_pattern))
        )
        self.receiver = PUSCHReceiver(
            self.send,
            estimator,
            LinearDetector(
                "lmmse",
                "bit",
                "app",
                grid,
                StreamManagement([[1]], workflow.num_layers),
                "qam",
                workflow.bits_per_symbol,
            ),
            TBDecoder(self.send._tb_encoder),
        )
        self.receiver._tb_decoder._decoder = LDPC5GDecoder(
            self.send._tb_encoder.ldpc_encoder,
            cn_update="offset-minsum",
            cn_schedule="layered",
            num_iter=workflow.decoder_iterations,
        )
        self.run = tf.function(self._run)

    def _run(self):
        """Information bits, those decided, LLRs [S, G] as the TBDecoder has them, and the ratio of
        signal to noise [S].
        """
        x, bits = self.send(BATCH)
        y, h = self.channel(x, self.noise)
        r = self.receiver
        if self.workflow.estimator == "perfect":
            g, error = h, tf.zeros([])
        else:
            g, error = r._channel_estimator(y, self.noise)
        logits = r._layer_demapper(r._mimo_detector(y, g, error, self.noise))
        decided, _ = r._tb_decoder(logits)
        data = [t for t in range(14) if t not in (2, 11)[: self.workflow.num_dmrs]]
        signal = tf.reduce_sum(h * x[:, None, None], axis=(3, 4))  # [S, 1, rx, 14, F]
        power = tf.reduce_mean(tf.abs(tf.gather(signal, data, axis=3)) ** 2, axis=(1, 2, 3, 4))
        return (
            bits[:, 0],
            decided[:, 0],
            -r._tb_decoder._descrambler(logits)[:, 0],
            power / self.noise,
        )

    def decoded_by_the_twin(self, llr: np.ndarray) -> np.ndarray:
        """Information bits [S, A]."""
        code, w = segmentation(self.workflow), self.workflow
        soft = np.zeros((len(llr), code.num_blocks * code.mother_length), np.int16)
        ldpc.recover(np.ascontiguousarray(llr), ldpc.places(code, w.bits_per_symbol), soft)
        rows = ldpc.rows_needed(code, 1)
        out = ldpc.decode(
            code, soft.reshape(-1, code.mother_length), w.decoder_iterations, rows
        ).reshape(len(llr), code.num_blocks, -1)
        return out[..., : code.info - 24 * (code.num_blocks > 1)].reshape(len(llr), -1)[
            :, : code.size
        ]


def theirs(chain: Chain, slots: int) -> dict:
    """Transport blocks, those in error, those in error that the twin's decoder makes of the same
    LLRs, share of wrong bits, and the mean ratio of signal to noise with its standard error.
    """
    config.seed = SEED
    chain.run()  # traced
    errors = decoded_by_the_twin = 0
    share_parts, ratio_parts, seconds = [], [], 0.0
    for _ in range(-(-slots // BATCH)):
        start = time.perf_counter()
        bits, decided, llr, ratio = (t.numpy() for t in chain.run())
        seconds += time.perf_counter() - start
        share_parts.append(np.mean(decided != bits, axis=1))
        ratio_parts.append(ratio)
        decoded_by_the_twin += int(np.any(chain.decoded_by_the_twin(llr) != bits, axis=1).sum())
    shares, ratios = np.concatenate(share_parts), np.concatenate(ratio_parts)
    errors = int(np.count_nonzero(shares))
    return {
        "blocks": len(shares),
        "errors": errors,
        "errors, the twin's decoder": decoded_by_the_twin,
        "bler": [errors / len(shares), *block_limits(errors, len(shares), 0.05)],
        "ber": [float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))],
        "snr_db": [
            float(10 * np.log10(ratios.mean())),
            float(4.34 * ratios.std() / ratios.mean() / np.sqrt(len(ratios))),
        ],
        "ms": 1e3 * seconds / len(shares),
    }


def ours(scenario: Scenario, workflow: Workflow, slots: int) -> dict:
    point, settings = physical(scenario, workflow), Settings(method="link")
    rounds = -(-slots // point.slots_per_round)
    link.simulate(replace(point, rounds=(0, 1)), SEED + 1, settings)  # compiled
    start = time.perf_counter()
    counts = link.simulate(replace(point, rounds=(0, rounds)), SEED, settings)
    seconds = time.perf_counter() - start
    n, mean = counts.num_blocks, counts.error_share / counts.num_blocks
    return {
        "blocks": n,
        "errors": counts.block_errors,
        "bler": [counts.block_errors / n, *block_limits(counts.block_errors, n, 0.05)],
        "ber": [mean, float(np.sqrt((counts.error_share_squared / n - mean**2) / n))],
        "ms": 1e3 * seconds / n,
    }


def compare(title: str, slots: int) -> dict:
    """Both chains on a link of LINKS."""
    scenario, workflow = LINKS[title]
    sionna, twin = theirs(Chain(scenario, workflow), slots), ours(scenario, workflow, slots)
    table = [[x["errors"], x["blocks"] - x["errors"]] for x in (sionna, twin)]
    apart = (sionna["ber"][0] - twin["ber"][0]) / np.hypot(sionna["ber"][1], twin["ber"][1])
    return {
        "link": title,
        "snr_db": scenario.snr_db,
        "sionna": sionna,
        "twin": twin,
        "bler_p": float(fisher_exact(table).pvalue),
        "ber_z": float(apart),
        "times_as_fast": sionna["ms"] / twin["ms"],
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description="Sionna's PUSCH chain and the twin's on the same links."
    )
    parser.add_argument("--slots", type=int, default=2000, help="of each link and chain")
    parser.add_argument("--out", help="JSON file for the result")
    arguments = parser.parse_args(argv)
    rows = []
    for title in LINKS:
        row = compare(title, arguments.slots)
        rows.append(row)
        (p, *a), (q, *b) = row["sionna"]["bler"], row["twin"]["bler"]
        print(
            f"{title}: BLER {p:.3f} [{a[0]:.3f}, {a[1]:.3f}], twin {q:.3f} [{b[0]:.3f},"
            f" {b[1]:.3f}], p {row['bler_p']:.2f}; BER {row['sionna']['ber'][0]:.1e}, twin"
            f" {row['twin']['ber'][0]:.1e}; {row['sionna']['ms']:.2f} ms a slot, twin"
            f" {row['twin']['ms']:.2f}",
            flush=True,
        )
    print(
        "times as fast, geometric mean:"
        f" {np.exp(np.mean([np.log(r['times_as_fast']) for r in rows])):.1f}"
    )
    if arguments.out:
        with whole(arguments.out) as file:
            file.write(json.dumps({"slots": arguments.slots, "links": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

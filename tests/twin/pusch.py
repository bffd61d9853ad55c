"""Sionna's PUSCH chain at the twin's configurations. Imports TensorFlow, so it runs in a process of its own, by hand until a test
of its own runs it: `python pusch.py links < cases.json` and `python pusch.py blocks` write JSON to their last line.

PUSCHTransmitter, OFDMChannel and PUSCHReceiver, with what the twin's receiver does by construction in the place of three defaults:
exact demapping instead of max-log, offset min-sum in 20 flooding iterations (the twin: 10 layered ones) instead of
the boxplus rule, and least squares without the mean over pairs of pilots that separates the ports of a CDM group, interpolated
linearly and held outside the pilots (`Held`). Everything else is Sionna's: transport block, scrambling, mapping, DM-RS, channel, noise,
LMMSE detection, decoding, CRC. Its streams have unit energy each, so the noise is the twin's times the number of layers.
"""

from __future__ import annotations

import json
import os
import sys
from functools import cache

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from sionna.phy import config
from sionna.phy.channel import ChannelModel, OFDMChannel
from sionna.phy.channel.tr38901 import TDL
from sionna.phy.mimo import StreamManagement
from sionna.phy.nr import PUSCHConfig, PUSCHReceiver, PUSCHTransmitter, TBDecoder
from sionna.phy.nr.utils import calculate_tb_size, decode_mcs_index
from sionna.phy.ofdm import BaseChannelInterpolator, LinearDetector, LSChannelEstimator

from twin import Scenario, Workflow
from twin.chain import ldpc
from twin.transport import SUBCARRIERS_PER_PRB, segment, segmentation, transport_block_bits

BATCH = 100  # slots
MCS_TABLES = (1, 2, 3)  # TS 38.214 tables 5.1.3.1-1 to 3


class LineOfSight(ChannelModel):
    """One path of gain 1 between all antennas."""

    def __init__(self, num_rx_ant: int, num_tx_ant: int):
        super().__init__()
        self.antennas = num_rx_ant, num_tx_ant

    def __call__(self, batch_size, num_time_steps, sampling_frequency):
        rx, tx = self.antennas
        return tf.ones([batch_size, 1, rx, 1, tx, 1, num_time_steps], tf.complex64), tf.zeros([batch_size, 1, 1, 1])


class Held(BaseChannelInterpolator):
    """Linear interpolation over subcarriers, then over DM-RS symbols; outside the outermost pilots the nearest one's estimate."""

    def __init__(self, pattern):
        super().__init__()
        mask, pilots = pattern.mask.numpy()[0], pattern.pilots.numpy()[0]  # [streams, symbols, F], [streams, D F]
        symbols, num_sc = np.flatnonzero(mask[0].any(axis=1)), mask.shape[2]
        self.shape = len(symbols), num_sc
        weights = []
        for sent in np.abs(pilots.reshape(len(pilots), *self.shape)[:, 0]) > 0:
            at, dense = np.flatnonzero(sent), np.zeros((num_sc, num_sc))
            dense[:, at] = np.stack([np.interp(np.arange(num_sc), at, row) for row in np.eye(len(at))], axis=1)
            weights.append(dense)
        self.frequency = np.array(weights)  # [streams, F, F]
        self.time = np.stack([np.interp(np.arange(mask.shape[1]), symbols, row) for row in np.eye(len(symbols))], axis=1)

    def _apply(self, x, power: int):
        x = tf.reshape(x, tf.concat([tf.shape(x)[:-1], self.shape], 0))
        over_frequency = tf.einsum("...lde,lfe->...ldf", x, tf.cast(self.frequency**power, x.dtype))
        return tf.einsum("...ldf,td->...ltf", over_frequency, tf.cast(self.time**power, x.dtype))

    def __call__(self, h_hat, err_var):
        variance = self._apply(err_var, 2)
        return self._apply(h_hat, 1), tf.broadcast_to(tf.reduce_mean(variance, axis=-1, keepdims=True), tf.shape(variance))


def mcs_of(workflow: Workflow) -> tuple[int, int]:
    """Index and table of the MCS with this modulation and code rate."""
    for table in MCS_TABLES:
        for index in range(28 if table == 2 else 29):
            order, rate = decode_mcs_index(index, table, is_pusch=True, transform_precoding=False)
            if int(order) == workflow.bits_per_symbol and abs(float(rate) - workflow.code_rate) < 1e-5:
                return index, table
    raise ValueError(f"no MCS has {workflow.bits_per_symbol} bits per symbol and code rate {workflow.code_rate}")


def pusch_config(workflow: Workflow) -> PUSCHConfig:
    """DM-RS type 1 in symbols 2 (and 11), no data beside it, the layers' ports in different CDM groups."""
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
        assert sorted(set(np.flatnonzero(self.send.pilot_pattern.mask.numpy()[0, 0].any(axis=1)))) == [2, 11][: workflow.num_dmrs]
        if s.channel == "awgn":
            model = LineOfSight(s.num_rx_ant, workflow.num_layers)
        else:
            model = TDL(s.channel[-1].upper(), s.delay_spread_ns * 1e-9, s.carrier_ghz * 1e9, min_speed=s.speed_mps,
                        num_rx_ant=s.num_rx_ant, num_tx_ant=workflow.num_layers)
        self.channel = OFDMChannel(model, grid, return_channel=True)
        self.noise = workflow.num_layers * 10 ** (-s.snr_db / 10)
        estimator = "perfect" if workflow.estimator == "perfect" else LSChannelEstimator(grid, interpolator=Held(grid.pilot_pattern))
        self.receiver = PUSCHReceiver(
            self.send, estimator,
            LinearDetector("lmmse", "bit", "app", grid, StreamManagement([[1]], workflow.num_layers), "qam", workflow.bits_per_symbol),
            TBDecoder(self.send._tb_encoder, num_bp_iter=2 * workflow.decoder_iterations, cn_update="offset-minsum"))
        self.run = tf.function(self._run)

    def _run(self):
        """Information bits, those decided, LLRs [S, G] as the TBDecoder has them, and the ratio of signal to noise [S]."""
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
        return bits[:, 0], decided[:, 0], -r._tb_decoder._descrambler(logits)[:, 0], power / self.noise

    def decoded_by_the_twin(self, llr: np.ndarray) -> np.ndarray:
        """Information bits [S, A]."""
        code, w = segmentation(self.workflow), self.workflow
        soft = np.zeros((len(llr), code.num_blocks * code.mother_length), np.int16)
        ldpc.recover(np.ascontiguousarray(llr), ldpc.places(code, w.bits_per_symbol), soft)
        rows = ldpc.rows_needed(code, 1)
        out = ldpc.decode(code, soft.reshape(-1, code.mother_length), w.decoder_iterations, rows).reshape(len(llr), code.num_blocks, -1)
        return out[..., : code.info - 24 * (code.num_blocks > 1)].reshape(len(llr), -1)[:, : code.size]


def link(scenario: dict, workflow: dict, slots: int, seed: int) -> dict:
    """Block errors of Sionna's chain; of the same LLRs decoded by the twin; the ratio of signal to noise and its standard error."""
    chain = Chain(Scenario(**scenario), Workflow(**workflow))
    config.seed = seed
    errors = twins = 0
    ratio = []
    for _ in range(-(-slots // BATCH)):
        bits, decided, llr, part = (t.numpy() for t in chain.run())
        errors += int(np.any(decided != bits, axis=1).sum())
        twins += int(np.any(chain.decoded_by_the_twin(llr) != bits, axis=1).sum())
        ratio.append(part)
    ratio = np.concatenate(ratio)
    return {"blocks": len(ratio), "errors": errors, "errors_decoded_by_the_twin": twins, "bits": int(chain.send._tb_size),
            "ratio": float(ratio.mean()), "ratio_error": float(ratio.std() / np.sqrt(len(ratio)))}


# Transport blocks


def sizes() -> dict:
    """Every MCS on every number of resource blocks and layers: sizes, code blocks and their coded bits against calculate_tb_size."""
    prb = np.arange(1, 274)
    wrong, count, rates = [], 0, set()
    for table in MCS_TABLES:
        for index in range(28 if table == 2 else 29):
            rates.add(tuple(float(t) for t in decode_mcs_index(index, table, is_pusch=True, transform_precoding=False)))
    for order, rate in sorted(rates):
        order, rate = int(order), round(rate * 2048) / 2048  # single precision
        for layers in (1, 2, 3, 4):
            for dmrs in (1, 2):
                elements, full = SUBCARRIERS_PER_PRB * (14 - dmrs), np.ones(len(prb), int)
                size, info, blocks, _, _, sent = (t.numpy() for t in calculate_tb_size(
                    full * order, full * rate, num_coded_bits=prb * elements * order * layers, num_layers=full * layers, precision="double"))
                for i, n in enumerate(prb):
                    mine = transport_block_bits(int(n), elements, order, layers, rate)
                    code = segment(mine, rate, int(n) * elements * order * layers, order * layers)
                    count += 1
                    if (mine, code.info, code.num_blocks, list(code.sent)) != (size[i], info[i], blocks[i], list(sent[i][: blocks[i]])):
                        wrong.append((order, rate, layers, dmrs, int(n), mine, int(size[i]), code.num_blocks, int(blocks[i])))
    return {"compared": count, "wrong": wrong}


@cache
def grants() -> tuple[Workflow, ...]:
    """Both base graphs, one code block and several of equal and unequal length."""
    rates = ((2, 251), (2, 602), (4, 378), (4, 658), (6, 567), (6, 873), (8, 711), (8, 948))
    return tuple(Workflow(num_prb=prb, bits_per_symbol=m, code_rate=rate / 1024, num_layers=layers, num_dmrs=dmrs)
                 for m, rate in rates for prb, layers, dmrs in ((3, 1, 1), (17, 2, 2), (52, 1, 2), (106, 2, 1)))


def coded() -> dict:
    """Coded bits of a transport block, rate matched and interleaved, against TBEncoder's before its scrambling."""
    outcome = []
    for workflow in grants():
        send = PUSCHTransmitter(pusch_config(workflow))
        encoder, code = send._tb_encoder, segmentation(workflow)
        bits = np.random.default_rng(0).integers(0, 2, (2, 1, code.size)).astype(np.float32)
        theirs = encoder.scrambler(encoder(bits)).numpy()[:, 0]
        blocks = encoder.tb_crc_encoder(bits).numpy().reshape(2, code.num_blocks, -1)
        if code.num_blocks > 1:
            blocks = encoder.cb_crc_encoder(blocks).numpy()
        mine = ldpc.encode(code, blocks.reshape(-1, code.info).astype(np.uint8)).reshape(2, -1)[:, ldpc.places(code, workflow.bits_per_symbol)]
        outcome.append({"grant": str(workflow), "base_graph": [code.base_graph, int(encoder.ldpc_encoder._bg[-1])],
                        "blocks": code.num_blocks, "lengths": len(set(code.sent)), "wrong": int(np.sum(mine != theirs))})
    return outcome


if __name__ == "__main__":
    if sys.argv[1] == "links":
        answer = []
        for case in json.load(sys.stdin):
            answer.append(link(**case))
            print(json.dumps(answer[-1]), file=sys.stderr, flush=True)
    else:
        answer = {"sizes": sizes(), "coded": coded()}
    print(json.dumps(answer))

"""Every stage of the link against Sionna's own block or a formula. Imports TensorFlow, so test_stages.py runs it in a
process of its own: `python sionna_stages.py` writes {check: traceback or null} as JSON to its last line."""

import json
import traceback
from dataclasses import replace
from functools import partial

import numpy as np
import tensorflow as tf
from checking import CHECKS, check, complex_gaussian
from sionna.phy import config
from sionna.phy.channel import cir_to_ofdm_channel, subcarrier_frequencies
from sionna.phy.channel.tr38901 import TDL
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.mapping import Demapper, Mapper
from sionna.phy.mimo.equalization import lmmse_equalizer, zf_equalizer
from sionna.phy.nr.utils import calculate_tb_size, decode_mcs_index

from twin import Scenario, Settings, Workflow, coding, detection, link, physical, precoding
from twin.channel import correlation, ofdm_response, realise, residual_interference
from twin.estimation import estimator, interpolation
from twin.grid import NUM_SC, comb, data_index, pilot_index
from twin.physical import CODE_LENGTH, ChannelState
from twin.spec import CHANNELS
from twin.theory import MCS_TABLE_1, transport_block_bits

RNG = np.random.default_rng(0)
gaussian = partial(complex_gaussian, RNG)


@check
def linear_detection_is_sionnas():
    for rx, layers in ((1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (4, 3), (4, 4)):
        y, g = gaussian(rx, 500), gaussian(rx, layers, 500)
        noise = RNG.uniform(0.01, 1, 500).astype(np.float32)
        s = noise[:, None, None] * np.eye(rx, dtype=np.complex64)
        for lmmse, reference in ((False, zf_equalizer), (True, lmmse_equalizer)):
            x, no = detection.linear(y, g, noise, lmmse)
            x_ref, no_ref = (t.numpy().T for t in reference(y.T, g.transpose(2, 0, 1), s))
            sound = np.all(no_ref < 20, axis=0)  # float32 loses digits on nearly singular channels
            assert sound.mean() > 0.9
            np.testing.assert_allclose(x[:, sound], x_ref[:, sound], rtol=0.01, atol=0.01)
            np.testing.assert_allclose(no[:, sound], no_ref[:, sound], rtol=0.01)


@check
def matched_filters_know_the_power_of_their_error():
    for rx, layers in ((1, 1), (4, 1), (2, 2), (4, 3)):
        g, noise = np.repeat(gaussian(rx, layers, 1), 20_000, axis=-1), np.full(20_000, 0.2, np.float32)
        x = np.sign(RNG.standard_normal((layers, 20_000))).astype(np.complex64)
        y = np.einsum("rle,le->re", g, x) + np.sqrt(np.float32(0.2)) * gaussian(rx, 20_000)
        x_hat, variance = detection.matched(y, g, noise)
        np.testing.assert_allclose(np.mean(np.abs(x_hat - x) ** 2, axis=-1), variance[:, 0], rtol=0.05)
        if layers == 1:
            np.testing.assert_allclose(x_hat, detection.linear(y, g, noise, False)[0], rtol=1e-3, atol=1e-3)


@check
def with_one_layer_zf_and_lmmse_give_the_same_logits():
    """Why physical() may call both mrc."""
    point = physical(Scenario(channel="tdl-c", snr_db=8, num_rx_ant=2), Workflow(bits_per_symbol=4, estimator="ls"))
    logits = [link.receive(replace(point, detector=detector), 0, 0) for detector in ("zf", "lmmse", "mrc")]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits[0], logits[2], rtol=1e-3, atol=1e-3)


@check
def the_response_is_sionnas():
    config.seed = 1
    a, tau = TDL("C", 300e-9, 3.5e9, min_speed=30, num_rx_ant=2, num_tx_ant=3)(5, 14, 28e3)
    reference = cir_to_ofdm_channel(subcarrier_frequencies(NUM_SC, 30e3), a, tau).numpy()[:, 0, :, 0]
    ours = ofdm_response(a.numpy()[:, 0, :, 0], tau.numpy()[0, 0, 0], 30)
    np.testing.assert_allclose(ours, reference.transpose(1, 2, 0, 3, 4), atol=1e-4)


@check
def the_demapper_is_sionnas_app_demapper():
    for m in (2, 4, 6, 8):
        n = CODE_LENGTH // m
        x, no = gaussian(32, n, 1), RNG.uniform(0.05, 1, (32, n, 1)).astype(np.float32)
        reference = Demapper("app", "qam", m)(x[..., 0], no[..., 0]).numpy()
        np.testing.assert_allclose(coding.demap(x, no, m), reference, rtol=1e-3, atol=1e-3)


@check
def the_interleaver_is_that_of_38_212():
    encoder = LDPC5GEncoder(576, CODE_LENGTH)
    places = np.arange(CODE_LENGTH)[None]
    for m in (2, 4, 6, 8):
        order, inverse = encoder.generate_out_int(CODE_LENGTH, m)
        np.testing.assert_array_equal(coding.interleave(places, m)[0], places[0][order])
        np.testing.assert_array_equal(coding.deinterleave(places, m)[0], places[0][inverse])


@check
def symbols_are_sionnas_and_of_unit_energy():
    _, coded = coding.code_blocks("ldpc", 576, 7)
    for m, layers in ((2, 1), (6, 3), (8, 4)):
        x = coding.symbols("ldpc", 576, m, layers, 7)
        reference = Mapper("qam", m)(tf.cast(coding.interleave(coded, m), tf.float32)).numpy()
        np.testing.assert_array_equal(x.transpose(1, 2, 0).reshape(32, -1), reference)
        assert x.shape == (layers, 32, len(data_index(m, layers))) and abs(np.mean(np.abs(x) ** 2) - 1) < 0.02


@check
def stopping_early_decides_what_all_iterations_decide():
    for k in (288, 576, 960):
        encoder = LDPC5GEncoder(k, CODE_LENGTH)
        full = LDPC5GDecoder(encoder, cn_update="offset-minsum")
        early = coding.EarlyStop(encoder, cn_update="offset-minsum")
        _, coded = coding.code_blocks("ldpc", k, 3)
        for sigma in (0.4, 0.8, 1.2):
            noise = RNG.standard_normal(coded.shape)
            logits = tf.constant((2 * (2 * coded - 1 + sigma * noise) / sigma**2).astype(np.float32))
            a, b = (d(logits, num_iter=tf.constant(12)).numpy() for d in (full, early))
            np.testing.assert_array_equal(a, b)


@check
def every_channel_has_unit_power():
    for channel in CHANNELS:
        state = physical(Scenario(channel=channel, num_rx_ant=2), Workflow(num_layers=2)).state
        power = np.mean(np.abs(realise(state, 2000, 5)) ** 2, axis=(0, 1, 3))
        assert abs(power.mean() - 1) < 4 * power.std() / np.sqrt(2000) + 1e-6, (channel, power.mean())


@check
def layers_are_orthogonal_in_awgn():
    for rx in (1, 2, 3, 4):
        for layers in range(1, rx + 1):
            h = realise(ChannelState("awgn", rx, layers), 1, 0)[:, :, 0, 0]
            np.testing.assert_allclose(h.conj().T @ h, rx * np.eye(layers), atol=1e-5)


@check
def the_wiener_filter_knows_the_channels_correlation():
    for channel in ("tdl-a", "tdl-d", "cdl-b", "cdl-d"):
        state = ChannelState(channel, 1, 1, 0, "none", 300.0, 400.0, 30)
        h = realise(state, 6000, 9)[0, 0].reshape(6000, 14, NUM_SC)
        in_time, in_frequency = correlation(state)
        for dt, df in ((0, 0), (0, 5), (0, 40), (5, 0), (9, 0), (9, 20), (-6, 12)):
            t, f = (0 if dt >= 0 else -dt), 0
            sample = h[:, t + dt, f + df] * h[:, t, f].conj()
            expected = np.sum(in_time[:, 13 + dt] * in_frequency[:, NUM_SC - 1 + df])
            spread = np.sqrt(np.mean(np.abs(sample - sample.mean()) ** 2) / len(sample))
            assert abs(sample.mean() - expected) < 4.5 * spread, (channel, dt, df, sample.mean(), expected)


def estimate_error(state, num_dmrs, method, noise):
    """Measured and predicted mean square error of every layer's estimate in the units of `estimator`."""
    h = realise(state, 1500, 3)
    weights, predicted = estimator(state, num_dmrs, method, noise, (1.0,) * state.num_layers)
    layers, data = state.num_layers, data_index(2, state.num_layers)
    measured = []
    for layer in range(layers):
        at = pilot_index(layer, layers, num_dmrs)
        observed = h[:, layer][..., at] + np.sqrt(noise * layers / comb(layers)) * gaussian(*h.shape[:1], *h.shape[2:3], len(at))
        error = np.abs(observed @ weights[layer].T - h[:, layer][..., data]) ** 2
        measured.append(error.mean(axis=(0, 2)))
    return np.array(measured), predicted


@check
def the_wiener_filter_predicts_its_own_error():
    for channel, layers, num_dmrs in (("tdl-a", 1, 1), ("tdl-c", 2, 2), ("tdl-d", 4, 2), ("cdl-c", 2, 2), ("rayleigh", 1, 1)):
        state = physical(Scenario(channel=channel, num_tx_ant=4, num_rx_ant=4, speed_mps=40), Workflow(num_layers=layers)).state
        measured, predicted = estimate_error(state, num_dmrs, "lmmse", 0.1)
        spread = measured.std(axis=1) / np.sqrt(measured.shape[1])
        np.testing.assert_array_less(np.abs(measured.mean(axis=1) - predicted.mean(axis=1)), 5 * spread, err_msg=channel)


@check
def interpolation_predicts_its_error_where_the_channel_is_flat_and_still():
    state = ChannelState("rayleigh", 2, 2)
    for method in ("ls", "ls-nearest"):
        measured, predicted = estimate_error(state, 2, method, 0.1)
        np.testing.assert_allclose(measured.mean(axis=1), predicted.mean(axis=1), rtol=0.03)


@check
def the_wiener_filter_beats_linear_beats_nearest_interpolation():
    state = ChannelState("tdl-a", 1, 1, 0, "none", 1000.0, 100.0, 30)
    errors = [estimate_error(state, 2, method, 0.001)[0].mean() for method in ("lmmse", "ls", "ls-nearest")]
    assert errors[0] < errors[1] < errors[2], errors


@check
def one_pilot_symbol_loses_a_fast_channel_and_two_hold_it():
    fast = ChannelState("tdl-a", 1, 1, 0, "none", 30.0, 1200.0, 30)
    errors = {n: estimate_error(fast, n, "lmmse", 0.01)[0].mean() for n in (1, 2)}
    assert errors[1] > 4 * errors[2] and errors[1] > 0.1, errors


@check
def linear_interpolation_is_exact_on_planes():
    pilots, data = pilot_index(0, 1, 2), data_index(2, 1)
    inside = (data // NUM_SC > 2) & (data // NUM_SC < 11) & (data % NUM_SC < NUM_SC - 1)
    plane = lambda at: 3 + 0.5 * (at // NUM_SC) - 0.2 * (at % NUM_SC)  # noqa: E731
    np.testing.assert_allclose((interpolation(pilots, data, False) @ plane(pilots))[inside], plane(data)[inside], atol=1e-12)
    np.testing.assert_allclose(interpolation(pilots, data, True).sum(axis=1), 1)


@check
def pilots_of_layers_do_not_meet_each_other_or_data():
    for layers in (1, 2, 3, 4):
        for num_dmrs in (1, 2):
            used = np.concatenate([pilot_index(layer, layers, num_dmrs) for layer in range(layers)])
            assert len(set(used)) == len(used) and not set(used) & set(data_index(2, layers))


@check
def interference_is_that_of_jakes_and_of_late_taps():
    slow = ChannelState("tdl-b", 1, 1, 0, "none", 10.0, 100.0, 15)
    a = 2 * np.pi * 100 / 15e3
    np.testing.assert_allclose(residual_interference(slow), a**2 / 24, rtol=0.02)
    assert residual_interference(ChannelState("tdl-b", 1, 1, 0, "none", 100.0, 0.0, 15)) < 1e-6
    late = [residual_interference(ChannelState("tdl-b", 1, 1, 0, "none", 1000.0, 0.0, scs)) for scs in (15, 30, 60, 120)]
    assert all(a < b for a, b in zip(late, late[1:])) and late[0] < 0.01 and late[3] > 0.05, late


@check
def a_layer_of_qpsk_without_noise_is_decided_right():
    for channel in ("awgn", "rayleigh", "tdl-a"):
        scenario = Scenario(channel=channel, snr_db=60, num_tx_ant=2, num_rx_ant=2, speed_mps=0)
        for detector in ("zf", "lmmse"):
            w = Workflow(num_layers=2, code="none", estimator="perfect", detector=detector, bits_per_symbol=6)
            assert link.simulate(physical(scenario, w), 0, Settings(max_blocks=32)).bit_errors <= 3


@check
def noise_has_unit_variance_and_is_white():
    _, noise = link.surroundings(ChannelState("awgn", 2, 1), 5)
    assert abs(np.mean(np.abs(noise) ** 2) - 1) < 4 / np.sqrt(noise.size)
    assert abs(np.mean(noise[0] * noise[1].conj())) < 4 / np.sqrt(noise[0].size)


@check
def the_square_channel_keeps_all_distances():
    for rx, layers in ((2, 2), (4, 2), (4, 3), (4, 4)):
        y, g, noise = gaussian(rx, 1, 200), gaussian(rx, layers, 1, 200), RNG.uniform(0.1, 1, (1, 200)).astype(np.float32)
        z, r = detection._square(y, g, noise)
        distances = []
        for _ in range(2):
            x = gaussian(layers, 1, 200)
            full = np.sum(np.abs(y - np.einsum("rlsn,lsn->rsn", g, x)) ** 2, axis=0) / noise
            distances.append(full - np.sum(np.abs(z - np.einsum("ijsn,jsn->isn", r, x)) ** 2, axis=0))
        np.testing.assert_allclose(*distances, rtol=0.02, atol=0.02)


def layered_link(layers, m, snr_db):
    """Symbols' bits [S, N, L, m], received y [rx, S, N], channel g and noise variance, in flat Rayleigh fading with rx = L."""
    bits = RNG.integers(0, 2, (coding.NUM_SLOTS, CODE_LENGTH // (m * layers), layers, m))
    x = Mapper("qam", m)(tf.cast(bits, tf.float32)).numpy()[..., 0].transpose(2, 0, 1)
    g = gaussian(layers, layers, *x.shape[1:]) / np.sqrt(layers).astype(np.float32)
    noise = np.float32(10 ** (-snr_db / 10))
    y = np.einsum("rlsn,lsn->rsn", g, x) + np.sqrt(noise) * gaussian(layers, *x.shape[1:])
    return bits, y, g, np.full(x.shape[1:], noise)


@check
def k_best_with_all_survivors_is_maximum_likelihood():
    bits, y, g, noise = layered_link(2, 2, 8)
    logits = detection.detect(y, g, noise, "kbest", 2).reshape(bits.shape)
    table = np.array([[(i >> k) & 1 for k in range(3, -1, -1)] for i in range(16)]).reshape(16, 2, 2)  # all pairs of symbols
    points = Mapper("qam", 2)(tf.cast(table, tf.float32)).numpy()[..., 0]  # [16, L]
    distance = np.sum(np.abs(y[..., None] - np.einsum("rlsn,pl->rsnp", g, points)) ** 2, axis=0)
    best = table[distance.argmin(-1)]
    assert np.mean((logits > 0) != best) < 1e-3
    one = np.where(table[None, None] == 1, distance[..., None, None], np.inf).min(2)
    zero = np.where(table[None, None] == 0, distance[..., None, None], np.inf).min(2)
    np.testing.assert_allclose(logits, np.clip((zero - one) / noise[..., None, None], -20, 20), atol=0.05)


@check
def better_detectors_make_fewer_errors():
    for layers, m, snr_db in ((2, 4, 16), (4, 2, 10), (3, 6, 24)):
        bits, y, g, noise = layered_link(layers, m, snr_db)
        errors = [
            np.mean((detection.detect(y, g, noise, name, m).reshape(bits.shape) > 0) != bits) for name in ("zf", "lmmse", "ep", "kbest")
        ]
        assert errors[0] > errors[1] > errors[2] > 0.9 * errors[3], (layers, m, errors)


@check
def polar_blocks_come_back_and_use_a_quarter_of_the_slot():
    for rate in (0.2, 0.5, 0.83):
        point = physical(Scenario(channel="awgn", num_rx_ant=1), Workflow(code="polar", code_rate=rate))
        bits, coded = coding.code_blocks("polar", point.num_info_bits, 1)
        decided = coding.decode(point, (8.0 * coded - 4).astype(np.float32), Settings())
        np.testing.assert_array_equal(decided, bits)
        assert coded.shape == (32, CODE_LENGTH) and bits.shape == (32, point.num_info_bits)


@check
def svd_directions_are_orthonormal_and_strongest_first():
    state = ChannelState("rayleigh", 3, 2, 4, "svd")
    h = realise(state, coding.NUM_SLOTS, 2)
    past = h[..., None, : len(precoding.SOUNDED)]
    effective = precoding.precode(h, past, 2, "svd")[..., 0]  # [rx, L, S]
    singular = np.linalg.svd(h[..., 0].transpose(2, 0, 1), compute_uv=False)
    gram = np.einsum("ris,rjs->ijs", effective.conj(), effective)
    np.testing.assert_allclose(np.real(gram[[0, 1], [0, 1]]).T, singular[:, :2] ** 2, rtol=1e-3)
    np.testing.assert_allclose(gram[0, 1], 0, atol=1e-3)


@check
def transport_blocks_and_schemes_are_those_of_38_214():
    for mcs, (m, rate) in enumerate(MCS_TABLE_1):
        order, target = decode_mcs_index(mcs, table_index=1, is_pusch=False)
        assert (int(order), round(float(target) * 1024)) == (m, rate)
    for _ in range(300):
        prb, symbols, layers = int(RNG.integers(1, 274)), int(RNG.integers(4, 15)), int(RNG.integers(1, 5))
        m, rate = MCS_TABLE_1[RNG.integers(len(MCS_TABLE_1))]
        reference = calculate_tb_size(m, rate / 1024, num_prbs=prb, num_ofdm_symbols=symbols, num_dmrs_per_prb=12, num_layers=layers)
        ours = transport_block_bits(prb, 12 * symbols - 12, m, layers, rate / 1024)
        assert ours == int(reference[0]), (prb, symbols, layers, m, rate, ours, int(reference[0]))


if __name__ == "__main__":
    import neural_stages  # noqa: F401, registers its checks

    outcome = {}
    for function in CHECKS:
        try:
            outcome[function.__name__] = function()
        except Exception:
            outcome[function.__name__] = traceback.format_exc()
    print(json.dumps(outcome))

"""Checks of the neural modules' stages, in TensorFlow's process: run by sionna_stages.py."""

from functools import partial

import numpy as np
import tensorflow as tf
from checking import check, complex_gaussian
from sionna.phy.mapping import Demapper

from twin import Scenario, Workflow, coding, deeprx, link, physical, precoding
from twin.channel import realise
from twin.delay import DEEPRX, deeprx_operations
from twin.grid import NUM_SC, pilot_index
from twin.physical import ChannelState

RNG = np.random.default_rng(1)
gaussian = partial(complex_gaussian, RNG)


@check
def a_prediction_turns_with_the_channel_and_is_nearer_than_the_latest_estimate():
    """On a profile that it was not trained on, at 10 m/s and 3.5 GHz, 15 kHz."""
    state = ChannelState("tdl-b", 2, 1, 4, "svd", 100.0, 117.0, 30)
    h = realise(state, 400, 6, (*precoding.PAST_SYMBOLS, precoding.TARGET_SYMBOL)).reshape(2, 4, 400, precoding.CSI_SLOTS + 1, NUM_SC)
    past, target = precoding.estimates(h[..., :-1, :], 3), h[..., -1, precoding.SOUNDED]
    error = [np.mean(np.abs(guess - target) ** 2) for guess in (precoding.predict(past), past[..., -1, :])]
    assert error[0] < 0.25 * error[1], error
    np.testing.assert_allclose(precoding.predict(past * np.complex64(2j)), 2j * precoding.predict(past), rtol=1e-3, atol=1e-3)


@check
def symbols_before_the_slot_are_of_the_same_channel():
    for channel in ("awgn", "rayleigh", "tdl-a", "tdl-d", "cdl-c"):
        still = ChannelState(channel, 2, 1, 2, "svd", 100.0, 0.0, 30)
        h = realise(still, 4, 1, (*precoding.PAST_SYMBOLS, 0, 13)).reshape(2, 2, 4, -1, NUM_SC)
        np.testing.assert_allclose(h - h[..., -1:, :], 0, atol=1e-3, err_msg=channel)


def observed(num_slots, num_rx, bits_per_symbol, num_dmrs=1):
    """Noise on a random grid: what a neural receiver is given."""
    return [tf.constant(x) for x in deeprx.observe(gaussian(num_rx, num_slots, 14 * NUM_SC), 0.3, num_dmrs, bits_per_symbol)]


@check
def the_neural_receivers_operations_are_those_of_its_graph():
    """Two for every multiplication of a matrix product or convolution, counted from the shapes in TensorFlow's graph."""
    for size in DEEPRX:
        params, inputs = deeprx.initial(size, 0), observed(1, 3, 4)
        run = tf.function(lambda *x: deeprx.network(params, x, size), autograph=False)  # noqa: B023
        operations = run.get_concrete_function(*(tf.TensorSpec(x.shape) for x in inputs)).graph.get_operations()
        elements = 3 * 14 * NUM_SC
        products = [op for op in operations if op.type == "MatMul" and op.outputs[0].shape[0] == elements]
        convolutions = [op for op in operations if op.type == "DepthwiseConv2dNative"]
        count = sum(2 * elements * op.outputs[0].shape[1] * op.inputs[0].shape[1] for op in products)
        count += sum(2 * elements * np.prod(op.inputs[1].shape) for op in convolutions)  # whatever dilation cuts the grid into
        assert len(convolutions) == 2 * sum(map(len, DEEPRX[size][1])) and len(products) == len(convolutions) + 2 * len(DEEPRX[size][1])
        assert count == elements * deeprx_operations(size), (size, count, deeprx_operations(size))


@check
def a_slots_logits_do_not_depend_on_the_batch():
    for size in DEEPRX:
        inputs = observed(8, 2, 6)
        alone = deeprx._receiver(size, 2)(*(x[3:4] for x in inputs)).numpy()
        np.testing.assert_allclose(deeprx._receiver(size, 2)(*inputs).numpy()[3:4], alone, rtol=1e-3, atol=1e-2)


@check
def the_order_of_the_antennas_does_not_matter():
    y = gaussian(4, 4, 14 * NUM_SC)
    one, other = (deeprx.receive(signal, 0.3, 2, 4, "deeprx") for signal in (y, y[::-1]))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-2)


@check
def folded_labels_are_the_nearest_points_and_fold_back():
    for m in (2, 4, 6, 8):
        order = np.eye(4, dtype=np.float32)[m // 2 - 1][None]
        z, noise = gaussian(1, 1, 2000), np.float32(0.3 / 4 ** (m / 2))
        pairs = tf.constant(z.view(np.float32).reshape(1, 1, 2000, 2))
        logits = deeprx.demap(pairs, tf.fill((1, 1, 2000), noise), order).numpy()[..., :m]
        reference = np.clip(Demapper("maxlog", "qam", m)(z, noise).numpy().reshape(logits.shape), -40, 40)
        assert np.mean((logits > 0) == (reference > 0)) > 0.999
        assert abs(np.median(logits / reference) - 1) < 0.2
        points = coding.constellation(m)
        pairs = tf.constant(points.view(np.float32).reshape(1, 1, -1, 2))
        symbols, certainty = deeprx.soft_symbols(deeprx.demap(pairs, tf.fill((1, 1, len(points)), 1e-4), order), order)
        np.testing.assert_allclose(symbols.numpy(), pairs.numpy(), atol=1e-5)
        np.testing.assert_allclose(certainty.numpy(), 1, atol=1e-5)


@check
def with_initial_weights_the_neural_receiver_is_that_of_least_squares():
    point = physical(Scenario(channel="tdl-b", snr_db=8, speed_mps=3, num_rx_ant=2), Workflow(bits_per_symbol=4, num_dmrs=2, estimator="ls"))
    h, noise = link.surroundings(point.state, 5)
    x = coding.constellation(4)[RNG.integers(16, size=(coding.NUM_SLOTS, 14 * NUM_SC))]
    y = h[:, 0] * deeprx.transmitted(x, 2) + np.float32(0.3) * noise
    inputs = [tf.constant(v) for v in deeprx.observe(y, 0.09, 2, 4)]
    logits = deeprx.network(deeprx.initial("deeprx", 0), inputs, "deeprx")[0].numpy().reshape(coding.NUM_SLOTS, -1, 8)[..., :4]
    at = pilot_index(0, 1, 2)
    estimate = y[..., at] / np.sqrt(np.float32(2)) @ deeprx._pilots(2)[0].T
    matched = np.sum(estimate.conj() * y, axis=0) / np.sum(np.abs(estimate) ** 2, axis=0)
    reference = Demapper("maxlog", "qam", 4)(matched.astype(np.complex64), np.float32(0.1)).numpy().reshape(logits.shape)
    data = deeprx._pilots(2)[1]
    assert np.mean((logits > 0)[:, data] == (reference > 0)[:, data]) > 0.98


@check
def pilots_stand_where_the_classical_receiver_finds_them():
    data = gaussian(32, 14 * NUM_SC)
    for num_dmrs in (1, 2):
        sent = deeprx.transmitted(data, num_dmrs)
        at = pilot_index(0, 1, num_dmrs)
        np.testing.assert_allclose(sent[:, at], np.sqrt(2))
        assert np.count_nonzero(sent[0] != data[0]) == num_dmrs * NUM_SC
        y = np.ones((2, 32, 14 * NUM_SC), np.complex64) * sent
        _, h, known, free, _, _ = deeprx.observe(y, 0.1, num_dmrs, 4)
        np.testing.assert_allclose(h[..., 0], 1, atol=1e-5)  # of a flat channel
        assert known.sum() == 32 * np.sqrt(np.float32(2)) * len(at) and free.sum() == 32 * (14 - num_dmrs) * NUM_SC

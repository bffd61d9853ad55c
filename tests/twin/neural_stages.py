"""Checks of the neural modules' stages, in TensorFlow's process: run by sionna_stages.py."""

from functools import partial
from unittest import mock

import numpy as np
import tensorflow as tf
from checking import check, complex_gaussian
from sionna.phy.mapping import Demapper

from experiments.networks import train_deeprx
from twin import Scenario, Workflow
from twin.chain import deeprx, detection, estimation, precoding, traces
from twin.chain.channel import realise
from twin.chain.grid import DMRS_SYMBOLS, data_symbols, frequencies_hz, symbol_times_s
from twin.chain.qam import constellation
from twin.delay import DEEPRX, deeprx_operations
from twin.physical import ChannelState, physical

RNG = np.random.default_rng(1)
gaussian = partial(complex_gaussian, RNG)


def point(
    size="deeprx", bits_per_symbol=4, num_dmrs=1, num_prb=4, num_rx=2, channel="tdl-b", **scenario
):
    return physical(
        Scenario(channel=channel, num_tx_ant=1, num_rx_ant=num_rx, **scenario),
        Workflow(
            num_prb=num_prb, bits_per_symbol=bits_per_symbol, num_dmrs=num_dmrs, detector=size
        ),
    )


def received(p, num_slots, seed=0):
    """A transmission of random bits: what arrives in data and DM-RS symbols, noise variance,
    channel, bits [S, G].
    """
    h = realise(
        p.state, num_slots, seed, symbol_times_s(p.scs_khz), frequencies_hz(p.num_prb, p.scs_khz)
    )
    symbols, at, m = data_symbols(p.num_dmrs), list(DMRS_SYMBOLS[p.num_dmrs]), p.bits_per_symbol
    bits = RNG.integers(0, 2, (num_slots, len(symbols) * h.shape[4] * m))
    x = constellation(m)[bits.reshape(num_slots, -1, m) @ (1 << np.arange(m)[::-1])]
    noise, variance = gaussian(*h[:, :, 0].shape), estimation.noise_variance(p, (1.0,))
    y = detection.transmit(h, x, noise, np.sqrt(variance), symbols)
    return (
        y,
        estimation.pilots_received(h, noise[:, :, at], np.sqrt(variance), p.num_dmrs),
        variance,
        h,
        bits,
    )


@check
def a_prediction_turns_with_the_channel_and_is_nearer_than_the_latest_estimate():
    """On a profile that it was not trained on, at 10 m/s and 3.5 GHz, 30 kHz, whatever the SNR that
    the link is sounded at.
    """
    state, slot_s = ChannelState("tdl-b", 1, 4, 100.0, 117.0), 0.5e-3
    times_s = (*(-slot_s * slot for slot in precoding.PAST_SLOTS), slot_s / 2)
    for num_prb, snr_db, share in ((8, 20.0, 0.2), (8, 0.0, 0.6), (1, 10.0, 0.45), (1, 0.0, 0.7)):
        h = realise(state, 400, 6, times_s, frequencies_hz(num_prb, 30))
        past, target = (
            precoding.sounded(h[:, :, :, :-1], snr_db, 3),
            h[:, :, :, -1, 2::4].transpose(1, 2, 0, 3),
        )
        error = [
            np.mean(np.abs(guess - target) ** 2)
            for guess in (precoding.predict(past), past[..., -1, :])
        ]
        assert error[0] < share * error[1], (num_prb, snr_db, error)
        np.testing.assert_allclose(
            precoding.predict(past * np.complex64(2j)),
            2j * precoding.predict(past),
            rtol=1e-3,
            atol=1e-3,
        )


@check
def past_slots_are_of_the_same_channel():
    past_s = tuple(-0.5e-3 * slot for slot in precoding.PAST_SLOTS)
    for channel in ("awgn", "rayleigh", "tdl-a", "tdl-d", "cdl-c"):
        h = realise(
            ChannelState(channel, 2, 2, 100.0, 0.0),
            4,
            1,
            (*past_s, 0.0, 0.4e-3),
            frequencies_hz(4, 30),
        )
        np.testing.assert_allclose(h - h[..., -1:, :], 0, atol=1e-3, err_msg=channel)


@check
def the_neural_receivers_operations_are_those_of_its_graph():
    """Two for every multiplication of a matrix product or convolution, counted from the shapes in
    TensorFlow's graph.
    """
    for size in DEEPRX:
        params = deeprx.initial(size, 0)
        inputs = deeprx.observe(gaussian(1, 3, 13, 24), gaussian(1, 3, 1, 24), 0.3, 4)
        run = tf.function(lambda *x: deeprx.network(params, x, size), autograph=False)  # noqa: B023
        operations = run.get_concrete_function(
            *(tf.TensorSpec(x.shape) for x in inputs)
        ).graph.get_operations()
        elements = 3 * 14 * 24
        products = [
            op for op in operations if op.type == "MatMul" and op.outputs[0].shape[0] == elements
        ]
        convolutions = [op for op in operations if op.type == "DepthwiseConv2dNative"]
        count = sum(
            2 * elements * op.outputs[0].shape[1] * op.inputs[0].shape[1] for op in products
        )
        # whatever dilation cuts the grid into
        count += sum(2 * elements * np.prod(op.inputs[1].shape) for op in convolutions)
        assert len(convolutions) == 2 * sum(map(len, DEEPRX[size][1])) and len(products) == len(
            convolutions
        ) + 2 * len(DEEPRX[size][1])
        assert count == elements * deeprx_operations(size), (size, count, deeprx_operations(size))


@check
def grants_slots_antennas_and_pilots_of_any_number_take_one_graph():
    for size in DEEPRX:
        for num_prb, num_slots, num_rx, num_dmrs, m in (
            (1, 3, 1, 1, 2),
            (2, 1, 4, 2, 8),
            (5, 2, 2, 1, 6),
            (30, 2, 3, 2, 4),
        ):
            p = point(size, m, num_dmrs, num_prb, num_rx)
            y, pilots, variance, _, bits = received(p, num_slots)
            llr = deeprx.llr(p, y, pilots, variance)
            assert llr.shape == bits.shape and llr.dtype == np.float32 and np.isfinite(llr).all()
        assert traces.counts[size,] == 1, traces.counts


@check
def llrs_do_not_depend_on_the_batch_or_its_chunks():
    for size in DEEPRX:
        p = point(size, 6, num_prb=3, snr_db=15)
        y, pilots, variance, *_ = received(p, 8)
        llr = deeprx.llr(p, y, pilots, variance)
        alone = deeprx.llr(p, y[3:4], pilots[3:4], variance)
        np.testing.assert_allclose(llr[3:4], alone, rtol=1e-3, atol=1e-2)
        for elements in (1, 3 * 2 * 14 * 36):  # one slot and three at a time
            with mock.patch.object(deeprx, "MAX_ELEMENTS", elements):
                np.testing.assert_allclose(
                    deeprx.llr(p, y, pilots, variance), llr, rtol=1e-3, atol=1e-2
                )


@check
def a_chunk_is_bounded_on_the_widest_grant():
    p, seen = point("deeprx-small", num_prb=273, num_rx=4), []
    pilots = gaussian(3, 4, 1, 273 * 12)

    def run(*observed):
        seen.append(observed[0].shape)
        return tf.zeros((*observed[2].shape, deeprx.MAX_BITS))

    with mock.patch.object(deeprx, "_receiver", lambda size: run):
        deeprx.llr(p, np.repeat(pilots, 13, axis=2), pilots, 0.1)
    assert seen == [(1, 4, 14, 273 * 12, 2)] * 3, seen


@check
def a_wider_grant_changes_nothing_beyond_the_convolutions_reach():
    """Two convolutions a block, each as far as its dilation, and a subcarrier that is
    interpolated.
    """
    for size in DEEPRX:
        reach = 1 + sum(2 * sum(dilations) for dilations in DEEPRX[size][1])
        wide, narrow = point(size, 2, num_prb=16), point(size, 2, num_prb=8)
        y, pilots, variance, *_ = received(wide, 2)
        whole = deeprx.llr(wide, y, pilots, variance).reshape(2, 13, 192, 2)
        part = deeprx.llr(narrow, y[..., :96], pilots[..., :96], variance).reshape(2, 13, 96, 2)
        np.testing.assert_allclose(
            whole[:, :, : 96 - reach], part[:, :, :-reach], rtol=1e-3, atol=1e-2
        )
        # the first stage does not look at data
        later = sum(2 * sum(dilations) for dilations in DEEPRX[size][1][1:])
        louder = np.where(np.arange(192) == 96, 2, 1).astype(np.float32)
        # and it does reach as far as that
        for signals, distance in (((y, pilots * louder), reach), ((y * louder, pilots), later)):
            other = deeprx.llr(wide, *signals, variance).reshape(whole.shape)
            changed = np.flatnonzero(np.any(other != whole, axis=(0, 1, 3)))
            assert 96 - changed.min() == changed.max() - 96 == distance, (size, distance, changed)


@check
def the_order_of_the_antennas_does_not_matter():
    p = point("deeprx", 4, 2, num_rx=4)
    y, pilots, variance, *_ = received(p, 4)
    one, other = (
        deeprx.llr(p, a, b, variance) for a, b in ((y, pilots), (y[:, ::-1], pilots[:, ::-1]))
    )
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-2)
    assert not np.allclose(one, deeprx.llr(p, y[:, ::-1], pilots, variance), atol=1.0)


@check
def folded_labels_are_the_nearest_points_and_fold_back():
    for m in (2, 4, 6, 8):
        order = np.eye(4, dtype=np.float32)[m // 2 - 1][None]
        z, noise = gaussian(1, 1, 2000), np.float32(0.3 / 4 ** (m / 2))
        pairs = tf.constant(z.view(np.float32).reshape(1, 1, 2000, 2))
        logits = deeprx.demap(pairs, tf.fill((1, 1, 2000), noise), order).numpy()[..., :m]
        reference = np.clip(
            Demapper("maxlog", "qam", m)(z, noise).numpy().reshape(logits.shape), -40, 40
        )
        assert np.mean((logits > 0) == (reference > 0)) > 0.999
        assert abs(np.median(logits / reference) - 1) < 0.2
        points = constellation(m)
        pairs = tf.constant(points.view(np.float32).reshape(1, 1, -1, 2))
        symbols, certainty = deeprx.soft_symbols(
            deeprx.demap(pairs, tf.fill((1, 1, len(points)), 1e-4), order), order
        )
        np.testing.assert_allclose(symbols.numpy(), pairs.numpy(), atol=1e-5)
        np.testing.assert_allclose(certainty.numpy(), 1, atol=1e-5)


def initially(p, y, pilots, variance, **changes):
    """LLRs of a receiver with initial weights, after the first stage."""
    params = deeprx.initial(p.detector, 0) | changes
    with mock.patch.object(
        deeprx, "_receiver", lambda size: lambda *x: deeprx.network(params, x, size)[0]
    ):
        return deeprx.llr(p, y, pilots, variance)


@check
def with_initial_weights_the_neural_receiver_is_that_of_least_squares():
    """The classical receiver's LLRs, in its order, at the noise that the first stage reckons with:
    to rounding with QPSK and a head that corrects nothing; above, its demapper is exact and ours
    takes the two nearest points.
    """
    for m, num_dmrs, num_prb in ((2, 1, 3), (2, 2, 1), (4, 2, 3), (6, 1, 5), (8, 2, 2)):
        p = point("deeprx", m, num_dmrs, num_prb, speed_mps=3, snr_db=4 + 2 * m)
        y, pilots, variance, h, bits = received(p, 6)
        ls, _ = estimation.estimate(
            pilots,
            [
                estimation.estimator(
                    "ls", p.state, p.scs_khz, num_prb, 0, 1, num_dmrs, variance, 1.0
                )
            ],
        )
        known = np.full((6, 14), variance + np.exp(-3), np.float32)
        reference = detection.receive(y, ls, known, data_symbols(num_dmrs), "mrc", m)
        llr = initially(
            p, y, pilots, variance, **{"0.head.w": np.zeros((DEEPRX["deeprx"][0], 3), np.float32)}
        )
        if m == 2:
            np.testing.assert_allclose(llr, np.clip(reference, -40, 40), rtol=1e-3, atol=1e-3)
        assert np.mean((llr > 0) == (reference > 0)) > 0.997, m
        random = initially(p, y, pilots, variance)
        assert np.mean((random > 0) == (reference > 0)) > 0.99, m
        assert np.mean((random < 0) == bits) > 0.96, m


@check
def pilots_are_read_where_they_are_sent():
    for num_dmrs in (1, 2):
        p = point("deeprx", 4, num_dmrs, 3, snr_db=80, speed_mps=0)
        y, pilots, variance, h, _ = received(p, 5)
        grid, ls, known, free, noise, order = deeprx.observe(y, pilots, variance, 4)
        grid, ls = (v[..., 0] + 1j * v[..., 1] for v in (grid, ls))
        at, data = list(DMRS_SYMBOLS[num_dmrs]), data_symbols(num_dmrs)
        np.testing.assert_array_equal(grid[:, :, data], y)
        np.testing.assert_allclose(grid[:, :, at, ::2], np.sqrt(2) * h[:, :, 0, at, ::2], atol=3e-3)
        np.testing.assert_allclose(grid[:, :, at, 1::2], 0, atol=3e-3)
        np.testing.assert_allclose(
            known, np.where(free, 0, np.tile([np.sqrt(2), 0], 18)), atol=1e-6
        )
        assert (
            np.array_equal(np.unique(np.nonzero(free)[1]), data)
            and free.sum() == 5 * len(data) * 36
        )
        between = (h[:, :, 0, :, :-2:2] + h[:, :, 0, :, 2::2]) / 2  # of a channel that stands still
        np.testing.assert_allclose(ls[..., ::2], h[:, :, 0, :, ::2], atol=3e-3)
        np.testing.assert_allclose(ls[..., 1:-1:2], between, atol=3e-3)
        np.testing.assert_allclose(ls[..., -1], h[:, :, 0, :, -2], atol=3e-3)
        assert np.allclose(noise, variance) and np.array_equal(order, np.tile([0, 1, 0, 0], (5, 1)))


@check
def training_draws_what_the_shipped_networks_were_trained_on():
    """Slots of the twin's chain, mixed in every respect: the held-out loss that the training ended
    with, and well below that of initial weights.
    """
    held_out = [
        train_deeprx.batch(
            np.random.default_rng([0, 1, i]), train_deeprx.HELD_OUT, groups=4, slots_per_group=16
        )
        for i in range(8)
    ]

    def loss(run, observed, bits, sent):
        terms = tf.nn.sigmoid_cross_entropy_with_logits(bits, run(*map(tf.constant, observed)))
        return float(tf.reduce_sum(sent * terms) / tf.reduce_sum(sent))

    for size in DEEPRX:
        with open(deeprx.WEIGHTS / f"{size}.csv") as file:
            recorded = float(file.read().split()[-1].split(",")[-1])
        params = deeprx.initial(size, 0)
        trained = np.array([loss(deeprx._receiver(size), *b) for b in held_out])
        initial = np.array(
            [loss(lambda *x: deeprx.network(params, x, size)[-1], *b) for b in held_out]  # noqa: B023
        )  # noqa: B023
        spread = trained.std(ddof=1) * np.sqrt(
            1 / len(held_out) + 1 / train_deeprx.HELD_OUT_BATCHES
        )
        assert abs(trained.mean() - recorded) < 3 * spread, (size, trained.mean(), recorded, spread)
        assert np.all(trained < initial) and trained.mean() < 0.8 * initial.mean(), (
            size,
            trained.mean(),
            initial.mean(),
        )

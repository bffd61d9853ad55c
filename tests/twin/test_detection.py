"""Linear detection against its formulas in float64, and what its LLRs claim against what
happens.
"""

from dataclasses import replace

import numpy as np
import pytest
from checking import complex_gaussian, exact_llr

from twin import Scenario, Workflow, physical
from twin.chain import link
from twin.chain.detection import receive, transmit
from twin.chain.grid import data_symbols
from twin.chain.precoding import directions
from twin.chain.qam import map_symbols
from twin.physical import ChannelState

ANTENNAS = ((1, 1), (2, 1), (4, 1), (2, 2), (3, 2), (4, 3), (4, 4))


def grid(rng, num_rx, num_layers, num_dmrs=1, num_slots=2, num_sc=24):
    """Independent channels on all elements [S, R, L, 14, F], and the slot's data symbols."""
    return complex_gaussian(rng, num_slots, num_rx, num_layers, 14, num_sc), data_symbols(num_dmrs)


def by_formula(y, g, variance, symbols, method, m):
    """LLRs as `receive`, element by element: estimates of unit gain and the variances of their
    errors.
    """
    num_slots, _, num_symbols, num_sc = y.shape
    num_layers = g.shape[2]
    out = np.empty((num_slots, num_symbols, num_sc, num_layers, m))
    for s, t, f in np.ndindex(num_slots, num_symbols, num_sc):
        h = g[s, :, :, symbols[t], f].astype(complex) / np.sqrt(num_layers)
        noise, received = float(variance[s, symbols[t]]), y[s, :, t, f].astype(complex)
        if method == "mrc":
            w = h.conj().T / np.sum(np.abs(h) ** 2, axis=0)[:, None]
            cross = w @ h
            error = noise * np.sum(np.abs(w) ** 2, axis=1) + np.sum(
                np.abs(cross - np.diag(np.diag(cross))) ** 2, axis=1
            )
        elif method == "zf":
            w = np.linalg.pinv(h)
            error = noise * np.sum(np.abs(w) ** 2, axis=1)
        else:
            w = np.linalg.solve(h.conj().T @ h + noise * np.eye(num_layers), h.conj().T)
            gain = np.real(np.diag(w @ h))
            w, error = w / gain[:, None], (1 - gain) / gain
        out[s, t, f] = exact_llr(w @ received, error, m)
    return out.reshape(num_slots, -1)


@pytest.mark.parametrize("method", ["mrc", "zf", "lmmse"])
@pytest.mark.parametrize("num_rx, num_layers", ANTENNAS)
def test_llrs_are_those_of_the_formula(num_rx, num_layers, method):
    rng = np.random.default_rng(num_rx)
    m, num_dmrs = {1: 8, 2: 4, 3: 2, 4: 6}[num_layers], 1 + num_layers % 2
    g, symbols = grid(rng, num_rx, num_layers, num_dmrs)
    variance = rng.uniform(0.02, 0.5, (2, 14)).astype(np.float32)
    y = complex_gaussian(rng, 2, num_rx, len(symbols), 24)
    ours, reference = (
        receive(y, g, variance, symbols, method, m),
        by_formula(y, g, variance, symbols, method, m),
    )
    ours, reference = np.clip(ours, -30, 30), np.clip(reference, -30, 30)
    # nearly singular channels cost float32 its digits
    off = ~np.isclose(ours, reference, rtol=0.01, atol=0.01)
    assert off.mean() < (2e-3 if num_rx == num_layers > 1 else 1e-9), off.mean()


@pytest.mark.parametrize("num_dmrs", [1, 2])
@pytest.mark.parametrize("num_rx, num_layers", ANTENNAS)
def test_bits_come_out_in_the_order_in_which_they_went_in(num_rx, num_layers, num_dmrs):
    """Layers first, then subcarriers, then symbols: every element has its own channel, so that no
    other order decides right.
    """
    rng = np.random.default_rng(7)
    g, symbols = grid(rng, num_rx, num_layers, num_dmrs)
    bits = rng.integers(0, 2, (2, len(symbols) * 24 * num_layers * 4), dtype=np.uint8)
    x = map_symbols(bits, np.arange(bits.shape[1]), 4)
    noise = complex_gaussian(rng, 2, num_rx, 14, 24)
    y = transmit(g, x, noise, 1e-3, symbols)
    at = x.reshape(2, len(symbols), 24, num_layers)  # as the clause fills them
    expected = (
        np.einsum("srltf,stfl->srtf", g[:, :, :, symbols], at) / np.sqrt(num_layers)
        + 1e-3 * noise[:, :, symbols]
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    variance = np.full((2, 14), 1e-6, np.float32)
    for method in ("zf", "lmmse"):
        assert np.mean((receive(y, g, variance, symbols, method, 4) < 0) != bits) < 2e-3


@pytest.mark.parametrize("estimator", ["perfect", "genie", "ls", "lmmse"])
@pytest.mark.parametrize("bits_per_symbol", [2, 4, 6, 8])
def test_llrs_mean_what_they_say(bits_per_symbol, estimator):
    """A bit of LLR l is wrong with probability 1 / (1 + exp |l|), for receivers that know the
    channel or their error; 0.3 dB of noise that they did not reckon with would show. The robust one
    measures a little too much noise, so it is surer than it says.
    """
    pair = (
        Scenario(
            channel="rayleigh", snr_db=2 + 5 * bits_per_symbol / 2, num_rx_ant=2, num_tx_ant=1
        ),
        Workflow(code="none", bits_per_symbol=bits_per_symbol, estimator=estimator, num_prb=4),
    )
    point, expected, wrong = physical(*pair), 0.0, 0
    for round_ in range(12):
        blocks = link.transport_blocks(point, round_, 32, "native")
        around = link.air(point, 100 + round_, 32, "native")
        (noise,) = link.unit_noise(32, 2, 14, 48, 200 + round_)
        x = link.modulate(blocks.coded, blocks.places[0], bits_per_symbol, "native")
        llr = link.front_end(point, around.channels[0], around.gains, x, noise, "native").astype(
            float
        )
        expected += np.sum(1 / (1 + np.exp(np.abs(llr))))
        wrong += np.count_nonzero((llr < 0) != blocks.bits)
    assert wrong > 3000
    # all bits share an estimate
    low, high = {"perfect": (0.97, 1.03), "lmmse": (0.75, 1.03)}.get(estimator, (0.94, 1.06))
    assert low < wrong / expected < high, wrong / expected


@pytest.mark.parametrize("method", ["mrc", "zf", "lmmse"])
def test_channels_of_next_to_no_power_and_noise_stay_finite(method):
    rng = np.random.default_rng(3)
    g, symbols = grid(rng, 2, 2)
    y = complex_gaussian(rng, 2, 2, len(symbols), 24)
    for scale, noise in ((0.0, 0.1), (1e-12, 0.1), (1.0, 0.0), (0.0, 0.0), (1e6, 1e-9)):
        llr = receive(
            y, (g * scale).astype(np.complex64), np.full((2, 14), noise), symbols, method, 4
        )
        assert np.all(np.isfinite(llr)), (scale, noise)
    g[:, :, 1] = g[:, :, 0]  # two layers in one direction
    assert np.all(np.isfinite(receive(y, g, np.full((2, 14), 0.1), symbols, method, 4)))


def test_with_one_layer_all_linear_detectors_are_maximum_ratio_combining():
    """Why physical() may call them mrc."""
    rng = np.random.default_rng(1)
    g, symbols = grid(rng, 3, 1)
    y, variance = complex_gaussian(rng, 2, 3, len(symbols), 24), np.full((2, 14), 0.1, np.float32)
    one, two, three = (
        receive(y, g, variance, symbols, method, 4) for method in ("mrc", "zf", "lmmse")
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_svd_makes_layers_of_the_strongest_directions():
    """On a flat, still, well known channel: orthogonal layers with the largest singular values."""
    rng = np.random.default_rng(2)
    h = complex_gaussian(rng, 3, 4, 20)  # rx, tx, slots
    beams = directions(np.repeat(h[..., None, None], 6, axis=4), 2, "svd")  # [S, tx, L]
    effective = np.einsum("rts,stl->srl", h, beams)
    singular = np.linalg.svd(h.transpose(2, 0, 1), compute_uv=False)
    gram = np.einsum("sri,srj->sij", effective.conj(), effective)
    np.testing.assert_allclose(np.real(gram[:, [0, 1], [0, 1]]), singular[:, :2] ** 2, rtol=1e-3)
    np.testing.assert_allclose(gram[:, 0, 1], 0, atol=1e-3)
    np.testing.assert_allclose(
        np.einsum("sti,stj->sij", beams.conj(), beams), np.tile(np.eye(2), (20, 1, 1)), atol=1e-5
    )


def test_a_layers_power_is_its_share():
    """What is received of L layers has the power of one, whatever L is and however it is
    precoded.
    """
    for num_layers, precoder in ((1, "none"), (3, "none"), (2, "svd")):
        state = ChannelState("rayleigh", 2, 4 if precoder == "svd" else num_layers)
        w = Workflow(num_layers=num_layers, precoder=precoder, num_prb=2, code="none")
        point = replace(physical(Scenario(num_tx_ant=4, num_rx_ant=4), w), state=state, snr_db=30.0)
        h = link.air(point, 5, 2000, "native").channels[0]
        power = np.sum(np.abs(h[..., 0, 0]) ** 2, axis=2) / num_layers  # [S, R]
        gain = 1.0 if precoder == "none" else None
        spread = power.mean(axis=1).std() / np.sqrt(len(power))
        assert gain is None and power.mean() > 1.5 or abs(power.mean() - 1) < 4 * spread

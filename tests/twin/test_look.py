"""A slot to look at is the one that the twin simulates, and a run to watch ends as the twin's."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import feasible_pairs

from twin import Scenario, Twin, Workflow
from twin.chain.look import equalise, look
from twin.chain.qam import constellation


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(feasible_pairs(num_prb=st.integers(1, 8)), st.integers(0, 99))
def test_a_look_has_the_slots_shape_and_the_modulations_points(pair, seed):
    scenario, workflow = pair
    seen = look(*pair, seed)
    assert seen.gain_db.shape == (14, workflow.num_prb * 12)
    assert (
        seen.sent.shape
        == seen.received.shape
        == (workflow.num_prb * 12 * (14 - workflow.num_dmrs) * workflow.num_layers,)
    )
    assert np.isfinite(seen.gain_db).all() and np.isfinite(seen.received).all()
    distance = np.abs(seen.sent[:, None] - constellation(workflow.bits_per_symbol)).min(1)
    assert distance.max() < 1e-5


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 25.0])
@pytest.mark.parametrize("num_rx", [1, 4])
def test_without_fading_the_error_is_the_noise(snr_db, num_rx):
    """Es / N0 a receive antenna, and 10 log10 of their number more after combining."""
    seen = look(
        Scenario(channel="awgn", snr_db=snr_db, num_tx_ant=1, num_rx_ant=num_rx),
        Workflow(num_prb=40, estimator="perfect"),
    )
    error_db = 10 * np.log10(np.mean(np.abs(seen.received - seen.sent) ** 2))
    assert error_db == pytest.approx(-snr_db - 10 * np.log10(num_rx), abs=0.2)


def test_a_tone_that_fades_in_time_does_so_in_the_look():
    still, fast = (
        look(
            Scenario(channel="tdl-a", speed_mps=speed, carrier_ghz=28.0, num_tx_ant=1),
            Workflow(num_prb=4),
        )
        for speed in (0.0, 100.0)
    )
    assert np.ptp(still.gain_db, axis=0).max() < 1e-3 < 3 < np.ptp(fast.gain_db, axis=0).max()


def test_equalisation_separates_layers_without_noise():
    rng = np.random.default_rng(0)
    g, x = (
        rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        for shape in ((4, 2, 3, 5), (3, 5, 2))
    )
    y = np.einsum("rltf,tfl->rtf", g, x) / np.sqrt(2)
    np.testing.assert_allclose(equalise(y, g, np.full(3, 1e-9)), x.reshape(-1), atol=1e-5)


@pytest.mark.parametrize("method", ["link", "esm"])
def test_a_run_that_is_watched_ends_as_the_twins_answer(method):
    pair = Scenario(snr_db=14.0), Workflow(num_prb=4, bits_per_symbol=4, num_layers=2)
    with Twin(1, seed=3, method=method) as twin:
        seen = list(twin.watch(*pair))
        assert seen[-1] == twin.evaluate([pair])[0]
        blocks = [qos.num_blocks for qos in seen]
        assert len(blocks) > 1 and blocks == sorted(set(blocks))
        assert all(a.block_errors <= b.block_errors for a, b in zip(seen, seen[1:]))
        with pytest.raises(ValueError, match="num_layers"):
            next(twin.watch(Scenario(num_rx_ant=1), pair[1]))

"""One slot to look at: the channel that it meets and the symbols that come out of equalisation."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..physical import physical
from ..spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT, Scenario, Workflow
from ..toolbox import is_neural
from .detection import transmit
from .estimation import knowledge, noise_variance
from .grid import DMRS_SYMBOLS, data_symbols
from .link import air, modulate, seed_of, transport_blocks, unit_noise


class Look(NamedTuple):
    """A slot's first transmission.

    gain_db: [14, F], mean power of the first layer's channel over the receive antennas, by OFDM
      symbol and subcarrier
    sent, received: [n], modulation symbols of unit energy of all layers, before the channel and
      after equalisation
    """

    gain_db: np.ndarray
    sent: np.ndarray
    received: np.ndarray


def look(scenario: Scenario, workflow: Workflow, seed: int = 0) -> Look:
    """The first slot that `Twin.evaluate` simulates for this pair and seed.

    Layers are separated by linear MMSE with the channel as the workflow's estimator takes it,
    whatever detects them: a detector that weighs points, or a network, has no equalised symbols. A
    neural receiver's channel is as `ls` estimates it.

    Raises:
      WorkflowError: the scenario cannot run the workflow.
    """
    point = physical(scenario, workflow)
    backend, num_slots = "native", point.slots_per_round
    channel_seed = seed_of(seed, "channel", point.state, point.num_prb, point.scs_khz, 0)
    blocks = transport_blocks(point, seed_of(seed, "bits", point.workflow, 0), num_slots, backend)
    around = air(point, channel_seed, num_slots, backend)
    num_sc = point.num_prb * SUBCARRIERS_PER_PRB
    (noise,) = unit_noise(
        num_slots, point.state.num_rx, SYMBOLS_PER_SLOT, num_sc, seed_of(channel_seed, "noise", 0)
    )
    h, noise, symbols = around.channels[0][:1], noise[:1], data_symbols(point.num_dmrs)
    x = modulate(blocks.coded[:1], blocks.places[0], point.bits_per_symbol, backend)
    y = transmit(h, x, noise, np.sqrt(noise_variance(point, around.gains)), symbols)
    estimated = replace(point, estimator="ls") if is_neural(point.detector) else point
    g, known = knowledge(
        estimated, h, around.gains, noise[:, :, list(DMRS_SYMBOLS[point.num_dmrs])]
    )
    received = equalise(y[0], g[0][:, :, symbols], known[0][symbols])
    gain_db = 10 * np.log10(np.mean(np.abs(h[0, :, 0]) ** 2, axis=0) + 1e-12)
    return Look(gain_db, x[0], received)


def equalise(y: np.ndarray, g: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Unbiased linear MMSE: received y [R, T, F] over channels g [R, L, T, F] of layers that share
    the power, noise of `variance` [T], to symbols [T F L] of unit energy.
    """
    num_layers = g.shape[1]
    G = np.moveaxis(g, (2, 3), (0, 1)).astype(np.complex128) / np.sqrt(num_layers)  # [T, F, R, L]
    H = np.conj(np.swapaxes(G, -1, -2))
    noise = np.maximum(variance, 1e-9)[:, None, None, None] * np.eye(num_layers)
    W = np.linalg.solve(H @ G + noise, H)  # [T, F, L, R]
    bias = np.real(np.einsum("tflr,tfrl->tfl", W, G))
    return (np.einsum("tflr,rtf->tfl", W, y) / np.maximum(bias, 1e-9)).reshape(-1)

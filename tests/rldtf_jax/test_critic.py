"""Fitting the critic to rewards at hand."""

import numpy as np
from flax import nnx
from tiny_training import critic, pairs

from rldtf_jax import critic as fitting
from rldtf_jax.config import OptimConfig, SFTConfig
from rldtf_jax.metrics import read
from rldtf_jax.sft import Sequences

ROWS = Sequences.of(pairs())
LAST = ROWS.tokens[np.arange(len(ROWS.tokens)), ROWS.prompt_lengths - 1]
REWARDS = ((LAST - 3.5) / 1.5).astype(np.float32)  # a prompt's last token, 2 to 5, is worth -1 to 1
T = int((ROWS.lengths - ROWS.prompt_lengths).max())


def test_the_loss_is_eq_7_summed_token_by_token():
    model = critic()
    values = np.asarray(model(ROWS.tokens, ROWS.lengths))
    by_hand = [
        sum((R - values[b, p - 1 + t]) ** 2 for t in range(n - p))
        for b, (R, p, n) in enumerate(zip(REWARDS, ROWS.prompt_lengths, ROWS.lengths))
    ]
    np.testing.assert_allclose(
        fitting.critic_loss(model, fitting.Rewarded(*ROWS, REWARDS), T), np.mean(by_hand), rtol=1e-5
    )


def test_a_fitted_critic_tells_good_sequences_from_bad_ones(tmp_path):
    config = SFTConfig(
        steps=60, batch_size=10, save_every=60, optim=OptimConfig(lr=1e-2, warmup_steps=2)
    )
    before = critic()
    kept = [np.asarray(x) for x in nnx.to_flat_state(nnx.state(before)).leaves]
    after = fitting.train(
        before, fitting.Rewarded(*ROWS, REWARDS), config, seed=0, directory=str(tmp_path), boards=()
    )
    losses = [row["loss"] for row in read(str(tmp_path))]
    assert len(losses) == 60 and losses[-1] < 0.2 * losses[0]
    first = np.asarray(after(ROWS.tokens, ROWS.lengths))[
        np.arange(len(REWARDS)), ROWS.prompt_lengths - 1
    ]
    assert np.corrcoef(first, REWARDS)[0, 1] > 0.95
    for old, now in zip(kept, nnx.to_flat_state(nnx.state(before)).leaves):
        np.testing.assert_array_equal(old, now)  # the caller's model stays as it was

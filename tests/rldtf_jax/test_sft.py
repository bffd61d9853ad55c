"""Next-token training: which tokens it learns from, in which order, and that it goes on where it
was.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain_equations as plain
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from resuming import assert_killed_and_resumed_equals_never_killed, moments
from tiny_training import EOS, SFT, pairs, policy

from rldtf_jax import optim, sft
from rldtf_jax.loop import Diverged
from rldtf_jax.metrics import read

SEQUENCES = sft.Sequences.of(pairs())
LONGEST = int((SEQUENCES.lengths - SEQUENCES.prompt_lengths).max())
MODEL = policy()
VALUE_AND_GRAD = jax.jit(
    jax.value_and_grad(
        lambda params, batch, n: sft.sft_loss(nnx.merge(nnx.graphdef(MODEL), params), batch, n)
    ),
    static_argnums=2,
)


def loss_and_gradient(batch, num_tokens=LONGEST):
    return jax.device_get(VALUE_AND_GRAD(nnx.state(MODEL), batch, num_tokens))


def test_sequences_are_prompt_then_response_then_padding():
    sequences = sft.Sequences.of([([3, 4], [5, EOS]), ([2], [6, 7, 8, EOS])], multiple=4)
    np.testing.assert_array_equal(
        sequences.tokens, [[3, 4, 5, EOS, 0, 0, 0, 0], [2, 6, 7, 8, EOS, 0, 0, 0]]
    )
    np.testing.assert_array_equal(sequences.prompt_lengths, [2, 1])
    np.testing.assert_array_equal(sequences.lengths, [4, 5])
    with pytest.raises(ValueError, match="no .* pairs"):
        sft.Sequences.of([])


def test_the_loss_is_the_mean_surprise_of_the_response_tokens():
    logits = np.asarray(MODEL(SEQUENCES.tokens, SEQUENCES.lengths))
    surprise = [
        -np.log(plain.softmax(logits[b, t - 1].tolist())[token])
        for b, (prompt, response) in enumerate(pairs())
        for t, token in enumerate(response, len(prompt))
    ]
    np.testing.assert_allclose(loss_and_gradient(SEQUENCES)[0], np.mean(surprise), rtol=1e-5)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_padding_changes_neither_loss_nor_gradient(seed):
    behind = np.arange(SEQUENCES.tokens.shape[1]) >= SEQUENCES.lengths[:, None]
    garbage = np.random.default_rng(seed).integers(-3, 99, behind.shape)
    dirty = SEQUENCES._replace(tokens=np.where(behind, garbage, SEQUENCES.tokens).astype(np.int32))
    for ours, expected in zip(
        jax.tree.leaves(loss_and_gradient(dirty)), jax.tree.leaves(loss_and_gradient(SEQUENCES))
    ):
        np.testing.assert_array_equal(ours, expected)


def test_room_for_longer_responses_changes_nothing():
    for ours, expected in zip(
        *(jax.tree.leaves(loss_and_gradient(SEQUENCES, n)) for n in (LONGEST + 3, LONGEST))
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_padding_id_inside_the_response_counts_like_any_token():  # TRAPS 4
    with_zeros = sft.Sequences.of([([3, 4], [0, 5, 0]), ([2], [0])])
    tokens, mask = sft.response_tokens(
        with_zeros.tokens, with_zeros.prompt_lengths, with_zeros.lengths, 4
    )
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(tokens[0, :3], [0, 5, 0])
    logits = np.asarray(MODEL(with_zeros.tokens, with_zeros.lengths))
    expected = -np.mean(
        [
            np.log(plain.softmax(logits[b, t].tolist())[token])
            for b, t, token in ((0, 1, 0), (0, 2, 5), (0, 3, 0), (1, 0, 0))
        ]
    )
    np.testing.assert_allclose(loss_and_gradient(with_zeros, 3)[0], expected, rtol=1e-5)


def test_the_state_that_predicts_a_token_ends_before_it():  # TRAPS 5
    position_Bx8x1 = np.broadcast_to(np.arange(8.0)[:, None], (2, 8, 1))
    states = sft.response_states(jnp.asarray(position_Bx8x1), np.array([1, 4]), 3)[..., 0]
    np.testing.assert_array_equal(states, [[0, 1, 2], [3, 4, 5]])


@given(st.integers(0, 99), st.integers(1, 7), st.integers(1, 11))
def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(seed, batch_size, num_rows):
    steps = 3 * num_rows
    order = np.concatenate(
        [sft.batch_rows(seed, step, batch_size, num_rows) for step in range(steps)]
    )
    epochs = order[: len(order) // num_rows * num_rows].reshape(-1, num_rows)
    np.testing.assert_array_equal(
        np.sort(epochs), np.broadcast_to(np.arange(num_rows), epochs.shape)
    )
    if num_rows > 7:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_training_learns_and_leaves_the_callers_model_alone(tmp_path):
    before = jax.device_get(nnx.state(MODEL))
    trained = sft.train(
        MODEL,
        SEQUENCES,
        dataclasses.replace(SFT, steps=30),
        seed=0,
        directory=str(tmp_path),
        boards=(),
    )
    loss = [row["loss"] for row in read(str(tmp_path))]
    assert np.mean(loss[-5:]) < 0.5 * np.mean(loss[:5])
    assert float(sft.sft_loss(trained, SEQUENCES, LONGEST)) < 0.5 * loss_and_gradient(SEQUENCES)[0]
    for now, then in zip(jax.tree.leaves(nnx.state(MODEL)), jax.tree.leaves(before)):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("save_every, stops_after", [(1, 3), (5, 4)])
def test_three_steps_that_are_not_finite_stop_the_run_with_its_state_kept(
    tmp_path, save_every, stops_after
):
    broken = policy()
    broken.norm[...] = broken.norm[...] * jnp.nan
    config = dataclasses.replace(SFT, save_every=save_every)
    for start in (0, stops_after):  # asked again, it goes on from there and stops again
        with pytest.raises(Diverged, match="updates in a row were not finite"):
            sft.train(broken, SEQUENCES, config, seed=0, directory=str(tmp_path), boards=())
        rows = read(str(tmp_path))
        assert len(rows) > start and all(row["loss"] is None for row in rows)
        if not start:
            assert len(rows) == stops_after
    assert [row["skipped_in_a_row"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_run_whose_last_steps_are_not_finite_does_not_end_well(tmp_path):
    broken = policy()
    broken.norm[...] = broken.norm[...] * jnp.nan
    with pytest.raises(Diverged):
        sft.train(
            broken,
            SEQUENCES,
            dataclasses.replace(SFT, steps=3, save_every=10),
            seed=0,
            directory=str(tmp_path),
            boards=(),
        )


def test_a_schedule_compiles_nothing_after_the_first_step(compilations):
    graphdef, params = nnx.split(policy())
    state = sft.SFTState(params, optim.init(params), jnp.zeros((), jnp.int32))
    batch = jax.tree.map(lambda x: x[:4], SEQUENCES)
    state, _ = sft.sft_update(graphdef, LONGEST, state, batch, optim.hyper(SFT.optim, 0, 8))
    with compilations() as compiled:
        for step in range(1, 4):
            state, _ = sft.sft_update(
                graphdef, LONGEST, state, batch, optim.hyper(SFT.optim, step, 8)
            )
    assert compiled == []


def test_killed_at_any_moment_and_resumed_it_ends_as_a_run_never_killed(tmp_path):  # TRAPS 26
    assert_killed_and_resumed_equals_never_killed(
        "sft", tmp_path, tmp_path / "programs", moments(1, 2, 5)
    )

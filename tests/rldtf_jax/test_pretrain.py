"""Packing, its mask and its loss against documents that stand alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rldtf_jax import pretrain
from rldtf_jax.config import OptimConfig, SFTConfig
from rldtf_jax.logprob import log_prob
from rldtf_jax.qwen2 import Qwen2, Qwen2Config

DOCUMENTS = st.lists(st.lists(st.integers(1, 63), min_size=1, max_size=12), min_size=1, max_size=12)


def tiny_model(**options):
    shape = Qwen2Config(64, 32, 48, 2, 4, 2, rope_theta=1e4, **options)
    return Qwen2(shape, rngs=nnx.Rngs(0))


@given(DOCUMENTS, st.integers(2, 9), st.integers(1, 8))
def test_rows_are_the_documents_one_after_the_other(documents, width, rows):
    packed = pretrain.pack(documents, width, rows)
    stream = [token for document in documents for token in document]
    count = min(rows, len(stream) // width)
    assert packed.tokens.shape == packed.documents.shape == (count, width)
    assert packed.tokens.ravel().tolist() == stream[: count * width]
    owners = [i for i, document in enumerate(documents) for _ in document]
    assert packed.documents.ravel().tolist() == owners[: count * width]


@settings(max_examples=10)
@given(DOCUMENTS)
def test_no_token_is_predicted_from_another_document(documents):
    packed = pretrain.pack([[*document, 0] for document in documents], 8, 4)
    mask = np.asarray(pretrain.predicted(packed.documents))
    for row in range(len(packed.tokens)):
        for t in np.flatnonzero(mask[row]):
            assert packed.documents[row, t] == packed.documents[row, t + 1]
            assert packed.tokens[row, t] != 0  # behind the end of a document nothing is predicted


@pytest.mark.parametrize("attention", ["dot", "xla"])
def test_a_packed_document_is_read_as_if_it_stood_alone(attention):
    model = tiny_model(attention=attention)
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 64, n).tolist() for n in (5, 9, 2, 8)]
    packed = pretrain.pack(documents, sum(map(len, documents)), 1)
    logp = np.asarray(pretrain.next_token_logp(model, packed))[0]
    start = 0
    for document in documents:
        alone = jnp.array([document])
        expected = log_prob(model(alone)[:, :-1], alone[:, 1:])[0]
        np.testing.assert_allclose(
            logp[start : start + len(document) - 1], expected, rtol=2e-5, atol=2e-5
        )
        start += len(document)


def test_what_stands_before_a_document_changes_nothing_in_it():
    model = tiny_model()
    rng = np.random.default_rng(1)
    document, one, other = (rng.integers(1, 64, 8).tolist() for _ in range(3))
    first, second = (
        pretrain.next_token_logp(model, pretrain.pack([before, document], 16, 1))[0, 8:]
        for before in (one, other)
    )
    np.testing.assert_array_equal(first, second)
    unmasked = model(jnp.array([one + document]))[0, 8:-1]
    masked = model(jnp.array([one + document]), None, jnp.array([[0] * 8 + [1] * 8]))[0, 8:-1]
    assert np.abs(unmasked - masked).max() > 1e-3  # the mask does something


def test_training_lowers_the_perplexity_of_what_it_reads(tmp_path):
    model = tiny_model()
    rng = np.random.default_rng(2)
    documents = [(np.arange(10) * step % 63 + 1).tolist() + [0] for step in rng.integers(1, 5, 99)]
    rows = pretrain.pack(documents, 32, 24)
    config = SFTConfig(
        steps=30, batch_size=8, save_every=30, optim=OptimConfig(lr=3e-3, warmup_steps=3)
    )
    before = pretrain.perplexity(model, rows, 7)
    assert before == pytest.approx(pretrain.perplexity(model, rows, 24), rel=1e-5)
    assert before == pytest.approx(np.exp(float(pretrain.packed_loss(model, rows, 0))), rel=1e-5)
    params = nnx.state(model)
    trained = pretrain.train(model, rows, config, seed=0, directory=str(tmp_path), boards=())
    assert pretrain.perplexity(trained, rows, 24) < 0.5 * before
    assert pretrain.perplexity(nnx.merge(nnx.graphdef(model), params), rows, 7) == before

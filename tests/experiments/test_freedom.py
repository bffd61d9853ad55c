"""Where a policy is free: shares that add up, of known probabilities and of a model that ships."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import load
from experiments.stages.instruct import instruct
from experiments.stages.run import opened
from experiments.studies.freedom import main, measured, shares


def test_known_probabilities_give_known_shares():
    p = np.array([[0.5, 1.0, 0.9, 0.6], [1.0, 0.2, 1.0, 0.1]])
    counts = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    read = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool)
    think = np.array([[0, 0, 1, 1], [1, 0, 0, 0]], bool)
    found = shares(np.log(p), counts, read, think)
    assert found["tokens read"] == pytest.approx(3 / 7)
    assert found["free on read"] == pytest.approx((0.5 + 0.4 + 0.8) / 1.8)
    assert found["free on think"] == pytest.approx(0.1 / 1.8)
    assert found["free on words"] == pytest.approx(0.0)


@given(st.integers(0, 999))
def test_shares_add_up_to_one(seed):
    rng = np.random.default_rng(seed)
    read, think, counts = rng.random((3, 4, 6)) < 0.6
    counts[0, 0] = True
    found = shares(np.log(rng.uniform(0.01, 0.99, (4, 6))), counts, read, think)
    assert sum(found[f"free on {part}"] for part in ("read", "think", "words")) == pytest.approx(1)
    assert 0 <= found["tokens read"] <= 1


def test_after_phase_1_nearly_all_freedom_is_on_values_that_are_read(tmp_path, capsys):
    config = load(
        ["preset=smoke", "model=instructed", "instruct.sft=null", f"run_dir={tmp_path / 'run'}"]
    )
    with opened(config, start_twin=False) as run:
        instruct(run)
        found = measured(run, "instruct")
    assert found["tokens read"] < 0.25 and found["free on read"] > 0.8
    main([config.run_dir])
    out = capsys.readouterr().out.splitlines()
    assert out[2] == f"| phase 1 (instruct) | {' | '.join(f'{x:.3f}' for x in found.values())} |"

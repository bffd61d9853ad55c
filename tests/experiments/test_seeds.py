"""The comparison over seeds: paired, with intervals that widen with the seeds' spread, and one line
for what cannot be compared.
"""

import json

import numpy as np
import pytest

from experiments.stages.evaluate import METHODS
from experiments.studies import seeds
from rldtf_jax.config import ConfigError

N = 200


def write(path, seed, spread=0.0, **changes):
    """A finished run: RLDTF earns 0.2 more than its rejection model on every task, and spread by
    seed more or less.
    """
    rng = np.random.default_rng(0)  # tasks are the same in all runs
    base = rng.uniform(-0.5, 0.8, N)
    rewards = {
        "instruct": base - 0.1,
        "reject": base,
        "rldtf": base + 0.2 + spread * (-1) ** seed,
        "sturdiest": base[::-1],
    }

    def part():
        return {
            "num_tasks": N,
            "temperature": 0.0,
            "by_task": {
                name: {"reward": R.tolist(), "fulfilled": (R > 0).astype(int).tolist()}
                for name, R in rewards.items()
            },
        } | changes

    path.mkdir()
    (path / "evaluation.json").write_text(json.dumps(part() | {"elsewhere": {"new-links": part()}}))
    return str(path)


def test_gains_are_paired_and_pooled(tmp_path):
    result = seeds.compare([seeds.load(write(tmp_path / f"{s}", s)) for s in range(3)])
    assert list(result) == ["test", "new-links", "test + new-links"]
    for rows in result.values():
        # paired: no spread over tasks
        assert rows["reject"]["gain"]["reward"] == pytest.approx([0.2] * 3, abs=1e-6)
        mean, low, high = rows["rldtf"]["reward"]
        assert low < mean < high and rows["rldtf"]["gain"]["reward"] == [0, 0, 0]
        mean, low, high = rows["sturdiest"]["gain"]["reward"]
        assert mean == pytest.approx(0.2, abs=1e-6) and high - low > 0.05
    assert np.diff(result["test + new-links"]["sturdiest"]["gain"]["reward"][1:]) < np.diff(
        result["test"]["sturdiest"]["gain"]["reward"][1:]
    )


def test_seeds_that_lie_apart_widen_the_interval(tmp_path):
    result = seeds.compare([seeds.load(write(tmp_path / f"{s}", s, spread=0.15)) for s in range(4)])
    mean, low, high = result["test"]["reject"]["gain"]["reward"]
    assert mean == pytest.approx(0.2, abs=1e-6) and high - low > 0.15


def test_the_table_has_a_row_for_every_method_of_every_split(tmp_path):
    lines = seeds.table(
        seeds.compare([seeds.load(write(tmp_path / f"{s}", s)) for s in range(2)])
    ).splitlines()
    for name in ("instruct", "reject", "rldtf", "sturdiest"):
        assert sum(line.startswith(f"| {METHODS[name]} |") for line in lines) == 3


def test_what_cannot_be_compared_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such file; expected a run"):
        seeds.load(str(tmp_path))
    runs = [
        seeds.load(write(tmp_path / "a", 0)),
        seeds.load(write(tmp_path / "b", 1, temperature=1.0)),
    ]
    with pytest.raises(ConfigError, match="evaluated differently"):
        seeds.compare(runs)
    old = tmp_path / "old"
    old.mkdir()
    (old / "evaluation.json").write_text(json.dumps({"num_tasks": 1, "elsewhere": {}}))
    with pytest.raises(ConfigError, match="no by_task"):
        seeds.load(str(old))

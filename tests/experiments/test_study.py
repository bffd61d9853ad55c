"""The study: who chooses does not report, gains are paired, and the command goes on where it
was.
"""

import json
import os
import shutil

import numpy as np
import pytest

from experiments.studies import study
from rldtf_jax.config import ConfigError

N = 60
BASE = np.random.default_rng(0).uniform(-0.5, 0.7, N)


def an_outcome(R, validation=0.0, diverged=False):
    """What `ablate` leaves of an arm that earns R on the tasks of test."""
    splits = {
        "test": {"task_reward": list(R)},
        "new-links": {"task_reward": list(R[:20])},
        "validation": {"task_reward": [validation] * 5},
    }
    return {"cost": COST} | (
        {"diverged": True} if diverged else {"diverged": False, **splits, "greedy": splits}
    )


COST = {"seconds": 60.0, "simulated": 500.0}
PLAN = study.StudyConfig(
    (), (0,), (1, 2, 3), "none", {"none": {"alpha": 0.0}, "a": {"alpha": 1.0}, "b": {"alpha": 2.0}}
)
WITHOUT = {
    split: {
        "sturdiest": BASE[:n].tolist(),
        "rule": (BASE[:n] - 0.1).tolist(),
        "oracle": (BASE[:n] + 0.5).tolist(),
    }
    for split, n in (("test", N), ("new-links", 20))
}


def outcomes(**changes):
    """Arm a gains 0.05 a task and 0.01 by seed; b gains 0.3 at the seed that chooses alone."""
    return {
        seed: (
            {
                "none": an_outcome(BASE + 0.02),
                "a": an_outcome(BASE + 0.07 + 0.01 * seed, validation=0.5),
                "b": an_outcome(BASE + 0.3 * (seed == 0), validation=0.8 * (seed == 0)),
            }
            | changes.get(f"seed{seed}", {})
        )
        for seed in range(4)
    }


def test_gains_are_paired_and_of_the_seeds_that_report():
    found = study.findings(PLAN, outcomes(), WITHOUT)
    assert found["chosen"] == "b" and found["validation"] == {"a": 0.5, "b": 0.8}
    assert list(found["splits"]) == ["all splits", "test", "new-links", "test + new-links"]
    for part in found["splits"].values():
        assert part["best_baseline"] == "sturdiest"  # the oracle asks the twin
        a, b = (part["arms"][name]["greedy"] for name in "ab")
        np.testing.assert_allclose(a["on_control"]["by_seed"], [0.06, 0.07, 0.08], atol=1e-9)
        np.testing.assert_allclose(a["on_best_baseline"]["reward"][0], 0.09, atol=1e-9)
        assert (
            0.05
            < a["on_control"]["reward"][1]
            < a["on_control"]["reward"][0]
            < a["on_control"]["reward"][2]
            < 0.09
        )
        assert a["on_control"]["p_seeds"] < 0.01
        np.testing.assert_allclose(b["on_control"]["reward"], [-0.02] * 3, atol=1e-9)
        assert "on_control" not in part["arms"]["none"]["greedy"]


def test_an_arm_that_diverged_reports_nothing():
    found = study.findings(PLAN, outcomes(seed2={"a": an_outcome(BASE, diverged=True)}), WITHOUT)
    assert list(found["splits"]["test"]["arms"]) == ["none", "b"] and found["cost"]["a"] == COST


def test_the_table_has_a_row_for_every_arm_and_baseline_at_both_temperatures():
    lines = study.table("x", PLAN, study.findings(PLAN, outcomes(), WITHOUT)).splitlines()
    assert sum(line.startswith("| sturdiest mode |") for line in lines) == 4 * 2
    assert sum(line.startswith("| a |") for line in lines) == 4 * 2 + 1
    assert any(line.startswith("| a | ") and "| +0.070 [" in line for line in lines)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"report": [0, 1]}, "expected other seeds than those that choose, 0 does both"),
        ({"report": []}, "report = []: expected at least one seed"),
        ({"control": "nothing"}, "control = 'nothing': expected one of the arms, none, a"),
        ({"arms": {"none": {}, "a/b": {}}}, "'a/b': expected a name of letters"),
        ({"arms": {"none": {}, "a": {"alhpa": 1}}}, "rldtf.alhpa: no such key"),
        (
            {"arms": {"none": {}, "a": {"weight_by": "magic"}}},
            "rldtf.weight_by = 'magic': expected one of",
        ),
        (
            {"arms": {"none": {}, "a": {"aggregation": "token-mean"}}},
            "aggregation = 'token-mean' in one arm and 'sum' in another",
        ),
        ({"seeds": 3}, "seeds: no such key"),
    ],
)
def test_a_wrong_study_is_one_line(changes, words, studies, tmp_path):
    studies(
        {
            "config": ["preset=smoke"],
            "choose": [0],
            "report": [1],
            "control": "none",
            "arms": {"none": {}, "a": {"alpha": 2.0}},
        }
        | changes
    )
    with pytest.raises(ConfigError) as error:
        study.run("mine", str(tmp_path / "run"), [])
    assert (
        words in str(error.value)
        and "\n" not in str(error.value)
        and not (tmp_path / "run").exists()
    )


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """Writes configs/study/mine.yaml, elsewhere."""
    monkeypatch.setattr(study, "STUDIES", str(tmp_path / "study"))

    def write(config):
        (tmp_path / "study").mkdir()
        (tmp_path / "study" / "mine.yaml").write_text(json.dumps(config))

    return write


def test_an_unknown_study_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        study.main(["magic"])
    assert (
        exit.value.code == 2
        and "'magic': expected the name of a study, pilot or weights" in capsys.readouterr().err
    )


def test_the_studies_that_come_with_the_project_can_be_read(tmp_path):
    for name in ("pilot", "weights"):
        plan, seeds = study.load(name, str(tmp_path), [])
        assert set(seeds) == {*plan.choose, *plan.report} and all(
            config.seed == seed for seed, config in seeds.items()
        )


def test_a_study_from_a_run_to_its_report_and_nothing_twice(
    finished, studies, tmp_path, monkeypatch
):
    shutil.copytree(
        finished[0], tmp_path / "run" / "seed0", ignore=shutil.ignore_patterns("rldtf", "sweeps")
    )
    studies(
        {
            "config": ["preset=smoke", "rldtf.steps=2", "tensorboard=false"],
            "choose": [],
            "report": [0],
            "control": "none",
            "arms": {"none": {"alpha": 0.0}, "grammar": {"weight_by": "grammar", "alpha": 4.0}},
        }
    )
    report = study.run("mine", str(tmp_path / "run"), [])
    arms = tmp_path / "run" / "seed0" / "sweeps" / "study" / "arms"
    assert sorted(os.listdir(arms)) == ["grammar", "none"] and "| grammar |" in report
    weights = [
        (arms / name / "model" / "model.safetensors").read_bytes() for name in ("grammar", "none")
    ]
    assert weights[0] != weights[1]
    monkeypatch.setattr(study.ablate, "train_round", None)
    assert (
        study.run("mine", str(tmp_path / "run"), [])
        == report
        == (tmp_path / "run" / "study.md").read_text()
    )

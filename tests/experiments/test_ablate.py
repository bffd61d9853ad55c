"""Sweeps as a user types them: killed, gone on with, widened; every arm what it is alone."""

import csv
import json
import os
import signal

import numpy as np
import pyarrow.parquet
import pytest
from running import finish, start, wait_for
from safetensors.numpy import load_file

from experiments.statistics import nested_interval
from experiments.studies import ablate, ablate_report
from experiments.studies.grid import SweepConfig, arm_path, cells
from rldtf_jax import arms as training
from rldtf_jax.arms import Plan
from rldtf_jax.config import ConfigError

SMOKE = ("preset=smoke", "rldtf.steps=6")
AXES = ("alpha=0,4", "threshold=0.05,1")
ALPHAS = (0.0, 0.5, 1.0, 2.0, 4.0)
NAMES = ("alpha=0,seed=0", "alpha=4,threshold=0.05,seed=0", "alpha=4,threshold=1,seed=0")


def sweep(run_dir, *arguments, **kwargs):
    return finish(
        *SMOKE, f"run_dir={run_dir}", *arguments, module="experiments.studies.ablate", **kwargs
    )


@pytest.fixture(scope="module")
def swept(finished):
    """A sweep of three arms on the smoke run, killed after two of six steps and gone on with."""
    run_dir = finished[0]
    process = start(*SMOKE, f"run_dir={run_dir}", *AXES, module="experiments.studies.ablate")
    rounds = os.path.join(run_dir, "sweeps", "ablate", "rounds")
    wait_for(rounds, process)
    wait_for(os.path.join(rounds, os.listdir(rounds)[0], "checkpoints", "2"), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, out, err = sweep(run_dir, *AXES)
    assert code == 0, err
    return run_dir, out


def arm(run_dir, name, *parts):
    return os.path.join(run_dir, "sweeps", "ablate", "arms", name, *parts)


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_an_arm_is_to_the_bit_what_the_pipeline_trains(swept):
    run_dir, _ = swept
    alone = load_file(os.path.join(run_dir, "rldtf", "model", "model.safetensors"))
    mine, other = (
        load_file(arm(run_dir, name, "model", "model.safetensors")) for name in NAMES[1:]
    )
    for name, array in alone.items():
        np.testing.assert_array_equal(mine[name], array)
    assert any((other[name] != array).any() for name, array in alone.items())
    expected = rows_of(os.path.join(run_dir, "rldtf", "metrics.jsonl"))
    for mine, alone in zip(rows_of(arm(run_dir, NAMES[1], "metrics.jsonl")), expected, strict=True):
        # a sweep is judged at its end
        assert mine == {
            name: value for name, value in alone.items() if not name.startswith("validation/")
        }
    with open(os.path.join(run_dir, "evaluation.json"), encoding="utf-8") as file:
        stage = json.load(file)["methods"]["rldtf"]
    with open(arm(run_dir, NAMES[1], "evaluation.json"), encoding="utf-8") as file:
        result = json.load(file)["test"]
    assert {name: result[name] for name in ("fulfilment", "reward")} == {
        name: stage[name] for name in ("fulfilment", "reward")
    }


def test_the_report_has_its_tables_and_figures(swept):
    run_dir, out = swept
    directory = os.path.join(run_dir, "sweeps", "ablate")
    assert out.splitlines()[-1] == f"report: {directory}/report.html"
    with open(os.path.join(directory, "arms.csv"), encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["arm"] for row in table] == list(NAMES)
    assert pyarrow.parquet.read_table(os.path.join(directory, "arms.parquet")).num_rows == 3
    assert pyarrow.parquet.read_table(os.path.join(directory, "curves.parquet")).num_rows == 18
    for name in ("heat", "curves"):
        with open(os.path.join(directory, "figures", f"{name}.pdf"), "rb") as file:
            assert file.read(5) == b"%PDF-"
    with open(os.path.join(directory, "report.html"), encoding="utf-8") as file:
        page = file.read()
    assert "minus alpha = 0" in page or "best by reward on the validation tasks: alpha = 0" in page
    assert page.count("data:image/png") == 2 and all(name in page for name in NAMES)


def test_arms_that_are_done_are_not_repeated_and_new_ones_go_to_ray(swept):
    """One more seed of one arm, as Ray tasks; the sweep's other arms stay as they are."""
    run_dir, _ = swept
    before = {name: os.stat(arm(run_dir, name, "evaluation.json")).st_mtime_ns for name in NAMES}
    code, out, err = sweep(run_dir, "alpha=4", "threshold=0.05", "seeds=2", "ray=local")
    assert code == 0, err
    assert {
        name: os.stat(arm(run_dir, name, "evaluation.json")).st_mtime_ns for name in NAMES
    } == before
    one, other = (
        rows_of(arm(run_dir, f"alpha=4,threshold=0.05,seed={seed}", "metrics.jsonl"))
        for seed in (0, 1)
    )
    assert len(other) == 6 and one != other


def test_a_hydra_job_is_an_arm(swept):
    """With a twin cache of its own; and it is all that the job trains."""
    run_dir, _ = swept
    before = set(os.listdir(os.path.join(run_dir, "sweeps", "ablate", "arms")))
    keys = [f"+{key}" for key in (*SMOKE, f"run_dir={run_dir}", "first_seed=7", "alpha=2")]
    code, _, err = finish(
        *keys, f"hydra.run.dir={run_dir}/hydra", module="experiments.studies.multirun"
    )
    assert code == 0, err
    assert set(os.listdir(os.path.join(run_dir, "sweeps", "ablate", "arms"))) - before == {
        "alpha=2,seed=7"
    }
    with open(arm(run_dir, "alpha=2,seed=7", "evaluation.json"), encoding="utf-8") as file:
        assert json.load(file)["cost"]["arms_together"] == 1
    code, _, err = finish(
        *keys,
        f"hydra.run.dir={run_dir}/hydra",
        "+translator=model",
        module="experiments.studies.multirun",
    )
    assert code != 0 and "expected 'grammar' or 'tolerant' in a sweep" in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("alpha=1,two",), "alpha = 1,two: expected numbers separated by commas"),
        (("adaptive_kl=null,0.1",), "adaptive_kl = null,0.1: expected numbers separated by commas"),
        (("alpha=1,1.00000001",), "alpha=1,seed=0: two values of an axis read the same"),
        (("alpha=-1,1",), "rldtf.alpha = -1.0: expected a number >= 0"),
        (
            ("rldtf.aggregation=sum,token-mean",),
            "rldtf.aggregation = sum,token-mean: this cannot be swept in one program",
        ),
        (("alpha=0,1", "seeds=0"), "seeds = 0: expected an integer >= 1"),
        (("alpha=0,1", "alhpa=2"), "alhpa: no such key"),
        (("weight_by=grammar,magic",), "rldtf.weight_by = 'magic': expected one of"),
        ((), "expected at least one axis"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit:
        ablate.main([f"run_dir={tmp_path}/run", *arguments])
    assert exit.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1] and not os.path.exists(
        f"{tmp_path}/run"
    )


def test_an_arm_of_another_config_is_refused_and_nothing_is_touched(tmp_path):
    config = SweepConfig(run_dir=str(tmp_path))
    grid = cells(config, {"alpha": (0.0, 1.0)})
    plan = lambda number: Plan(2, 1, None, 0)  # noqa: E731
    first = ablate.rounds(config, grid, plan)
    other = cells(
        SweepConfig(run_dir=str(tmp_path), rldtf=training.RLDTFConfig(steps=7)), {"alpha": (1.0,)}
    )
    other += cells(config, {"alpha": (3.0,)})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ConfigError, match="rldtf.steps is 100 there and 7 here; choose another sweep=NAME"
    ):
        ablate.rounds(config, other, plan)
    assert sorted(tmp_path.rglob("*")) == before
    assert ablate.rounds(config, grid, plan) == first


def test_rounds_begun_go_on_as_they_were_and_new_arms_get_their_own(tmp_path):
    config = SweepConfig(run_dir=str(tmp_path), seeds=2)
    grid = cells(config, {"alpha": (0.0, 1.0, 2.0)})
    made = ablate.rounds(config, grid, lambda number: Plan(4, 3, None, 0))
    assert [(len(r.arms), r.width) for r in made] == [(3, 3), (3, 3)]
    with open(arm_path(config, made[0].arms[1], "evaluation.json"), "w", encoding="utf-8") as file:
        file.write("{}")  # killed between two evaluations
    wider = cells(config, {"alpha": (0.0, 1.0, 2.0, 4.0)})
    again = ablate.rounds(config, wider, lambda number: Plan(number, 1, None, 0))
    assert sorted(again[:2], key=str) == sorted(made, key=str) and again[2].arms == (
        "alpha=4,seed=0",
        "alpha=4,seed=1",
    )
    for name in made[0].arms:
        with open(arm_path(config, name, "evaluation.json"), "w", encoding="utf-8") as file:
            file.write("{}")
    os.mkdir(os.path.join(config.directory, "rounds", "killed"))  # before its round.json was there
    assert ablate.rounds(config, grid, lambda number: Plan(4, 3, None, 0)) == made[1:]


def test_the_grid_has_every_distinct_arm_once():
    config = SweepConfig(seeds=3, first_seed=5)
    grid = cells(config, {"alpha": (0, 1), "threshold": (0.1, 0.2), "policy.lr": (1e-4, 1e-3)})
    assert len(grid) == 3 * (2 + 4) and len({cell.name for cell in grid}) == len(grid)
    assert {cell.seed for cell in grid} == {5, 6, 7}
    (cell,) = (c for c in grid if c.name == "alpha=1,threshold=0.2,policy.lr=0.001,seed=6")
    assert (cell.config.alpha, cell.config.threshold, cell.config.policy.lr) == (1.0, 0.2, 1e-3)
    assert training.check([c.config for c in grid]) is None


@pytest.fixture
def results(tmp_path):
    """A sweep with known truth: alpha = 1 fulfils 20 % more of 400 tasks than alpha = 0, alpha = 2
    as many, alpha = 4 diverged. On the test tasks alone, alpha = 0.5 is better still.
    """
    config, rng = SweepConfig(run_dir=str(tmp_path), seeds=3), np.random.default_rng(0)
    grid = cells(config, {"alpha": ALPHAS})
    hard = rng.uniform(size=400)
    for cell in grid:
        alpha, result = cell.values["alpha"], {"diverged": cell.values["alpha"] == 4}
        for split, gain in ("validation", {1: 0.2}), ("test", {1: 0.2, 0.5: 0.3}):
            good = (hard < 0.5 + gain.get(alpha, 0)) ^ (rng.uniform(size=400) < 0.05)
            summary = {
                "fulfilment": float(good.mean()),
                "fulfilment_interval": (0.0, 1.0),
                "score": 0.6,
                "reward": 0.1,
                "unusable": 0.0,
            }
            if alpha != 4:
                result[split] = summary | {
                    "task_fulfilled": good.tolist(),
                    "task_reward": np.where(good, 0.6, -0.5).tolist(),
                }
        os.makedirs(arm_path(config, cell.name))
        with open(arm_path(config, cell.name, "evaluation.json"), "w", encoding="utf-8") as file:
            json.dump(
                result | {"cost": {"seconds": 60.0, "simulated": 5.0, "arms_together": 12}}, file
            )
        with open(arm_path(config, cell.name, "metrics.jsonl"), "w", encoding="utf-8") as file:
            for step in range(20):
                file.write(
                    json.dumps(
                        {"step": step, "diverged": True}
                        if alpha == 4
                        else {
                            "step": step,
                            "reward": 0.1,
                            "fulfilled": 0.5,
                            "weight/mean": 1 + alpha,
                        }
                    )
                    + "\n"
                )
    return config, grid


def test_the_report_finds_what_is_there(results):
    config, grid = results
    lines = ablate_report.write(config, {"alpha": ALPHAS}, grid)
    assert lines[0].startswith("3 arms diverged and are left out: alpha=4,seed=0;")
    assert lines[1].startswith("best by reward on the validation tasks: alpha = 1;")
    arms = ablate_report.Arms(config, grid)
    gain = ablate_report.compare(arms, ["alpha = 1"], "alpha = 0", "task_fulfilled")
    low, high = gain["interval"]
    assert (
        0.1 < low < 0.18 < high < 0.3
        and gain["p_tasks"] < 0.01
        and gain["p_seeds"] < 0.05
        and len(gain["by_seed"]) == 3
    )
    nothing = ablate_report.compare(arms, ["alpha = 2"], "alpha = 0", "task_fulfilled")
    assert nothing["interval"][0] < 0 < nothing["interval"][1] and nothing["p_tasks"] > 0.05
    assert any(line.startswith("alpha = 1 minus alpha = 0, fulfilment: +0.1") for line in lines)
    table = ablate_report.table(arms, grid)
    assert [row["fulfilment"] is None for row in table] == [
        cell.values["alpha"] == 4 for cell in grid
    ]
    assert [row["weight_mean"] for row in table[:9:3]] == [1.0, 1.5, 2.0]


def test_a_sweep_of_prices_shows_what_is_earned_against_what_it_costs(tmp_path):
    """A point for every arm, where its mean cost and its reward say; diverged ones have none."""
    config, prices = SweepConfig(run_dir=str(tmp_path), seeds=2), (0.0, 0.2, 0.5)
    grid = cells(config, {"prices.prb": prices})
    assert [cell.config.prices.prb for cell in grid] == [0.0, 0.0, 0.2, 0.2, 0.5, 0.5]
    for cell in grid:
        price = cell.values["prices.prb"]
        one = {"task_reward": [0.4 - price, 0.2 - price], "task_fulfilled": [True, False]}
        one |= {"costs": {"prb": 0.9 - price + 0.1 * cell.seed, "energy": 1.0}, "fulfilment": 0.5}
        result = {"diverged": False, "test": one, "validation": one}
        os.makedirs(arm_path(config, cell.name))
        with open(arm_path(config, cell.name, "evaluation.json"), "w", encoding="utf-8") as file:
            cost = {"seconds": 60.0, "simulated": 5.0, "arms_together": 6}
            json.dump(result | {"cost": cost}, file)
        with open(arm_path(config, cell.name, "metrics.jsonl"), "w", encoding="utf-8") as file:
            file.write(json.dumps({"step": 0, "reward": 0.1}) + "\n")
    arms = ablate_report.Arms(config, grid)
    (panel,) = ablate_report.front_figure(arms, ["prb"]).axes
    points = [
        (bars[0].get_xdata()[0], bars[0].get_ydata()[0]) for bars in panel.containers if len(bars)
    ]
    np.testing.assert_allclose(points, [(0.95 - p, 0.3 - p) for p in prices])
    assert [row["cost_prb"] for row in ablate_report.table(arms, grid)[:2]] == [0.9, 1.0]
    ablate_report.write(config, {"prices.prb": prices}, grid)
    assert os.path.exists(os.path.join(config.directory, "figures", "front.pdf"))


# 57 on average; with three seeds, fewer
@pytest.mark.parametrize("S, at_least", [(12, 51), (3, 44)])
def test_the_nested_interval_covers_seeds_and_tasks(S, at_least):
    rng = np.random.default_rng(1)
    hits = widths = 0
    for trial in range(60):
        values = (
            0.5
            + rng.normal(0, 0.1, (S, 1))
            + rng.normal(0, 0.4, (1, 80))
            + rng.normal(0, 0.2, (S, 80))
        )
        low, high = nested_interval(values, seed=trial, resamples=400)
        hits += low <= 0.5 <= high
        widths += (high - low) / 60
    assert hits >= at_least
    assert 0.7 < widths / (2 * 1.96 * np.sqrt(0.1**2 / S + 0.4**2 / 80 + 0.2**2 / (80 * S))) < 1.4

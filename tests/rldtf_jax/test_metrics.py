"""Metrics: one JSON line a step, and a resumed run that writes on where its checkpoint was."""

import json
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rldtf_jax.metrics import JSONL, RUNTIME, Tracker, read


def record(directory, rows, *, start=0, position=0, **options):
    """Logs rows as the steps from start on; the JSONL's length after each."""
    tracker, positions = (
        Tracker(str(directory), 10, start=start, position=position, boards=(), **options),
        [],
    )
    for step, row in enumerate(rows, start):
        tracker.log(step, row)
        positions.append(tracker.flush())
    tracker.close()
    return positions


def without_runtime(rows):
    return [
        {
            name: value
            for name, value in row.items()
            if name not in ("step_seconds", "memory_mb", "device_memory_mb")
        }
        for row in rows
    ]


def test_a_step_is_written_when_the_next_one_is_logged(tmp_path):
    tracker = Tracker(str(tmp_path), 2, boards=())
    tracker.log(0, {"loss": 1.0})
    assert read(str(tmp_path)) == []
    tracker.log(1, {"loss": 2.0})
    assert without_runtime(read(str(tmp_path))) == [{"step": 0, "loss": 1.0}]
    tracker.close()
    assert without_runtime(read(str(tmp_path))) == [
        {"step": 0, "loss": 1.0},
        {"step": 1, "loss": 2.0},
    ]


def test_whatever_a_step_reports_becomes_json(tmp_path):
    record(
        tmp_path,
        [
            {
                "device": jnp.float32(0.5),
                "count": jnp.int32(3),
                "host": np.float64(0.25),
                "flag": np.bool_(1),
                "list": np.arange(3),
                "nested": {"a": [np.float32(1)]},
                "text": "x",
                "nothing": None,
            }
        ],
    )
    assert without_runtime(read(str(tmp_path))) == [
        {
            "step": 0,
            "device": 0.5,
            "count": 3,
            "host": 0.25,
            "flag": True,
            "list": [0, 1, 2],
            "nested": {"a": [1.0]},
            "text": "x",
            "nothing": None,
        }
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(tmp_path, bad):
    record(tmp_path, [{"loss": jnp.float32(bad), "list": [bad, 1.0]}], show=("loss",))
    assert without_runtime(read(str(tmp_path))) == [{"step": 0, "loss": None, "list": [None, 1.0]}]


def test_what_a_rerun_need_not_repeat_stands_apart(tmp_path):
    record(tmp_path, [{"loss": 1.0, "runtime": {"twin/simulated": np.int64(7)}}])
    assert (tmp_path / JSONL).read_text() == '{"step": 0, "loss": 1.0}\n'
    assert '"twin/simulated": 7' in (tmp_path / RUNTIME).read_text()
    (row,) = read(str(tmp_path))
    assert row["loss"] == 1.0 and row["twin/simulated"] == 7 and row["step_seconds"] >= 0


@pytest.mark.parametrize("done", range(4))
def test_a_resumed_run_cuts_back_to_its_checkpoint_and_writes_the_same_bytes(tmp_path, done):
    rows = [{"loss": 0.1 * step, "runtime": {"seconds": step}} for step in range(4)]
    positions = record(tmp_path, rows)
    whole = (tmp_path / JSONL).read_bytes()
    for name in (JSONL, RUNTIME):
        with open(tmp_path / name, "ab") as file:
            file.write(b'{"step": 7, "lo')  # cut short by a kill
    record(tmp_path, rows[done + 1 :], start=done + 1, position=positions[done])
    assert (tmp_path / JSONL).read_bytes() == whole
    assert [row["step"] for row in read(str(tmp_path))] == [0, 1, 2, 3]


def test_a_line_cut_short_is_not_read(tmp_path):
    (tmp_path / JSONL).write_text('{"step": 0}\n{"step": 1, "lo')
    assert read(str(tmp_path)) == [{"step": 0}]
    assert read(str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("cut", [0, 5, 24, 25, 30, None])
def test_a_run_goes_on_though_its_metrics_are_shorter_than_its_checkpoint_knows(tmp_path, cut):
    positions = record(tmp_path, [{"loss": 0.5}, {"loss": 0.25}])
    if cut is None:
        (tmp_path / JSONL).unlink()
    else:
        (tmp_path / JSONL).write_bytes((tmp_path / JSONL).read_bytes()[:cut])
    with pytest.warns(UserWarning, match=f"{cut or 0} bytes long where the checkpoint knows more"):
        record(tmp_path, [{"loss": 0.125}], start=2, position=positions[-1])
    left = [{"step": 0, "loss": 0.5}] if cut in (25, 30) else []  # a line is whole or gone
    assert list(map(json.loads, (tmp_path / JSONL).read_text().splitlines())) == [
        *left,
        {"step": 2, "loss": 0.125},
    ]


def test_tensorboard_gets_the_numbers(tmp_path):
    tracker = Tracker(str(tmp_path), 1)
    tracker.log(0, {"policy_loss": 1.0, "text": "words", "runtime": {"twin/seconds": 2.0}})
    tracker.close()
    (events,) = tmp_path.glob("events.*")
    content = events.read_bytes()
    assert b"policy_loss" in content and b"twin/seconds" in content and b"words" not in content


def test_every_step_reports_its_memory_and_its_tokens_a_second(tmp_path):
    record(tmp_path, [{"tokens": np.int64(300)}])
    (row,) = read(str(tmp_path))
    assert row["memory_mb"] > 50
    np.testing.assert_allclose(row["tokens_per_s"], 300 / row["step_seconds"])
    assert "memory_mb" not in (tmp_path / JSONL).read_text()


def test_weights_and_biases_get_the_numbers_in_one_run_that_a_resumed_one_goes_on_with(
    tmp_path, monkeypatch
):
    runs = []

    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.finished = options, [], False
            runs.append(self)

        def log(self, numbers, step):
            self.logged.append((step, numbers))

        def finish(self):
            self.finished = True

    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: Run(**options))
    )
    for start in (0, 1):
        tracker = Tracker(
            str(tmp_path), 2, start=start, boards=("wandb",), about={"rldtf.alpha": 4.0}
        )
        tracker.log(
            start, {"reward": np.float32(0.5), "text": "words", "runtime": {"twin/simulated": 3}}
        )
        tracker.close()
    first, second = runs
    assert (
        first.finished
        and first.options["project"] == "rldtf"
        and first.options["resume"] == "allow"
    )
    assert (
        first.options == second.options
        and first.options["config"] == {"rldtf.alpha": 4.0}
        and first.options["name"].endswith(tmp_path.name)
    )
    ((step, numbers),) = second.logged
    assert (
        step == 1
        and numbers["reward"] == 0.5
        and numbers["twin/simulated"] == 3
        and "text" not in numbers
    )


def test_without_its_package_weights_and_biases_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="wandb"):
        Tracker(str(tmp_path), 1, boards=("wandb",))


def test_mlflow_gets_the_numbers_in_one_run_that_a_resumed_one_goes_on_with(tmp_path, monkeypatch):
    runs, logged = {}, []

    def start_run(run_id, run_name, tags, nested):
        run_id = run_id or f"run {len(runs)}"
        runs.setdefault(run_id, {"name": run_name, "tags": tags, "params": {}})
        runs["now"] = runs[run_id]

    monkeypatch.setitem(
        sys.modules,
        "mlflow",
        types.SimpleNamespace(
            set_experiment=lambda name: types.SimpleNamespace(experiment_id=name),
            start_run=start_run,
            end_run=lambda: runs.pop("now"),
            search_runs=lambda experiments, query, output_format: [
                types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))
                for key, run in runs.items()
                if query == f"tags.id = '{run['tags']['id']}'"
            ],
            log_params=lambda params: runs["now"]["params"].update(params),
            log_metrics=lambda numbers, step: logged.append((step, numbers)),
        ),
    )
    for start in (0, 1):
        tracker = Tracker(
            str(tmp_path), 2, start=start, boards=("mlflow",), about={"rldtf.alpha": 4.0}
        )
        tracker.log(start, {"reward": np.float32(0.5), "text": "words"})
        tracker.close()
    (run,) = runs.values()
    assert run["params"] == {"rldtf.alpha": "4.0"} and run["name"].endswith(tmp_path.name)
    assert [(step, numbers["reward"], "text" in numbers) for step, numbers in logged] == [
        (0, 0.5, False),
        (1, 0.5, False),
    ]


def test_where_no_terminal_is_progress_is_a_few_lines(tmp_path, capfd):
    tracker = Tracker(str(tmp_path), 50, title="training", show=("reward",), boards=())
    for step in range(50):
        tracker.log(
            step,
            {"reward": 0.25, "tokens": 10, "runtime": {"twin/seconds": 2.0, "twin/simulated": 6}},
        )
    tracker.close()
    lines = capfd.readouterr().err.splitlines()
    assert (
        1 <= len(lines) <= 3
        and all(line.startswith("training:") for line in lines)
        and "50/50" in lines[-1]
        and "reward=0.25" in lines[-1]
    )
    assert read(str(tmp_path))[-1]["twin/per_s"] == 3.0

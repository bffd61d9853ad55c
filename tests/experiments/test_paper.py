"""The paper's comparison: raw models and stages on the same tasks, figures, and going on."""

import dataclasses
import json
import os

import pytest

from experiments.config import PROJECT, ConfigError, load
from experiments.stages.instruct import instruct
from experiments.stages.run import opened
from experiments.studies import paper
from experiments.world.orchestration import read

RAW = os.path.join(PROJECT, "experiments", "world", "data", "link-lite", "phase1")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose phase 1 is finished: the model that ships."""
    path = str(tmp_path_factory.mktemp("paper") / "run")
    overrides = ["preset=smoke", "model=instructed", "instruct.sft=null", f"run_dir={path}"]
    with opened(load(overrides), start_twin=False) as run:
        instruct(run)
    return path


def test_raw_models_and_stages_answer_the_same_tasks(run_dir, capsys, monkeypatch):
    asked = [run_dir, "--raw", f"mine={RAW}", "--shots", "0", "2", "--tasks", "4", "--batch", "4"]
    paper.main(asked)
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"report: {os.path.join(run_dir, 'paper', 'paper.html')}"
    with open(os.path.join(run_dir, "paper", "paper.json"), encoding="utf-8") as file:
        found = json.load(file)
    assert found["tasks"] == 4 and list(found["systems"]) == [
        "mine 0-shot",
        "mine 2-shot",
        "instruct",
    ]
    for row in found["systems"].values():
        for reader in paper.READERS:
            low, high = row[reader]["fulfilment_interval"]
            assert 0 <= low <= row[reader]["fulfilment"] <= high <= 1
        assert row["tolerant"]["unusable"] <= row["grammar"]["unusable"]
    assert found["systems"]["instruct"]["grammar"]["unusable"] == 0
    assert found["systems"]["mine 0-shot"]["grammar"]["unusable"] > 0  # another prompt than its own
    names = set(os.listdir(os.path.join(run_dir, "paper")))
    assert names >= {f"fig{n}.{kind}" for n in (4, 5, 6, 7) for kind in ("png", "pdf")}

    def asked_again(*_):
        raise AssertionError("a model was asked again")

    monkeypatch.setattr(paper, "answers", asked_again)
    paper.main(asked)  # goes on from the answers that are kept
    assert capsys.readouterr().out == out


def test_where_a_run_has_its_policy_translate_that_is_a_third_reader_of_its_stages(
    run_dir, monkeypatch
):
    asked = []

    def read_too(self, texts, policy):
        asked.append(policy)
        return list(map(read, texts))

    monkeypatch.setattr(paper.ModelTranslator, "read", read_too)
    overrides = ["preset=smoke", "model=instructed", "instruct.sft=null", f"run_dir={run_dir}"]
    with opened(load(overrides)) as run:
        run.config = dataclasses.replace(run.config, translator="model")
        tasks = run.tasks["test"][:3]
        texts = [task.response(task.witness) for task in tasks[:2]] + ["nothing"]
        systems = [
            paper.System("mine 0-shot", "raw", directory=RAW),
            paper.System("instruct", "phase 1", stage="instruct"),
        ]
        found = paper.compared(run, systems, [texts, texts], tasks)
    assert "model" not in found["mine 0-shot"] and len(asked) == 1
    assert found["instruct"]["model"] == found["instruct"]["grammar"]
    assert found["instruct"]["model"]["unusable"] == pytest.approx(1 / 3)
    readers = [(row[0], row[1]) for row in paper.table(found, 3)[1:]]
    assert readers == [
        ("raw", "strict"),
        ("raw", "tolerant"),
        ("phase 1", "strict"),
        ("phase 1", "tolerant"),
        ("phase 1", "its own"),
    ]


def test_a_raw_models_prompt_has_answers_of_training_tasks_and_no_target_of_the_tasks_own(run_dir):
    with opened(
        load(["preset=smoke", "model=instructed", "instruct.sft=null", f"run_dir={run_dir}"])
    ) as run:
        task, examples = run.tasks["test"][0], run.tasks["train"][:2]
        text = paper.question(task, examples)
    assert text.startswith("Answer in one sentence") and text.endswith("Answer:")
    assert text.count("Answer:") == 3 and text.count("Use ") >= 3
    assert task.response(task.witness, think=False) not in text
    assert all(example.response(example.witness, think=False) in text for example in examples)
    from experiments.world.orchestration import read

    assert read(paper.FORMAT.partition(": ")[2])[1] is None  # what it shows is what f(a) reads


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--raw", "x"], "expected NAME=DIR"),
        (["--raw", "a/b=/tmp"], "expected NAME=DIR"),
        (["--tasks", "0"], "--tasks = 0"),
        (["--shots", "-1"], "expected numbers >= 0"),
        (["--temperature", "nan"], "expected numbers >= 0"),
    ],
)
def test_a_wrong_argument_is_named(run_dir, wrong, message):
    with pytest.raises(ConfigError, match=message):
        paper.main([run_dir, *wrong])

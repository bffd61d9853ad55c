"""`python -m experiments.world make | score | show`, as a user types them."""

import json
import os
import random
import subprocess
import sys

import pytest
from running import finish

from experiments.world import __main__ as command
from experiments.world import tasks, worlds
from experiments.world.reading import read_tasks, task_id, write_lines
from twin.cache import fingerprint

COUNTS = {
    "train": 2,
    "validation": 1,
    "test": 1,
    "new-links": 0,
    "new-platforms": 0,
    "new-words": 0,
}


def world(*arguments):
    return finish(*arguments, module="experiments.world")


def files(directory):
    return sorted(os.listdir(directory))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("worlds") / "small")
    counts = [f"{split}={count}" for split, count in COUNTS.items()]
    code, printed, err = world(
        "make", "family=link-native", f"out={out}", "workers=1", "budget=4", "seed=2", *counts
    )
    assert code == 0, err
    assert "'feasible':" in printed and "candidates are feasible" in err
    return out


@pytest.mark.slow
def test_make_draws_the_splits_and_its_checksums_verify(made):
    names = [f"{split}.jsonl" for split, count in COUNTS.items() if count]
    # a split of 0 leaves no empty file
    assert not [name for name in files(made) if name.endswith(".jsonl") and name not in names]
    assert {"card.md", "SHA256SUMS", *names} < set(files(made))
    assert not [name for name in files(made) if name.endswith(".partial")]
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=made, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("OK") == 1 + len(names), done.stdout
    for split, some in tasks.load_splits(made).items():
        assert len(some) == COUNTS[split] and all(task.split == split for task in some)
        assert all(task.witness and task.family == "link-native" for task in some)


@pytest.mark.slow
def test_the_card_says_what_is_there_and_how_it_came_about(made):
    with open(os.path.join(made, "card.md")) as file:
        card = file.read()
    for words in (
        "| train | 2 |",
        "family=link-native seed=2 budget=4 train=2 validation=1",
        fingerprint(),
        "method esm, max_blocks 128",
        "candidates were searched with",
    ):
        assert words in card, card
    assert os.path.dirname(made) not in card


@pytest.mark.slow
def test_score_prints_a_table_and_writes_it_without_jax(made, tmp_path):
    path = os.path.join(made, "train.jsonl")
    some = read_tasks(path)
    answers, out = str(tmp_path / "answers.jsonl"), str(tmp_path / "table.json")
    write_lines([{"task": task_id(some[1]), "text": some[1].response(some[1].witness)}], answers)
    code = (
        "import sys; sys.modules['jax'] = None; from experiments.world.__main__ import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "score",
            f"tasks={path}",
            "workers=1",
            f"answers={answers}",
            f"out={out}",
            "seed=2",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["all", "2"]
    with open(out) as file:
        result = json.load(file)
    assert result["tasks_sha256"] == command.sha256(path) and result["seed"] == 2
    assert result["twin"] == {"method": "esm", "max_blocks": 128, "fingerprint": fingerprint()}
    assert [one["failure"] for one in result["answers"]] == ["missing", None]
    assert result["table"][0]["tasks"] == 2 and result["table"][0]["unusable"][0] == 0.5
    assert files(tmp_path) == ["answers.jsonl", "table.json"]


@pytest.mark.slow
def test_show_prints_a_task_with_its_oracle_and_draws_its_landscape(made, tmp_path):
    path, out = os.path.join(made, "train.jsonl"), str(tmp_path / "task.png")
    task = read_tasks(path)[1]
    code, printed, err = world("show", f"tasks={path}", "index=1", f"out={out}", "workers=1")
    assert code == 0, err
    for words in (
        task.prompt(),
        task_id(task),
        "targets   ",
        "measured  ",
        "fulfilled",
        task.response(task.witness, think=False),
    ):
        assert words in printed
    with open(out, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert files(tmp_path) == ["task.png"]


# Wrong arguments and files


@pytest.fixture
def inputs(tmp_path):
    """A good task and answer file, a bad one of each, and a directory to which nothing is added."""
    task = next(worlds.candidates(worlds.family("link-native"), 0))
    workflow = tasks.random_workflow(random.Random(0), task.scenario)
    good = tasks.to_dict(task)
    write_lines([good], str(tmp_path / "good.jsonl"))
    write_lines([good, good | {"ber": "low"}], str(tmp_path / "bad.jsonl"))
    write_lines([], str(tmp_path / "empty.jsonl"))
    write_lines([{"task": 0, "text": task.response(workflow)}], str(tmp_path / "answers.jsonl"))
    write_lines([{"task": 1, "text": ""}], str(tmp_path / "beyond.jsonl"))
    return tmp_path


BAD = [
    ([], "command = '': expected one of make, score, show"),
    (["draw"], "command = 'draw': expected one of make"),
    (["make"], "out = '': expected out=..."),
    (["make", "out="], "out = '': expected out=..."),
    (["make", "out={}/new", "family=moon"], "preset = 'moon': expected one of link"),
    (["make", "out={}/new", "train=-1"], "train = '-1': expected a whole number >= 0"),
    (
        ["make", "out={}/new", *(f"{split}=0" for split in COUNTS)],
        "train=0 validation=0 test=0 new-links=0",
    ),
    (["make", "out={}/new", "workers=0"], "workers = '0': expected a whole number >= 1"),
    (["make", "out={}/new", "seed=1e3"], "seed = '1e3': expected a whole number"),
    (["make", "out={}/new", "valid=3"], "'valid': no such key; expected one of family, out"),
    (["make", "out={}/new", "train"], "'train': expected key=value"),
    (["make", "out={}/new", "train=1", "train=2"], "train = '2': expected this key once"),
    (["make", "out={}/good.jsonl"], "[Errno 17] File exists:"),
    (["score", "tasks={}/good.jsonl"], "answers = '': expected answers=..."),
    (
        ["score", "tasks={}/bad.jsonl", "answers={}/answers.jsonl"],
        '{}/bad.jsonl:2: ber = "low": expected a number',
    ),
    (
        ["score", "tasks={}/good.jsonl", "answers={}/beyond.jsonl"],
        "{}/beyond.jsonl:1: task = 1: expected an index < 1",
    ),
    (["score", "tasks={}/good.jsonl", "answers={}/none.jsonl"], "[Errno 2] No such file"),
    (["score", "tasks={}/empty.jsonl", "answers={}/empty.jsonl"], "tasks = "),
    (
        ["score", "tasks={}/good.jsonl", "answers={}/answers.jsonl", "out={}/new/table.json"],
        "out = '{}/new/table.json': expected a file in a directory that is there",
    ),
    (["show", "tasks={}/good.jsonl", "index=1"], "index = 1: expected a whole number < 1"),
    (["show", "tasks={}/good.jsonl", "out={}"], "out = '{}': expected a file"),
    (["show", "tasks={}"], "[Errno 21] Is a directory"),
]


@pytest.mark.parametrize("words, message", BAD, ids=lambda value: " ".join(value)[:40])
def test_what_is_wrong_is_one_line_and_exit_status_2(inputs, capsys, words, message):
    before = files(inputs)
    status = command.main([word.replace("{}", str(inputs)) for word in words])
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: " + message.replace("{}", str(inputs)))
    assert files(inputs) == before


def test_the_process_exits_with_status_2_too(inputs):
    code, out, err = world("score", f"tasks={inputs}/bad.jsonl", f"answers={inputs}/answers.jsonl")
    assert (code, out) == (2, "") and err.count("\n") == 1 and ":2: ber = " in err

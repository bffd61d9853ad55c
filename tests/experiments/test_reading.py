"""Task and answer files: what is harmless, and one line for everything that is not."""

import dataclasses
import gzip
import itertools
import json
import os
import random
import re

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.world import reading, worlds
from experiments.world.reading import read_answers, read_tasks, task_id, to_task, write_lines
from experiments.world.tasks import Task, random_workflow, to_dict
from twin import Scenario, Workflow

FAMILIES = [worlds.family(name) for name in ("link", "link-native", "plain")]
with open(os.path.join(os.path.dirname(reading.__file__), "schema.json")) as file:
    SCHEMA = json.load(file)


def draw(count, seed=0, family=FAMILIES[0]):
    rng = random.Random(seed)
    return [
        dataclasses.replace(task, witness=random_workflow(rng, task.scenario))
        for task in itertools.islice(worlds.candidates(family, seed), count)
    ]


TASKS = draw(4)
GOOD = json.loads(json.dumps(to_dict(TASKS[0])))
LINE = json.dumps(GOOD)


def validator(name):
    return jsonschema.Draft202012Validator(SCHEMA | {"anyOf": [{"$ref": f"#/$defs/{name}"}]})


def refusal(path, read=read_tasks):
    """The one line that a file is refused by; nothing but the file is there afterwards."""
    before = os.listdir(os.path.dirname(path))
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable() and os.listdir(os.path.dirname(path)) == before
    return message


def refused(tmp_path, content):
    path = str(tmp_path / "tasks.jsonl")
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return refusal(path).removeprefix(f"{path}:")


# What is harmless


def test_tasks_read_back_as_written_and_a_compressed_file_has_the_same_bytes_each_time(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.jsonl", "a.jsonl.gz", "b.jsonl.gz")]
    for path in paths:
        write_lines(map(to_dict, TASKS), path)
        assert read_tasks(path) == TASKS
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.gz", "b.jsonl.gz"]
    first, second = (open(path, "rb").read() for path in paths[1:])
    assert first == second and first[4:8] == bytes(4)  # no time of writing


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff{0}\n{1}\n",
        "{0}\r\n{1}\r\n",
        "{0}\n{1}",
        "\n\n{0}\n  \t\n{1}\n\n",
        " {0} \n\t{1}",
        "\ufeff\r\n{0}\r\n\r\n{1}",
    ],
)
def test_a_byte_order_mark_crlf_and_empty_lines_are_harmless(tmp_path, content):
    path = tmp_path / "tasks.jsonl"
    lines = [json.dumps(to_dict(task)) for task in TASKS[:2]]
    path.write_bytes(content.replace("{0}", lines[0]).replace("{1}", lines[1]).encode())
    assert read_tasks(path) == TASKS[:2]


def test_an_empty_file_has_no_tasks(tmp_path):
    (tmp_path / "tasks.jsonl").write_bytes(b"")
    assert read_tasks(tmp_path / "tasks.jsonl") == []


def test_a_line_separator_inside_of_a_request_ends_no_line(tmp_path):
    (tmp_path / "tasks.jsonl").write_text(LINE.replace(GOOD["request"], "one\u2028two"), "utf-8")
    assert read_tasks(tmp_path / "tasks.jsonl")[0].request == "one\u2028two"


def test_whole_numbers_and_decimals_are_the_same_task():
    row = {
        "service": "mine",
        "request": "Serve gate 3.",
        "scenario": {"snr_db": 3},
        "delay_ms": 2,
        "throughput_mbps": 5,
        "ber": 1e-3,
    }
    decimals = row | {"delay_ms": 2.0, "throughput_mbps": 5.0, "scenario": {"snr_db": 3.0}}
    assert to_task(row) == to_task(decimals) and task_id(to_task(row)) == task_id(to_task(decimals))
    assert to_task(row).split == to_task(decimals).split and to_task(row).witness is None


# What is refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"delay_ms": -1}, "delay_ms = -1: expected a number > 1e-9 and < 1e6"),
        ({"delay_ms": "2"}, 'delay_ms = "2": expected a number'),
        ({"delay_ms": True}, "delay_ms = true: expected a number"),
        ({"delay_ms": [2]}, r"delay_ms = \[2\]: expected a number"),
        ({"delay_ms": "\x7f\n"}, r'delay_ms = "\\u007f\\n": expected a number'),
        ({"throughput_mbps": 10**400}, r"throughput_mbps = 1000*\.\.\.: expected a number"),
        ({"ber": 1}, "ber = 1: expected a number > 1e-9 and < 1"),
        ({"ber": float("nan")}, "ber = NaN: expected a number"),
        ({"ber": float("inf")}, "ber = Infinity: expected a number"),
        ({"request": " "}, 'request = " ": expected text that is not blank'),
        (
            {"request": "\ud800"},
            r'request = "\\ud800": expected text without half a surrogate pair',
        ),
        ({"service": 3}, "service = 3: expected text"),
        ({"errors": "symbol"}, 'errors = "symbol": expected one of bit, packet'),
        ({"kind": "Stated"}, 'kind = "Stated": expected one of stated, named'),
        ({"family": None}, "family = null: expected text"),
        ({"colour": "red"}, 'colour = "red": expected one of the keys service, request, scenario'),
        ({"a\nb": 1}, r'"a\\nb" = 1: expected one of the keys'),
        ({"scenario": []}, r"scenario = \[\]: expected an object"),
        ({"scenario": {"channel": "tdl-z"}}, 'scenario.channel = "tdl-z": expected one of awgn'),
        (
            {"scenario": {"num_tx_ant": 2.0}},
            r"scenario.num_tx_ant = 2.0: expected an integer in \[1, 4\]",
        ),
        ({"scenario": {"snr_db": "16"}}, 'scenario.snr_db = "16": expected a number in'),
        (
            {"scenario": {"snr_db": float("inf")}},
            "scenario.snr_db = Infinity: expected a number in",
        ),
        ({"scenario": {"snr": 16}}, "scenario.snr = 16: expected one of the keys channel"),
        ({"scenario": {"absent": "detect.zf"}}, 'scenario.absent = "detect.zf": expected a list'),
        ({"scenario": {"absent": ["detect.mmse"]}}, "scenario.absent = .*: expected a list of mod"),
        ({"scenario": {"absent": [["detect.zf"]]}}, "scenario.absent = .*: expected a list of mod"),
        (
            {"scenario": {"absent": ["grid.15"] * 2}},
            "scenario.absent = .*: expected .* each .* once",
        ),
        (
            {"witness": {"num_prb": 274}},
            r"witness.num_prb = 274: expected an integer in \[1, 273\]",
        ),
        ({"witness": {"prb": 3}}, "witness.prb = 3: expected one of the keys"),
        ({"witness": "QPSK"}, 'witness = "QPSK": expected an object'),
        (
            {"scenario": {"max_prb": 3}, "witness": {"num_prb": 4}},
            "witness = .*: expected a workflow that the scenario can run .num_prb=4",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_line_field_and_value(tmp_path, change, message):
    content = f"{json.dumps(to_dict(TASKS[1]))}\r\n\n{json.dumps(GOOD | change)}\n"
    assert re.match(f"3: {message}", refused(tmp_path, content))


@pytest.mark.parametrize("key", reading.REQUIRED)
def test_a_missing_key_is_refused_by_name(tmp_path, key):
    row = {name: value for name, value in GOOD.items() if name != key}
    assert refused(tmp_path, json.dumps(row)).startswith(f"1: {key} = nothing: expected ")


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"delay_ms": 1, "delay_ms": 2}', "1: delay_ms = 2: expected this key once, not twice"),
        (LINE.replace('"snr_db"', '"channel"'), "1: channel = .*: expected this key once"),
        (
            LINE.replace(f'"ber": {GOOD["ber"]}', '"ber": 1e999'),
            "1: ber = Infinity: expected a number",
        ),
        (LINE.replace(f'"ber": {GOOD["ber"]}', f'"ber": {"9" * 5000}'), "1: line = .*4300 digits"),
        ("[1, 2]", r"1: line = \[1, 2\]: expected an object"),
        ("3", "1: line = 3: expected an object"),
        ('{"a": ', r'1: line = "{\\"a\\":": expected JSON \(Expecting value'),
        (LINE + LINE, r"1: line = .*: expected JSON \(Extra data"),
        (LINE + "\n\ufeff" + LINE, r"2: line = .*: expected JSON"),
        ("[" * 100_000, "1: line = .*: expected at most 16 levels of nesting"),
        ('{"a":' * 100_000, "1: line = .*: expected at most 16 levels of nesting"),
        ('{"a": "' + '\\"[' * 50_000, r"1: line = .*: expected JSON \(Unterminated string"),
        (
            LINE.encode().replace(b"link", b"l\xffnk"),
            "1: line = .*: expected UTF-8, not byte 0xff at ",
        ),
        (LINE.encode("utf-16"), "1: line = .*: expected UTF-8, not byte 0xff at 1"),
        (b"\x00" * 9, "1: line = .*: expected JSON"),
        (
            f"{LINE}\n\n{LINE}\n",
            '3: task = "[0-9a-f]{12}": expected every task once, line 1 has this',
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, content, message):
    assert re.match(message, refused(tmp_path, content))


def test_a_damaged_compressed_file_is_refused(tmp_path):
    path = str(tmp_path / "tasks.jsonl.gz")
    write_lines(map(to_dict, TASKS), path)
    content = open(path, "rb").read()
    for damaged in (content[: len(content) // 2], LINE.encode(), content[:100] + bytes(200)):
        with open(path, "wb") as file:
            file.write(damaged)
        assert re.match(rf"{re.escape(path)}:\d+: .*expected (gzip|JSON|UTF-8)", refusal(path))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=80)
    | st.sampled_from(["2", 10**30, "\ud800", "detect.zf", 1e999]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from([*GOOD, *GOOD["scenario"], *GOOD["witness"], "", "colour"]) | st.text()
PLACES = st.sampled_from([(), ("scenario",), ("witness",)])


def changed(place, key, value):
    row = json.loads(LINE)
    inner = row
    for name in place:
        inner = inner[name]
    inner[key] = value
    return row


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLACES, KEYS, VALUES)
def test_any_change_of_a_task_is_read_or_refused_in_one_line(tmp_path, place, key, value):
    """And what is read satisfies the schema."""
    row = changed(place, key, value)
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row))
    try:
        (task,) = read_tasks(path)
    except ValueError as error:
        assert str(error).isprintable() and str(error).startswith(f"{path}:1: ")
        field, value, expected = re.fullmatch(
            r"(.*?) = (.*): expected (.*)", str(error).removeprefix(f"{path}:1: ")
        ).groups()
        assert field and len(value) <= reading.MAX_SHOWN and expected
    else:
        validator("task").validate(json.loads(json.dumps(to_dict(task))))
        assert to_task(to_dict(task)) == task
    assert os.listdir(tmp_path) == ["tasks.jsonl"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.tuples(st.integers(0, len(LINE)), st.integers(0, 40), st.binary(max_size=20)).map(
        lambda cut: LINE.encode()[: cut[0]] + cut[2] + LINE.encode()[cut[0] + cut[1] :]
    ),
    st.booleans(),
)
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path, content, compressed):
    path = tmp_path / ("tasks.jsonl" + ".gz" * compressed)
    path.write_bytes(gzip.compress(content) if compressed and len(content) % 2 else content)
    for read in (read_tasks, lambda path: read_answers(path, TASKS)):
        try:
            read(path)
        except ValueError as error:
            assert str(error).isprintable()
            assert re.match(rf"{re.escape(str(path))}:\d+: ", str(error))


# Answers


def test_answers_come_as_text_or_workflow_by_index_or_id_in_any_order(tmp_path):
    path = str(tmp_path / "answers.jsonl")
    write_lines(
        [{"task": 2, "text": "Use QPSK."}, {"task": task_id(TASKS[0]), "workflow": {"num_prb": 3}}],
        path,
    )
    assert read_answers(path, TASKS) == [Workflow(num_prb=3), None, "Use QPSK.", None]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"task": 4, "text": ""}, "task = 4: expected an index < 4 or a task's id"),
        ({"task": -1, "text": ""}, "task = -1: expected an index"),
        ({"task": "0", "text": ""}, 'task = "0": expected an index'),
        ({"task": True, "text": ""}, "task = true: expected a task's index or id"),
        ({"text": ""}, "task = nothing: expected"),
        ({"task": 1}, "text = nothing: expected either a text or a workflow"),
        (
            {"task": 1, "text": "a", "workflow": {}},
            'text = "a": expected either a text or a workflow',
        ),
        ({"task": 1, "text": 3}, "text = 3: expected text"),
        (
            {"task": 1, "workflow": {"code_rate": "half"}},
            'workflow.code_rate = "half": expected a num',
        ),
        ({"task": 1, "workflow": None}, "workflow = null: expected an object"),
        (
            {"task": task_id(TASKS[3]), "text": ""},
            "task = .*: expected one answer to a task, line 1 ",
        ),
    ],
)
def test_a_wrong_answer_is_refused_with_its_line_field_and_value(tmp_path, row, message):
    path = str(tmp_path / "answers.jsonl")
    write_lines([{"task": 3, "text": "x"}, row], path)
    line = refusal(path, lambda path: read_answers(path, TASKS))
    assert re.match(f"2: {message}", line.removeprefix(f"{path}:"))


# Ids and the schema


def test_a_task_s_id_is_of_scenario_targets_and_words_alone():
    task = TASKS[0]
    assert re.fullmatch("[0-9a-f]{12}", task_id(task))
    assert task_id(dataclasses.replace(task, witness=None, family="", service="x")) == task_id(task)
    others = [
        dataclasses.replace(task, request="other words"),
        dataclasses.replace(task, delay_ms=9.0),
        dataclasses.replace(task, scenario=Scenario(channel="awgn")),
    ]
    assert len({task_id(one) for one in (task, *others)}) == 4
    assert len({task_id(one) for one in draw(500)}) == 500


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_drawn_task_satisfies_the_schema(family):
    valid = validator("task")
    for task in draw(100, 1, family):
        valid.validate(json.loads(json.dumps(to_dict(task))))


def test_the_schema_s_properties_are_the_fields_and_its_limits_the_rules():
    for name, cls, readers in (
        ("task", Task, reading.TASK),
        ("answer", None, reading.ANSWER),
        ("scenario", Scenario, reading.SCENARIO),
        ("workflow", Workflow, reading.WORKFLOW),
    ):
        properties = SCHEMA["$defs"][name]["properties"]
        assert set(properties) == set(readers), name
        if cls:
            assert set(properties) == {field.name for field in dataclasses.fields(cls)}
    assert tuple(SCHEMA["$defs"]["task"]["required"]) == reading.REQUIRED
    for name, rules in (("scenario", reading.SCENARIO_RULES), ("workflow", reading.WORKFLOW_RULES)):
        for field, (_, *limits) in rules.items():
            allowed = SCHEMA["$defs"][name]["properties"][field]
            schema_limits = (
                [allowed["enum"]] if "enum" in allowed else [allowed["minimum"], allowed["maximum"]]
            )
            assert schema_limits == [list(x) if isinstance(x, tuple) else x for x in limits], field
    absent = SCHEMA["$defs"]["scenario"]["properties"]["absent"]["items"]["enum"]
    assert absent == sorted(reading.MODULES)


@pytest.mark.parametrize(
    "row, valid",
    [
        ({"task": 3, "text": "Use QPSK."}, True),
        ({"task": "0123456789ab", "workflow": {}}, True),
        ({"task": 3}, False),
        ({"task": 3, "text": "", "workflow": {}}, False),
        ({"text": ""}, False),
        ({"task": -1, "text": ""}, False),
    ],
)
def test_the_schema_of_an_answer(row, valid):
    assert validator("answer").is_valid(row) == valid

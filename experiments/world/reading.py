"""Task and answer files, read strictly: what is wrong with one is said in one line.

A file holds one JSON object a line, as in schema.json, plain or compressed (.gz). A byte order
mark, CRLF and empty lines are harmless. Everything else that is not exactly a task, or an answer,
is refused by `path:line: field = value: expected ...`.
"""

import codecs
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from experiments.files import whole
from experiments.world.tasks import KINDS, Task
from rldtf_jax.config import ConfigError
from twin import Scenario, Workflow, WorkflowError, check
from twin.spec import SCENARIO_RULES, WORKFLOW_RULES
from twin.toolbox import MODULES

MAX_SHOWN = 60  # characters of a value in a message
MAX_NESTING = 16
TARGET_RANGES = {"delay_ms": (1e-9, 1e6), "throughput_mbps": (1e-9, 1e6), "ber": (1e-9, 1)}
REQUIRED = ("service", "request", "scenario", *TARGET_RANGES)  # keys of a task
MISSING = object()  # in place of a value that is not there

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


def read_tasks(path: str | os.PathLike) -> list[Task]:
    """The tasks of a file, in its order.

    Raises:
      ConfigError: (a ValueError) the first thing that is wrong, in one line that names file, line,
        field, value and what was expected; a task that stands twice, with both lines.
      OSError: the file cannot be read.
    """
    tasks, lines = [], {}
    for number, row in _rows(path):
        with _at(path, number):
            task = to_task(row)
            name = task_id(task)
            if name in lines:
                raise _refused("task", name, f"every task once, line {lines[name]} has this one")
        lines[name] = number
        tasks.append(task)
    return tasks


def read_answers(path: str | os.PathLike, tasks: Sequence[Task]) -> list[str | Workflow | None]:
    """The answers of a file to tasks, in the order of the tasks.

    A line is {"task": ..., "text": "..."}, a response in words, or
    {"task": ..., "workflow": {...}}; a task is its index (from 0) or its `task_id`.

    Returns:
      For each task the text or the Workflow, or None where there is no answer.

    Raises:
      ConfigError: likewise; also a task that is not among `tasks`, and one that is answered twice.
      OSError: the file cannot be read.
    """
    index = {task_id(task): i for i, task in enumerate(tasks)} | {i: i for i in range(len(tasks))}
    answers: list[str | Workflow | None] = [None] * len(tasks)
    lines: dict[int, int] = {}
    for number, row in _rows(path):
        with _at(path, number):
            answer = _object(ANSWER, ("task",), "", row)
            which = index.get(answer["task"])
            if which is None:
                raise _refused("task", answer["task"], f"an index < {len(tasks)} or a task's id")
            if which in lines:
                raise _refused(
                    "task",
                    answer["task"],
                    f"one answer to a task, line {lines[which]} has one to this",
                )
            if len(answer) != 2:
                both = answer.get("text", MISSING)
                raise _refused("text", both, "either a text or a workflow")
        lines[which] = number
        answers[which] = answer["text"] if "text" in answer else answer["workflow"]
    return answers


def write_lines(rows: Iterable[dict[str, Any]], path: str) -> None:
    """JSON lines, in place at once or not at all; compressed where the name ends with .gz, the same
    bytes for the same rows."""
    with whole(path, "wb") as file, contextlib.ExitStack() as stack:
        if path.endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        for row in rows:
            file.write((json.dumps(row) + "\n").encode())


def task_id(task: Task) -> str:
    """12 hexadecimal digits of a hash of what is asked: the scenario, the targets and the words."""
    what = dataclasses.asdict(task.scenario), task.required, task.request
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def to_task(row: Any) -> Task:
    """The Task of a line's parsed JSON, every field checked.

    Raises:
      ConfigError: `field = value: expected ...`.
    """
    values = _object(TASK, REQUIRED, "", row)
    if values.get("witness"):
        try:
            check(values["scenario"], values["witness"])
        except WorkflowError as error:
            expected = f"a workflow that the scenario can run ({error})"
            raise _refused("witness", row["witness"], expected) from None
    return Task(**values)


def parse_line(text: str) -> Any:
    """The JSON value of a line.

    Raises:
      ConfigError: it is no JSON, a key stands twice, or it is nested deeper than MAX_NESTING.
    """
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_NESTING:
            raise _refused("line", text, f"at most {MAX_NESTING} levels of nesting")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _refused("line", text, f"JSON ({error.msg}, column {error.colno})") from None
    except ConfigError:
        raise
    except ValueError:  # Python reads no whole number of more than 4300 digits
        raise _refused("line", text, "JSON with numbers of at most 4300 digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in pairs:
        if key in row:
            raise _refused(key, value, "this key once, not twice")
        row[key] = value
    return row


def _rows(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """(line, its JSON value) of every line that is not empty."""
    number = 0
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                line = line.strip()
                if line:
                    with _at(path, number):
                        row = parse_line(_decoded(line))
                    yield number, row
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            with _at(path, number + 1):
                raise _refused("file", os.path.basename(path), f"gzip ({error})") from None


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        shown = line.decode("ascii", "backslashreplace")
        expected = f"UTF-8, not byte 0x{line[error.start]:02x} at {error.start + 1}"
        raise _refused("line", shown, expected) from None


@contextlib.contextmanager
def _at(path: str | os.PathLike, number: int) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}:{number}: {error}") from None


def _refused(field: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{_named(field)} = {_shown(value)}: expected {expected}")


def _named(field: str) -> str:
    """A key that comes from a file may be anything."""
    return field if re.fullmatch(r"[\w.]{1,60}", field, re.ASCII) else _shown(field)


def _shown(value: Any) -> str:
    text = "nothing" if value is MISSING else json.dumps(value, default=repr)
    text = text.replace("\x7f", r"\u007f")  # the one control character that JSON leaves
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


# What a field may hold: functions of (field, value) to the value, which raise ConfigError


def _object(
    readers: dict[str, Callable], required: Sequence[str], field: str, value: Any
) -> dict[str, Any]:
    """The fields of an object, read; those that are neither there nor required are left out."""
    if not isinstance(value, dict):
        raise _refused(field or "line", value, "an object {...}")
    prefix = f"{field}." if field else ""
    for key in value:
        if key not in readers:
            expected = f"one of the keys {', '.join(readers)}"
            raise _refused(f"{prefix}{key}", value[key], expected)
    return {
        key: read(f"{prefix}{key}", value.get(key, MISSING))
        for key, read in readers.items()
        if key in value or key in required
    }


def _text(field: str, value: Any, blank: bool = False) -> str:
    if not isinstance(value, str) or not (blank or value.strip()):
        raise _refused(field, value, "text" if blank else "text that is not blank")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refused(field, value, "text without half a surrogate pair") from None
    return value


def _number(low: float, high: float, field: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low < value < high:
        limits = f"a number > {low:g} and < {high:g}"
        raise _refused(field, value, limits.replace("e-0", "e-").replace("e+0", "e"))
    return float(value)


def _one_of(choices: Sequence[str], field: str, value: Any) -> str:
    if not isinstance(value, str) or value not in choices:
        raise _refused(field, value, f"one of {', '.join(choices)}")
    return value


def _modules(field: str, value: Any) -> tuple[str, ...]:
    names = list(value) if isinstance(value, (list, tuple)) else None
    if names is None or any(not isinstance(name, str) or name not in MODULES for name in names):
        raise _refused(field, value, "a list of modules such as detect.zf")
    if len(set(names)) < len(names):
        raise _refused(field, value, "a list of modules, each of them once")
    return tuple(names)


def _ruled(rule: tuple, field: str, value: Any) -> Any:
    """By a rule of twin.spec."""
    judge, *limits = rule
    try:
        return judge("", field, value, *limits)
    except ValueError as error:  # "<class>.<field>: expected <what>, got <value>"
        expected = str(error).partition(": expected ")[2].partition(", got ")[0]
        raise _refused(field, value, expected) from None


def _scenario(field: str, value: Any) -> Scenario:
    return Scenario(**_object(SCENARIO, (), field, value))


def _workflow(field: str, value: Any) -> Workflow:
    return Workflow(**_object(WORKFLOW, (), field, value))


def _witness(field: str, value: Any) -> Workflow | None:
    return None if value is None else _workflow(field, value)


def _which(field: str, value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise _refused(field, value, "a task's index or id")
    return value


SCENARIO = {name: functools.partial(_ruled, rule) for name, rule in SCENARIO_RULES.items()} | {
    "absent": _modules
}
WORKFLOW = {name: functools.partial(_ruled, rule) for name, rule in WORKFLOW_RULES.items()}
TASK = {
    "service": _text,
    "request": _text,
    "scenario": _scenario,
    **{name: functools.partial(_number, *limits) for name, limits in TARGET_RANGES.items()},
    "witness": _witness,
    "errors": functools.partial(_one_of, ("bit", "packet")),
    "kind": functools.partial(_one_of, KINDS),
    "family": functools.partial(_text, blank=True),
}
ANSWER = {"task": _which, "text": functools.partial(_text, blank=True), "workflow": _workflow}

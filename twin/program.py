"""Text to Workflow and back. The text is model output, that is, data: it is read through `ast` and
never run.

A program is one call of a toolbox name per line, with literal keyword arguments:

    grid(num_prb=24, scs_khz=30)
    modulate(bits_per_symbol=4, num_layers=1)
    encode(code="ldpc", code_rate=0.5)
    pilots(num_dmrs=1)
    estimate(method="ls")
    detect(method="lmmse")
    decode(iterations=10)

Calls may come in any order. Those of optional tools (precode, harq) may be left out.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings

from .spec import Workflow, WorkflowError
from .toolbox import BY_NAME, TOOLS

MAX_CHARS = 4096
MAX_LINES = 64
MAX_DIGITS = 20  # a float64 written out has 17
MAX_SIGNS = 16
MAX_MESSAGE_CHARS = 200
DEFAULT = Workflow()

_COMMENT = re.compile(r"#[^\n]*")
_ALPHABET = re.compile(r"""(?:[A-Za-z0-9_(),='"\- \t\r\n]|(?<=[0-9])\.(?=[0-9]))*""")
_LONG_NUMBER = re.compile(rf"[0-9_]{{{MAX_DIGITS + 1},}}")
_WORD = re.compile(r"[A-Za-z_]+")


def parse(text: str) -> Workflow:
    """Read a program.

    Raises WorkflowError, with the line and what is wrong, for everything that is not exactly one
    call of every tool (none or one of optional tools) with exactly its arguments and values that a
    Workflow accepts. Size, alphabet, nesting and numbers are limited before the text reaches the
    parser, so that time and memory are bounded for any input; so is the message, one printable line
    of at most MAX_MESSAGE_CHARS.

    >>> parse(render(Workflow(num_prb=4))) == Workflow(num_prb=4)
    True
    """
    try:
        return _read(text)
    except WorkflowError as error:
        raise WorkflowError(_shown(str(error))) from None


def _shown(message: str) -> str:
    """The message cut to its limit, with what cannot be printed escaped."""
    shown = "".join(
        c if c.isprintable() else repr(c)[1:-1] for c in message[: MAX_MESSAGE_CHARS + 1]
    )
    return shown if len(shown) <= MAX_MESSAGE_CHARS else shown[: MAX_MESSAGE_CHARS - 3] + "..."


def _read(text: str) -> Workflow:
    text = _limited(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(text)
    except SyntaxError as error:
        raise WorkflowError(f"line {error.lineno}: not a program: {error.msg}") from None
    fields, seen = {}, set()
    for statement in module.body:
        tool, arguments = _call(statement)
        if tool in seen:
            raise WorkflowError(f"line {statement.lineno}: {tool} is called twice")
        seen.add(tool)
        fields |= arguments
    if missing := [tool.name for tool in TOOLS if tool.name not in seen and not tool.optional]:
        raise WorkflowError(f"line {text.count(chr(10)) + 1}: missing {', '.join(missing)}")
    try:
        return Workflow(**fields)
    except ValueError as error:
        raise WorkflowError(str(error)) from None


def render(workflow: Workflow) -> str:
    """Write the program that `parse` reads back as the same workflow, less calls that change
    nothing.
    """
    lines = []
    for tool in TOOLS:
        values = {a: getattr(workflow, a.field) for a in tool.arguments}
        if not tool.optional or any(
            value != getattr(DEFAULT, a.field) for a, value in values.items()
        ):
            arguments = ", ".join(f"{a.name}={_literal(value)}" for a, value in values.items())
            lines.append(f"{tool.name}({arguments})")
    return "\n".join(lines)


def _literal(value) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _limited(text) -> str:
    """The text without comments, if it has no nesting, operators, keywords or long numbers."""
    if not isinstance(text, str):
        raise WorkflowError(f"line 1: expected text, got {type(text).__name__}")
    if len(text) > MAX_CHARS:
        raise WorkflowError(f"line 1: {len(text)} characters, at most {MAX_CHARS}")
    text = _COMMENT.sub("", text)
    end = _ALPHABET.match(text).end()
    if end < len(text):
        raise WorkflowError(
            f"line {text.count(chr(10), 0, end) + 1}: unexpected character {text[end]!r}"
        )
    if text.count("-") > MAX_SIGNS:
        raise WorkflowError(f"line 1: more than {MAX_SIGNS} minus signs")
    depth = 0
    for number, line in enumerate(text.split("\n"), 1):
        if number > MAX_LINES:
            raise WorkflowError(f"line {number}: at most {MAX_LINES} lines")
        if _LONG_NUMBER.search(line):
            raise WorkflowError(f"line {number}: a number has more than {MAX_DIGITS} digits")
        if word := next(filter(keyword.iskeyword, _WORD.findall(line)), None):
            raise WorkflowError(f"line {number}: unexpected word {word}")
        for bracket in re.findall(r"[()]", line):
            depth += 1 if bracket == "(" else -1
            if depth not in (0, 1):
                raise WorkflowError(f"line {number}: unbalanced or nested brackets")
    return text


def _call(statement) -> tuple[str, dict]:
    """One statement to (tool name, {Workflow field: value}); raises WorkflowError."""
    at = f"line {statement.lineno}"
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise WorkflowError(f"{at}: expected a call such as {TOOLS[0].name}(...)")
    tool = BY_NAME.get(call.func.id)
    if tool is None:
        raise WorkflowError(
            f"{at}: {call.func.id[:40]} is not in the toolbox ({', '.join(BY_NAME)})"
        )
    if call.args:
        raise WorkflowError(f"{at}: {tool.name} takes keyword arguments only")
    fields = {a.name: a.field for a in tool.arguments}
    values = {}
    for given in call.keywords:
        if given.arg not in fields:
            name = str(given.arg)[:40]
            raise WorkflowError(f"{at}: {tool.name} has no argument {name} ({', '.join(fields)})")
        if fields[given.arg] in values:
            raise WorkflowError(f"{at}: {tool.name} is given {given.arg} twice")
        values[fields[given.arg]] = _constant(given.value, f"{at}: {tool.name}({given.arg}=...)")
    if missing := [name for name, field in fields.items() if field not in values]:
        raise WorkflowError(f"{at}: {tool.name} lacks {', '.join(missing)}")
    return tool.name, values


def _constant(node, at) -> int | float | str:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    # hexadecimal: Python refuses to print a long one
    if type(value) is int and value >= 10**MAX_DIGITS:
        raise WorkflowError(f"{at}: a number has more than {MAX_DIGITS} digits")
    if type(value) in (int, float):
        return sign * value
    if type(value) is str and sign == 1:
        return value
    raise WorkflowError(f"{at}: expected a number or a quoted word")

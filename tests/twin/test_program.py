import ast
import sys
import time

import fuzz_program
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import workflows

from twin import TOOLS, Workflow, WorkflowError, describe, parse, program, render

GOOD = render(Workflow())


@given(workflows())
def test_parse_inverts_render(workflow):
    assert parse(render(workflow)) == workflow


@given(workflows(), st.randoms())
def test_order_spacing_and_comments_do_not_matter(workflow, random):
    lines = render(workflow).split("\n")
    random.shuffle(lines)
    text = "\n\n".join(line.replace("=", " = ").replace(",", " ,\n") + "  # 5G!" for line in lines)
    assert parse(text) == workflow


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("grid(num_prb=24, scs_khz=30)\n", "", "missing grid"),
        ("num_prb=24, ", "", "lacks num_prb"),
        ("num_prb=24", "num_prb=24, prb=3", "no argument prb"),
        ("num_prb=24", "num_prb=24, num_prb=25", "repeated|twice"),
        ("grid(", "gird(", "not in the toolbox"),
        ("grid(num_prb=24", "grid(24", "keyword"),
        ("num_prb=24", "num_prb=True", "True"),
        ("num_prb=24", "num_prb=2.5", "integer"),
        ("num_prb=24", "num_prb=-24", r"integer in \[1, 273\]"),
        ("num_prb=24", "num_prb=1e999", "num_prb|integer"),
        ("num_prb=24", "num_prb='24'", "integer"),
        ("num_prb=24", "num_prb=num_prb", "number or a quoted word"),
        ("num_prb=24", "num_prb=" + "9" * 100, "digits"),
        ("num_prb=24", "num_prb=0x" + "f" * 3000, "more than 20 digits"),
        ("num_prb=24", "num_prb=0x" + "f" * 3900, "more than 20 digits"),
        ("num_prb=24", "num_prb=-0b" + "_".join("10" * 30), "more than 20 digits"),
        ("code_rate=0.5", "code_rate=0o" + "7777_" * 300 + "7", "more than 20 digits"),
        ("num_prb=24", "num_prb=0x" + "f" * 10, r"integer in \[1, 273\], got 1099511627775"),
        ("num_prb=24", "num_prb=f(2)", "brackets"),
        ("num_prb=24", "**num_prb", "character"),
        ("scs_khz=30", "scs_khz=31", "expected one of 15, 30, 60, 120"),
        ('"ldpc"', '"turbo"', "expected one of"),
        ('"ldpc"', '-"ldpc"', "number or a quoted word"),
        ('"ldpc"', 'b"ldpc"', "number or a quoted word"),
        ("code_rate=0.5", "code_rate=nan", "number or a quoted word"),
        (GOOD, GOOD + "\n" + GOOD.split("\n")[0], "grid is called twice"),
        (GOOD, "", "missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(old, new, what):
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(WorkflowError, match=what):
        parse(text)


def test_a_coding_comment_is_a_comment():
    assert parse("# -*- coding: utf-7 -*-\n" + GOOD) == Workflow()


def test_the_line_is_the_one_with_the_fault():
    with pytest.raises(WorkflowError, match="^line 3"):
        parse(GOOD.replace('code="ldpc"', "code=x"))


HOSTILE = [
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "grid.__globals__",
    "eval('1')",
    "grid(num_prb=__import__('os'))",
    "(" * 1_000_000,
    "[" * 1_000_000,
    "{" * 100_000,
    "(" * 4000,
    "(\n" * 2000,
    "-" * 4000,
    "not " * 1000,
    "~" * 4000,
    "+" * 4000,
    "a." * 2000,
    "a|" * 2000,
    "a=" * 2000,
    "lambda:" * 500,
    "grid()" * 600,
    "grid(num_prb=" + "-" * 15 + "1)",
    "9" * 4000,
    "1e" + "9" * 19,
    "0x" + "f" * 4000,
    "1_" * 2000,
    "\0",
    GOOD + "\0",
    "ｇrid(num_prb=1)",
    "grid(num_prb=２４, scs_khz=30)",
    "grіd(num_prb=24, scs_khz=30)",
    "\ud800",
    "\ufeff" + GOOD,
    "'" * 4000,
    '"""' * 1000,
    "'a' " * 1000,
    "\\\n" * 2000,
    "\t\n" * 2000,
    "\r" * 4000,
    "\f" * 4000,
    "if 1:\n grid()",
    " grid()",
    "grid(num_prb=24,\nscs_khz=30",
    "@grid\nclass a: pass",
    "import os",
    "x = grid(num_prb=24, scs_khz=30)",
    "f'{grid}'",
    "...",
    "encode(code='" + "a" * 4000 + "', code_rate=0.5)",
    GOOD.replace("ldpc", "a" * 3000),
    GOOD.replace("24", "0x" + "f" * 3900),
    GOOD.replace('"ldpc"', '"""\n\t\'"""'),
    "grid(" + "a" * 4000 + "=1)",
    "a" * 100_000,
    "b\0" * 50_000,
    "f(" * 50_000,
    "9" * 100_000,
    "grid(*a)",
    "grid(**{})",
    "await grid()",
    "yield",
    "grid(a:=1)",
    "grid(x for x in y)",
    "print('x')",
    "None",
    "True()",
    "a" * 4096,
    "%s" * 100,
    "{0.__class__}",
    "../../etc/passwd",
    "encode(code='../../etc/passwd', code_rate=0.5)",
    "encode(code='', code_rate=.5)",
]


def is_short_and_printable(error):
    return len(str(error)) <= 200 and str(error).isprintable()  # a line break is not


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_is_an_error_and_nothing_more(text):
    with pytest.raises(WorkflowError) as raised:
        parse(text)
    assert is_short_and_printable(raised.value)


ODD_NAMES = ["a" * 100_000, "\n\x1b[31m", "\u202e" * 300, "é" * 201]  # of types
NO_TEXTS = [
    None,
    3,
    b"grid()",
    ["grid()"],
    ast.parse(""),
    *(type(name, (), {})() for name in ODD_NAMES),
]


@pytest.mark.parametrize("thing", NO_TEXTS)
def test_what_is_not_text_is_an_error(thing):
    with pytest.raises(WorkflowError) as raised:
        parse(thing)
    assert is_short_and_printable(raised.value)


@given(st.text(st.characters(), max_size=300))
def test_any_message_is_shown_in_one_short_printable_line(message):
    shown = program._shown(message)
    assert is_short_and_printable(shown)
    assert shown == message or not is_short_and_printable(message)


def test_numbers_are_refused_whatever_limit_python_has():
    before = sys.get_int_max_str_digits()
    try:
        for limit in (640, 0):
            sys.set_int_max_str_digits(limit)
            for number in ("0x" + "f" * 3900, "9" * 3900, "1" * 700):
                with pytest.raises(WorkflowError, match="more than 20 digits"):
                    parse(GOOD.replace("24", number))
    finally:
        sys.set_int_max_str_digits(before)


FRAGMENTS = st.sampled_from(
    [
        *GOOD.split("\n"),
        *(t.name for t in TOOLS),
        *(a.name for t in TOOLS for a in t.arguments),
        "(",
        ")",
        "=",
        ",",
        "\n",
        " ",
        "-",
        ".",
        "'",
        '"',
        "#",
        "1",
        "0.5",
        "2e9",
        "0x",
        "f",
        "_",
        "__class__",
        "True",
        "None",
        "not ",
        "lambda",
        "in ",
        "if ",
        "\0",
        "é",
        "\\",
        "[",
        "{",
    ]
)


TEXTS = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(), max_size=200),  # lone surrogates too
    st.lists(FRAGMENTS, max_size=60).map("".join),
    st.binary(max_size=200).map(lambda b: b.decode("latin1")),
    st.tuples(
        st.sampled_from(GOOD.replace("\n", "(").split("(")), FRAGMENTS, st.integers(1, 100_000)
    ).map(lambda parts: GOOD.replace(parts[0], parts[1] * parts[2], 1)),
)


@settings(max_examples=2000)
@given(TEXTS)
def test_only_a_workflow_or_a_workflow_error_comes_out(text):
    start = time.process_time()
    try:
        assert isinstance(parse(text), Workflow)
    except WorkflowError as error:
        assert is_short_and_printable(error)
    # a bound on the algorithm, fifty times above what is measured
    assert time.process_time() - start < 0.5


def test_a_hundred_thousand_inputs_are_read_or_refused_within_ten_milliseconds_of_processor_time(
    capsys,
):
    fuzz_program.main(100_000)
    assert capsys.readouterr().out.startswith("100000 inputs")


def test_the_prompt_shows_every_tool_and_argument_but_nothing_for_validation():
    text = describe()
    assert all(f"{t.name}(" in text and all(a.name in text for a in t.arguments) for t in TOOLS)
    assert "perfect" not in text and "code=none" not in text


def test_optional_tools_may_be_left_out_and_mean_the_defaults():
    assert {t.name for t in TOOLS if t.optional} == {"precode", "harq"}
    assert "harq" not in GOOD
    assert (
        parse(GOOD + "\nharq(transmissions=1, combining='ir')\nprecode(method='none')")
        == Workflow()
    )
    assert parse(GOOD + "\nharq(transmissions=3, combining='chase')").num_transmissions == 3

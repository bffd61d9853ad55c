"""Questions of radio and instructions: their arithmetic, their two sides, their marking, and what a
model learns of them."""

import ast
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import ConfigError, load
from experiments.stages.instruct import instruct
from experiments.stages.run import opened
from experiments.world.questions import DOMAIN_KINDS, GENERAL_KINDS, abbreviations, questions, right
from experiments.world.wording import service_classes
from twin.toolbox import BY_NAME

SUM = re.compile(r"((?:[\d.-]+ [x+/] )+[\d.]+) = (-?[\d.]+\d|\d)")  # 3 x 4 = 12
KNOWN = {"SIP": "Session Initiation Protocol", "TLS": "Transport Layer Security"}


def some(seed=0, count=600, held_out=False, general=0.3, known=KNOWN):
    return list(itertools.islice(questions(seed, general, held_out, known), count))


@given(st.integers(0, 10_000), st.booleans())
def test_every_response_is_marked_right_and_no_other_answer_is(seed, held_out):
    asked = some(seed, 20, held_out)
    for question, other in zip(asked, asked[1:]):
        assert right(question, question.response)
        assert right(question, f"Answer: nonsense\n{question.response} ")
        assert right(question, f"It is so.\n\n{question.answer}\n")  # who does not say Answer:
        assert not right(question, question.reasoning) and not right(question, "")
        assert not right(question, f"{question.response}\nAnswer: nonsense")
        same = question.answer.casefold() == other.answer.casefold()
        assert right(question, other.response) == same or question.kind == "capitals"
    capitals = next(q for q in some(seed, 200) if q.kind == "capitals")
    assert not right(capitals, capitals.response.lower().replace("answer", "Answer"))


@given(st.integers(0, 10_000))
def test_the_arithmetic_that_is_shown_is_right(seed):
    seen = 0
    for question in some(seed, 40, general=0.0):
        for left, value in re.findall(
            r"((?:[\d.-]+ [x+/] )+[\d.]+) = (-?[\d.]+\d|\d)", question.reasoning
        ):
            node = ast.parse(left.replace("x", "*"), mode="eval")
            assert eval(compile(node, "", "eval"), {"__builtins__": {}}) == pytest.approx(
                float(value)
            )
            seen += 1
    assert seen


def test_both_sides_have_every_kind_and_no_question_in_common():
    train, held_out = some(count=3000), some(count=3000, held_out=True)
    assert {q.kind for q in train} == {q.kind for q in held_out} == {*DOMAIN_KINDS, *GENERAL_KINDS}
    assert not {q.prompt for q in train} & {q.prompt for q in held_out}
    share = sum(q.kind in GENERAL_KINDS for q in train) / len(train)
    assert abs(share - 0.3) < 0.05
    assert {q.kind for q in some(general=1.0)} == set(GENERAL_KINDS)
    assert "abbreviation" not in {q.kind for q in some(known={})}


def test_facts_are_those_of_the_project():
    classes = {row["service"]: row for row in service_classes()}
    for question in some(count=2000, general=0.0):
        if question.kind == "module":
            assert BY_NAME[question.answer].description in question.prompt
        if question.kind == "service":
            row = max((n for n in classes if n in question.prompt), key=len)
            assert question.answer in (
                f"{classes[row]['packet_delay_budget_ms']} ms",
                classes[row]["error_rate"],
            )


def test_abbreviations_are_read_where_texts_spell_them_out():
    texts = [
        "The Session Initiation Protocol (SIP) and Transport Layer Security (TLS) and so on.",
        "See the Session Initiation Protocol (SIP). A Very Old Session Initiation Protocol (SIP).",
        "A Simple Internet Protocol (SIP) is rarer. The Wrong Words Here (XYZ) do not fit.",
    ]
    assert abbreviations(texts) == KNOWN
    assert abbreviations(texts, 1) == {"SIP": "Session Initiation Protocol"}


def test_the_examination_before_and_after(tmp_path):
    """Of the smoke preset with a few questions: noted once, by kind."""
    keys = ["preset=smoke", f"run_dir={tmp_path}/run", "instruct.sft.steps=2", "instruct.pairs=64"]
    keys += ["instruct.questions=64", "instruct.asked=40", "instruct.general=0.5"]
    with opened(load(keys), start_twin=False) as run:
        instruct(run)
    told = json.loads((tmp_path / "run" / "instruct" / "questions.json").read_text())
    assert set(told) == {"before", "after"}
    for found in told.values():
        assert sum(count["asked"] for count in found.values()) == 40
        assert all(0 <= count["right"] <= count["asked"] for count in found.values())
    with pytest.raises(ConfigError, match="general = 2.0: expected a number in"):
        load([*keys, "instruct.general=2"])

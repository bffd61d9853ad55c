"""The coordinator's toolbox and judge: calls are data, checked before anything runs; the right tool
with the right figures earns 1, decoys do not, and nothing that comes in does harm.
"""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import finish

from experiments.network import __main__ as arms
from experiments.network.phrases import ALL_CHANNELS, ALL_OR_NONE, GOALS, ONE_EACH
from experiments.network.problems import KINDS, Bandwidth, Leftover, Slicing
from experiments.network.tasks import Task, figures, judge, judged, right_tools, said, share, tasks
from experiments.network.tools import BY_NAME, TOOLS, CallError, call, carry_out, directly
from experiments.network.worker import Worker

TASKS = tasks(3, 60, (3, 8))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.integers(0, 10_000))
def test_the_right_tool_with_the_right_figures_earns_1_and_no_answer_more(seed):
    task = random.Random(seed).choice(TASKS)
    rng = random.Random(seed)
    assert judge(task, arms.oracle_tool(task)).reward == pytest.approx(1, abs=1e-6)
    for answer in (arms.random_tool(task, rng), arms.equal_numbers(task), arms.keyword_rule(task)):
        verdict = judge(task, answer)
        assert -1 <= verdict.reward <= 1
        assert (verdict.failure is None) == (verdict.reward >= 0)
        assert verdict.share == max(0, verdict.reward)


def test_decoys_look_right_and_are_not():
    """Water-filling across cells, the best unit of each, units by gain: each loses or breaks a
    constraint on some task that it seems made for.
    """
    for name in ("water_filling_cells", "best_unit", "bandwidth_by_gain", "channel_inversion"):
        fitting = [task for task in TASKS if task.problem.kind == BY_NAME[name].kind]
        rewards = [
            judge(task, arms.call(BY_NAME[name], figures(task.problem))).reward for task in fitting
        ]
        assert len(fitting) >= 8 and min(rewards) < 0.8, name


def test_the_keyword_rule_reads_figures_and_not_their_unit():
    """It is right where ratios are linear and its words are known, and wrong in decibels."""
    linear, decibels = [], []
    for task in tasks(0, 100, (3, 6)):
        if task.problem.kind == "water-filling":
            side = decibels if "in dB" in task.request else linear
            side.append(judge(task, arms.keyword_rule(task)).reward)
    assert min(linear) > 1 - 1e-6 and len(decibels) >= 5 and np.mean(decibels) < 0.5


def test_requests_hold_the_figures_of_their_problem():
    for task in TASKS:
        asked = json.loads(arms.keyword_rule(task))
        if "in dB" not in task.request and task.problem.kind not in ("bandwidth", "two-step"):
            right = json.loads(arms.oracle_tool(task))["arguments"]
            for name, value in asked["arguments"].items():
                assert np.allclose(np.asarray(value, float), np.asarray(right[name], float)), name
    assert said("SNR: 1.5, 20") == (1.5, 20.0)
    assert said("SNR in dB: 10, -3") == pytest.approx((10, 0.5011872))


def test_words_that_are_held_out_are_not_in_training():
    every = [*GOALS.values(), ALL_CHANNELS, ONE_EACH, ALL_OR_NONE]
    known = {phrase for phrases in every for phrase in phrases.training}
    assert not known & {phrase for phrases in every for phrase in phrases.held_out}
    kept = tasks(1, 40, (3, 6), held_out=True)
    assert not [task for task in kept for phrase in known if phrase in task.request]
    assert {task.problem.kind for task in kept} == set(KINDS)


CALL = {"tool": "bandwidth_equal", "arguments": {"snr": [1.0, 2.0], "units": 4}}


@pytest.mark.parametrize(
    "change, said",
    [
        ("{", "expected one JSON object"),
        ("[1]", "expected one JSON object"),
        ("[]", "expected a call, or a plan of at most 4"),
        (json.dumps([CALL] * 5), "expected a call, or a plan of at most 4"),
        ({"more": 1}, "and nothing else"),
        ({"id": "a b"}, "id = 'a b': expected a word that nothing else is called"),
        ({"id": 7}, "id = 7: expected a word"),
        ({"tool": "os.system"}, "tool = 'os.system': expected one of bandwidth_marginal"),
        ({"tool": ["bandwidth_equal"]}, "expected one of"),
        ({"arguments": {"snr": [1.0]}}, "expected the arguments snr, units"),
        ({"arguments": {"snr": [1.0, -2.0], "units": 4}}, "snr: expected list of positive numbers"),
        ({"arguments": {"snr": [1.0, math.nan], "units": 4}}, "snr: expected list of"),
        ({"arguments": {"snr": [1.0] * 65, "units": 4}}, "snr: expected list of"),
        ({"arguments": {"snr": [True, 1.0], "units": 4}}, "snr: expected list of"),
        ({"arguments": {"snr": [1.0, 2.0], "units": 10**400}}, "units: expected whole number"),
        ({"arguments": {"snr": [1.0, 2.0], "units": 2.5}}, "units: expected whole number"),
    ],
)
def test_a_wrong_call_is_one_line_and_runs_nothing(change, said):
    text = change if isinstance(change, str) else json.dumps(CALL | change)
    with pytest.raises(CallError) as error:
        call(text)
    assert (
        said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) <= 300
    )


def test_arguments_may_refer_to_the_requests_figures():
    """A call by reference is the call with the figures, decibels made linear where it says so."""
    seen, lost = set(), []
    for task in TASKS:
        asked = {name: f"@{name}" for name in task.figures} | {"units": "@units"}
        for name in ("snr", "noise"):
            if task.decibels and name in asked:
                asked[name] += " from dB"
        answer = arms.written(right_tools(task.problem), asked)
        assert judge(task, answer).reward == pytest.approx(1, abs=1e-6)
        assert len(task.prompt) <= len(task.request)
        if task.decibels:
            seen.add(task.problem.kind)
            lost.append(1 - judge(task, answer.replace(" from dB", "")).reward)
    assert seen == {"bandwidth", "water-filling", "two-step"}
    assert np.mean(np.array(lost) > 1e-6) > 0.5 and max(lost) > 0.5  # now and then nothing changes


@pytest.mark.parametrize(
    "value, said",
    [
        ("@height", "'@height': expected @ and one of snr, units"),
        ("@snr from dBm", "'@snr from dBm': expected @ and one of"),
        ("@units from dB", "expected a list of ratios in dB"),
        ("snr", "snr: expected list of positive numbers"),
    ],
)
def test_a_wrong_reference_is_named(value, said):
    found = {"snr": [1.0, 2.0], "units": 4}
    text = json.dumps(CALL | {"arguments": {"snr": value, "units": "@units"}})
    with pytest.raises(CallError) as error:
        call(text, found)
    assert said in str(error.value)


PLAN = [
    {
        "id": "a",
        "tool": "slice_exact",
        "arguments": {"blocks": 9, "wanted": [4, 6], "worth": [1.0, 9.0]},
    },
    {"id": "b", "tool": "bandwidth_equal", "arguments": {"snr": [1.0, 2.0], "units": "@a.left"}},
]


def test_a_step_of_a_plan_may_refer_to_what_stands_before_it_and_only_to_that():
    steps = carry_out(json.dumps(PLAN))
    assert [step.solution.tolist() for step in steps] == [[0, 1], [2, 1]]
    assert steps[1].arguments["units"] == 3
    ran = []
    run = lambda name, arguments: ran.append(name) or directly(name, arguments)  # noqa: E731
    with pytest.raises(CallError, match="'@a.left': expected @ and one of"):
        carry_out(json.dumps(PLAN[::-1]), {"snr": [1.0]}, run=run)
    assert ran == []
    with pytest.raises(CallError, match="id = 'a': expected a word that nothing else is called"):
        carry_out(json.dumps([PLAN[0], PLAN[0] | {"id": "a"}]))
    with pytest.raises(CallError, match="id = 'snr': expected a word"):
        carry_out(json.dumps([PLAN[0] | {"id": "snr"}]), {"snr": [1.0]})
    with pytest.raises(CallError, match="tool = 'bandwidth_equal': expected one of slice_exact"):
        carry_out(json.dumps(PLAN), shown=["slice_exact"])


def test_two_sub_tasks_are_graded_each_by_what_it_could_be():
    """The services come first; users are held against what the best choice of services leaves."""
    problem = Leftover(Slicing(9, (4, 6), (1.0, 9.0)), Bandwidth(9, (1.0, 50.0), math.inf))
    task = Task(problem, "", "")
    assert [list(part) for part in task.best.solution] == [[0, 1], [2, 1]]
    assert judged(task, task.best.solution).reward == 1
    few = judged(task, (np.array([1, 0]), np.array([4, 1]))).reward
    assert few == pytest.approx((1 / 9 + 1) / 2)  # more than the best leaves is worth no more
    equal = problem.after([0, 1]).rates([1, 2]).min() / problem.after([0, 1]).rates([2, 1]).min()
    assert judged(task, (np.array([0, 1]), np.array([1, 2]))).reward == pytest.approx(
        (1 + equal) / 2
    )
    assert judged(task, (np.array([1, 1]), np.array([0, 0]))).reward < -0.5  # 10 of 9 blocks
    assert -1 < judged(task, (np.array([0, 1]), np.array([3, 3]))).reward < -0.5
    assert judged(task, np.array([0, 1])).reward == judged(task, (np.array([0, 1]),)).reward == -1
    full = Leftover(Slicing(6, (6,), (9.0,)), Bandwidth(6, (1.0, 50.0)))
    assert share(full, (np.array([1]), np.zeros(2)), (np.array([1]), np.zeros(2))) == 0.5
    assert full.violation((np.array([1]), np.array([1, 0]))) > 0


def test_a_worker_says_what_the_tools_say_and_survives_those_that_do_not_end():
    with Worker(seconds=20) as worker:
        for task in TASKS[:12]:
            here, there = (
                judge(task, arms.oracle_tool(task), run=run) for run in (directly, worker)
            )
            assert here.reward == there.reward
        first = worker._process.pid
        with pytest.raises(CallError, match="no solution meets the constraints"):
            worker("bandwidth_marginal", {"snr": [1.0], "units": 1, "alpha": 1.0, "least": [99.0]})
        with pytest.raises(CallError, match="bandwidth_equal: TypeError"):
            worker("bandwidth_equal", {"snr": [1.0]})
        with pytest.raises(CallError, match="slice_exact: took more than 1024 MB"):
            worker("slice_exact", {"blocks": 10**9, "wanted": [1], "worth": [1.0]})
        assert worker._process.pid == first
        worker.seconds = 0.2
        with pytest.raises(CallError, match="slice_exact: took longer than 0.2 s"):
            worker("slice_exact", {"blocks": 10**6, "wanted": [1] * 60, "worth": [1.0] * 60})
        worker.seconds = 20
        assert worker("bandwidth_equal", {"snr": [1.0, 1.0], "units": 4}).tolist() == [2, 2]
        assert worker._process.pid != first
        worker._process.kill()
        worker._process.join()
        with pytest.raises(CallError, match="its process has ended"):
            worker("bandwidth_equal", {"snr": [1.0, 1.0], "units": 4})
        assert worker("bandwidth_equal", {"snr": [1.0, 1.0], "units": 4}).tolist() == [2, 2]


def test_lists_of_several_lengths_are_refused():
    power = {"power": 1.0, "gain": [1.0, 1.0], "noise": [1.0], "interference": [[0.0] * 2] * 2}
    with pytest.raises(CallError, match="lists of one length"):
        call(json.dumps({"tool": "wmmse", "arguments": power}))
    power |= {"noise": [1.0, 1.0], "interference": [[0.0]] * 2}
    with pytest.raises(CallError, match="lists of one length"):
        call(json.dumps({"tool": "wmmse", "arguments": power}))
    with pytest.raises(CallError, match="at least as many units"):
        call(json.dumps({"tool": "hungarian", "arguments": {"value": [[1.0], [2.0]]}}))


@given(st.sampled_from(TASKS), st.text(max_size=60) | JSON.map(json.dumps))
def test_whatever_is_answered_is_judged(task, answer):
    assert -1 <= judge(task, answer).reward <= 1


@given(st.sampled_from(TOOLS), st.data())
def test_whatever_arguments_a_tool_gets_it_answers_or_refuses(tool, data):
    values = st.one_of(JSON, st.lists(st.floats(0.01, 100), min_size=1, max_size=4))
    arguments = {name: data.draw(values | st.integers(1, 50)) for name in tool.arguments}
    try:
        _, solution = call(json.dumps({"tool": tool.name, "arguments": arguments}))
    except CallError:
        return
    assert np.isfinite(solution).all()


def test_rewards_are_1_minus_regret_or_a_closeness_below_0():
    task = Task(Bandwidth(6, (1.0, 40.0), math.inf), "", "")
    best = task.best.solution
    assert judged(task, best).reward == 1
    worse = judged(task, np.array([1, 5]))
    rates = task.problem.rates([1, 5])
    assert worse.reward == pytest.approx(rates.min() / task.problem.rates(best).min())
    near, far = (judged(task, np.array(units)).reward for units in ([4, 3], [40, 30]))
    assert -1 < far < near < -0.5
    assert judged(task, np.array([1.0])).reward == -1


def test_the_cards_say_what_a_prompt_needs():
    for tool in TOOLS:
        card = tool.card()
        assert card.startswith(f"{tool.name}(") and "\n" not in card and "Valid" in card
    assert {tool.kind for tool in TOOLS} == set(KINDS) - {"two-step"}


def test_the_command_prints_its_table(tmp_path):
    out = tmp_path / "found.json"
    code, said, err = finish("tasks=10", f"out={out}", module="experiments.network")
    assert code == 0, err
    assert said.count("| oracle tool | 1.000 [1.000, 1.000]") == 3
    assert set(json.loads(out.read_text())) == {"test", "new-words", "larger"}
    code, _, err = finish("tasks=no", module="experiments.network")
    assert (code, err) == (2, "error: tasks = 'no': expected a whole number >= 0\n")

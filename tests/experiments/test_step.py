"""The benchmarks of a step and of sweeps measure what they say."""

import pytest

from experiments.benchmarks import ablate_speed, step
from rldtf_jax import rldtf
from twin.cache import Cache
from twin.physical import Counts

COUNTS = Counts(128, 4096, 3.0, (2.0, 1.0), 0.1, 0.01)


def test_slopes_are_those_of_powers():
    sizes = [10, 20, 80]
    assert step.slope(sizes, [3 * n for n in sizes]) == pytest.approx(1)
    assert step.slope(sizes, [n**2 for n in sizes]) == pytest.approx(2)
    assert step.slope(sizes, [7, 7, 7]) == 0


def test_floors_are_operations_over_rate():
    one, half = step.floors(96, 1e9), step.floors(96, 2e9)
    assert one.keys() == {"respond", "recall", "update"}
    assert all(one[part] == pytest.approx(2 * half[part]) for part in one)
    assert one["update"] > one["recall"] > one["respond"]


def test_every_stored_answer_is_looked_up():
    assert step.lookups(6000) > 0


def test_the_parts_of_a_step_follow_each_other_and_fill_it(monkeypatch):
    from experiments.world.environment import TwinEnvironment

    monkeypatch.setattr(step, "STEPS", 1)
    config, policy, tok, tasks = step.settings({"rows": 8, "response tokens": 26, "tasks": 4})
    before = rldtf.judge
    env = step.free(TwinEnvironment)(tasks, tok, None, config.reward)
    ((seconds,), (spans,)) = step.steps(config, policy, env, parts=True)
    assert rldtf.judge is before
    names = ["respond", "recall", "judge", "weigh", "update", "rollout_metrics"]
    assert [name for name, *_ in spans] == names
    times = [time for _, *both in spans for time in both]
    assert times == sorted(times) and times[-1] <= seconds
    assert sum(ended - begun for _, begun, ended in spans) > 0.8 * seconds
    assert max(spans, key=lambda span: span[2] - span[1])[0] == "update"


def test_what_an_arm_adds_to_the_caches_before_it(tmp_path):
    paths = [str(tmp_path / f"{i}.sqlite") for i in range(3)]
    for path, names in zip(paths, ("abc", "bcd", "ad")):
        cache = Cache(path)
        for name in names:
            cache.put(name.encode() * 16, COUNTS)
        cache.close()
    assert ablate_speed.added(paths) == [3, 1, 0]


def test_a_point_that_is_none_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        step.main(["--point", '{"height": 3}'])
    assert stop.value.code == 2
    assert "--point: 'height': expected one of rows, response tokens" in capsys.readouterr().err

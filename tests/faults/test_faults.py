"""The harness that kills runs: it finds nothing where a run goes on where it was, and says so where
it does not.
"""

import sys

import pytest

from experiments.benchmarks import faults

# Counts to 12 in a file, a number every 50 ms; `careless` forgets where it was half of the time.
COUNTER = """
import os, subprocess, sys, time
careless, directory = sys.argv[1] == "careless", sys.argv[-1].removeprefix("run_dir=")
os.makedirs(directory, exist_ok=True)
path = os.path.join(directory, "metrics.jsonl")
helper = subprocess.Popen(["sleep", "60"])
done = open(path).read().split() if os.path.exists(path) else []
if careless and done:
    done.append(done[-1])
for number in range(len(done), 12):
    time.sleep(0.05)
    done.append(str(number))
    with open(path + ".new", "w") as file:
        file.write("\\n".join(done))
    os.replace(path + ".new", path)
    if helper.poll() is not None:
        sys.exit("a helper died")
helper.kill()
"""


@pytest.fixture
def counter(tmp_path):
    path = tmp_path / "counter.py"
    path.write_text(COUNTER)
    return [sys.executable, str(path)]


def test_a_run_that_goes_on_where_it_was_ends_as_the_unkilled_one(counter):
    said = []
    found = faults.harness([*counter, "careful"], kills=4, seed=1, say=said.append)
    assert found["kills"] == 4 and found["runs"] >= 1 and sum(found["killed_in"].values()) == 4
    assert (
        found["compared"] == ["metrics.jsonl"]
        and found["differing"] == []
        and len(said) == found["runs"] + 1
    )


def test_a_run_that_repeats_itself_is_found_out(counter):
    found = faults.harness([*counter, "careless"], kills=3, seed=1, say=lambda text: None)
    assert "metrics.jsonl" in found["differing"]


def test_a_start_that_fails_by_itself_is_reported_with_its_last_line(tmp_path):
    path = tmp_path / "fails.py"
    # no second start works
    path.write_text(COUNTER.replace("os.makedirs(directory, exist_ok=True)", "os.mkdir(directory)"))
    found = faults.harness(
        [sys.executable, str(path), "careful"], kills=9, seed=1, say=lambda text: None
    )
    assert 1 <= found["kills"] < 9 and "FileExistsError" in found["failed_starts"][0]
    path.write_text("import sys; sys.exit('no more')")
    with pytest.raises(SystemExit, match="the run that nobody killed ended with 1: no more"):
        faults.harness([sys.executable, str(path)], kills=1, seed=0)


def test_files_that_are_missing_or_not_the_same_differ():
    assert faults.differences({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"}) == [
        "b",
        "c",
        "d",
    ]

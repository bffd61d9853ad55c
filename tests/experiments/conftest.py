import fcntl
import itertools
import json
import os
import shutil
import signal

import pytest
from running import finish, start, wait_for

from experiments.world import worlds
from twin import Twin


@pytest.fixture(scope="session")
def twin():
    with Twin(workers=2, cache=None, seed=0, method="esm") as running:
        yield running


@pytest.fixture(scope="session")
def drawn():
    return list(itertools.islice(worlds.candidates(worlds.family("link-native"), 0), 24))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(run_dir, what it printed) of a smoke run, interrupted with Ctrl-C in the RLDTF stage and
    gone on with; made once for all of pytest's workers, of which each has a copy.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made, printed = str(shared / "smoke"), shared / "smoke.txt"
    with open(shared / "smoke.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            printed.write_text(interrupted_and_gone_on_with(made))
    copy = str(tmp_path_factory.mktemp("runs") / "smoke")
    shutil.copytree(made, copy)
    return copy, printed.read_text().replace(made, copy)


def interrupted_and_gone_on_with(run_dir):
    process = start("preset=smoke", f"run_dir={run_dir}", "rldtf.steps=6")
    wait_for(os.path.join(run_dir, "rldtf", "checkpoints", "1"), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "goes on from there" in err.splitlines()[-1]
    steps = [
        json.loads(line)["step"] for line in open(os.path.join(run_dir, "rldtf", "metrics.jsonl"))
    ]
    assert 1 <= len(steps) < 6
    code, out, err = finish("preset=smoke", f"run_dir={run_dir}", "rldtf.steps=6")
    assert code == 0, err
    return out

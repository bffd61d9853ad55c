import itertools
import json
import os
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
    """A smoke run, interrupted with Ctrl-C in the RLDTF stage and gone on with."""
    run_dir = str(tmp_path_factory.mktemp("runs") / "smoke")
    process = start("preset=smoke", f"run_dir={run_dir}", "rldtf.steps=6")
    wait_for(os.path.join(run_dir, "rldtf", "checkpoints", "1"), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "goes on from there" in err.splitlines()[-1]
    steps = [json.loads(line)["step"] for line in open(os.path.join(run_dir, "rldtf", "metrics.jsonl"))]
    assert 1 <= len(steps) < 6
    code, out, err = finish("preset=smoke", f"run_dir={run_dir}", "rldtf.steps=6")
    assert code == 0, err
    return run_dir, out

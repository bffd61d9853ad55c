import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from demo.engine import Engine
from experiments.config import ExperimentConfig, load
from experiments.stages.instruct import instruct
from experiments.stages.run import opened

# the model that ships, after phase 1
OVERRIDES = ["preset=smoke", "model=instructed", "instruct.sft=null", "twin.workers=1"]


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A run directory whose phase 1 is finished."""
    path = str(tmp_path_factory.mktemp("demo") / "run")
    with opened(load([*OVERRIDES, f"run_dir={path}"], ExperimentConfig), start_twin=False) as run:
        instruct(run)
    return path


@pytest.fixture(scope="module")  # its processes end with the file
def engine(run_dir):
    with opened(load([*OVERRIDES, f"run_dir={run_dir}"], ExperimentConfig), shared=True) as run:
        engine = Engine(run)
        with contextlib.closing(engine):
            yield engine


@pytest.fixture(scope="module")
def address(run_dir):
    """Of the demo as its command starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", "--run", run_dir, "--port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    yield url
    process.terminate()
    assert process.wait(30) in (0, -15)

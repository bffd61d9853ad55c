"""The checks of sionna_stages.py and neural_stages.py, one test each, run once in a process of
their own.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("sionna_stages.py")


@pytest.fixture(scope="session")
def outcome():
    env = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(FILE.parents[2]),
    }
    run = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


FILES = (FILE, FILE.with_name("neural_stages.py"))


@pytest.mark.parametrize(
    "name", [name for file in FILES for name in re.findall(r"@check\ndef (\w+)", file.read_text())]
)
def test(name, outcome):
    assert outcome[name] is None, outcome[name]

"""Every example runs as its first lines say."""

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAYS = {
    "gymnasium_agent.py": "rule_agent    mean R",
    "trl_reward.py": "step 2: mean R",
    "score_answers.py": "score of fulfilled",
}


def test_every_example_is_run_here():
    """The notebooks beside them are run by tests/test_docs.py."""
    listed = os.listdir(os.path.join(ROOT, "examples"))
    assert sorted(name for name in listed if name.endswith(".py")) == sorted(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name):
    done = subprocess.run(
        [sys.executable, os.path.join("examples", name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
    assert done.stderr == "" or name == "trl_reward.py"  # TRL and transformers warn of each other

"""The documentation: the site builds without a warning, equations and functions point at each
other, examples run.
"""

import doctest
import importlib
import os
import pathlib
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest

PROJECT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((PROJECT / "examples" / "notebooks").glob("*.ipynb"))
WITH_EXAMPLES = (
    "rldtf_jax.reward",
    "rldtf_jax.token_weight",
    "rldtf_jax.loss",
    "rldtf_jax.advantage",
    "rldtf_jax.sample",
    "twin.program",
    "twin.delay",
    "experiments.world.orchestration",
)


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-d",
            str(tmp_path / "site"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    method = (tmp_path / "site" / "method" / "index.html").read_text()
    assert 'href="../api/learning/#rldtf_jax.loss.policy_loss"' in method
    # nothing is fetched from elsewhere
    assert not re.search(
        r'(?:src|href)="https?://(?!squidfunk|zensical|github\.com/NVlabs|nvlabs\.github|gymnasium\.farama)',
        method,
    )


def test_every_equation_points_at_a_function_that_names_it():
    method = (PROJECT / "docs" / "method.md").read_text()
    rows = re.findall(r"^\| Eq\. (\d) \|[^|]*\|([^\n]*)\|$", method, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 10))
    readme = (PROJECT / "README.md").read_text()
    for number, cell in rows:
        for target in re.findall(r"\]\[([\w.]+)\]", cell):
            module, _, name = target.rpartition(".")
            assert f"Eq. {number}" in getattr(importlib.import_module(module), name).__doc__, target
        first = re.search(r"\]\[([\w.]+)\]", cell)[1]
        assert re.search(rf"^\| Eq\. {number}, .*`{re.escape(first)}`", readme, re.MULTILINE), first


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_of_docstrings_say_what_comes(module):
    result = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_their_own_directory(path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    assert any(
        output["output_type"] in ("display_data", "execute_result", "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


def test_the_readmes_training_runs_as_it_stands():
    """From the project's directory, with fewer rollouts."""
    code = re.search(
        r"```python\n(import rldtf_jax.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL
    )[1]
    assert "steps=3, prompts_per_step=8" in code and len(code.strip().splitlines()) <= 14
    code = (
        code.replace("steps=3", "steps=1") + "print(history[0]['reward'], history[0]['failed'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reward, failed = map(float, done.stdout.splitlines()[-1].split())
    assert -1 < reward <= 1 and failed < 0.6  # most responses say something that can be run

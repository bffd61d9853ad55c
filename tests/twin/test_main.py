import subprocess
import sys

import pytest

from twin import Workflow, describe, render
from twin.__main__ import main


@pytest.fixture
def files(tmp_path):
    (tmp_path / "scenario.yaml").write_text("channel: awgn\nnum_rx_ant: 1\nsnr_db: 8\n")
    (tmp_path / "workflow.txt").write_text(render(Workflow(code="none", estimator="perfect")))
    return str(tmp_path / "scenario.yaml"), str(tmp_path / "workflow.txt")


def test_run_prints_the_qos_and_the_delay_by_module(files, capsys):
    assert main(["run", *files]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("throughput", "BER", "BLER", "transport block", "slot", "detect", "decode"))


def test_sweep_prints_a_table_and_draws_it_beside_the_closed_form(files, capsys, tmp_path):
    figure = tmp_path / "sweep.svg"
    assert main(["sweep", *files, "--snr", "0:30:15", "--max-blocks", "32", "--workers", "1", "--out", str(figure)]) == 0
    assert capsys.readouterr().out.count("[") == 3 and b"<svg" in figure.read_bytes()


def test_toolbox_prints_what_a_prompt_shows():
    out = subprocess.run([sys.executable, "-m", "twin", "toolbox"], capture_output=True, text=True, check=True).stdout
    assert out.strip() == describe()


@pytest.mark.parametrize(
    "scenario, workflow, words",
    [
        (None, "", "No such file"),
        ("snr: 3", "", "unknown scenario fields snr"),
        ("snr_db: loud", "", "Scenario.snr_db"),
        ("- 3", "", "expected a mapping"),
        ("{", "", "scenario.yaml"),
        ("", "grid()", "line 1: grid lacks num_prb"),
        ("max_prb: 3", render(Workflow()), "at most 3"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(scenario, workflow, words, tmp_path, capsys):
    paths = tmp_path / "scenario.yaml", tmp_path / "workflow.txt"
    if scenario is not None:
        paths[0].write_text(scenario)
    paths[1].write_text(workflow)
    assert main(["run", *map(str, paths)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.startswith("twin: ")

import re
import subprocess
import sys

import numpy as np
import pytest

from twin import Scenario, Workflow, describe, render
from twin.__main__ import main, reference
from twin.theory import awgn_ber, table_bler
from twin.transport import coded_bits, information_bits, segmentation


@pytest.fixture
def files(tmp_path):
    (tmp_path / "scenario.yaml").write_text("channel: awgn\nnum_rx_ant: 1\nsnr_db: 8\n")
    (tmp_path / "workflow.txt").write_text(render(Workflow(code="none", estimator="perfect")))
    return str(tmp_path / "scenario.yaml"), str(tmp_path / "workflow.txt")


def number(pattern, text):
    return float(re.search(pattern, text).group(1))


def test_run_prints_the_qos_and_the_delay_by_module(files, capsys):
    assert main(["run", *files]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("throughput", "uncoded", "slot", "detect", "decode"))
    low, high = map(float, re.search(r"\nBER .*95 % in \[(\S+), (\S+)\]", text).groups())
    assert 0 < low < awgn_ber(2, 8) < high < 0.01


def test_run_prints_the_transport_block_and_what_each_transmission_delivers(tmp_path, capsys):
    """QPSK 1/2 in AWGN 2 dB below its threshold: the first transmission fails, the second one
    never.
    """
    scenario, workflow = tmp_path / "scenario.yaml", tmp_path / "workflow.txt"
    scenario.write_text("channel: awgn\nnum_rx_ant: 1\nsnr_db: -1.5\n")
    w = Workflow(num_prb=100, num_transmissions=2, estimator="perfect")
    workflow.write_text(render(w))
    assert main(["run", str(scenario), str(workflow)]) == 0
    text, code = capsys.readouterr().out, segmentation(w)
    assert f"{information_bits(w)} bits" in text and code.num_blocks > 1
    assert (
        f"in {code.num_blocks} code block(s) of {code.info}, {coded_bits(w)} coded, base graph"
        f" {code.base_graph}" in text
    )
    assert number(r"after 1 +(\S+) %", text) == 0 and number(r"after 2 +(\S+) %", text) == 100
    assert number(r"sent +(\S+) times", text) == 2
    assert number(r"delivered within (\S+) ms", text) == pytest.approx(
        number(r"delay +(\S+) ms", text), abs=1e-4
    )


def test_sweep_prints_a_table_and_draws_it_beside_the_closed_form(files, capsys, tmp_path):
    figure = tmp_path / "sweep.svg"
    command = [
        "sweep",
        *files,
        "--snr",
        "0:30:15",
        "--max-blocks",
        "32",
        "--workers",
        "1",
        "--out",
        str(figure),
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.count("[") == 6 and b"<svg" in figure.read_bytes()


@pytest.mark.parametrize("num_prb, blocks", [(6, 1), (200, 8)])
def test_the_sweep_of_a_code_lies_beside_sionnas_table(num_prb, blocks):
    """A slot of several code blocks fails when one of them does."""
    workflow = Workflow(num_prb=num_prb, bits_per_symbol=4, code_rate=490 / 1024)
    label, snr, bler = reference(Scenario(channel="awgn", num_rx_ant=2), workflow, np.arange(9.0))
    assert "MCS 13" in label and segmentation(workflow).num_blocks == blocks
    table_snr, one = table_bler(13, segmentation(workflow).info)
    assert snr[0] == pytest.approx(table_snr[0] - 3.0103)  # two antennas
    np.testing.assert_allclose(bler, (1 - (1 - one) ** blocks)[: len(bler)])


def test_toolbox_prints_what_a_prompt_shows():
    out = subprocess.run(
        [sys.executable, "-m", "twin", "toolbox"], capture_output=True, text=True, check=True
    ).stdout
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

"""Training of the neural receiver: a killed run goes on as if it had not been; wrong arguments are
refused in a line.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.networks import train_deeprx

# Two slots a batch, so that a step takes a fraction of a second; one thread, so that sums have one
# order
SMALL = """
import sys
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
from experiments.networks import train_deeprx
train_deeprx.CONFIG.update(groups=1, slots_per_group=2, warmup_steps=1)
train_deeprx.HELD_OUT_BATCHES = 1
train_deeprx.main(sys.argv[1:])
"""


def start(run_dir):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-c",
        SMALL,
        "--run-dir",
        str(run_dir),
        "--steps",
        "6",
        "--validate-every",
        "2",
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed, first = start(whole), start(killed)
    while first.poll() is None and not (killed / "state.safetensors").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL and not (killed / "weights.safetensors").exists()
    for run in (start(killed), undisturbed):
        _, error = run.communicate()
        assert run.returncode == 0, error
    for name in ("weights.safetensors", "curve.csv", "config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert [line.split(",")[0] for line in (whole / "curve.csv").read_text().splitlines()] == [
        "step",
        "2",
        "4",
        "6",
    ]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--steps", 0), "steps=0: expected an integer >= 1"),
        (("--validate-every", -1), "validate_every=-1: expected an integer >= 1"),
        (("--steps", 9), "holds a run with steps=6, expected 9"),
        (("--size", "deeprx"), "holds a run with size='deeprx-small', expected 'deeprx'"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(tmp_path, arguments, words):
    train_deeprx.claim(tmp_path / "config.json", train_deeprx.configuration("deeprx-small", 6))
    with pytest.raises(SystemExit) as refused:
        train_deeprx.main([*map(str, ("--run-dir", tmp_path, "--steps", 6, *arguments))])
    assert words in str(refused.value) and "\n" not in str(refused.value)

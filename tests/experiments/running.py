"""Commands as a user types them, in processes of their own."""

import os
import subprocess
import sys
import time

LINK = {
    "channel": "tdl-b",
    "snr_db": 16,
    "num_tx_ant": 2,
    "num_rx_ant": 2,
    "delay_spread_ns": 100,
    "speed_mps": 3,
    "max_prb": 25,
    "compute_gflops": 10,
}


def start(*arguments, module="experiments.stages.pipeline", env=None):
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    )


def finish(*arguments, **kwargs):
    process = start(*arguments, **kwargs)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def wait_for(path, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not os.path.exists(path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.path.exists(path), (
        process.communicate()[1] if process.poll() is not None else f"no {path} in time"
    )

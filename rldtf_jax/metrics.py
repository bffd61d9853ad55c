"""Metrics of a run: JSON lines always, TensorBoard beside them, a progress bar in front.

A step's metrics are written one step late, when the device has them anyway, so that dispatch never waits. A resumed
run cuts the JSONL back to the byte at which its checkpoint was taken: what a killed run wrote after it is written again,
the same.
"""

import json
import math
import os
import sys
import time
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

JSONL = "metrics.jsonl"


class Tracker:
    """Writes `directory/metrics.jsonl` and TensorBoard events, and shows progress over `total` steps."""

    def __init__(self, directory: str, total: int, *, start: int = 0, position: int = 0, title: str = "",
                 tensorboard: bool = True, show: tuple[str, ...] = ()):
        """start, position: first step and JSONL byte to go on from; show: metrics beside the progress bar."""
        os.makedirs(directory, exist_ok=True)
        self._file = open(os.path.join(directory, JSONL), "ab")
        if position > self._file.tell():
            raise ValueError(f"{self._file.name}: {self._file.tell()} bytes long, the checkpoint knows {position}")
        self._file.truncate(position)
        self._file.seek(position)
        self._writer = SummaryWriter(directory, purge_step=start) if tensorboard else None
        self._bar = tqdm(total=total, initial=start, desc=title, unit="step", dynamic_ncols=True, file=sys.stderr,
                         mininterval=0.1 if sys.stderr.isatty() else 5.0)
        self._show, self._pending, self._clock = show, None, time.monotonic()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of `step` (device arrays welcome) and writes those of the step before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> int:
        """Writes what is pending; returns the JSONL's length in bytes, for a checkpoint to keep."""
        if self._pending is not None:
            step, metrics = self._pending
            self._pending = None
            row = {name: _plain(value) for name, value in jax.device_get(metrics).items()}
            now = time.monotonic()
            timing, self._clock = {"step_seconds": now - self._clock}, now
            self._file.write(json.dumps({"step": step, **row}, allow_nan=False).encode() + b"\n")
            self._file.flush()
            if self._writer is not None:
                for name, value in (row | timing).items():
                    if isinstance(value, (int, float)):
                        self._writer.add_scalar(name, value, step)
            self._bar.set_postfix({k: f"{row[k]:.3g}" for k in self._show if row.get(k) is not None}, refresh=False)
            self._bar.update(1)
        return self._file.tell()

    def close(self) -> None:
        self.flush()
        self._bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read(directory: str) -> list[dict[str, Any]]:
    """The rows of a directory's JSONL; a last line cut short by a kill is left out."""
    path = os.path.join(directory, JSONL)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

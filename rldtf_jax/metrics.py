"""Metrics of a run: JSON lines always, TensorBoard beside them, a progress bar in front.

A step's metrics are written one step late, when the device has them anyway, so that dispatch never waits. A resumed
run cuts the JSONL back to the byte at which its checkpoint was taken: what a killed run wrote after it is written again,
the same. What depends on the machine and the day (seconds, cache hits) stands apart, in `runtime.jsonl`.
"""

import contextlib
import json
import math
import os
import sys
import time
from typing import Any, Iterator

import jax
import numpy as np
from tqdm import tqdm

JSONL = "metrics.jsonl"
RUNTIME = "runtime.jsonl"


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
        self._runtime = open(os.path.join(directory, RUNTIME), "ab")
        self._writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # it imports torch for seconds where that is installed

            self._writer = SummaryWriter(directory, purge_step=start)
        self._bar = tqdm(total=total, initial=start, desc=title, unit="step", dynamic_ncols=True, file=sys.stderr,
                         mininterval=0.1 if sys.stderr.isatty() else 5.0)
        self._show, self._pending, self._clock = show, None, time.monotonic()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of `step` (device arrays welcome) and writes those of the step before.

        metrics["runtime"], where present, is a dict of what a rerun of the step need not repeat.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> int:
        """Writes what is pending; returns the JSONL's length in bytes, for a checkpoint to keep."""
        if self._pending is not None:
            step, metrics = self._pending
            self._pending = None
            row = {name: _plain(value) for name, value in jax.device_get(metrics).items()}
            now = time.monotonic()
            runtime, self._clock = {"step_seconds": now - self._clock, **row.pop("runtime", {})}, now
            for file, values in ((self._file, row), (self._runtime, runtime)):
                file.write(json.dumps({"step": step, **values}, allow_nan=False).encode() + b"\n")
                file.flush()
            if self._writer is not None:
                for name, value in (row | runtime).items():
                    if isinstance(value, (int, float)):
                        self._writer.add_scalar(name, value, step)
            self._bar.set_postfix({k: f"{row[k]:.3g}" for k in self._show if row.get(k) is not None}, refresh=False)
            self._bar.update(1)
        return self._file.tell()

    def close(self) -> None:
        self.flush()
        self._bar.close()
        self._file.close()
        self._runtime.close()
        if self._writer is not None:
            self._writer.close()


def read(directory: str) -> list[dict[str, Any]]:
    """The rows of a directory's JSONL, with what its runtime.jsonl knows of the same steps."""
    rows = {row["step"]: row for row in _rows(os.path.join(directory, JSONL))}
    for row in _rows(os.path.join(directory, RUNTIME)):
        if row["step"] in rows:
            rows[row["step"]] |= row
    return list(rows.values())


def _rows(path: str) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL file; one cut short by a kill is left out."""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(json.JSONDecodeError):
                    yield json.loads(line)


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Metrics of a run: JSON lines always, TensorBoard or Weights & Biases beside them, a progress bar in front.

A step's metrics are written one step late, when the device has them anyway, so that dispatch never waits. A resumed
run cuts the JSONL back to the byte at which its checkpoint was taken: what a killed run wrote after it is written again,
the same. What depends on the machine and the day (seconds, memory, cache hits) stands apart, in `runtime.jsonl`.
"""

import contextlib
import json
import math
import os
import resource
import sys
import time
import warnings
import zlib
from typing import Any, Iterator

import jax
import numpy as np
from tqdm import tqdm

JSONL = "metrics.jsonl"
RUNTIME = "runtime.jsonl"


class Tracker:
    """Writes `directory/metrics.jsonl` and to the boards, and shows progress over `total` steps."""

    def __init__(self, directory: str, total: int, *, start: int = 0, position: int = 0, title: str = "",
                 boards: tuple[str, ...] = ("tensorboard",), show: tuple[str, ...] = ()):
        """start, position: first step and JSONL byte to go on from; boards: "tensorboard", "wandb"; show: metrics beside
        the progress bar."""
        os.makedirs(directory, exist_ok=True)
        self._file = open(os.path.join(directory, JSONL), "a+b")
        if position > (size := self._file.tell()):  # cut or deleted from outside: the checkpoint is worth more than its curves
            self._file.seek(0)
            position = self._file.read().rfind(b"\n") + 1
            warnings.warn(f"{self._file.name}: {size} bytes long where the checkpoint knows more; going on, with the rows that are left")
        self._file.truncate(position)
        self._file.seek(position)
        self._runtime = open(os.path.join(directory, RUNTIME), "ab")
        self._boards = [BOARDS[name](directory, start) for name in boards]
        self._bar = tqdm(total=total, initial=start, desc=title, unit="step", dynamic_ncols=True, file=sys.stderr,
                         mininterval=0.1 if sys.stderr.isatty() else 5.0)
        self._show, self._pending, self._clock = show, None, time.monotonic()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of `step` (device arrays welcome) and writes those of the step before.

        metrics["runtime"], where present, is a dict of what a rerun of the step need not repeat.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self, to_disk: bool = False) -> int:
        """Writes what is pending; returns the JSONL's length in bytes, for a checkpoint to keep. to_disk: it survives a power cut."""
        if self._pending is not None:
            step, metrics = self._pending
            self._pending = None
            row = {name: _plain(value) for name, value in jax.device_get(metrics).items()}
            now = time.monotonic()
            seconds, self._clock = now - self._clock, now
            runtime = {"step_seconds": seconds, **memory(), **row.pop("runtime", {})}
            if "tokens" in row:
                runtime["tokens_per_s"] = row["tokens"] / seconds
            for file, values in ((self._file, row), (self._runtime, runtime)):
                file.write(json.dumps({"step": step, **values}, allow_nan=False).encode() + b"\n")
                file.flush()
            row |= runtime
            for board in self._boards:
                board.log(step, {name: value for name, value in row.items() if isinstance(value, (int, float))})
            self._bar.set_postfix({k: f"{row[k]:.3g}" for k in self._show if row.get(k) is not None}, refresh=False)
            self._bar.update(1)
        if to_disk:
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self.flush()
        self._bar.close()
        self._file.close()
        self._runtime.close()
        for board in self._boards:
            board.close()


class TensorBoard:
    """Events beside the JSON lines; those that a killed run wrote from step `start` on are dropped."""

    def __init__(self, directory: str, start: int):
        from tensorboardX import SummaryWriter  # it imports torch for seconds where that is installed

        self._writer = SummaryWriter(directory, purge_step=start)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run named after the directory; a resumed one goes on in it."""

    def __init__(self, directory: str, start: int):
        import wandb  # no dependency of this package: whoever asks for it has it

        path = os.path.abspath(directory)
        self._run = wandb.init(project="rldtf", dir=directory, name="/".join(path.split(os.sep)[-2:]),
                               id=f"rldtf-{zlib.crc32(path.encode()):08x}", resume="allow")

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


BOARDS = {"tensorboard": TensorBoard, "wandb": WandB}


def memory() -> dict[str, float]:
    """Peak memory of this process, and of its first device where that tells, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megabytes = {"memory_mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}
    device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in device:
        megabytes["device_memory_mb"] = device["peak_bytes_in_use"] / 2**20
    return megabytes


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

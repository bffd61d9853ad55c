"""Metrics of a run: JSON lines always, TensorBoard, Weights & Biases or MLflow beside them, a
progress bar in front.

A step's metrics are written one step late, when the device has them anyway, so that dispatch never
waits. A resumed run cuts the JSONL back to the byte at which its checkpoint was taken: what a
killed run wrote after it is written again, the same. What depends on the machine and the day
(seconds, memory, cache hits) stands apart, in `runtime.jsonl`.
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

    def __init__(
        self,
        directory: str,
        total: int,
        *,
        start: int = 0,
        position: int = 0,
        title: str = "",
        boards: tuple[str, ...] = ("tensorboard",),
        show: tuple[str, ...] = (),
        about: dict[str, Any] | None = None,
    ):
        """start, position: first step and JSONL byte to go on from; boards: keys of BOARDS; show:
          metrics beside the progress bar;
        about: what boards say of the run, such as its config and its machine.
        """
        os.makedirs(directory, exist_ok=True)
        self._file = open(os.path.join(directory, JSONL), "a+b")
        # cut or deleted from outside: the checkpoint is worth more than its curves
        if position > (size := self._file.tell()):
            self._file.seek(0)
            position = self._file.read().rfind(b"\n") + 1
            warnings.warn(
                f"{self._file.name}: {size} bytes long where the checkpoint knows more; going on,"
                " with the rows that are left",
                stacklevel=3,
            )
        self._file.truncate(position)
        self._file.seek(position)
        self._runtime = open(os.path.join(directory, RUNTIME), "ab")
        self._boards: list[Any] = [BOARDS[name](directory, start, about or {}) for name in boards]
        self._bar = progress(total=total, initial=start, desc=title, unit="step")
        self._show, self._pending, self._clock = show, None, time.monotonic()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of `step` (device arrays welcome) and writes those of the step before.

        metrics["runtime"], where present, is a dict of what a rerun of the step need not repeat.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self, to_disk: bool = False) -> int:
        """Writes what is pending; returns the JSONL's length in bytes, for a checkpoint to keep.
        to_disk: it survives a power cut.
        """
        if self._pending is not None:
            step, metrics = self._pending
            self._pending = None
            row = {name: _plain(value) for name, value in jax.device_get(metrics).items()}
            now = time.monotonic()
            seconds, self._clock = now - self._clock, now
            runtime = {"step_seconds": seconds, **memory(), **row.pop("runtime", {})}
            if "tokens" in row:
                runtime["tokens_per_s"] = row["tokens"] / seconds
            if runtime.get("twin/seconds"):
                runtime["twin/per_s"] = runtime.get("twin/simulated", 0) / runtime["twin/seconds"]
            for file, values in ((self._file, row), (self._runtime, runtime)):
                file.write(json.dumps({"step": step, **values}, allow_nan=False).encode() + b"\n")
                file.flush()
            row |= runtime
            for board in self._boards:
                board.log(
                    step,
                    {name: value for name, value in row.items() if isinstance(value, (int, float))},
                )
            self._bar.set_postfix(
                {k: f"{row[k]:.3g}" for k in self._show if row.get(k) is not None}, refresh=False
            )
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


class Silent:
    """The tracker of a process that leaves writing to another."""

    def log(self, step: int, metrics: dict[str, Any]) -> None: ...

    def flush(self, to_disk: bool = False) -> int:
        return 0

    def close(self) -> None: ...


class TensorBoard:
    """Events beside the JSON lines; those that a killed run wrote from step `start` on are
    dropped.
    """

    def __init__(self, directory: str, start: int, about: dict[str, Any]):
        # it imports torch for seconds where that is installed
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(directory, purge_step=start)
        if about and not start:
            self._writer.add_text(
                "about", "\n".join(f"    {name}: {value}" for name, value in about.items())
            )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run named after the directory; a resumed one goes on in it."""

    def __init__(self, directory: str, start: int, about: dict[str, Any]):
        import wandb  # no dependency of this package: whoever asks for it has it

        self._run = wandb.init(
            project="rldtf",
            dir=directory,
            name=_name(directory),
            id=_id(directory),
            resume="allow",
            config=about,
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment "rldtf", where MLFLOW_TRACKING_URI says; a resumed one goes on
    in it.
    """

    def __init__(self, directory: str, start: int, about: dict[str, Any]):
        import mlflow  # no dependency of this package either

        self._mlflow = mlflow
        experiment = mlflow.set_experiment("rldtf").experiment_id
        known = mlflow.search_runs(
            [experiment], f"tags.id = '{_id(directory)}'", output_format="list"
        )
        self._run = mlflow.start_run(
            run_id=known[0].info.run_id if known else None,
            run_name=_name(directory),
            tags={"id": _id(directory)},
            nested=True,
        )
        if not known:
            mlflow.log_params({name: str(value)[:500] for name, value in about.items()})

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._mlflow.log_metrics(numbers, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


BOARDS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _name(directory: str) -> str:
    return "/".join(os.path.abspath(directory).split(os.sep)[-2:])


def _id(directory: str) -> str:
    return f"rldtf-{zlib.crc32(os.path.abspath(directory).encode()):08x}"


def progress(**options) -> tqdm:
    """A progress bar on standard error; where that is no terminal, a line every half a minute and
    one at the end.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        file=sys.stderr if terminal else _Lines(),
        mininterval=0.1 if terminal else 30.0,
        dynamic_ncols=terminal,
        **options,
    )


class _Lines:
    """Standard error, a bar's states as lines of their own."""

    def __init__(self):
        self._shown = ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line and line != self._shown:
            self._shown = line
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


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

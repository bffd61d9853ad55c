"""Worker processes: points in, counts out, in whatever order they finish.

Workers are started with a socket of their own and nothing else inherited; the parent never imports TensorFlow. A worker
that dies is replaced and the point it was at is tried once more; a point that kills two workers becomes an error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

from .physical import Counts, Point, Settings

CHUNK = 16  # points per message: about 0.1 s of work
MAX_FAILED_STARTS = 3
QUIET_AND_SINGLE_THREADED = {
    "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}


class TwinError(RuntimeError):
    """A point that could not be simulated."""


def share(jobs: Iterable, num_workers: int, point_of: Callable[..., Point]) -> list[deque]:
    """A queue of jobs for every worker; those of one channel state go to one worker, which keeps its realisations."""
    queues = [deque() for _ in range(num_workers)]
    for job in jobs:
        queues[zlib.crc32(repr(point_of(job).state).encode()) % num_workers].append(job)
    return queues


def take(queues: list[deque], slot: int) -> list:
    """The next chunk of a worker: from its own queue's head, or else from the longest queue's tail."""
    if own := queues[slot]:
        return [own.popleft() for _ in range(min(CHUNK, len(own)))]
    longest = max(queues, key=len)
    return [longest.pop() for _ in range(min(CHUNK, (len(longest) + 1) // 2))][::-1]


class _Worker:
    """One process, its connection, and the jobs it was sent and has not answered yet."""

    def __init__(self, command: list[str], settings: Settings, seed: int):
        ours, theirs = socket.socketpair()
        self.log = tempfile.TemporaryFile()
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            env=os.environ | QUIET_AND_SINGLE_THREADED | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=self.log, start_new_session=True,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send((settings, seed))
        self.jobs: deque = deque()
        self.ready = self.busy = False

    def send(self, kind: str, jobs) -> None:
        self.jobs, self.busy = deque(jobs) if kind == "run" else deque(), True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: its end of file is read next
            self.connection.send((kind, list(jobs)))

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.log.close()

    def last_words(self) -> str:
        """The end of what it wrote to stderr, TensorFlow's greetings included."""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 2000))
        return self.log.read().decode(errors="replace").strip()


class Pool:
    """`num_workers` processes that simulate points under one seed and one Settings.

    `command` starts one; the number of its socket is appended. What a worker says and hears: see twin.worker.
    """

    def __init__(self, num_workers: int, settings: Settings, seed: int, command=(sys.executable, "-m", "twin.worker")):
        self.num_workers, self.settings, self.seed, self.command = num_workers, settings, seed, command
        self.workers: dict[int, _Worker] = {}  # by slot 0 .. num_workers - 1
        self.traces: dict[int, int] = {}  # process id -> compiled stages traced so far
        self.failed_starts = 0

    def start(self) -> None:
        """Start the processes that are missing; they import TensorFlow while the caller goes on."""
        for slot in set(range(self.num_workers)) - set(self.workers):
            self.workers[slot] = _Worker(self.command, self.settings, self.seed)

    def close(self) -> None:
        for slot in list(self.workers):
            self._stop(slot)

    def _stop(self, slot: int) -> None:
        self.workers.pop(slot).stop()

    def num_traces(self) -> int:
        """How many compiled stages the workers have traced so far."""
        if self.workers:
            self._settle()
        return sum(self.traces.values())

    def warm(self, signatures: list[tuple]) -> None:
        """Compile these stages (see Point.signatures) in every worker, and wait for it."""
        self._settle()
        for worker in self.workers.values():
            worker.send("warm", signatures)
        self._settle()

    def run(self, points: list[Point]) -> Iterator[tuple[Point, Counts | TwinError, float]]:
        """Yield (point, counts or error, seconds) for each of the distinct points as they finish.

        Points of one channel state go to one worker, which keeps its realisations, unless another one runs out of work.
        """
        self._settle()
        queues = share(enumerate(points), self.num_workers, lambda job: job[1])
        deaths, remaining = {}, len(points)
        while remaining:
            self.start()
            for slot, worker in self.workers.items():
                if not worker.busy and (jobs := take(queues, slot)):
                    worker.send("run", jobs)
            for slot, message in self._messages():
                worker = self.workers[slot]
                if message is None:
                    self._stop(slot)
                    queues[slot].extendleft(reversed(worker.jobs))
                    if worker.ready and worker.jobs:
                        job, point = worker.jobs[0]
                        deaths[job] = deaths.get(job, 0) + 1
                        if deaths[job] == 2:
                            queues[slot].popleft()
                            remaining -= 1
                            yield point, TwinError(f"{point}: killed its worker twice"), 0.0
                elif message[0] not in ("ready", "idle"):
                    _, answer, seconds = message
                    _, point = worker.jobs.popleft()
                    remaining -= 1
                    yield point, TwinError(f"{point}: {answer}") if isinstance(answer, str) else answer, seconds

    def _messages(self):
        """Wait for messages of the workers, by slot; None stands for a worker that died."""
        slots = {worker.connection: slot for slot, worker in self.workers.items()}
        for connection in wait(list(slots)):
            worker = self.workers[slots[connection]]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                message = None
            if message is None and not worker.ready:
                self.failed_starts += 1
                if self.failed_starts == MAX_FAILED_STARTS:
                    raise TwinError(f"workers do not start ({' '.join(self.command)}):\n{worker.last_words()}")
            elif message == ("ready",):
                worker.ready, self.failed_starts = True, 0
            elif message and message[0] == "idle":
                worker.busy, self.traces[worker.process.pid] = False, message[1]
            yield slots[connection], message

    def _settle(self) -> None:
        """Start what is missing and let workers finish what an interrupted call left them with."""
        self.start()
        while any(worker.busy for worker in self.workers.values()):
            for slot, message in self._messages():
                if message is None:
                    self._stop(slot)
                    self.start()

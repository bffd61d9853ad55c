"""Worker processes: points in, counts out, in whatever order they finish.

Workers are started with a socket of their own and nothing else inherited; the parent never imports
TensorFlow. A worker that dies or hangs is replaced and the point it was at is tried once more; a
point that costs two workers becomes an error. A worker hangs when it owes a message and says
nothing for too long.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

from .physical import Counts, Point, Settings

CHUNK = 16  # points per message: about 0.1 s of work
COMMAND = (sys.executable, "-m", "twin.worker")
MAX_FAILED_STARTS = 3
# blocks x PRB x transmissions; points that may be larger have more time in proportion
LIMIT_SIZE = 128 * 24
POINT_LIMIT_S = 600.0  # the slowest, K-Best with 4 layers of 256QAM, takes 220 s for this size
START_LIMIT_S = 120.0
MESSAGE_LIMIT_S = 30  # for the rest of a message that has begun
KILL_LIMIT_S = 10.0  # a process inside a system call that does not return is left to die by itself
LONGEST_WAIT_S = 3600.0
QUIET_AND_SINGLE_THREADED = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class TwinError(RuntimeError):
    """A point that could not be simulated."""


def share(jobs: Iterable, num_workers: int, point_of: Callable[..., Point]) -> list[deque]:
    """A queue of jobs for every worker; one worker gets all of a channel state and keeps its
    realisations.
    """
    queues = [deque() for _ in range(num_workers)]
    for job in jobs:
        queues[zlib.crc32(repr(point_of(job).state).encode()) % num_workers].append(job)
    return queues


def take(queues: list[deque], slot: int) -> list:
    """The next chunk of a worker: from its own queue's head, or else from the longest queue's
    tail.
    """
    if own := queues[slot]:
        return [own.popleft() for _ in range(min(CHUNK, len(own)))]
    longest = max(queues, key=len)
    return [longest.pop() for _ in range(min(CHUNK, (len(longest) + 1) // 2))][::-1]


def limit_share(point: Point, settings: Settings) -> float:
    """The limit of a point in units of `point_limit_s`: how often LIMIT_SIZE goes into it, and at
    least 1.
    """
    if point.rounds is None:
        num_blocks = settings.max_blocks
    else:
        num_blocks = (point.rounds[1] - point.rounds[0]) * point.slots_per_round
    return max(1.0, num_blocks * point.num_prb * point.num_transmissions / LIMIT_SIZE)


class _Worker:
    """One process, its connection, the jobs it has not answered yet, and when its next message is
    due.
    """

    def __init__(
        self, command, settings: Settings, seed: int, point_limit_s: float, start_limit_s: float
    ):
        self.settings, self.point_limit_s = settings, point_limit_s
        self.limits_s: deque[float] = deque()  # of the messages that its jobs have to bring
        self.due = time.monotonic() + start_limit_s
        ours, theirs = socket.socketpair()
        # it may stop in the middle of a message
        for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, way, struct.pack("@ll", MESSAGE_LIMIT_S, 0))
        self.log = tempfile.TemporaryFile()
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | QUIET_AND_SINGLE_THREADED | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            start_new_session=True,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        with contextlib.suppress(OSError):  # it died: its end of file is read next
            self.connection.send((settings, seed))
        self.jobs: deque = deque()
        self.ready = self.busy = self.overdue = False

    def send(self, kind: str, jobs) -> None:
        self.jobs, self.busy = deque(jobs) if kind == "run" else deque(), True
        points = [point for _, point in jobs] if kind == "run" else jobs
        limits_s = [self.point_limit_s * limit_share(point, self.settings) for point in points]
        limits_s.append(self.point_limit_s)  # of "idle", which is all that comes of a "warm"
        self.limits_s = deque(limits_s if kind == "run" else [sum(limits_s)])
        if self.ready:
            self.heard()
        # it died or hangs: end of file comes next, or time runs out
        with contextlib.suppress(OSError):
            self.connection.send((kind, list(jobs)))

    def heard(self) -> None:
        """It is alive, and its next message, if there is one, due a limit from now."""
        self.due = time.monotonic() + (self.limits_s.popleft() if self.limits_s else math.inf)

    @property
    def owes(self) -> bool:
        """It owes a message: that it is ready, or what came of its jobs."""
        return self.busy or not self.ready

    def hangs(self) -> bool:
        """Its message is overdue and not there to be read, however long ago we last looked."""
        return self.owes and time.monotonic() >= self.due and not self.connection.poll()

    def stop(self) -> str:
        """End the process, also one that is stopped, and say what was wrong with it."""
        self.connection.close()
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_LIMIT_S)
        self.log.close()
        return "no answer in time" if self.overdue else f"exit status {self.process.returncode}"

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 2000))
        return self.log.read().decode(errors="replace").strip()


class Pool:
    """`num_workers` processes that simulate points under one seed and one Settings.

    command: starts one; the number of its socket is appended. What a worker says and hears: see
      twin.worker.
    point_limit_s: a worker that needs longer for a point is killed; points that may be larger than
      LIMIT_SIZE have more time in proportion, and those of `warm` have theirs together
    start_limit_s: the same to start
    """

    def __init__(
        self,
        num_workers: int,
        settings: Settings,
        seed: int,
        command=COMMAND,
        point_limit_s: float = POINT_LIMIT_S,
        start_limit_s: float = START_LIMIT_S,
    ):
        if not (point_limit_s > 0 and start_limit_s > 0):
            raise ValueError(
                f"Pool: expected limits above 0 s, got {point_limit_s!r} and {start_limit_s!r}"
            )
        self.num_workers, self.settings, self.seed, self.command = (
            num_workers,
            settings,
            seed,
            command,
        )
        self.point_limit_s, self.start_limit_s = point_limit_s, start_limit_s
        self.workers: dict[int, _Worker] = {}  # by slot 0 .. num_workers - 1
        self.traces: dict[int, int] = {}  # process id -> compiled stages traced so far
        self.failed_starts = 0

    def start(self) -> None:
        """Start the processes that are missing; they import what they need while the caller goes
        on.
        """
        for slot in set(range(self.num_workers)) - set(self.workers):
            limits = self.point_limit_s, self.start_limit_s
            self.workers[slot] = _Worker(self.command, self.settings, self.seed, *limits)

    def close(self) -> None:
        for slot in list(self.workers):
            self._stop(slot)

    def _stop(self, slot: int) -> str:
        return self.workers.pop(slot).stop()

    def num_traces(self) -> int:
        """How many compiled stages the workers have traced so far."""
        if self.workers:
            self._settle()
        return sum(self.traces.values())

    def warm(self, points: list[Point]) -> None:
        """Simulate these points in every worker, for what that compiles, and wait for it."""
        self._settle()
        for worker in self.workers.values():
            worker.send("warm", points)
        self._settle()

    def run(self, points: list[Point]) -> Iterator[tuple[Point, Counts | TwinError, float]]:
        """Yield (point, counts or error, seconds) for each of the distinct points as they finish.

        Points of one channel state go to one worker, which keeps its realisations, unless another
        one runs out of work.
        """
        self._settle()
        queues = share(enumerate(points), self.num_workers, lambda job: job[1])
        ends, remaining = {}, len(points)  # how the workers that had a job ended
        while remaining:
            self.start()
            for slot, worker in self.workers.items():
                if not worker.busy and (jobs := take(queues, slot)):
                    worker.send("run", jobs)
            for slot, message in self._messages():
                worker = self.workers[slot]
                if message is None:
                    end = self._stop(slot)
                    queues[slot].extendleft(reversed(worker.jobs))
                    if worker.ready and worker.jobs:
                        job, point = worker.jobs[0]
                        ends.setdefault(job, []).append(end)
                        if len(ends[job]) == 2:
                            queues[slot].popleft()
                            remaining -= 1
                            text = f"{point}: killed its worker twice ({', '.join(ends[job])})"
                            yield point, TwinError(text), 0.0
                elif message[0] not in ("ready", "idle"):
                    _, answer, seconds = message
                    _, point = worker.jobs.popleft()
                    remaining -= 1
                    answer = TwinError(f"{point}: {answer}") if isinstance(answer, str) else answer
                    yield point, answer, seconds

    def _messages(self):
        """Wait for messages of the workers, by slot; None stands for a worker that died or
        hangs.
        """
        slots = {worker.connection: slot for slot, worker in self.workers.items()}
        due = min((worker.due for worker in self.workers.values() if worker.owes), default=math.inf)
        for connection in wait(list(slots), min(max(0.0, due - time.monotonic()), LONGEST_WAIT_S)):
            yield slots[connection], self._message(self.workers[slots[connection]])
        for slot, worker in list(self.workers.items()):
            if worker.hangs():
                worker.overdue = True
                yield slot, self._lost(worker)

    def _message(self, worker: _Worker):
        try:
            message = worker.connection.recv()
        except (EOFError, OSError) as error:
            worker.overdue = isinstance(error, BlockingIOError)
            return self._lost(worker)
        worker.heard()
        if message == ("ready",):
            worker.ready, self.failed_starts = True, 0
        elif message[0] == "idle":
            worker.busy, self.traces[worker.process.pid] = False, message[1]
        return message

    def _lost(self, worker: _Worker) -> None:
        """Count a worker that did not come to be ready; raises TwinError when none of several
        did.
        """
        self.failed_starts += not worker.ready
        if self.failed_starts == MAX_FAILED_STARTS:
            self.failed_starts = 0
            how = f" in {self.start_limit_s:g} s" if worker.overdue else ""
            raise TwinError(
                f"workers do not start{how} ({' '.join(self.command)}):\n{worker.last_words()}"
            )

    def _settle(self) -> None:
        """Start what is missing and let workers finish what an interrupted call left them with."""
        self.start()
        while any(worker.busy for worker in self.workers.values()):
            for slot, message in self._messages():
                if message is None:
                    self._stop(slot)
                    self.start()

"""Tools in a process of their own, with limits: what takes too long or too much memory is refused
and harms nobody.
"""

import multiprocessing
import resource
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from experiments.network.tools import CallError, directly

SECONDS, MEGABYTES = 10.0, 1024  # of a call


class Worker:
    """A `tools.Run`. A process that a call has ended, or that has ended itself, is started anew for
    the next call. Closed by `close` or as a context manager.
    """

    def __init__(self, seconds: float = SECONDS, megabytes: int = MEGABYTES):
        """megabytes: that the process may take beyond what it begins with."""
        self.seconds, self.megabytes = seconds, megabytes
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def __call__(self, name: str, arguments: dict[str, Any]) -> np.ndarray:
        if self._process is None:
            self._start()
        try:
            self._connection.send((name, arguments))
            if not self._connection.poll(self.seconds):
                raise CallError(f"{name}: took longer than {self.seconds:g} s")
            failure, solution = self._connection.recv()
        except (CallError, EOFError, OSError) as error:
            self.close()
            if isinstance(error, CallError):
                raise
            raise CallError(f"{name}: its process has ended") from None
        if failure:
            raise CallError(failure)
        return solution

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self.megabytes), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()  # that it is there: importing is not part of a call


def serve(connection: Connection, megabytes: int) -> None:
    """Runs what it is asked for until nobody listens."""
    import scipy.optimize  # noqa: F401  before the limit

    with open("/proc/self/statm", encoding="utf-8") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limit = size + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(None)
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[str | None, Any] = (None, directly(name, arguments))
        except CallError as error:
            answer = (str(error), None)
        except MemoryError:
            answer = (f"{name}: took more than {megabytes} MB", None)
        except Exception as error:
            answer = (f"{name}: {type(error).__name__}"[:300], None)
        connection.send(answer)

"""A worker process: `python -m twin.worker FD` answers jobs on the socket FD until it closes.

The parent's end closes however the parent dies, so no worker outlives it. Ctrl-C is the parent's
business.

Messages in: (settings, seed) once, then ("run", [(job, Point), ...]) or ("warm", [Point, ...]).
Messages out: ("ready",) once; for a run (job, Counts, seconds) or (job, error text, seconds), in
order; for both ("idle", traces).
"""

from __future__ import annotations

import signal
import sys
import time
from multiprocessing.connection import Connection


def serve(connection: Connection) -> None:
    settings, seed = connection.recv()
    from .chain import link

    connection.send(("ready",))
    while True:
        kind, jobs = connection.recv()
        for job, point in enumerate(jobs) if kind == "warm" else jobs:
            start = time.perf_counter()
            try:
                answer = link.simulate(point, seed, settings)
            except Exception as error:  # one bad point must not take the others with it
                answer = f"{type(error).__name__}: {error}"
            if kind == "run":
                connection.send((job, answer, time.perf_counter() - start))
        connection.send(("idle", num_traces()))


def num_traces() -> int:
    """How often a stage of Sionna was traced in this process."""
    stages = sys.modules.get("twin.chain.sionna_stages")
    return sum(stages.traces.values()) if stages else 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone or has closed the pool

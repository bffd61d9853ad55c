"""A worker process: `python -m twin.worker FD` answers jobs on the socket FD until it closes.

The parent's end closes however the parent dies, so no worker outlives it. Ctrl-C is the parent's business.

Messages in: (settings, seed) once, then ("run", [(job, Point), ...]) or ("warm", [signature, ...]).
Messages out: ("ready",) once; for a run (job, Counts, seconds) or (job, error text, seconds), in order; for both ("idle", traces).
"""

from __future__ import annotations

import signal
import sys
import time
from multiprocessing.connection import Connection


def serve(connection: Connection) -> None:
    settings, seed = connection.recv()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from . import coding, link

    connection.send(("ready",))
    while True:
        kind, jobs = connection.recv()
        if kind == "warm":
            link.warm(jobs, settings)
        else:
            for job, point in jobs:
                start = time.perf_counter()
                try:
                    answer = link.simulate(point, seed, settings)
                except Exception as error:  # one bad point must not take the others with it
                    answer = f"{type(error).__name__}: {error}"
                connection.send((job, answer, time.perf_counter() - start))
        connection.send(("idle", sum(coding.traces.values())))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone or has closed the pool

"""Speaks the worker's protocol without TensorFlow. A formula of the point is the answer, but at
some SNRs:

13 dB: the process dies; 14: it dies once; 15: an exception
70: an endless loop; 71: once; 72: the process stops itself (SIGSTOP); 73: a stop in the middle of a
message 60 .. 61: an answer after 0.4 s
"""

import hashlib
import os
import signal
import struct
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from twin.physical import Counts


def first_time(point):
    """Whether no worker of this parent has met the point; the second time it is forgotten."""
    name = hashlib.blake2b(repr(point).encode(), digest_size=8).hexdigest()
    mark = Path(tempfile.gettempdir(), f"toy-worker-{os.getppid()}-{name}")
    if first := not mark.exists():
        mark.touch()
    else:
        mark.unlink()
    return first


def answer(point, connection):
    snr_db = point.snr_db
    if snr_db == 13 or (snr_db == 14 and first_time(point)):
        os._exit(9)
    if snr_db == 15:
        return "ValueError: 15 dB"
    if snr_db == 70 or (snr_db == 71 and first_time(point)):
        while True:
            pass
    if snr_db == 72:
        os.kill(os.getpid(), signal.SIGSTOP)
    if snr_db == 73:
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"the rest never comes")
        signal.pause()
    if 60 <= snr_db < 61:
        time.sleep(0.4)
    return Counts(num_blocks=32, num_bits=32_000, bit_errors=int(100 + snr_db), failed=(3,))


def serve(connection):
    connection.recv()
    connection.send(("ready",))
    while True:
        kind, jobs = connection.recv()
        for job, point in jobs if kind == "run" else enumerate(jobs):
            said = answer(point, connection)
            if kind == "run":
                connection.send((job, said, 0.0))
        connection.send(("idle", 0))


try:
    serve(Connection(int(sys.argv[1])))
except (EOFError, ConnectionError):
    pass

"""Starting the processes of one run: hosts=N on any stage.

Who starts the command once with hosts=N gets N processes on this machine. On several machines with
one file system the same command is started once on each, by Slurm (`srun`, which JAX asks who is
who) or by hand or Ray with RLDTF_COORDINATOR=HOST:PORT and RLDTF_PROCESS=0 .. N-1 in its
environment.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Sequence

import jax

from rldtf_jax import hosts
from rldtf_jax.config import ConfigError
from twin import QoS, Twin
from twin.twin import Stats

COORDINATOR, PROCESS = "RLDTF_COORDINATOR", "RLDTF_PROCESS"
PARENT = "RLDTF_PARENT"  # process id of the command that has started this one, if one has
GRACE_S = 20.0  # that the others have to end once one has failed


def is_one_of_several() -> bool:
    """Whether somebody has started this process as one of a run's."""
    return PROCESS in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


def join(count: int) -> None:
    """Makes this process one of the run's `count`; those behind the first are silent.

    Raises:
      ConfigError: the environment does not say which, or the others are not there.
    """
    if PARENT in os.environ:
        end_with(int(os.environ[PARENT]))
    try:
        if PROCESS in os.environ:
            jax.distributed.initialize(
                os.environ[COORDINATOR], num_processes=count, process_id=int(os.environ[PROCESS])
            )
        else:
            jax.distributed.initialize()  # Slurm says who is who
    except (KeyError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"hosts = {count}: expected {COORDINATOR}=HOST:PORT and {PROCESS}=0..{count - 1} in"
            f" the environment of each process, all reachable: {reason}"
        ) from error
    if jax.process_count() != count:
        raise ConfigError(f"hosts = {count}: expected that of {jax.process_count()} processes")
    if not hosts.first():
        sys.stdout = open(os.devnull, "w")


def end_with(parent: int) -> None:
    """Ends this process soon after its parent, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def launch(count: int, arguments: Sequence[str]) -> int:
    """Runs this command in `count` processes on this machine; returns the exit status of the first
    that failed, or 0. A signal goes to all of them; where one fails, the others are ended.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ
            | {COORDINATOR: f"localhost:{port}", PROCESS: str(i), PARENT: str(os.getpid())},
            start_new_session=True,  # Ctrl-C reaches them through `forward` alone, once
        )
        for i in range(count)
    ]

    def forward(signum, frame):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signum)

    before = {one: signal.signal(one, forward) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        deadline = None
        while any(process.poll() is None for process in processes):
            failed = [process for process in processes if process.poll() not in (None, 0)]
            if failed and deadline is None:
                status, deadline = failed[0].returncode, time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.1)
        if deadline is None:
            return max((process.returncode for process in processes), key=abs)
        return status
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for one, handler in before.items():
            signal.signal(one, handler)


class ToldTwin:
    """A twin that process 0 owns: all ask the same, it answers, all have the answers.

    twin: None in the others.
    """

    def __init__(self, twin: Twin | None):
        self._twin = twin
        self.stats = Stats()

    def start(self) -> None:
        if self._twin:
            self._twin.start()

    def evaluate(self, pairs: Sequence[tuple], *arguments, **options) -> list[QoS]:
        """See `Twin.evaluate`; what it raises is raised in all."""
        answer: Any = None
        if self._twin:
            try:
                answer = self._twin.evaluate(pairs, *arguments, **options), self._twin.stats
            except Exception as error:
                answer = error
        answer = hosts.told(answer)
        if isinstance(answer, Exception):
            raise answer
        found, self.stats = answer
        return found

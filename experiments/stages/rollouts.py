"""The rollout worker of a run (`rollouts.apart=true`): a process that samples and asks the twin,
while the one that has started it learns. It is part of `python -m experiments.stages.rldtf`.
"""

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from typing import Any, Callable, Iterator

from experiments.config import ExperimentConfig

SIGNALS = (signal.SIGINT, signal.SIGTERM)
END_S = 10.0  # that the worker has to end once nobody asks any more


@contextlib.contextmanager
def rollout_worker(config: ExperimentConfig) -> Iterator[Callable[[], Connection] | None]:
    """What `rldtf.train` takes as `worker`; whatever it has started ends with the block."""
    if not config.rollouts.apart:
        yield None
        return
    with contextlib.ExitStack() as stack:

        def start() -> Connection:
            stack.close()  # the one before, which has ended
            return stack.enter_context(
                started(_serve, config, os.getpid(), devices=config.rollouts.devices)
            )

        yield start


@contextlib.contextmanager
def started(
    serve: Callable[..., None], *arguments: Any, devices: str | None = None
) -> Iterator[Connection]:
    """The connection to a process that runs serve(its own end, *arguments) and ends with the
    block.
    """
    ours, theirs = multiprocessing.Pipe()
    with contextlib.closing(ours):
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(theirs, serve, *arguments), name="rollout worker"
        )
        with contextlib.closing(theirs), _without_signals(), _devices(devices):
            process.start()
        try:
            yield ours
        finally:
            ours.close()
            process.join(END_S)
            process.kill()
            process.join()


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """A process started in this block has these blocked, until it does nothing about them itself:
    they are for the trainer, which hangs up when it stops.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _devices(names: str | None) -> Iterator[None]:
    """What a process started in this block may see of the machine's GPUs."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = names
    try:
        yield
    finally:
        if names is not None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _work(connection: Connection, serve: Callable[..., None], *arguments: Any) -> None:
    """The worker's life."""
    for one in SIGNALS:  # not SIG_IGN, which the twin's workers would inherit
        signal.signal(one, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from rldtf_jax.rollout_worker import tell_failure

    try:
        serve(connection, *arguments)
    except Exception as error:
        tell_failure(connection, -1, error)


def _serve(connection: Connection, config: ExperimentConfig, parent: int) -> None:
    from experiments.hosts import end_with
    from experiments.stages.reject import reject
    from experiments.stages.rldtf import practice_environment
    from experiments.stages.run import opened
    from rldtf_jax.judge import Arm
    from rldtf_jax.rollout_worker import serve

    end_with(parent)
    with opened(config, inside=True) as run:
        environment = practice_environment(run, config.rldtf)
        serve(connection, reject(run), Arm(config.rldtf, config.seed, environment))

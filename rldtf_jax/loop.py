"""The loop that every stage trains in: resume, step, record, save; a signal ends it cleanly, a kill costs a step."""

import contextlib
import os
import signal
import threading
from typing import Any, Callable, Iterator

import jax

from rldtf_jax.checkpoint import Checkpoints
from rldtf_jax.metrics import Tracker

MAX_SKIPPED_IN_A_ROW = 3


class Interrupted(Exception):
    """The user asked to stop; the state of the last complete step is saved."""


class Diverged(Exception):
    """Several steps in a row were not finite; the last good state is saved."""


def run(step_fn: Callable[[Any, int], tuple[Any, dict]], state: Any, *, steps: int, directory: str, save_every: int,
        keep: int = 2, title: str = "", show: tuple[str, ...] = ("loss",), tensorboard: bool = True) -> Any:
    """Takes `state` through `steps` calls of step_fn(state, step) -> (state, metrics), going on from `directory`.

    Whatever step_fn draws must depend on (its seed, step) alone: that is what makes a resumed run bit-identical.
    metrics["skipped_in_a_row"], where present, is checked one step late.

    Raises:
      Interrupted: after SIGINT or SIGTERM, with the state saved.
      Diverged: MAX_SKIPPED_IN_A_ROW steps without a finite update.
    """
    checkpoints = Checkpoints(os.path.join(os.path.abspath(directory), "checkpoints"), keep)
    start, position = 0, 0
    found = checkpoints.restore_latest(state)
    if found is not None:
        start, state, meta = found
        position = meta["metrics_position"]
    if start >= steps:
        checkpoints.close()
        return state
    tracker = Tracker(directory, steps, start=start, position=position, title=title, show=show,
                      tensorboard=tensorboard)
    previous = {}
    try:
        with stop_on_signal() as stop:
            for step in range(start, steps):
                state, metrics = step_fn(state, step)
                tracker.log(step, metrics)
                done = step + 1
                skipped = int(previous.get("skipped_in_a_row", 0))
                previous = metrics
                ending = stop.is_set() or done == steps or skipped >= MAX_SKIPPED_IN_A_ROW
                if done % save_every == 0 or ending:
                    checkpoints.save(done, state, {"metrics_position": tracker.flush()})
                if skipped >= MAX_SKIPPED_IN_A_ROW:
                    raise Diverged(f"{directory}: the last {skipped} updates up to step {done} were not finite; "
                                   f"last metrics {jax.device_get(metrics)}")
                if stop.is_set() and done < steps:
                    raise Interrupted(f"{directory}: stopped after step {done} of {steps}")
    finally:
        tracker.close()
        checkpoints.close()
    return state


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum, frame):
        stop.set()
        signal.signal(signum, before[signum])

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        signal.signal(signum, handle)
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)

"""The loop that every stage trains in: resume, step, record, save; a signal ends it cleanly, a kill
costs a step.
"""

import contextlib
import os
import signal
import threading
from typing import Any, Callable, Iterator

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from rldtf_jax import hosts
from rldtf_jax.checkpoint import Checkpoints, OtherState
from rldtf_jax.config import differences, flat
from rldtf_jax.metrics import Silent, Tracker

MAX_SKIPPED_IN_A_ROW = 3


class Interrupted(Exception):
    """The user asked to stop; the state of the last complete step is saved."""


class Diverged(Exception):
    """Several steps in a row were not finite; the last good state is saved."""


class WorkerFailed(RuntimeError):
    """The rollout worker has raised an exception, or ends whatever it is asked."""


def run(
    step_fn: Callable[[Any, int], tuple[Any, dict]],
    state: Any,
    *,
    steps: int,
    directory: str,
    save_every: int,
    identity: dict,
    position: Callable[[int], dict],
    keep: int = 2,
    title: str = "",
    show: tuple[str, ...] = ("loss",),
    boards: tuple[str, ...] = ("tensorboard",),
    sweep: str | None = None,
    about: dict[str, Any] | None = None,
) -> Any:
    """Takes `state` through `steps` calls of step_fn(state, step) -> (state, metrics), going on
    from `directory`.

    Whatever step_fn draws must depend on (its seed, step) alone: that is what makes a resumed run
    bit-identical. metrics["skipped_in_a_row"], where present, is checked where the state is saved,
    and one step late elsewhere.

    Args:
      identity: what makes this run this one (its config and seed).
      position: step -> where in its data and random numbers the run is before that step. Both, and
        the sweep's id, are kept in every checkpoint, and a run goes on only where they are what it
        has itself.
      boards, about: see `metrics.Tracker`.

    Raises:
      Interrupted: after SIGINT or SIGTERM, with the state saved.
      Diverged: MAX_SKIPPED_IN_A_ROW steps without a finite update.
      OtherState: the checkpoint is of another model or run.
    """

    def notes(step: int, metrics_position: int) -> dict:
        return {
            "metrics_position": metrics_position,
            **flat({**identity, "sweep": sweep, "position": position(step)}),
        }

    # Committed alike: else the second step, whose state comes out of the first, would be compiled
    # again. On a mesh XLA chooses itself where a program's results lie, so they are put back after
    # each step: a resumed run, whose state comes from a checkpoint, has to run the same programs.
    places = jax.tree.map(_place, state)
    on_mesh = not jax.sharding.get_mesh().empty
    state = jax.device_put(state, places)
    with contextlib.closing(
        Checkpoints(os.path.join(os.path.abspath(directory), "checkpoints"), keep)
    ) as checkpoints:
        start, state, meta = checkpoints.restore_latest(state) or (0, state, notes(0, 0))
        if different := differences(meta, notes(start, meta["metrics_position"])):
            raise OtherState(
                f"{directory}: the checkpoint of step {start} is of another run: {different[0]}"
            )
        if start >= steps:
            return state
        tracker = (
            Tracker(
                directory,
                steps,
                start=start,
                position=meta["metrics_position"],
                title=title,
                show=(*show, "tokens_per_s"),
                boards=boards,
                about=about,
            )
            if hosts.first()
            else Silent()
        )
        previous, stopping = {}, False
        with contextlib.closing(tracker), stop_on_signal() as stop:
            for step in range(start, steps):
                state, metrics = step_fn(state, step)
                if on_mesh:
                    state = jax.device_put(state, places)
                tracker.log(step, metrics)
                done, stopping = step + 1, hosts.told(stop.is_set())
                saving = done % save_every == 0 or done == steps or stopping
                skipped = int((metrics if saving else previous).get("skipped_in_a_row", 0))
                previous = metrics
                if saving or skipped >= MAX_SKIPPED_IN_A_ROW:
                    checkpoints.save(done, state, notes(done, tracker.flush(to_disk=True)))
                if skipped >= MAX_SKIPPED_IN_A_ROW:
                    raise Diverged(
                        f"{directory}: {skipped} updates in a row were not finite by step {done}; "
                        f"last metrics {jax.device_get(metrics)}"
                    )
                if stopping:
                    break
            if stopping:
                raise Interrupted(f"{directory}: stopped after step {done} of {steps}")
    return state


def _place(x: jax.Array) -> Sharding:
    """Where x is; on the whole mesh of `jax.set_mesh` if it is not on it yet."""
    mesh = jax.sharding.get_mesh()
    return (
        x.sharding
        if mesh.empty or len(x.sharding.device_set) == mesh.size
        else NamedSharding(mesh, PartitionSpec())
    )


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

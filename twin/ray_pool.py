"""The pool over a Ray cluster: `Twin(workers=32, pool=RayPool)`. Needs the extra `ray`, and this
package on every node.

One actor a worker, spread over the nodes, with a pool of one process of its own: what kills or
hangs a simulation is met there, as on one machine (see twin.pool), and what is left to do here is
to hand out points and to outlive a node.
"""

from __future__ import annotations

from collections.abc import Iterator

import ray
from ray.exceptions import RayActorError

from .physical import Counts, Point, Settings
from .pool import COMMAND, POINT_LIMIT_S, START_LIMIT_S, Pool, TwinError, share, take


@ray.remote(num_cpus=1, max_restarts=-1, scheduling_strategy="SPREAD")
class _Node:
    """A pool of one worker, somewhere in the cluster; restarted elsewhere when its node is lost."""

    def __init__(
        self, settings: Settings, seed: int, command, point_limit_s: float, start_limit_s: float
    ):
        self.pool = Pool(1, settings, seed, command, point_limit_s, start_limit_s)
        self.pool.start()

    def run(self, points: list[Point]) -> list[tuple[Point, Counts | TwinError, float]]:
        return list(self.pool.run(points))

    def warm(self, points: list[Point]) -> None:
        self.pool.warm(points)

    def num_traces(self) -> int:
        return self.pool.num_traces()


class RayPool:
    """The methods and arguments of `twin.pool.Pool` over the Ray cluster at hand: the one this
    process is connected to, else the one that `ray.init` finds, else a local one. The cluster needs
    `num_workers` free CPUs; with fewer, the first to come do the work.
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
        self.num_workers = num_workers
        self.arguments = settings, seed, command, point_limit_s, start_limit_s
        self.nodes: list = []

    def start(self) -> None:
        if not ray.is_initialized():
            ray.init(logging_level="warning")
        while len(self.nodes) < self.num_workers:
            self.nodes.append(_Node.remote(*self.arguments))  # type: ignore[attr-defined]

    def close(self) -> None:
        while self.nodes:
            ray.kill(self.nodes.pop())

    def num_traces(self) -> int:
        return sum(ray.get([node.num_traces.remote() for node in self.nodes]))

    def warm(self, points: list[Point]) -> None:
        """Simulate these points in every worker, for what that compiles, and wait for it."""
        self.start()
        ray.get([node.warm.remote(points) for node in self.nodes])

    def run(self, points: list[Point]) -> Iterator[tuple[Point, Counts | TwinError, float]]:
        """Yield (point, counts or error, seconds) for each of the distinct points as chunks of them
        finish.

        A worker gets points once it has answered that it is there; the points of one that was lost
        go to the others.
        """
        self.start()
        queues = share(points, self.num_workers, lambda point: point)
        # awaited: (slot, chunk)
        there = {self._greet(slot): (slot, []) for slot in range(self.num_workers)}
        idle, remaining = set(), len(points)
        while remaining:
            (done,), _ = ray.wait(list(there))
            slot, chunk = there.pop(done)
            try:
                answers = ray.get(done)
            except RayActorError:
                queues[slot].extendleft(reversed(chunk))
                there[self._greet(slot)] = slot, []
            else:
                idle.add(slot)
                remaining -= len(answers)
                yield from answers
            for slot in [slot for slot in idle if any(queues)]:
                chunk = take(queues, slot)
                there[self.nodes[slot].run.remote(chunk)] = slot, chunk
                idle.discard(slot)

    def _greet(self, slot: int):
        """Answered as soon as the worker is there, however often Ray has to start it again until
        then.
        """
        return self.nodes[slot].run.options(max_task_retries=-1).remote([])

"""Sampling and judging in a process of their own, beside the one that learns, as in the
paper (IV.A). The trainer hands over the policy's weights after each update.

With `staleness` = k a step's rollouts are asked for k steps ahead, so that both processes are at
work at once; what each step learns from depends on k alone, not on who is faster. A worker that
ends is started anew, and asked again.
"""

import contextlib
import queue
import threading
from multiprocessing.connection import Connection
from typing import Any, Callable, Sequence

import jax

from rldtf_jax import rldtf
from rldtf_jax.judge import Arm, Judged, Prompts
from rldtf_jax.loop import WorkerFailed
from rldtf_jax.sample import Samples
from rldtf_jax.update import Learner

STARTS = 3  # of a worker without an answer in between, before the trainer gives up


class Apart:
    """`rldtf.OneByOne` of one arm, whose sampling and judging another process does."""

    def __init__(self, models: rldtf.OneByOne, start: Callable[[], Connection], steps: int):
        """start: starts the worker, anew where there was one, and connects to its `serve`; steps:
        the run's, beyond which nothing is asked for.
        """
        self._models, self._start, self._steps = models, start, steps
        self._connection: Connection | None = None
        self._asked = -1  # the last step whose rollouts the worker has been asked for
        self._others: Any = None  # of the step whose samples came last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)

    def respond(
        self, states, arms: Sequence[Arm], prompts: Sequence[Prompts], step: int
    ) -> list[Samples]:
        samples, self._others = self._hear(states, step, "sampled")
        return [samples]

    def alternatives(self, *_: Any) -> list:
        return [self._others]

    def completions(self, *_: Any) -> list:
        return [None]  # which the judge has, there

    def judge(self, states, arms, prompts, samples, others, completed, step: int) -> list[Judged]:
        return [self._hear(states, step, "judged")]

    def _hear(self, states, step: int, part: str) -> Any:
        """What the worker says of a step, of that part of it."""
        for _ in range(STARTS):
            try:
                self._ask(states, step)
                heard = None, None
                while heard != (step, part):
                    *heard, answer = self._connection.recv()
                    heard = tuple(heard)
                    if heard[1] == "failed":
                        raise WorkerFailed(f"the rollout worker: {answer}")
                return answer
            except (EOFError, OSError):
                self._connection, self._asked = None, step - 1
        raise WorkerFailed(f"the rollout worker has ended {STARTS} times at step {step}")

    def _ask(self, states, step: int) -> None:
        """Hands over the weights of every policy that there is by now for a step to come."""
        if self._connection is None:
            self._connection = self._start()
        (state,) = states
        for ahead, policy in enumerate((*state.behind, state.learner.policy)):
            if self._asked < step + ahead < self._steps:
                self._connection.send((step + ahead, jax.device_get(jax.tree.leaves(policy))))
                self._asked = step + ahead


def serve(connection: Connection, policy, arm: Arm) -> None:
    """Rollouts for an `Apart`, until it hangs up: (step, weights) in; (step, "sampled", (samples,
    alternatives)), then (step, "judged", verdicts) out.

    policy: the one that training starts from; its weights are what LoRA's deltas are added to.
    """
    models, weights = rldtf.without_critic(policy, arm)
    places, tree = [x.sharding for x in jax.tree.leaves(weights)], jax.tree.structure(weights)
    del weights
    # Read at all times: else both ends might wait for each other to read something long.
    asked: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, asked), daemon=True).start()
    while (request := asked.get()) is not None:
        step, leaves = request
        try:
            policy = jax.tree.unflatten(tree, jax.device_put(leaves, places))
            state = rldtf.RLState(Learner(policy, *[None] * 5), None, None, None)
            for part, answer in _rollouts(models, state, arm, step):
                if not _sent(connection, (step, part, answer)):
                    return
        except Exception as error:  # the trainer says it
            tell_failure(connection, step, error)


def tell_failure(connection: Connection, step: int, error: Exception) -> None:
    """The trainer raises it in its own words."""
    _sent(connection, (step, "failed", f"{type(error).__name__}: {error}"))


def _sent(connection: Connection, message: tuple) -> bool:
    """Whether somebody still listens."""
    try:
        connection.send(message)
    except OSError:
        return False
    return True


def _listen(connection: Connection, asked: queue.SimpleQueue) -> None:
    """Puts there what comes, and None at the end."""
    try:
        with contextlib.suppress(EOFError, OSError):
            while True:
                asked.put(connection.recv())
    finally:
        asked.put(None)


def _rollouts(models, state, arm: Arm, step: int):
    """(part, answer) of a step, as `rldtf.rldtf_step` has them."""
    asked = (state,), [arm], [rldtf.draw(arm, step)]
    samples = models.respond(*asked, step)
    joined = [rldtf.join(*p[1:3], *s[:2]) for p, s in zip(asked[2], samples)]
    others = jax.device_get(models.alternatives(*asked, joined))
    yield "sampled", (samples[0], others[0])
    completed = models.completions(*asked, samples, joined)
    yield "judged", models.judge(*asked, samples, others, completed, step)[0]

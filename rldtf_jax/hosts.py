"""Several processes as one run (`jax.distributed`): all run the same program on one mesh, each with
devices of its own. Process 0 writes the files, asks the twin and speaks; what it alone knows it
tells the others.

In a single process every function here is free: `told` and `fetched` return what they are given.
"""

import pickle
import sys
from typing import Any

import numpy as np


def several() -> bool:
    jax = sys.modules.get("jax")  # which nothing here imports for those who do without
    return jax is not None and jax.distributed.is_initialized()


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not several() or sys.modules["jax"].process_index() == 0


def told(value: Any) -> Any:
    """What process 0 has, in all processes: any picklable value; the others' is not looked at."""
    if not several():
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    data = pickle.dumps(value) if first() else b""
    size = int(broadcast_one_to_all(np.int32(len(data))))
    padded = np.frombuffer(data.ljust(size, b"\0")[:size], np.uint8)
    return pickle.loads(np.asarray(broadcast_one_to_all(padded)).tobytes())


def fetched(tree: Any) -> Any:
    """The tree with every array of which this process sees a part as a whole numpy array."""

    if not several():
        return tree
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    def one(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if not x.is_fully_replicated:
            whole = NamedSharding(x.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
            x = jax.jit(_same, out_shardings=whole)(x)
        return np.asarray(x)

    return jax.tree.map(one, tree)


def _same(x):
    return x


def wait(what: str) -> None:
    """Until all processes are here; `what` has to be the same in all."""
    if several():
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)


def say(text: str) -> None:
    """A line on standard error, of process 0."""
    if first():
        print(text, file=sys.stderr, flush=True)

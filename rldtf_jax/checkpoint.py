"""Everything needed to go on bit for bit, through Orbax: atomic, asynchronous, checked when read back."""

import logging
import warnings
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save at INFO and WARNING


class Checkpoints:
    """Numbered states of a run in `directory`, of which the newest `keep` stay.

    A state is a pytree of arrays; `meta` is JSON. A checkpoint appears under its number only when complete.
    """

    def __init__(self, directory: str, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory, options=options)
        self.directory = directory

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts writing; returns once the state may be changed or donated."""
        if jax.default_backend() == "cpu":  # there the writer would read the very buffers that the next step reuses
            state = jax.tree.map(jnp.copy, state)
        meta = meta | {"crc32": _crc32(state)}
        self._manager.save(step, args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)), force=True)

    def restore_latest(self, like: Any) -> tuple[int, Any, dict] | None:
        """(step, state, meta) of the newest sound checkpoint, arrays placed as in `like`; None where there is none.

        A damaged one is reported by a warning and removed, and the one before it is taken.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(step, args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()))
                if found.meta["crc32"] not in (None, _crc32(found.state)):
                    raise ValueError("the arrays do not have the checksum they were saved with")
            except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds for damaged files
                warnings.warn(f"{self.directory}/{step} is damaged and was removed, going back to the one before: "
                              f"{str(error).splitlines()[0] if str(error) else type(error).__name__}")
                self._manager.delete(step)
                continue
            return step, found.state, found.meta
        return None

    def close(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _crc32(state: Any) -> int | None:
    """Checksum of the leaves in order; None where this process does not hold them all."""
    leaves = jax.tree.leaves(state)
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    crc = 0
    for leaf in leaves:
        crc = zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).reshape(-1), crc)
    return crc

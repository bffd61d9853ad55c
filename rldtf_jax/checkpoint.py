"""Everything needed to go on bit for bit, through Orbax: atomic, asynchronous, checked when read
back.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import warnings
import zlib
from typing import Any, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rldtf_jax import hosts

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save at INFO and WARNING


class OtherState(ValueError):
    """A checkpoint is sound, but of another model or run than the one that asks for it."""


class Checkpoints:
    """Numbered states of a run in `directory`, of which the newest `keep` stay.

    A state is a pytree of arrays; `meta` is JSON. A checkpoint appears under its number only when
    complete.
    """

    def __init__(self, directory: str, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(directory, options=options)
        self.directory = directory

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts writing; returns once the state may be changed or donated. Raises OSError if this
        or the last one cannot be written.
        """
        # there the writer would read the very buffers that the next step reuses
        if jax.default_backend() == "cpu":
            state = jax.tree.map(jnp.copy, state)
        record = {"meta": meta, "layout": _layout(state), "crc32": _crc32(state)}
        with _writing(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    meta=ocp.args.JsonSave({"record": record, "crc32": _crc32_of_json(record)}),
                ),
                force=True,
            )

    def restore_latest(self, like: Any) -> tuple[int, Any, dict] | None:
        """(step, state, meta) of the newest sound checkpoint, arrays placed as in `like`; None
        where there is none.

        A damaged one is reported by a warning and moved aside, and the one before it is taken.

        Raises:
          OtherState: the checkpoint is sound, but its arrays are not those of `like`; it stays as
            it is.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, *self._restore(step, like)
            except OtherState:
                raise
            # Orbax, TensorStore and JSON each raise their own kinds for damaged files
            except Exception as error:
                self._set_aside(step, error)
        return None

    def _restore(self, step: int, like: Any) -> tuple[Any, dict]:
        found = self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        ).meta
        record, layout = found["record"], _layout(like)
        if found["crc32"] != _crc32_of_json(record):
            raise ValueError("its metadata do not have the checksum they were saved with")
        for name in sorted(record["layout"].keys() | layout.keys()):
            if record["layout"].get(name) != layout.get(name):
                raise OtherState(
                    f"{self.directory}/{step} is of another model: {name} is "
                    f"{record['layout'].get(name)} there and {layout.get(name)} here"
                )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        state = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        ).state
        if record["crc32"] not in (None, _crc32(state)):
            raise ValueError("its arrays do not have the checksum they were saved with")
        return state, record["meta"]

    def _set_aside(self, step: int, error: Exception) -> None:
        aside = os.path.join(self.directory, f"damaged-{step}")
        if hosts.first():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(os.path.join(self.directory, str(step)), aside)
        hosts.wait(f"aside {step}")
        self._manager.reload()
        warnings.warn(
            f"{self.directory}/{step} is damaged and was moved to {aside}, going back to the one"
            f" before: {(str(error).splitlines() or [type(error).__name__])[0]}",
            stacklevel=3,
        )

    def close(self) -> None:
        """Waits until what was saved is on disk; raises OSError if it cannot be."""
        with _writing(self.directory):
            self._manager.wait_until_finished()
            self._manager.close()


@contextlib.contextmanager
def _writing(directory: str) -> Iterator[None]:
    """TensorStore calls a full disk a ValueError of many lines, and Orbax does not say where."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or directory
        raise
    except ValueError as error:
        found = re.search(r"[^:]*\[os_error_code='(\d+)'", str(error))
        if not found:
            raise
        raise OSError(
            int(found[1]), f"{os.strerror(int(found[1]))}, no checkpoint written", directory
        ) from error


def _layout(state: Any) -> dict[str, str]:
    """Dtype and shape of every leaf by its path."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _crc32_of_json(record: dict) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _crc32(state: Any) -> int | None:
    """Checksum of the leaves in order; None where this process does not hold them all."""
    leaves = jax.tree.leaves(state)
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    crc = 0
    for leaf in leaves:
        crc = zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).reshape(-1), crc)
    return crc

"""Files that are there whole or not at all, and JSON lines; in a run of several processes the first
one writes, and says what is there.
"""

import contextlib
import io
import json
import os
from typing import IO, Iterator

from rldtf_jax import hosts


@contextlib.contextmanager
def whole(path: str, mode: str = "w") -> Iterator[IO]:
    """Opens a file to write; what it replaces stays until the block ends well, and nothing else
    stays if it does not. Of several processes all have to come here, and all find the file behind
    it.
    """
    if not hosts.first():
        yield io.BytesIO() if "b" in mode else io.StringIO()
        hosts.wait(f"written {os.path.basename(path)}")
        return
    partial = f"{path}.partial"
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        # a write does not say where
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = path
        raise
    hosts.wait(f"written {os.path.basename(path)}")


def exists(path: str) -> bool:
    """Whether a file or directory is there, the same in all processes."""
    return hosts.told(os.path.exists(path))


def json_lines(path: str) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def leave(result: dict, path: str | None) -> None:
    """Leaves a benchmark's result as JSON where a path is given."""
    if path:
        with whole(path) as file:
            file.write(json.dumps(result, indent=1) + "\n")


def show(result: dict, path: str | None) -> None:
    """Prints a benchmark's result as JSON, and leaves it."""
    print(json.dumps(result, indent=1))
    leave(result, path)

"""Files that are there whole or not at all, and JSON lines."""

import contextlib
import json
import os
from typing import IO, Iterator


@contextlib.contextmanager
def whole(path: str, mode: str = "w") -> Iterator[IO]:
    """Opens a file to write; what it replaces stays until the block ends well, and nothing else
    stays if it does not.
    """
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

"""Files that are there whole or not at all."""

import contextlib
import os
from typing import IO, Iterator


@contextlib.contextmanager
def whole(path: str, mode: str = "w") -> Iterator[IO]:
    """Opens a file to write; what it replaces stays until the block ends well."""
    with open(f"{path}.partial", mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file
    os.replace(f"{path}.partial", path)

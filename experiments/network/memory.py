"""What has been answered before, and what it earned: an SQLite file of requests and calls, asked
for the nearest.

A call by reference ("@snr") is worth as much to another request of its sort, so the nearest one's
best call is an answer; to the very same request it is the answer, and nothing need be run. What is
remembered comes from training requests alone.
"""

import contextlib
import itertools
import math
import sqlite3
from typing import Iterable, NamedTuple, Sequence

import numpy as np

from experiments.network.ranking import Embedding
from rldtf_jax.config import ConfigError

TABLE = """CREATE TABLE IF NOT EXISTS plans (
    request TEXT NOT NULL, call TEXT NOT NULL, reward REAL NOT NULL, cost INTEGER NOT NULL,
    features BLOB NOT NULL, PRIMARY KEY (request, call))"""


class Remembered(NamedTuple):
    """A call and what it earned; alike: the cosine of its request and the one asked about."""

    call: str
    reward: float
    cost: int
    alike: float


class Memory:
    """Of requests with all their figures, as vectors of an embedding, and the calls that were made
    for them.
    """

    def __init__(self, path: str, embedding: Embedding):
        """path: a file, or ":memory:".

        Raises:
          ConfigError: the file is no such memory.
        """
        self.embedding = embedding
        self._database = sqlite3.connect(path)
        try:
            self._database.execute(TABLE)
            self._rows = self._read()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise ConfigError(f"{path}: expected a memory of plans: {error}") from None

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __len__(self) -> int:
        return len(self._rows[0])

    def add(self, plans: Iterable[tuple[str, str, float, int]]) -> None:
        """(request, call, reward, cost) each, in one transaction; what is there already stays."""
        with contextlib.closing(self._database.cursor()) as cursor, self._database:
            cursor.executemany(
                "INSERT OR IGNORE INTO plans VALUES (?, ?, ?, ?, ?)",
                ((*plan, self.embedding(plan[0]).astype(np.float32).tobytes()) for plan in plans),
            )
        self._rows = self._read()

    def _read(self) -> tuple[list[tuple[str, str, float, int]], np.ndarray]:
        """The best call of every request, and the requests' vectors."""
        rows = self._database.execute(
            "SELECT request, call, reward, cost, features FROM plans"
            " ORDER BY request, reward DESC, cost, call"
        ).fetchall()
        best = list({row[0]: row for row in reversed(rows)}.values())
        width = len(self.embedding.place)
        if any(len(row[4]) != 4 * width for row in best):
            raise ConfigError(f"the memory's vectors: expected {width} numbers, of this embedding")
        vectors = [np.frombuffer(row[4], np.float32) for row in best]
        return [row[:4] for row in best], np.stack(vectors or [np.zeros(width, np.float32)])

    def exact(self, request: str) -> Remembered | None:
        """The best call of this very request."""
        row = next((row for row in self._rows[0] if row[0] == request), None)
        return None if row is None else Remembered(*row[1:], 1.0)

    def nearest(
        self, request: str, number: int = 1, least: float = -math.inf
    ) -> Sequence[Remembered]:
        """The best calls of the requests most like this one, of those that earned at least so much;
        itself is not among them.
        """
        rows, vectors = self._rows
        alike = vectors @ self.embedding(request).astype(np.float32)
        order = (i for i in np.argsort(-alike, kind="stable") if i < len(rows))
        near = ((rows[i], float(alike[i])) for i in order)
        others = (
            Remembered(call, R, cost, one)
            for (known, call, R, cost), one in near
            if known != request and R >= least
        )
        return list(itertools.islice(others, number))

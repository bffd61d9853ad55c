"""Results on disk, keyed by content: one SQLite file that several processes may share.

A row holds the counts of one simulation with a checksum of key and value; a row that does not match is not there. A file
that is not a sound database is set aside with a warning and a new one begun. Local file systems only (write-ahead log).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import warnings
from dataclasses import asdict, astuple
from pathlib import Path

from .physical import Counts, Point, Settings

VERSION = 4  # of what a simulation means: raise it when link, channel or estimation change results


def digest(point: Point, settings: Settings, seed: int) -> bytes:
    """The key of a result: a hash of everything it depends on."""
    content = repr((VERSION, astuple(settings), seed, astuple(point)))
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _checksum(key: bytes, value: str) -> bytes:
    return hashlib.blake2b(key + value.encode(), digest_size=8).digest()


class Cache:
    """`get` and `put` of Counts by digest in the file at `path`."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"twin cache: no directory {self.path.parent}")
        self.database = self._open()

    def _open(self) -> sqlite3.Connection:
        with self._locked():
            try:
                return self._connect()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                return self._connect()

    @contextlib.contextmanager
    def _locked(self):
        with open(f"{self.path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            if (verdict := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, value TEXT, checksum BLOB) WITHOUT ROWID"
            )
            if [c[1] for c in database.execute("PRAGMA table_info(results)")] != ["key", "value", "checksum"]:
                raise sqlite3.DatabaseError("it has a table of other columns")
            return database
        except sqlite3.Error:
            database.close()
            raise

    def _set_aside(self, error) -> None:
        number = 0
        while (aside := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists():
            number += 1
        warnings.warn(f"twin cache {self.path} is not usable ({error}): set aside as {aside.name}", stacklevel=4)
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _retry(self, operation):
        """Run an operation; a database found corrupt on the way is set aside, and the operation tried on a new one."""
        try:
            return operation()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self.database.close()
            self.database = self._open()
            return operation()

    def get(self, keys: list[bytes]) -> dict[bytes, Counts]:
        """The results that are there, by key."""
        found = {}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            query = f"SELECT key, value, checksum FROM results WHERE key IN ({','.join('?' * len(some))})"
            for key, value, checksum in self._retry(lambda: self.database.execute(query, some).fetchall()):
                if isinstance(value, str) and checksum == _checksum(key, value):
                    found[key] = Counts(**json.loads(value))
        return found

    def put(self, key: bytes, counts: Counts) -> None:
        value = json.dumps(asdict(counts))
        row = (key, value, _checksum(key, value))
        self._retry(lambda: self.database.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", row))

    def close(self) -> None:
        self.database.close()

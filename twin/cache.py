"""Results on disk, keyed by content: one SQLite file that several processes may share.

A row holds the counts of one simulation with a checksum of key and value; a row that does not match
is not there. A file that is not a sound database is set aside with a warning and a new one begun.
What cannot be written (a full disk, a file that is read-only or locked) is kept in memory and tried
again now and then, after one warning. Local file systems only (write-ahead log).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path

from .physical import Counts, Point, Settings

LOCK_WAIT_S = 3.0  # for another process, until it has once been in vain
RETRY_S = 30.0  # from a write that failed to the next one tried
MAX_UNWRITTEN = 1 << 16  # results kept for then
PACKAGE = Path(__file__).resolve().parent
# What carries, stores, reads or shows results; all other files of the package count as what results
# depend on
NO_PART_IN_RESULTS = {
    "__init__.py",
    "__main__.py",
    "cache.py",
    "pool.py",
    "program.py",
    "ray_pool.py",
    "twin.py",
    "README.md",
}
LIBRARIES = ("numpy", "numba", "sionna-no-rt", "tensorflow")
READ_ONLY = "stored answers are read, new ones are not stored"
MEMORY_ONLY = "results are kept in memory only"


def result_files(package: Path = PACKAGE) -> Iterator[tuple[str, Path]]:
    """(path in the package, path) of the sources, weights and tables that results depend on, in
    order.
    """
    for name, path in sorted(
        (path.relative_to(package).as_posix(), path) for path in package.rglob("*")
    ):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))
        if name not in NO_PART_IN_RESULTS and not hidden and path.is_file():
            yield name, path


@functools.cache
def fingerprint(package: Path = PACKAGE) -> str:
    """A hash of what results depend on besides point, settings and seed: `result_files` and the
    libraries.
    """
    content = hashlib.blake2b(digest_size=16)
    for library in LIBRARIES:
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            version = "absent"
        content.update(f"{library} {version}\n".encode())
    for name, path in result_files(package):
        content.update(
            f"{name} {hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}\n".encode()
        )
    return content.hexdigest()


def digest(point: Point, settings: Settings, seed: int) -> bytes:
    """The key of a result: a hash of everything it depends on."""
    content = repr((fingerprint(), astuple(settings), seed, astuple(point)))
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _checksum(key: bytes, value: str) -> bytes:
    return hashlib.blake2b(key + value.encode(), digest_size=8).digest()


def _locked_by_another(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or (
        isinstance(error, sqlite3.Error) and "locked" in str(error)
    )


class Cache:
    """`get` and `put` of Counts by digest in the file at `path`.

    Neither raises for what is wrong with file or disk: it is said in a warning, once, and the
    results that could not be written are kept. Raises FileNotFoundError or IsADirectoryError if no
    such file can be.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not os.path.isdir(self.path.parent):
            raise FileNotFoundError(f"twin cache: no directory {self.path.parent}")
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"twin cache: {self.path} is a directory")
        self._lock_wait_s = LOCK_WAIT_S
        self._retry_at = 0.0  # on time.monotonic
        self._warned: set[str] = set()
        self._unwritten: dict[bytes, Counts] = {}
        self.database: sqlite3.Connection | None = None
        self._open()

    def get(self, keys: list[bytes]) -> dict[bytes, Counts]:
        """The results that are there, by key."""
        found = {key: self._unwritten[key] for key in keys if key in self._unwritten}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            query = (
                "SELECT key, value, checksum FROM results WHERE key IN"
                f" ({','.join('?' * len(some))})"
            )
            rows = self._try(lambda database: database.execute(query, some).fetchall(), MEMORY_ONLY)  # noqa: B023
            if rows is None:
                break
            for key, value, checksum in rows:
                if isinstance(value, str) and checksum == _checksum(key, value):
                    found[key] = Counts(**json.loads(value))
        return found

    def put(self, key: bytes, counts: Counts) -> None:
        self._unwritten[key] = counts
        if len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[next(iter(self._unwritten))]
        if time.monotonic() >= self._retry_at:
            self._write()

    def close(self) -> None:
        if self._unwritten:
            self._write()
        self._disconnect()

    def _write(self) -> None:
        """Store what is not stored yet, or note when to try again."""

        def insert(database):
            values = [(key, json.dumps(asdict(counts))) for key, counts in self._unwritten.items()]
            rows = [(key, value, _checksum(key, value)) for key, value in values]
            with database:  # commits, or rolls back whatever happens
                database.execute("BEGIN IMMEDIATE")
                database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)
            return True

        if not self._writable:
            self._open()
        if self._writable and self._try(insert, READ_ONLY):
            self._unwritten.clear()
            self._wait_for_locks(LOCK_WAIT_S)
        else:
            self._retry_at = time.monotonic() + RETRY_S

    def _try(self, operation, consequence: str):
        """What operation(database) returns, or None, after a warning of the consequence, if it
        fails.

        A database found corrupt on the way is set aside, and the operation tried on a new one.
        """
        for may_reopen in (True, False):
            if self.database is None:
                return None
            try:
                return operation(self.database)
            except sqlite3.OperationalError as error:
                with contextlib.suppress(sqlite3.Error):
                    self.database.rollback()
                self._warn(error, consequence)
                return None
            except sqlite3.DatabaseError as error:
                self._disconnect()
                if may_reopen:
                    self._open()
                else:
                    self._retry_at = time.monotonic() + RETRY_S
                    self._warn(error, MEMORY_ONLY)

    def _warn(self, error: Exception, consequence: str) -> None:
        if _locked_by_another(error):
            self._wait_for_locks(0.0)
        if consequence not in self._warned:
            # nothing kept on disk says that nothing new is
            self._warned |= {consequence, READ_ONLY}
            warnings.warn(f"twin cache {self.path}: {error}: {consequence}", stacklevel=4)

    def _wait_for_locks(self, seconds: float) -> None:
        if self._lock_wait_s != seconds:
            self._lock_wait_s = seconds
            if self.database is not None:
                self.database.execute(f"PRAGMA busy_timeout={seconds * 1e3:.0f}")

    def _disconnect(self) -> None:
        if self.database is not None:
            with contextlib.suppress(sqlite3.Error):
                self.database.close()
        self.database, self._writable = None, False

    def _open(self) -> None:
        """Connect to read and write, or else to read, or else not at all."""
        self._disconnect()
        try:
            with self._locked():
                try:
                    self.database = self._connect()
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError as error:
                    self._set_aside(error)
                    self.database = self._connect()
            self._writable = True
        except (sqlite3.Error, OSError) as error:
            locked = _locked_by_another(error)
            if locked:
                self._lock_wait_s = 0.0
            self.database = self._connect_to_read(immutable=not locked)
            self._retry_at = time.monotonic() + RETRY_S
            self._warn(error, MEMORY_ONLY if self.database is None else READ_ONLY)

    @contextlib.contextmanager
    def _locked(self):
        """Alone among the processes that open the file; raises TimeoutError if another one stays at
        it.
        """
        lock = os.open(f"{self.path}.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            give_up_at = time.monotonic() + self._lock_wait_s
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= give_up_at:
                        raise TimeoutError(
                            f"{self.path.name}.lock is locked by another process"
                        ) from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(lock)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self.path, timeout=self._lock_wait_s, isolation_level=None, check_same_thread=False
        )
        try:
            if (verdict := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            columns = "key BLOB PRIMARY KEY, value TEXT, checksum BLOB"
            database.execute(f"CREATE TABLE IF NOT EXISTS results ({columns}) WITHOUT ROWID")
            columns = [column[1] for column in database.execute("PRAGMA table_info(results)")]
            if columns != ["key", "value", "checksum"]:
                raise sqlite3.DatabaseError("it has a table of other columns")
            return database
        except sqlite3.Error:
            database.close()
            raise

    def _connect_to_read(self, immutable: bool) -> sqlite3.Connection | None:
        """A connection that writes nothing; with `immutable`, also where the log's files cannot be
        made.
        """
        for how in ("mode=ro", "mode=ro&immutable=1")[: 1 + immutable]:
            database = None
            try:
                database = sqlite3.connect(
                    f"{self.path.absolute().as_uri()}?{how}",
                    uri=True,
                    timeout=self._lock_wait_s,
                    isolation_level=None,
                    check_same_thread=False,
                )
                database.execute("SELECT key, value, checksum FROM results LIMIT 1").fetchall()
                return database
            except sqlite3.Error:
                if database:
                    database.close()
        return None

    def _set_aside(self, error) -> None:
        number = 0
        while (aside := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists():
            number += 1
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        text = f"twin cache {self.path} is not usable ({error}): set aside as {aside.name}"
        warnings.warn(text, stacklevel=5)

import ast
import contextlib
import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import fields
from pathlib import Path

import pytest

from twin import Scenario, Settings, Workflow, physical
from twin import cache as cache_module
from twin.cache import MEMORY_ONLY, READ_ONLY, Cache, digest, fingerprint, result_files
from twin.physical import Counts

POINT = physical(Scenario(), Workflow())
KEY = digest(POINT, Settings(), 0)


# Every field something else, of its own type
COUNTS = Counts(
    **{
        field.name: type(field.default)((32.5, i) if type(field.default) is tuple else 321 + i)
        for i, field in enumerate(fields(Counts))
    }
)
OLD, MANY = [b"key %d" % n for n in range(10)], [b"new %d" % n for n in range(1000)]


def test_a_result_comes_back_in_another_process(tmp_path):
    Cache(tmp_path / "c.sqlite").put(KEY, COUNTS)
    assert Cache(tmp_path / "c.sqlite").get([KEY, b"other"]) == {KEY: COUNTS}


def test_the_key_tells_apart_points_settings_and_seeds():
    points = [physical(s, Workflow()) for s in (Scenario(snr_db=16.0), Scenario(num_rx_ant=3))]
    keys = [digest(POINT, Settings(), 1), digest(POINT, Settings(max_blocks=64), 0)]
    assert len({KEY, *keys, *(digest(point, Settings(), 0) for point in points)}) == 5
    assert KEY == digest(physical(Scenario(compute_gflops=3.0), Workflow()), Settings(), 0)


# The fingerprint of what results depend on


@pytest.fixture
def package(tmp_path):
    """A copy of the twin's package, with tables and a package inside that are not there yet."""
    package = tmp_path / "twin"
    shutil.copytree(cache_module.PACKAGE, package)
    for name in ("tables/table.npy", "chain/deeper/new.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"#")
    return package


def _fingerprint(package):
    return fingerprint.__wrapped__(package)


def test_any_byte_that_results_depend_on_changes_the_fingerprint(package):
    seen = [_fingerprint(package)]
    names = [name for name, _ in result_files(package)]
    expected = {"physical.py", "spec.py", "toolbox.py", "worker.py", "chain/deeper/new.py"}
    for kind in ("chain/*.py", "weights/*", "tables/*"):
        expected |= {
            path.relative_to(package).as_posix() for path in package.glob(kind) if path.is_file()
        }
    assert expected <= set(names)
    for name in names:
        content = (package / name).read_bytes()
        (package / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"x")
        seen.append(_fingerprint(package))
    (package / "brand_new.py").write_text("")
    seen.append(_fingerprint(package))
    (package / "brand_new.py").rename(package / "chain" / "brand_new.py")
    seen.append(_fingerprint(package))
    assert len(set(seen)) == len(seen)


def test_nothing_else_changes_the_fingerprint(package):
    before = _fingerprint(package)
    for name in cache_module.NO_PART_IN_RESULTS:
        with open(package / name, "ab") as file:
            file.write(b"\n# another line\n")
    for path in package.rglob("*"):
        os.utime(path, (1, 1))
    for folder in (package, package / "chain"):
        (folder / "__pycache__").mkdir(exist_ok=True)
        (folder / "__pycache__" / "new.cpython-311.pyc").write_bytes(b"new")
        (folder / ".link.py.swp").write_bytes(b"an editor's")
    assert _fingerprint(package) == before


def test_the_fingerprint_knows_the_libraries(monkeypatch):
    seen = {_fingerprint(cache_module.PACKAGE)}
    for library in cache_module.LIBRARIES:

        def version(name):
            if name == library:  # noqa: B023
                raise cache_module.importlib.metadata.PackageNotFoundError
            return "1.0"

        for found in (version, lambda name: "2.0" if name == library else "1.0"):  # noqa: B023
            monkeypatch.setattr(cache_module.importlib.metadata, "version", found)
            seen.add(_fingerprint(cache_module.PACKAGE))
    assert len(seen) == 1 + 2 * len(cache_module.LIBRARIES)


def test_another_process_over_other_sources_has_other_keys(package):
    script = "from twin.cache import PACKAGE, fingerprint; print(fingerprint(), PACKAGE)"

    def run():
        environment = os.environ | {
            "PYTHONPATH": str(package.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-c", script]
        out = subprocess.check_output(command, env=environment, cwd=package.parent, text=True)
        found, where = out.split()
        assert where == str(package)
        return found

    before = run()
    assert before == _fingerprint(package) == run()
    with open(package / "physical.py", "a") as file:
        file.write("#\n")
    assert run() != before


def test_what_counts_imports_nothing_that_does_not():
    apart = {name.removesuffix(".py") for name in cache_module.NO_PART_IN_RESULTS} - {"__init__"}
    for name, path in result_files():
        if path.suffix != ".py":
            continue
        package = ["twin", *name.split("/")[:-1]]
        for node in ast.walk(ast.parse(path.read_text())):
            imported = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = (
                    ".".join(package[: len(package) + 1 - node.level]) + "." if node.level else ""
                )
                base += node.module or ""
                imported = [base, *(f"{base.rstrip('.')}.{alias.name}" for alias in node.names)]
            assert not {f"twin.{module}" for module in apart} & set(imported), (name, imported)


def test_the_fingerprint_costs_milliseconds_once():
    start = time.process_time()
    _fingerprint(cache_module.PACKAGE)
    assert time.process_time() - start < 0.2  # measured: 0.005
    assert fingerprint() is fingerprint()


# Damage


NO_DATABASES = [b"", b"not a database", b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 100_000]


@pytest.mark.parametrize("content", NO_DATABASES)
def test_a_file_that_is_no_database_is_set_aside_with_a_warning(tmp_path, content):
    path = tmp_path / "c.sqlite"
    path.write_bytes(content)
    if content:
        with pytest.warns(UserWarning, match="set aside as c.sqlite.corrupt-0"):
            cache = Cache(path)
        assert (tmp_path / "c.sqlite.corrupt-0").read_bytes() == content
    else:
        cache = Cache(path)  # an empty file is an empty database
    cache.put(KEY, COUNTS)
    assert Cache(path).get([KEY]) == {KEY: COUNTS}


def test_a_database_of_other_tables_is_set_aside(tmp_path):
    with sqlite3.connect(tmp_path / "c.sqlite") as database:
        database.execute("CREATE TABLE results (x)")
    database.close()
    with pytest.warns(UserWarning, match="set aside"):
        cache = Cache(tmp_path / "c.sqlite")
    cache.put(KEY, COUNTS)
    assert Cache(tmp_path / "c.sqlite").get([KEY]) == {KEY: COUNTS}


def test_a_file_damaged_while_open_is_survived(tmp_path):
    path = tmp_path / "c.sqlite"
    cache = Cache(path)
    for seed in range(3000):
        cache.put(digest(POINT, Settings(), seed), COUNTS)
    cache.close()
    cache = Cache(path)
    cache.database.execute("PRAGMA shrink_memory")  # drop the pages it has read
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"\xaa" * (size - 100))
    with pytest.warns(UserWarning, match="set aside"):
        assert cache.get([digest(POINT, Settings(), seed) for seed in range(3000)]) == {}
    cache.put(KEY, COUNTS)
    assert Cache(path).get([KEY]) == {KEY: COUNTS}


def test_a_changed_row_is_not_trusted(tmp_path):
    cache = Cache(tmp_path / "c.sqlite")
    cache.put(KEY, COUNTS)
    cache.database.execute("UPDATE results SET value = replace(value, '321', '123')")
    assert cache.get([KEY]) == {}
    cache.put(KEY, COUNTS)
    assert cache.get([KEY]) == {KEY: COUNTS}


def test_a_missing_directory_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory .*nowhere"):
        Cache(tmp_path / "nowhere" / "c.sqlite")


def test_a_directory_in_place_of_the_file_is_said(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a directory"):
        Cache(tmp_path)


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "c.sqlite"
    writer = """
import sys
from twin.cache import Cache
from twin.physical import Counts
cache, first = Cache(sys.argv[1]), int(sys.argv[2])
for n in range(first, first + 300):
    cache.put(b"key %d" % n, Counts(num_blocks=n))
"""
    command = [sys.executable, "-W", "error", "-c", writer, str(path)]
    processes = [subprocess.Popen([*command, str(first)]) for first in (0, 200, 400)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    found = Cache(path).get([b"key %d" % n for n in range(700)])
    assert sorted(c.num_blocks for c in found.values()) == list(range(700))


# Files that cannot be written: one warning, and the run goes on. Most of it for real, in other
# processes

PRELUDE = """
import resource, sys, warnings
from twin import cache as cache_module
from twin.cache import MEMORY_ONLY, READ_ONLY, Cache
from twin.physical import Counts

said = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *_: said.append(str(message))
COUNTS = Counts(num_blocks=7)
OLD, NEW = [b"key %d" % n for n in range(10)], [b"new %d" % n for n in range(3000)]
path = sys.argv[1]

def one_warning(consequence):
    assert len(said) == 1 and path in said[0] and said[0].endswith(consequence) and "\\n" not in said[0], said

"""  # noqa: E501
WITHOUT_ROOT_RIGHTS = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
)
ALONE = ["unshare", "--mount"]  # mounts that nobody else sees and that end with the process


def run(path, *scripts, under=()):
    script = PRELUDE + "\n".join(map(textwrap.dedent, scripts))
    command = [*under, sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def works(*command):
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def stored(path):
    """A cache file with ten results in it, closed."""
    cache = Cache(path)
    for key in OLD:
        cache.put(key, COUNTS)
    cache.close()
    return path


READS_ON = """
cache = Cache(path)
assert len(cache.get(OLD)) == 10
for key in NEW:
    cache.put(key, COUNTS)
one_warning(READ_ONLY)
assert len(cache.get(OLD + NEW)) == 10 + len(NEW)  # this process keeps what it could not store
cache.close()
one_warning(READ_ONLY)
"""
FORGETS = """
cache = Cache(path)
for key in NEW:
    cache.put(key, COUNTS)
one_warning(MEMORY_ONLY)
assert len(cache.get(OLD + NEW)) == len(NEW)
cache.close()
one_warning(MEMORY_ONLY)
"""


def test_a_disk_that_fills_up_and_is_freed_again(tmp_path):
    path = stored(tmp_path / "c.sqlite")
    run(
        path,
        """
    cache = Cache(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # bytes, of any one file
    for key in NEW:
        cache.put(key, COUNTS)
    one_warning(READ_ONLY)
    assert len(cache.get(OLD + NEW)) == 10 + len(NEW)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    cache_module.RETRY_S = cache._retry_at = 0
    cache.put(b"last", COUNTS)
    assert len(Cache(path).get([*OLD, *NEW, b"last"])) == 11 + len(NEW)
    """,  # noqa: E501
    )


def test_a_disk_that_is_full_from_the_start(tmp_path):
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))"
    run(tmp_path / "new.sqlite", full, FORGETS)
    run(stored(tmp_path / "c.sqlite"), full, READS_ON)


def test_a_real_full_disk(tmp_path):
    if not works(*ALONE, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)):
        pytest.skip("needs mount")
    mounted = [
        *ALONE,
        "sh",
        "-c",
        f'mount -t tmpfs -o size=128k tmpfs {tmp_path} && exec "$@"',
        "sh",
    ]
    some_room = """
    cache = Cache(path)
    for key in OLD:
        cache.put(key, COUNTS)
    assert not said
    cache.close()
    """
    no_room = f"with open({str(tmp_path / 'filler')!r}, 'wb') as file: file.write(b'x' * 131072)"
    run(tmp_path / "c.sqlite", some_room, READS_ON, under=mounted)
    run(tmp_path / "c.sqlite", no_room, FORGETS, under=mounted)


def test_a_directory_without_permission(tmp_path):
    if WITHOUT_ROOT_RIGHTS and not works(*WITHOUT_ROOT_RIGHTS, "true"):
        pytest.skip("needs setpriv")
    path = stored(tmp_path / "c.sqlite")
    tmp_path.chmod(0o555)
    try:
        run(path, READS_ON, under=WITHOUT_ROOT_RIGHTS)  # with the lock file
        run(tmp_path / "new.sqlite", FORGETS, under=WITHOUT_ROOT_RIGHTS)
        (tmp_path / "c.sqlite.lock").unlink()
        path.chmod(0o444)
        run(path, READS_ON, under=WITHOUT_ROOT_RIGHTS)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("mode, script", [(0o444, READS_ON), (0o000, FORGETS)])
def test_a_file_without_permission(tmp_path, mode, script):
    if WITHOUT_ROOT_RIGHTS and not works(*WITHOUT_ROOT_RIGHTS, "true"):
        pytest.skip("needs setpriv")
    path = stored(tmp_path / "c.sqlite")
    path.chmod(mode)
    run(path, script, under=WITHOUT_ROOT_RIGHTS)


def test_a_lock_file_without_permission(tmp_path):
    if WITHOUT_ROOT_RIGHTS and not works(*WITHOUT_ROOT_RIGHTS, "true"):
        pytest.skip("needs setpriv")
    path = stored(tmp_path / "c.sqlite")
    Path(f"{path}.lock").chmod(0o444)  # somebody else's: enough to take part
    takes_part = "cache = Cache(path); cache.put(NEW[0], COUNTS); cache.close(); assert not said"
    run(path, takes_part, under=WITHOUT_ROOT_RIGHTS)
    assert len(Cache(path).get([b"new 0"])) == 1
    Path(f"{path}.lock").chmod(0o000)
    run(path, READS_ON, under=WITHOUT_ROOT_RIGHTS)


def test_a_read_only_file_system(tmp_path):
    if not works(*ALONE, "mount", "--bind", "-o", "ro", str(tmp_path), str(tmp_path)):
        pytest.skip("needs mount")
    mounted = [*ALONE, "sh", "-c", f'mount --bind -o ro {tmp_path} {tmp_path} && exec "$@"', "sh"]
    path = stored(tmp_path / "c.sqlite")
    run(path, READS_ON, under=mounted)
    path.write_bytes(b"not a database" * 1000)
    run(path, FORGETS, under=mounted)  # it cannot be set aside there


def test_an_immutable_file(tmp_path):
    path = stored(tmp_path / "c.sqlite")
    if not works("chattr", "+i", str(path)):
        pytest.skip("needs chattr")
    try:
        run(path, READS_ON)
    finally:
        subprocess.run(["chattr", "-i", str(path)])


@contextlib.contextmanager
def another_process(script, path):
    """A process that has run the script and stays."""
    command = [sys.executable, "-c", script + "print(1, flush=True); sys.stdin.read()", str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"1\n"
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def within(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


HOLDS_THE_DATABASE = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
"""
HOLDS_THE_LOCK_FILE = """
import fcntl, sys
lock = open(sys.argv[1] + ".lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
"""


def test_a_lock_that_another_process_holds_for_long_costs_one_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "LOCK_WAIT_S", 1.0)
    monkeypatch.setattr(cache_module, "RETRY_S", 0.01)
    path = stored(tmp_path / "c.sqlite")
    cache = Cache(path)
    with another_process(HOLDS_THE_DATABASE, path):
        with warnings.catch_warnings(record=True) as said, within(3):
            warnings.simplefilter("always")
            for key in MANY:
                cache.put(key, COUNTS)
            assert len(cache.get(OLD + MANY)) == 1010
            with contextlib.closing(Cache(path)) as other:  # nor does it keep another from reading
                assert set(other.get(OLD + MANY)) == set(OLD)
        assert [str(w.message) for w in said] == [
            f"twin cache {path}: database is locked: {READ_ONLY}"
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        time.sleep(0.02)
        cache.put(KEY, COUNTS)
    assert len(Cache(path).get([*MANY, KEY])) == 1001
    assert cache._lock_wait_s == 1.0  # and the next one is waited for again


@pytest.mark.parametrize(
    "holds", [HOLDS_THE_DATABASE, HOLDS_THE_LOCK_FILE], ids=["database", "lock file"]
)
def test_a_lock_held_since_before_the_file_is_there(tmp_path, monkeypatch, holds):
    monkeypatch.setattr(cache_module, "LOCK_WAIT_S", 0.5)
    path = tmp_path / "c.sqlite"
    with another_process(holds, path):
        with warnings.catch_warnings(record=True) as said, within(2):
            warnings.simplefilter("always")
            cache = Cache(path)
            for key in MANY:
                cache.put(key, COUNTS)
            assert len(cache.get(MANY)) == 1000
        (text,) = (str(w.message) for w in said)
        assert "locked" in text and text.endswith(MEMORY_ONLY)
    cache.close()  # tries once more
    assert len(Cache(path).get(MANY)) == 1000


def test_a_held_lock_file_does_not_keep_from_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "LOCK_WAIT_S", 0.5)
    path = stored(tmp_path / "c.sqlite")
    with (
        another_process(HOLDS_THE_LOCK_FILE, path),
        pytest.warns(UserWarning, match=READ_ONLY),
        within(2),
    ):
        assert len(Cache(path).get(OLD)) == 10


class Failing:
    """A connection of which every statement that begins with `word` fails."""

    def __init__(self, database, word, error):
        self.database, self.word, self.error = database, word, error

    def __getattr__(self, name):
        return getattr(self.database, name)

    def __enter__(self):
        return self.database.__enter__()

    def __exit__(self, *error):
        return self.database.__exit__(*error)

    def execute(self, statement, *arguments):
        if statement.startswith(self.word):
            raise self.error
        return self.database.execute(statement, *arguments)


FAULTS = ["database or disk is full", "disk I/O error", "attempt to write a readonly database"]


@pytest.mark.parametrize("text", FAULTS)
def test_writes_that_fail_are_kept_and_reads_go_on(tmp_path, text):
    cache = Cache(stored(tmp_path / "c.sqlite"))
    database = cache.database
    cache.database = Failing(database, "BEGIN", sqlite3.OperationalError(text))
    with pytest.warns(UserWarning) as said:
        for key in MANY:
            cache.put(key, COUNTS)
    assert [str(w.message) for w in said] == [f"twin cache {cache.path}: {text}: {READ_ONLY}"]
    assert len(cache.get(OLD + MANY)) == 1010
    cache.database, cache._retry_at = database, 0.0
    cache.put(KEY, COUNTS)
    assert len(Cache(cache.path).get([*OLD, *MANY, KEY])) == 1011


def test_reads_that_fail_find_what_is_in_memory(tmp_path):
    cache = Cache(stored(tmp_path / "c.sqlite"))
    cache.database = Failing(cache.database, "SELECT", sqlite3.OperationalError("disk I/O error"))
    with pytest.warns(UserWarning, match=f"disk I/O error: {MEMORY_ONLY}") as said:
        assert cache.get(OLD + MANY) == cache.get(MANY) == {}
        cache.database.word = ""  # every statement
        cache.put(KEY, COUNTS)
    assert len(said) == 1 and cache.get([KEY]) == {KEY: COUNTS}


def test_damage_that_comes_back_ends_in_memory(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "c.sqlite")
    connect = Cache._connect
    damage = sqlite3.DatabaseError("database disk image is malformed")
    monkeypatch.setattr(Cache, "_connect", lambda self: Failing(connect(self), "SELECT", damage))
    cache.database = Failing(cache.database, "SELECT", damage)
    with pytest.warns(UserWarning, match=f"malformed: {MEMORY_ONLY}"):
        assert cache.get([KEY]) == {}
    cache.put(KEY, COUNTS)
    assert cache.get([KEY]) == {KEY: COUNTS}


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT]
)
@pytest.mark.parametrize("old", [True, False])
def test_a_lock_file_that_cannot_be_made(tmp_path, monkeypatch, number, old):
    path = stored(tmp_path / "c.sqlite") if old else tmp_path / "c.sqlite"
    opened = os.open

    def fails(name, *rest, **more):
        if str(name).endswith(".lock"):
            raise OSError(number, os.strerror(number), name)
        return opened(name, *rest, **more)

    monkeypatch.setattr(os, "open", fails)
    consequence = READ_ONLY if old else MEMORY_ONLY
    with pytest.warns(UserWarning, match=f"{os.strerror(number)}.*{consequence}") as said:
        cache = Cache(path)
        for key in MANY:
            cache.put(key, COUNTS)
    assert len(said) == 1 and len(cache.get(OLD + MANY)) == 1000 + 10 * old
    monkeypatch.undo()
    cache.close()
    assert len(Cache(path).get(MANY)) == 1000


def test_an_interrupted_write_leaves_no_transaction_open(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "c.sqlite")
    monkeypatch.setattr(json, "dumps", lambda _: "{}")
    database = cache.database

    class Interrupted(Failing):
        def executemany(self, *_):
            raise KeyboardInterrupt

    cache.database = Interrupted(database, "nothing", None)
    with pytest.raises(KeyboardInterrupt):
        cache.put(KEY, COUNTS)
    assert not database.in_transaction
    monkeypatch.undo()
    cache.database = database
    cache.put(b"next", COUNTS)
    assert set(Cache(cache.path).get([KEY, b"next"])) == {KEY, b"next"}


def test_what_could_not_be_written_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_UNWRITTEN", 100)
    cache = Cache(tmp_path / "c.sqlite")
    cache._retry_at = float("inf")
    for key in MANY:
        cache.put(key, COUNTS)
    assert list(cache.get(MANY)) == MANY[-100:]

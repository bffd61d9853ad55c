import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from twin import Scenario, Settings, Workflow, physical
from twin.cache import Cache, digest
from twin.physical import Counts

POINT = physical(Scenario(), Workflow())
KEY = digest(POINT, Settings(), 0)
COUNTS = Counts(32, 18432, 5, 321, 40000, 32)


def test_a_result_comes_back_in_another_process(tmp_path):
    Cache(tmp_path / "c.sqlite").put(KEY, COUNTS)
    assert Cache(tmp_path / "c.sqlite").get([KEY, b"other"]) == {KEY: COUNTS}


def test_the_key_tells_apart_points_settings_and_seeds():
    keys = {
        KEY, digest(POINT, Settings(), 1), digest(POINT, Settings(max_blocks=64), 0), digest(replace(POINT, snr_db=16.0), Settings(), 0),
        digest(replace(POINT, state=replace(POINT.state, num_rx=3)), Settings(), 0),
    }
    assert len(keys) == 5
    assert KEY == digest(physical(Scenario(max_prb=20), Workflow(num_prb=5)), Settings(), 0)


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 100_000])
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
    assert cache.get([KEY]) == {KEY: COUNTS}


def test_a_database_of_other_tables_is_set_aside(tmp_path):
    with sqlite3.connect(tmp_path / "c.sqlite") as database:
        database.execute("CREATE TABLE results (x)")
    database.close()
    with pytest.warns(UserWarning, match="set aside"):
        cache = Cache(tmp_path / "c.sqlite")
    cache.put(KEY, COUNTS)


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
    assert cache.get([KEY]) == {KEY: COUNTS}


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


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "c.sqlite"
    writer = """
import sys
from twin import Settings, Scenario, Workflow, physical
from twin.cache import Cache, digest
from twin.physical import Counts
cache, point, first = Cache(sys.argv[1]), physical(Scenario(), Workflow()), int(sys.argv[2])
for seed in range(first, first + 300):
    cache.put(digest(point, Settings(), seed), Counts(seed, 1, 0, 0, 0, 1))
"""
    processes = [subprocess.Popen([sys.executable, "-c", writer, str(path), str(first)]) for first in (0, 200, 400)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    found = Cache(path).get([digest(POINT, Settings(), seed) for seed in range(700)])
    assert sorted(c.num_blocks for c in found.values()) == list(range(700))

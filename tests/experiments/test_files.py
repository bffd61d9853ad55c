"""Files that are there whole or not at all."""

import resource

import pytest

from experiments.files import whole


def test_what_a_file_held_stays_until_the_block_ends_well(tmp_path):
    path = tmp_path / "x.json"
    with whole(str(path)) as file:
        file.write("old")
    with pytest.raises(RuntimeError), whole(str(path)) as file:
        file.write("new, cut sh")
        file.flush()
        raise RuntimeError
    assert path.read_text() == "old"
    with whole(str(path), "wb") as file:
        file.write(b"new")
    assert path.read_text() == "new"


def test_a_disk_that_takes_no_more_is_named_and_what_was_there_stays(tmp_path):
    """The limit of a file's size stands for the disk's."""
    path, before = tmp_path / "x", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"), whole(str(path)) as file:
            file.write("x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

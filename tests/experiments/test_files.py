"""Files that are there whole or not at all."""

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

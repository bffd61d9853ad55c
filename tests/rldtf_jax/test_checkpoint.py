"""Checkpoints: what was saved comes back to the bit or not at all."""

import os
import re
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rldtf_jax.checkpoint import Checkpoints, OtherState


def state(step):
    rng = np.random.default_rng(step)
    return {
        "params": {
            "w": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32),
            "b": jnp.bfloat16(rng.normal(size=3)),
        },
        "count": jnp.int32(step),
        "moments": (jnp.full((2, 2), jnp.nan), jnp.float32(-0.0)),
    }


def meta(step):
    return {"metrics_position": 1000 + step, "note": "ä"}


LIKE = jax.tree.map(jnp.zeros_like, state(0))


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def saved(directory, *steps, keep=2):
    checkpoints = Checkpoints(str(directory), keep)
    for step in steps:
        checkpoints.save(step, state(step), meta(step))
    checkpoints.close()


def restored(directory, like=LIKE):
    checkpoints = Checkpoints(str(directory))
    try:
        return checkpoints.restore_latest(like)
    finally:
        checkpoints.close()


def is_saved_state(found, step):
    return found[0] == step and bits(found[1]) == bits(state(step)) and found[2] == meta(step)


def files(directory, step):
    return sorted(
        os.path.relpath(os.path.join(root, name), directory / str(step))
        for root, _, names in os.walk(directory / str(step))
        for name in names
    )


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    saved(tmp_path, 3)
    assert is_saved_state(restored(tmp_path), 3)


def test_an_empty_directory_holds_nothing(tmp_path):
    assert restored(tmp_path) is None


def test_the_newest_ones_stay(tmp_path):
    saved(tmp_path, 1, 2, 3, 10, keep=3)
    assert sorted(int(name) for name in os.listdir(tmp_path)) == [2, 3, 10]
    assert is_saved_state(restored(tmp_path), 10)


def test_what_is_saved_is_the_state_at_the_call_even_if_it_is_donated_at_once(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    for step in range(5):
        live = state(step)
        checkpoints.save(step, live, meta(step))
        overwrite(live)
    checkpoints.close()
    assert is_saved_state(restored(tmp_path), 4)


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_whatever_file_is_damaged_nothing_but_a_saved_state_comes_back(tmp_path, how):
    saved(tmp_path / "0", 1, 2)
    fell_back = []
    for i, name in enumerate(files(tmp_path / "0", 2), 1):
        directory = tmp_path / str(i)
        shutil.copytree(tmp_path / "0", directory)
        if how == "missing":
            (directory / "2" / name).unlink()
        else:
            damage(directory / "2" / name, how)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = restored(directory)
        if found[0] == 1:
            assert any(f"{directory}/2 is damaged" in str(w.message) for w in told), name
            fell_back.append(name)
        assert is_saved_state(found, found[0]), name
    assert any(name.startswith("state") and "/d/" in name for name in fell_back)  # an array's bytes
    assert "meta/metadata" in fell_back


def test_a_damaged_checkpoint_is_set_aside_and_its_number_is_free_again(tmp_path):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "2" / "meta" / "metadata", "flipped")
    with pytest.warns(
        UserWarning, match=f"{tmp_path}/2 is damaged and was moved to .*damaged-2, going back"
    ):
        assert is_saved_state(restored(tmp_path), 1)
    assert (tmp_path / "damaged-2").is_dir()
    saved(tmp_path, 2)
    assert is_saved_state(restored(tmp_path), 2)


def test_where_all_are_damaged_there_is_none(tmp_path):
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        damage(tmp_path / str(step) / "meta" / "metadata", "truncated")
    with pytest.warns(UserWarning, match="damaged"):
        assert restored(tmp_path) is None


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s | {"count": jnp.zeros(2, jnp.int32)},
            r"\['count'\] is int32\[\] there and int32\[2\] here",
        ),
        (
            lambda s: s | {"count": jnp.float32(0)},
            r"\['count'\] is int32\[\] there and float32\[\] here",
        ),
        (lambda s: s | {"more": jnp.zeros(1)}, r"\['more'\] is None there and float32\[1\] here"),
        (
            lambda s: {"count": s["count"]},
            r"\['moments'\]\[0\] is float32\[2, 2\] there and None here",
        ),
    ],
)
def test_a_sound_checkpoint_of_another_model_is_refused_and_kept(tmp_path, change, message):
    saved(tmp_path, 1, 2)
    with pytest.raises(OtherState, match=message):
        restored(tmp_path, change(LIKE))
    assert is_saved_state(restored(tmp_path), 2)


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    saved(tmp_path, 1)
    half = tmp_path / "2.orbax-checkpoint-tmp" / "state"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").write_bytes(b"half")
    assert is_saved_state(restored(tmp_path), 1)
    assert os.listdir(tmp_path) == ["1"]


# In a process of its own, as a command is: after a failed save Orbax's threads go on for a while
# and meddle with another one's files.
ON_A_FULL_DISK = """
import resource, sys
from test_checkpoint import saved
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    saved(sys.argv[1], 2)
except OSError as error:
    sys.exit(f"OSError: {error}")
"""


@pytest.mark.parametrize("size", [100, 2000])
def test_a_disk_that_takes_no_more_is_an_os_error_and_what_was_saved_stays(tmp_path, size):
    saved(tmp_path, 1)
    full = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, tmp_path, str(size)],
        capture_output=True,
        text=True,
        check=False,
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert full.returncode == 1 and re.search(
        "OSError: .*File too large.*" + str(tmp_path), full.stderr
    ), full.stderr
    assert is_saved_state(restored(tmp_path), 1)
    saved(tmp_path, 2)
    assert is_saved_state(restored(tmp_path), 2)

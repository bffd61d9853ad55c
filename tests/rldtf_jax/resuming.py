"""Trainings in processes of their own, killed and started again."""

import os
import random
import signal
import subprocess
import sys

import tiny_training


def start(kind, directory, *signalled, cache=None):
    """A run of the script tiny_training; with `cache`, it takes compiled programs from that
    directory.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    return subprocess.run(
        [sys.executable, tiny_training.__file__, kind, str(directory), *map(str, signalled)],
        env=environment,
        capture_output=True,
        text=True,
    )


def assert_killed_and_resumed_equals_never_killed(kind, tmp_path, programs, kills):
    """kills: (rows, moment) of each SIGKILL. The last process compiles for itself and runs to the
    end.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(kind, whole, cache=programs).returncode == 0
    lives = start(
        kind, killed, signal.SIGKILL.value, *(x for kill in kills for x in kill), cache=programs
    )
    assert lives.returncode == 0, lives
    done = start(kind, killed)
    assert done.returncode == 0, done.stderr
    for name in ("final.npz", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert sorted(os.listdir(whole / "checkpoints")) == sorted(os.listdir(killed / "checkpoints"))


def moments(seed, *rows):
    """Each after so many rows: in turn at a random instant of the next step, and inside the next
    save.
    """
    rng = random.Random(seed)
    return [(row, "save" if i % 2 else rng.uniform(0, 0.05)) for i, row in enumerate(rows)]

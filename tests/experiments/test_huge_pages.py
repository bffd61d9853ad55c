"""Whoever starts a command, by make or not, gets huge pages, once, and may use its short name;
other programs that import the package are left alone.
"""

import os
import subprocess
import sys
import time

import pytest

IMPORT = """
import os, sys
sys.orig_argv = {argv!r}
os.execv = lambda path, argv: print(path, argv[1:], os.environ["GLIBC_TUNABLES"])
import experiments
"""


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | more


@pytest.mark.parametrize(
    "tunables, becomes",
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, None),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, None),
    ],
)
def test_a_command_starts_anew_with_its_arguments_unless_the_tunable_is_set(tunables, becomes):
    argv = ["python3", "-m", "experiments.stages.pipeline", "preset=smoke", "run_dir=a b"]
    out = subprocess.run(
        [sys.executable, "-c", IMPORT.format(argv=argv)],
        env=environment(**tunables),
        capture_output=True,
        text=True,
    )
    assert (out.stdout.strip(), out.stderr) == (
        f"{sys.executable} {argv[1:]} {becomes}" if becomes else "",
        "",
    )


def test_a_command_may_be_named_without_the_part_that_it_is_in():
    """As in earlier versions, and with the tunable set."""
    for name, module in (("pipeline", "stages.pipeline"), ("ablate", "studies.ablate")):
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", "--help"],
            env=environment(GLIBC_TUNABLES="glibc.malloc.hugetlb=1"),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"python -m experiments.{module}" in done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        ["python3", "-m", "pytest", "experiments."],
        ["python3", "sweep.py", "-m"],
        ["python3", "-c", "import experiments"],
    ],
)
def test_another_program_goes_on(argv):
    out = subprocess.run(
        [sys.executable, "-c", IMPORT.format(argv=argv)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (out.stdout, out.stderr) == ("", "")


def test_a_running_stage_has_it(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.stages.pipeline",
        "preset=smoke",
        f"run_dir={tmp_path / 'run'}",
    ]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with open(f"/proc/{process.pid}/environ") as file:
                    if set_ := "GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in file.read():
                        break
                time.sleep(0.05)
        finally:
            process.kill()
    assert set_

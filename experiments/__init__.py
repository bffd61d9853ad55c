"""Thin scripts over rldtf_jax and twin: tasks, stages, evaluation, report."""

import os
import sys

TUNABLE = "glibc.malloc.hugetlb"


def _started_well() -> None:
    """Starts `python -m experiments...` anew, once, where it lacks huge pages, without which XLA on
    a CPU takes up to twice as long, or names a command without the part that it is in:
    experiments.pipeline for experiments.stages.pipeline.

    glibc reads GLIBC_TUNABLES at process start only. One that speaks of huge pages already, such as
    glibc.malloc.hugetlb=0, is left as it is; so is any other program that imports this package.
    """
    arguments = sys.orig_argv[1:]
    at = arguments.index("-m") + 1 if "-m" in arguments else len(arguments)
    if not any(name.startswith(f"{__name__}.") for name in arguments[at : at + 1]):
        return
    name = arguments[at].removeprefix(f"{__name__}.")
    if "." not in name and name != "cli":
        from experiments.cli import COMMANDS

        arguments[at] = COMMANDS.get(name, arguments[at])
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and TUNABLE not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    elif arguments == sys.orig_argv[1:]:
        return
    os.execv(sys.executable, [sys.executable, *arguments])


_started_well()

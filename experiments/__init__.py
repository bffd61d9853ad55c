"""Thin scripts over rldtf_jax and twin: tasks, stages, evaluation, report."""

import os
import sys

TUNABLE = "glibc.malloc.hugetlb"


def _with_huge_pages() -> None:
    """Starts `python -m experiments...` anew with huge pages, once: without them XLA on a CPU takes
    up to twice as long.

    glibc reads GLIBC_TUNABLES at process start only. One that speaks of huge pages already, such as
    glibc.malloc.hugetlb=0, is left as it is; so is any other program that imports this package.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    command = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    if (
        sys.platform == "linux"
        and TUNABLE not in tunables
        and any(name.startswith(f"{__name__}.") for name in command)
    ):
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


_with_huge_pages()

"""Kills at random moments: what is left of a run that is killed again and again, beside one that
never is.

    python -m experiments.benchmarks.faults --kills 100 --out experiments/results/faults/faults.json      preset=smoke, about an hour
    python -m experiments.benchmarks.faults --kills 5 preset=smoke rldtf.steps=4                          other overrides of the pipeline

A run is started, hit by SIGKILL at a moment drawn from the time that it has left, and started
again, until it ends; then the next run begins in a new directory, until all kills are spent. One
kill in three hits one of the run's own processes, a twin worker say, and not the one that was
started. A run that was killed has to end as the one that was not: the models of all stages, what
was sampled, the metrics and the evaluation, byte for byte. Exits with 1 where anything differs, or a
start fails by itself.
"""  # noqa: E501

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Sequence

from experiments.config import guarded, load
from experiments.files import leave, show
from experiments.stages.machine import processor

COMPARED = (
    ".safetensors",
    "metrics.jsonl",
    "sampled.jsonl",
    "evaluation.json",
    "tokenizer.json",
    "emulator.npz",
)
STAGES = ("instruct", "reject", "rldtf")
PIPELINE = (sys.executable, "-m", "experiments.stages.pipeline")


def digests(directory: str) -> dict[str, str]:
    """SHA-256 of every file that two equal runs have alike, by its path within the directory."""
    found = {}
    for root, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(root, name)
            if name.endswith(COMPARED) and "checkpoints" not in path:
                with open(path, "rb") as file:
                    found[os.path.relpath(path, directory)] = hashlib.sha256(
                        file.read()
                    ).hexdigest()
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The paths that are missing in one of them or not the same."""
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))


def stage(directory: str) -> str:
    """What a run was at when it was killed."""
    done = [name for name in STAGES if os.path.isdir(os.path.join(directory, name, "model"))]
    if len(done) == len(STAGES):
        return "evaluation"
    return (
        STAGES[len(done)] if os.path.isdir(os.path.join(directory, STAGES[len(done)])) else "start"
    )


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    children = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return [one for child in map(int, children) for one in (child, *descendants(child))]


def killed_after(
    command: Sequence[str], seconds: float, one_of_its_own: random.Random | None = None
) -> tuple[bool, int | None, str]:
    """(whether the kill came before the end, exit status, last line of stderr); one_of_its_own:
    chooses a child to be killed instead of all.
    """
    with tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True
        )
        hit = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            hit = True
            if one_of_its_own and (family := descendants(process.pid)):
                os.kill(one_of_its_own.choice(family), signal.SIGKILL)
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        err.seek(0)
        lines = err.read().strip().splitlines()
    return hit, process.returncode, lines[-1] if lines else ""


def harness(
    command: Sequence[str], kills: int, seed: int, say=print, keep=lambda found: None
) -> dict:
    """What `command` (which takes run_dir=... as its last argument) leaves after `kills` kills,
    beside a run without any; keep: takes what is found so far, whenever a run has ended.
    """
    rng, by_stage, wrong, failed, runs = random.Random(seed), Counter(), [], [], 0
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.monotonic()
        _, status, line = killed_after([*command, f"run_dir={scratch}/whole"], 1e9)
        whole_s, expected = time.monotonic() - begun, digests(f"{scratch}/whole")
        if status != 0:
            raise SystemExit(f"the run that nobody killed ended with {status}: {line}")
        say(f"unkilled: {whole_s:.0f} s, {len(expected)} files to compare")
        spent = 0
        while spent < kills and not failed:
            directory, alive_s = f"{scratch}/run{runs}", 0.0
            while True:
                left = max(0.2 * whole_s, whole_s - alive_s)
                own = rng if rng.random() < 1 / 3 else None
                begun = time.monotonic()
                hit, status, line = killed_after(
                    [*command, f"run_dir={directory}"],
                    rng.uniform(0.02, 0.6) * left if spent < kills else 1e9,
                    own,
                )
                # about half of it was starting, and is to be done again
                alive_s += 0.5 * (time.monotonic() - begun)
                if hit:
                    spent += 1
                    by_stage[f"{stage(directory)}, {'one of its own' if own else 'all'}"] += 1
                if status == 0:
                    break
                if not hit:
                    failed.append(f"{directory}: {status}, {line}")
                    break
            wrong += differences(expected, digests(directory))
            runs += 1
            say(f"run {runs}: {spent} kills so far; differing files: {wrong or 'none'}")
            found = {
                "processor": processor(),
                "command": " ".join(command[1:]),
                "kills": spent,
                "runs": runs,
                "killed_in": dict(sorted(by_stage.items())),
                "compared": sorted(expected),
                "unkilled_s": round(whole_s, 1),
                "differing": wrong,
                "failed_starts": failed,
            }
            keep(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args()
    if args.kills < 1:
        parser.error(f"--kills {args.kills}: expected at least 1")
    overrides = args.overrides or ["preset=smoke"]
    load(overrides)  # what the pipeline would refuse is refused before a run is started
    found = harness(
        [*PIPELINE, *overrides],
        args.kills,
        args.seed,
        lambda text: print(text, file=sys.stderr, flush=True),
        lambda found: leave(found, args.out),
    )
    show(found, args.out)
    if found["differing"] or found["failed_starts"]:
        sys.exit(1)


if __name__ == "__main__":
    guarded(main)

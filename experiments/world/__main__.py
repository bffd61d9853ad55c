"""Worlds from the command line.

    python -m experiments.world make family=link out=DIR [train=2000 test=300 ...] [seed=0]
        [workers=2] [budget=32]
    python -m experiments.world score tasks=FILE answers=FILE [out=FILE] [seed=0] [workers=2]
    python -m experiments.world show tasks=FILE [index=0] [out=task.png] [seed=0] [workers=2]
    python -m experiments.world baselines tasks=DIR out=FILE.json [seed=0] [workers=2]

make draws a family's splits into a directory, with a data card and SHA256SUMS. score judges answers
(see schema.json) on the noise of evaluation and prints a table; out is the same as JSON. show
prints a task and its oracle, and draws what Eq. 2 makes of the workflows around it. What is wrong
with an argument or a file is one line; the exit status is then 2. baselines judges every baseline
on every split of a directory that make has filled, and prints its tables in Markdown.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import sys
from collections import Counter
from types import SimpleNamespace

from experiments.files import whole
from experiments.world import compare, reading, scoring, tasks, worlds
from experiments.world.search import BUDGET, offered, search
from rldtf_jax.config import ConfigError
from rldtf_jax.reward import RewardConfig
from twin import Twin, Workflow
from twin.cache import fingerprint

COUNTS = {
    "train": 2000,
    "validation": 150,
    "test": 300,
    "new-links": 150,
    "new-platforms": 150,
    "new-words": 150,
}
SETTINGS = {"method": "esm", "max_blocks": 128}  # of every twin
REQUIRED = object()
MOST_GRANTS = 25  # that a landscape shows


def options(arguments: list[str], **defaults) -> SimpleNamespace:
    """The values of key=value arguments; those whose default is a number are whole numbers >= 0.

    Raises:
      ConfigError: an unknown, repeated or missing key, or a wrong value.
    """
    values = dict(defaults)
    for i, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r}: expected key=value")
        if key not in defaults:
            raise ConfigError(f"{key!r}: no such key; expected one of {', '.join(defaults)}")
        if any(other.startswith(f"{key}=") for other in arguments[:i]):
            raise ConfigError(f"{key} = {value!r}: expected this key once")
        if isinstance(defaults[key], int):
            least = 1 if key in ("workers", "budget") else 0
            if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
                raise ConfigError(f"{key} = {value!r}: expected a whole number >= {least}")
            value = int(value)
        values[key] = value
    for key, value in values.items():
        if value is REQUIRED or value == "":
            raise ConfigError(f"{key} = '': expected {key}=...")
    return SimpleNamespace(**values)


def make(arguments: list[str]) -> None:
    """Draws a family's splits into a directory. Killed, the same command goes on from the twin's
    cache in it."""
    asked = options(
        arguments, family="link", out=REQUIRED, seed=0, workers=2, budget=BUDGET, **COUNTS
    )
    family, out = worlds.family(asked.family), asked.out
    wanted = {split: number for split in COUNTS if (number := getattr(asked, split))}
    if not wanted:
        raise ConfigError(
            f"{' '.join(f'{split}=0' for split in COUNTS)}: expected at least one task"
        )
    os.makedirs(out, exist_ok=True)
    with contextlib.ExitStack() as stack:

        def twin(purpose):
            return stack.enter_context(
                Twin(
                    asked.workers,
                    os.path.join(out, "twin.sqlite"),
                    worlds.noise_seed(asked.seed, purpose),
                    **SETTINGS,
                )
            )

        drawn, counts = worlds.draw(
            family,
            wanted,
            asked.seed,
            twin("search"),
            [twin(p) for p in worlds.CONFIRMATIONS],
            budget=asked.budget,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    for split, some in drawn.items():
        tasks.save(some, os.path.join(out, f"{split}.jsonl"))
    with whole(os.path.join(out, "card.md")) as file:
        file.write(card(drawn, counts, asked))
    with whole(os.path.join(out, "SHA256SUMS")) as file:
        for name in sorted(("card.md", *(f"{split}.jsonl" for split in drawn))):
            file.write(f"{sha256(os.path.join(out, name))}  {name}\n")
    print(counts)


def card(drawn: dict[str, list[tasks.Task]], counts: dict[str, int], asked: SimpleNamespace) -> str:
    """What is in a directory and how it came about, in Markdown; the same of the same command."""
    keys = [f"{key}={getattr(asked, key)}" for key in ("family", "seed", "budget", *COUNTS)]
    kinds = {split: Counter(task.kind for task in some) for split, some in drawn.items()}
    head = ["split", "tasks", *tasks.KINDS]
    rows = [head, ["---"] * len(head)] + [
        [split, len(some), *(kinds[split][kind] for kind in tasks.KINDS)]
        for split, some in drawn.items()
    ]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    settings = ", ".join(f"{key} {value}" for key, value in SETTINGS.items())
    others = len(worlds.CONFIRMATIONS)
    took = (
        f"{counts['candidates']} candidates were searched with {counts['tries']} workflows; "
        f"{counts['feasible']} are feasible."
    )
    return f"""# Tasks of the family {asked.family}

Service requests for radio links, with their targets, the state of link and platform, and a workflow
that meets them. One JSON object a line; experiments/world/schema.json says what its fields hold.

{table}

- Made by `python -m experiments.world make out=DIR {" ".join(keys)}`.
- Judged by a twin of the fingerprint {fingerprint()} ({settings}). Another may judge otherwise.
- {took}
  A task is feasible if a workflow meets its targets on the search's noise and on {others} others;
  of those that do, the best by mean R is its witness.
- new-links, new-platforms and new-words hold channels, platforms and words that train has not.
- Answers are scored on noise that nothing was chosen on:
  `python -m experiments.world score tasks=test.jsonl answers=FILE seed={asked.seed}`.
- `sha256sum -c SHA256SUMS` checks the files. Apache-2.0.
"""


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def score(arguments: list[str]) -> None:
    """Prints the table of `scoring.score`, and writes it as JSON with what the scores rest on."""
    asked = options(arguments, tasks=REQUIRED, answers=REQUIRED, out=None, seed=0, workers=2)
    check_out(asked.out)
    some = reading.read_tasks(asked.tasks)
    answers = reading.read_answers(asked.answers, some)
    if not some:
        raise ConfigError(f"tasks = {asked.tasks!r}: expected at least one task")
    with Twin(asked.workers, seed=worlds.noise_seed(asked.seed, "evaluate"), **SETTINGS) as twin:
        result = scoring.score(some, answers, twin)
    print(scoring.as_text(result["table"]))
    if asked.out:
        basis = {
            "tasks_sha256": sha256(asked.tasks),
            "answers_sha256": sha256(asked.answers),
            "seed": asked.seed,
            "twin": {**SETTINGS, "fingerprint": fingerprint()},
        }
        with whole(asked.out) as file:
            file.write(json.dumps(basis | result, indent=1, allow_nan=False) + "\n")


def show(arguments: list[str]) -> None:
    """Prints a task, its oracle and what the twin measures, and draws the landscape around it."""
    asked = options(arguments, tasks=REQUIRED, index=0, out="task.png", seed=0, workers=2)
    check_out(asked.out)
    some = reading.read_tasks(asked.tasks)
    if asked.index >= len(some):
        raise ConfigError(f"index = {asked.index}: expected a whole number < {len(some)}")
    task = some[asked.index]
    print(
        f"task {reading.task_id(task)}, {task.service}, {task.kind}, {task.split}\n\n"
        f"{task.prompt()}\n"
    )
    print(f"targets   {measures(task.required, task)}")
    with Twin(asked.workers, seed=worlds.noise_seed(asked.seed, "evaluate"), **SETTINGS) as twin:
        oracle = task.witness or search([task], twin, RewardConfig())[0].workflow
        if oracle is None:
            print("oracle    none: a search found no workflow that meets the targets")
            return
        (one,) = scoring.judge([task], [oracle], twin)
        print(
            f"oracle    {task.response(oracle, think=False)}\n"
            f"measured  {measures(task.measured(one.qos), task)}\nR         {one.R:.3f}, "
            f"{'fulfilled' if one.fulfilled else 'not fulfilled'}"
        )
        draw(task, oracle, twin, asked.out)
    print(asked.out)


def all_baselines(arguments: list[str]) -> None:
    """Prints the tables of `compare.compare`, and writes its figures as JSON."""
    asked = options(arguments, tasks=REQUIRED, out=REQUIRED, seed=0, workers=2)
    check_out(asked.out)
    splits = tasks.load_splits(asked.tasks)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def twin(purpose):
            seed = worlds.noise_seed(asked.seed, purpose)
            return stack.enter_context(Twin(asked.workers, f"{asked.out}.sqlite", seed, **SETTINGS))

        result = compare.compare(splits, twin)
    print(compare.as_markdown(result))
    with whole(asked.out) as file:
        file.write(json.dumps(result, indent=1) + "\n")


def measures(triple: tuple[float, float, float], task: tasks.Task) -> str:
    delay_ms, throughput_mbps, errors = triple
    rate = "PER" if task.errors == "packet" else "BER"
    return f"{delay_ms:.3g} ms, {throughput_mbps:.3g} Mbps, {rate} {errors:.2g}"


def draw(task: tasks.Task, oracle: Workflow, twin: Twin, path: str) -> None:
    """A PNG of R over (bits per symbol, code rate) and over PRB, all else as in the oracle."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bits, rates = (offered(task.scenario, field) for field in ("bits_per_symbol", "code_rate"))
    every = math.ceil(task.scenario.max_prb / MOST_GRANTS)
    grants = sorted({*range(1, task.scenario.max_prb + 1, every), oracle.num_prb})
    modes = [
        dataclasses.replace(oracle, bits_per_symbol=b, code_rate=r) for b in bits for r in rates
    ]
    wider = [dataclasses.replace(oracle, num_prb=n) for n in grants]
    judged = scoring.judge([task] * len(modes + wider), modes + wider, twin)
    R = [math.nan if one.failure else one.R for one in judged]  # what cannot run stays white

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    image = left.imshow(
        [R[i * len(rates) : (i + 1) * len(rates)] for i in range(len(bits))],
        vmin=-1,
        vmax=1,
        cmap="RdYlGn",
        aspect="auto",
        origin="lower",
    )
    for i, one in enumerate(judged[: len(modes)]):
        if one.fulfilled:
            left.text(i % len(rates), i // len(rates), f"{one.R:.2f}", ha="center", va="center")
    if oracle.bits_per_symbol in bits and oracle.code_rate in rates:
        left.plot(
            rates.index(oracle.code_rate),
            bits.index(oracle.bits_per_symbol),
            "ks",
            markersize=30,
            markerfacecolor="none",
        )
    left.set(
        xticks=range(len(rates)),
        xticklabels=rates,
        xlabel="code rate",
        yticks=range(len(bits)),
        yticklabels=bits,
        ylabel="bits per symbol",
        title=f"R with {oracle.num_prb} PRB",
    )
    figure.colorbar(image, ax=left, label="R (figures: all targets met)")
    right.plot(grants, R[len(modes) :], "-", color="0.6")
    for met, marker, label in ((True, "go", "all targets met"), (False, "rx", "not all met")):
        points = [
            (n, one.R)
            for n, one in zip(grants, judged[len(modes) :])
            if not one.failure and one.fulfilled is met
        ]
        right.plot(*(zip(*points) if points else ((), ())), marker, label=label)
    right.axvline(oracle.num_prb, color="k", linewidth=0.8, label="oracle")
    right.set(
        xlabel="PRB",
        ylabel="R",
        ylim=(-1.05, 1.05),
        title=f"{oracle.bits_per_symbol} bits per symbol, rate {oracle.code_rate:g}",
    )
    right.legend()
    with whole(path, "wb") as file:
        figure.savefig(file, format="png")
    plt.close(figure)


def check_out(path: str | None) -> None:
    """Before anything takes time."""
    if path and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or ".")):
        raise ConfigError(f"out = {path!r}: expected a file in a directory that is there")


COMMANDS = {"make": make, "score": score, "show": show, "baselines": all_baselines}


def main(argv: list[str]) -> int:
    """The exit status: 2 with one line for a wrong argument or file, 130 after Ctrl-C."""
    try:
        if not argv or argv[0] not in COMMANDS:
            command = argv[0] if argv else ""
            raise ConfigError(f"command = {command!r}: expected one of {', '.join(COMMANDS)}")
        COMMANDS[argv[0]](argv[1:])
    except (ConfigError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what `make` has simulated is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

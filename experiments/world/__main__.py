"""Worlds from the command line.

    python -m experiments.world make family=link out=DIR [train=2000 test=300 ...] [seed=0] [workers=2]
"""

import contextlib
import os
import sys

from rldtf_jax.config import ConfigError
from twin import Twin

from experiments.world import tasks, worlds

COUNTS = {"train": 2000, "validation": 150, "test": 300, "new-links": 150, "new-platforms": 150, "new-words": 150}


def make(arguments: dict[str, str]) -> None:
    """Draws a family's splits into a directory. Killed, the same command goes on from the twin's cache in it."""
    family, out = worlds.family(arguments.pop("family", "link")), arguments.pop("out")
    seed, workers = int(arguments.pop("seed", 0)), int(arguments.pop("workers", 2))
    wanted = {split: int(arguments.pop(split, count)) for split, count in COUNTS.items()}
    if arguments:
        raise ConfigError(f"{next(iter(arguments))}: no such key; expected family, out, seed, workers or a split")
    os.makedirs(out, exist_ok=True)
    with contextlib.ExitStack() as stack:
        def twin(purpose):
            return stack.enter_context(Twin(workers, os.path.join(out, "twin.sqlite"), worlds.noise_seed(seed, purpose),
                                            method="esm", max_blocks=128))

        drawn, counts = worlds.draw(family, wanted, seed, twin("search"), [twin(p) for p in worlds.CONFIRMATIONS],
                                    say=lambda text: print(text, file=sys.stderr, flush=True))
    for split, some in drawn.items():
        tasks.save(some, os.path.join(out, f"{split}.jsonl"))
    print(counts)


def main(argv: list[str]) -> None:
    command, arguments = argv[0], dict(argument.partition("=")[::2] for argument in argv[1:])
    {"make": make}[command](arguments)


if __name__ == "__main__":
    main(sys.argv[1:])

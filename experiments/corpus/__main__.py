"""Builds a corpus to pre-train on: fetches packages, takes the text out, cleans it, holds documents
out.

    python -m experiments.corpus directory=runs/corpus [preset=telecom] [key=value ...]

Leaves train.jsonl and held_out.jsonl (share, name and text of a part of a document, in random
order) and corpus.json (sources, licences, archives and their SHA-256, and what each cleaning step
took away), and prints that as a table. Archives that are there are not fetched again.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections import Counter
from typing import Iterator

from experiments.config import CONFIGS, command
from experiments.corpus.clean import CleanConfig, Document, Duplicates, cleaned
from experiments.corpus.sources import SourceConfig, archives, files, text
from experiments.files import whole
from rldtf_jax.config import ConfigError

PRESETS = os.path.join(CONFIGS, "corpus")
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of."""

    directory: str = "runs/corpus"
    seed: int = 0  # of the order, of what is held out and of what a limit leaves
    held_out: float = 0.05  # of the documents
    part: int = 8000  # characters of a part at most: documents are cut between paragraphs
    clean: CleanConfig = CleanConfig()
    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.directory.strip():
            raise ConfigError(f"directory = {self.directory!r}: expected a directory's name")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out = {self.held_out!r}: expected a number in (0, 1)")
        if self.part < 100:
            raise ConfigError(f"part = {self.part!r}: expected at least 100 characters")
        if not self.sources:
            raise ConfigError("sources = {}: expected at least one")


def draw(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


BORDERS = ("\n\n", "\n", r"(?<=\.) ", " ")  # the coarsest that does


def parts(text: str, most: int, borders: tuple[str, ...] = BORDERS) -> Iterator[str]:
    """A text in pieces of at most `most` characters, cut between paragraphs, or where one is too
    long between its lines, its sentences, its words; a word that is longer stays whole.
    """
    border, *finer = borders
    mark, piece = border[border.find(")") + 1 :], ""  # what is put back between two blocks
    for block in re.split(border, text):
        if piece and len(piece) + len(mark) + len(block) > most:
            yield piece
            piece = ""
        if len(block) > most and finer:
            *whole, block = [*parts(block, most, tuple(finer))] or [""]
            yield from whole
        piece = f"{piece}{mark}{block}" if piece else block
    if piece:
        yield piece


def documents(name: str, config: CorpusConfig, paths: list[str]) -> Iterator[Document]:
    """A source's documents as they come; with a limit those which its draw puts first."""
    source = config.sources[name]
    raw = (file for path in paths for file in files(name, source, path))
    if source.limit is not None:
        raw = sorted(raw, key=lambda file: draw(config.seed, "limit", file.name))[: source.limit]
    for file in raw:
        yield Document(file.name, source.share, source.form != "asn1", text(source, file.data))


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(config: CorpusConfig, say=lambda text: None) -> dict:
    """Makes the corpus in config.directory; returns what corpus.json holds."""
    for package in ("datasketch", "ftfy", "py3langid", "trafilatura"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the package {package} is not installed; expected those of the extra corpus"
                " (pip install -e '.[corpus]')"
            )
    os.makedirs(config.directory, exist_ok=True)
    kept, told, duplicates = [], {}, Duplicates(config.clean)
    for name, source in config.sources.items():
        say(f"{name}: {', '.join(source.packages)}")
        paths = archives(name, source, os.path.join(config.directory, "archives"))
        counts = Counter()
        kept += cleaned(
            documents(name, config, paths),
            config.clean,
            duplicates,
            counts,
            lambda line: say(f"  {line}"),
        )
        told[name] = {
            "share": source.share,
            "registry": source.registry,
            "licence": source.licence,
            "archives": {
                os.path.basename(path): sha256(path) for path in paths if os.path.isfile(path)
            },
            "counts": dict(counts),
        }
        if not counts["kept"]:
            raise ConfigError(
                f"sources.{name} = {counts['read']} documents read: expected one at least that is"
                f" kept; left out: {dict(counts)}"
            )
    rows = sorted(
        (
            (draw(config.seed, document.name, i), document, piece)
            for document in kept
            for i, piece in enumerate(parts(document.text, config.part))
        ),
        key=lambda row: row[0],
    )
    sizes = Counter()
    for split in SPLITS:
        with whole(os.path.join(config.directory, f"{split}.jsonl")) as file:
            for _, document, piece in rows:
                held_out = draw(config.seed, "held out", document.name) < config.held_out
                if held_out == (split == "held_out"):
                    sizes[f"{split}, {document.share}"] += len(piece)
                    row = {"share": document.share, "name": document.name, "text": piece}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    made = {"config": dataclasses.asdict(config), "sources": told, "characters": dict(sizes)}
    with whole(os.path.join(config.directory, "corpus.json")) as file:
        json.dump(made, file, indent=1, ensure_ascii=False)
    return made


def table(made: dict) -> str:
    """Markdown: what each source gave, and what each step took away."""
    lines = [
        "| source | share | licence | documents read | kept | million characters kept | left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, source in made["sources"].items():
        counts = source["counts"]
        gone = {
            reason: n
            for reason, n in sorted(counts.items())
            if reason not in ("read", "kept", "characters read", "characters kept")
        }
        lines.append(
            f"| {name} | {source['share']} | {source['licence']} | {counts['read']} |"
            f" {counts['kept']} | {counts['characters kept'] / 1e6:.2f} of"
            f" {counts['characters read'] / 1e6:.2f} |"
            f" {', '.join(f'{n} {reason}' for reason, n in gone.items()) or 'none'} |"
        )
    sizes = ", ".join(f"{name} {n / 1e6:.2f}" for name, n in sorted(made["characters"].items()))
    return "\n".join([*lines, "", f"Million characters: {sizes}."])


def main(config: CorpusConfig) -> None:
    print(table(build(config, lambda text: print(text, file=sys.stderr, flush=True))))


if __name__ == "__main__":
    command(main, CorpusConfig, PRESETS, "telecom")

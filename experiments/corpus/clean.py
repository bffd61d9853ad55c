"""What is done to text before anyone learns from it, each step by its name and counted.

The filters of quality are those of Gopher (Rae et al., arXiv:2112.11446, appendix A.1.1) as far as
they fit protocol text; near duplicates are found by MinHash over word 5-grams (Broder 1997; Lee et
al., arXiv:2107.06499).
"""

import dataclasses
import hashlib
import re
from collections import Counter
from typing import Callable, Iterable, Iterator, NamedTuple

from rldtf_jax.config import ConfigError

WORD = re.compile(r"\w+")
LETTERS = re.compile(r"[^\W\d_]")


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """The limits of the filters."""

    least_words: int = 50  # of a document
    most_replaced: float = 0.001  # share of characters that no repair could read
    least_word: float = 3.0  # characters of a word on average
    most_word: float = 10.0
    least_alphabetic: float = 0.7  # share of the words with a letter in them
    most_repeated: float = 0.3  # share of the lines that stand there before
    language: str | None = "en"  # of prose; None: any
    near: float = 0.8  # Jaccard similarity of word 5-grams, from which one of two documents goes
    permutations: int = 128  # of a MinHash

    def __post_init__(self):
        for name in ("most_replaced", "least_alphabetic", "most_repeated", "near"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: expected a number in [0, 1]")
        for name in ("least_words", "permutations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: expected an integer >= 1")


class Document(NamedTuple):
    name: str  # source/archive/path
    share: str  # domain or general
    prose: bool  # a language, and not code
    text: str


def repaired(text: str) -> str:
    """Mended encodings, one kind of line end, no control characters, at most one empty line in a
    row.
    """
    import ftfy

    text = ftfy.fix_text(text, uncurl_quotes=False)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def fault(document: Document, config: CleanConfig) -> str | None:
    """The first filter that a document does not pass, or None."""
    text, words = document.text, WORD.findall(document.text)
    if len(words) < config.least_words:
        return "too short"
    if text.count("\ufffd") > config.most_replaced * len(text):
        return "unreadable"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if document.prose and 1 - len(set(lines)) / len(lines) > config.most_repeated:
        return "repeats itself"
    if not config.least_word <= sum(map(len, words)) / len(words) <= config.most_word:
        return "odd words"
    if sum(map(bool, map(LETTERS.search, words))) < config.least_alphabetic * len(words):
        return "figures"
    if document.prose and config.language and language(text) != config.language:
        return "another language"
    return None


def language(text: str) -> str:
    """ISO 639-1 code of what a text is most likely written in, by its first 4,000 characters."""
    import py3langid

    return py3langid.classify(text[:4000])[0]


class Duplicates:
    """Says of each document in turn whether it has been there before, alike or nearly."""

    def __init__(self, config: CleanConfig):
        from datasketch import MinHashLSH

        self.config = config
        self.seen: set[bytes] = set()
        self.near = MinHashLSH(config.near, config.permutations)

    def kind(self, document: Document) -> str | None:
        """ "exact duplicate", "near duplicate", or None for a document that is new; it is
        remembered then.
        """
        from datasketch import MinHash

        words = WORD.findall(document.text.casefold())
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        if digest in self.seen:
            return "exact duplicate"
        self.seen.add(digest)
        sketch = MinHash(self.config.permutations)
        sketch.update_batch(
            {" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))}
        )
        if self.near.query(sketch):
            return "near duplicate"
        self.near.insert(document.name, sketch)
        return None


def cleaned(
    documents: Iterable[Document],
    config: CleanConfig,
    duplicates: Duplicates,
    counts: Counter,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Document]:
    """The documents that are kept, repaired.

    duplicates: of all sources so far. counts: filled with how many documents were read, kept and
    left out by each filter, and the characters read and kept.
    """
    for document in documents:
        counts["read"] += 1
        counts["characters read"] += len(document.text)
        document = document._replace(text=repaired(document.text))
        reason = fault(document, config) or duplicates.kind(document)
        counts[reason or "kept"] += 1
        if reason is None:
            counts["characters kept"] += len(document.text)
            yield document
        if counts["read"] % 500 == 0:
            say(f"{counts['read']} documents read, {counts['kept']} kept")

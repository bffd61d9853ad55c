"""Which tools a prompt shows: of those for which it has the figures, the ones whose cards a request
is most like.

Texts are vectors of their words and pairs of words, weighted by how rare these are among cards and
training requests (TF-IDF), and similar by the cosine.
"""

import re
from collections import Counter
from typing import Collection, Sequence

import numpy as np

from experiments.network.tools import TOOLS, Tool

SHOWN = 5  # tools of a prompt


def terms(text: str) -> list[str]:
    """Words in the singular, and pairs of neighbours."""
    words = [re.sub("s$", "", word) for word in re.findall("[a-z]+", text.lower())]
    return [*words, *map(" ".join, zip(words, words[1:]))]


class Embedding:
    """Texts as vectors of length 1; terms that no known text has count for nothing."""

    def __init__(self, known: Sequence[str]):
        documents = [set(terms(text)) for text in known]
        count = Counter(term for document in documents for term in document)
        self.place = {term: i for i, term in enumerate(sorted(count))}
        self.rarity = np.log(len(known) / np.array([count[term] for term in self.place]))

    def __call__(self, text: str) -> np.ndarray:
        vector = np.zeros(len(self.place))
        for term, times in Counter(terms(text)).items():
            if term in self.place:
                vector[self.place[term]] = 1 + np.log(times)
        vector *= self.rarity
        return vector / max(np.linalg.norm(vector), 1e-12)


class Ranking:
    """The toolbox as a request sees it."""

    def __init__(self, requests: Sequence[str]):
        """requests: of training."""
        cards = [tool.card() for tool in TOOLS]
        self.embedding = Embedding([*cards, *requests])
        self.cards = np.stack([self.embedding(card) for card in cards])

    def __call__(self, request: str, figures: Collection[str], number: int = SHOWN) -> list[Tool]:
        """At most so many tools that can be called with these figures, or after one that can: the
        one most like the request first.
        """
        order = np.argsort(-(self.cards @ self.embedding(request)), kind="stable")
        known = {*figures, *(("units",) if "wanted" in figures else ())}  # what a slicing leaves
        return [TOOLS[i] for i in order if known.issuperset(TOOLS[i].arguments)][:number]

"""A memory of recent results, bounded by the bytes of their arrays."""

from __future__ import annotations

from collections import OrderedDict
from functools import wraps


def remember(max_bytes: int):
    """Decorate a function of hashable arguments that returns a tuple of numpy arrays: least
    recently used ones go first.
    """

    def decorate(function):
        kept, held = OrderedDict(), [0]

        def size(arrays):
            return sum(a.nbytes for a in arrays)

        @wraps(function)
        def remembered(*arguments):
            if arguments in kept:
                kept.move_to_end(arguments)
                return kept[arguments]
            result = kept[arguments] = function(*arguments)
            held[0] += size(result)
            while held[0] > max_bytes and len(kept) > 1:
                held[0] -= size(kept.popitem(last=False)[1])
            return result

        return remembered

    return decorate

"""How often the stages that TensorFlow compiles were traced in this process. Imports nothing, so
that a stage may count without the others.
"""

counts: dict[tuple, int] = {}  # by signature


def traced(*signature) -> None:
    """Called while a stage is being traced."""
    counts[signature] = counts.get(signature, 0) + 1

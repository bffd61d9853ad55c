"""What sionna_stages.py and neural_stages.py share: the checks that they register, and random numbers."""

import numpy as np

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def complex_gaussian(rng, *shape):
    """Of unit variance, complex64."""
    return ((rng.standard_normal((*shape, 2)) @ [1, 1j]) / np.sqrt(2)).astype(np.complex64)

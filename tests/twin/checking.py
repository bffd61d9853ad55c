"""What the tests of the stages share: a registry of checks (sionna_stages.py, neural_stages.py),
random numbers, and QAM as TS 38.211 5.1 writes it.
"""

import numpy as np

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def complex_gaussian(rng, *shape):
    """Of unit variance, complex64."""
    return ((rng.standard_normal((*shape, 2)) @ [1, 1j]) / np.sqrt(2)).astype(np.complex64)


def labels(m):
    """Bits of all labels [2^m, m], most significant first."""
    return np.array([[(label >> k) & 1 for k in range(m - 1, -1, -1)] for label in range(2**m)])


def qam_point(b):
    """The modulation symbol of bits b(0), b(1), ..., as 5.1.3 to 5.1.6 write it."""
    s = [1 - 2 * int(bit) for bit in b]
    if len(b) == 2:
        return (s[0] + 1j * s[1]) / 2**0.5
    if len(b) == 4:
        return (s[0] * (2 - s[2]) + 1j * s[1] * (2 - s[3])) / 10**0.5
    if len(b) == 6:
        return (s[0] * (4 - s[2] * (2 - s[4])) + 1j * s[1] * (4 - s[3] * (2 - s[5]))) / 42**0.5
    real, imaginary = (s[k] * (8 - s[2 + k] * (4 - s[4 + k] * (2 - s[6 + k]))) for k in (0, 1))
    return (real + 1j * imaginary) / 170**0.5


def exact_llr(y, noise, m):
    """log P(b = 0 | y) / P(b = 1 | y) [symbols, m] of y [symbols] by a sum over all points, in
    float64.
    """
    bits = labels(m)
    points = np.array([qam_point(b) for b in bits])
    metric = -(np.abs(y[:, None] - points) ** 2) / noise[:, None]
    return np.stack(
        [
            np.logaddexp.reduce(metric[:, bits[:, k] == 0], axis=1)
            - np.logaddexp.reduce(metric[:, bits[:, k] == 1], axis=1)
            for k in range(m)
        ],
        axis=1,
    )

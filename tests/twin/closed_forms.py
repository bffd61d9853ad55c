"""Bit error rates of uncoded Gray QAM (Proakis, Digital Communications; Simon and Alouini for the diversity sums)."""

import math

import numpy as np


def _coefficients(bits_per_symbol):
    """BER of Gray square QAM in AWGN is sum_i c_i Q(d_i sqrt(Es/N0)) (Cho and Yoon, 2002)."""
    per_dimension = bits_per_symbol // 2
    levels = 2**per_dimension
    scale = math.sqrt(3 / (levels**2 - 1))
    terms = {}
    for k in range(1, per_dimension + 1):
        for i in range(int((1 - 2.0**-k) * levels)):
            weight = (-1) ** math.floor(i * 2 ** (k - 1) / levels) * (2 ** (k - 1) - math.floor(i * 2 ** (k - 1) / levels + 0.5))
            terms[i] = terms.get(i, 0) + 2 * weight / (levels * per_dimension)
    return [(c, (2 * i + 1) * scale) for i, c in terms.items()]


def q(x):
    return 0.5 * math.erfc(x / math.sqrt(2))


def awgn(bits_per_symbol, es_n0_db):
    """BER of Gray QAM with 2, 4, 6, 8 bits per symbol in AWGN."""
    snr = 10 ** (es_n0_db / 10)
    return sum(c * q(d * math.sqrt(snr)) for c, d in _coefficients(bits_per_symbol))


def rayleigh_mrc(bits_per_symbol, es_n0_db, branches):
    """The same averaged over Rayleigh fading with maximum-ratio combining of independent branches of this Es/N0 each."""
    snr = 10 ** (es_n0_db / 10)

    def average_q(d):
        mu = math.sqrt(d * d * snr / 2 / (1 + d * d * snr / 2))
        return ((1 - mu) / 2) ** branches * sum(math.comb(branches - 1 + k, k) * ((1 + mu) / 2) ** k for k in range(branches))

    return sum(c * average_q(d) for c, d in _coefficients(bits_per_symbol))


def check_against_textbook():
    for m, eb_n0, ber in ((2, 6, 2.388e-3), (2, 8, 1.909e-4), (4, 12, 1.387e-4), (6, 16, 2.172e-4)):
        assert np.isclose(awgn(m, eb_n0 + 10 * math.log10(m)), ber, rtol=2e-3)
    assert np.isclose(rayleigh_mrc(2, 20 + 10 * math.log10(2), 1), 2.481e-3, rtol=2e-3)
    assert np.isclose(rayleigh_mrc(2, 20 + 10 * math.log10(2), 2), 1.844e-5, rtol=2e-3)

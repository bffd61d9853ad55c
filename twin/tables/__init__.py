"""Tables that results depend on, made by experiments.truth.bler_tables."""

from pathlib import Path

BLER = Path(__file__).with_name("bler.csv")  # block error rates of the twin's LDPC code in Gaussian noise
POLAR = Path(__file__).with_name("polar.csv")  # of its polar blocks, by information bits
INFORMATION = Path(__file__).with_name("information.npz")  # of mismatched demappers, by bits per symbol

"""Tables that results depend on, made by experiments.bler_tables."""

from pathlib import Path

BLER = Path(__file__).with_name("bler.csv")  # block error rates of the twin's LDPC code in Gaussian noise
INFORMATION = Path(__file__).with_name("information.npz")  # of mismatched demappers, by bits per symbol

"""Tables that results depend on, made by experiments.truth.bler_tables."""

from pathlib import Path

# block error rates of the twin's LDPC code in Gaussian noise
BLER = Path(__file__).with_name("bler.csv")
POLAR = Path(__file__).with_name("polar.csv")  # of its polar blocks, by information bits
# of mismatched demappers, by bits per symbol
INFORMATION = Path(__file__).with_name("information.npz")

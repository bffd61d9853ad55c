"""RLDTF (III.C), after rejection sampling.

    python -m experiments.rldtf preset=quickstart rldtf.alpha=2
"""

from experiments import stages
from experiments.config import ExperimentConfig, command


def main(config: ExperimentConfig) -> None:
    with stages.opened(config) as run:
        stages.train_rldtf(run)


if __name__ == "__main__":
    command(main)

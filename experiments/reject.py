"""Rejection sampling (III.B), after phase 1.

    python -m experiments.reject preset=quickstart
"""

from experiments import stages
from experiments.config import ExperimentConfig, command


def main(config: ExperimentConfig) -> None:
    with stages.opened(config) as run:
        stages.reject(run)


if __name__ == "__main__":
    command(main)

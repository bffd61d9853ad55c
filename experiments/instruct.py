"""Phase 1: instruction tuning on random valid workflows.

    python -m experiments.instruct preset=quickstart
"""

from experiments import stages
from experiments.config import ExperimentConfig, command


def main(config: ExperimentConfig) -> None:
    with stages.opened(config) as run:
        stages.instruct(run)


if __name__ == "__main__":
    command(main)

"""The main job: all stages, the evaluation on held-out tasks and the report. Stopped at any moment,
it goes on from there.

    python -m experiments.stages.pipeline preset=quickstart [key=value ...]
    python -m experiments.stages.pipeline preset=network [key=value ...]      the network world's
"""

import sys
import time

from experiments.config import ExperimentConfig, command
from experiments.stages import report
from experiments.stages.evaluate import evaluate, table
from experiments.stages.rldtf import train_rldtf
from experiments.stages.run import opened


def main(config: ExperimentConfig) -> None:
    start = time.monotonic()
    with opened(config) as run:
        train_rldtf(run)
        result = evaluate(run)
        path = report.write(run, result)
        print(table(result))
        twin = run.twin.stats
        print(
            f"{(time.monotonic() - start) / 60:.1f} minutes; the twin simulated {twin.simulated} of"
            f" {twin.requests} evaluations in {twin.seconds / 60:.1f} minutes, the rest were the"
            " same or in its cache"
        )
        print(f"report: {path}")


if __name__ == "__main__":
    if "preset=network" in sys.argv[1:]:
        from experiments.network import config, train

        command(train.main, config.NetworkConfig, config.DIRECTORY, config.DEFAULT)
    else:
        command(main)

"""Arms of a sweep as Hydra jobs, for any launcher; experiments.studies.ablate with the same values
then only writes the report.

    python -m experiments.stages.reject
    python -m experiments.studies.multirun -m +alpha=0,1,2 +threshold=0.05,0.2 +first_seed=0,1,2 [hydra/launcher=...] [+key=value ...]
    python -m experiments.studies.ablate alpha=0,1,2 threshold=0.05,0.2 seeds=3

Keys are those of experiments.studies.ablate; jobs need a file system in common.
"""  # noqa: E501

import os
import sys

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments import config as configs
from experiments.studies import ablate, grid
from rldtf_jax.config import ConfigError


@hydra.main(config_path=None, version_base="1.3")
def job(_: DictConfig) -> None:
    configs.guarded(train)


def train() -> None:
    arguments = [override.lstrip("+") for override in HydraConfig.get().overrides.task]
    GlobalHydra.instance().clear()  # the config is composed by a second Hydra
    axes, others = grid.split_axes(arguments)
    config = configs.load(others, grid.SweepConfig)
    # else every job would train it
    if not os.path.isdir(os.path.join(config.run_dir, "reject", "model")):
        raise ConfigError(
            f"run_dir = {config.run_dir!r}: expected a run whose rejection sampling is done"
            " (experiments.stages.reject)"
        )
    ablate.train(config, grid.cells(config, axes), own_cache=True)


def check(arguments: list[str]) -> None:
    """Before Hydra, whose own message has several lines."""
    for argument in arguments:
        if not argument.startswith(("-", "+", "hydra")):
            raise ConfigError(f"{argument!r}: expected +key=value or an option of Hydra's")


if __name__ == "__main__":
    configs.guarded(lambda: check(sys.argv[1:]))
    job()

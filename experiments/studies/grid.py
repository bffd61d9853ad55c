"""A sweep's configuration and the arms of its grid."""

import dataclasses
import itertools
import json
import os
import re
from typing import NamedTuple, Sequence

from experiments.config import ExperimentConfig, MeshConfig
from rldtf_jax import arms as training
from rldtf_jax.config import ConfigError, RLDTFConfig, build

# nothing of these is felt where alpha = 0
ONLY_WEIGHTS = ("threshold", "lam", "num_perturb", "delete_prob")


@dataclasses.dataclass(frozen=True)
class SweepConfig(ExperimentConfig):
    """A run and what a sweep adds to it."""

    sweep: str = "ablate"
    # of RLDTF: order of the tasks, sampling, perturbations; the stages before are shared
    seeds: int = 1
    first_seed: int = 0
    width: int | None = None  # arms side by side in one program; None: planned from its memory
    # parts that train one after the other, or one on each machine; None: by memory
    rounds: int | None = None
    # address of a Ray cluster ("local" starts one here) whose tasks are the rounds
    ray: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "width", "rounds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected an integer >= 1")
        if self.translator == "model":
            raise ConfigError(
                f"translator = {self.translator!r}: expected 'grammar' or 'tolerant' in a sweep,"
                " whose arms share the judge"
            )
        if self.rollouts.apart:
            raise ConfigError("rollouts.apart = True: expected False in a sweep")
        if self.mesh != MeshConfig():
            raise ConfigError("mesh: expected no axes in a sweep; arms are split over all devices")

    @property
    def experiment(self) -> ExperimentConfig:
        """What the stages before RLDTF are: those of a run that is part of no sweep."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(ExperimentConfig)
        }
        return ExperimentConfig(**fields | {"sweep": None})

    @property
    def directory(self) -> str:
        return os.path.join(self.run_dir, "sweeps", self.sweep)


class Cell(NamedTuple):
    """An arm by name: the values on the axes, and the seed."""

    name: str
    values: dict[str, float | str]
    config: RLDTFConfig
    seed: int


def split_axes(arguments: Sequence[str]) -> tuple[dict[str, tuple], list[str]]:
    """({hyper-parameter: values}, the other arguments) of `alpha=0,1 policy.lr=1e-4,2e-4
    rldtf.clip=0.1,0.2 run_dir=x`.
    """
    axes, others = {}, []
    for argument in arguments:
        key, _, values = argument.partition("=")
        name = key.removeprefix("rldtf.")
        if name not in training.TRACED or (key != name and "," not in values):
            if "," in values and key.startswith("rldtf."):
                raise ConfigError(
                    f"{key} = {values}: this cannot be swept in one program; expected one of "
                    f"{', '.join(training.TRACED)} (others: experiments.studies.multirun)"
                )
            others.append(argument)
            continue
        try:
            read = str if name in training.WORDS else _number
            axes[name] = tuple(dict.fromkeys(map(read, values.split(","))))
        except ValueError:
            raise ConfigError(f"{key} = {values}: expected numbers separated by commas") from None
    return axes, others


def as_text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _number(text: str) -> int | float:
    value = json.loads(text)
    if type(value) not in (int, float):
        raise ValueError(text)
    return value


def cells(config: SweepConfig, axes: dict[str, tuple]) -> list[Cell]:
    """The distinct arms of the grid: with alpha = 0 the other parameters of the weights change
    nothing.
    """
    if not axes:
        raise ConfigError("expected at least one axis, such as alpha=0,1,2")
    found = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values))
        if chosen.get("alpha", config.rldtf.alpha) == 0:
            chosen = {name: value for name, value in chosen.items() if name not in ONLY_WEIGHTS}
        rldtf_config = changed(config.rldtf, chosen)
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            name = f"{','.join(f'{key}={as_text(value)}' for key, value in chosen.items())},seed={seed}".removeprefix(  # noqa: E501
                ","
            )
            if name in found and found[name].values != chosen:
                raise ConfigError(
                    f"{name}: two values of an axis read the same; expected at most six digits"
                )
            found[name] = Cell(name, chosen, rldtf_config, seed)
    return list(found.values())


def named(config: SweepConfig, arms: dict[str, dict]) -> list[Cell]:
    """Arms by a name of their own, each the hyper-parameters in which it differs from the config;
    one seed, the first.
    """
    for name in arms:
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise ConfigError(
                f"arms: {name!r}: expected a name of letters, digits, dots, dashes and underscores"
            )
    return [
        Cell(name, values, changed(config.rldtf, values), config.first_seed)
        for name, values in arms.items()
    ]


def changed(config: RLDTFConfig, values: dict[str, float | str]) -> RLDTFConfig:
    """The config with other values of some keys, dotted where they are in a group."""
    tree = dataclasses.asdict(config)
    for name, value in values.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node[key]
        node[last] = value
    return build(RLDTFConfig, tree, "rldtf")


def arm_path(config: SweepConfig, name: str, *parts: str) -> str:
    return os.path.join(config.directory, "arms", name, *parts)


def is_done(config: SweepConfig, name: str) -> bool:
    return os.path.exists(arm_path(config, name, "evaluation.json"))

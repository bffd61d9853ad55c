"""What a training on the network world is told: configs/network/*.yaml under key=value."""

import dataclasses
import os
from typing import Literal

from experiments.config import CONFIGS
from rldtf_jax.config import ConfigError, RLDTFConfig, SFTConfig

DIRECTORY, DEFAULT = os.path.join(CONFIGS, "network"), "network"
SPLITS = {  # of held-out requests: sizes, None: those of training; in words that training has not
    "test": (None, False),
    "new-words": (None, True),
    "larger": ((12, 21), False),
}


@dataclasses.dataclass(frozen=True)
class RequestsConfig:
    """Numbers of requests, and the sizes of their problems."""

    train: int = 3000
    rejection: int = 1000  # of these, that rejection sampling answers
    test: int = 200  # of each held-out split
    smallest: int = 3
    largest: int = 8  # 12 to 20 in the split `larger`

    def __post_init__(self):
        for name in ("train", "rejection", "test", "smallest"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected an integer >= 1")
        if self.largest < self.smallest:
            raise ConfigError(f"largest = {self.largest}: expected at least {self.smallest}")

    @property
    def sizes(self) -> tuple[int, int]:
        return self.smallest, self.largest + 1


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    run_dir: str = "runs/network"
    seed: int = 0
    tensorboard: bool = False
    # what a prompt shows beside the request. ranked: the cards most like it, and only those may be
    # called; unranked: the names of all tools; memory: ranked, and the nearest earlier call;
    # figures: nothing but all figures, and the policy answers in figures
    view: Literal["ranked", "unranked", "memory", "figures"] = "ranked"
    vocabulary: int = 1024  # tokens
    careful: float = 0.5  # share of phase 1's calls with the right tool and units
    samples: int = 4  # responses to a request in rejection sampling
    enough: float = 0.99  # of the best level, for which rejection sampling keeps a response
    requests: RequestsConfig = RequestsConfig()
    instruct: SFTConfig = SFTConfig()
    reject: SFTConfig = SFTConfig()
    rldtf: RLDTFConfig = RLDTFConfig()

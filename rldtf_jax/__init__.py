"""Reinforcement learning from digital twin feedback, in JAX.

The names of `__all__` are stable: a change of what they take or give is announced in CHANGELOG.md.
They are imported when they are first asked for, so that Eq. 2 serves programs without JAX.
"""

import importlib

_HOMES = {
    "library": ("train",),
    "config": ("ConfigError", "OptimConfig", "RLDTFConfig", "SampleConfig"),
    "judge": ("Environment", "Imagined", "Verdict"),
    "reward": ("RewardConfig", "fulfilled", "margins"),
    "token_weight": (
        "Field",
        "perturb",
        "perturb_by_policy",
        "perturb_in_kind",
        "sensitivity",
        "token_weights",
    ),
    "loss": ("expected_loss", "policy_loss", "regulariser", "total_loss", "value_loss"),
    "sample": ("pad_prompts", "row_keys", "stream"),
    "qwen2": ("Qwen2", "Qwen2Config"),
    "hf": ("load", "save"),
    "tokenizer": ("Tokenizer", "load_directory"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)  # and reward.reward, sample.sample, which are called like their modules


def __getattr__(name: str):
    if name in __all__:
        return getattr(importlib.import_module(f"rldtf_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rldtf_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])

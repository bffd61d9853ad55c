"""Configs: what belongs there is taken, anything else is refused in one line that names it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rldtf_jax.config import ConfigError, OptimConfig, RLDTFConfig, SampleConfig, SFTConfig, build
from rldtf_jax.reward import RewardConfig

WRONG = [  # (group, the whole message)
    ({"alpah": 1.0}, r"rldtf\.alpah: no such key; expected one of steps, .*, alpha, .*"),
    (
        {"policy": {"momentum": 0.9}},
        r"rldtf\.policy\.momentum: no such key; expected one of lr, .*",
    ),
    ({"alpha": -1.0}, r"rldtf\.alpha = -1\.0: expected a number >= 0"),
    ({"alpha": float("nan")}, r"rldtf\.alpha = nan: expected a finite number"),
    ({"alpha": "1"}, r"rldtf\.alpha = '1': expected a number"),
    ({"alpha": True}, r"rldtf\.alpha = True: expected a number"),
    ({"alpha": None}, r"rldtf\.alpha = None: expected a number"),
    ({"alpha": [0.5, 1.0]}, r"rldtf\.alpha = \[0\.5, 1\.0\]: expected a number"),
    ({"steps": 2.5}, r"rldtf\.steps = 2\.5: expected an integer"),
    ({"steps": 0}, r"rldtf\.steps = 0: expected an integer >= 1"),
    ({"lam": 0}, r"rldtf\.lam = 0\.0: expected a number > 0"),
    ({"threshold": -0.1}, r"rldtf\.threshold = -0\.1: expected a number >= 0"),
    ({"delete_prob": 1.5}, r"rldtf\.delete_prob = 1\.5: expected a number in \[0, 1\]"),
    ({"logit_chunk": 0}, r"rldtf\.logit_chunk = 0: expected an integer >= 1, or null"),
    ({"lora_rank": 0}, r"rldtf\.lora_rank = 0: expected an integer >= 1, or null"),
    ({"lora_rank": 1.5}, r"rldtf\.lora_rank = 1\.5: expected an integer"),
    ({"adaptive_kl": 0}, r"rldtf\.adaptive_kl = 0\.0: expected a number > 0, or null"),
    ({"dual_clip": 1}, r"rldtf\.dual_clip = 1\.0: expected a number > 1, or null"),
    ({"value_clip": -1}, r"rldtf\.value_clip = -1\.0: expected a number > 0, or null"),
    ({"critic_warmup": -1}, r"rldtf\.critic_warmup = -1: expected a number >= 0"),
    ({"epochs": 0}, r"rldtf\.epochs = 0: expected an integer >= 1"),
    ({"aggregation": "mean"}, r"rldtf\.aggregation = 'mean': expected one of 'sum', 'token-mean'"),
    (
        {"advantage": "grpo"},
        (
            r"rldtf\.advantage = 'grpo': expected one of 'paper', 'gae', 'group', 'leave-one-out',"
            r" 'tree', 'counterfactual', 'prefix', 'expected'"
        ),
    ),
    ({"whiten": 1}, r"rldtf\.whiten = 1: expected a bool"),
    ({"weights": "mean"}, r"rldtf\.weights = 'mean': expected one of 'raw', 'mean-one'"),
    ({"kl_target": None}, r"rldtf\.kl_target = None: expected one of 'reference', 'old'"),
    ({"policy": 3}, r"rldtf\.policy = 3: expected a group of keys \(lr, .*\)"),
    ({"alpha": float("inf")}, r"rldtf\.alpha = inf: expected a finite number"),
    ({"policy": {"lr": float("nan")}}, r"rldtf\.policy\.lr = nan: expected a finite number"),
    (
        {"reward": {"weight_violated": [float("nan"), 1, 1]}},
        r"rldtf\.reward\.weight_violated\[0\] = nan: expected a finite number",
    ),
    ({"policy": {"lr": -1e-3}}, r"rldtf\.policy\.lr = -0\.001: expected a number >= 0"),
    ({"policy": {"b1": 1}}, r"rldtf\.policy\.b1 = 1\.0: expected a number in \[0, 1\)"),
    ({"policy": {"grad_clip": 0}}, r"rldtf\.policy\.grad_clip = 0\.0: expected a number > 0"),
    (
        {"reward": {"margin_cap": [1, 2]}},
        r"rldtf\.reward\.margin_cap = \[1, 2\]: expected a list of 3 values",
    ),
    (
        {"reward": {"margin_cap": [1, "2", 3]}},
        r"rldtf\.reward\.margin_cap\[1\] = '2': expected a number",
    ),
    (
        {"reward": {"weight_violated": [1, -2, 3]}},
        r"rldtf\.reward\.weight_violated = .*: expected three .*",
    ),
    (
        {"sample": {"temperature": 0}},
        r"rldtf\.sample\.temperature = 0\.0: expected a number > 0 in training",
    ),
    (
        {"sample": {"top_k": 5}},
        r"rldtf\.sample\.top_k, sample\.top_p = \(5, 1\.0\): expected 0 and 1 in training.*",
    ),
    (
        {"advantage": "expected", "learn_from": 2},
        (
            r"rldtf\.learn_from = 2: expected null for advantage = 'expected', which has no A_t to"
            r" choose by"
        ),
    ),
    (
        {"advantage": "counterfactual"},
        r"rldtf\.perturb = 'paper': expected 'policy' for advantage = 'counterfactual'",
    ),
    (
        {"advantage": "prefix", "perturb": "policy"},
        r"rldtf\.perturb = 'policy': expected 'completion' for advantage = 'prefix'",
    ),
    ({"prefixes": 0}, r"rldtf\.prefixes = 0: expected an integer >= 1"),
    (
        {"advantage": "group"},
        r"rldtf\.samples_per_prompt = 1: expected an integer >= 2 for advantage = 'group'",
    ),
    (
        {"prompts_per_step": 6, "minibatches": 2, "microbatches": 2},
        (
            r"rldtf\.minibatches x microbatches = 4: expected a divisor of the 6 rollouts that a"
            r" step learns from"
        ),
    ),
]


@pytest.mark.parametrize(
    "group, message", WRONG, ids=lambda x: next(iter(x)) if isinstance(x, dict) else ""
)
def test_what_does_not_belong_is_refused_in_one_line_with_field_value_and_expectation(
    group, message
):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        build(RLDTFConfig, group, "rldtf")


@pytest.mark.parametrize("cls", [RLDTFConfig, SFTConfig, OptimConfig, SampleConfig, RewardConfig])
def test_a_config_is_its_own_dict(cls):
    assert build(cls, {}) == cls() == build(cls, dataclasses.asdict(cls()))


@pytest.mark.parametrize(
    "number", [f.name for f in dataclasses.fields(RLDTFConfig) if f.type in ("int", int)]
)
def test_no_count_may_be_negative(number):
    with pytest.raises(ConfigError, match=f"^{number} = -1: expected "):
        RLDTFConfig(**{number: -1})


@given(
    st.floats(0, 10),
    st.integers(1, 9),
    st.sampled_from([None, 1, 16]),
    st.tuples(*[st.integers(0, 3)] * 3),
)
def test_what_belongs_arrives_as_its_declared_type(alpha, steps, chunk, cap):
    config = build(
        RLDTFConfig,
        {
            "alpha": int(alpha),
            "k1": alpha,
            "steps": steps,
            "logit_chunk": chunk,
            "reward": {"margin_cap": list(cap)},
        },
    )
    assert (config.alpha, config.k1, config.steps, config.logit_chunk) == (
        int(alpha),
        alpha,
        steps,
        chunk,
    )
    assert type(config.alpha) is float and config.reward.margin_cap == cap
    assert all(type(x) is float for x in config.reward.margin_cap)


def test_the_first_field_that_is_wrong_has_its_whole_path_even_at_the_root():
    with pytest.raises(ConfigError, match=r"^optim\.lr = 'fast': expected a number$"):
        build(SFTConfig, {"optim": {"lr": "fast"}})


def test_configs_are_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RLDTFConfig().alpha = 2.0
    assert hash(RLDTFConfig()) == hash(RLDTFConfig())

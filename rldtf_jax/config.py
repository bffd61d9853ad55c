"""What can be configured in the training of a model: frozen dataclasses, one tree, units in the
comments.

`build` makes such a tree from a plain dict (a resolved Hydra config) and refuses what does not
belong there.
"""

import dataclasses
import json
import math
import types
import typing
from typing import Any, Literal

from rldtf_jax.reward import RewardConfig


class ConfigError(ValueError):
    """A wrong key or value; the message names the field, the value and what was expected."""


def _expect(condition: bool, field: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{field} = {value!r}: expected {expected}")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How responses are sampled."""

    max_new_tokens: int = 56
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps the whole vocabulary
    top_p: float = 1.0

    def __post_init__(self):
        _expect(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "an integer >= 1")
        _expect(self.temperature >= 0, "temperature", self.temperature, "a number >= 0")
        _expect(self.top_k >= 0, "top_k", self.top_k, "an integer >= 0")
        _expect(0 < self.top_p <= 1, "top_p", self.top_p, "a number in (0, 1]")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay to `final_lr_ratio` of the peak."""

    lr: float = 1e-3
    warmup_steps: int = 10
    final_lr_ratio: float = 0.1
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    grad_clip: float = 1.0  # global norm

    def __post_init__(self):
        for name in ("lr", "warmup_steps", "final_lr_ratio", "weight_decay"):
            _expect(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")
        for name in ("b1", "b2"):
            _expect(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
        _expect(self.grad_clip > 0, "grad_clip", self.grad_clip, "a number > 0")


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Next-token training on (prompt, response) pairs."""

    steps: int = 100
    batch_size: int = 64
    save_every: int = 10  # steps
    optim: OptimConfig = OptimConfig()

    def __post_init__(self):
        for name in ("steps", "batch_size", "save_every"):
            _expect(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")


@dataclasses.dataclass(frozen=True)
class PricesConfig:
    """What a response's costs take off its reward, each a unit of R for a unit of the cost."""

    calls: float = 0.0  # of a question to the world
    tokens: float = 0.0  # of a hundred tokens of the policy's
    prb: float = 0.0  # of the whole grant, in resource blocks
    energy: float = 0.0  # of ten thousand operations of both ends for a carried bit
    tools: float = 0.0  # of the network world's tools, in units of the cheapest

    def __post_init__(self):
        for name, value in vars(self).items():
            _expect(value >= 0, name, value, "a number >= 0")


@dataclasses.dataclass(frozen=True)
class RLDTFConfig:
    """Eq. 2-9 and the loop around them."""

    steps: int = 100
    prompts_per_step: int = 64
    samples_per_prompt: int = 1
    checkpoint_every: int = 25  # steps; the reference takes the policy's weights then
    save_every: int = 1  # steps; the state is saved, so that a killed run loses at most these
    keep: int = 2  # saved states kept on disk
    # Eq. 3-5
    alpha: float = 1.0
    threshold: float = 0.05  # of S_t; w_t = 1 at or below it
    lam: float = 1e-6
    num_perturb: int = 2  # N
    # Eq. 3; a value by another of its field; what the policy might have written, in place of a
    # token or in place of all that follows
    perturb: Literal["paper", "in-kind", "policy", "completion"] = "paper"
    # perturb = completion: places in a response from which the policy writes on, num_perturb times
    prefixes: int = 8
    # of a prompt's samples, those that go on from others where the policy was least sure
    branches: int = 0
    # messages of a response at most; before the last one the policy may ask the world
    turns: int = 1
    # perturb = policy: no question about tokens that are another one with at most this probability
    ask_above: float = 0.0
    delete_prob: float = 0.5  # share of the paper's perturbations that remove the token
    weight_by: Literal[
        "sensitivity", "service", "grammar", "permuted", "inverted", "entropy", "reshaped"
    ] = "sensitivity"
    weights: Literal["raw", "mean-one"] = "raw"
    # Eq. 6-9
    clip: float = 0.2
    dual_clip: float | None = None  # > 1: bounds the objective below by dual_clip * A where A < 0
    value_clip: float | None = None  # PPO's clipped value loss
    beta_ent: float = 0.01
    beta_kl: float = 0.05
    k1: float = 0.5
    k2: float = 1.0
    kl_target: Literal["reference", "old"] = "reference"
    # nats a token; beta_kl grows while the KL is above it and shrinks below
    adaptive_kl: float | None = None
    advantage: Literal[
        "paper", "gae", "group", "leave-one-out", "tree", "counterfactual", "prefix", "expected"
    ] = "paper"
    # with `expected`, whose loss needs no verdict: the twin is asked about so many rollouts of a
    # step; None: all
    judge_first: int | None = None
    with_critic: bool = True  # False: no V is computed or learnt, for advantages that ask for none
    gae_gamma: float = 1.0
    gae_lam: float = 0.95
    whiten: bool = False
    aggregation: Literal["sum", "token-mean"] = "sum"
    # optimisation
    learn_from: int | None = None  # of a step's rollouts, those with the largest |A|; None: all
    # updates that the policy which samples is behind the one that learns; pi_old of Eq. 6 is its
    staleness: int = 0
    epochs: int = 1  # passes over these
    minibatches: int = 1  # updates a pass
    microbatches: int = 1  # gradient accumulation within an update
    # response positions whose float32 logits exist at once; None for all
    logit_chunk: int | None = None
    policy: OptimConfig = OptimConfig(lr=3e-4)
    critic: OptimConfig = OptimConfig(lr=1e-3)
    critic_warmup: int = 0  # steps in which only the critic learns
    # of the only deltas then trained, in policy and critic; None trains all weights
    lora_rank: int | None = None
    sample: SampleConfig = SampleConfig()
    reward: RewardConfig = RewardConfig()
    prices: PricesConfig = PricesConfig()  # several objectives: R less what each cost takes off it

    def __post_init__(self):
        for name in (
            "steps",
            "prompts_per_step",
            "samples_per_prompt",
            "checkpoint_every",
            "save_every",
            "keep",
            "num_perturb",
            "prefixes",
            "turns",
            "epochs",
            "minibatches",
            "microbatches",
        ):
            _expect(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        for name in ("learn_from", "logit_chunk", "lora_rank", "judge_first"):
            value = getattr(self, name)
            _expect(value is None or value >= 1, name, value, "an integer >= 1, or null")
        for name in (
            "alpha",
            "threshold",
            "clip",
            "beta_ent",
            "beta_kl",
            "k1",
            "k2",
            "critic_warmup",
            "staleness",
            "branches",
        ):
            _expect(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")
        _expect(
            self.dual_clip is None or self.dual_clip > 1,
            "dual_clip",
            self.dual_clip,
            "a number > 1, or null",
        )
        for name in ("value_clip", "adaptive_kl"):
            value = getattr(self, name)
            _expect(value is None or value > 0, name, value, "a number > 0, or null")
        _expect(self.lam > 0, "lam", self.lam, "a number > 0")
        for name in ("ask_above", "delete_prob", "gae_gamma", "gae_lam"):
            _expect(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")
        _expect(
            self.sample.temperature > 0,
            "sample.temperature",
            self.sample.temperature,
            "a number > 0 in training",
        )
        _expect(
            self.sample.top_k == 0 and self.sample.top_p == 1,
            "sample.top_k, sample.top_p",
            (self.sample.top_k, self.sample.top_p),
            "0 and 1 in training, or the ratio is not pi / pi_old",
        )
        if self.advantage in ("group", "leave-one-out"):
            _expect(
                self.samples_per_prompt >= 2,
                "samples_per_prompt",
                self.samples_per_prompt,
                f"an integer >= 2 for advantage = {self.advantage!r}",
            )
        if self.advantage in ("paper", "gae"):
            _expect(
                self.with_critic,
                "with_critic",
                self.with_critic,
                f"True for advantage = {self.advantage!r}",
            )
        if self.advantage == "expected":
            _expect(
                self.learn_from is None,
                "learn_from",
                self.learn_from,
                "null for advantage = 'expected', which has no A_t to choose by",
            )
        _expect(
            self.advantage != "expected" or self.prices == PricesConfig(),
            "prices",
            self.prices,
            "0 for advantage = 'expected', whose worth knows no costs",
        )
        _expect(
            self.judge_first is None
            or self.advantage == "expected"
            and not self.with_critic
            and not self.perturbs,
            "judge_first",
            self.judge_first,
            "null where advantage, critic or token weights need the twin's verdicts",
        )
        families = self.samples_per_prompt - self.branches
        _expect(
            not self.branches or families > 0 and self.samples_per_prompt % families == 0,
            "branches",
            self.branches,
            "so few that samples_per_prompt is a multiple of the other samples",
        )
        _expect(
            (self.advantage == "tree") == (self.branches > 0),
            "advantage",
            self.advantage,
            "'tree' with branches, and with them alone",
        )
        _expect(
            not self.branches or self.turns == 1 and not self.completes and not self.with_critic,
            "branches",
            self.branches,
            "0 with turns > 1, a critic or perturb = 'completion'",
        )
        _expect(
            self.turns == 1
            or self.advantage in ("paper", "group", "leave-one-out")
            and not self.completes,
            "turns",
            self.turns,
            "1 unless advantage is 'paper', 'group' or 'leave-one-out' and perturb is not"
            " 'completion'",
        )
        asked = {"counterfactual": "policy", "prefix": "completion"}.get(self.advantage)
        _expect(
            asked in (None, self.perturb),
            "perturb",
            self.perturb,
            f"{asked!r} for advantage = {self.advantage!r}",
        )
        sampled, parts = (
            self.prompts_per_step * self.samples_per_prompt,
            self.minibatches * self.microbatches,
        )
        rows = self.learn_from or sampled
        _expect(rows <= sampled, "learn_from", rows, f"at most the {sampled} rollouts of a step")
        _expect(
            rows % parts == 0,
            "minibatches x microbatches",
            parts,
            f"a divisor of the {rows} rollouts that a step learns from",
        )

    @property
    def perturbs(self) -> bool:
        """Whether a step asks the twin for perturbed responses."""
        return (
            self.advantage in ("counterfactual", "prefix")
            or self.alpha > 0
            and self.weight_by not in ("grammar", "entropy")
        )

    @property
    def asks_the_policy(self) -> bool:
        """Whether a step draws alternatives from the policy (`update.alternatives`)."""
        return self.weight_by == "entropy" or self.perturbs and self.perturb == "policy"

    @property
    def completes(self) -> bool:
        """Whether the policy writes on from places in a step's responses."""
        return self.perturbs and self.perturb == "completion"

    @property
    def reads_fields(self) -> bool:
        return (
            self.alpha > 0
            and self.weight_by == "grammar"
            or self.perturbs
            and self.perturb == "in-kind"
        )


def build(cls: type, mapping: dict, path: str = "") -> Any:
    """A `cls` from nested plain dicts; `path` is where the dict stands in the whole config.

    Raises:
      ConfigError: an unknown key, a wrong type or a refused value, in one line that names it.
    """
    prefix = f"{path}." if path else ""
    if not isinstance(mapping, dict):
        raise ConfigError(
            f"{path} = {mapping!r}: expected a group of keys ({', '.join(_names(cls))})"
        )
    unknown = sorted(set(mapping) - set(_names(cls)))
    if unknown:
        raise ConfigError(
            f"{prefix}{unknown[0]}: no such key; expected one of {', '.join(_names(cls))}"
        )
    hints = typing.get_type_hints(cls)
    values = {key: _coerce(hints[key], value, prefix + key) for key, value in mapping.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and dataclasses as one dict of dotted names, in the types of JSON."""
    if dataclasses.is_dataclass(tree):
        tree = dataclasses.asdict(tree)
    if isinstance(tree, dict):
        return {
            name: leaf
            for key, value in tree.items()
            for name, leaf in flat(value, f"{prefix}.{key}").items()
        }
    return {prefix.removeprefix("."): json.loads(json.dumps(tree))}


def differences(made: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """`name is x there and y here` for every entry of two flat dicts that differs."""
    return [
        f"{name} is {made.get(name)!r} there and {asked.get(name)!r} here"
        for name in sorted(made.keys() | asked.keys())
        if made.get(name) != asked.get(name)
    ]


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type that the field declares; ints pass for floats, lists for tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, path)
    if origin is Literal:
        _expect(value in args, path, value, "one of " + ", ".join(map(repr, args)))
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _coerce(next(arg for arg in args if arg is not type(None)), value, path)
    if origin is tuple:
        _expect(isinstance(value, (list, tuple)), path, value, f"a list of {len(args)} values")
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        _expect(len(value) == len(inner), path, value, f"a list of {len(inner)} values")
        return tuple(
            _coerce(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(inner, value))
        )
    if origin is dict:
        _expect(isinstance(value, dict), path, value, "a group of keys")
        return {
            _coerce(args[0], key, path): _coerce(args[1], item, f"{path}.{key}")
            for key, item in value.items()
        }
    if hint is float:
        _expect(
            isinstance(value, (int, float)) and not isinstance(value, bool), path, value, "a number"
        )
        _expect(math.isfinite(value), path, value, "a finite number")
        return float(value)
    if hint is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), path, value, "an integer")
        return value
    _expect(isinstance(value, hint), path, value, f"a {hint.__name__}")
    return value

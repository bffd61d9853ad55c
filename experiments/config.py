"""The whole configuration of a run, and how it is read: Hydra YAML in configs/, overrides on the
command line.
"""

import argparse
import dataclasses
import importlib.util
import inspect
import math
import os
import re
import sys
import types
import typing
from typing import Literal

from experiments.files import whole
from rldtf_jax.config import ConfigError, RLDTFConfig, SFTConfig, build, flat

# the source tree, or where the packages are installed
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# the second in a wheel
CONFIGS = next(
    filter(
        os.path.isdir,
        (os.path.join(PROJECT, "configs"), os.path.join(PROJECT, "experiments", "configs")),
    )
)


def _at_least(low: float, config, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= low:
            raise ConfigError(f"{name} = {getattr(config, name)!r}: expected a number >= {low:g}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which policy: a preset from nothing, or a local HF directory (config.json + safetensors +
    tokenizer.json).
    """

    preset: str = "tiny"
    # relative to where the command runs or, not found there, to the project
    hf_dir: str | None = None
    # of the computation; weights, their gradients and Adam's moments are float32
    dtype: Literal["float32", "bfloat16"] = "float32"
    # over whole sequences: ours, or jax.nn.dot_product_attention's; cudnn on a GPU in bfloat16
    attention: Literal["dot", "xla", "cudnn"] = "dot"
    # recompute each layer in the backward pass: a third more time for much less memory
    remat: bool = False
    # layers in one turn of the loop over them: faster, longer to compile; null: what the preset
    # says, 1 for an HF directory
    unroll: int | None = None
    vocab_size: int = 1024  # of the domain BPE that a model from nothing gets

    def __post_init__(self):
        _at_least(300, self, "vocab_size")
        if self.unroll is not None:
            _at_least(1, self, "unroll")
        if self.hf_dir is not None and self.directory is None:
            raise ConfigError(f"hf_dir = {self.hf_dir!r}: no such directory")

    @property
    def options(self) -> dict:
        """Fields of Qwen2Config that every stage's model has, be it the one in memory or the one
        that a finished stage has left.
        """
        from rldtf_jax.qwen2 import Qwen2Config  # which imports JAX

        usual = 1 if self.hf_dir else Qwen2Config.preset(self.preset).unroll
        return {
            "unroll": self.unroll or usual,
            "dtype": self.dtype,
            "param_dtype": "float32",
            "remat": self.remat,
            "attention": self.attention,
        }

    @property
    def directory(self) -> str | None:
        """Where hf_dir is."""
        places = (self.hf_dir, os.path.join(PROJECT, self.hf_dir)) if self.hf_dir else ()
        return next(filter(os.path.isdir, places), None)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of `mesh.make_mesh`: batch; batch, parameters and optimiser state
    (ZeRO-3); heads and MLP.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        _at_least(1, self, "data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class RolloutsConfig:
    """Who samples and asks the twin in RLDTF; the same numbers either way."""

    # a process of its own; rldtf.staleness >= 1 lets it work while this one learns
    apart: bool = False
    devices: str | None = None  # of that process, as CUDA_VISIBLE_DEVICES; null: those of this one

    def __post_init__(self):
        if self.devices is not None and not self.apart:
            raise ConfigError(f"devices = {self.devices!r}: expected apart = True beside it")


@dataclasses.dataclass(frozen=True)
class TwinConfig:
    workers: int = 2
    seed: int = 0
    cache: str | None = None  # SQLite file; None: twin.sqlite in the run's directory
    method: Literal["link", "esm"] = "esm"  # see twin.Settings: error rates down to 1e-6 want esm
    max_blocks: int = 128  # slots of a simulation at most

    def __post_init__(self):
        _at_least(0, self, "seed")
        _at_least(1, self, "workers", "max_blocks")


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """Which world, and how many tasks of each split; or one's own, all tasks of a directory with at
    least train.jsonl, validation.jsonl and test.jsonl.
    """

    # of configs/world; those under experiments/world/data are drawn already
    family: str = "link-native"
    train: int = 800
    validation: int = 80
    test: int = 150
    elsewhere: int = 80  # of each of new-links, new-platforms and new-words
    practice: int = 0  # more to train on after phase 1, drawn anew, feasible or not
    # RLDTF learns on those alone that a search or a sampled response has shown to be feasible
    only_feasible: bool = True
    directory: str | None = None
    prompt: Literal["short", "long"] = "short"  # long: for pretrained models

    def __post_init__(self):
        _at_least(1, self, "train", "validation", "test")
        _at_least(0, self, "elsewhere", "practice")
        if self.directory is not None and not os.path.isdir(self.directory):
            raise ConfigError(f"directory = {self.directory!r}: no such directory")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Next tokens of a corpus before phase 1; without one there is no pre-training."""

    corpus: str | None = None  # a directory that python -m experiments.corpus has filled
    general: float = 0.25  # share of the tokens that is not of the domain
    width: int = 512  # tokens of a row
    held_out: int = 32  # rows of each share whose perplexity is told before and after
    sft: SFTConfig = SFTConfig()

    def __post_init__(self):
        _at_least(2, self, "width")
        _at_least(1, self, "held_out")
        if not 0 <= self.general < 1:
            raise ConfigError(f"general = {self.general!r}: expected a number in [0, 1)")
        if self.corpus is not None and not os.path.exists(
            os.path.join(self.corpus, "held_out.jsonl")
        ):
            raise ConfigError(
                f"corpus = {self.corpus!r}: expected a directory that python -m experiments.corpus"
                " has filled"
            )


@dataclasses.dataclass(frozen=True)
class InstructConfig:
    """Instruction tuning on workflows whose grants carry what is asked."""

    # engineer: one that asks no twin, see experiments.world.engineer
    teacher: Literal["random", "engineer"] = "random"
    pairs: int = 8000
    per_task: int = 1  # of the pairs, different draws of the engineer's
    # questions of radio and general instructions beside the pairs, see experiments.world.questions
    questions: int = 0
    general: float = 0.25  # share of the questions
    asked: int = 200  # of those that are held out, before and after
    # each response begins with the think line; the later stages go on with what is taught here
    think: bool = True
    # before: a link and targets in, the think line out; so a model from nothing learns to copy
    reading: SFTConfig | None = None
    # None: model.hf_dir is a model after phase 1, as it comes with the project
    sft: SFTConfig | None = SFTConfig()

    def __post_init__(self):
        _at_least(1, self, "pairs", "per_task", "asked")
        _at_least(0, self, "questions")
        if not 0 <= self.general <= 1:
            raise ConfigError(f"general = {self.general!r}: expected a number in [0, 1]")


@dataclasses.dataclass(frozen=True)
class RejectConfig:
    """Rejection sampling: rounds until the success rate on the validation tasks stops growing."""

    max_rounds: int = 3
    tasks_per_round: int | None = None  # drawn for each round; None: all
    samples_per_task: int = 4
    keep_per_task: int = 2
    epochs: int = 4  # over the kept responses at most, whatever sft.steps says
    min_gain: float = 0.01  # of the success rate, or the rounds end
    sft: SFTConfig = SFTConfig()

    def __post_init__(self):
        _at_least(1, self, "max_rounds", "samples_per_task", "keep_per_task", "epochs")
        _at_least(0, self, "min_gain")
        if self.tasks_per_round is not None:
            _at_least(1, self, "tasks_per_round")


@dataclasses.dataclass(frozen=True)
class EmulatorConfig:
    """The model of the twin that rldtf.advantage = expected asks: fitted to the verdicts on
    rejection sampling's samples, and on its own favourites.
    """

    rounds: int = 4  # of asking the twin about those
    starts: int = 1000  # samples that each round's search begins with

    def __post_init__(self):
        _at_least(0, self, "rounds")
        _at_least(1, self, "starts")


@dataclasses.dataclass(frozen=True)
class SurrogateConfig:
    """The emulator's networks in the twin's place in RLDTF, see `world.surrogate`."""

    # the probability, by every network, beyond which it answers; None: the twin is always asked
    sure: float | None = None
    audit: float = 0.05  # share of its answers that the twin is asked about

    def __post_init__(self):
        if self.sure is not None and not 0.5 < self.sure <= 1:
            raise ConfigError(f"sure = {self.sure!r}: expected a number in (0.5, 1], or null")
        if not 0 <= self.audit <= 1:
            raise ConfigError(f"audit = {self.audit!r}: expected a number in [0, 1]")


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """Questions before the answer, with rldtf.turns > 1, see `stages.ask`."""

    slots: int = 16  # of the quick run of the twin that says what a question's workflow does
    # of the first messages that are taught are questions; 0: nothing but answers
    share: float = 0.67
    # after rejection sampling; None: nothing is taught, RLDTF goes on from there
    sft: SFTConfig | None = None

    def __post_init__(self):
        _at_least(1, self, "slots")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share = {self.share!r}: expected a number in [0, 1]")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    batch_size: int = 200
    temperature: float = 1.0  # of the one-shot response to a held-out task; 0 is greedy
    # responses to each validation task whenever RLDTF's reference is refreshed; 0: none
    tries: int = 0

    def __post_init__(self):
        _at_least(1, self, "batch_size")
        _at_least(0, self, "temperature", "tries")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    run_dir: str = "runs/quickstart"
    seed: int = 0
    tensorboard: bool = True
    wandb: bool = False  # Weights & Biases too; needs the package wandb
    mlflow: bool = False  # MLflow too, where MLFLOW_TRACKING_URI says; needs the package mlflow
    translator: Literal["grammar", "tolerant", "model"] = "grammar"  # c = f(a), III.B
    # processes that train one model together, see experiments.hosts; each has devices of its own
    hosts: int = 1
    sweep: str | None = None  # id of the sweep that the run belongs to; its checkpoints keep it
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()  # where a run goes on may differ from where it began
    rollouts: RolloutsConfig = RolloutsConfig()
    twin: TwinConfig = TwinConfig()
    tasks: TasksConfig = TasksConfig()
    pretrain: PretrainConfig = PretrainConfig()
    instruct: InstructConfig = InstructConfig()
    reject: RejectConfig = RejectConfig()
    # fits the critic to the rewards of the rejection rounds before the first step
    critic: SFTConfig = SFTConfig()
    emulator: EmulatorConfig = EmulatorConfig()
    surrogate: SurrogateConfig = SurrogateConfig()
    ask: AskConfig = AskConfig()
    rldtf: RLDTFConfig = RLDTFConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def loop_options(self) -> dict:
        """What every stage's training loop is told, see `rldtf_jax.loop.run`."""
        from experiments.stages.machine import machine

        boards = tuple(name for name in ("tensorboard", "wandb", "mlflow") if getattr(self, name))
        return {
            "boards": boards,
            "sweep": self.sweep,
            "about": flat(self) | machine() if boards else None,
        }

    def __post_init__(self):
        _at_least(0, self, "seed")
        _at_least(1, self, "hosts")
        if self.hosts > 1 and math.prod(dataclasses.asdict(self.mesh).values()) % self.hosts:
            raise ConfigError(
                f"hosts = {self.hosts}: expected a divisor of the devices of mesh ="
                f" {dataclasses.asdict(self.mesh)}"
            )
        if self.hosts > 1 and self.rollouts.apart:
            raise ConfigError(
                f"rollouts.apart = True: expected hosts = 1, not {self.hosts}: one process samples"
            )
        if not self.run_dir.strip():
            raise ConfigError(f"run_dir = {self.run_dir!r}: expected a directory's name")
        for name in ("wandb", "mlflow"):
            if getattr(self, name) and importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"{name} = True: expected the package {name} to be installed (pip install"
                    f" {name})"
                )
        if self.instruct.sft is None and self.model.hf_dir is None:
            raise ConfigError(
                "instruct.sft = None: expected steps to train for, or a model.hf_dir that has had"
                " them"
            )
        if self.reject.keep_per_task > self.reject.samples_per_task:
            raise ConfigError(
                f"reject.keep_per_task = {self.reject.keep_per_task}: expected at most "
                f"reject.samples_per_task = {self.reject.samples_per_task}"
            )


def presets(directory: str = CONFIGS) -> list[str]:
    """The names that `preset=` takes."""
    return sorted(name[:-5] for name in os.listdir(directory) if name.endswith(".yaml"))


def load(
    arguments: list[str],
    cls: type = ExperimentConfig,
    directory: str = CONFIGS,
    default: str = "quickstart",
):
    """The `cls` of `preset=NAME` (NAME.yaml in `directory`) under the other `key=value` overrides,
    of which the last of a key counts.

    The value of a key that holds free text, a path say, is taken as it stands; all others are read
    as Hydra reads them.

    Raises:
      ConfigError: one line that says what is wrong and where.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = presets(directory)
    preset = ([default] + [a.partition("=")[2] for a in arguments if a.startswith("preset=")])[-1]
    overrides = [a for a in arguments if not a.startswith("preset=")]
    if preset not in known:
        raise ConfigError(
            f"preset = {preset!r}: expected one of {', '.join(known)} "
            f"({os.path.relpath(directory, PROJECT)}/)"
        )
    bad = next((a for a in overrides if "=" not in a), None)
    if bad is not None:
        raise ConfigError(f"{bad!r}: expected key=value")
    texts = {
        key.lstrip("+"): value
        for key, _, value in (o.partition("=") for o in overrides)
        if _is_text(cls, key.lstrip("+")) and value != "null" and not _is_quoted(value)
    }
    others = [o for o in overrides if o.partition("=")[0].lstrip("+") not in texts]
    try:
        with initialize_config_dir(directory, version_base="1.3"):
            tree = compose(
                preset,
                [
                    o if o.split("=")[0] in ("model", "twin") else f"++{o.lstrip('+')}"
                    for o in others
                ],
            )
        plain = OmegaConf.to_container(tree, resolve=True)
        for key, value in texts.items():
            *groups, name = key.split(".")
            group = plain
            for one in groups:
                group = group.setdefault(one, {}) if isinstance(group, dict) else group
            if isinstance(group, dict):  # else `build` says that a group was expected
                group[name] = value
        return build(cls, plain)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from None


def _is_text(cls: type, key: str) -> bool:
    """Whether the key of a config holds any text (a string that is no choice of a few)."""
    for name in key.split("."):
        kind = typing.get_type_hints(cls).get(name) if dataclasses.is_dataclass(cls) else None
        kinds = (
            [one for one in typing.get_args(kind) if one is not type(None)]
            if isinstance(kind, types.UnionType)
            else [kind]
        )
        cls = kinds[0]
    return cls is str


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def save(config: ExperimentConfig, path: str) -> None:
    """The resolved config as YAML, readable by `load` and by people."""
    from omegaconf import OmegaConf

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with whole(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))


def saved(path: str) -> dict:
    """What `save` wrote, as it stands there."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(path))


def of_run(run_dir: str) -> ExperimentConfig:
    """The config that a run directory was made with.

    Raises:
      ConfigError: there is none, or it is of another version.
    """
    path = os.path.join(run_dir, "config.yaml")
    if not os.path.exists(path):
        raise ConfigError(f"{path}: no such file; expected a run directory")
    return build(ExperimentConfig, saved(path))


def usage(
    doc: str | None,
    cls: type = ExperimentConfig,
    directory: str = CONFIGS,
    default: str = "quickstart",
) -> str:
    """What --help prints: a command's docstring, the presets with the first line of each, and all
    keys with their defaults and comments.
    """
    lines = [(doc or "").strip(), "", f"preset=NAME, of (default: {default})"]
    for name in presets(directory):
        with open(os.path.join(directory, f"{name}.yaml"), encoding="utf-8") as file:
            lines.append(f"  {name:20} {file.readline().lstrip('# ').strip()}")
    lines += ["", "key=value, and what a key is where the preset says nothing else:"]
    return "\n".join([*lines, *_keys(cls())])


def _keys(defaults: typing.Any, prefix: str = "") -> typing.Iterator[str]:
    """A line for each key of a dataclass's instance; its comments are those of the source."""
    source, hints = inspect.getsource(type(defaults)), typing.get_type_hints(type(defaults))
    for field in dataclasses.fields(defaults):
        name, kind, value = (
            f"{prefix}{field.name}",
            hints[field.name],
            getattr(defaults, field.name),
        )
        group = next(
            (one for one in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(one)), None
        )
        comment = re.search(rf"^    {field.name}: .*?  # (.*)$", source, re.MULTILINE)
        notes = ([comment[1]] if comment else []) + (["or a group:"] if group else [])
        if group is None or value is None:
            choices = (
                f" ({' '.join(map(str, typing.get_args(kind)))})"
                if typing.get_origin(kind) is Literal
                else ""
            )
            shown = (
                "null"
                if value is None
                else str(value).lower()
                if isinstance(value, bool)
                else str(value)
            )
            yield f"  {name}={shown}{choices}".ljust(44) + (
                f"  {'; '.join(notes)}" if notes else ""
            )
        if group:
            yield from _keys(group() if value is None else value, f"{name}.")


def command(function, *source, loaded=None):
    """Runs `function(config)` on the command line's config, or on loaded(); `source` goes to `load`
    too. --help says what there is.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage(sys.modules[function.__module__].__doc__, *source))
        return

    def run() -> None:
        from experiments import hosts

        config = loaded() if loaded else load(sys.argv[1:], *source)
        count = getattr(config, "hosts", 1)
        if count > 1 and not hosts.is_one_of_several():
            sys.exit(hosts.launch(count, sys.orig_argv[1:]))
        if count > 1:
            hosts.join(count)
        function(config)

    guarded(run)


def of_runs(doc: str | None) -> argparse.ArgumentParser:
    """Arguments of a command that looks at finished runs: --json, to which it adds their names."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="where the figures go too")
    return parser


def guarded(function):
    """Runs function() as a command. Exit status: 2 with one line for a wrong config, a wrong file
    or a disk that takes no more, 130 after a stop that was asked for, 1 with one line where
    training diverged.
    """
    from rldtf_jax import hosts
    from rldtf_jax.checkpoint import OtherState
    from rldtf_jax.loop import Diverged, Interrupted, WorkerFailed
    from rldtf_jax.mesh import DoesNotDivide

    try:
        function()
    except (ConfigError, DoesNotDivide, OtherState, WorkerFailed) as error:
        # the same in all processes
        hosts.say(f"error: {' '.join(str(error).split())}")
        sys.exit(2)
    except OSError as error:  # a disk of this one, say
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        hosts.say(f"\n{stop}. The same command goes on from there.")
        sys.exit(130)
    except KeyboardInterrupt:
        hosts.say("\nstopped. The same command goes on from here.")
        sys.exit(130)
    except Diverged as error:
        hosts.say(f"error: {error}")
        sys.exit(1)

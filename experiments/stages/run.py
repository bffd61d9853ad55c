"""A run directory: its config, twin, tasks, tokenizer and models, and how a model responds to
tasks.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import math
import os
import random
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments import config as configs
from experiments.config import ExperimentConfig
from experiments.files import exists, whole
from experiments.hosts import ToldTwin
from experiments.stages import machine
from experiments.world import tasks as task_files
from experiments.world import worlds
from experiments.world.environment import TwinEnvironment
from experiments.world.search import sized_workflow
from experiments.world.tasks import Task
from experiments.world.translator import ModelTranslator, lessons
from rldtf_jax import hf, hosts, mesh, sft, tokenizer
from rldtf_jax.config import ConfigError, differences, flat
from rldtf_jax.hosts import say
from rldtf_jax.judge import Policy, Verdict
from rldtf_jax.qwen2 import Qwen2, Qwen2Config, param_table
from rldtf_jax.sample import sample_batches
from rldtf_jax.tokenizer import Tokenizer
from rldtf_jax.turns import converse_batches
from twin import Twin

BPE_TASKS = 1000  # that a tokenizer is trained on


@dataclasses.dataclass
class Run:
    """A run directory, opened: its config, its twins, its tasks, its tokenizer.

    twins: by what they are asked for, one of worlds.NOISE each with a noise of its own
    """

    config: ExperimentConfig
    twins: Callable[[str], Twin]
    tasks: dict[str, list[Task]]
    tokenizer: Tokenizer
    mesh: Mesh | None = None  # where models live; None: one device

    @property
    def twin(self) -> Twin:
        """The one that training asks."""
        return self.twins("train")

    def path(self, *parts: str) -> str:
        return os.path.join(self.config.run_dir, *parts)

    @functools.cached_property
    def practice(self) -> list[Task]:
        """The tasks that training draws beside those of train, which a search has found
        feasible.
        """
        return list(
            itertools.islice(
                practice(self.config, self.tasks["train"], "practice"), self.config.tasks.practice
            )
        )

    def tasks_of(self, split: str) -> list[Task]:
        """The tasks of a split; behind train's those of practice."""
        return [*self.tasks[split], *(self.practice if split == "train" else ())]

    def environment(
        self, split: str, seed: int | None = None, only: Sequence[int] | None = None
    ) -> TwinEnvironment:
        """`tasks_of` a split on its own noise; seed: of their order, default the run's; only: some
        of them.
        """
        translator = self.config.translator
        if translator == "model":
            translator = ModelTranslator(self.tokenizer, self.config.rldtf.sample.max_new_tokens)
        tasks = self.tasks_of(split)
        tasks = tasks if only is None else [tasks[i] for i in only]
        return TwinEnvironment(
            tasks,
            self.tokenizer,
            self.twins(worlds.NOISE_OF_SPLIT.get(split, "evaluate")),
            self.config.rldtf.reward,
            seed=self.config.seed if seed is None else seed,
            translator=translator,
            form=self.config.tasks.prompt,
            preview=self.twins("ask") if self.config.rldtf.turns > 1 else None,
        )


@contextlib.contextmanager
def opened(
    config: ExperimentConfig,
    may_differ: Sequence[str] = (),
    start_twin: bool = True,
    shared: bool = False,
    inside: bool = False,
) -> Iterator[Run]:
    """The run directory, opened or made, with its config, twin, tasks and tokenizer; the twin ends
    with the block.

    shared: others that are shared may have it open too (sweeps, which write to directories of their
      own); without, nobody else. inside: the process that has it open has started this one.
    may_differ: keys of the config that may not be those which the directory was made with.
    start_twin: its workers import what they need while the caller goes on; without, and where
      another process asks them, they start when they are first asked.

    Raises:
      ConfigError: the directory was made with another config, tasks or tokenizer, or another
        command is at work in it; nothing in it is touched.
    """
    path, device_mesh = os.path.join(config.run_dir, "config.yaml"), on_devices(config)
    with contextlib.ExitStack() as stack:
        if hosts.first() and not inside:
            stack.enter_context(held(config.run_dir, shared))
        if exists(path):
            same_config(path, config, may_differ)
        else:
            configs.save(config, path)
        if device_mesh:
            stack.enter_context(jax.set_mesh(device_mesh))
        twins = open_twins(config, stack)
        if start_twin and (inside or not config.rollouts.apart):
            twins("train").start()
        tasks = prepare_tasks(config, twins)
        tok = prepare_tokenizer(config, tasks["train"])
        _same_sources(os.path.join(config.run_dir, "made_from.json"), config, tasks, tok)
        if not inside:
            machine.note(os.path.join(config.run_dir, "machines.jsonl"))
        yield Run(config, twins, tasks, tok, device_mesh)


@contextlib.contextmanager
def held(run_dir: str, shared: bool) -> Iterator[None]:
    """Keeps other commands out of a run directory, or, shared, those that are not."""
    os.makedirs(run_dir, exist_ok=True)
    with open(os.path.join(run_dir, ".lock"), "a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run_dir = {run_dir!r}: expected a directory that no other command is at work in"
            ) from None
        yield


def open_twins(config: ExperimentConfig, stack: contextlib.ExitStack) -> Callable[[str], Twin]:
    """The twin for one of worlds.NOISE, opened when it is first asked for; they share the cache
    file.
    """
    cache = config.twin.cache or os.path.join(config.run_dir, "twin.sqlite")

    @functools.cache
    def twin(purpose: str) -> Twin | ToldTwin:
        seed = worlds.noise_seed(config.twin.seed, purpose)
        if not hosts.first():
            return ToldTwin(None)
        settings = dataclasses.asdict(config.twin) | {"cache": cache, "seed": seed}
        if purpose == "ask":
            settings["max_blocks"] = config.ask.slots
        own = stack.enter_context(Twin(**settings))
        return ToldTwin(own) if hosts.several() else own

    return twin


def on_devices(config: ExperimentConfig) -> Mesh | None:
    """The mesh that the config asks for, None for one device; raises ConfigError if the devices are
    not there.
    """
    sizes = dataclasses.asdict(config.mesh)
    if math.prod(sizes.values()) == 1:
        return None
    try:
        return mesh.make_mesh(**sizes)
    except ValueError as error:
        raise ConfigError(f"mesh = {sizes}: {error}") from None


def same_config(path: str, config: Any, may_differ: Sequence[str] = ()) -> None:
    """Raises ConfigError where a directory was made with another config. It may have been moved
    since, and a run may go on with other devices.
    """
    made = flat(configs.saved(path))
    # a group that was left out has no keys
    nothing = tuple(f"{name}." for name, value in made.items() if value is None)
    # younger keys
    made = {
        name: value for name, value in flat(type(config)()).items() if not name.startswith(nothing)
    } | made
    free = ("mesh.", "rollouts.", *(f"{name} " for name in ("run_dir", "hosts", *may_differ)))
    if different := [line for line in differences(made, flat(config)) if not line.startswith(free)]:
        raise ConfigError(
            f"{path}: made with another config, {different[0]}; choose another run_dir or remove"
            " that one"
        )


def _same_sources(
    path: str, config: ExperimentConfig, tasks: dict[str, list[Task]], tok: Tokenizer
) -> None:
    """What a directory holds is by the number of its task and in the tokens of its tokenizer:
    raises ConfigError where those are others than when it was made.
    """
    texts = {
        f"tasks/{split}": "\n".join(json.dumps(task_files.to_dict(task)) for task in some)
        for split, some in tasks.items()
    }
    texts["tokenizer"] = tok.backend.to_str() + (tok.system or "")
    if not config.tasks.directory:
        texts[f"world {config.tasks.family}"] = repr(worlds.family(config.tasks.family))
    sources = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    if config.pretrain.corpus:
        with open(os.path.join(config.pretrain.corpus, "train.jsonl"), "rb") as corpus:
            sources["corpus"] = hashlib.file_digest(corpus, "sha256").hexdigest()
    if not exists(path):
        with whole(path) as file:
            json.dump(sources, file, indent=1)
        return
    with open(path, encoding="utf-8") as file:
        made = json.load(file)
    if different := next(
        (name for name in sorted({*made, *sources}) if made.get(name) != sources.get(name)), None
    ):
        raise ConfigError(
            f"{path}: {different} = {sources.get(different, 'nothing')[:12]}: expected"
            f" {made.get(different, 'nothing')[:12]}, of which the directory was made; bring it"
            " back, or choose another run_dir"
        )


@contextlib.contextmanager
def reading_model(config: ExperimentConfig) -> Iterator[None]:
    """What is wrong with the files of model.hf_dir, in one line."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"model.hf_dir = {config.model.hf_dir!r}: expected an HF directory that can be read:"
            f" {error}"
        ) from error


def prepare_tasks(config: ExperimentConfig, twins: Callable[[str], Twin]) -> dict[str, list[Task]]:
    """The tasks of each split: one's own, or the first ones of those that come with the project, or
    drawn into the run's directory, each with the workflow of a search.
    """
    own = config.tasks
    if own.directory:
        return task_files.load_splits(own.directory)
    wanted = {"train": own.train, "validation": own.validation, "test": own.test} | dict.fromkeys(
        task_files.ELSEWHERE if own.elsewhere else (), own.elsewhere
    )
    shipped = os.path.join(task_files.DATA, own.family)
    if os.path.isdir(shipped):
        there = task_files.load_splits(shipped)
        if short := next(
            (split for split, n in wanted.items() if len(there.get(split, ())) < n), None
        ):
            key = "elsewhere" if short in task_files.ELSEWHERE else short
            raise ConfigError(
                f"tasks.{key} = {wanted[short]}: expected at most {len(there.get(short, ()))},"
                f" which come with the world {own.family}; more: python -m experiments.world make,"
                " then tasks.directory"
            )
        return {split: there[split][:n] for split, n in wanted.items()}
    directory = os.path.join(config.run_dir, "tasks")
    if not exists(directory):
        say(f"tasks: drawing {own.family}, each task with the workflow of a search")
        drawn, _ = worlds.draw(
            worlds.family(own.family),
            wanted,
            config.seed,
            twins("search"),
            [twins(name) for name in worlds.CONFIRMATIONS],
            config.rldtf.reward,
            say=say,
        )
        if hosts.first():
            task_files.save_splits(drawn, directory)
        hosts.wait("tasks")
    return task_files.load_splits(directory)


def practice(config: ExperimentConfig, train: Sequence[Task], stage: str = "") -> Iterator[Task]:
    """Tasks without end to learn on: drawn anew from the family, of the split train, feasible or
    not; of one's own, these. What is drawn for one stage is not what is drawn for another.
    """
    if config.tasks.directory:
        return itertools.cycle(train)
    seed = f"{stage} {config.seed}".strip()
    return (
        task
        for task in worlds.candidates(worlds.family(config.tasks.family), seed)
        if task.split == "train"
    )


def prepare_tokenizer(config: ExperimentConfig, train: Sequence[Task]) -> Tokenizer:
    """The HF directory's own tokenizer, or the domain BPE trained on prompts and random
    responses.
    """
    if config.model.hf_dir:
        with reading_model(config):
            return tokenizer.load_directory(config.model.directory)
    path = os.path.join(config.run_dir, "tokenizer.json")
    if not exists(path):
        rng = random.Random(f"bpe {config.seed}")
        texts = [
            f"user\n{task.prompt(config.tasks.prompt)}\nassistant\n{task.response(sized_workflow(rng, task))}"  # noqa: E501
            for task in itertools.islice(practice(config, train), BPE_TASKS)
        ]
        if config.translator == "model":
            texts += [program for _, program in lessons(texts)]
        with whole(path) as file:
            file.write(
                tokenizer.train_bpe(texts, config.model.vocab_size).backend.to_str(pretty=True)
            )
    return tokenizer.load(path)


def fresh_model(shape: Qwen2Config, head: str, seed: int, device_mesh: Mesh | None) -> Qwen2:
    """A random model, born on its shards."""

    def make():
        return Qwen2(shape, rngs=nnx.Rngs(seed), head=head)

    if device_mesh is None:
        return make()
    params = mesh.init_sharded(lambda: nnx.split(make())[1], device_mesh, param_table(shape, head))
    return nnx.merge(nnx.split(nnx.eval_shape(make))[0], params)


def stage_model(run: Run, stage: str) -> Qwen2 | None:
    """The model that a finished stage left, or None."""
    path = run.path(stage, "model")
    return hf.load(path, mesh=run.mesh, **run.config.model.options) if exists(path) else None


def keep_model(run: Run, model: Qwen2, stage: str) -> None:
    """Leaves what `stage_model` finds, with the tokenizer, so that it is a directory for
    model.hf_dir too.
    """
    hf.save(model, run.path(stage, "model"), run.tokenizer.files(), run.tokenizer.eos_id)


def sequences(tok: Tokenizer, pairs: Sequence[tuple[str, str]]) -> sft.Sequences:
    """Of (prompt, response) texts."""
    return sft.Sequences.of(
        [
            (tok.apply_chat(prompt), tok.encode(text, special=False) + [tok.eos_id])
            for prompt, text in pairs
        ]
    )


def curriculum(run: Run, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (prompt, response) pairs and, where the policy is to translate its responses, as many
    lessons in that.
    """
    return [
        *pairs,
        *(lessons(text for _, text in pairs) if run.config.translator == "model" else ()),
    ]


class Responses(NamedTuple):
    """One response to each task, in order."""

    tasks: list[Task]
    texts: list[str]
    tokens: list[np.ndarray]  # ids, EOS included where there is one
    verdict: Verdict
    calls: np.ndarray | None = None  # int, how often each asked; None: nobody may


def respond(
    run: Run,
    model: Qwen2,
    environment: TwinEnvironment,
    indices: Sequence[int],
    *,
    salt: int,
    temperature: float,
) -> Responses:
    """Samples and judges one response to each of the environment's tasks in `indices`: the last
    message of a conversation, where the config has these.
    """
    graphdef, params = nnx.split(model)
    tasks, turns = [environment.tasks[i] for i in indices], run.config.rldtf.turns
    prompts = [environment.prompts[i] for i in indices]
    key = jax.random.fold_in(jax.random.key(run.config.seed), salt)
    options = {
        "batch_size": run.config.evaluate.batch_size,
        "width": environment.width,
        "eos_id": run.tokenizer.eos_id,
        "max_new_tokens": run.config.rldtf.sample.max_new_tokens,
        "temperature": temperature,
    }
    sampled: list[tuple[np.ndarray, bool, int]] = (
        [(*one, 0) for one in sample_batches(graphdef, params, prompts, key, **options)]
        if turns == 1
        else list(
            converse_batches(
                graphdef, params, environment.reply, tasks, prompts, key, turns=turns, **options
            )
        )
    )
    tokens = [ids for ids, *_ in sampled]
    texts = environment.texts(tokens)
    verdict = environment.judge_text(
        tasks,
        [text if ended else "" for text, (_, ended, *_) in zip(texts, sampled)],
        Policy(graphdef, params),
    )
    calls = None if turns == 1 else np.array([calls for *_, calls in sampled])
    return Responses(tasks, texts, tokens, verdict, calls)

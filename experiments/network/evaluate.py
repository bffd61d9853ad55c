"""Baselines and the stages of a training on held-out requests, which are the same for all seeds."""

import dataclasses
import random
from collections import Counter
from typing import Mapping, Sequence

import jax
from flax import nnx

from experiments.network import tools
from experiments.network.__main__ import row, verdicts
from experiments.network.config import SPLITS, NetworkConfig
from experiments.network.environment import NetworkEnvironment, View, parts
from experiments.network.memory import Memory
from experiments.network.tasks import Task, Verdict, judge, right_tools, tasks
from experiments.statistics import with_interval
from rldtf_jax.qwen2 import Qwen2
from rldtf_jax.sample import sample_batches
from rldtf_jax.tokenizer import Tokenizer

SEED = 0  # of the requests; training's begin at 1000
STAGES = ("phase 1", "+ rejection sampling", "+ RLDTF")
MEMORY = "nearest right call of the memory"


@dataclasses.dataclass(frozen=True)
class Trained:
    """models: of STAGES, as far as there are any; view, tasks: of training; calls: the engineer's
    for them.
    """

    models: Mapping[str, Qwen2]
    tokenizer: Tokenizer
    view: View
    tasks: Sequence[Task]
    calls: Sequence[str]


def respond(
    model: Qwen2,
    env: NetworkEnvironment,
    prompts: Sequence[Sequence[int]],
    seed: int,
    temperature: float,
    max_new_tokens: int,
) -> list[str]:
    """A text for each prompt; "" where no end is reached."""
    found = sample_batches(
        *nnx.split(model),
        prompts,
        jax.random.key(seed),
        batch_size=64,
        width=max(env.width, max(map(len, prompts))),
        eos_id=env.eos_id,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    return [env.text(ids) if ended else "" for ids, ended in found]


def compared(
    trained: Trained, memory: Memory, config: NetworkConfig, run: tools.Run
) -> dict[str, dict]:
    """{split: {"sizes": of the requests' problems, "arms": {arm: `row`, greedily, with "rewards" of
    each request, the coordinator's "steps" apart, and which tools were "selected"}}}.
    """
    found: dict = {}
    for split, (sizes, held_out) in SPLITS.items():
        some = tasks(SEED, config.requests.test, sizes or config.requests.sizes, held_out)
        env = NetworkEnvironment(some, trained.tokenizer, 0, trained.view, run)
        seen = verdicts(some, SEED)
        near = [memory.nearest(task.request, least=config.enough)[0] for task in some]
        seen[MEMORY] = [judge(task, one.call) for task, one in zip(some, near)]
        for name, model in trained.models.items():
            texts = respond(
                model, env, env.prompts, config.seed, 0.0, config.rldtf.sample.max_new_tokens
            )
            seen[name] = env.verdicts(some, texts)
        found[split] = {
            "sizes": [task.problem.size for task in some],
            "arms": {
                name: row(some, of)
                | {
                    "rewards": [one.reward for one in of],
                    "steps": parts(some, of),
                    "selected": selected(some, of),
                }
                for name, of in seen.items()
            },
        }
    return found


def selected(some: Sequence[Task], seen: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """{the right tool of a step: {the tool that was called there, "" for none: how often}}."""
    found: dict[str, Counter] = {}
    for task, one in zip(some, seen):
        for k, right in enumerate(right_tools(task.problem)):
            called = one.steps[k].tool.name if k < len(one.steps) else ""
            found.setdefault(right.name, Counter())[called] += 1
    return {name: dict(count) for name, count in sorted(found.items())}


def stream(trained: Trained, memory: Memory, config: NetworkConfig, run: tools.Run) -> dict:
    """Utility, calls that ran and their cost over a stream of requests, half of them of training:
    the policy without memory, and with one that knows the answer to what has been asked before.
    """
    new = tasks(SEED, config.requests.test, config.requests.sizes)
    rng = random.Random(f"stream {config.seed}")
    some = [rng.choice(trained.tasks) if rng.random() < 0.5 else task for task in new]
    env = NetworkEnvironment(some, trained.tokenizer, 0, trained.view, run)
    length = config.rldtf.sample.max_new_tokens
    texts = respond(trained.models[STAGES[-1]], env, env.prompts, config.seed, 0.0, length)
    alone = env.verdicts(some, texts)
    known = [memory.exact(task.request) for task in some]
    hits = [one is not None and one.reward >= config.enough for one in known]
    return {
        "requests": len(some),
        "exact hits": sum(hits),
        "without": {
            "reward": with_interval([one.reward for one in alone]),
            "calls": sum(len(one.steps) for one in alone),
            "cost": sum(one.cost for one in alone),
        },
        "with": {
            "reward": with_interval(
                [old.reward if hit else one.reward for old, hit, one in zip(known, hits, alone)]
            ),
            "calls": sum(len(one.steps) for hit, one in zip(hits, alone) if not hit),
            "cost": sum(one.cost for hit, one in zip(hits, alone) if not hit),
        },
    }

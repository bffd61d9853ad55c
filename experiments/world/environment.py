"""The judge that training asks: token ids -> text -> workflow -> twin -> Eq. 2, each distinct thing once."""

import dataclasses
import functools
import sys
from collections import Counter
from typing import Sequence

import numpy as np
from tqdm import tqdm

from rldtf_jax.reward import NO_SERVICE, RewardConfig, fulfilled, reward
from rldtf_jax.rldtf import Policy, Verdict
from rldtf_jax.sample import bucket, pad_prompts
from rldtf_jax.sft import batch_rows
from rldtf_jax.tokenizer import Tokenizer
from twin import Twin, Workflow, WorkflowError, check

from experiments.world.orchestration import read
from experiments.world.tasks import Task
from experiments.world.translator import ModelTranslator


class TwinBar:
    """Progress of a long call of the twin, with rate and time left; a short call shows nothing."""

    def __init__(self, at_least: int = 200):
        self._at_least, self._bar = at_least, None

    def __call__(self, done: int, total: int) -> None:
        if total < self._at_least:
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc="twin", unit="simulation", dynamic_ncols=True,
                             mininterval=0.1 if sys.stderr.isatty() else 5.0)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
            self._bar = None


class TwinEnvironment:
    """Tasks in, verdicts out; satisfies `rldtf_jax.rldtf.Environment`."""

    def __init__(self, tasks: Sequence[Task], tokenizer: Tokenizer, twin: Twin, config: RewardConfig, *, seed: int = 0,
                 translator: ModelTranslator | None = None, form: str = "short"):
        """translator: f(a) of III.B; None is the grammar. form: of the prompts, see Task.prompt."""
        self.translator = translator
        self.tasks, self.tokenizer, self.twin, self.config, self.seed = list(tasks), tokenizer, twin, config, seed
        self.eos_id = tokenizer.eos_id
        self.prompts = [tokenizer.apply_chat(task.prompt(form)) for task in self.tasks]
        self.width = bucket(max(map(len, self.prompts)))

    def rows(self, indices: Sequence[int]) -> tuple[list[Task], np.ndarray, np.ndarray]:
        """(tasks, prompts_BxP right-padded, lengths_B); P is the same for every choice of rows."""
        return [self.tasks[i] for i in indices], *pad_prompts([self.prompts[i] for i in indices], self.width)

    def batch(self, step: int, num_prompts: int):
        """The tasks of a step: epochs of a fresh permutation each, a function of (seed, step) alone."""
        return self.rows(batch_rows(self.seed, step, num_prompts, len(self.tasks)))

    def judge(self, tasks: Sequence[Task], responses: Sequence[np.ndarray], policy: Policy | None = None) -> Verdict:
        return self.judge_text(tasks, self.texts(responses), policy)

    def texts(self, responses: Sequence[np.ndarray]) -> list[str]:
        """Each response's text up to its first EOS; of thousands of perturbed ones many are equal and decoded once."""
        rows = [ids.tolist() for ids in responses]
        rows = [tuple(ids[:ids.index(self.eos_id)] if self.eos_id in ids else ids) for ids in rows]
        distinct = list(dict.fromkeys(rows))
        texts = dict(zip(distinct, self.tokenizer.backend.decode_batch(distinct, skip_special_tokens=False)))
        return [texts[ids] for ids in rows]

    def judge_text(self, tasks: Sequence[Task], texts: Sequence[str], policy: Policy | None = None) -> Verdict:
        """Rewards of M texts that `policy` wrote (the grammar does not ask it).

        What does not parse, or asks for what the scenario lacks, gets -1 and no simulation.
        """
        readings = map(read, texts) if self.translator is None else self.translator.read(texts, policy)
        workflows, failure = zip(*readings) if texts else ((), ())
        failure = [reason or refused(task.scenario, workflow) for task, workflow, reason in
                   zip(tasks, workflows, failure)]
        return self.judge_workflows(tasks, workflows, failure)

    def judge_workflows(self, tasks: Sequence[Task], workflows: Sequence[Workflow | None],
                        failure: Sequence[str | None]) -> Verdict:
        """Rewards of M workflows; those with a failure are not run."""
        runnable = [m for m, reason in enumerate(failure) if reason is None]
        before = dataclasses.replace(self.twin.stats)
        pairs = list(dict.fromkeys((tasks[m].scenario, workflows[m]) for m in runnable))
        qos = dict(zip(pairs, self.twin.evaluate(pairs, progress=TwinBar())))
        after = self.twin.stats

        reward_M = np.full(len(tasks), NO_SERVICE, np.float32)
        fulfilled_M = np.zeros(len(tasks), bool)
        if runnable:
            measured = np.array([tasks[m].measured(qos[tasks[m].scenario, workflows[m]]) for m in runnable])
            required = np.array([tasks[m].required for m in runnable])
            reward_M[runnable], fulfilled_M[runnable] = score(measured, required, self.config)
        stats = {"sequences": len(tasks), "workflows": len(pairs),
                 "distinct": after.distinct - before.distinct, "simulated": after.simulated - before.simulated,
                 "cache_hits": after.memory_hits + after.disk_hits - before.memory_hits - before.disk_hits,
                 "seconds": after.seconds - before.seconds}
        return Verdict(reward_M, fulfilled_M, list(failure), stats)

    def summary(self, tasks: Sequence[Task], verdict: Verdict) -> dict[str, float]:
        """Mean reward by service class and the share of each kind of failure."""
        by_service: dict[str, list[float]] = {}
        for task, R in zip(tasks, verdict.reward_M):
            by_service.setdefault(task.service, []).append(float(R))
        kinds = Counter(reason for reason in verdict.failure_M if reason)
        return ({f"reward/{service}": np.mean(values) for service, values in sorted(by_service.items())}
                | {"failed": sum(kinds.values()) / len(tasks)}
                | {f"failed/{kind}": count / len(tasks) for kind, count in sorted(kinds.items())})


@functools.lru_cache(maxsize=1 << 16)
def refused(scenario, workflow: Workflow) -> str | None:
    """Why the scenario cannot run the workflow, in a word, or None."""
    try:
        check(scenario, workflow)
    except WorkflowError:
        return "scenario"
    return None


def score(measured: np.ndarray, required: np.ndarray, config: RewardConfig) -> tuple[np.ndarray, np.ndarray]:
    """(R, fulfilled) of n rows of (delay_ms, throughput_mbps, error rate), in NumPy: a row's R is the same to the bit whatever is
    judged beside it."""
    return reward(measured, required, config), fulfilled(measured, required)

"""The judge that training asks: token ids -> text -> workflow -> twin -> Eq. 2, each distinct thing once."""

import dataclasses
import sys
from collections import Counter
from typing import Sequence

import numpy as np
from tqdm import tqdm

from rldtf_jax.reward import RewardConfig
from rldtf_jax.rldtf import Policy, Verdict
from rldtf_jax.sample import bucket, pad_prompts
from rldtf_jax.sft import batch_rows
from rldtf_jax.tokenizer import Tokenizer
from twin import Twin

from experiments.world.orchestration import read
from experiments.world.scoring import Reading, judge_readings
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
        readings = list(map(read, texts) if self.translator is None else self.translator.read(texts, policy))
        return self.judge_readings(tasks, readings)

    def judge_readings(self, tasks: Sequence[Task], readings: Sequence[Reading]) -> Verdict:
        """Rewards of M workflows, or words for why there is none."""
        before = dataclasses.replace(self.twin.stats)
        judgements = judge_readings(tasks, readings, self.twin, self.config, TwinBar())
        after = self.twin.stats
        workflows = {(task.scenario, workflow) for task, (workflow, _), one in zip(tasks, readings, judgements) if one.qos}
        stats = {"sequences": len(tasks), "workflows": len(workflows),
                 "distinct": after.distinct - before.distinct, "simulated": after.simulated - before.simulated,
                 "cache_hits": after.memory_hits + after.disk_hits - before.memory_hits - before.disk_hits,
                 "seconds": after.seconds - before.seconds}
        return Verdict(np.array([one.R for one in judgements], np.float32), np.array([one.fulfilled for one in judgements], bool),
                       [one.failure for one in judgements], stats)

    def summary(self, tasks: Sequence[Task], verdict: Verdict) -> dict[str, float]:
        """Mean reward by service class and the share of each kind of failure."""
        by_service: dict[str, list[float]] = {}
        for task, R in zip(tasks, verdict.reward_M):
            by_service.setdefault(task.service, []).append(float(R))
        kinds = Counter(reason for reason in verdict.failure_M if reason)
        return ({f"reward/{service}": np.mean(values) for service, values in sorted(by_service.items())}
                | {"failed": sum(kinds.values()) / len(tasks)}
                | {f"failed/{kind}": count / len(tasks) for kind, count in sorted(kinds.items())})

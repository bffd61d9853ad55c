"""The judge that training asks: token ids -> text -> workflow -> twin -> Eq. 2, each distinct thing
once.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any, Literal, Sequence

import numpy as np

from experiments.world import asking, orchestration
from experiments.world.emulator import Emulator
from experiments.world.imagine import imagine
from experiments.world.orchestration import read
from experiments.world.scoring import Reading, judge_readings
from experiments.world.search import written
from experiments.world.surrogate import Surrogate
from experiments.world.tasks import Task
from experiments.world.tolerant import PRICE, mend
from experiments.world.translator import ModelTranslator
from rldtf_jax.judge import Imagined, Policy, Verdict
from rldtf_jax.metrics import progress
from rldtf_jax.reward import NO_SERVICE, RewardConfig, margins
from rldtf_jax.sample import bucket, pad_prompts
from rldtf_jax.sft import batch_rows
from rldtf_jax.token_weight import Field
from rldtf_jax.tokenizer import Tokenizer
from twin import Scenario, Twin, Workflow
from twin.delay import operations, throughput_mbps
from twin.spec import slot_ms


class TwinBar:
    """Progress of a long call of the twin, with rate and time left; a short call shows nothing."""

    def __init__(self, at_least: int = 200):
        self._at_least = at_least
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if total < self._at_least:
            return
        if self._bar is None:
            self._bar = progress(total=total, desc="twin", unit="simulation")
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
            self._bar = None


@dataclasses.dataclass(frozen=True)
class Respelt(Sequence):
    """A response with each of `texts` between `head` and `tail`, in token ids: made when asked for,
    since most are never asked for.
    """

    tokenizer: Tokenizer
    head: np.ndarray
    texts: Sequence[str]
    tail: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        return np.concatenate(
            [self.head, self.tokenizer.encode(self.texts[i], special=False), self.tail]
        ).astype(self.head.dtype)


@functools.lru_cache(maxsize=1 << 16)
def taken(scenario: Scenario, workflow: Workflow) -> tuple[float, float]:
    """What a workflow takes of its platform: (the share of the widest grant, ten thousand
    operations of both ends for a bit that a slot carries, which energy goes with).
    """
    bits = throughput_mbps(workflow, 0.0) * slot_ms(workflow.scs_khz) * 1e3
    done = sum(operations(scenario, workflow).values())
    return workflow.num_prb / scenario.max_prb, done / max(bits, 1.0) * 1e-4


class TwinEnvironment:
    """Tasks in, verdicts out; satisfies `rldtf_jax.rldtf.Environment`."""

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        twin: Twin,
        config: RewardConfig = RewardConfig(),
        *,
        seed: int = 0,
        translator: ModelTranslator | Literal["grammar", "tolerant"] = "grammar",
        form: str = "short",
        emulator: Emulator | None = None,
        preview: Twin | None = None,
        surrogate: Surrogate | None = None,
    ):
        """translator: f(a) of III.B. form: of the prompts, see Task.prompt. emulator: what
        `imagine` asks. preview: the quick twin that answers questions, see `asking`; without one
        there are none. surrogate: answers for the twin where it is sure, in training alone.
        """
        self.emulator, self.preview, self.surrogate = emulator, preview, surrogate
        self.translator = translator
        self.tasks, self.tokenizer, self.twin, self.config, self.seed = (
            list(tasks),
            tokenizer,
            twin,
            config,
            seed,
        )
        self.eos_id = tokenizer.eos_id
        # its text alone
        self.piece = functools.cache(
            lambda token: tokenizer.backend.decode([token], skip_special_tokens=False)
        )
        self.prompts = [tokenizer.apply_chat(task.prompt(form)) for task in self.tasks]
        self.width = bucket(max(map(len, self.prompts)))

    def rows(self, indices: Sequence[int]) -> tuple[list[Task], np.ndarray, np.ndarray]:
        """(tasks, prompts_BxP right-padded, lengths_B); P is the same for every choice of rows."""
        return [self.tasks[i] for i in indices], *pad_prompts(
            [self.prompts[i] for i in indices], self.width
        )

    def batch(self, step: int, num_prompts: int):
        """The tasks of a step: epochs of a fresh permutation each, a function of (seed, step)
        alone.
        """
        return self.rows(batch_rows(self.seed, step, num_prompts, len(self.tasks)))

    def judge(
        self, tasks: Sequence[Task], responses: Sequence[np.ndarray], policy: Policy | None = None
    ) -> Verdict:
        return self.judge_text(tasks, self.texts(responses), policy)

    def texts(self, responses: Sequence[np.ndarray]) -> list[str]:
        """Each response's text up to its first EOS; of thousands of perturbed ones many are equal
        and decoded once.
        """
        rows = [ids.tolist() for ids in responses]
        rows = [tuple(ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids) for ids in rows]
        distinct = list(dict.fromkeys(rows))
        texts = dict(
            zip(distinct, self.tokenizer.backend.decode_batch(distinct, skip_special_tokens=False))
        )
        return [texts[ids] for ids in rows]

    def judge_text(
        self, tasks: Sequence[Task], texts: Sequence[str], policy: Policy | None = None
    ) -> Verdict:
        """Rewards of M texts that `policy` wrote (the grammar does not ask it).

        What does not parse, or asks for what the scenario lacks, gets -1 and no simulation;
        `tolerant` asks a price for what it mends.
        """
        if self.translator == "tolerant":
            mended = [mend(text, task.scenario) for task, text in zip(tasks, texts)]
            verdict = self.judge_readings(tasks, [one[:2] for one in mended])
            price = PRICE * np.array([one.repairs for one in mended], np.float32)
            return verdict._replace(
                reward_M=np.maximum(verdict.reward_M - price, np.float32(NO_SERVICE))
            )
        readings = list(
            map(read, texts)
            if self.translator == "grammar"
            else self.translator.read(texts, policy)
        )
        return self.judge_readings(tasks, readings)

    def judge_readings(self, tasks: Sequence[Task], readings: Sequence[Reading]) -> Verdict:
        """Rewards of M workflows, or words for why there is none."""
        before = dataclasses.replace(self.twin.stats)
        ask = functools.partial(
            judge_readings, twin=self.twin, config=self.config, progress=TwinBar()
        )
        judgements, spared = (
            (ask(tasks, readings), {})
            if self.surrogate is None
            else self.surrogate.judge(tasks, readings, ask)
        )
        after = self.twin.stats
        workflows = {
            (task.scenario, workflow)
            for task, (workflow, _), one in zip(tasks, readings, judgements)
            if one.qos
        }
        stats = {
            "sequences": len(tasks),
            "workflows": len(workflows),
            "distinct": after.distinct - before.distinct,
            "simulated": after.simulated - before.simulated,
            "cache_hits": (
                after.memory_hits + after.disk_hits - before.memory_hits - before.disk_hits
            ),
            "seconds": after.seconds - before.seconds,
            **spared,
        }
        margin_Mx3 = np.full((len(tasks), 3), np.nan)
        costs = {name: np.zeros(len(tasks), np.float32) for name in ("prb", "energy")}
        for i, one in enumerate(judgements):
            if one.failure is None:
                costs["prb"][i], costs["energy"][i] = taken(tasks[i].scenario, readings[i][0])
        if ran := [i for i, one in enumerate(judgements) if one.qos]:
            margin_Mx3[ran] = margins(
                np.array([tasks[i].measured(judgements[i].qos) for i in ran]),
                np.array([tasks[i].required for i in ran]),
                self.config,
            )
        return Verdict(
            np.array([one.R for one in judgements], np.float32),
            np.array([one.fulfilled for one in judgements], bool),
            [one.failure for one in judgements],
            stats,
            margin_Mx3,
            costs,
        )

    def reply(
        self, tasks: Sequence[Task], messages: Sequence[np.ndarray]
    ) -> list[np.ndarray | None]:
        """What a quick run of the twin says to each question, see `asking`; None to an answer, and
        to a question that it finds nothing amiss with.
        """
        questions = [asking.question(text) for text in self.texts(messages)]
        asks = [i for i, one in enumerate(questions) if one is not None]
        found = asking.results(
            [tasks[i] for i in asks], [questions[i] for i in asks], self.preview, self.config
        )
        said: list[np.ndarray | None] = [None] * len(messages)
        for i, text in ((i, text) for i, text in zip(asks, found) if text is not None):
            said[i] = np.array(self.tokenizer.next_turn(text), np.int32)
        return said

    def imagine(
        self,
        tasks: Sequence[Task],
        responses: Sequence[np.ndarray],
        num_tokens: int,
        verdict: Verdict,
    ) -> Imagined:
        """What the alternatives of each token are worth by the emulator, see `world.imagine`."""
        return imagine(
            self.emulator,
            self.tokenizer,
            tasks,
            responses,
            self.texts(responses),
            num_tokens,
            verdict,
        )

    def fields(self, tasks: Sequence[Task], responses: Sequence[np.ndarray]) -> list[list[Field]]:
        """The workflow's values in each response, with what the task's platform offers in place of
        each.
        """
        return [self._fields(task, np.asarray(ids)) for task, ids in zip(tasks, responses)]

    def _fields(self, task: Task, ids: np.ndarray) -> list[Field]:
        pieces = list(map(self.piece, ids.tolist()))
        ends = np.cumsum([len(piece) for piece in pieces])
        found = []
        for name, start, stop in orchestration.values("".join(pieces)):
            first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
            begin, end = int(ends[first]) - len(pieces[first]), int(ends[last])
            text = "".join(pieces[first : last + 1])
            before, value, after = (
                text[: start - begin],
                text[start - begin : len(text) - (end - stop)],
                text[len(text) - (end - stop) :],
            )
            texts = [
                before + other + after for other in written(task.scenario, name) if other != value
            ]
            found.append(
                Field(first, last + 1, Respelt(self.tokenizer, ids[:first], texts, ids[last + 1 :]))
            )
        return found

    def thoughts(self, ids: np.ndarray) -> int:
        """How many of a response's tokens come before the end of its think part; 0 without one."""
        pieces = list(map(self.piece, ids.tolist()))
        before, end, _ = "".join(pieces).rpartition(orchestration.END_THINK)
        return (
            int(np.searchsorted(np.cumsum(list(map(len, pieces))), len(before + end))) + 1
            if end
            else 0
        )

    def summary(
        self,
        tasks: Sequence[Task],
        responses: Sequence[np.ndarray],
        verdict: Verdict,
        logp: Sequence[np.ndarray] = (),
    ) -> dict[str, float]:
        """Mean reward by service class, the share of each kind of failure, and how well the
        language is spoken: of the responses that can be read, the share whose think line says what
        the request says ("think_copied") and the share whose grant carries the throughput that it
        is said to be for ("grant_agrees"). Of what was run: the share that misses each target
        ("missed/..."), the mean margin of the fulfilled ("waste/..."), and how many modes there
        are, the exponential of their entropy ("modes"). With the log-probability of each token its
        mean surprisal in nats in the think part and behind it ("surprisal/..."): the policy's
        entropy there.
        """
        by_service: dict[str, list[float]] = {}
        for task, R in zip(tasks, verdict.reward_M):
            by_service.setdefault(task.service, []).append(float(R))
        kinds = Counter(reason for reason in verdict.failure_M if reason)
        texts = self.texts(responses)
        thinking = [(task, text) for task, text in zip(tasks, texts) if orchestration.THINK in text]
        copied = [
            orchestration.think(task.scenario, task.throughput_mbps, task.delay_ms) in text
            for task, text in thinking
        ]
        agrees = [
            carried for text in texts if (carried := orchestration.grant_agrees(text)) is not None
        ]
        modes = Counter(
            (w.scs_khz, w.bits_per_symbol, w.num_layers, w.code_rate)
            for w, _ in map(read, texts)
            if w
        )
        share = np.array(list(modes.values())) / max(1, modes.total())
        found = {"modes": np.exp(-np.sum(share * np.log(share)))}
        for name, margin_M in zip(("delay", "throughput", "errors"), verdict.margin_Mx3.T):
            found[f"missed/{name}"] = (margin_M < 0).mean()
            if verdict.fulfilled_M.any():
                found[f"waste/{name}"] = margin_M[verdict.fulfilled_M].mean()
        found |= {
            name: np.mean(seen)
            for name, seen in (("think_copied", copied), ("grant_agrees", agrees))
            if seen
        }
        ends = [self.thoughts(np.asarray(ids)) for ids, _ in zip(responses, logp)]
        for name, parts in (
            ("think", [x[:end] for x, end in zip(logp, ends)]),
            ("answer", [x[end:] for x, end in zip(logp, ends)]),
        ):
            if sum(map(len, parts)):
                found[f"surprisal/{name}"] = -np.concatenate(parts).mean()
        return (
            found
            | {
                f"reward/{service}": np.mean(values)
                for service, values in sorted(by_service.items())
            }
            | {"failed": sum(kinds.values()) / len(tasks)}
            | {f"failed/{kind}": count / len(tasks) for kind, count in sorted(kinds.items())}
        )

"""What happens to a request, as a stream of events: tokens as they are written, the workflow, the
twin's run, the weights, the rivals.

An event is (name, payload), the payload plain JSON. `Engine.play` documents them. Needs a run
directory whose phase 1 is finished.
"""

import dataclasses
import functools
import itertools
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from experiments.stages.evaluate import METHODS, MODELS, for_eq_4
from experiments.stages.orchestrate import TARGETS, held_against, result, to_task
from experiments.stages.run import Run, reading_model, stage_model
from experiments.world import baselines, worlds
from experiments.world.environment import TwinEnvironment
from experiments.world.orchestration import QAM, read
from experiments.world.scoring import Judgement, judge_readings
from experiments.world.tasks import Task
from rldtf_jax import hf, tokenizer
from rldtf_jax.config import ConfigError
from rldtf_jax.judge import Arm, Policy, Prompts, judge
from rldtf_jax.qwen2 import Qwen2
from rldtf_jax.sample import Samples, row_keys, stream
from rldtf_jax.tokenizer import Tokenizer
from twin import Scenario, Twin, Workflow
from twin.chain.look import Look, look
from twin.delay import breakdown, harq_round_trip_ms
from twin.program import render
from twin.spec import SCENARIO_RULES
from twin.toolbox import TOOLS, is_neural

Event = tuple[str, Any]
SALT = 7  # of the sampling keys
MAX_STEP = 1000  # of a site's drift
SHOWN_SUBCARRIERS, SHOWN_SYMBOLS = 144, 1200
COUNTED_BLOCKS = 512  # of the run that counts block errors
# in nobody's words but a visitor's
SURGERY = "We start a remote surgery. The link is bad, so play safe."
NUM_REQUESTS = 7


@dataclasses.dataclass(frozen=True)
class Asked:
    """A visitor's request.

    scenario: fields of `twin.Scenario`; targets: delay_ms, throughput_mbps, ber (of transport
      blocks), or None: the model infers them
    model: one of `Engine.options()["models"]`; rivals: of its "rivals", what else answers
    """

    request: str
    scenario: dict[str, Any]
    targets: dict[str, float] | None = None
    model: str | None = None
    temperature: float = 0.0
    seed: int = 0
    weights: bool = False
    look: bool = False
    rivals: tuple[str, ...] = ()


class Engine:
    """Models, twins and rivals of a run directory, ready to answer. `close` ends its processes; the
    run stays open.
    """

    def __init__(self, run: Run, directory: str | None = None):
        """directory: a stage's or another HF directory, whose model is offered first.

        Raises:
          ConfigError: the run has no finished stage, or the directory cannot be read.
        """
        self.run = run
        self.models: dict[str, tuple[Qwen2, Tokenizer]] = {}
        for stage in MODELS:
            if (model := stage_model(run, stage)) is not None:
                self.models[stage] = model, run.tokenizer
        if directory:
            with reading_model(
                dataclasses.replace(
                    run.config, model=dataclasses.replace(run.config.model, hf_dir=directory)
                )
            ):
                self.models["model"] = (
                    hf.load(directory, **run.config.model.options),
                    tokenizer.load_directory(directory),
                )
        if not self.models:
            raise ConfigError(
                f"run_dir = {run.config.run_dir!r}: expected a finished stage (make quickstart"
                " makes one)"
            )
        self.family = worlds.family(run.config.tasks.family)
        self.counting = Twin(
            run.config.twin.workers,
            seed=worlds.noise_seed(run.config.twin.seed, "evaluate"),
            method="link",
            max_blocks=COUNTED_BLOCKS,
        )
        self.looking = ProcessPoolExecutor(1, get_context("spawn"))
        self.thread = ThreadPoolExecutor(1, "engine")  # for those who `play` from an event loop

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)
        self.counting.close()
        self.looking.shutdown(wait=False, cancel_futures=True)

    @property
    def rivals(self) -> dict[str, str]:
        """What may answer, with a title."""
        return {
            name: METHODS.get(name, "the model of --model")
            for name in (*self.models, "sturdiest", "rule", "rule_4", "oracle")
        }

    @functools.cached_property
    def methods(self) -> dict:
        """The rivals that are no models, tuned and chosen as for the run's evaluation."""
        run = self.run
        return baselines.methods(
            run.tasks["train"],
            run.tasks["validation"],
            run.twins,
            run.config.rldtf.reward,
            run.config.seed,
        )

    def options(self) -> dict[str, Any]:
        """What a page offers: models and rivals {key: title}, limits of a scenario's fields,
        modules {name: whether the family ever has it}, requests of the test split that state no
        targets, and the state to start from.
        """
        present = self.family.present
        modules = {
            f"{tool.name}.{v}": present.get(f"{tool.name}.{v}", present.get(tool.name, 1.0)) > 0
            for tool in TOOLS
            for argument in tool.arguments
            for v in argument.choices
        }
        requests = {task.service: task.request for task in self.run.tasks["test"] if task.infers}
        return {
            "models": {name: self.rivals[name] for name in reversed(self.models)},
            "rivals": self.rivals,
            "scenario": {name: list(rule[1:]) for name, rule in SCENARIO_RULES.items()},
            "modules": modules,
            "family": self.family.name,
            "requests": [*requests.values()][:NUM_REQUESTS] + [SURGERY],
            "start": dataclasses.asdict(self.drift(0, 0).scenario),
        }

    def drift(self, seed: int, step: int) -> Task:
        """The step-th task of a site that changes over time."""
        return next(itertools.islice(worlds.drift(self.family, seed), step, None))

    def play(self, asked: Asked) -> Iterator[Event]:
        """Events in this order, those in brackets where asked for:

        prompt {text}; token {text, p} each; answer {text, ended}; intent {delay_ms,
        throughput_mbps, ber} where the request names no targets; workflow {...} with blocks, delay
        and code, or failure; [look {gain_db, sent, received}]; [progress {blocks, block_errors,
        bler, bler_interval} as blocks are counted]; verdict, as `orchestrate --json`; [weights
        {unreadable, service} by token]; [rival {name, title, workflow, ...verdict} each]; done
        {seconds}.

        Raises:
          ConfigError: a field is wrong, in one line that names it.
        """
        started, run = time.perf_counter(), self.run
        name, task, inferred = self.checked(asked)
        yield "prompt", {"text": task.prompt(run.config.tasks.prompt)}
        ids, ended = [], False
        for token, p in self._written(name, task, asked):
            ids.append(token)
            ended = token == self.models[name][1].eos_id
            yield (
                "token",
                {"text": "" if ended else self.models[name][1].decode([token]), "p": round(p, 4)},
            )
        text = self.models[name][1].decode(ids[:-1]) if ended else ""
        yield "answer", {"text": text, "ended": ended}
        task, reading = held_against(task, inferred, text)
        if inferred and reading[1] != "intent":
            yield "intent", dict(zip(TARGETS, task.required))
        yield "workflow", described(task.scenario, *reading)
        (judgement,) = judge_readings(
            [task], [reading], run.twins("evaluate"), run.config.rldtf.reward
        )
        if asked.look and judgement.qos:
            yield from self._seen(task.scenario, reading[0])
        yield "verdict", result(task, text, judgement)
        if asked.weights and ended:
            yield "weights", self._weights(name, task, ids)
        for rival in asked.rivals:
            if rival != name:
                yield "rival", self._rival(rival, task, asked)
        yield "done", {"seconds": round(time.perf_counter() - started, 3)}

    def checked(self, asked: Asked) -> tuple[str, Task, bool]:
        """(model, task, whether its targets are to be inferred); raises ConfigError."""
        name = asked.model or next(reversed(self.models))
        for field, value, known in (
            ("model", name, self.models),
            *(("rivals", rival, self.rivals) for rival in asked.rivals),
        ):
            if value not in known:
                raise ConfigError(f"{field} = {value[:40]!r}: expected one of {', '.join(known)}")
        return name, *to_task(asked.request, {"scenario": asked.scenario} | (asked.targets or {}))

    def _written(self, name: str, task: Task, asked: Asked) -> Iterator[tuple[int, float]]:
        model, tok = self.models[name]
        (key,) = row_keys(jax.random.fold_in(jax.random.key(asked.seed), SALT), np.arange(1))
        for token, logp in stream(
            *nnx.split(model),
            tok.apply_chat(task.prompt(self.run.config.tasks.prompt)),
            key,
            eos_id=tok.eos_id,
            max_new_tokens=self.run.config.rldtf.sample.max_new_tokens,
            temperature=asked.temperature,
        ):
            yield token, float(np.exp(logp))

    def _seen(self, scenario: Scenario, workflow: Workflow) -> Iterator[Event]:
        """A slot to look at, and blocks as they are counted."""
        seen: Look = self.looking.submit(look, scenario, workflow, self.counting.seed).result()
        every = -(-seen.gain_db.shape[1] // SHOWN_SUBCARRIERS)
        some = np.linspace(0, len(seen.sent) - 1, min(len(seen.sent), SHOWN_SYMBOLS)).astype(int)
        yield (
            "look",
            {
                "gain_db": seen.gain_db[:, ::every].round(1).tolist(),
                "sent": _points(np.unique(seen.sent.round(4))),
                "received": _points(seen.received[some]),
            },
        )
        for qos in self.counting.watch(scenario, workflow):
            yield (
                "progress",
                {
                    "blocks": qos.num_blocks,
                    "of": COUNTED_BLOCKS,
                    "block_errors": qos.block_errors,
                    "bler": qos.bler,
                    "bler_interval": list(qos.bler_interval),
                },
            )

    def _weights(self, name: str, task: Task, ids: Sequence[int]) -> dict[str, list[float]]:
        """S of Eq. 4 by token: what is lost where Eq. 3 to the letter leaves nothing to run, and,
        of values exchanged in kind, what other service is worth.
        """
        run, (model, tok) = self.run, self.models[name]
        environment = TwinEnvironment(
            [task],
            tok,
            run.twins("evaluate"),
            run.config.rldtf.reward,
            form=run.config.tasks.prompt,
        )
        samples = Samples(np.array([ids], np.int32), np.array([len(ids)]), None, np.array([True]))
        parts = {}
        for part, perturb in (("unreadable", "paper"), ("service", "in-kind")):
            config = for_eq_4(run.config.rldtf, perturb=perturb, alpha=1.0, num_perturb=2)
            (judged,) = judge(
                [Arm(config, 0, environment)],
                [Prompts([task], None, None, None)],
                [samples],
                [None],
                0,
                Policy(*nnx.split(model)),
            )
            parts[part] = [round(float(S), 4) for S in getattr(judged.S, part)[0]]
        return parts

    def _rival(self, name: str, task: Task, asked: Asked) -> dict[str, Any]:
        """What another method does for the same targets."""
        run = self.run
        if name in self.models:
            ids, tok = (
                [token for token, _ in self._written(name, task, asked)],
                self.models[name][1],
            )
            reading = read(tok.decode(ids[:-1]) if ids[-1] == tok.eos_id else "")
        else:
            (workflow,) = self.methods[name]([task])
            reading = workflow, None if workflow else "none found"
        (judgement,) = judge_readings(
            [task], [reading], run.twins("evaluate"), run.config.rldtf.reward
        )
        return {
            "name": name,
            "title": self.rivals[name],
            **verdict(task, reading[0], reading[1], judgement),
        }


def verdict(
    task: Task, workflow: Workflow | None, failure: str | None, judgement: Judgement
) -> dict[str, Any]:
    """`orchestrate.result` of a workflow that no text stands behind."""
    found = result(task, "", judgement)
    return {
        **{
            key: found[key]
            for key in ("targets", "reward", "fulfilled", "measured", "met")
            if key in found
        },
        "workflow": workflow and dataclasses.asdict(workflow),
        "failure": judgement.failure or failure,
    }


def described(scenario: Scenario, workflow: Workflow | None, failure: str | None) -> dict[str, Any]:
    """A workflow as blocks in the order of the signal, classical or neural, with the operations'
    share of the delay by term.
    """
    if workflow is None:
        return {"workflow": None, "failure": failure}
    w = workflow
    parts = [
        ("transmit", "encode", f"{w.code.upper()} {w.code_rate:g}", False),
        ("transmit", "modulate", f"{QAM[w.bits_per_symbol]} x {w.num_layers}", False),
        *(
            [("transmit", "precode", w.precoder, w.precoder == "deeptx")]
            if w.precoder != "none"
            else []
        ),
        ("transmit", "grid", f"{w.num_prb} PRB, {w.scs_khz} kHz", False),
        ("channel", "channel", scenario.channel, False),
    ]
    parts += (
        [("receive", "receive", w.detector, True)]
        if is_neural(w.detector)
        else [("receive", "estimate", w.estimator, False), ("receive", "detect", w.detector, False)]
    )
    parts += [
        (
            "receive",
            "decode",
            f"{w.decoder_iterations} iterations" if w.code == "ldpc" else "list of 8",
            False,
        )
    ]
    delays = breakdown(scenario, w)
    if w.num_transmissions > 1:
        delays["HARQ round trip"] = harq_round_trip_ms(scenario, w)
    return {
        "workflow": dataclasses.asdict(w),
        "code": render(w),
        "failure": None,
        "blocks": [dict(zip(("side", "name", "detail", "neural"), part)) for part in parts],
        "delay_ms": {term: ms for term, ms in delays.items() if ms > 0},
    }


def _points(symbols: np.ndarray) -> list[list[float]]:
    return np.stack([symbols.real, symbols.imag], -1).clip(-4, 4).round(3).tolist()

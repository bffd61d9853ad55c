"""One request, answered by a trained model and judged by the twin.

    python -m experiments.stages.orchestrate REQUEST --scenario FILE [--run RUN] [--model DIR] [--temperature 0.7] [--json]

REQUEST is what is wanted, in words. FILE is JSON: {"scenario": {...}} as in a task file, with
delay_ms, throughput_mbps, ber and errors beside it where the targets are known; without them the
answer is held against the quality of service that the model infers. RUN is a run directory whose
newest finished stage answers (runs/quickstart), DIR any stage's model directory with RUN's
settings. Exit status 0 whether or not the targets are met.
"""  # noqa: E501

import argparse
import dataclasses
import json
import os
from typing import Any, Callable

import jax
import numpy as np
from flax import nnx

from experiments.config import ExperimentConfig, guarded, of_run
from experiments.stages.evaluate import MODELS
from experiments.stages.run import reading_model
from experiments.world import reading, worlds
from experiments.world.orchestration import read
from experiments.world.scoring import Judgement, Reading, judge_readings
from experiments.world.tasks import Task
from experiments.world.wording import read_intent
from rldtf_jax import hf, tokenizer
from rldtf_jax.config import ConfigError
from rldtf_jax.reward import margins
from rldtf_jax.sample import row_keys, stream
from twin import Twin
from twin.program import render

TARGETS = ("delay_ms", "throughput_mbps", "ber")
UNKNOWN = dict(zip(TARGETS, (1.0, 1.0, 0.1)))  # stand for targets that the model is to infer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="orchestrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("request")
    parser.add_argument("--link", "--scenario", required=True, help="JSON file")
    parser.add_argument("--run", default="runs/quickstart", help="run directory")
    parser.add_argument("--model", help="model directory; default: the run's newest")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args(argv)
    if not asked.temperature >= 0:
        raise ConfigError(f"--temperature = {asked.temperature}: expected a number >= 0")
    config = of_run(asked.run)
    task, inferred = request(asked.request, asked.link)
    show = (lambda text: None) if asked.json else (lambda text: print(text, end="", flush=True))
    text = answer(config, asked.model or newest(asked.run), task, asked.temperature, show)
    task, reading = held_against(task, inferred, text)
    with Twin(
        1,
        seed=worlds.noise_seed(config.twin.seed, "evaluate"),
        method=config.twin.method,
        max_blocks=config.twin.max_blocks,
    ) as twin:
        (judgement,) = judge_readings([task], [reading], twin, config.rldtf.reward)
    found = result(task, text, judgement)
    print(json.dumps(found) if asked.json else f"\n\n{as_text(found)}")


def request(words: str, path: str) -> tuple[Task, bool]:
    """(the task, whether its targets are to be inferred).

    Raises:
      ConfigError: FILE is no JSON object, or a field of it is wrong.
    """
    with open(path, encoding="utf-8") as file:
        try:
            row = reading.parse_line(file.read())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    try:
        return to_task(words, row)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_task(words: str, row: Any) -> tuple[Task, bool]:
    """Likewise of what FILE holds."""
    if not isinstance(row, dict):
        raise ConfigError("expected a JSON object with a scenario")
    given = [name for name in TARGETS if name in row]
    if given and len(given) < len(TARGETS):
        raise ConfigError(
            f"{', '.join(name for name in TARGETS if name not in row)}: expected all of"
            f" {', '.join(TARGETS)}, or none"
        )
    row = (
        {"service": "yours", "kind": "listed" if given else "described", "errors": "packet"}
        | UNKNOWN
        | row
    )
    return reading.to_task(row | {"request": words}), not given


def held_against(task: Task, inferred: bool, text: str) -> tuple[Task, Reading]:
    """The task with the targets that the text infers, if it is to, and the text's workflow;
    "intent" where it infers none.
    """
    if not inferred:
        return task, read(text)
    targets = read_intent(text)
    if targets is None:
        return task, (None, "intent")
    return dataclasses.replace(task, **dict(zip(TARGETS, targets))), read(text)


def newest(run_dir: str) -> str:
    """The model of the last stage that is finished."""
    found = [
        path for stage in MODELS if os.path.isdir(path := os.path.join(run_dir, stage, "model"))
    ]
    if not found:
        raise ConfigError(
            f"--run = {run_dir!r}: expected a run directory with a finished stage (make quickstart"
            " makes one)"
        )
    return found[-1]


def answer(
    config: ExperimentConfig,
    directory: str,
    task: Task,
    temperature: float,
    show: Callable[[str], None] = lambda text: None,
) -> str:
    """What a model directory's model writes to the task; "" where it comes to no end. show: called
    with each piece of text as it is written.
    """
    with reading_model(
        dataclasses.replace(config, model=dataclasses.replace(config.model, hf_dir=directory))
    ):
        tok, model = tokenizer.load_directory(directory), hf.load(directory, **config.model.options)
    (key,), ids = row_keys(jax.random.key(config.seed), np.arange(1)), []
    for token, _ in stream(
        *nnx.split(model),
        tok.apply_chat(task.prompt(config.tasks.prompt)),
        key,
        eos_id=tok.eos_id,
        max_new_tokens=config.rldtf.sample.max_new_tokens,
        temperature=temperature,
    ):
        ids.append(token)
        if token == tok.eos_id:
            return tok.decode(ids[:-1])
        show(tok.decode([token]))
    return ""


def result(task: Task, text: str, judgement: Judgement) -> dict[str, Any]:
    workflow, failure = read(text)
    found = {
        "answer": text,
        "workflow": workflow and dataclasses.asdict(workflow),
        "code": workflow and render(workflow),
        "targets": dict(zip(TARGETS, task.required)),
        "errors": task.errors,
        "reward": judgement.R,
        "fulfilled": judgement.fulfilled,
        "failure": judgement.failure or failure,
    }
    if judgement.qos:
        measured = task.measured(judgement.qos)
        found["measured"] = dict(zip(TARGETS, map(float, measured)))
        found["met"] = dict(
            zip(TARGETS, (margins(np.array(measured), np.array(task.required)) >= 0).tolist())
        )
    return found


def as_text(found: dict[str, Any]) -> str:
    """The verdict; what was written has been shown."""
    lines = [] if found["answer"] else ["(no answer that ends)"]
    if found["code"]:
        lines.append(found["code"])
    if "measured" not in found:
        return "\n\n".join(
            [*lines, f"nothing to run: {found['failure']}; R = {found['reward']:.2f}"]
        )
    for name, bound in zip(TARGETS, ("at most", "at least", "at most")):
        lines.append(
            f"{name:16} {found['measured'][name]:10.3g}   {bound} {found['targets'][name]:.3g}  "
            f" {'met' if found['met'][name] else 'MISSED'}"
        )
    return "\n".join(
        [
            *lines,
            (
                f"R = {found['reward']:.3f},"
                f" {'all targets met' if found['fulfilled'] else 'not all targets met'}"
            ),
        ]
    )


if __name__ == "__main__":
    guarded(main)

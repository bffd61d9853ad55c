"""What a model knows: held-out questions, of radio and general, before and after phase 1."""

import itertools
import json
import os

import jax
from flax import nnx

from experiments.files import exists, json_lines, whole
from experiments.stages.run import Run, say
from experiments.world.questions import DOMAIN_KINDS, GENERAL_KINDS, abbreviations, questions, right
from rldtf_jax.qwen2 import Qwen2
from rldtf_jax.sample import sample_batches


def lessons(run: Run, known: dict[str, str]) -> list[tuple[str, str]]:
    """(prompt, response) of the questions that phase 1 learns from; known: see `spelt_out`."""
    config = run.config.instruct
    asked = questions(run.config.seed, config.general, False, known)
    return [(one.prompt, one.response) for one in itertools.islice(asked, config.questions)]


def spelt_out(run: Run) -> dict[str, str]:
    """The abbreviations of the corpus that the run is pre-trained on, if there is one."""
    if not (run.config.pretrain.corpus and run.config.instruct.questions):
        return {}
    lines = json_lines(os.path.join(run.config.pretrain.corpus, "train.jsonl"))
    return abbreviations(line["text"] for line in lines if line["share"] == "domain")


def examine(run: Run, model: Qwen2, known: dict[str, str], when: str) -> None:
    """Notes in questions.json how many held-out questions of each kind the model answers rightly,
    greedily; asked only once.
    """
    path, config = run.path("instruct", "questions.json"), run.config.instruct
    told: dict[str, dict] = {}
    if exists(path):
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
    if when in told:
        return
    some = list(
        itertools.islice(questions(run.config.seed, config.general, True, known), config.asked)
    )
    answers = sample_batches(
        *nnx.split(model),
        [run.tokenizer.apply_chat(question.prompt) for question in some],
        jax.random.key(run.config.seed),
        batch_size=min(run.config.evaluate.batch_size, config.asked),
        eos_id=run.tokenizer.eos_id,
        max_new_tokens=run.config.rldtf.sample.max_new_tokens,
        temperature=0.0,
    )
    told[when] = {}
    for question, (ids, ended) in zip(some, answers):
        of_kind = told[when].setdefault(question.kind, {"asked": 0, "right": 0})
        of_kind["asked"] += 1
        of_kind["right"] += right(question, run.tokenizer.decode(ids[: len(ids) - ended]))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with whole(path) as file:
        json.dump(told, file, indent=1)
    for name, kinds in (("radio", DOMAIN_KINDS), ("general", GENERAL_KINDS)):
        counts = [told[when][kind] for kind in kinds if kind in told[when]]
        asked, found = (sum(count[key] for count in counts) for key in ("asked", "right"))
        say(f"held-out questions {when}, {name}: {found} of {asked} right")

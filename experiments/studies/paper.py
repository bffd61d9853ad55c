"""The paper's comparison (Fig. 4-7): raw language models, phase 1, rejection sampling, RLDTF.

    python -m experiments.studies.paper RUN [--raw NAME=DIR ...] [--shots 0 3] [--tasks 200]
        [--temperature 0] [--batch 20] [--out RUN/paper]

RUN is a finished run directory; DIR an HF directory (Qwen2 or Llama) that nobody has trained here,
asked by long prompts with its own chat template, zero-shot and with some training tasks' answers
before the question. Every system answers the same test tasks on the same noise; its text goes
through f(a), strict and tolerant, and, where the run has translator=model, through the policy that
wrote it. Leaves paper.json, paper.html and fig4-fig7 as PNG and PDF. Answers are kept as they come:
a killed command goes on.
"""

import argparse
import dataclasses
import hashlib
import html
import json
import os
from typing import Any, Sequence

import jax
import matplotlib
from flax import nnx

from experiments.config import guarded, of_run
from experiments.files import whole
from experiments.stages.evaluate import METHODS, MODELS, summarise
from experiments.stages.report import COLOURS, document, html_table, image, png
from experiments.stages.run import Run, opened, reading_model, say, stage_model
from experiments.statistics import shown
from experiments.world.environment import TwinEnvironment
from experiments.world.tasks import Task
from experiments.world.translator import ModelTranslator
from rldtf_jax import hf, metrics, tokenizer
from rldtf_jax.config import ConfigError
from rldtf_jax.judge import Policy
from rldtf_jax.sample import sample_batches

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, after the backend is chosen

SALT = 13  # of the sampling keys
RAW_TOKENS = 176  # at most, of a raw model's answer
READERS = {"grammar": "strict", "tolerant": "tolerant"}
# What the paper's text says of its figures (IV.D); bars whose height it does not say are left out.
LOSS = ((0, 7.5), (450, 0.5))
REWARD = ((0, -0.3), (450, 0.75), (1500, 0.8))
FULFILMENT = {"raw": 0.0, "rldtf": 0.75}
FORMAT = (
    "Answer in one sentence of exactly this form, with values that the platform has: Use 30 kHz,"
    " 16QAM on 1 layer, LDPC rate 0.50 with 10 iterations, 1 DMRS, ls estimation, lmmse detection,"
    " 5 Mbps on 4 PRB."
)


@dataclasses.dataclass(frozen=True)
class System:
    """name: of a file and a row; stage: of the run, or directory and shots of a raw model."""

    name: str
    title: str
    stage: str | None = None
    directory: str | None = None
    shots: int = 0


def systems(run: Run, raw: Sequence[str], shots: Sequence[int]) -> list[System]:
    """Raw models, by name and number of examples, then the run's stages.

    Raises:
      ConfigError: a raw model that is no NAME=DIR, or a run without a finished stage.
    """
    found = []
    for number, text in enumerate(raw, 1):
        name, _, directory = text.partition("=")
        if not name.isprintable() or not name or os.sep in name or not os.path.isdir(directory):
            raise ConfigError(f"--raw = {text!r}: expected NAME=DIR, DIR an HF directory")
        found += [
            System(
                f"{name} {k}-shot",
                f"Benchmark {number}: {name}, {f'{k} examples' if k else 'zero-shot'}",
                directory=directory,
                shots=k,
            )
            for k in shots
        ]
    stages = [
        System(stage, METHODS[stage], stage=stage)
        for stage in MODELS
        if os.path.isdir(run.path(stage, "model"))
    ]
    if not stages:
        raise ConfigError(f"RUN = {run.config.run_dir!r}: expected a run with a finished stage")
    return found + stages


def question(task: Task, examples: Sequence[Task]) -> str:
    """A raw model's prompt: how to answer, examples, the task."""
    shown = [
        f"Request: {example.prompt('short')}\nAnswer:"
        f" {example.response(example.witness, think=False)}"
        for example in examples
    ]
    return "\n\n".join([FORMAT, *shown, f"{task.prompt('long')}\nAnswer:"])


def answers(
    run: Run, system: System, tasks: Sequence[Task], temperature: float, batch: int
) -> list[str]:
    """One text to each task; "" where no end is reached."""
    if system.stage:
        model, tok = stage_model(run, system.stage), run.tokenizer
        limit = run.config.rldtf.sample.max_new_tokens
        prompts = [tok.apply_chat(task.prompt(run.config.tasks.prompt)) for task in tasks]
    else:
        asked = dataclasses.replace(run.config.model, hf_dir=system.directory)
        with reading_model(dataclasses.replace(run.config, model=asked)):
            tok = tokenizer.load_directory(system.directory)
            model = hf.load(system.directory, **run.config.model.options)
        limit = RAW_TOKENS
        examples = [task for task in run.tasks["train"] if task.witness][: system.shots]
        prompts = [tok.apply_chat(question(task, examples)) for task in tasks]
    texts = []
    for ids, ended in sample_batches(
        *nnx.split(model),
        prompts,
        jax.random.fold_in(jax.random.key(run.config.seed), SALT),
        batch_size=batch,
        eos_id=tok.eos_id,
        max_new_tokens=limit,
        temperature=temperature,
    ):
        text = tok.decode(ids[: len(ids) - ended].tolist())
        if not system.stage:  # what goes on after its answer, with a request of its own
            text, ended = text.lstrip().partition("\n\n")[0], True
        texts.append(text if ended else "")
        if len(texts) % batch == 0 or len(texts) == len(tasks):
            say(f"paper: {system.name}, {len(texts)} of {len(tasks)}")
    return texts


def kept_answers(
    run: Run, system: System, tasks: Sequence[Task], temperature: float, batch: int, out: str
) -> list[str]:
    """`answers`, from <out>/answers/ where they are there for these tasks."""
    what = [[task.prompt("long") for task in tasks], temperature, dataclasses.astuple(system)]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    path = os.path.join(out, "answers", f"{system.name}-{digest}.json")
    if not os.path.exists(path):
        texts = answers(run, system, tasks, temperature, batch)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole(path) as file:
            json.dump(texts, file, indent=1)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def compared(run: Run, asked: Sequence[System], texts: Sequence[Sequence[str]], tasks) -> dict:
    """{system: {reader: fulfilment, score, reward, unusable, each with its interval}}."""
    found: dict[str, Any] = {}
    for system, said in zip(asked, texts):
        found[system.name] = {"title": system.title, "raw": system.stage is None}
        readers: dict[str, Any] = dict.fromkeys(READERS)
        if system.stage and run.config.translator == "model":  # which its policy was taught
            readers["model"] = stage_model(run, system.stage)
        for reader, model in readers.items():
            limit = run.config.rldtf.sample.max_new_tokens
            environment = TwinEnvironment(
                tasks,
                run.tokenizer,
                run.twins("evaluate"),
                run.config.rldtf.reward,
                translator=ModelTranslator(run.tokenizer, limit) if model else reader,
            )
            policy = Policy(*nnx.split(model)) if model else None
            found[system.name][reader] = summarise(environment.judge_text(tasks, said, policy))
    return found


def curves_figure(rows: list[dict], name: str, title: str, landmarks) -> plt.Figure:
    """A curve of training beside the points that the paper's text gives."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if points:
        axis.plot(*zip(*points), color=COLOURS["rldtf"], linewidth=1, label="this run")
    axis.plot(*zip(*landmarks), "o--", color="#777777", markersize=4, label="the paper's text")
    axis.set(title=title, xlabel="step")
    axis.legend(fontsize=8)
    return figure


def bars_figure(found: dict, measure: str, title: str, theirs: dict[str, float]) -> plt.Figure:
    """A bar a system and reader, with intervals; the paper's heights where its text has them."""
    figure, axis = plt.subplots(figsize=(7.5, 0.8 + 0.5 * len(found)), layout="constrained")
    for y, (name, row) in enumerate(found.items()):
        for k, reader in enumerate(READERS):
            value = row[reader][measure]
            if value is not None:
                low, high = row[reader][f"{measure}_interval"]
                at = y + 0.36 * (k - 0.5)
                axis.barh(at, value, 0.34, color=COLOURS.get(name, "#bbbbbb"), alpha=1 - 0.5 * k)
                error = [[max(value - low, 0)], [max(high - value, 0)]]
                axis.errorbar(value, at, xerr=error, color="black", capsize=2, linewidth=0.8)
        if (height := theirs.get("raw" if row["raw"] else name)) is not None:
            axis.plot(height, y, "D", color="black", markersize=5)
    axis.set(
        title=f"{title} (upper bar: strict f(a), lower: tolerant; diamond: the paper's text)",
        xlim=(0, 1.05),
        yticks=range(len(found)),
        yticklabels=[row["title"] for row in found.values()],
        ylim=(len(found) - 0.4, -0.6),
    )
    axis.title.set_fontsize(8)
    return figure


def table(found: dict, num_tasks: int) -> list[list[str]]:
    def cell(row, measure):
        if row[measure] is None:
            return "-"
        return shown([row[measure], *row[f"{measure}_interval"]])

    head = ["", "f(a)", "fulfilment", "score of fulfilled", "mean reward", "nothing to run"]
    return [head] + [
        [
            row["title"],
            READERS.get(reader, "its own"),
            *(cell(row[reader], measure) for measure in ("fulfilment", "score", "reward")),
            f"{row[reader]['unusable'] * num_tasks:.0f} of {num_tasks}",
        ]
        for row in found.values()
        for reader in (*READERS, "model")
        if reader in row
    ]


def write(run: Run, found: dict, num_tasks: int, out: str) -> str:
    """paper.json, the figures and the page; returns the page's path."""
    os.makedirs(out, exist_ok=True)
    with whole(os.path.join(out, "paper.json")) as file:
        json.dump({"tasks": num_tasks, "systems": found}, file, indent=1)
    rows = metrics.read(run.path("rldtf"))
    figures = {
        "fig4": curves_figure(rows, "policy_loss", "Fig. 4: policy loss (Eq. 6)", LOSS),
        "fig5": curves_figure(rows, "reward", "Fig. 5: reward of a step's rollouts", REWARD),
        "fig6": bars_figure(found, "fulfilment", "Fig. 6: fulfilment", FULFILMENT),
        "fig7": bars_figure(found, "score", "Fig. 7: average score of the fulfilled", {}),
    }
    pictures = []
    for name, figure in figures.items():
        figure.savefig(os.path.join(out, f"{name}.pdf"))
        pictures.append(image(picture := png(figure), name))
        with open(os.path.join(out, f"{name}.png"), "wb") as file:
            file.write(picture)
    page = document(
        "The paper's comparison",
        f"<p>{num_tasks} test tasks of {html.escape(run.config.tasks.family)}, one response each,"
        " 95 % intervals over tasks. Raw models are whatever was named on the command line: the"
        " paper's are Qwen2.5-7B-Instruct and Llama2-7B-Instruct. The trained line is this run's"
        " model, whatever its size; Eq. 6's scale is that of this run's form of the loss.</p>",
        html_table(*table(found, num_tasks)),
        *pictures,
    )
    with whole(path := os.path.join(out, "paper.html")) as file:
        file.write(page)
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--raw", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--shots", type=int, nargs="+", default=[0])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--out", help="directory; default: RUN/paper")
    asked = parser.parse_args(argv)
    for name, value in (("tasks", asked.tasks), ("batch", asked.batch)):
        if value < 1:
            raise ConfigError(f"--{name} = {value}: expected an integer >= 1")
    if min(asked.shots) < 0 or not asked.temperature >= 0:
        raise ConfigError("--shots, --temperature: expected numbers >= 0")
    config = dataclasses.replace(of_run(asked.run), run_dir=asked.run)
    out = asked.out or os.path.join(asked.run, "paper")
    with opened(config, shared=True) as run:
        tasks = run.tasks["test"][: asked.tasks]
        chosen = systems(run, asked.raw, asked.shots)
        texts = [
            kept_answers(run, system, tasks, asked.temperature, asked.batch, out)
            for system in chosen
        ]
        found = compared(run, chosen, texts, tasks)
        page = write(run, found, len(tasks), out)
    for row in table(found, len(tasks)):
        print("| " + " | ".join(row) + " |")
    print(f"report: {page}")


if __name__ == "__main__":
    guarded(main)

"""What S_t of Eq. 4 measures, by kind of perturbation and by field: python -m
experiments.studies.sensitivity [tasks=N] [num=N] [out=DIR]

Needs no model: the responses are those of the witnesses of link-lite's held-out test tasks. Each
value is perturbed as the paper does it (a token is removed or replaced by another of the response),
and in kind (by another value that the platform offers), read by the strict grammar and by the
tolerant reader. Leaves sensitivity.json and sensitivity.png in out.
"""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
from matplotlib import pyplot as plt

from experiments.config import guarded
from experiments.files import whole
from experiments.statistics import mean_interval
from experiments.world import orchestration, worlds
from experiments.world import tasks as task_files
from experiments.world.__main__ import SETTINGS, options
from experiments.world.environment import TwinEnvironment
from rldtf_jax.config import RLDTFConfig
from rldtf_jax.judge import Arm, Prompts, judge
from rldtf_jax.reward import RewardConfig
from rldtf_jax.sample import Samples
from rldtf_jax.tokenizer import train_bpe
from twin import Twin

KINDS = {
    "paper": ("paper", "grammar"),
    "paper, tolerant": ("paper", "tolerant"),
    "in kind": ("in-kind", "grammar"),
}
WORDS = "words, and figures that are not read"


def measure(tasks: list, num: int, kind: str, twin: Twin) -> dict:
    """{field: S by part, each a mean over tasks with its 95 % interval}, and the shares of what the
    perturbations did.
    """
    perturb, translator = KINDS[kind]
    texts = [task.response(task.witness) for task in tasks]
    tokenizer = train_bpe([task.prompt() + text for task, text in zip(tasks, texts)], 800)
    environment = TwinEnvironment(tasks, tokenizer, twin, RewardConfig(), translator=translator)
    ids = [[*tokenizer.encode(text, special=False), tokenizer.eos_id] for text in texts]
    lengths = np.array(list(map(len, ids)))
    tokens = np.zeros((len(ids), lengths.max()), np.int32)
    for row, one in zip(tokens, ids):
        row[: len(one)] = one
    config = RLDTFConfig(alpha=1.0, num_perturb=num, perturb=perturb)
    (judged,) = judge(
        [Arm(config, 0, environment)],
        [Prompts(tasks, None, None, None)],
        [Samples(tokens, lengths, None, np.ones(len(ids), bool))],
        [None],
        0,
    )
    fields = environment.fields(tasks, [row[:n] for row, n in zip(tokens, lengths)])
    by_field: dict[str, list] = {}
    for b, (text, found) in enumerate(zip(texts, fields)):
        rest = np.arange(lengths.max()) < lengths[b] - 1
        for (name, *_), field in zip(orchestration.values(text), found):
            span = slice(field.start, field.stop)
            rest[span] = False
            if len(field.others):
                by_field.setdefault(name, []).append([part[b, span].max() for part in judged.S])
        by_field.setdefault(WORDS, []).append([part[b, rest].mean() for part in judged.S])
    counted = np.arange(lengths.max()) < lengths[:, None]
    return {
        "fields": {
            name: (
                {
                    part: [float(np.mean(x)), *mean_interval(list(map(float, x)))]
                    for part, x in zip(judged.S._fields, np.transpose(values))
                }
                | {"responses": len(values)}
            )
            for name, values in by_field.items()
        },
        "tokens": {part: float((S[counted] > 0).mean()) for part, S in judged.S._asdict().items()},
        "simulated": judged.verdict.stats["workflows"],
        "sequences": judged.verdict.stats["sequences"],
    }


def draw(result: dict, path: str) -> None:
    """Both parts of S by field, a panel a kind; fields in the order of their physical part in
    kind.
    """
    order = sorted(
        result["in kind"]["fields"],
        key=lambda name: result["in kind"]["fields"][name]["service"][0],
    )
    figure, axes = plt.subplots(
        1, len(KINDS), figsize=(12, 4), layout="constrained", sharey=True, sharex=True
    )
    for axis, kind in zip(axes, KINDS):
        rows = [
            result[kind]["fields"].get(name, {"service": [0] * 3, "unreadable": [0] * 3})
            for name in order
        ]
        left = np.array([row["service"][0] for row in rows])
        error = np.abs(np.array([row["service"][1:] for row in rows]).T - left)
        axis.barh(order, left, xerr=error, label="worse or better service")
        axis.barh(
            order,
            [row["unreadable"][0] for row in rows],
            left=left,
            label="nothing to run",
            color="0.8",
        )
        axis.set(title=kind, xlabel="S, mean over responses")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    asked: SimpleNamespace = options(arguments, tasks=60, num=4, out="runs/sensitivity")
    tasks = task_files.load_splits(os.path.join(task_files.DATA, "link-lite"))["test"][
        : asked.tasks
    ]
    os.makedirs(asked.out, exist_ok=True)
    with Twin(
        2, os.path.join(asked.out, "twin.sqlite"), worlds.noise_seed(0, "train"), **SETTINGS
    ) as twin:
        result = {kind: measure(tasks, asked.num, kind, twin) for kind in KINDS}
    with whole(os.path.join(asked.out, "sensitivity.json")) as file:
        json.dump(result, file, indent=1)
    draw(result, os.path.join(asked.out, "sensitivity.png"))
    for kind, found in result.items():
        print(
            kind,
            {part: round(share, 3) for part, share in found["tokens"].items()},
            found["simulated"],
            "workflows",
        )
        for name, row in sorted(found["fields"].items(), key=lambda pair: -pair[1]["service"][0]):
            print(
                f"  {name:40} service {row['service'][0]:.3f}  nothing to run"
                f" {row['unreadable'][0]:.3f}"
            )


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1:]))

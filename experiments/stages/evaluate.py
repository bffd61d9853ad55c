"""Held-out tasks: every stage's model, the rule and the oracle, judged by the same twin.

python -m experiments.stages.evaluate preset=quickstart [evaluate.temperature=1]
"""

import dataclasses
import json
from typing import Sequence

import numpy as np
from flax import nnx

from experiments.config import ExperimentConfig, command
from experiments.files import exists, whole
from experiments.stages.run import Run, opened, respond, say, stage_model
from experiments.statistics import mean_interval, paired_difference, shown, wilson
from experiments.world import baselines, wording
from experiments.world.tasks import HELD_OUT, Task
from rldtf_jax.config import PricesConfig, RLDTFConfig
from rldtf_jax.judge import Arm, Policy, Prompts, Verdict, judge
from rldtf_jax.sample import Samples
from rldtf_jax.token_weight import token_weights

METHODS = {
    "instruct": "phase 1 (instruct)",
    "reject": "+ rejection sampling",
    "rldtf": "+ RLDTF",
    **baselines.NAMES,
}
MODELS = ("instruct", "reject", "rldtf")
FEW = ("random", "constant")  # fulfil so few tasks that none would be common to all


def evaluate(run: Run) -> dict:
    """The results of all methods on every held-out split, from <run_dir>/evaluation.json if they
    are there; those of another temperature than the first beside them, in
    evaluation_at_<temperature>.json.
    """
    path, temperature = run.path("evaluation.json"), run.config.evaluate.temperature
    if exists(path):
        with open(path, encoding="utf-8") as file:
            if json.load(file)["temperature"] != temperature:
                path = run.path(f"evaluation_at_{temperature:g}.json")
    if not exists(path):
        say("evaluate: tuning the rule")
        asked = baselines.methods(
            run.tasks["train"],
            run.tasks["validation"],
            run.twins,
            run.config.rldtf.reward,
            run.config.seed,
        )
        splits = {split: compare(run, split, asked) for split in HELD_OUT if run.tasks.get(split)}
        with whole(path) as file:
            json.dump(splits.pop("test") | {"elsewhere": splits}, file, indent=1)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def compare(run: Run, split: str, asked: dict) -> dict:
    """The run's models and what `asked` names on the tasks of a held-out split, on noise that no
    one has met.
    """
    tasks, environment = run.tasks[split], run.environment(split)
    verdicts, intents, calls = {}, {}, {}
    for stage in MODELS:
        model = stage_model(run, stage)
        if model is not None:
            say(f"evaluate: {METHODS[stage]}, {split}")
            responses = respond(
                run,
                model,
                environment,
                range(len(tasks)),
                salt=2,
                temperature=run.config.evaluate.temperature,
            )
            verdicts[stage], intents[stage] = responses.verdict, intent(tasks, responses.texts)
            if responses.calls is not None:
                calls[stage] = {"calls": float(responses.calls.mean())}
    say(f"evaluate: baselines, {split}")
    for name, choose in asked.items():
        verdicts[name] = _judge(environment, tasks, choose(tasks))
    all_good = np.all([v.fulfilled_M for name, v in verdicts.items() if name not in FEW], axis=0)
    return {
        "num_tasks": len(tasks),
        "temperature": run.config.evaluate.temperature,
        "all_fulfil": int(all_good.sum()),
        "methods": {
            name: summarise(verdict, verdicts.get("oracle"), all_good)
            | intents.get(name, {})
            | calls.get(name, {})
            for name, verdict in verdicts.items()
        },
        "by_task": {
            name: {
                "fulfilled": v.fulfilled_M.astype(int).tolist(),
                "reward": [round(R, 6) for R in v.reward_M.tolist()],
            }
            for name, v in verdicts.items()
        },
        "gains": {
            f"{b} - {a}": gain(verdicts[b], verdicts[a])
            for a, b in zip(MODELS, MODELS[1:])
            if a in verdicts and b in verdicts
        },
    }


def intent(tasks: Sequence[Task], texts: Sequence[str]) -> dict:
    """How well the quality of service is inferred where the request does not state it: error in
    decades, see wording.intent_error.
    """
    errors = [
        wording.intent_error(wording.read_intent(text), task.required)
        for task, text in zip(tasks, texts)
        if task.infers
    ]
    return (
        {
            "intent_error": float(np.mean(errors)),
            "intent_error_interval": mean_interval(errors),
            "intent_exact": float(np.mean(np.array(errors) < 1e-6)),
        }
        if errors
        else {}
    )


def _judge(environment, tasks, workflows) -> Verdict:
    return environment.judge_readings(
        tasks, [(w, "none found" if w is None else None) for w in workflows]
    )


def summarise(
    verdict: Verdict, oracle: Verdict | None = None, all_good: np.ndarray | None = None
) -> dict:
    """Fulfilment, mean R over the fulfilled ones, mean R over all, and with an oracle the regret to
    it and the mean R over the tasks that all compared methods fulfil: each with its 95 % interval
    over tasks.
    """
    good = np.asarray(verdict.fulfilled_M)
    score, R = verdict.reward_M[good], verdict.reward_M
    row = {
        "fulfilment": float(good.mean()),
        "fulfilment_interval": wilson(int(good.sum()), len(good)),
        "score": float(score.mean()) if len(score) else None,
        "score_interval": mean_interval(score) if len(score) else None,
        "reward": float(R.mean()),
        "reward_interval": mean_interval(R),
        "unusable": sum(reason is not None for reason in verdict.failure_M) / len(good),
    }
    ran = np.array([reason is None for reason in verdict.failure_M])
    if verdict.costs and ran.any():
        row["costs"] = {name: float(np.mean(x[ran])) for name, x in verdict.costs.items()}
    if oracle is not None:
        regret, interval = paired_difference(oracle.reward_M, R)
        row |= {
            "regret": regret,
            "regret_interval": interval,
            "common_score": float(R[all_good].mean()) if all_good.any() else None,
            "common_score_interval": mean_interval(R[all_good]) if all_good.any() else None,
        }
    return row


def gain(after: Verdict, before: Verdict) -> dict:
    """Paired differences over the same tasks."""
    fulfilment, fulfilment_interval = paired_difference(after.fulfilled_M, before.fulfilled_M)
    reward, reward_interval = paired_difference(after.reward_M, before.reward_M)
    return {
        "fulfilment": fulfilment,
        "fulfilment_interval": fulfilment_interval,
        "reward": reward,
        "reward_interval": reward_interval,
    }


COLUMNS = {
    "fulfilment": "fulfilment",
    "score": "average score",
    "common_score": "score, common tasks",
    "reward": "mean reward",
    "regret": "regret",
}


def cells(result: dict) -> list[list[str]]:
    """The results' rows as text, title first: value and interval of each of COLUMNS."""

    def cell(row, name):
        if row.get(name) is None:
            return "-"
        return shown([row[name], *row[f"{name}_interval"]])

    return [
        [title, *(cell(result["methods"][name], column) for column in COLUMNS)]
        for name, title in METHODS.items()
        if name in result["methods"]
    ]


def table(result: dict) -> str:
    """The results for a terminal."""
    lines = []
    for split, part in {"test": result, **result["elsewhere"]}.items():
        lines += [
            (
                f"{split}: {part['num_tasks']} tasks, 95 % intervals over them; all but random and"
                f" constant fulfil {part['all_fulfil']}"
            ),
            f"{'':32}" + "".join(f"{title:25}" for title in COLUMNS.values()),
        ]
        lines += [
            f"{title:32}" + "".join(f"{cell:25}" for cell in row) for title, *row in cells(part)
        ]
        lines += [
            f"{METHODS[name]}: infers the unstated targets with an error of"
            f" {row['intent_error']:.2f} decades, {row['intent_exact']:.0%} exactly"
            for name, row in part["methods"].items()
            if "intent_error" in row
        ]
    return "\n".join(lines)


def for_eq_4(config: RLDTFConfig, **changes) -> RLDTFConfig:
    """A config that says what S_t is, whatever was learnt from."""
    return dataclasses.replace(
        config,
        weight_by="sensitivity",
        advantage="paper",
        with_critic=True,
        judge_first=None,
        turns=1,
        branches=0,
        prices=PricesConfig(),
        **changes,
    )


def shaded_responses(run: Run, count: int = 3) -> list[dict]:
    """Responses of the last model to held-out tasks with each token's S_t and w_t, for a reader to
    see.
    """
    stage = next((s for s in reversed(MODELS) if exists(run.path(s, "model"))), None)
    if stage is None:
        return []
    environment, config = run.environment("test"), run.config.rldtf
    rows = range(min(count, len(environment.tasks)))
    model = stage_model(run, stage)
    found = respond(
        run, model, environment, rows, salt=2, temperature=run.config.evaluate.temperature
    )
    tasks, responses = found.tasks, found.tokens
    lengths = np.array([len(ids) for ids in responses])
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for row, ids in zip(tokens, responses):
        row[: len(ids)] = ids
    ended = np.array([run.tokenizer.eos_id in ids for ids in responses])
    kind = "paper" if config.perturb in ("policy", "completion") else config.perturb
    config = for_eq_4(config, perturb=kind)
    (judged,) = judge(
        [Arm(config, run.config.seed, environment)],
        [Prompts(tasks, None, None, None)],
        [Samples(tokens, lengths, None, ended)],
        [None],
        0,
        Policy(*nnx.split(model)),
    )
    verdict, S = judged.verdict, judged.S.total
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    w = np.asarray(token_weights(S, mask, config.alpha, config.threshold, config.lam))
    return [
        {
            "prompt": task.prompt(run.config.tasks.prompt),
            "reward": float(verdict.reward_M[b]),
            "fulfilled": bool(verdict.fulfilled_M[b]),
            "tokens": [
                {"text": run.tokenizer.decode([token]), "S": float(S[b, t]), "w": float(w[b, t])}
                for t, token in enumerate(tokens[b, : lengths[b]])
            ],
        }
        for b, task in enumerate(tasks)
    ]


def main(config: ExperimentConfig) -> None:
    with opened(config, may_differ=("evaluate.temperature",)) as run:
        print(table(evaluate(run)))


if __name__ == "__main__":
    command(main)

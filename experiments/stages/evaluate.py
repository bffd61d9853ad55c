"""Held-out tasks: every stage's model, the rule and the oracle, judged by the same twin.

    python -m experiments.stages.evaluate preset=quickstart
"""

import json
import os

import numpy as np
from flax import nnx

from rldtf_jax.token_weight import token_weights
from rldtf_jax.rldtf import Policy, Verdict, judge_with_perturbations

from experiments.config import ExperimentConfig, command
from experiments.files import whole
from experiments.stages.run import Run, opened, respond, say, stage_model
from experiments.statistics import mean_interval, paired_difference, wilson
from experiments.world import baselines

METHODS = {
    "instruct": "phase 1 (instruct)",
    "reject": "+ rejection sampling",
    "rldtf": "+ RLDTF",
    "rule": "rule-based link adaptation",
    "oracle": "oracle (search)",
}
MODELS = ("instruct", "reject", "rldtf")


def evaluate(run: Run) -> dict:
    """The results of all methods, from <run_dir>/evaluation.json if they are there."""
    path = run.path("evaluation.json")
    if not os.path.exists(path):
        tasks = run.tasks["test"]
        environment = run.environment("test")
        verdicts = {}
        for stage in MODELS:
            model = stage_model(run, stage)
            if model is not None:
                say(f"evaluate: {METHODS[stage]}")
                verdicts[stage] = respond(run, model, environment, range(len(tasks)), salt=2,
                                                 temperature=run.config.evaluate.temperature).verdict
        say("evaluate: rule and oracle")
        rule = baselines.tuned_rule(run.tasks["validation"], run.twin)
        verdicts["rule"] = _judge(environment, tasks, [rule(task) for task in tasks])
        verdicts["oracle"] = _judge(environment, tasks, baselines.oracle(tasks, run.twin, run.config.rldtf.reward))
        result = {"num_tasks": len(tasks), "temperature": run.config.evaluate.temperature,
                  "methods": {name: summarise(verdict) for name, verdict in verdicts.items()},
                  "gains": {f"{b} - {a}": gain(verdicts[b], verdicts[a])
                            for a, b in zip(MODELS, MODELS[1:]) if a in verdicts and b in verdicts}}
        with whole(path) as file:
            json.dump(result, file, indent=1)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _judge(environment, tasks, workflows) -> Verdict:
    return environment.judge_workflows(tasks, workflows, ["none found" if w is None else None for w in workflows])


def summarise(verdict: Verdict) -> dict:
    """Fulfilment, mean R over the fulfilled ones, mean R over all: each with its 95 % interval."""
    good = np.asarray(verdict.fulfilled_M)
    score, R = verdict.reward_M[good], verdict.reward_M
    return {
        "fulfilment": float(good.mean()), "fulfilment_interval": wilson(int(good.sum()), len(good)),
        "score": float(score.mean()) if len(score) else None,
        "score_interval": mean_interval(score) if len(score) else None,
        "reward": float(R.mean()), "reward_interval": mean_interval(R),
        "unusable": sum(reason is not None for reason in verdict.failure_M) / len(good),
    }


def gain(after: Verdict, before: Verdict) -> dict:
    """Paired differences over the same tasks."""
    fulfilment, fulfilment_interval = paired_difference(after.fulfilled_M, before.fulfilled_M)
    reward, reward_interval = paired_difference(after.reward_M, before.reward_M)
    return {"fulfilment": fulfilment, "fulfilment_interval": fulfilment_interval,
            "reward": reward, "reward_interval": reward_interval}


def table(result: dict) -> str:
    """The results for a terminal."""
    def cell(row, name):
        if row[name] is None:
            return "-"
        low, high = row[f"{name}_interval"]
        return f"{row[name]:6.3f}  [{low:.3f}, {high:.3f}]"

    lines = [f"{result['num_tasks']} held-out tasks, 95 % intervals",
             f"{'':28}{'fulfilment':27}{'average score':27}{'mean reward':27}"]
    for name, title in METHODS.items():
        if name in result["methods"]:
            row = result["methods"][name]
            lines.append(f"{title:28}" + "".join(f"{cell(row, c):27}" for c in ("fulfilment", "score", "reward")))
    return "\n".join(lines)


def shaded_responses(run: Run, count: int = 3) -> list[dict]:
    """Responses of the last model to held-out tasks with each token's S_t and w_t, for a reader to see."""
    stage = next((s for s in reversed(MODELS) if os.path.isdir(run.path(s, "model"))), None)
    if stage is None:
        return []
    environment, config = run.environment("test"), run.config.rldtf
    rows = range(min(count, len(environment.tasks)))
    model = stage_model(run, stage)
    tasks, _, responses, _ = respond(run, model, environment, rows, salt=2,
                                            temperature=run.config.evaluate.temperature)
    lengths = np.array([len(ids) for ids in responses])
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for row, ids in zip(tokens, responses):
        row[:len(ids)] = ids
    verdict, S = judge_with_perturbations(environment, tasks, tokens, lengths, config, run.config.seed,
                                          Policy(*nnx.split(model)))
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    w = np.asarray(token_weights(S, mask, config.alpha, config.threshold, config.lam))
    return [{"prompt": task.prompt(), "reward": float(verdict.reward_M[b]), "fulfilled": bool(verdict.fulfilled_M[b]),
             "tokens": [{"text": run.tokenizer.decode([token]), "S": float(S[b, t]), "w": float(w[b, t])}
                        for t, token in enumerate(tokens[b, :lengths[b]])]}
            for b, task in enumerate(tasks)]


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        print(table(evaluate(run)))


if __name__ == "__main__":
    command(main)

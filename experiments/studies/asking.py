"""Is asking a quick run of the twin before answering worth its price? Pairs of runs of
preset=asking, the second of each trained without questions.

    python -m experiments.studies.asking ASKS PLAIN [ASKS PLAIN ...] [--json FILE]
    (PLAIN: the same seed with ask.share=0 rldtf.turns=1)

Both answer tasks as their family draws them, feasible or not, at the temperature of training. Beside
them what a policy that cannot ask gets for the same quick runs: two answers drawn, the first asked
about, the second taken where it misses. And the workflows that the first asked about, as if they
had been answers. Intervals over seeds and tasks, differences paired.
"""  # noqa: E501

import dataclasses
from typing import Any, Sequence

import numpy as np

from experiments.config import guarded, of_run, of_runs
from experiments.files import leave
from experiments.stages.run import Run, opened, respond, stage_model
from experiments.statistics import shown, with_nested_interval
from experiments.studies.fresh import draw
from experiments.world import worlds
from experiments.world.asking import question
from experiments.world.orchestration import read
from experiments.world.scoring import judge_readings
from rldtf_jax.config import ConfigError
from rldtf_jax.judge import Verdict

TASKS = {"test": 300, "new-links": 150}
SALT = 2
NAMES = {
    "asks": "asks, then answers",
    "its question": "what it asked about, as its answer",
    "plain": "answers at once",
    "redraws": "answers at once; a second draw where a quick run misses",
}


def answers(run: Run, turns: int) -> tuple[Verdict, list[str], np.ndarray]:
    """(verdicts, texts, quick runs asked for) of the trained model on all of TASKS; turns = 1: of
    its first messages.
    """
    config = dataclasses.replace(run.config.rldtf, turns=turns)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, rldtf=config))
    model = stage_model(run, "rldtf")
    if model is None:
        raise ConfigError(f"{run.path('rldtf', 'model')}: no such model; expected a finished run")
    found = [
        respond(
            run,
            model,
            run.environment(split),
            range(len(run.tasks[split])),
            salt=SALT + number,
            temperature=config.sample.temperature,
        )
        for number, split in enumerate(TASKS)
    ]
    verdict = Verdict(
        np.concatenate([one.verdict.reward_M for one in found]),
        np.concatenate([one.verdict.fulfilled_M for one in found]),
        [reason for one in found for reason in one.verdict.failure_M],
        {},
    )
    texts = [text for one in found for text in one.texts]
    calls = np.concatenate(
        [np.zeros(len(one.texts), int) if one.calls is None else one.calls for one in found]
    )
    # the last message, a question or not, is run by the judge alone
    asks = np.array([question(text) is not None for text in texts]) & (calls < turns - 1)
    return verdict, texts, calls + asks


def with_fresh_tasks(run: Run) -> Run:
    return dataclasses.replace(
        run, tasks=run.tasks | draw(worlds.family(run.config.tasks.family), TASKS)
    )


def judged(run: Run, texts: Sequence[str], purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """(R, fulfilled) of answers to all of TASKS."""
    tasks = [task for split in TASKS for task in run.tasks[split]]
    found = judge_readings(
        tasks, list(map(read, texts)), run.twins(purpose), run.config.rldtf.reward
    )
    return np.array([one.R for one in found]), np.array([one.fulfilled for one in found])


def of_pair(asks: str, plain: str) -> dict[str, dict[str, np.ndarray]]:
    """{arm: {reward, fulfilled, calls}} of one seed, an entry for each task."""
    found = {}
    with opened(of_run(asks), shared=True) as run:
        if run.config.rldtf.turns == 1:
            raise ConfigError(f"{asks}: rldtf.turns = 1: expected a run that asks")
        run = with_fresh_tasks(run)
        verdict, _, calls = answers(run, run.config.rldtf.turns)
        found["asks"] = verdict.reward_M, verdict.fulfilled_M, calls
        _, first, _ = answers(run, 1)
        first = [text if (asked := question(text)) is None else asked for text in first]
        found["its question"] = *judged(run, first, "evaluate"), np.zeros(len(first))
    with opened(of_run(plain), shared=True) as run:
        if run.config.rldtf.turns > 1:
            raise ConfigError(f"{plain}: rldtf.turns = {run.config.rldtf.turns}: expected 1")
        run = with_fresh_tasks(run)
        one, texts, none = answers(run, 1)
        found["plain"] = one.reward_M, one.fulfilled_M, none
        config = dataclasses.replace(run.config, seed=run.config.seed + 1_000_000)
        other, _, _ = answers(dataclasses.replace(run, config=config), 1)
        _, good = judged(run, texts, "ask")
        found["redraws"] = (
            np.where(good, one.reward_M, other.reward_M),
            np.where(good, one.fulfilled_M, other.fulfilled_M),
            none + 1,
        )
    return {
        name: dict(zip(("reward", "fulfilled", "calls"), map(np.float64, values)))
        for name, values in found.items()
    }


def compared(pairs: Sequence[dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
    """{arm: {measure: [mean, low, high], "gain": {measure: of asking on it}}}."""

    def of(name, measure):  # (S, N)
        return np.stack([pair[name][measure] for pair in pairs])

    return {
        name: {
            **{m: with_nested_interval(of(name, m)) for m in ("fulfilled", "reward", "calls")},
            "gain": {
                m: with_nested_interval(of("asks", m) - of(name, m))
                for m in ("fulfilled", "reward")
            },
        }
        for name in NAMES
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        "| | quick runs a task | fulfilment | mean reward | asking earns more by |",
        "|---|---|---|---|---|",
    ]
    for name, row in found.items():
        gain = "" if name == "asks" else shown(row["gain"]["reward"], "+")  # type: ignore[call-arg]
        lines.append(
            f"| {NAMES[name]} | {row['calls'][0]:.2f} | {shown(row['fulfilled'])} |"
            f" {shown(row['reward'])} | {gain} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = of_runs(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    asked = parser.parse_args()
    if len(asked.runs) % 2:
        raise ConfigError(f"{asked.runs[-1]}: expected pairs of runs, ASKS and PLAIN")
    found = compared([of_pair(*pair) for pair in zip(asked.runs[::2], asked.runs[1::2])])
    print(table(found))
    leave(found, asked.json)


if __name__ == "__main__":
    guarded(main)

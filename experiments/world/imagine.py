"""What a response's tokens might have been, and what each would be worth: the values that
`advantage=expected` sums over.

From the workflow that was written a search goes on by the emulator alone: every change of one
decision, its grant resized so that it carries as much beyond what is asked as before, then every
change of the best of these, and so on. All that it has looked at is spelt out as the world's own
writer would. A token is worth what the best text expects that goes on with it from what the
response has up to there: so a token that needs two more decisions to pay is credited too. An
emulator says what R each may expect; no twin is asked. A token that leads to none of these texts
counts as no service.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple, Sequence

import numpy as np

from experiments.world.emulator import Emulator
from experiments.world.orchestration import THINK, each_prb_mbps, read
from experiments.world.search import changes, runs
from experiments.world.tasks import Task
from rldtf_jax.judge import OPTIONS, Imagined, Verdict
from rldtf_jax.reward import NO_SERVICE
from rldtf_jax.tokenizer import Tokenizer
from twin import Workflow

ROUNDS = 4  # of the search: decisions that a valued text may be away
# other grants: PRB more, and times as many
NEAR, FACTORS = range(-4, 9), (0.7, 0.8, 0.9, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0)


class Option(NamedTuple):
    """A token that might stand at a position of a response, and what the best text with it expects
    beyond no service.
    """

    position: int
    token: int
    worth: float


def resized(workflow: Workflow, written: Workflow, max_prb: int) -> Workflow:
    """The workflow on the grant that carries at least what the written one does, as far as there
    are resource blocks.
    """
    carries = written.num_prb * each_prb_mbps(written) / each_prb_mbps(workflow)
    return dataclasses.replace(workflow, num_prb=max(1, min(max_prb, math.ceil(carries - 1e-9))))


def neighbours(task: Task, written: Workflow) -> list[Workflow]:
    """Every workflow that is one decision away and that the twin can run."""
    s, n = task.scenario, written.num_prb
    grants = sorted(
        {*(n + more for more in NEAR), *(round(n * factor) for factor in FACTORS)} - {n}
    )
    found = [
        resized(changed, written, s.max_prb) for changed in changes(s, written) if runs(s, changed)
    ]
    found += [dataclasses.replace(written, num_prb=m) for m in grants if 1 <= m <= s.max_prb]
    return [w for w in dict.fromkeys(found) if runs(s, w)]


def looked_at(
    emulator: Emulator, tasks: Sequence[Task], written: Sequence[Workflow], rounds: int = ROUNDS
) -> list[dict[Workflow, float]]:
    """For each task all workflows of a search that begins with the written one, with the R that the
    emulator expects of each, no less than NO_SERVICE and no more than 1.
    """
    found: list[dict[Workflow, float]] = [{} for _ in tasks]
    fresh = [[workflow] for workflow in written]
    stepped: list[set[Workflow]] = [set() for _ in tasks]
    for k in range(rounds + 1):
        R = np.clip(
            emulator([(task, w) for task, some in zip(tasks, fresh) for w in some])[0],
            NO_SERVICE,
            1.0,
        )
        values = iter(R.tolist())
        for seen, some in zip(found, fresh):
            seen.update(zip(some, values))
        if k == rounds:
            break
        for i, (task, seen) in enumerate(zip(tasks, found)):
            best = max(seen, key=seen.get)
            fresh[i] = (
                [] if best in stepped[i] else [w for w in neighbours(task, best) if w not in seen]
            )
            stepped[i].add(best)
        if not any(fresh):
            break
    return found


def options(
    own: Sequence[int], texts: Sequence[Sequence[int]], worth: Sequence[float]
) -> list[Option]:
    """The tokens that lead from a response (own, its ids) to one of the texts, each with the best
    worth of these.

    A response's own token is among them as long as a text goes on with it.
    """
    # best worth of the texts that share the first t tokens and no more; of those that part by a
    # token
    through, parting = [0.0] * (len(own) + 1), {}
    for ids, value in zip(texts, worth):
        same = next(
            (t for t, (x, y) in enumerate(zip(own, ids)) if x != y), min(len(own), len(ids))
        )
        through[same] = max(through[same], value)
        if same < min(len(own), len(ids)) and value > parting.get((same, ids[same]), 0.0):
            parting[same, ids[same]] = value
    # what shares more tokens goes on with the earlier ones too
    own_worth = list(itertools.accumulate(reversed(through[1:]), max))[::-1]
    return [
        Option(t, token, value) for t, (token, value) in enumerate(zip(own, own_worth)) if value > 0
    ] + [Option(t, token, value) for (t, token), value in parting.items()]


def imagine(
    emulator: Emulator,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    responses: Sequence[np.ndarray],
    texts: Sequence[str],
    num_tokens: int,
    verdict: Verdict,
) -> Imagined:
    """The options of all responses, of a position the OPTIONS best. A response that cannot be read
    or run has none.

    Stats: how many workflows were valued, the share of R's variance over what the twin was asked
    about that the emulator explains, and what the best text that was found expects more than the
    one that was written ("imagined/...").
    """
    B = len(tasks)
    tokens_BxTxK, worth_BxTxK = (
        np.zeros((B, num_tokens, OPTIONS), np.int32),
        np.zeros((B, num_tokens, OPTIONS), np.float32),
    )
    written = {
        b: w
        for b, (task, text) in enumerate(zip(tasks, texts))
        if (w := read(text)[0]) and runs(task.scenario, w)
    }
    found = looked_at(emulator, [tasks[b] for b in written], list(written.values()))
    spelt_out = iter(
        tokenizer.encode_batch(
            [
                tasks[b].response(w, THINK in texts[b])
                for b, seen in zip(written, found)
                for w in seen
            ],
            special=False,
        )
    )
    for b, seen in zip(written, found):
        spelt = [[*next(spelt_out), tokenizer.eos_id] for _ in seen]
        slots: dict[int, int] = {}
        for t, token, worth in sorted(
            options(responses[b].tolist(), spelt, [R - NO_SERVICE for R in seen.values()]),
            key=lambda one: -one.worth,
        ):
            k = slots[t] = slots.get(t, -1) + 1
            if k < OPTIONS:
                tokens_BxTxK[b, t, k], worth_BxTxK[b, t, k] = token, worth
    stats = {"imagined/workflows": sum(map(len, found))}
    if written:
        said, best = np.array(
            [(seen[w], max(seen.values())) for w, seen in zip(written.values(), found)]
        ).T
        stats["imagined/gain"] = (best - said).mean()
        judged = [
            (verdict.reward_M[b], one) for b, one in zip(written, said) if b < len(verdict.reward_M)
        ]
        R, said = np.array(judged).T if judged else np.zeros((2, 1))
        stats["imagined/explained_variance"] = (
            1 - ((R - said) ** 2).mean() / R.var() if R.var() > 0 else np.nan
        )
    return Imagined(tokens_BxTxK, worth_BxTxK, stats)

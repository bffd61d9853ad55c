"""What a response's tokens might have been, and what each would be worth: the values that `advantage=expected` sums over.

An alternative is a workflow that differs from the written one in one field, its grant resized so that it carries as much beyond what is
asked as the written one does; or in its grant alone. Its text is what the world's own writer makes of it, so that it stands for the token
at which the two texts part, and whatever follows suits that token. An emulator says what R each may expect; no twin is asked. A token
that leads to none of these texts counts as no service, so a response's own tokens are worth keeping where there is nothing to choose.
"""

import dataclasses
import math
import os
from typing import NamedTuple, Sequence

import numpy as np

from rldtf_jax.judge import Imagined, Verdict
from rldtf_jax.reward import NO_SERVICE
from rldtf_jax.tokenizer import Tokenizer
from rldtf_jax.update import Alternatives
from twin import Workflow

from experiments.world.emulator import Emulator
from experiments.world.orchestration import describe_workflow, each_prb_mbps, read
from experiments.world.search import changes, runs
from experiments.world.tasks import Task

LEAST = 1e-3  # probability of an alternative's token, below which it is not valued
NEAR, FACTORS = range(-4, 9), (0.7, 0.8, 0.9, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0)  # other grants: PRB more, and times as many


class Option(NamedTuple):
    """A token that might stand at a position of a response, and one workflow that a text with it may come to."""

    row: int
    position: int
    token: int
    slot: int  # of the position's likely tokens; -1 for the one that stands there
    workflow: Workflow


def resized(workflow: Workflow, written: Workflow, max_prb: int) -> Workflow:
    """The workflow on the grant that carries at least what the written one does, as far as there are resource blocks."""
    carries = written.num_prb * each_prb_mbps(written) / each_prb_mbps(workflow)
    return dataclasses.replace(workflow, num_prb=max(1, min(max_prb, math.ceil(carries - 1e-9))))


def neighbours(task: Task, written: Workflow) -> list[Workflow]:
    """Every workflow that is one decision away and that the twin can run."""
    s, n = task.scenario, written.num_prb
    grants = sorted({*(n + more for more in NEAR), *(round(n * factor) for factor in FACTORS)} - {n})
    found = [resized(changed, written, s.max_prb) for changed in changes(s, written) if runs(s, changed)]
    found += [dataclasses.replace(written, num_prb=m) for m in grants if 1 <= m <= s.max_prb]
    return [w for w in dict.fromkeys(found) if runs(s, w)]


def options(tokenizer: Tokenizer, row: int, task: Task, ids: Sequence[int], text: str, likely_TxK: np.ndarray, p_TxK: np.ndarray
            ) -> list[Option]:
    """The tokens as they stand, behind a think part that is wrong those of the answer alone, and the likely ones that lead to another
    workflow; none for a response that cannot be run or whose answer is not as the world's own writer has it."""
    written, _ = read(text)
    if written is None or not runs(task.scenario, written):
        return []
    answer = describe_workflow(written, task.throughput_mbps)
    space = " " * (len(text) > len(answer))
    own = tokenizer.encode(space + answer, special=False)
    start = len(ids) - 1 - len(own)  # before the EOS
    if start < 0 or list(ids[start:-1]) != own:
        return []
    open_T = (p_TxK >= LEAST).any(-1)[start:]  # where something else is likely
    ends = np.cumsum([len(tokenizer.decode([token])) for token in own]) - len(space)
    found: list[Option] = []
    for workflow in neighbours(task, written):
        words = describe_workflow(workflow, task.throughput_mbps)
        parted = int(np.searchsorted(ends, len(os.path.commonprefix([answer, words])), side="right"))
        if not open_T[max(0, parted - 1):parted + 1].any():  # the token of that letter, or the one before it, which may join with it
            continue
        other = tokenizer.encode(space + words, special=False)
        t = next((t for t, (x, y) in enumerate(zip(own, other)) if x != y), None)
        if t is None:
            continue
        slot = np.flatnonzero(likely_TxK[start + t] == other[t])
        if len(slot) and p_TxK[start + t, slot[0]] >= LEAST:
            found.append(Option(row, start + t, other[t], int(slot[0]), workflow))
    right = text in (task.response(written, think) for think in (True, False))
    return [Option(row, t, int(ids[t]), -1, written) for t in range(0 if right else start, len(ids))] + found


def imagine(emulator: Emulator, tokenizer: Tokenizer, tasks: Sequence[Task], responses: Sequence[np.ndarray], texts: Sequence[str],
            alternatives: Alternatives, verdict: Verdict) -> Imagined:
    """The options of all responses with what the emulator expects of each; of several workflows behind one token the mean.

    Stats: how many workflows were valued, the share of R's variance over what ran that the emulator explains, and what a response may gain by
    better tokens in the policy's own proportions ("imagined/...").
    """
    likely_BxTxK, p_BxTxK = np.asarray(alternatives.likely_BxTxK), np.asarray(alternatives.p_BxTxK)
    found = [one for b, row in enumerate(zip(tasks, responses, texts, likely_BxTxK, p_BxTxK)) for one in options(tokenizer, b, *row)]
    valued = list(dict.fromkeys((one.row, one.workflow) for one in found))
    expected = dict(zip(valued, np.clip(emulator([(tasks[b], w) for b, w in valued])[0], NO_SERVICE, 1.0)))
    B, T, K = likely_BxTxK.shape
    tokens_BxTxK, worth_BxTxK, count = np.zeros((B, T, K + 1), np.int32), np.zeros((B, T, K + 1), np.float32), np.zeros((B, T, K + 1), int)
    for b, t, token, slot, workflow in found:
        tokens_BxTxK[b, t, slot], count[b, t, slot] = token, count[b, t, slot] + 1  # slot -1 is the last
        worth_BxTxK[b, t, slot] += expected[b, workflow] - NO_SERVICE
    worth_BxTxK /= np.maximum(count, 1)
    stats = {"imagined/workflows": len(valued),
             "imagined/gain": (p_BxTxK * np.maximum(worth_BxTxK[..., :-1] - worth_BxTxK[..., -1:], 0)).sum() / B}
    own = {one.row: expected[one.row, one.workflow] for one in found if one.slot == -1}
    if own:
        R, said = verdict.reward_M[list(own)], np.array(list(own.values()))
        stats["imagined/explained_variance"] = 1 - ((R - said) ** 2).mean() / R.var() if R.var() > 0 else np.nan
    return Imagined(tokens_BxTxK, worth_BxTxK, stats)

"""Adapting a small model over the air: which ranks its updates should have when the link leaves
time for so many bits (AirLLM's question, without its diffusion policy).

    python -m experiments.studies.airtime RUN [--tasks 100] [--json FILE]

A device has the model of phase 1, a server the run's model after RLDTF. What lies between them is
sent as low-rank factors of each matrix, 16 bits a number, vectors as they are. An airtime is a
number of bits by the throughput that the twin finds for the best mode of a link. Four ways to spend
it: the same rank for all, ranks in proportion to gradients, the singular directions with the most
energy a bit (the knapsack's greedy choice), and ranks grown by what is measured, which asks the
device's data and shows what a learnt choice could gain. What arrives is measured as the mean
log-probability that the server's own responses lose, in nats a token, and as fulfilment and R of
responses at temperature 1 by the twin.
"""

import dataclasses
import heapq
import json
import math
from typing import Any, Callable, Mapping, NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments.config import guarded, of_run, of_runs
from experiments.files import leave
from experiments.stages.run import Run, opened, respond
from experiments.statistics import with_interval
from experiments.world.search import modes, runs
from experiments.world.tasks import Task
from rldtf_jax import hf, sft
from rldtf_jax.hosts import say

BITS = 16  # of a number
AIRTIMES_MS = (20, 50, 100, 200, 500)
SNRS_DB = (0, 10, 20)
FIRST = 64  # tasks whose responses grow ranks; the others measure
Ranks = Mapping[str, int]


class Delta(NamedTuple):
    """Of a matrix (I, O), by its singular directions: left_IxK * strength_K @ right_KxO."""

    left: np.ndarray
    strength: np.ndarray
    right: np.ndarray

    @property
    def bits(self) -> int:
        """Of one rank."""
        return BITS * (self.left.shape[0] + self.right.shape[1])

    def at(self, rank: int) -> np.ndarray:
        return (self.left[:, :rank] * self.strength[:rank]) @ self.right[:rank]


def matrices(params: Any) -> dict[str, np.ndarray]:
    """Every (I, O) matrix by its path; of a stack of layers each by its number."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, W = jax.tree_util.keystr(path), np.asarray(leaf, np.float32)
        if W.ndim == 3:
            found |= {f"{name}[{layer}]": one for layer, one in enumerate(W)}
        elif W.ndim == 2 and min(W.shape) > 1 and "norm" not in name and "bias" not in name:
            found[name] = W
    return found


def deltas(device: Any, server: Any) -> dict[str, Delta]:
    """What the server's matrices are more than the device's."""
    before = matrices(device)
    return {
        name: Delta(*np.linalg.svd(W - before[name], full_matrices=False))
        for name, W in matrices(server).items()
    }


def bits(some: Mapping[str, Delta], ranks: Ranks) -> int:
    return sum(some[name].bits * rank for name, rank in ranks.items())


def sent(device: Any, server: Any, some: Mapping[str, Delta], ranks: Ranks) -> Any:
    """The device's parameters with what has arrived: factors of these ranks, vectors whole."""

    def leaf(path, old, new):
        name = jax.tree_util.keystr(path)
        if name in some:
            return old + some[name].at(ranks.get(name, 0)).astype(old.dtype)
        if f"{name}[0]" in some:
            each = [
                some[f"{name}[{layer}]"].at(ranks.get(f"{name}[{layer}]", 0))
                for layer in range(len(old))
            ]
            return old + np.stack(each).astype(old.dtype)
        return new

    return jax.tree_util.tree_map_with_path(leaf, device, server)


def _proportional(some: Mapping[str, Delta], share: Mapping[str, float], budget: int) -> Ranks:
    """The largest ranks in proportion to shares that fit."""

    def at(scale: float) -> Ranks:
        return {
            name: min(len(one.strength), int(scale * share[name])) for name, one in some.items()
        }

    # ranks change where scale * share is whole
    low, high = 0.0, 1.0
    while bits(some, at(high)) <= budget and any(
        at(high)[name] < len(one.strength) for name, one in some.items() if share[name] > 0
    ):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if bits(some, at(middle)) <= budget else (low, middle)
    return at(high) if bits(some, at(high)) <= budget else at(low)


def fixed(some: Mapping[str, Delta], budget: int) -> Ranks:
    """The same rank for all, as far as a matrix has one."""
    return _proportional(some, dict.fromkeys(some, 1.0), budget)


def by_gradient(some: Mapping[str, Delta], norms: Mapping[str, float], budget: int) -> Ranks:
    """Ranks in proportion to the norms of the loss's gradients at the device's weights."""
    return _proportional(some, norms, budget)


def by_energy(some: Mapping[str, Delta], budget: int) -> Ranks:
    """Singular directions in the order of their energy a bit, as long as the next one fits: the
    greedy choice of the knapsack, exact but for the last direction.
    """
    order = sorted(
        (
            (-(float(strength) ** 2) / one.bits, name)
            for name, one in some.items()
            for strength in one.strength
        )
    )
    ranks, left = dict.fromkeys(some, 0), budget
    for _, name in order:
        left -= some[name].bits
        if left < 0:
            break
        ranks[name] += 1
    return ranks


def full(some: Mapping[str, Delta]) -> dict[str, int]:
    """All ranks there are."""
    return {name: len(one.strength) for name, one in some.items()}


def by_measure(
    some: Mapping[str, Delta], loss: Callable[[Ranks], float], budget: int
) -> list[Ranks]:
    """Ranks that grow to the budget, one step after the other: a matrix's rank doubles, that of the
    largest measured gain a bit. Gains that were measured earlier are measured anew only where they
    would be next (lazy greedy).
    """
    ranks: dict[str, int] = dict.fromkeys(some, 0)
    now, steps, number = loss(ranks), [dict(ranks)], 0

    def grown(name: str) -> dict[str, int]:
        more = min(len(some[name].strength), max(1, 2 * ranks[name]))
        return ranks | {name: more}

    def measure(name: str) -> tuple[float, str, int, float]:
        """(gain a bit, least first; name; after how many steps it was measured; the loss)."""
        more = bits(some, grown(name)) - bits(some, ranks)
        then = loss(grown(name)) if more else now
        return (then - now) / more if more else math.inf, name, number, then

    queue = list(map(measure, some))
    heapq.heapify(queue)
    while queue:
        _, name, measured, then = heapq.heappop(queue)
        if bits(some, grown(name)) > budget or grown(name)[name] == ranks[name]:
            continue
        if measured == number:
            ranks, now, number = grown(name), then, number + 1
            steps.append(dict(ranks))
        heapq.heappush(queue, measure(name))
    return steps


def throughput(run: Run, task: Task) -> dict[int, float]:
    """{SNR in dB: Mbps of the mode that carries most on the task's link}, on its widest grant."""
    found = {}
    for snr in SNRS_DB:
        scenario = dataclasses.replace(task.scenario, snr_db=float(snr))
        there = dataclasses.replace(task, scenario=scenario, delay_ms=1e3)
        widest = [dataclasses.replace(w, num_prb=scenario.max_prb) for w in modes(there)]
        pairs = [(scenario, w) for w in dict.fromkeys(widest) if runs(scenario, w)]
        found[snr] = max(
            (one.throughput_mbps for one in run.twins("evaluate").evaluate(pairs)), default=0.0
        )
    return found


def measured(run: Run, count: int) -> dict[str, Any]:
    before, after = (hf.load(run.path(stage, "model")) for stage in ("instruct", "rldtf"))
    (graph, device), (_, server) = nnx.split(before), nnx.split(after)
    some, env = deltas(device, server), run.environment("test")
    asked = range(min(FIRST + count, len(env.tasks)))
    said = respond(run, after, env, asked, salt=11, temperature=1.0)
    rows = sft.Sequences.of(
        [(list(env.prompts[i]), np.asarray(ids).tolist()) for i, ids in zip(asked, said.tokens)]
    )
    length = run.config.rldtf.sample.max_new_tokens
    lost = jax.jit(lambda params, batch: sft.sft_loss(nnx.merge(graph, params), batch, length))
    batches = [
        jax.tree.map(lambda x: x[part], rows)  # noqa: B023
        for part in (slice(FIRST), slice(FIRST, None))
    ]
    least = [float(lost(server, batch)) for batch in batches]

    def loss(ranks: Ranks, which: int) -> float:
        arrived = sent(device, server, some, ranks)
        return float(lost(arrived, batches[which])) - least[which]

    gradient = jax.grad(lambda params: lost(params, batches[0]))(device)
    norms = {name: float(np.linalg.norm(G)) for name, G in matrices(gradient).items()}
    carried = throughput(run, env.tasks[0])
    budgets = {
        (snr, ms): int(mbps * 1e3 * ms) for snr, mbps in carried.items() for ms in AIRTIMES_MS
    }
    whole = bits(some, full(some))
    growth = by_measure(some, lambda ranks: loss(ranks, 0), min(whole, max(budgets.values())))
    say(f"{len(growth)} steps of measured growth")
    known: dict[tuple, dict[str, Any]] = {}  # budgets share choices

    def arrives(ranks: Ranks) -> dict[str, Any]:
        key = tuple(ranks.items())
        if key not in known:
            model = nnx.merge(graph, sent(device, server, some, ranks))
            verdict = respond(run, model, env, asked[FIRST:], salt=12, temperature=1.0).verdict
            known[key] = {
                "ranks": sum(ranks.values()),
                "bits": bits(some, ranks),
                "lost": loss(ranks, 1),
                "fulfilment": float(verdict.fulfilled_M.mean()),
                "reward": with_interval(verdict.reward_M),
            }
        return known[key]

    rows_ = []
    for (snr, ms), budget in budgets.items():
        choices = {
            "fixed": fixed(some, budget),
            "gradient": by_gradient(some, norms, budget),
            "energy": by_energy(some, budget),
            "measured": [ranks for ranks in growth if bits(some, ranks) <= budget][-1],
        }
        rows_.append(
            {"snr_db": snr, "airtime_ms": ms, "budget": budget}
            | {name: arrives(ranks) for name, ranks in choices.items()}
        )
        say(json.dumps(rows_[-1]))
    return {
        "mbps": carried,
        "matrices": len(some),
        "bits": {"whole": whole, "rank 1": bits(some, dict.fromkeys(some, 1))},
        "nothing": arrives(dict.fromkeys(some, 0)),
        "all": arrives(full(some)),
        "rows": rows_,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: what is lost, nats a token, and mean R, by link and airtime."""
    names = ("fixed", "gradient", "energy", "measured")
    lines = [
        f"{result['matrices']} matrices, {result['bits']['whole'] / 1e6:.2f} Mbit at full rank;"
        f" nothing sent: {result['nothing']['lost']:.4f} nats a token lost, R"
        f" {result['nothing']['reward'][0]:.3f}; all: R {result['all']['reward'][0]:.3f}",
        "",
        f"| SNR, Mbps | airtime | bits | {' | '.join(names)} |",
        "|---" * (3 + len(names)) + "|",
    ]
    for row in result["rows"]:
        cells = [f"{row[name]['lost']:.4f}, {row[name]['reward'][0]:.3f}" for name in names]
        lines.append(
            f"| {row['snr_db']} dB, {result['mbps'][row['snr_db']]:.1f} | {row['airtime_ms']} ms |"
            f" {row['budget'] / 1e6:.2f} M | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = of_runs(__doc__)
    parser.add_argument("run")
    parser.add_argument("--tasks", type=int, default=100)
    asked = parser.parse_args()
    with opened(of_run(asked.run), shared=True) as run:
        result = measured(run, asked.tasks)
    print(table(result))
    leave(result, asked.json)


if __name__ == "__main__":
    guarded(main)

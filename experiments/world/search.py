"""The oracle: the best workflow for a task that a search over the whole toolbox finds on the twin.

Two phases, rounds of one twin call for all tasks. First a shortlist: modes (subcarrier spacing,
modulation, code rate, layers) with the platform's strongest receiver, the most promising by Eq. 2's
limit and a guess of the chance that the link carries them. Then steps from the best so far: every
other choice of every single field, the grant resized for each. What a formula rules out (delay,
grant) is never tried.
"""

import dataclasses
import functools
import itertools
import math
import random
from typing import Iterator, NamedTuple, Sequence

import numpy as np

from experiments.world.orchestration import QAM
from experiments.world.tasks import Task, present, random_workflow
from rldtf_jax.reward import NO_SERVICE, RewardConfig, fulfilled, reward
from twin import QoS, Scenario, Twin, Workflow, WorkflowError, check
from twin.delay import delay_ms, throughput_mbps
from twin.spec import SUBCARRIERS_PER_PRB, slot_ms
from twin.toolbox import is_neural
from twin.transport import data_elements, transport_block_bits

ITERATIONS = (2, 4, 6, 8, 10, 14, 20)
# methods, the most powerful last; what runs on Sionna comes before what does the same natively
STRENGTH = {
    "estimator": ("ls-nearest", "ls", "lmmse"),
    "detector": ("deeprx-small", "deeprx", "kbest", "ep", "mrc", "zf", "lmmse"),
}
SLOW = ("deeprx-small", "deeprx", "kbest", "ep")  # detectors that run on Sionna
SLOW_TRIES = 4  # that a slow one counts as
MODE = (
    "scs_khz",
    "bits_per_symbol",
    "code_rate",
    "num_layers",
    "num_dmrs",
    "precoder",
    "num_transmissions",
)
STEPPED = (*MODE, "code", "decoder_iterations", "estimator", "detector", "combining")
SPENDS_BLOCKS = 0.3  # block errors up to which a grant is widened for them
# in AWGN, and under fading: none of the 2,300 witnesses that ship has less
LEAST_HEADROOM_DB, LEAST_FADING_DB = -1.0, 2.0
BUDGET = 32  # tries of a task
SIZED_TRIES = 50
FINALISTS = 5  # that are asked for on other noise


class Found(NamedTuple):
    """workflow: the best that meets all targets, or None; R: Eq. 2 on the search's noise; tries:
      workflows that the twin was asked for;
    met: all that met the targets with their R, best first.
    """

    workflow: Workflow | None
    R: float
    tries: int
    met: tuple[tuple[Workflow, float], ...] = ()


def offered(scenario: Scenario, field: str) -> tuple:
    """The values of a workflow's field that a platform offers a search."""
    if field == "num_layers":
        return tuple(range(1, min(scenario.num_tx_ant, scenario.num_rx_ant) + 1))
    if field == "decoder_iterations":
        return ITERATIONS
    if field == "precoder" and scenario.num_tx_ant == 1:
        return ("none",)
    return present(scenario.absent)[field]


def written(scenario: Scenario, field: str) -> list[str]:
    """The values of a workflow's field that a platform offers, as the orchestration language writes
    them.
    """
    if field == "num_prb":
        return [str(n) for n in range(1, scenario.max_prb + 1)]
    # aiming one antenna is no error
    values = present(scenario.absent)[field] if field == "precoder" else offered(scenario, field)
    if field == "bits_per_symbol":
        return [QAM[bits] for bits in values]
    if field == "code_rate":
        return [f"{rate:.2f}" for rate in values]
    if field == "code":
        return ["LDPC" if code == "ldpc" else code for code in values]
    return [str(value) for value in values]


def combining(scenario: Scenario, num_transmissions: int) -> str:
    """The platform's first way of combining; of one transmission, what a text that says nothing of
    it reads as.
    """
    return offered(scenario, "combining")[0] if num_transmissions > 1 else "ir"


def slow(workflow: Workflow) -> bool:
    return workflow.detector in SLOW and (workflow.num_layers > 1 or is_neural(workflow.detector))


def granted(
    task: Task, workflow: Workflow, bler: float = 0.0, transmissions: float = 1.0
) -> Workflow | None:
    """The workflow with the fewest PRB that carry the task's throughput at this BLER and mean
    number of transmissions; None beyond the grant.
    """
    w = workflow
    if bler >= 1:
        return None
    needed = (
        task.throughput_mbps * slot_ms(w.scs_khz) * 1e3 * transmissions / (1 - bler) * (1 - 1e-12)
    )
    per_prb = data_elements(w) // w.num_prb
    if w.code == "polar":
        return next(
            (
                one
                for n in range(1, task.scenario.max_prb + 1)
                if throughput_mbps(one := dataclasses.replace(w, num_prb=n), bler) / transmissions
                >= task.throughput_mbps
                and runs(task.scenario, one)
            ),
            None,
        )
    # sizes are rounded
    first = max(1, int(0.9 * needed / (per_prb * w.bits_per_symbol * w.num_layers * w.code_rate)))
    for num_prb in range(first, task.scenario.max_prb + 1):
        if (
            transport_block_bits(num_prb, per_prb, w.bits_per_symbol, w.num_layers, w.code_rate)
            >= needed
        ):
            return dataclasses.replace(w, num_prb=num_prb)
    return None


def sized_workflow(rng: random.Random, task: Task) -> Workflow:
    """A random workflow with the fewest PRB that carry the task's throughput if no block fails; any
    random one where SIZED_TRIES cannot.
    """
    for _ in range(SIZED_TRIES):
        workflow = random_workflow(rng, task.scenario)
        if sized := granted(task, workflow):
            return sized
    return workflow


@functools.lru_cache(maxsize=1 << 16)
def runs(scenario: Scenario, workflow: Workflow) -> bool:
    try:
        check(scenario, workflow)
    except WorkflowError:
        return False
    return True


def array_gain(scenario: Scenario, workflow: Workflow) -> float:
    """What the antennas add to the SNR at best: receive combining and, where a precoder aims,
    transmit beamforming.
    """
    return scenario.num_rx_ant * (scenario.num_tx_ant if workflow.precoder != "none" else 1)


def granted_snr_db(scenario: Scenario, workflow: Workflow) -> float:
    """SNR of a layer's resource element with the array's gain and a limited power."""
    s, w = scenario, workflow
    power_db = 0.0
    if s.full_power_mhz:
        power_db = -10 * math.log10(
            max(1.0, w.num_prb * SUBCARRIERS_PER_PRB * w.scs_khz * 1e-3 / s.full_power_mhz)
        )
    return s.snr_db + power_db + 10 * math.log10(array_gain(s, w) / w.num_layers)


def possible(task: Task, workflow: Workflow | None) -> bool:
    """Whether the formulas leave a chance: it runs, its first transmission is in time, Shannon's
    bound allows its rate.
    """
    if (
        workflow is None
        or not runs(task.scenario, workflow)
        or delay_ms(task.scenario, workflow) > task.delay_ms
    ):
        return False
    retransmitted = workflow.num_transmissions  # combining adds the powers of all transmissions
    snr = 10 ** (granted_snr_db(task.scenario, workflow) / 10) * retransmitted * 2
    return workflow.bits_per_symbol * workflow.code_rate <= math.log2(1 + snr) * retransmitted


@functools.lru_cache(maxsize=1 << 16)  # a search comes back to a workflow's limit in every round
def limit(task: Task, workflow: Workflow, config: RewardConfig) -> float:
    """Eq. 2 without a block error and with the error rate just met: what the workflow cannot
    exceed.
    """
    return float(limits(task, [workflow], config)[0])


def limits(task: Task, workflows: Sequence[Workflow], config: RewardConfig) -> np.ndarray:
    """`limit` of each."""
    best = np.array(
        [(delay_ms(task.scenario, w), throughput_mbps(w, 0.0), task.ber) for w in workflows]
    ).reshape(-1, 3)
    R = reward(best, np.broadcast_to(np.array(task.required), best.shape), config)
    return np.where(best[:, 1] >= task.throughput_mbps, R, NO_SERVICE)


def headroom_db(task: Task, workflow: Workflow) -> float:
    """How far the SNR lies above what the mode takes in AWGN, with what combining adds; a mode
    takes about 2 dB more than Shannon's bound.
    """
    w = workflow
    takes_db = (
        10 * math.log10(2 ** (w.bits_per_symbol * w.code_rate) - 1) + 2.0 + 0.25 * w.bits_per_symbol
    )
    return granted_snr_db(task.scenario, w) - takes_db + 10 * math.log10(w.num_transmissions)


def hopeless(task: Task, workflow: Workflow) -> bool:
    """Whether its mode takes more than the link has at its best: no try is spent on it."""
    return headroom_db(task, workflow) < (
        LEAST_HEADROOM_DB if task.scenario.channel == "awgn" else LEAST_FADING_DB
    )


@functools.lru_cache(maxsize=8)  # a few questions in a row are about one task
def modes(task: Task) -> tuple[Workflow, ...]:
    """Every mode that the formulas leave a chance, with the platform's strongest classical receiver
    and, for one layer, its strongest neural one, the grant that the throughput takes, and as many
    iterations as are in time.
    """
    s, found, grants = task.scenario, [], {}
    estimator, detectors = (
        [v for v in STRENGTH[f] if v in offered(s, f)] for f in ("estimator", "detector")
    )
    receivers = [
        one[-1]
        for one in (
            [d for d in detectors if is_neural(d)],
            [d for d in detectors if not is_neural(d)],
        )
        if one
    ]
    code = offered(s, "code")[0]
    for values in itertools.product(*(offered(s, field) for field in MODE)):
        chosen = dict(zip(MODE, values))
        if chosen["precoder"] != "none" and chosen["num_layers"] >= s.num_tx_ant:
            continue
        fixed = dict(
            code=code,
            estimator=estimator[-1],
            combining=combining(s, chosen["num_transmissions"]),
            **chosen,
        )
        carrying = values[: MODE.index("precoder")]  # the grant depends on nothing behind it
        if carrying not in grants:
            workflow = granted(task, Workflow(num_prb=1, decoder_iterations=10, **fixed))
            grants[carrying] = workflow and workflow.num_prb
        if grants[carrying] is None:
            continue
        for detector in (
            receivers if chosen["num_layers"] == 1 else [d for d in receivers if not is_neural(d)]
        ):
            for iterations in (10, 4, 2):
                w = Workflow(
                    num_prb=grants[carrying],
                    decoder_iterations=iterations,
                    detector=detector,
                    **fixed,
                )
                if possible(task, w):
                    found.append(w)
                    break
    return tuple(found)


def promises(task: Task, workflows: Sequence[Workflow], config: RewardConfig) -> np.ndarray:
    """What each mode might earn: Eq. 2's limit times a guess of the chance that the link carries
    it.
    """
    spread_db = 0.0 if task.scenario.channel == "awgn" else 5.0 - math.log10(task.ber)
    short_db = np.array(
        [spread_db - 4.5 * (w.num_transmissions > 1) - headroom_db(task, w) for w in workflows]
    )
    return limits(task, workflows, config) / (1 + np.exp(short_db / 2))


def shortlist(task: Task, config: RewardConfig) -> list[Workflow]:
    """The task's modes, the most promising first."""
    found = modes(task)
    return [found[i] for i in np.argsort(-promises(task, found, config), kind="stable")]


def changes(scenario: Scenario, workflow: Workflow) -> Iterator[Workflow]:
    """The workflow with every other value of every single field but the grant; what the twin cannot
    run is among them.
    """
    for field in STEPPED:
        for value in offered(scenario, field):
            if value != getattr(workflow, field) and (
                field != "combining" or workflow.num_transmissions > 1
            ):
                changed = {field: value}
                if field == "num_transmissions" and 1 in (value, workflow.num_transmissions):
                    changed["combining"] = combining(scenario, value)
                yield dataclasses.replace(workflow, **changed)


def steps(task: Task, workflow: Workflow) -> list[Workflow]:
    """Every other value of every single field with the grant resized, and wider grants; what is
    slow last.
    """
    found = [granted(task, changed) for changed in changes(task.scenario, workflow)]
    for num_prb in (workflow.num_prb + 1, workflow.num_prb + 2, round(workflow.num_prb * 1.3) + 1):
        if num_prb <= task.scenario.max_prb:
            found.append(dataclasses.replace(workflow, num_prb=num_prb))
    return sorted((w for w in found if possible(task, w)), key=slow)


def judged(
    pairs: Sequence[tuple[Task, Workflow]], twin: Twin, config: RewardConfig, progress=None
) -> list[tuple[float, bool, QoS]]:
    """(R, fulfilled, QoS) of every pair."""
    if not pairs:
        return []
    distinct = list(dict.fromkeys((task.scenario, workflow) for task, workflow in pairs))
    answers = dict(zip(distinct, twin.evaluate(distinct, progress=progress)))
    measured = [answers[task.scenario, workflow] for task, workflow in pairs]
    q = np.array([task.measured(qos) for (task, _), qos in zip(pairs, measured)])
    required = np.array([task.required for task, _ in pairs])
    return list(
        zip(reward(q, required, config).tolist(), fulfilled(q, required).tolist(), measured)
    )


def search(
    tasks: Sequence[Task],
    twin: Twin,
    config: RewardConfig,
    budget: int = BUDGET,
    per_round: int = 6,
) -> list[Found]:
    """For each task the best of at most `budget` tries, of which a slow one counts SLOW_TRIES."""
    tried: list[dict[Workflow, tuple[bool, float]]] = [{} for _ in tasks]
    frontier = [
        [w for w in shortlist(task, config)[: 4 * per_round] if not hopeless(task, w)]
        for task in tasks
    ]
    stepped: list[set[Workflow]] = [set() for _ in tasks]
    spent = [0] * len(tasks)

    def best(i: int) -> Workflow | None:
        return max(tried[i], key=tried[i].get, default=None)

    def worth_it(i: int, w: Workflow) -> bool:
        met, R = tried[i].get(best(i), (False, NO_SERVICE))
        return w not in tried[i] and (not met or limit(tasks[i], w, config) > R)

    while True:
        batch = []
        for i, task in enumerate(tasks):
            fresh = [w for w in frontier[i] if worth_it(i, w)]
            if not fresh and tried[i] and best(i) not in stepped[i]:
                stepped[i].add(best(i))
                fresh = [
                    w
                    for w in dict.fromkeys(steps(task, best(i)))
                    if worth_it(i, w) and not hopeless(task, w)
                ]
                fresh.sort(key=lambda w: (slow(w), -limit(task, w, config)))  # noqa: B023
            for w in fresh[:per_round]:
                if spent[i] < budget:
                    batch.append((i, w))
                    spent[i] += SLOW_TRIES if slow(w) else 1
            frontier[i] = fresh[per_round:]
        if not batch:
            break
        for (i, w), (R, good, qos) in zip(
            batch, judged([(tasks[i], w) for i, w in batch], twin, config)
        ):
            tried[i][w] = good, R
            if not good and 0 < qos.bler < SPENDS_BLOCKS:
                wider = granted(tasks[i], w, qos.bler, qos.mean_transmissions)
                frontier[i][:0] = [wider] if wider and wider != w else []
    return list(map(_found, tried))


def _found(tried: dict[Workflow, tuple[bool, float]]) -> Found:
    met = sorted(((w, R) for w, (good, R) in tried.items() if good), key=lambda pair: -pair[1])
    return Found(
        met[0][0] if met else None, met[0][1] if met else NO_SERVICE, len(tried), tuple(met)
    )


def confirmed(
    tasks: Sequence[Task], found: Sequence[Found], twins: Sequence[Twin], config: RewardConfig
) -> list[Found]:
    """What was found, with the best of each task's FINALISTS by its mean R over all noises, of
    those that meet the targets on every twin's noise too; without a workflow where none does.
    """
    left = [dict(one.met[:FINALISTS]) for one in found]  # workflow: sum of R
    for twin in twins:
        pairs = [(i, w) for i, sums in enumerate(left) for w in sums]
        for (i, w), (R, good, _) in zip(
            pairs, judged([(tasks[i], w) for i, w in pairs], twin, config)
        ):
            left[i] = (
                {**left[i], w: left[i][w] + R}
                if good
                else {k: v for k, v in left[i].items() if k != w}
            )
    best = [max(sums, key=sums.get, default=None) for sums in left]
    return [
        one._replace(workflow=w, R=NO_SERVICE if w is None else sums[w] / (1 + len(twins)))
        for one, sums, w in zip(found, left, best)
    ]

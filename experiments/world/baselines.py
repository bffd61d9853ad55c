"""What a policy is compared with: an oracle (search on the same twin) and a rule (link adaptation from a BLER table).

The search also finds each task's witness, the workflow that shows it feasible.
"""

import dataclasses
import functools
import itertools
import math
from typing import Iterator, Sequence

import numpy as np

from rldtf_jax.reward import NO_SERVICE, RewardConfig
from twin import QoS, Scenario, Twin, Workflow, check
from twin.delay import delay_ms, throughput_mbps
from twin.spec import slot_ms
from twin.toolbox import is_neural
from twin.transport import data_elements, transport_block_bits

from experiments.world.environment import TwinBar, score
from experiments.world.tasks import Task

QAM_BITS = (2, 4, 6, 8)
CODE_RATES = (0.2, 0.33, 0.5, 0.67, 0.83)
ITERATIONS = (4, 8, 14, 20)
SCS_KHZ = (15, 30, 60)
PRECODERS = ("none", "svd", "deeptx")


@functools.lru_cache(maxsize=256)
def search_space(absent: tuple[str, ...], max_layers: int, iterations: tuple[int, ...],
                 num_tx_ant: int = 1) -> tuple[Workflow, ...]:
    """Every workflow of the grid, with a grant of one PRB, for platforms without `absent`; the sturdiest first.

    Neural receivers for one layer, precoders where there are more antennas than layers.
    """
    def present(tool, values):
        return [value for value in values if f"{tool}.{value}" not in absent]

    estimators, detectors = present("estimate", ("ls", "lmmse")), present("detect", ("zf", "lmmse"))
    receivers = list(itertools.product(estimators, detectors))
    alone = [(estimator, detector) for estimator, detector in receivers
             if detector == detectors[-1]]  # one layer: every linear detector is maximum-ratio combining
    alone += itertools.product(estimators[:1], present("detect", ("deeprx-small", "deeprx")))  # no estimator is used
    precoders = present("precode", PRECODERS)
    grid = itertools.product(
        present("grid", SCS_KHZ), present("modulate", QAM_BITS), CODE_RATES, iterations, range(1, max_layers + 1), (1, 2))
    return tuple(sorted((
        Workflow(1, scs, "ldpc", rate, iteration, bits, layers, dmrs, estimator, detector, precoder)
        for scs, bits, rate, iteration, layers, dmrs in grid
        for estimator, detector in (receivers if layers > 1 else alone)
        for precoder in (precoders if num_tx_ant > layers else PRECODERS[:1])
    ), key=sturdiness))


def granted(task: Task, workflow: Workflow, bler: float = 0.0) -> Workflow | None:
    """The workflow with the fewest PRB that carry the task's throughput at this BLER; None beyond the grant."""
    w = workflow
    if bler >= 1:
        return None
    needed = task.throughput_mbps * slot_ms(w.scs_khz) * 1e3 / (1 - bler) * (1 - 1e-12)
    per_prb = data_elements(w) // w.num_prb
    first = max(1, int(0.9 * needed / (per_prb * w.bits_per_symbol * w.num_layers * w.code_rate)))  # sizes are rounded
    for num_prb in range(first, task.scenario.max_prb + 1):
        if transport_block_bits(num_prb, per_prb, w.bits_per_symbol, w.num_layers, w.code_rate) >= needed:
            return dataclasses.replace(w, num_prb=num_prb)
    return None


def prospects(task: Task, iterations: tuple[int, ...]) -> Iterator[Workflow]:
    """Workflows with the grant that the throughput takes where delay, grant and Shannon's bound leave a chance; the
    sturdiest first."""
    s = task.scenario
    for workflow in search_space(s.absent, min(s.num_tx_ant, s.num_rx_ant, 2), iterations, s.num_tx_ant):
        snr = 10 ** (s.snr_db / 10) * array_gain(s, workflow) / workflow.num_layers
        if workflow.bits_per_symbol * workflow.code_rate <= math.log2(1 + snr):
            workflow = granted(task, workflow)
            if workflow is not None and delay_ms(s, workflow) <= task.delay_ms:
                yield workflow


def array_gain(scenario: Scenario, workflow: Workflow) -> float:
    """What the antennas add to the SNR at best: receive combining and, where a precoder aims, transmit beamforming."""
    return scenario.num_rx_ant * (scenario.num_tx_ant if workflow.precoder != "none" else 1)


def resized(tasks: Sequence[Task], workflows: Sequence[Workflow], twin: Twin) -> list[tuple[Workflow, QoS]]:
    """Every workflow, with more PRB where its block errors leave too little of the throughput, and what it delivers."""
    measured = twin.evaluate([(task.scenario, w) for task, w in zip(tasks, workflows)], progress=TwinBar())
    wider = [granted(task, w, qos.block_errors / qos.num_blocks) or w for task, w, qos in zip(tasks, workflows, measured)]
    return list(zip(wider, twin.evaluate([(task.scenario, w) for task, w in zip(tasks, wider)], progress=TwinBar())))


def witnesses(tasks: Sequence[Task], twin: Twin, tries: int = 3) -> list[Workflow | None]:
    """A workflow that the twin shows to fulfil each task, of its sturdiest prospects; None where none was found."""
    queues = [list(itertools.islice(prospects(task, (10,)), tries)) for task in tasks]
    found: list[Workflow | None] = [None] * len(tasks)
    for attempt in range(tries):
        open_ones = [i for i, queue in enumerate(queues) if found[i] is None and attempt < len(queue)]
        tried = resized([tasks[i] for i in open_ones], [queues[i][attempt] for i in open_ones], twin)
        for i, (workflow, qos) in zip(open_ones, tried):
            if meets(tasks[i], qos):
                found[i] = workflow
    return found


def oracle(tasks: Sequence[Task], twin: Twin, config: RewardConfig, *, per_round: int = 4,
           budget: int = 24) -> list[Workflow | None]:
    """The best workflow by search on the same twin, never worse than the task's witness; None where neither is there.

    Branch and bound: a prospect's limit is Eq. 2 without a block error and with the BER just met. Prospects are tried by
    limit x a guess of the chance that the link carries them, one twin call a round for all tasks; those go that ask no
    less of the link than one that failed, or whose limit the best has reached. A neural receiver that failed by the delay of
    its grant alone rules out nothing: a higher mode takes fewer PRB. `budget` bounds the tries of a task.
    """
    table = bler_thresholds(twin)
    best = [task.witness for task in tasks]
    with_witness = [i for i, task in enumerate(tasks) if task.witness]
    best_R = [NO_SERVICE] * len(tasks)
    for i, qos in zip(with_witness, twin.evaluate([(tasks[i].scenario, tasks[i].witness) for i in with_witness], progress=TwinBar())):
        best_R[i] = _worth(tasks[i], qos, config)
    queues = [_ranked(task, table, config) for task in tasks]
    for _ in range(0, budget, per_round):
        queues = [[p for p in queue if p[1] > R] for queue, R in zip(queues, best_R)]
        batch = [(i, workflow) for i, queue in enumerate(queues) for _, _, workflow in queue[:per_round]]
        if not batch:
            break
        queues = [queue[per_round:] for queue in queues]
        tried = resized([tasks[i] for i, _ in batch], [workflow for _, workflow in batch], twin)
        for (i, workflow), (final, qos) in zip(batch, tried):
            R = _worth(tasks[i], qos, config)
            if R <= 0 and (tasks[i].measured(qos)[2] > tasks[i].ber or not is_neural(workflow.detector)):
                queues[i] = [p for p in queues[i] if not no_less(workflow, p[2])]
            elif R > best_R[i]:
                best[i], best_R[i] = final, R
    return best


def _ranked(task: Task, table: dict, config: RewardConfig) -> list[tuple[float, float, Workflow]]:
    """(limit x chance, limit, workflow) of a task's prospects, the most promising first."""
    s, kept = task.scenario, list(prospects(task, ITERATIONS))
    if not kept:
        return []
    limits = _rewards(np.array([(delay_ms(s, w), throughput_mbps(w, 0.0), task.ber) for w in kept]), task, config)
    margin_db = np.array([s.snr_db + 10 * math.log10(array_gain(s, w)) - 10 * math.log10(w.num_layers ** 2)
                          - table[w.bits_per_symbol, w.code_rate] for w in kept])
    chance = 1 / (1 + np.exp(-(margin_db - (0 if s.channel == "awgn" else 4)) / 2))
    order = np.argsort(-limits * chance, kind="stable")
    return [(limits[i] * chance[i], limits[i], kept[i]) for i in order]


def worth(task: Task, twin: Twin, workflow: Workflow, config: RewardConfig) -> float:
    """Eq. 2 of one workflow; NO_SERVICE where it violates a target."""
    return _worth(task, twin.evaluate([(task.scenario, workflow)])[0], config)


def _worth(task: Task, qos: QoS, config: RewardConfig) -> float:
    return float(_rewards(np.array([task.measured(qos)]), task, config)[0]) if meets(task, qos) else NO_SERVICE


def _rewards(measured: np.ndarray, task: Task, config: RewardConfig) -> np.ndarray:
    return score(measured, np.broadcast_to(task.required, measured.shape), config)[0]


def sturdiness(workflow: Workflow) -> tuple:
    """Sorts the most robust first: fewest bits a symbol and layer, then best aimed, most pilots, filtering and iterations."""
    return (workflow.bits_per_symbol * workflow.code_rate * workflow.num_layers, -PRECODERS.index(workflow.precoder),
            -workflow.num_dmrs, workflow.estimator != "lmmse" and not is_neural(workflow.detector),
            -workflow.decoder_iterations, workflow.scs_khz)


def no_less(failed: Workflow, other: Workflow) -> bool:
    """`other` asks no less of the link than `failed` did: it would fail as well."""
    return (
        (failed.scs_khz, failed.num_layers, failed.detector, failed.precoder)
        == (other.scs_khz, other.num_layers, other.detector, other.precoder)
        and failed.bits_per_symbol <= other.bits_per_symbol and failed.code_rate <= other.code_rate
        and failed.decoder_iterations >= other.decoder_iterations and failed.num_dmrs >= other.num_dmrs
        and (failed.estimator == "lmmse" or other.estimator == "ls" or is_neural(other.detector))
    )


def meets(task: Task, qos: QoS) -> bool:
    delay_ms, throughput, errors = task.measured(qos)
    return delay_ms <= task.delay_ms and throughput >= task.throughput_mbps and errors <= task.ber


def bler_thresholds(twin: Twin, target: float = 0.1, snrs_db: Sequence[int] = range(-8, 31)) -> dict[tuple[int, float], float]:
    """The table of classical link adaptation: lowest Es/N0 in dB at which (bits, rate) has BLER <= target in AWGN."""
    awgn = [Scenario(channel="awgn", snr_db=float(snr), num_tx_ant=1, num_rx_ant=1) for snr in snrs_db]
    modes = list(itertools.product(QAM_BITS, CODE_RATES))
    measured = iter(twin.evaluate([
        (scenario, Workflow(bits_per_symbol=bits, code_rate=rate, decoder_iterations=10, estimator="lmmse"))
        for bits, rate in modes for scenario in awgn], progress=TwinBar()))
    table = {}
    for mode in modes:
        blers = [next(measured).bler for _ in awgn]
        table[mode] = next((float(snr) for snr, bler in zip(snrs_db, blers) if bler <= target), math.inf)
    return table


def rule(task: Task, table: dict[tuple[int, float], float], fading_margin_db: float) -> Workflow:
    """Link adaptation as practised: the highest mode whose AWGN threshold the SNR with array gain meets after a margin for
    fading, one layer, two DM-RS symbols where the channel moves, and as many PRB as the throughput takes."""
    s = task.scenario
    margin = 0.0 if s.channel == "awgn" else fading_margin_db
    snr_db = s.snr_db + 10 * math.log10(s.num_rx_ant) - margin
    modes = [mode for mode in table if f"modulate.{mode[0]}" not in s.absent]
    usable = [mode for mode in modes if table[mode] <= snr_db] or [min(modes, key=lambda m: m[0] * m[1])]
    bits, rate = max(usable, key=lambda mode: mode[0] * mode[1])
    workflow = Workflow(
        num_prb=1, scs_khz=30 if task.delay_ms > 1.0 else 60, code_rate=rate, decoder_iterations=10,
        bits_per_symbol=bits, num_layers=1, num_dmrs=2 if s.speed_mps > 5 else 1,
        estimator="ls" if "estimate.lmmse" in s.absent else "lmmse",
        detector="zf" if "detect.lmmse" in s.absent else "lmmse")
    workflow = granted(task, workflow) or dataclasses.replace(workflow, num_prb=s.max_prb)
    check(s, workflow)
    return workflow


def tuned_rule(validation: Sequence[Task], twin: Twin, margins_db: Sequence[float] = range(0, 16, 2)):
    """The rule with the BLER target of its table and the fading margin that fulfil most validation tasks: task -> workflow."""
    def fulfilment(table, margin_db):
        pairs = [(task.scenario, rule(task, table, margin_db)) for task in validation]
        return sum(meets(task, qos) for task, qos in zip(validation, twin.evaluate(pairs)))

    options = [(table, margin) for table in (bler_thresholds(twin, 0.1), bler_thresholds(twin, 0.01))
               for margin in margins_db]
    table, margin_db = max(options, key=lambda option: fulfilment(*option))
    return functools.partial(rule, table=table, fading_margin_db=margin_db)

"""The digital twin: batches of (scenario, workflow) in, QoS out, each distinct simulation run
once.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from .cache import Cache, digest
from .delay import delay_ms, harq_round_trip_ms, throughput_mbps
from .physical import Counts, Point, Settings, physical
from .pool import Pool, TwinError
from .spec import QoS, Scenario, Workflow, WorkflowError, check
from .statistics import bit_limits, error_rates, rate_limits

MEMORY_ROWS = 1 << 18
FIRST_LOOK = 64  # blocks of a sequential test's first look
NATIVE_PAIRS = tuple(
    (
        Scenario(channel=channel, num_tx_ant=2, num_rx_ant=2),
        Workflow(num_prb=2, bits_per_symbol=4, num_layers=layers, estimator=estimator),
    )
    for channel, layers, estimator in (
        ("tdl-a", 1, "ls"),
        ("cdl-c", 2, "lmmse"),
        ("rayleigh", 2, "lmmse"),
    )
)


@dataclass
class Stats:
    """What a Twin has done so far."""

    requests: int = 0  # pairs asked for
    distinct: int = 0  # distinct simulations among them, call by call
    memory_hits: int = 0  # distinct simulations found in this process
    disk_hits: int = 0  # found in the cache file
    simulated: int = 0
    blocks: int = 0  # transport blocks simulated
    seconds: float = 0.0  # wall clock inside evaluate
    worker_seconds: float = 0.0  # sum over workers, simulating


@dataclass(frozen=True)
class Target:
    """What a service asks of a link.

    delay_ms: within which a share `reliability` of the delivered blocks is there
    ber: bit error rate; bler: transport block error rate, which is what a service's packet error
      rate is compared with
    """

    delay_ms: float = math.inf
    throughput_mbps: float = 0.0
    ber: float = 1.0
    bler: float = 1.0
    reliability: float = 0.99


@dataclass(frozen=True)
class Decision:
    """met: True, False, or None (undecided) at the risk that `Twin.decide` was given; qos: over all
    blocks that it took.
    """

    met: bool | None
    qos: QoS


class Twin:
    """A link-level digital twin on Sionna.

    workers: number of worker processes, one thread each; started at the first result that is not
      cached, or by `start`
    cache: SQLite file that keeps results over runs and between processes; None keeps them in memory
      only
    seed: of everything random; the same (scenario, workflow, seed, settings) always gives the same
      QoS
    pool: what runs the simulations: a callable of (workers, settings, seed) whose result has the
      methods of twin.pool.Pool
    settings: fields of `twin.Settings`, such as max_blocks=512 or backend="sionna"
    """

    def __init__(
        self,
        workers: int = 2,
        cache: str | os.PathLike | None = None,
        seed: int = 0,
        pool=Pool,
        **settings,
    ):
        if workers < 1:
            raise ValueError(f"Twin.workers: expected at least 1, got {workers!r}")
        if unknown := set(settings) - {f.name for f in fields(Settings)}:
            raise ValueError(f"Twin: unknown settings {', '.join(sorted(unknown))}")
        self.seed, self.settings = int(seed), Settings(**settings)
        self.stats = Stats()
        self._pool = pool(workers, self.settings, self.seed)
        self._cache = None if cache is None else Cache(cache)
        self._memory: dict[Point, Counts] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and close the cache."""
        self._pool.close()
        if self._cache:
            self._cache.close()

    def start(self) -> None:
        """Start the workers now, in the background: they take a second, and several more once one
        needs TensorFlow.
        """
        self._pool.start()

    def warm(self, pairs: Iterable[tuple[Scenario, Workflow]] | None = None) -> None:
        """Simulate a round of these pairs in every worker, and wait for it: afterwards what they
        need is compiled.

        By default a pair that uses every native stage, which takes a second or two; native code is
        compiled once for all workers and runs. What Sionna runs (polar, kbest, ep, the neural
        receivers) takes seconds more, for every number of layers and modulation.
        """
        pairs = NATIVE_PAIRS if pairs is None else pairs
        with self._lock:
            self._pool.warm([replace(physical(*pair), rounds=(0, 1)) for pair in pairs])

    @property
    def traces(self) -> int:
        """Stages traced and compiled by the workers so far: constant once everything is warm."""
        return self._pool.num_traces()

    def evaluate(
        self,
        pairs: Sequence[tuple[Scenario, Workflow]],
        return_exceptions: bool = False,
        progress=None,
    ) -> list[QoS]:
        """QoS of every pair, in order.

        Distinct simulations (see `twin.physical`) run once, whatever their number in `pairs`.
        Results are stored as they come, so that an interrupted call loses little. `progress(done,
        total)` is called as simulations finish.

        Raises ValueError, naming the pair, for a workflow that the scenario cannot run; use `check`
        first. A simulation that fails raises TwinError after the others have been stored; with
        `return_exceptions` it stands in the list.
        """
        started = time.perf_counter()
        with self._lock:
            points = [self._point(i, *pair) for i, pair in enumerate(pairs)]
            results = self._results(list(dict.fromkeys(points)), progress)
        answers = [_qos(*pair, results[point]) for pair, point in zip(pairs, points)]
        self.stats.requests += len(pairs)
        self.stats.seconds += time.perf_counter() - started
        if not return_exceptions and (
            error := next((a for a in answers if isinstance(a, TwinError)), None)
        ):
            raise error
        return answers

    def decide(
        self,
        pairs: Sequence[tuple[Scenario, Workflow]],
        targets: Sequence[Target],
        risk: float = 0.05,
        max_blocks: int = 4096,
    ) -> list[Decision]:
        """Whether every pair meets its target, by a sequential test: blocks are doubled from
        FIRST_LOOK on until the limits of all error rates are on one side of the target, so that few
        are spent far from it and many near to it.

        A verdict is wrong with a probability of at most `risk` (an equal share of it for every look
        and every rate); undecided where `max_blocks` do not tell. Raises ValueError for a pair that
        cannot run, TwinError for a simulation that fails.
        """
        if len(pairs) != len(targets):
            raise ValueError(
                f"Twin.decide: expected a target for each of {len(pairs)} pairs, got {len(targets)}"
            )
        if not 0 < risk < 1 or max_blocks < FIRST_LOOK:
            raise ValueError(
                f"Twin.decide: expected 0 < risk < 1 and max_blocks >= {FIRST_LOOK}, got {risk!r}"
                f" and {max_blocks!r}"
            )
        points = [self._point(i, *pair) for i, pair in enumerate(pairs)]
        looks = max(1, math.floor(math.log2(max_blocks / FIRST_LOOK)) + 1)
        counts, met, open_ = (
            [Counts()] * len(points),
            [None] * len(points),
            list(range(len(points))),
        )
        for look in range(looks):
            parts = {}
            for i in open_:
                rounds = tuple(
                    FIRST_LOOK * part // points[i].slots_per_round
                    for part in (1 << look - 1 if look else 0, 1 << look)
                )
                parts[i] = replace(points[i], rounds=rounds)
            with self._lock:
                results = self._results(list(dict.fromkeys(parts.values())), None)
            for i in open_:
                if isinstance(results[parts[i]], TwinError):
                    raise results[parts[i]]
                counts[i] = counts[i] + results[parts[i]]
                met[i] = _verdict(*pairs[i], targets[i], counts[i], risk / looks)
            open_ = [i for i in open_ if met[i] is None]
            if not open_:
                break
        return [Decision(verdict, _qos(*pair, c)) for verdict, pair, c in zip(met, pairs, counts)]

    def watch(self, scenario: Scenario, workflow: Workflow) -> Iterator[QoS]:
        """QoS of a pair after each round of blocks; the last one is that of `evaluate`. Raises
        ValueError and TwinError as `evaluate` does.
        """
        point, counts = self._point(0, scenario, workflow), Counts()
        while not counts.enough(self.settings):
            round_ = counts.num_blocks // point.slots_per_round
            part = replace(point, rounds=(round_, round_ + 1))
            with self._lock:
                answer = self._results([part], None)[part]
            if isinstance(answer, TwinError):
                raise answer
            counts += answer
            yield _qos(scenario, workflow, counts)

    def _point(self, index: int, scenario: Scenario, workflow: Workflow) -> Point:
        try:
            check(scenario, workflow, validation=True)
        except WorkflowError as error:
            raise ValueError(f"pair {index}: {error}") from error
        return physical(scenario, workflow)

    def _results(self, points: list[Point], progress) -> dict[Point, Counts | TwinError]:
        found = {p: self._memory[p] for p in points if p in self._memory}
        self.stats.distinct += len(points)
        self.stats.memory_hits += len(found)
        missing = [p for p in points if p not in found]
        if self._cache and missing:
            keys = {digest(p, self.settings, self.seed): p for p in missing}
            on_disk = {keys[k]: counts for k, counts in self._cache.get(list(keys)).items()}
            self.stats.disk_hits += len(on_disk)
            self._remember(on_disk)
            found |= on_disk
            missing = [p for p in missing if p not in found]
        # neighbours share a channel state, which the workers then have at hand
        missing.sort(key=Point.key)
        for done, (point, answer, seconds) in enumerate(
            self._pool.run(missing) if missing else (), 1
        ):
            found[point] = answer
            self.stats.worker_seconds += seconds
            if isinstance(answer, Counts):
                self.stats.simulated += 1
                self.stats.blocks += answer.num_blocks
                self._remember({point: answer})
                if self._cache:
                    self._cache.put(digest(point, self.settings, self.seed), answer)
            if progress:
                progress(done, len(missing))
        return found

    def _remember(self, results: dict[Point, Counts]) -> None:
        self._memory |= results
        while len(self._memory) > MEMORY_ROWS:
            del self._memory[next(iter(self._memory))]


def _qos(scenario: Scenario, workflow: Workflow, counts: Counts | TwinError) -> QoS | TwinError:
    if isinstance(counts, TwinError):
        return counts
    c, n = counts, counts.num_blocks
    transmissions = 1 + sum(c.failed[:-1]) / n
    (ber, bler), ber_interval = error_rates(c), bit_limits(c, 0.05)
    first_ms, round_trip_ms = delay_ms(scenario, workflow), harq_round_trip_ms(scenario, workflow)
    return QoS(
        delay_ms=first_ms + (transmissions - 1) * round_trip_ms,
        throughput_mbps=throughput_mbps(workflow, c.block_errors / n) / transmissions,
        ber=min(max(ber, ber_interval[0]), ber_interval[1]),
        bler=bler,
        num_blocks=n,
        num_bits=c.num_bits,
        block_errors=c.block_errors,
        bit_errors=c.bit_errors,
        ber_interval=ber_interval,
        bler_interval=rate_limits(c, -1, 0.05),
        mean_transmissions=transmissions,
        delays_ms=tuple(first_ms + k * round_trip_ms for k in range(len(c.failed))),
        delivered=tuple(1 - failed / n for failed in c.failed),
    )


def _verdict(
    scenario: Scenario, workflow: Workflow, target: Target, counts: Counts, risk: float
) -> bool | None:
    """Whether the target is met, or None while the limits of the error rates allow both."""
    num_rates = len(counts.failed) + 1
    limits = [rate_limits(counts, k, risk / num_rates) for k in range(len(counts.failed))]
    ber = bit_limits(counts, risk / num_rates)
    first_ms, round_trip_ms = delay_ms(scenario, workflow), harq_round_trip_ms(scenario, workflow)

    def met(side: int) -> bool:  # with all rates at their lower (0) or upper (1) limits
        failed = [limit[side] for limit in limits]
        # of the share in time: what is not delivered counts as an error, not as late
        delivered = 1 - limits[-1][1 - side]
        in_time = next(
            (k for k, f in enumerate(failed) if 1 - f >= target.reliability * delivered),
            len(failed) - 1,
        )
        throughput = throughput_mbps(workflow, failed[-1]) / (1 + sum(failed[:-1]))
        return (
            first_ms + in_time * round_trip_ms <= target.delay_ms
            and throughput >= target.throughput_mbps
            and ber[side] <= target.ber
            and failed[-1] <= target.bler
        )

    return True if met(1) else None if met(0) else False

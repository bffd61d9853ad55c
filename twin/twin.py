"""The digital twin: batches of (scenario, workflow) in, QoS out, each distinct simulation run once."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from .cache import Cache, digest
from .delay import delay_ms, harq_round_trip_ms, throughput_mbps
from .physical import Counts, Point, Settings, physical
from .pool import Pool, TwinError
from .spec import QoS, Scenario, Workflow, WorkflowError, check
from .toolbox import BY_FIELD

MEMORY_ROWS = 1 << 18


@dataclass
class Stats:
    """What a Twin has done so far."""

    requests: int = 0  # pairs asked for
    distinct: int = 0  # distinct simulations among them, call by call
    memory_hits: int = 0  # distinct simulations found in this process
    disk_hits: int = 0  # found in the cache file
    simulated: int = 0
    blocks: int = 0  # code blocks simulated
    seconds: float = 0.0  # wall clock inside evaluate
    worker_seconds: float = 0.0  # sum over workers, simulating


class Twin:
    """A link-level digital twin on Sionna.

    workers: number of worker processes, one thread each; started at the first result that is not cached, or by `start`
    cache: SQLite file that keeps results over runs and between processes; None keeps them in memory only
    seed: of everything random; the same (scenario, workflow, seed, settings) always gives the same QoS
    pool: what runs the simulations: a callable of (workers, settings, seed) whose result has the methods of twin.pool.Pool
    settings: fields of `twin.Settings`, such as check_node="boxplus-phi" or max_blocks=512
    """

    def __init__(self, workers: int = 2, cache: str | os.PathLike | None = None, seed: int = 0, pool=Pool, **settings):
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
        """Start the workers now, in the background: they take seconds to import TensorFlow."""
        self._pool.start()

    def warm(self, pairs: Iterable[tuple[Scenario, Workflow]] | None = None) -> None:
        """Compile in every worker what these pairs need, and wait for it.

        By default: LDPC at the toolbox's code rates, all modulations, linear detection. K-Best and expectation propagation
        take seconds for every number of layers and modulation.
        """
        if pairs is None:
            rates, orders = BY_FIELD["code_rate"].choices, BY_FIELD["bits_per_symbol"].choices
            pairs = [(Scenario(), Workflow(code_rate=rate, bits_per_symbol=m)) for rate in rates for m in orders]
        with self._lock:
            self._pool.warm(sorted(set().union(*(physical(*pair).signatures() for pair in pairs)), key=repr))

    @property
    def traces(self) -> int:
        """Stages traced and compiled by the workers so far: constant once everything is warm."""
        return self._pool.num_traces()

    def evaluate(
        self, pairs: Sequence[tuple[Scenario, Workflow]], return_exceptions: bool = False, progress=None
    ) -> list[QoS]:
        """QoS of every pair, in order.

        Distinct simulations (see `twin.physical`) run once, whatever their number in `pairs`. Results are stored as they
        come, so that an interrupted call loses little. `progress(done, total)` is called as simulations finish.

        Raises ValueError, naming the pair, for a workflow that the scenario cannot run; use `check` first. A simulation
        that fails raises TwinError after the others have been stored; with `return_exceptions` it stands in the list.
        """
        started = time.perf_counter()
        with self._lock:
            points = [self._point(i, *pair) for i, pair in enumerate(pairs)]
            results = self._results(list(dict.fromkeys(points)), progress)
        answers = [_qos(*pair, results[point]) for pair, point in zip(pairs, points)]
        self.stats.requests += len(pairs)
        self.stats.seconds += time.perf_counter() - started
        if not return_exceptions and (error := next((a for a in answers if isinstance(a, TwinError)), None)):
            raise error
        return answers

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
        missing.sort(key=Point.key)  # neighbours share a channel state, which the workers then have at hand
        for done, (point, answer, seconds) in enumerate(self._pool.run(missing) if missing else (), 1):
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
    c, num_blocks = counts, counts.num_blocks
    ber = max(c.bit_errors, 3 * (c.bit_errors == 0)) / c.num_bits
    bler = c.block_errors / num_blocks
    transmissions = c.num_transmissions / num_blocks
    spread = max(0.0, c.bit_errors_squared / num_blocks - (c.bit_errors / num_blocks) ** 2)
    return QoS(
        delay_ms=delay_ms(scenario, workflow) + (transmissions - 1) * harq_round_trip_ms(scenario, workflow),
        throughput_mbps=throughput_mbps(workflow, bler) / transmissions,
        ber=ber,
        bler=max(bler, ber),
        num_blocks=num_blocks,
        num_bits=c.num_bits,
        block_errors=c.block_errors,
        bit_errors=c.bit_errors,
        ber_stderr=math.sqrt(spread / num_blocks) * num_blocks / c.num_bits,
        bler_stderr=math.sqrt(bler * (1 - bler) / num_blocks),
        mean_transmissions=transmissions,
    )

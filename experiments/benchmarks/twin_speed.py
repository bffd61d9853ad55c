"""python -m experiments.benchmarks.twin_speed [--pairs N] [--before DIR] [--out FILE]: how fast the
twin is, on one core.

Random distinct pairs of the toolbox, none cached, 64 slots each. Three grants: one whose transport
block has about 1152 coded bits, 24 PRB and 100 PRB. Prints, and writes as JSON, for each of them
milliseconds per pair, of the link and of the effective-SINR method, with 95 % intervals, and by
stage; what a worker takes to start, its memory as evaluations go on, cache hits per second.

--before: a checkout of an older commit of this project (d0b3d72 simulates one block of 1152 coded
  bits a slot, whatever the grant): the same pairs and numbers of blocks as the first grant, in turn
  with ours, part by part.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np

from experiments.files import show
from experiments.statistics import mean_interval
from twin import Scenario, Settings, Twin, Workflow
from twin.physical import physical
from twin.pool import QUIET_AND_SINGLE_THREADED
from twin.toolbox import BY_FIELD

SLOTS = 64
PART = 20  # pairs of a timed call
BLOCK = 1152  # coded bits
GRANTS = {"a block of about 1152 coded bits": None, "24 PRB": 24, "100 PRB": 100}

# Runs in a checkout of d0b3d72: reads (scenario, workflow) pairs as JSON lines, answers seconds a
# part; "stages" for milliseconds by stage
BEFORE = """
import json, sys, time
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1); tf.config.threading.set_inter_op_parallelism_threads(1)
from twin import Scenario, Workflow, link
from twin.physical import Settings, physical
settings, spent = Settings(max_blocks={slots}, enough_block_errors=1 << 30, enough_bits=1 << 40), {{}}
def timed(name, label):
    function = getattr(link, name)
    def run(*arguments):
        start = time.perf_counter()
        result = function(*arguments)
        spent[label] = spent.get(label, 0) + time.perf_counter() - start
        return result
    setattr(link, name, run)
for name, label in (("surroundings", "channel and noise"), ("_estimator", "estimator"), ("symbols", "bits, encoder, mapper"),
                    ("detect", "detector and demapper"), ("decode", "decoder")):
    timed(name, label)
for line in sys.stdin:
    points = [physical(Scenario(**s), Workflow(**w)) for s, w in json.loads(line)]
    link.warm(sorted(set().union(*(p.signatures() for p in points)), key=repr), settings)
    spent.clear()
    start = time.perf_counter()
    for point in points:
        link.simulate(point, 0, settings)
    print(json.dumps([time.perf_counter() - start, spent]), flush=True)
"""  # noqa: E501


def random_pairs(
    number: int, num_prb: int | None, seed: int = 0
) -> list[tuple[Scenario, Workflow]]:
    """Distinct feasible pairs of the toolbox on a coarse grid of links."""
    rng, pairs = random.Random(seed), {}
    while len(pairs) < number:
        tx, rx = rng.choice(((1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)))
        s = Scenario(
            channel=rng.choice(("tdl-a", "tdl-b", "tdl-c", "rayleigh")),
            snr_db=rng.randint(-5, 30),
            num_tx_ant=tx,
            num_rx_ant=rx,
            delay_spread_ns=rng.choice((30, 100, 300)),
            speed_mps=rng.choice((1, 10, 30)),
        )
        bits, layers, dmrs = (
            rng.choice(BY_FIELD["bits_per_symbol"].choices),
            rng.randint(1, min(tx, rx)),
            rng.choice((1, 2)),
        )
        w = Workflow(
            num_prb=num_prb or max(1, round(BLOCK / (bits * layers * 12 * (14 - dmrs)))),
            scs_khz=rng.choice((15, 30, 60)),
            code_rate=rng.choice(BY_FIELD["code_rate"].choices),
            decoder_iterations=rng.randint(1, 20),
            bits_per_symbol=bits,
            num_layers=layers,
            num_dmrs=dmrs,
            estimator=rng.choice(("ls", "lmmse")),
            detector=rng.choice(("zf", "lmmse")),
        )
        pairs[s, w] = None
    return list(pairs)


class Stages:
    """Seconds that the link's stages take in this process."""

    def __init__(self):
        from twin.chain import esm, estimation, link

        self.spent: dict[str, float] = {}
        for module, names, label in (
            (link, ("surroundings", "unit_noise"), "channel and noise"),
            (estimation, ("estimator",), "estimator"),
            (link, ("transport_blocks", "modulate"), "bits, encoder, mapper"),
            (link, ("receive",), "detector and demapper"),
            (link, ("decode",), "decoder"),
            (esm, ("failures",), "table"),
            (esm, ("_detected", "_informed"), "SINR"),
        ):
            for name in names:
                self._time(module, name, label)

    def _time(self, module, name, label):
        function = getattr(module, name)

        def run(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            self.spent[label] = self.spent.get(label, 0) + time.perf_counter() - start
            return result

        setattr(module, name, run)


def with_interval(milliseconds: list[float]) -> list[float]:
    """Mean, and its 95 % interval by the bootstrap."""
    return [round(float(x), 3) for x in (np.mean(milliseconds), *mean_interval(milliseconds))]


def measure(number: int, before: str | None) -> dict:
    """Milliseconds per pair and by stage, for every grant."""
    from twin.chain import link

    stages, result = Stages(), {}
    old = before and subprocess.Popen(
        [sys.executable, "-c", BEFORE.format(slots=SLOTS)],
        cwd=before,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | QUIET_AND_SINGLE_THREADED | {"PYTHONPATH": before},
    )
    for title, num_prb in GRANTS.items():
        pairs = random_pairs(number, num_prb)
        methods = {
            name: Settings(method=name, max_blocks=SLOTS, enough_block_errors=1 << 30)
            for name in ("link", "esm")
        }
        spent = {name: [] for name in (*methods, "before")}
        by_stage: dict[str, dict[str, float]] = {name: {} for name in spent}
        for first in range(0, number, PART):
            some = pairs[first : first + PART]
            for name, settings in methods.items():
                for pair in some:  # compiled, and filters made, as they are when a worker is warm
                    link.simulate(replace(physical(*pair), rounds=(0, 1)), 1, settings)
                stages.spent.clear()
                start = time.perf_counter()
                for pair in some:
                    link.simulate(physical(*pair), 0, settings)
                seconds = time.perf_counter() - start
                _add(spent[name], by_stage[name], seconds, dict(stages.spent), len(some))
            if old and num_prb is None:
                known = [(_without(asdict(s)), _without(asdict(w))) for s, w in some]
                old.stdin.write(json.dumps(known) + "\n")
                old.stdin.flush()
                seconds, parts = json.loads(old.stdout.readline())
                _add(spent["before"], by_stage["before"], seconds, parts, len(some))
        result[title] = {
            name: {
                "milliseconds a pair": with_interval(values),
                "by stage": {k: round(v / len(values), 3) for k, v in by_stage[name].items()},
            }
            for name, values in spent.items()
            if values
        }
        if old and num_prb is None:
            ratio = np.array(spent["before"]) / np.array(spent["link"])
            result[title]["before / link"] = with_interval(ratio)
    if old:
        old.stdin.close()
        old.wait()
    return result


def _without(fields: dict) -> dict:
    """What an older schema knows of a scenario or workflow."""
    young = ("antenna_correlation", "full_power_mhz", "access", "combining", "absent")
    return {k: v for k, v in fields.items() if k not in young}


def _add(spent: list, by_stage: dict, seconds: float, parts: dict, number: int) -> None:
    spent.append(1e3 * seconds / number)
    parts["rest"] = seconds - sum(parts.values())
    for label, value in parts.items():
        by_stage[label] = by_stage.get(label, 0) + 1e3 * value / number


def worker_megabytes(twin: Twin) -> float:
    """Resident memory of the twin's first worker."""
    pid = next(iter(twin._pool.workers.values())).process.pid
    with open(f"/proc/{pid}/statm") as file:
        return round(int(file.read().split()[1]) * resource.getpagesize() / 2**20)


def service(number: int) -> dict:
    """A worker's start, memory and cache."""
    result, pairs = {}, random_pairs(number, None, seed=1)
    with Twin(workers=1, max_blocks=SLOTS) as twin:
        start = time.perf_counter()
        twin.warm()
        result["seconds to start and warm a worker"] = round(time.perf_counter() - start, 2)
        memory = {0: worker_megabytes(twin)}
        for first in range(0, number, number // 5):
            twin.evaluate(pairs[first : first + number // 5])
            memory[first + number // 5] = worker_megabytes(twin)
        result |= {
            "megabytes of the worker by evaluations": memory,
            "Sionna stages traced": twin.traces,
        }
        start = time.perf_counter()
        twin.evaluate(pairs * 10)
        result["cache hits a second"] = round(10 * number / (time.perf_counter() - start))
    return result


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description="How fast the twin is, on one core.")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--before", help="a checkout of an older commit")
    parser.add_argument("--out", help="JSON file for the result")
    arguments = parser.parse_args(argv)
    os.environ.update(QUIET_AND_SINGLE_THREADED)
    result = (
        {"pairs": arguments.pairs, "slots a pair": SLOTS}
        | service(5 * arguments.pairs)
        | measure(arguments.pairs, arguments.before)
    )
    show(result, arguments.out)


if __name__ == "__main__":
    main()

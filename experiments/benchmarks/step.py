"""Where the time of an RLDTF step goes, how far that is from what the machine could do, and how time
and memory grow.

    python -m experiments.benchmarks.step --out experiments/results/step/step.json       a quarter of an hour; nothing else may run
    python -m experiments.benchmarks.step --point '{"rows": 64}'                          one configuration, as JSON

The step is the paper's: critic, reference, KL, entropy, token weights by sensitivity (N = 2), on the
policy that ships after phase 1 and the tasks of link-lite. Its timeline is taken with a wait behind
each part; the step's own time without. "Simulated": the twin has the workers, but not the answers;
"stored": the same steps again, from its cache; "free": the same sequences are asked about, and the
answers cost nothing. "Beside": a process of its own samples and asks the twin while this one learns,
one update behind (rollouts.apart, rldtf.staleness=1). The floor of a part is its floating-point operations (benchmarks.plan) at the
rate of a large product of float32 matrices on the same cores. Growth is measured in a process for
each point, slopes between its last two.
"""  # noqa: E501

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from typing import Any, Iterator

import numpy as np

from experiments.files import leave, show
from experiments.stages.machine import processor
from experiments.stages.rollouts import started
from experiments.world.tasks import DATA, load_splits

WORLD = os.path.join(DATA, "link-lite")
SAMPLES = 4  # responses to a prompt
STEPS = 4  # that are timed, behind one that compiles
GEMM = 2048
GROWTH: dict[str, tuple[int, ...]] = {
    "rows": (16, 32, 64, 128),
    "response tokens": (26, 52, 104, 208),
    "width": (64, 128, 256, 512),
    "layers": (2, 4, 8, 16),
    "tasks": (100, 200, 400, 800),
    "cache rows": (10_000, 100_000, 1_000_000),
}
USUAL = {"rows": 64, "response tokens": 104, "width": 128, "layers": 4, "tasks": 200}


def settings(point: dict[str, int]):
    """(config, policy, tokenizer, tasks) of a step."""
    from flax import nnx

    from rldtf_jax import hf, tokenizer
    from rldtf_jax.config import RLDTFConfig, SampleConfig
    from rldtf_jax.qwen2 import Qwen2, Qwen2Config

    size = USUAL | point
    config = RLDTFConfig(
        steps=1 + STEPS,
        prompts_per_step=size["rows"] // SAMPLES,
        samples_per_prompt=SAMPLES,
        alpha=4.0,
        sample=SampleConfig(size["response tokens"]),
    )
    phase1 = os.path.join(WORLD, "phase1")
    tok = tokenizer.load_directory(phase1)
    if {"width", "layers"} & point.keys():
        shape = Qwen2Config.preset(
            "tiny",
            vocab_size=tok.vocab_size,
            hidden_size=size["width"],
            intermediate_size=11 * size["width"] // 4,
            num_hidden_layers=size["layers"],
            unroll=1,
        )
        policy = Qwen2(shape, rngs=nnx.Rngs(0))
    else:
        policy = hf.load(phase1)
    tasks = load_splits(WORLD)["train"]
    return config, policy, tok, (tasks * -(-size["tasks"] // len(tasks)))[: size["tasks"]]


class Timed:
    """The models of `rldtf_step`, waited for and timed part by part."""

    def __init__(self, models: Any, spans: list[tuple[str, float, float]]):
        self._models, self._spans = models, spans

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._models, name)
        return timed(name, found, self._spans) if name in ("respond", "recall", "update") else found


def timed(name: str, function, spans: list[tuple[str, float, float]]):
    import jax

    def run(*arguments, **options):
        begun = time.perf_counter()
        found = function(*arguments, **options)
        jax.block_until_ready([x for x in jax.tree.leaves(found) if isinstance(x, jax.Array)])
        spans.append((name, begun, time.perf_counter()))
        return found

    return run


@contextlib.contextmanager
def watched(spans: list[tuple[str, float, float]]) -> Iterator[None]:
    """While open, what `rldtf_step` does between its models is timed too."""
    from rldtf_jax import rldtf

    parts = {name: getattr(rldtf, name) for name in ("judge", "weigh", "rollout_metrics")}
    try:
        for name, function in parts.items():
            setattr(rldtf, name, timed(name, function, spans))
        yield
    finally:
        for name, function in parts.items():
            setattr(rldtf, name, function)


def steps(
    config, policy, env, parts: bool = False, worker: Any = None, more: int = 0
) -> tuple[list[float], list[list]]:
    """Seconds of each step from the same start, and with `parts` the spans of its parts; worker:
    starts a process that samples and judges; more: steps than STEPS.
    """
    import jax

    from experiments.stages.rldtf import value_model
    from rldtf_jax import rldtf
    from rldtf_jax.judge import Arm
    from rldtf_jax.rollout_worker import Apart

    models, state = rldtf.initial(policy, value_model(policy, 0), config, 0)
    if worker:
        models = Apart(models, worker, config.steps + more)  # type: ignore[assignment]
    states, seconds, timelines = (state,), [], []
    for step in range(1 + STEPS + more):
        spans: list[tuple[str, float, float]] = []
        begun = time.perf_counter()
        with watched(spans) if parts else contextlib.nullcontext():
            asked = Timed(models, spans) if parts else models
            states, _ = rldtf.rldtf_step(asked, [Arm(config, 0, env)], states, step)
            jax.block_until_ready(states)
        seconds.append(time.perf_counter() - begun)
        timelines.append([(name, a - begun, b - begun) for name, a, b in spans])
    return seconds[1:], timelines[1:]


def beside(cache: str) -> list[float]:
    """Seconds of each step where another process samples and asks a twin with this cache, but for
    the last, for which it has nothing to do any more.
    """
    from experiments.world.environment import TwinEnvironment

    config, policy, tok, tasks = settings({})
    config = dataclasses.replace(config, staleness=1)
    with contextlib.ExitStack() as ends:
        env = TwinEnvironment(tasks, tok, None, config.reward)
        start = lambda: ends.enter_context(started(serve_beside, cache))
        return steps(config, policy, env, worker=start, more=2)[0][1:-1]


def serve_beside(connection, cache: str) -> None:
    from experiments.world.environment import TwinEnvironment
    from rldtf_jax.judge import Arm
    from rldtf_jax.rollout_worker import serve
    from twin import Twin

    config, policy, tok, tasks = settings({})
    config = dataclasses.replace(config, staleness=1)
    with Twin(workers=os.cpu_count(), method="esm", cache=cache) as twin:
        twin.start()
        serve(connection, policy, Arm(config, 0, TwinEnvironment(tasks, tok, twin, config.reward)))


def free(base):
    """The environment without a twin: a reward that costs nothing."""
    from rldtf_jax.judge import Verdict

    class Free(base):
        def judge_readings(self, tasks, readings):
            R = np.array([hash(workflow) % 7 / 7 for workflow, _ in readings], np.float32)
            return Verdict(R, R > 0.5, [None] * len(R), {})

        def summary(self, tasks, responses, verdict, logp):
            return {}

    return Free


def usual() -> dict[str, Any]:
    """The usual step: its time with every kind of twin, and its timeline."""
    from experiments.world.environment import TwinEnvironment
    from twin import Twin

    config, policy, tok, tasks = settings({})
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        with Twin(
            workers=os.cpu_count(), method="esm", cache=os.path.join(scratch, "twin.sqlite")
        ) as twin:
            twin.start()
            env = TwinEnvironment(tasks, tok, twin, config.reward)
            without = free(TwinEnvironment)(tasks, tok, twin, config.reward)
            steps(config, policy, without)  # compiles
            found["simulated"], _ = steps(config, policy, env)
            found["simulations a step"] = twin.stats.simulated / (1 + STEPS)
            found["stored"], _ = steps(config, policy, env)
            _, found["timelines"] = steps(config, policy, env, parts=True)
            found["free"], _ = steps(config, policy, without)
            found["prompt tokens"] = env.width
        cache = os.path.join(scratch, "beside.sqlite")
        found["simulated beside"] = beside(cache)
        with contextlib.closing(sqlite3.connect(cache)) as database:
            (rows,) = database.execute("SELECT COUNT(*) FROM results").fetchone()
        found["simulations a step beside"] = rows / (1 + STEPS + 2)
        found["stored beside"] = beside(cache)
    return found


def gemm_rate() -> float:
    """Floating-point operations a second of a large product of float32 matrices."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((GEMM, GEMM), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    begun, rounds = time.perf_counter(), 10
    for _ in range(rounds):
        product(x).block_until_ready()
    return rounds * 2 * GEMM**3 / (time.perf_counter() - begun)


def floors(prompt_tokens: int, rate: float) -> dict[str, float]:
    """Seconds that the usual step's parts take at `rate`."""
    from experiments.benchmarks.plan import PlanConfig, flops
    from experiments.config import MeshConfig

    config = PlanConfig(
        "tiny", "float32", MeshConfig(), 1, USUAL["rows"], prompt_tokens,
        USUAL["response tokens"], microbatches=1, logit_chunk=None, remat=False,
    )  # fmt: skip
    work = flops(config)
    names = {"respond": "sampling", "recall": "values and reference", "update": "update"}
    return {part: work[name] / rate for part, name in names.items()}


def measured(point: dict[str, int]) -> dict[str, float]:
    """Seconds and peak memory of one point of GROWTH, without a twin."""
    from experiments.world.environment import TwinEnvironment

    if "cache rows" in point:
        seconds = lookups(point["cache rows"])
    else:
        config, policy, tok, tasks = settings(point)
        begun = time.perf_counter()
        env = free(TwinEnvironment)(tasks, tok, None, config.reward)
        made = time.perf_counter() - begun
        seconds = made if "tasks" in point else float(np.mean(steps(config, policy, env)[0]))
    return {"seconds": seconds, "memory_mb": peak_memory() / 2**20}


def peak_memory() -> int:
    """Bytes that this process has held at most. `ru_maxrss` would begin with its parent's."""
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1])  # type: ignore[index]


def lookups(rows: int) -> float:
    """Seconds that 256 stored answers take in a cache of so many rows."""
    from twin.cache import Cache, _checksum
    from twin.physical import Counts

    counts = json.dumps(dataclasses.asdict(Counts(128, 4096, 3.0, (2.0, 1.0), 0.1, 0.01)))
    drawn = np.random.default_rng(0).bytes(16 * rows)
    keys = [drawn[i : i + 16] for i in range(0, len(drawn), 16)]
    with tempfile.TemporaryDirectory() as scratch:
        cache = Cache(os.path.join(scratch, "twin.sqlite"))
        assert cache.database is not None
        cache.database.executemany(
            "INSERT INTO results (key, value, checksum) VALUES (?, ?, ?)",
            ((key, counts, _checksum(key, counts)) for key in keys),
        )
        cache.database.commit()
        order = np.random.default_rng(0).permutation(rows)
        begun, rounds = time.perf_counter(), 20
        for i in range(rounds):
            asked = [keys[j] for j in order[256 * i : 256 * (i + 1)]]
            assert len(cache.get(asked)) == len(asked)
        found = (time.perf_counter() - begun) / rounds
        cache.close()
    return found


def slope(sizes, values) -> float:
    """Of the last two points on logarithmic axes: 1 is linear."""
    (a, b), (x, y) = sizes[-2:], values[-2:]
    return math.log(y / x) / math.log(b / a)


def growth(say) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for name, sizes in GROWTH.items():
        rows = []
        for size in sizes:
            done = subprocess.run(
                [sys.executable, "-m", __spec__.name, "--point", json.dumps({name: size})],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            say(f"{name} {size}: {rows[-1]}")
        found[name] = {
            "sizes": list(sizes),
            **{key: [row[key] for row in rows] for key in ("seconds", "memory_mb")},
        }
        for key in ("seconds", "memory_mb"):
            found[name][f"slope of {key}"] = round(slope(sizes, found[name][key]), 2)
    return found


def table(result: dict) -> str:
    """Markdown: the parts of the usual step, and what the twin adds."""
    lines = ["| part | ms | share | floor, ms | of the floor's rate |", "|---|---|---|---|---|"]
    total = sum(result["parts"].values())
    for part, seconds in result["parts"].items():
        floor = result["floors"].get(part)
        lines.append(
            f"| {part} | {1e3 * seconds:.0f} | {seconds / total:.0%} |"
            + (f" {1e3 * floor:.0f} | {floor / seconds:.0%} |" if floor else " | |")
        )
    for kind in ("free", "stored", "simulated", "stored beside", "simulated beside"):
        lines.append(f"| the step, twin {kind} | {1e3 * np.mean(result[kind]):.0f} | | | |")
    return "\n".join(lines)


def draw(result: dict, directory: str) -> None:
    """timeline.png and growth.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
    names = list(result["parts"])
    for name, begun, ended in result["timelines"][-1]:
        row = names.index(name)
        axis.broken_barh([(1e3 * begun, 1e3 * (ended - begun))], (row - 0.4, 0.8), color=f"C{row}")
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="ms from the step's beginning")
    axis.invert_yaxis()
    figure.savefig(os.path.join(directory, "timeline.png"), dpi=120)

    figure, axes = plt.subplots(2, len(result["growth"]), figsize=(15, 5), layout="constrained")
    for column, (name, rows) in enumerate(result["growth"].items()):
        for axis, key in zip(axes[:, column], ("seconds", "memory_mb")):
            axis.loglog(rows["sizes"], rows[key], "o-")
            first = rows[key][0] / rows["sizes"][0]
            axis.loglog(rows["sizes"], [first * size for size in rows["sizes"]], ":", color="grey")
            axis.set_xticks(rows["sizes"], [f"{size:g}" for size in rows["sizes"]])
            axis.minorticks_off()
            axis.set(xlabel=name, ylabel=key, title=f"slope {rows[f'slope of {key}']}")
    figure.savefig(os.path.join(directory, "growth.png"), dpi=100)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--point", type=json.loads, help="this configuration alone")
    parser.add_argument(
        "--usual", action="store_true", help="the usual step anew; growth stays what --out says"
    )
    parser.add_argument("--out", help="also write the figures there, and draw them beside it")
    arguments = parser.parse_args(argv)
    if arguments.point is not None:
        unknown = sorted(arguments.point.keys() - GROWTH.keys())
        if unknown:
            parser.error(f"--point: {unknown[0]!r}: expected one of {', '.join(GROWTH)}")
        print(json.dumps(measured(arguments.point)))
        return
    say = lambda text: print(text, file=sys.stderr, flush=True)
    before = {}
    if arguments.usual:
        if not arguments.out:
            parser.error("--usual: expected --out with the figures of a whole run")
        with open(arguments.out, encoding="utf-8") as file:
            before = json.load(file)
        if before["processor"] != processor():
            parser.error(f"--usual: expected {before['processor']}, of which --out speaks")
    found = usual()
    parts: dict[str, float] = {}
    for timeline in found["timelines"]:
        for name, begun, ended in timeline:
            parts[name] = parts.get(name, 0.0) + (ended - begun) / len(found["timelines"])
    rate = gemm_rate()
    result = {
        "processor": processor(),
        "gemm_gflops": rate / 1e9,
        "parts": parts,
        "floors": floors(found["prompt tokens"], rate),
        **found,
    }
    say(table(result))
    result["growth"] = before["growth"] if arguments.usual else growth(say)
    if arguments.out:
        os.makedirs(os.path.dirname(arguments.out) or ".", exist_ok=True)
        draw(result, os.path.dirname(arguments.out) or ".")
        leave(result, arguments.out)
    else:
        show(result, None)


if __name__ == "__main__":
    main()

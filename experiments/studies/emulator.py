"""A rival that asks no twin when it answers: small networks fitted to the verdicts that rejection sampling has paid for.

    python -m experiments.studies.emulator run_dir=runs/quickstart [key=value ...]

From what formulas say of a task and a workflow (headroom, load, delay, what the grant carries) beside the link's own figures the networks
learn R (Eq. 2) and whether the targets are met, of all sampled responses, failures too. A held-out task is answered with what they
value most among promising modes with an engineer's details. So it shows what the twin's verdicts hold for whoever learns from them
well. Leaves <run_dir>/emulator.json.
"""

import json
import math
import random
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rldtf_jax.config import ConfigError
from twin import Workflow
from twin.delay import delay_ms
from twin.spec import SUBCARRIERS_PER_PRB

from experiments.config import ExperimentConfig, command
from experiments.files import whole
from experiments.stages.reject import all_sampled
from experiments.stages.run import Run, opened, say
from experiments.statistics import mean_interval, paired_difference
from experiments.world import baselines
from experiments.world.baselines import sturdiest, surely_in_time
from experiments.world.engineer import with_details
from experiments.world.families import SYMBOLS_PER_MS_KHZ
from experiments.world.orchestration import read
from experiments.world.search import granted, granted_snr_db, headroom_db, runs, shortlist
from experiments.world.tasks import HELD_OUT, Task, present

NETWORKS, WIDTH, EPOCHS, BATCH, LEARNING_RATE = 4, 192, 30, 128, 2e-3
LEFT_OUT = 0.1  # share of the tasks that each network is examined on
MODES, DETAILS = 20, 8  # answers that are looked at: so many modes, so many draws of details for each


class Verdicts(NamedTuple):
    """N sampled workflows."""

    features: np.ndarray  # (N, F) float32
    rewards: np.ndarray  # (N,) float32, R
    fulfilled: np.ndarray  # (N,) float32, 0 or 1
    tasks: np.ndarray  # (N,) int, which task each is for


class Emulator(NamedTuple):
    """An ensemble of networks: features -> R and the probability that all targets are met."""

    params: Any  # leaves with a leading axis of NETWORKS
    mean: np.ndarray  # (F,)
    scale: np.ndarray
    explained_variance: float  # of R, on tasks that a network has not seen; mean of the networks
    accuracy: float  # of fulfilment, likewise

    def __call__(self, features_NxF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R, probability) of N workflows, means of the networks."""
        R, logit = jax.vmap(_forward, (0, None))(self.params, (features_NxF - self.mean) / self.scale)
        return np.asarray(R.mean(0)), np.asarray(jax.nn.sigmoid(logit).mean(0))


def features(task: Task, workflow: Workflow, channels: Sequence[str]) -> np.ndarray:
    """(F,) float32: the task's and the workflow's figures, and what formulas make of them."""
    s, w = task.scenario, workflow
    offered = task.throughput_mbps / (w.num_prb * SUBCARRIERS_PER_PRB * w.scs_khz * SYMBOLS_PER_MS_KHZ * 1e-3)  # bits a resource element
    fewest = granted(task, w)
    late = delay_ms(s, w) / task.delay_ms
    numbers = [
        math.log10(task.throughput_mbps), math.log10(task.delay_ms), math.log10(task.ber), s.snr_db / 10, math.log10(s.delay_spread_ns + 1),
        s.speed_mps / 10, math.log10(s.speed_mps + 0.1), s.num_tx_ant, s.num_rx_ant, math.log10(s.max_prb), math.log10(s.compute_gflops),
        ("low", "medium", "high").index(s.antenna_correlation), s.full_power_mhz, s.access == "aligned",
        math.log2(w.scs_khz / 15), w.bits_per_symbol / 2, w.num_layers, w.code_rate, w.num_dmrs, w.num_transmissions, w.combining == "ir",
        w.decoder_iterations / 10, math.log(w.decoder_iterations), math.log(w.num_prb), w.num_prb / s.max_prb,
        max(-30.0, headroom_db(task, w)) / 10, granted_snr_db(s, w) / 10, offered, offered / (w.bits_per_symbol * w.num_layers * w.code_rate),
        math.log(w.num_prb / (fewest.num_prb if fewest else 1.5 * s.max_prb)), surely_in_time(task, w), late, math.log(max(late, 1e-3))]
    choices = [getattr(w, field) == value for field in ("precoder", "detector", "estimator") for value in present(())[field]]
    return np.array([*numbers, *choices, *(s.channel == channel for channel in channels)], np.float32)


def verdicts(tasks: Sequence[Task], rows: Sequence[dict]) -> tuple[Verdicts, list[str]]:
    """(what was sampled and ran, the channels that it met), from the rows of `all_sampled`."""
    channels = sorted({task.scenario.channel for task in tasks})
    readable = [(row, w) for row in rows if (w := read(row["response"])[0]) and runs(tasks[row["task"]].scenario, w)]
    return Verdicts(np.array([features(tasks[row["task"]], w, channels) for row, w in readable]),
                    *(np.array([row[key] for row, _ in readable], np.float32) for key in ("reward", "fulfilled")),
                    np.array([row["task"] for row, _ in readable])), channels


def _forward(params, x_NxF):
    """(R, logit of fulfilment) of N rows."""
    *hidden, (w, b) = params
    for weight, bias in hidden:
        x_NxF = jax.nn.gelu(x_NxF @ weight + bias)
    R_N, logit_N = (x_NxF @ w + b).T
    return R_N, logit_N


def fit(data: Verdicts, seed: int = 0, epochs: int = EPOCHS) -> Emulator:
    """Networks of three hidden layers, each from its own start and on tasks of its own; AdamW, squared error of R and cross-entropy."""
    mean, scale = data.features.mean(0), data.features.std(0) + 1e-3
    x, rng, tasks = jnp.asarray((data.features - mean) / scale), np.random.default_rng(seed), np.unique(data.tasks)
    left_out = [np.isin(data.tasks, rng.permutation(tasks)[:math.ceil(LEFT_OUT * len(tasks))]) for _ in range(NETWORKS)]
    number = min(int((~mask).sum()) for mask in left_out)
    batch = min(BATCH, number)
    steps = max(1, epochs * number // batch)
    rows = jnp.asarray([rng.choice(np.flatnonzero(~mask), (steps, batch)) for mask in left_out])
    sizes = [x.shape[1], WIDTH, WIDTH, WIDTH, 2]
    rewards, fulfilled = jnp.asarray(data.rewards), jnp.asarray(data.fulfilled)
    optimiser = optax.adamw(optax.cosine_onecycle_schedule(steps, LEARNING_RATE), weight_decay=1e-2)

    def loss(params, rows):
        R, logit = _forward(params, x[rows])
        return jnp.mean((R - rewards[rows]) ** 2 + optax.sigmoid_binary_cross_entropy(logit, fulfilled[rows]))

    def train(key, rows):
        params = [(jax.random.normal(k, shape) * math.sqrt(2 / shape[0]), jnp.zeros(shape[1]))
                  for k, shape in zip(jax.random.split(key, len(sizes) - 1), zip(sizes, sizes[1:]))]

        def step(state, rows):
            params, moments = state
            updates, moments = optimiser.update(jax.grad(loss)(params, rows), moments, params)
            return (optax.apply_updates(params, updates), moments), None

        return jax.lax.scan(step, (params, optimiser.init(params)), rows)[0][0]

    params = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(seed), NETWORKS), rows)
    R, logit = map(np.asarray, jax.vmap(_forward, (0, None))(params, x))
    unseen = [(one[mask], said[mask] > 0, data.rewards[mask], data.fulfilled[mask] > 0) for one, said, mask in zip(R, logit, left_out)]
    return Emulator(params, mean, scale,
                    float(np.mean([1 - ((one - true) ** 2).mean() / max(true.var(), 1e-12) for one, _, true, _ in unseen])),
                    float(np.mean([(said == good).mean() for _, said, _, good in unseen])))


def answers(task: Task, rng: random.Random, config) -> list[Workflow]:
    """Promising modes and the sturdiest one, with details as an engineer draws them."""
    first = sturdiest(task)
    chosen = [*shortlist(task, config)[:MODES], *([first] if first else [])]
    return list(dict.fromkeys(with_details(task, mode, rng) for mode in chosen for _ in range(DETAILS)))


def choose(emulator: Emulator, task: Task, channels: Sequence[str], rng: random.Random, config) -> Workflow | None:
    """What the emulator values most; None where no mode has a chance."""
    options = answers(task, rng, config)
    if not options:
        return None
    return options[int(emulator(np.array([features(task, w, channels) for w in options]))[0].argmax())]


def study(run: Run) -> dict[str, Any]:
    """Fits, answers the held-out tasks and asks the twin what that is worth."""
    rows, config = all_sampled(run), run.config.rldtf.reward
    if not rows:
        raise ConfigError(f"run_dir = {run.config.run_dir!r}: expected a run whose rejection sampling is done (experiments.stages.reject)")
    data, channels = verdicts(run.tasks_of("train"), rows)
    emulator = fit(data, run.config.seed)
    say(f"emulator: {len(data.rewards)} verdicts of {len(np.unique(data.tasks))} tasks; explains {emulator.explained_variance:.2f} of R's variance "
        f"on tasks that it has not seen, says rightly whether {emulator.accuracy:.1%} fulfil")
    found: dict[str, Any] = {"verdicts": len(data.rewards), "explained_variance": emulator.explained_variance, "accuracy": emulator.accuracy}
    rng = random.Random(f"emulator {run.config.seed}")
    methods: dict[str, Callable] = {"emulator": lambda task: choose(emulator, task, channels, rng, config), "sturdiest": sturdiest}
    for split in filter(run.tasks.get, HELD_OUT):
        tasks = run.tasks[split]
        judged = {name: baselines.rewards(tasks, list(map(answer, tasks)), run.twins("evaluate"), config) for name, answer in methods.items()}
        found[split] = {name: {"fulfilment": float(good.mean()), "reward": float(R.mean()), "reward_interval": mean_interval(R)}
                        for name, (R, good) in judged.items()}
        found[split]["gain"] = paired_difference(judged["emulator"][0], judged["sturdiest"][0])
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | emulator: fulfilment | mean R | more than the sturdiest mode |", "|---|---|---|---|"]
    for split in filter(found.get, HELD_OUT):
        row, (gain, (low, high)) = found[split]["emulator"], found[split]["gain"]
        lines.append("| {} | {:.3f} | {:.3f} [{:.3f}, {:.3f}] | {:+.3f} [{:+.3f}, {:+.3f}] |".format(
            split, row["fulfilment"], row["reward"], *row["reward_interval"], gain, low, high))
    return "\n".join(lines)


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        found = study(run)
        with whole(run.path("emulator.json")) as file:
            json.dump(found, file, indent=1)
        print(table(found))


if __name__ == "__main__":
    command(main)

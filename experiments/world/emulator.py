"""A model of the twin: small networks fitted to its verdicts, which say what R a workflow may
expect without a simulation.

Their inputs are what formulas say of a task and a workflow (headroom, load, delay, what the grant
carries) beside the link's own figures. `experiments.studies.emulator` measures what the verdicts
hold; `imagine` lets RLDTF value what a response might have been.
"""

import math
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.files import whole
from experiments.world.baselines import surely_in_time
from experiments.world.families import SYMBOLS_PER_MS_KHZ
from experiments.world.orchestration import read
from experiments.world.search import granted, granted_snr_db, headroom_db, runs
from experiments.world.tasks import Task, present
from rldtf_jax.sample import bucket
from twin import Workflow
from twin.delay import delay_ms
from twin.spec import SUBCARRIERS_PER_PRB

NETWORKS, HIDDEN, WIDTH, EPOCHS, BATCH, LEARNING_RATE = 4, 3, 192, 30, 128, 2e-3
LEFT_OUT = 0.1  # share of the tasks that each network is examined on


class Verdicts(NamedTuple):
    """N sampled workflows."""

    features: np.ndarray  # (N, F) float32
    rewards: np.ndarray  # (N,) float32, R
    fulfilled: np.ndarray  # (N,) float32, 0 or 1
    tasks: np.ndarray  # (N,) int, which task each is for
    channels: tuple[str, ...] = ()  # that the tasks meet; one of the figures each


class Emulator(NamedTuple):
    """An ensemble of networks: features -> R and the probability that all targets are met."""

    params: Any  # leaves with a leading axis of NETWORKS
    mean: np.ndarray  # (F,)
    scale: np.ndarray
    channels: tuple[str, ...]
    explained_variance: float  # of R, on tasks that a network has not seen; mean of the networks
    accuracy: float  # of fulfilment, likewise

    def __call__(self, pairs: Sequence[tuple[Task, Workflow]]) -> tuple[np.ndarray, np.ndarray]:
        """(R, probability) of N workflows, means of the networks."""
        if not pairs:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        return self.of_figures(
            np.array([features(task, workflow, self.channels) for task, workflow in pairs])
        )

    def of_figures(self, features_NxF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of what `features` has made of them."""
        R, logit = self._said(features_NxF)
        N = len(features_NxF)
        return np.asarray(R.mean(0))[:N], np.asarray(jax.nn.sigmoid(logit).mean(0))[:N]

    def each(self, pairs: Sequence[tuple[Task, Workflow]]) -> tuple[np.ndarray, np.ndarray]:
        """(R, probability), (NETWORKS, N), of N workflows by every network."""
        rows = np.array([features(task, workflow, self.channels) for task, workflow in pairs])
        R, logit = self._said(rows)
        return np.asarray(R)[:, : len(rows)], np.asarray(jax.nn.sigmoid(logit))[:, : len(rows)]

    def _said(self, features_NxF: np.ndarray):
        # few shapes, few compilations
        rows = np.resize(features_NxF, (bucket(len(features_NxF)), features_NxF.shape[1]))
        return _all_networks(self.params, (rows - self.mean) / self.scale)

    def save(self, path: str) -> None:
        arrays = {
            f"{name}{layer}": x
            for layer, pair in enumerate(self.params)
            for name, x in zip("wb", pair)
        }
        with whole(path, "wb") as file:
            np.savez(
                file,
                **arrays,
                mean=self.mean,
                scale=self.scale,
                channels=np.array(self.channels, str),
                examined=np.array([self.explained_variance, self.accuracy]),
            )

    @classmethod
    def load(cls, path: str) -> "Emulator":
        with np.load(path) as saved:
            layers = [(saved[f"w{k}"], saved[f"b{k}"]) for k in range(HIDDEN + 1)]
            return cls(
                layers,
                saved["mean"],
                saved["scale"],
                tuple(saved["channels"].tolist()),
                *saved["examined"].tolist(),
            )


def features(task: Task, workflow: Workflow, channels: Sequence[str]) -> np.ndarray:
    """(F,) float32: the task's and the workflow's figures, and what formulas make of them."""
    s, w = task.scenario, workflow
    # bits a resource element
    offered = task.throughput_mbps / (
        w.num_prb * SUBCARRIERS_PER_PRB * w.scs_khz * SYMBOLS_PER_MS_KHZ * 1e-3
    )
    fewest = granted(task, w)
    late = delay_ms(s, w) / task.delay_ms
    numbers = [
        math.log10(task.throughput_mbps),
        math.log10(task.delay_ms),
        math.log10(task.ber),
        s.snr_db / 10,
        math.log10(s.delay_spread_ns + 1),
        s.speed_mps / 10,
        math.log10(s.speed_mps + 0.1),
        s.num_tx_ant,
        s.num_rx_ant,
        math.log10(s.max_prb),
        math.log10(s.compute_gflops),
        ("low", "medium", "high").index(s.antenna_correlation),
        s.full_power_mhz,
        s.access == "aligned",
        math.log2(w.scs_khz / 15),
        w.bits_per_symbol / 2,
        w.num_layers,
        w.code_rate,
        w.num_dmrs,
        w.num_transmissions,
        w.combining == "ir",
        w.decoder_iterations / 10,
        math.log(w.decoder_iterations),
        math.log(w.num_prb),
        w.num_prb / s.max_prb,
        max(-30.0, headroom_db(task, w)) / 10,
        granted_snr_db(s, w) / 10,
        offered,
        offered / (w.bits_per_symbol * w.num_layers * w.code_rate),
        math.log(w.num_prb / (fewest.num_prb if fewest else 1.5 * s.max_prb)),
        surely_in_time(task, w),
        late,
        math.log(max(late, 1e-3)),
    ]
    choices = [
        getattr(w, field) == value
        for field in ("precoder", "detector", "estimator")
        for value in present(())[field]
    ]
    return np.array(
        [*numbers, *choices, *(s.channel == channel for channel in channels)], np.float32
    )


def ran(tasks: Sequence[Task], rows: Sequence[dict]) -> list[tuple[dict, Workflow]]:
    """The rows, of those of `reject.all_sampled`, whose response can be read and run, each with its
    workflow.
    """
    return [
        (row, w)
        for row in rows
        if (w := read(row["response"])[0]) and runs(tasks[row["task"]].scenario, w)
    ]


def verdicts(tasks: Sequence[Task], rows: Sequence[dict]) -> Verdicts:
    """What was sampled and ran, from the rows of `reject.all_sampled`."""
    channels = tuple(sorted({task.scenario.channel for task in tasks}))
    readable = ran(tasks, rows)
    return Verdicts(  # type: ignore[call-arg]
        np.array([features(tasks[row["task"]], w, channels) for row, w in readable]),
        *(
            np.array([row[key] for row, _ in readable], np.float32)
            for key in ("reward", "fulfilled")
        ),
        np.array([row["task"] for row, _ in readable]),
        channels,
    )


def _forward(params, x_NxF):
    """(R, logit of fulfilment) of N rows."""
    *hidden, (w, b) = params
    for weight, bias in hidden:
        x_NxF = jax.nn.gelu(x_NxF @ weight + bias)
    R_N, logit_N = (x_NxF @ w + b).T
    return R_N, logit_N


_all_networks = jax.jit(jax.vmap(_forward, (0, None)))


def fit(data: Verdicts, seed: int = 0, epochs: int = EPOCHS) -> Emulator:
    """Networks of three hidden layers, each from its own start and on tasks of its own; AdamW,
    squared error of R and cross-entropy.
    """
    mean, scale = data.features.mean(0), data.features.std(0) + 1e-3
    x, rng, tasks = (
        jnp.asarray((data.features - mean) / scale),
        np.random.default_rng(seed),
        np.unique(data.tasks),
    )
    left_out = [
        np.isin(data.tasks, rng.permutation(tasks)[: math.ceil(LEFT_OUT * len(tasks))])
        for _ in range(NETWORKS)
    ]
    number = min(int((~mask).sum()) for mask in left_out)
    batch = min(BATCH, number)
    steps = max(1, epochs * number // batch)
    rows = jnp.asarray([rng.choice(np.flatnonzero(~mask), (steps, batch)) for mask in left_out])
    sizes = [x.shape[1], *[WIDTH] * HIDDEN, 2]
    rewards, fulfilled = jnp.asarray(data.rewards), jnp.asarray(data.fulfilled)
    optimiser = optax.adamw(optax.cosine_onecycle_schedule(steps, LEARNING_RATE), weight_decay=1e-2)

    def loss(params, rows):
        R, logit = _forward(params, x[rows])
        return jnp.mean(
            (R - rewards[rows]) ** 2 + optax.sigmoid_binary_cross_entropy(logit, fulfilled[rows])
        )

    def train(key, rows):
        params = [
            (jax.random.normal(k, shape) * math.sqrt(2 / shape[0]), jnp.zeros(shape[1]))
            for k, shape in zip(jax.random.split(key, len(sizes) - 1), zip(sizes, sizes[1:]))
        ]

        def step(state, rows):
            params, moments = state
            updates, moments = optimiser.update(jax.grad(loss)(params, rows), moments, params)
            return (optax.apply_updates(params, updates), moments), None

        return jax.lax.scan(step, (params, optimiser.init(params)), rows)[0][0]

    params = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(seed), NETWORKS), rows)
    R, logit = map(np.asarray, _all_networks(params, x))
    unseen = [
        (one[mask], said[mask] > 0, data.rewards[mask], data.fulfilled[mask] > 0)
        for one, said, mask in zip(R, logit, left_out)
    ]
    return Emulator(
        jax.device_get(params),
        mean,
        scale,
        data.channels,
        float(
            np.mean(
                [
                    1 - ((one - true) ** 2).mean() / max(true.var(), 1e-12)
                    for one, _, true, _ in unseen
                ]
            )
        ),
        float(np.mean([(said == good).mean() for _, said, _, good in unseen])),
    )

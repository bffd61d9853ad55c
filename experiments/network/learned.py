"""Two models that are learnt instead of solved, for a coordinator's toolbox: powers of users that
disturb each other for the largest smallest SINR, and beams for the largest sum of rates.

    python -m experiments.network.learned [steps=2000] [seed=0] [out=FILE.json]    three minutes

Both are one network that is equivariant to the order of users (`shares`), trained on drawn problems
to make the utility large; it never sees a solution. Prints how much of the solver's utility each
reaches on problems that it has not seen, more users than in training among them, and how long a
batch takes: the network, and the solver until it is as good (max-min's is exact at once). WMMSE, of
200 rounds, is a stationary point and no optimum.

Dimensions in names: N users, M antennas, F features of a node, E of an edge, W width, O outputs.
"""

import functools
import sys
import time
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import guarded
from experiments.files import leave
from experiments.network.problems import draw_cells
from experiments.stages.machine import processor
from experiments.statistics import mean_interval, shown
from experiments.world.__main__ import options
from rldtf_jax.hosts import say

WIDTH, ROUNDS = 32, 3
BATCH, ANTENNAS, HELD_OUT = 128, 8, 500
SHARPNESS = 8.0  # of the smooth minimum that max-min is trained with


class Kind(NamedTuple):
    """What is learnt: problems by chance, their features, and the utility of shares of them."""

    draw: Callable[[np.random.Generator, int, int], Any]  # (rng, count, users) -> problems
    features: Callable[[Any], tuple[jax.Array, jax.Array]]  # one problem -> nodes, edges
    outputs: int  # shares of each user
    goal: Callable[[Any, jax.Array], jax.Array]  # (problem, (N, O) shares) -> what training raises
    utility: Callable[[Any, jax.Array], jax.Array]
    solve: Callable[[Any], np.ndarray]  # problems -> utilities of the solver
    # (problems, a mean utility) -> the solver, stopped once it is as good
    stopped: Callable[[Any, float], Callable[[], np.ndarray]]
    sizes: tuple[int, ...]  # users in training
    larger: int


def init(key: jax.Array, features: tuple[int, int], outputs: int) -> dict[str, Any]:
    """Parameters of `shares`."""
    F, E = features

    def dense(key, inputs, outputs):
        return jax.random.normal(key, (inputs, outputs)) / np.sqrt(inputs), jnp.zeros(outputs)

    keys = iter(jax.random.split(key, 2 + 2 * ROUNDS))
    return {
        "in": dense(next(keys), F, WIDTH),
        "messages": [dense(next(keys), 2 * WIDTH + E, WIDTH) for _ in range(ROUNDS)],
        "updates": [dense(next(keys), 3 * WIDTH, WIDTH) for _ in range(ROUNDS)],
        "out": (0.1 * dense(next(keys), WIDTH, outputs)[0], jnp.zeros(outputs)),
    }


def shares(params: dict[str, Any], node_NxF: jax.Array, edge_NxNxE: jax.Array) -> jax.Array:
    """(N, O) positive numbers, each column of sum 1: each user hears of every other, the mean and
    the largest of what it hears, ROUNDS times. Users in another order give the same in that order.
    """
    dense = lambda layer, x: x @ layer[0] + layer[1]
    h_NxW = dense(params["in"], node_NxF)
    N = len(h_NxW)
    for message, update in zip(params["messages"], params["updates"]):
        pairs = jnp.concatenate(
            [
                jnp.broadcast_to(h_NxW[:, None], (N, N, WIDTH)),
                jnp.broadcast_to(h_NxW[None], (N, N, WIDTH)),
                edge_NxNxE,
            ],
            -1,
        )
        heard_NxNxW = jax.nn.silu(dense(message, pairs))
        seen = jnp.concatenate([h_NxW, heard_NxNxW.mean(1), heard_NxNxW.max(1)], -1)
        h_NxW = h_NxW + jax.nn.silu(dense(update, seen))
    return jax.nn.softmax(dense(params["out"], h_NxW), axis=0)


class Coupled(NamedTuple):
    """SINR_k = s_k / (sum_j A_kj s_j + b_k) of shares s of the power."""

    coupling_NxN: Any  # A_kj = F_kj / g_k
    noise_N: Any  # b_k = n_k / (g_k P)


def draw_coupled(rng: np.random.Generator, count: int, users: int) -> Coupled:
    """Of `problems.draw_cells`, two to four users a cell, maximum ratio precoding."""
    drawn = []
    for _ in range(count):
        each = int(rng.choice([n for n in (2, 3, 4) if users % n == 0]))
        cells = draw_cells(rng, users // each, each, 64, reuse=int(rng.integers(1, 3)))
        gain, interference, noise = cells.maximum_ratio()
        drawn.append(Coupled(interference / gain[:, None], noise / (gain * users)))
    return Coupled(*(np.stack(x).astype(np.float32) for x in zip(*drawn)))


def coupled_features(problem: Coupled) -> tuple[jax.Array, jax.Array]:
    A, b = problem
    node_NxF = jnp.stack([jnp.log(jnp.diag(A)), jnp.log(b)], -1)
    return node_NxF / 4, jnp.stack([jnp.log(A), jnp.log(A.T)], -1) / 4


def sinr(problem: Coupled, share_NxO: jax.Array) -> jax.Array:
    s_N = share_NxO[:, 0]
    return s_N / (problem.coupling_NxN @ s_N + problem.noise_N)


def smooth_minimum(problem: Coupled, share_NxO: jax.Array) -> jax.Array:
    """Of log SINR."""
    return -jax.nn.logsumexp(-SHARPNESS * jnp.log(sinr(problem, share_NxO))) / SHARPNESS


def solve_coupled(problems: Coupled) -> np.ndarray:
    """Smallest SINRs at the optimum: one over spectral radii, as `oracles.max_min` has them."""
    A, b = (np.asarray(x, float) for x in problems)
    return 1 / np.abs(np.linalg.eigvals(A + b[:, :, None])).max(-1)


def draw_channels(rng: np.random.Generator, count: int, users: int) -> np.ndarray:
    """(count, N, M) complex coefficients over the noise, all power at hand being 1: Rayleigh, users
    at mean SNRs of 0 to 20 dB an antenna.
    """
    snr = 10 ** rng.uniform(0, 2, (count, users, 1))
    parts = rng.normal(size=(2, count, users, ANTENNAS)) * np.sqrt(snr / 2)
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def channel_features(h_NxM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of norms and cosines; phases of inner products, on which the best shares of three users and
    more depend too, are left out.
    """
    gram = jnp.abs(h_NxM.conj() @ h_NxM.T)
    norm_N = jnp.sqrt(jnp.diag(gram))
    cosine = gram / (norm_N[:, None] * norm_N)
    ratio = jnp.log(norm_N[:, None] / norm_N) / 2
    return jnp.log(norm_N)[:, None] / 2, jnp.stack([cosine, cosine**2, ratio], -1)


def beams(h_NxM: jax.Array, share_NxO: jax.Array) -> jax.Array:
    """(N, M) beams of total power 1 in the form that every optimum has (Bjornson, Bengtsson and
    Ottersten, 2014, arXiv:1404.0408): (I + sum_i l_i h_i h_i^H)^-1 h_k, normed, times sqrt(p_k);
    the shares are of l, which sum to the power, and of p. Equal shares are regularised ZF.
    """
    l_N, p_N = share_NxO.T
    matrix = jnp.eye(h_NxM.shape[1]) + (h_NxM.T * l_N) @ h_NxM.conj()
    w_NxM = jnp.linalg.solve(matrix, h_NxM.T).T
    return w_NxM / jnp.linalg.norm(w_NxM, axis=1, keepdims=True) * jnp.sqrt(p_N)[:, None]


def sum_rate(h_NxM, w_NxM) -> jax.Array:
    """Bits, of beams: sum_k log2(1 + |h_k^H w_k|^2 / (sum_{j != k} |h_k^H w_j|^2 + 1))."""
    heard_NxN = jnp.abs(h_NxM.conj() @ w_NxM.T) ** 2
    own_N = jnp.diag(heard_NxN)
    return jnp.sum(jnp.log2(1 + own_N / (heard_NxN.sum(1) - own_N + 1)))


@functools.partial(jax.jit, static_argnames="rounds")
def wmmse(h_NxM, rounds: int = 200) -> jax.Array:
    """Beams at a stationary point of the sum of rates, from regularised ZF (Shi et al., 2011, with
    the noise scaled by the power that is used, which meets the limit without a search:
    Christensen et al., 2008).
    """
    N, M = h_NxM.shape

    def step(w_NxM, _):
        used = jnp.sum(jnp.abs(w_NxM) ** 2)
        heard_NxN = h_NxM.conj() @ w_NxM.T
        own_N = jnp.diag(heard_NxN)
        u_N = own_N / (jnp.sum(jnp.abs(heard_NxN) ** 2, 1) + used)
        v_N = 1 / jnp.maximum(1 - jnp.real(jnp.conj(u_N) * own_N), 1e-6)
        weight_N = v_N * jnp.abs(u_N) ** 2
        matrix = (h_NxM.T * weight_N) @ h_NxM.conj() + weight_N.sum() * jnp.eye(M)
        w_NxM = jnp.linalg.solve(matrix, (h_NxM * (u_N * v_N)[:, None]).T).T
        return w_NxM, None

    start = beams(h_NxM, jnp.full((N, 2), 1 / N))
    w_NxM, _ = jax.lax.scan(step, start, None, length=rounds)
    return w_NxM / jnp.sqrt(jnp.sum(jnp.abs(w_NxM) ** 2))


def solve_channels(h_BxNxM: np.ndarray, rounds: int = 200) -> np.ndarray:
    return np.asarray(_solve_channels(h_BxNxM, rounds))


@functools.partial(jax.jit, static_argnames="rounds")
def _solve_channels(h_BxNxM, rounds: int):
    return jax.vmap(lambda h: sum_rate(h, wmmse(h, rounds)))(h_BxNxM)


def as_good(h_BxNxM: np.ndarray, utility: float) -> Callable[[], np.ndarray]:
    """WMMSE with the fewest rounds of a few that reach a mean utility."""
    few = (1, 2, 3, 5, 10, 20, 50, 100)
    rounds = next((n for n in few if solve_channels(h_BxNxM, n).mean() >= utility), 200)
    return lambda: solve_channels(h_BxNxM, rounds)


KINDS = {
    "max_min_power": Kind(
        draw_coupled,
        coupled_features,
        1,
        smooth_minimum,
        lambda problem, share: sinr(problem, share).min(),
        solve_coupled,
        lambda problems, utility: lambda: solve_coupled(problems),
        (4, 6, 8, 9, 12),
        20,
    ),
    "beams": Kind(
        draw_channels,
        channel_features,
        2,
        lambda h, share: sum_rate(h, beams(h, share)),
        lambda h, share: sum_rate(h, beams(h, share)),
        solve_channels,
        as_good,
        (2, 3, 4, 6),
        8,
    ),
}


def train(kind: Kind, steps: int, seed: int, say: Callable[[str], None] = say) -> dict[str, Any]:
    """Parameters after `steps` of Adam on freshly drawn problems, the sizes in turn."""
    rng = np.random.default_rng((seed, 0))
    node, edge = kind.features(jax.tree.map(lambda x: x[0], kind.draw(rng, 1, kind.sizes[0])))
    params = init(jax.random.key(seed), (node.shape[-1], edge.shape[-1]), kind.outputs)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(3e-3, max(1, steps), 0.02)),
    )

    @jax.jit
    def step(params, state, problems):
        def cost(params):
            return -jnp.mean(
                jax.vmap(lambda one: kind.goal(one, shares(params, *kind.features(one))))(problems)
            )

        value, gradient = jax.value_and_grad(cost)(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    for i in range(steps):
        problems = kind.draw(rng, BATCH, kind.sizes[i % len(kind.sizes)])
        params, state, value = step(params, state, problems)
        if (i + 1) % 500 == 0:
            say(f"step {i + 1} of {steps}: {-float(value):.3f}")
    return params


def utilities(kind: Kind, params, problems) -> np.ndarray:
    return np.asarray(_utilities(kind.features, kind.utility, params, problems))


@functools.partial(jax.jit, static_argnames=("features", "utility"))
def _utilities(features, utility, params, problems):
    return jax.vmap(lambda one: utility(one, shares(params, *features(one))))(problems)


def seconds(function: Callable[[], Any]) -> float:
    """Of a call, the best of five behind one that compiles."""
    function()
    found = []
    for _ in range(5):
        begun = time.perf_counter()
        function()
        found.append(time.perf_counter() - begun)
    return min(found)


def judged(kind: Kind, params, seed: int) -> dict[str, Any]:
    """Shares of the solver's utility on problems that training has not drawn, of the network and of
    equal shares, and what both take for a batch.
    """
    found: dict[str, Any] = {}
    equal = jax.tree.map(jnp.zeros_like, params)  # all logits the same
    for users in (*kind.sizes, kind.larger):
        problems = kind.draw(np.random.default_rng((seed, 1, users)), HELD_OUT, users)
        best = kind.solve(problems)
        reached = {
            name: utilities(kind, some, problems) / best
            for name, some in (("learnt", params), ("equal shares", equal))
        }
        stopped = kind.stopped(problems, float((reached["learnt"] * best).mean()))
        found[str(users)] = {
            name: [float(x.mean()), *mean_interval(x)] for name, x in reached.items()
        } | {
            "milliseconds for a hundred": {
                "learnt": 1e5 / HELD_OUT * seconds(lambda: utilities(kind, params, problems)),  # noqa: B023
                "solver": 1e5 / HELD_OUT * seconds(stopped),
            }
        }
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        "| | users | learnt, of the solver's utility | equal shares | ms a hundred: learnt |"
        " solver |",
        "|---|---|---|---|---|---|",
    ]
    for name, sizes in found.items():
        for users, row in sizes.items():
            shares = f"{shown(row['learnt'])} | {shown(row['equal shares'])}"
            took = row["milliseconds for a hundred"]
            lines.append(
                f"| {name} | {users} | {shares} | {took['learnt']:.2f} | {took['solver']:.2f} |"
            )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    asked = options(argv, steps=2000, seed=0, out=None)
    found = {}
    for name, kind in KINDS.items():
        say(name)
        found[name] = judged(kind, train(kind, asked.steps, asked.seed), asked.seed)
    print(table(found))
    leave({"processor": processor(), "steps": asked.steps} | found, asked.out)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        guarded(lambda: main(sys.argv[1:]))

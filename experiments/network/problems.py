"""Allocation problems: numbers in, numbers out, a utility, constraints, instances by chance.

A problem is a frozen dataclass of plain numbers; a solution is an array. `utility` is what is to be
made large, `level` the same on a scale that starts at 0 (what each would have if all had the same),
`violation` how far a solution is from the constraints (0: feasible). `oracles.solve` knows the
optimum.
"""

import dataclasses
import math
from typing import ClassVar, Sequence

import numpy as np

FAIRNESS = ("sum", "proportional", "max-min")
MAX_MIN, MAX_PRODUCT, SUM_RATE = OBJECTIVES = ("max-min", "max-product", "sum-rate")
TOLERANCE = 1e-9  # of constraints, relative to their scale


def alpha_fair(rates: np.ndarray, alpha: float) -> float:
    """Sum of r^(1 - alpha) / (1 - alpha): the sum of rates at 0, of their logarithms at 1, and the
    smallest rate at infinity (Mo and Walrand, 2000).
    """
    rates = np.asarray(rates, float)
    if math.isinf(alpha):
        return float(rates.min())
    with np.errstate(divide="ignore"):
        if alpha == 1:
            return float(np.log(rates).sum())
        return float((rates ** (1 - alpha) / (1 - alpha)).sum())


@dataclasses.dataclass(frozen=True)
class Bandwidth:
    """Integer units of bandwidth for n users, each with a power of its own.

    snr: of each user if all its power is put into one unit.
    literal: rates linear in the units, b log2(1 + s), as the paper writes them, where proportional
      fairness is the equal split whatever the gains; otherwise b log2(1 + s / b), the rate of a
      user whose power is shared by its units.
    least: bits that each user gets at least.
    """

    kind: ClassVar[str] = "bandwidth"
    units: int
    snr: tuple[float, ...]
    alpha: float = 1.0
    least: tuple[float, ...] | None = None
    literal: bool = False

    @property
    def size(self) -> int:
        return len(self.snr)

    def rates(self, units) -> np.ndarray:
        b, s = np.asarray(units, float), np.asarray(self.snr)
        if self.literal:
            return b * np.log2(1 + s)
        return np.where(b > 0, b * np.log2(1 + s / np.where(b > 0, b, 1.0)), 0.0)

    def utility(self, units) -> float:
        return alpha_fair(self.rates(units), self.alpha)

    def level(self, utility: float) -> float:
        """The rate that, had by all, gives the utility."""
        if math.isinf(self.alpha):
            return utility
        if self.alpha == 1:
            return math.exp(utility / self.size)
        mean = (1 - self.alpha) * utility / self.size
        return mean ** (1 / (1 - self.alpha)) if math.isfinite(mean) else 0.0

    def violation(self, units) -> float:
        b = np.asarray(units, float)
        if b.shape != (self.size,) or not np.isfinite(b).all():
            return math.inf
        found = max(abs(b - np.round(b)).max(), -b.min(), (b.sum() - self.units) / self.units)
        if self.least is not None:
            found = max(found, (np.asarray(self.least) - self.rates(b)).max())
        return _beyond_rounding(found)


@dataclasses.dataclass(frozen=True)
class WaterFilling:
    """Power over parallel channels: the sum of log2(1 + p / noise), p >= 0, in all at most
    `power`.
    """

    kind: ClassVar[str] = "water-filling"
    power: float
    noise: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.noise)

    def utility(self, power) -> float:
        return float(np.log2(1 + np.asarray(power, float) / np.asarray(self.noise)).sum())

    def level(self, utility: float) -> float:
        return utility

    def violation(self, power) -> float:
        return _overspent(power, self.power, self.size)


@dataclasses.dataclass(frozen=True)
class Power:
    """Powers of n users that disturb each other: SINR_k = g_k p_k / (sum_j F_kj p_j + n_k), in all
    at most `power`.

    objective: of OBJECTIVES, over SINRs (max-min, max-product: the sum of log2) or over
      log2(1 + SINR) (sum-rate).
    """

    kind: ClassVar[str] = "power"
    power: float
    gain: tuple[float, ...]
    interference: tuple[tuple[float, ...], ...]  # F, row k: what user k hears of the others
    noise: tuple[float, ...]
    objective: str = MAX_MIN

    @property
    def size(self) -> int:
        return len(self.gain)

    def sinr(self, power) -> np.ndarray:
        p = np.asarray(power, float)
        heard = np.asarray(self.interference) @ p + np.asarray(self.noise)
        return np.asarray(self.gain) * p / heard

    def utility(self, power) -> float:
        sinr = self.sinr(power)
        if self.objective == MAX_MIN:
            return float(sinr.min())
        with np.errstate(divide="ignore"):
            return float(np.log2(sinr if self.objective == MAX_PRODUCT else 1 + sinr).sum())

    def level(self, utility: float) -> float:
        """SINRs, of which a product stands for their geometric mean, or a sum of rates."""
        return 2 ** (utility / self.size) if self.objective == MAX_PRODUCT else utility

    def violation(self, power) -> float:
        return _overspent(power, self.power, self.size)


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One resource unit (or base station) for each user, none twice: the sum of `value`, users x
    units, of the chosen pairs. A solution is the unit of each user.
    """

    kind: ClassVar[str] = "assignment"
    value: tuple[tuple[float, ...], ...]

    @property
    def size(self) -> int:
        return len(self.value)

    def utility(self, units) -> float:
        chosen = np.asarray(units, int)
        return float(np.asarray(self.value)[np.arange(self.size), chosen].sum())

    def level(self, utility: float) -> float:
        return utility

    def violation(self, units) -> float:
        chosen = np.asarray(units, float)
        if chosen.shape != (self.size,) or not np.isin(chosen, range(len(self.value[0]))).all():
            return math.inf
        return float(self.size - len(np.unique(chosen)))


@dataclasses.dataclass(frozen=True)
class Slicing:
    """A grant for services that each want a number of resource blocks or nothing: the sum of
    `worth` of those that are served. A solution says 1 or 0 of each.
    """

    kind: ClassVar[str] = "slicing"
    blocks: int
    wanted: tuple[int, ...]
    worth: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.wanted)

    def utility(self, served) -> float:
        return float(np.asarray(served, float) @ np.asarray(self.worth))

    def level(self, utility: float) -> float:
        return utility

    def violation(self, served) -> float:
        x = np.asarray(served, float)
        if x.shape != (self.size,) or not np.isin(x, (0, 1)).all():
            return math.inf
        return max(0.0, float(x @ np.asarray(self.wanted) - self.blocks) / self.blocks)


@dataclasses.dataclass(frozen=True)
class Leftover:
    """Two sub-tasks, of which the second depends on the first: services that take all or nothing of
    a grant, and users who share the blocks that those leave. The services come first, whatever is
    left. A solution is (served, units).

    users: as if they had the whole grant.
    """

    kind: ClassVar[str] = "two-step"
    services: Slicing
    users: Bandwidth

    @property
    def size(self) -> int:
        return self.services.size + self.users.size

    def left(self, served) -> int:
        return int(self.services.blocks - np.asarray(served) @ np.asarray(self.services.wanted))

    def after(self, served) -> Bandwidth:
        """What is left to share."""
        return dataclasses.replace(self.users, units=self.left(served))

    def utility(self, solution) -> float:
        """Of the services, which decide."""
        return self.services.utility(solution[0])

    def level(self, utility: float) -> float:
        return utility

    def violation(self, solution) -> float:
        if not isinstance(solution, tuple) or len(solution) != 2:
            return math.inf
        served, units = solution
        first = self.services.violation(served)
        if first > 0:
            return first
        if self.left(served) == 0:
            return math.inf if np.shape(units) != (self.users.size,) else float(np.sum(units))
        return self.after(served).violation(units)


Problem = Bandwidth | WaterFilling | Power | Assignment | Slicing | Leftover


def _overspent(power, limit: float, size: int) -> float:
    """How far powers are below 0, or in all above a limit, as a share of it."""
    p = np.asarray(power, float)
    if p.shape != (size,) or not np.isfinite(p).all():
        return math.inf
    return _beyond_rounding(max(-p.min() / limit, p.sum() / limit - 1))


def _beyond_rounding(violation: float) -> float:
    return float(violation) if violation > TOLERANCE else 0.0


@dataclasses.dataclass(frozen=True)
class Cells:
    """Large-scale state of L cells with K users each and M antennas a base station.

    gain: (L, L, K), gain[j][l][k] from base station j to user k of cell l (mean square of a
      coefficient, over the noise).
    pilot_snr: energy of a user's pilot over the noise; the users k of all cells in the same pilot
      group send the same one. groups: of each cell (reuse 1: all 0).
    """

    antennas: int
    gain: tuple[tuple[tuple[float, ...], ...], ...]
    pilot_snr: float
    groups: tuple[int, ...]

    def estimated(self) -> np.ndarray:
        """gamma (L, L, K): mean square of the MMSE estimate of each coefficient from base station j
        to user (l, k): pilot_snr gain^2 / (1 + pilot_snr x the gains of all who send that pilot).
        """
        beta = np.asarray(self.gain)
        same = np.equal.outer(self.groups, self.groups)  # (l, l')
        heard = np.einsum("lm,jmk->jlk", same, beta)
        return self.pilot_snr * beta**2 / (1 + self.pilot_snr * heard)

    def maximum_ratio(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(gain, interference, noise) of `Power` for the downlink with maximum ratio precoding,
        users in the order (l, k), powers over the noise.

        With w_lk = g^_lk / sqrt(M gamma_lk), g^ the estimate at the user's own base station:
        E{g^H w} = sqrt(M gamma^l_lk) is what the user knows of its channel (use and then forget);
        var{g^H w} and every other precoder of base station j add beta^j_lk each; a precoder of the
        same pilot points at the user too and adds M gamma^j_lk. So SINR_lk = M gamma^l_lk p_lk /
        (sum_j,i beta^j_lk p_ji + sum_{j != l, same pilot} M gamma^j_lk p_jk + 1): Marzetta,
        Larsson, Yang and Ngo, Fundamentals of Massive MIMO (2016), chapter 4; Bjornson, Hoydis
        and Sanguinetti, Massive MIMO Networks (2017), corollary 4.7.
        """
        beta, gamma = np.asarray(self.gain), self.estimated()
        L, _, K = beta.shape
        M = self.antennas
        wanted = M * gamma[np.arange(L), np.arange(L)].reshape(-1)  # (l, k)
        heard = np.empty((L, K, L, K))  # user (l, k) of the precoder of (j, i)
        for j in range(L):
            heard[:, :, j, :] = beta[j][:, :, None]
            for l in range(L):  # noqa: E741, the cell of the derivation
                if l != j and self.groups[l] == self.groups[j]:
                    heard[l, range(K), j, range(K)] += M * gamma[j, l]
        return wanted, heard.reshape(L * K, L * K), np.ones(L * K)


def draw_cells(
    rng: np.random.Generator, cells: int, users: int, antennas: int, reuse: int = 1
) -> Cells:
    """Base stations on a line 500 m apart, users anywhere within 250 m of their own, a path loss of
    3.76 decades a decade of distance beyond 35 m and shadowing of 8 dB (TR 36.814, urban macro), an
    SNR of 20 dB at the cell's edge.
    """
    station = 500.0 * np.arange(cells)
    user = station[:, None] + rng.uniform(-250, 250, (cells, users))
    distance = np.maximum(np.abs(station[:, None, None] - user), 35.0)
    shadowing = 10 ** (rng.normal(0, 8, distance.shape) / 10)
    gain = 10**2 * (distance / 250) ** -3.76 * shadowing
    groups = tuple(int(group) for group in np.arange(cells) % reuse)
    return Cells(antennas, _nested(gain), float(users * reuse), groups)


def _nested(array: np.ndarray):
    return tuple(map(_nested, array)) if array.ndim > 1 else tuple(map(float, array))


def draw(kind: str, rng: np.random.Generator, size: int) -> Problem:
    """An instance of a kind with `size` users, channels or services.

    Raises:
      ValueError: an unknown kind.
    """
    if kind == Bandwidth.kind:
        snr = tuple(float(x) for x in np.round(10 ** rng.uniform(0, 3, size), 1))
        units = int(rng.integers(2 * size, 6 * size))
        alpha = float(rng.choice([0.0, 1.0, 2.0, math.inf]))
        problem = Bandwidth(units, snr, alpha)
        if rng.random() < 0.5:
            share = problem.rates(np.full(size, units // size))
            least = tuple(float(x) for x in np.round(share * rng.uniform(0, 0.8, size), 2))
            problem = dataclasses.replace(problem, least=least)
        return problem
    if kind == WaterFilling.kind:
        noise = np.round(10 ** rng.uniform(-2, 1, size), 3)
        return WaterFilling(float(rng.integers(1, 20)), tuple(map(float, np.maximum(noise, 1e-3))))
    if kind == Power.kind:
        cells = max(2, size // 3)
        state = draw_cells(rng, cells, -(-size // cells), 64, reuse=int(rng.integers(1, 3)))
        gain, interference, noise = state.maximum_ratio()
        return Power(
            float(len(gain)),
            tuple(map(float, gain)),
            _nested(interference),
            tuple(map(float, noise)),
            str(rng.choice(OBJECTIVES)),
        )
    if kind == Assignment.kind:
        value = np.round(rng.gamma(2.0, 1.0, (size, size + int(rng.integers(0, 3)))), 2)
        return Assignment(_nested(value))
    if kind == Slicing.kind:
        wanted = rng.integers(1, 40, size)
        worth = np.round(wanted * rng.uniform(0.5, 1.5, size), 1)
        blocks = int(max(1, wanted.sum() * rng.uniform(0.3, 0.8)))
        return Slicing(blocks, tuple(map(int, wanted)), tuple(map(float, worth)))
    if kind == Leftover.kind:
        few = max(2, size // 2)
        services = draw(Slicing.kind, rng, few)
        users = draw(Bandwidth.kind, rng, max(2, size - few))
        blocks = services.blocks + 2 * users.size
        return Leftover(
            dataclasses.replace(services, blocks=blocks),
            dataclasses.replace(users, units=blocks, least=None),
        )
    raise ValueError(f"kind = {kind!r}: expected one of {', '.join(KINDS)}")


KINDS: Sequence[str] = tuple(
    one.kind for one in (Bandwidth, WaterFilling, Power, Assignment, Slicing, Leftover)
)

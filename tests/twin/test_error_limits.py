"""What counts say of error rates: limits that hold as often as they claim, estimates in the right
order, decisions that are rarely wrong.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from twin import Scenario, Settings, Target, Twin, Workflow, physical
from twin.chain import link
from twin.delay import delay_ms, harq_round_trip_ms, throughput_mbps
from twin.physical import Counts
from twin.statistics import (
    bit_limits,
    bit_rate,
    block_limits,
    block_rate,
    error_rates,
    rate_limits,
    share_limits,
)
from twin.twin import FIRST_LOOK

LINK = Settings(method="link")


# Pure binomial draws: by enumeration


@pytest.mark.parametrize("num_blocks", [32, 128, 1000])
@pytest.mark.parametrize("rate", [1e-3, 0.01, 0.1, 0.5, 0.93])
def test_block_limits_hold_at_any_rate(rate, num_blocks):
    """Each side is passed with at most half the risk, and for many blocks with not much less:
    Clopper and Pearson.
    """
    k = np.arange(num_blocks + 1)
    low, high = np.array([block_limits(int(errors), num_blocks, 0.05) for errors in k]).T
    probability = binom.pmf(k, num_blocks, rate)
    above, below = probability[low > rate].sum(), probability[high < rate].sum()
    assert max(above, below) <= 0.025 + 1e-12
    if num_blocks * min(rate, 1 - rate) > 50:
        assert min(above, below) > 0.012  # a wider interval than needed would be of no use
    assert (
        np.all(np.diff(low) >= 0)
        and np.all(np.diff(high) >= 0)
        and np.all(low <= k / num_blocks)
        and np.all(k / num_blocks <= high)
    )


def test_no_error_in_n_blocks_is_less_than_about_four_in_n():
    low, high = block_limits(0, 64, 0.05)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 64), rel=1e-9)
    assert block_limits(64, 64, 0.05) == (pytest.approx(0.025 ** (1 / 64)), 1.0)


# Links that fade, at several rates

LINKS = [  # SNRs for block error rates from 1e-3 to 1/2
    ("rayleigh", dict(num_rx_ant=1, snr_db=5), dict(num_prb=2)),
    ("rayleigh", dict(num_rx_ant=1, snr_db=13), dict(num_prb=2)),
    ("rayleigh", dict(num_rx_ant=2, snr_db=14), dict(num_prb=2)),
    ("rayleigh", dict(num_rx_ant=2, snr_db=7), dict(num_prb=2, code="none")),
    (
        "rayleigh",
        dict(num_rx_ant=2, num_tx_ant=2, snr_db=11),
        dict(num_prb=2, num_layers=2, detector="lmmse"),
    ),
    ("tdl-a", dict(num_rx_ant=1, snr_db=9, delay_spread_ns=300), dict(num_prb=4, estimator="ls")),
    (
        "tdl-a",
        dict(num_rx_ant=2, snr_db=9.3, delay_spread_ns=30),
        dict(num_prb=4, bits_per_symbol=4),
    ),
    (
        "tdl-b",
        dict(num_rx_ant=1, snr_db=12, speed_mps=30),
        dict(num_prb=2, bits_per_symbol=4, num_dmrs=2, estimator="lmmse"),
    ),
    ("tdl-c", dict(num_rx_ant=2, snr_db=3, speed_mps=3), dict(num_prb=2, num_transmissions=2)),
    (
        "tdl-a",
        dict(num_rx_ant=1, snr_db=4, speed_mps=1),
        dict(num_prb=2, num_transmissions=3, combining="chase"),
    ),
    ("tdl-d", dict(num_rx_ant=1, snr_db=4), dict(num_prb=2, estimator="ls")),
    ("awgn", dict(num_rx_ant=1, snr_db=1.4), dict(num_prb=3)),
]
LONG, SHORT = 256, 4  # rounds of a long run, and of a sample of it


def points(links, rounds):
    for channel, scenario, workflow in links:
        point = physical(
            Scenario(channel=channel, **dict(num_tx_ant=1) | scenario),
            Workflow(**dict(estimator="perfect") | workflow),
        )
        yield [replace(point, rounds=(r, r + 1)) for r in range(rounds)]


@pytest.fixture(scope="module")
def rounds(simulate):
    """Counts of every round of a long run of every link, [links][rounds]."""
    runs = list(points(LINKS, LONG))
    counts = iter(simulate([point for run in runs for point in run]))
    return [[next(counts) for _ in run] for run in runs]


def total(counts):
    return sum(counts, Counts())


def share_of_wrong_bits(counts):
    """The bit error rate of a long run: slots weigh alike."""
    return counts.error_share / counts.num_blocks


def test_the_links_span_the_rates_that_matter(rounds):
    rates = sorted(total(run).block_errors / total(run).num_blocks for run in rounds)
    assert rates[0] < 4e-3 and rates[-1] > 0.3 and sum(0.005 < rate < 0.3 for rate in rates) >= 5, (
        rates
    )


def covered(rounds, samples):
    """Share of the samples whose intervals contain the long run's rates, by link: [links, (block,
    bit)].
    """
    out = []
    for run in rounds:
        long = total(run)
        truth = long.block_errors / long.num_blocks, share_of_wrong_bits(long)
        inside = [
            [
                low <= rate <= high
                for rate, (low, high) in zip(truth, (rate_limits(c, -1, 0.05), bit_limits(c, 0.05)))
            ]
            for c in samples(run)
        ]
        out.append(np.mean(inside, axis=0))
    return np.array(out)


def test_intervals_contain_what_a_long_run_finds(rounds):
    """128 blocks each, 64 samples a link. 93 % is demanded of all, and no link may stand out: 54 of
    64 is 3 deviations from 95 %.
    """
    inside = covered(rounds, lambda run: [total(run[r : r + SHORT]) for r in range(0, LONG, SHORT)])
    assert np.all(inside.mean(axis=0) >= 0.93) and np.all(inside >= 54 / 64), inside


def test_intervals_hold_where_simulation_stops_at_enough_errors(rounds):
    """As Twin.evaluate does: the number of blocks then depends on the errors."""
    settings = replace(LINK, max_blocks=256, enough_block_errors=15)

    def stopped(run):
        samples = []
        for start in range(0, LONG, 8):
            counts = Counts()
            for part in run[start : start + 8]:
                counts += part
                if counts.enough(settings):
                    break
            samples.append(counts)
        return samples

    inside = covered(rounds, stopped)
    assert np.all(inside.mean(axis=0) >= 0.93) and np.all(inside >= 0.8), inside
    assert any(len({c.num_blocks for c in stopped(run)}) > 1 for run in rounds)


def test_intervals_are_no_wider_than_they_must_be(rounds):
    """Of 8192 blocks with some hundred errors: within 40 % of the block error rate, within 60 % of
    the bit error rate.
    """
    for run in rounds:
        counts = total(run)
        if counts.block_errors >= 200:
            for (low, high), rate, width in (
                (rate_limits(counts, -1, 0.05), counts.block_errors / counts.num_blocks, 0.4),
                (bit_limits(counts, 0.05), share_of_wrong_bits(counts), 0.6),
            ):
                assert high - low < width * rate, (counts, low, high)


def test_estimates_are_a_long_runs_rates_in_the_mean(rounds):
    """Half an error in a block more: what a prior of Jeffreys adds is the same for all."""
    for run in rounds:
        long, samples = total(run), [total(run[r : r + SHORT]) for r in range(0, LONG, SHORT)]
        bler = np.mean([error_rates(c)[1] for c in samples])
        n = samples[0].num_blocks
        assert bler == pytest.approx((long.block_errors / LONG * SHORT + 0.5) / (n + 1), rel=1e-9)
        ber, true = np.array([error_rates(c)[0] for c in samples]), share_of_wrong_bits(long)
        assert true / 1.5 - 1e-3 < ber.mean() < 1.5 * true + 1e-3


def test_a_slot_is_the_sample_not_the_bit(rounds):
    """Where a slot fades as a whole, bits are far from independent: their binomial interval would
    miss most of the time.
    """
    run = rounds[3]  # uncoded, Rayleigh
    truth, missed = share_of_wrong_bits(total(run)), 0
    for r in range(0, LONG, SHORT):
        counts = total(run[r : r + SHORT])
        low, high = block_limits(counts.bit_errors, counts.num_bits, 0.05)
        missed += not low <= truth <= high
    assert missed > 0.5 * LONG / SHORT


def test_intervals_of_expected_rates_hold_too():
    """method="esm", whose slots say probabilities: the mean over 128 of them against the mean over
    8192.
    """
    chosen = [LINKS[i] for i in (0, 1, 2, 4, 6, 8)]
    runs = [
        [link.simulate(point, 0, Settings(method="esm")) for point in run]
        for run in points(chosen, LONG)
    ]
    inside = covered(runs, lambda run: [total(run[r : r + SHORT]) for r in range(0, LONG, SHORT)])
    assert np.all(inside.mean(axis=0) >= 0.93) and np.all(inside >= 54 / 64), inside


# Estimates


@st.composite
def blocks(draw):
    n = draw(st.integers(1, 4096))
    return draw(st.integers(0, n)), n


@given(blocks())
def test_an_error_never_lowers_and_a_good_block_never_raises_the_estimate(counted):
    k, n = counted
    rate = block_rate(k, n)
    assert 0 < rate < 1 and block_rate(k, n + 1) < rate < block_rate(k + 1, n + 1)
    assert k == n or rate < block_rate(k + 1, n)
    low, high = block_limits(k, n, 0.05)
    assert low <= rate <= high


@given(
    shares=st.lists(st.floats(1e-4, 0.6), max_size=12),
    good=st.integers(1, 500),
    share=st.floats(1e-4, 0.6),
)
def test_the_bit_error_rate_moves_with_the_blocks_too(shares, good, share):
    """One more good block lowers it, a good one that turns wrong raises it, whatever its share of
    wrong bits.
    """

    def counts(shares, good):
        n = len(shares) + good
        return Counts(
            n,
            1000 * n,
            round(1000 * sum(shares)),
            (len(shares),),
            sum(shares),
            sum(s * s for s in shares),
        )

    now = counts(shares, good)
    rate = bit_rate(now)
    assert 0 < rate < block_rate(now.block_errors, now.num_blocks)
    assert bit_rate(counts(shares, good + 1)) < rate
    assert rate < bit_rate(counts([*shares, share], good - 1))
    low, high = bit_limits(now, 0.05)
    assert 0 <= low <= high <= 1 and low <= rate and (rate <= high or len(shares) < 4)


@given(
    shares=st.lists(st.floats(1e-4, 0.6), min_size=4, max_size=50),
    risk=st.sampled_from((0.001, 0.05, 0.3)),
)
def test_limits_of_the_share_are_students(shares, risk):
    from scipy.stats import t

    counts = Counts(100, 10**5, 1, (len(shares),), sum(shares), sum(s * s for s in shares))
    low, high = share_limits(counts, risk)
    expected = t.interval(
        1 - risk,
        len(shares) - 1,
        np.mean(shares),
        np.std(shares, ddof=1) / np.sqrt(len(shares)) + 1e-12,
    )
    assert low == pytest.approx(max(0, expected[0]), abs=1e-6) and high == pytest.approx(
        min(1, expected[1]), abs=1e-6
    )


@given(counts=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 0.5)), min_size=1, max_size=6))
def test_counts_add_up_in_any_order(counts):
    parts = [Counts(64, 6400, k, (2 * k, k), k * share, k * share**2) for k, share in counts]
    whole = total(parts)
    assert whole.failed == (
        2 * sum(k for k, _ in counts),
        sum(k for k, _ in counts),
    ) and whole.num_blocks == 64 * len(parts)
    assert total(parts[::-1]).failed == whole.failed and total(
        parts[::-1]
    ).error_share == pytest.approx(whole.error_share)
    assert Counts() + whole == whole


# Sequential decisions, on slots that fail with known probabilities


class Bernoulli:
    """A pool whose slots fail with a given probability by SNR, and then have a tenth of their bits
    wrong.
    """

    def __init__(self, rates, seed):
        self.rates, self.seed = rates, seed

    def __call__(self, workers, settings, seed):
        return self

    def start(self): ...

    def close(self): ...

    def num_traces(self):
        return 0

    def run(self, points):
        for point in points:
            yield (
                point,
                counted(
                    self.rates[point.snr_db], point.num_transmissions, self.seed, *point.rounds
                ),
                0.0,
            )


@cache
def draws(rate, num_transmissions, seed):
    rng = np.random.default_rng([int(1e6 * rate), num_transmissions, seed])
    return rng.random((4096, num_transmissions)) < rate


def counted(rate, num_transmissions, seed, first, last):
    failed = np.logical_and.accumulate(
        draws(rate, num_transmissions, seed)[32 * first : 32 * last], axis=1
    ).sum(axis=0)
    n, k = 32 * (last - first), int(failed[-1])
    return Counts(n, 1000 * n, 100 * k, tuple(map(int, failed)), 0.1 * k, 0.01 * k)


def verdicts(rate, target, seeds, workflow=Workflow(), **asked):
    out = []
    for seed in range(seeds):
        with Twin(pool=Bernoulli({0.0: rate}, seed)) as twin:
            out.append(twin.decide([(Scenario(snr_db=0.0), workflow)], [target], **asked)[0])
    return out


@pytest.mark.parametrize("target", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("ratio", [1 / 3, 1 / 1.5, 1.5, 3])
def test_few_decisions_are_wrong_and_most_are_made(target, ratio):
    """At a risk of 5 %. 1.5 times off a target of 1 % is the hardest: 4096 blocks hold 27 or 61
    errors for 41.
    """
    found = verdicts(ratio * target, Target(bler=target), 200)
    right = ratio < 1
    wrong = sum(d.met is (not right) for d in found)
    assert wrong <= 10, wrong
    decided = sum(d.met is not None for d in found)
    assert decided >= (196 if target > 0.01 or ratio in (1 / 3, 3) else 40)
    spent = np.mean([d.qos.num_blocks for d in found])
    if target > 0.01 and ratio in (1 / 3, 3):
        assert spent < 400


def test_at_the_target_nothing_is_decided():
    """The truth is on the limit: a verdict would be wrong or luck, and comes at most at the
    risk.
    """
    found = verdicts(0.1, Target(bler=0.1), 200)
    assert sum(d.met is not None for d in found) <= 10
    assert all(d.qos.num_blocks == 4096 for d in found if d.met is None)


def test_a_smaller_risk_takes_more_blocks():
    careful, bold = (
        np.mean([d.qos.num_blocks for d in verdicts(0.2, Target(bler=0.1), 60, risk=risk)])
        for risk in (0.001, 0.3)
    )
    assert careful > 1.5 * bold


@pytest.mark.parametrize(
    "met, target",
    [
        (True, Target(ber=0.03)),
        (False, Target(ber=0.015)),  # the bit error rate is 0.2 x 0.1
        (True, Target(bler=0.06)),
        (False, Target(bler=0.025)),  # 0.2 x 0.2
    ],
)
def test_every_rate_is_tested(met, target):
    """Two transmissions that fail one in five times: 0.04 are lost."""
    harq = Workflow(num_transmissions=2)
    rate = 0.2 if target.bler < 1 else 0.2**0.5
    found = verdicts(rate, target, 40, harq)
    assert sum(d.met is met for d in found) >= 37 and sum(d.met is (not met) for d in found) <= 2


def test_delay_and_throughput_targets_follow_from_the_failures():
    """A fifth of the blocks takes a second transmission, so 99 % of those delivered need its time,
    and 75 % do not.
    """
    harq = Workflow(num_transmissions=2)
    with Twin(pool=Bernoulli({0.0: 0.2}, 1)) as twin:
        pair = (Scenario(snr_db=0.0), harq)
        once = delay_ms(*pair)
        twice = once + harq_round_trip_ms(*pair)
        between, rate = (once + twice) / 2, throughput_mbps(harq, 0.04) / 1.2
        asked = [
            Target(delay_ms=twice, reliability=0.99),
            Target(delay_ms=between, reliability=0.99),
            Target(delay_ms=between, reliability=0.75),
            Target(delay_ms=0.99 * once, reliability=0.1),
            Target(throughput_mbps=0.9 * rate),
            Target(throughput_mbps=1.1 * rate),
        ]
        found = twin.decide([pair] * len(asked), asked)
    assert [d.met for d in found] == [True, False, True, False, True, False]


def test_pairs_are_decided_each_by_itself_and_easy_ones_cost_little():
    rates = {0.0: 0.9, 1.0: 0.11, 2.0: 0.001}
    with Twin(pool=Bernoulli(rates, 3)) as twin:
        hopeless, close, easy = twin.decide(
            [(Scenario(snr_db=snr), Workflow()) for snr in rates], [Target(bler=0.1)] * 3
        )
        assert (hopeless.met, easy.met) == (False, True)
        assert (
            hopeless.qos.num_blocks == FIRST_LOOK
            and easy.qos.num_blocks <= 2 * FIRST_LOOK
            and close.qos.num_blocks >= 1024
        )
        again = twin.decide([(Scenario(snr_db=2.0), Workflow())], [Target(bler=0.1)])[0]
        assert again == easy and twin.stats.memory_hits > 0  # its looks are kept


def test_links_are_decided_on_the_side_that_a_long_run_finds(rounds):
    """Real slots, a target 1.5 times off the long run's rate, a seed for every 32 rounds."""
    pool = Bernoulli({}, 0)
    wrong = made = 0
    for run in rounds:
        truth = total(run).block_errors / total(run).num_blocks
        for ratio in (1 / 1.5, 1.5):
            for start in range(0, LONG, 32):
                pool.run = lambda points, run=run, start=start: (
                    (p, total(run[start + p.rounds[0] : start + p.rounds[1]]), 0.0) for p in points
                )
                with Twin(pool=pool) as twin:
                    met = twin.decide(
                        [(Scenario(channel="awgn"), Workflow())],
                        [Target(bler=truth * ratio)],
                        max_blocks=1024,
                    )[0].met
                made += met is not None
                wrong += met is not None and met != (ratio > 1)
    assert made > 60 and wrong <= 0.05 * 2 * len(rounds) * LONG / 32, (made, wrong)


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(targets=[]), "a target for each"),
        (dict(risk=0.0), "risk"),
        (dict(risk=1.0), "risk"),
        (dict(max_blocks=FIRST_LOOK - 1), "max_blocks"),
        (dict(pairs=[(Scenario(num_rx_ant=1), Workflow(num_layers=2))]), "pair 0: num_layers"),
    ],
)
def test_what_cannot_be_decided_is_refused(asked, words):
    asked = dict(pairs=[(Scenario(), Workflow())], targets=[Target()]) | asked
    with Twin(pool=Bernoulli({}, 0)) as twin, pytest.raises(ValueError, match=words):
        twin.decide(**asked)

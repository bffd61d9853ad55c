"""Where the oracle takes the neural modules, and where it leaves them: the requests of
neural_scenarios, with small simulations.
"""

from dataclasses import replace

import pytest

from experiments.networks.neural_scenarios import REQUESTS, scenarios, throughput
from experiments.world.search import judged
from rldtf_jax.reward import RewardConfig
from twin import Twin, Workflow
from twin.toolbox import is_neural


@pytest.fixture(scope="module")
def coarse():
    with Twin(workers=2, max_blocks=256, enough_block_errors=30) as twin:
        yield twin


@pytest.fixture(scope="module")
def choices(coarse):
    """Of platforms with the small receiver alone."""
    small = {
        name: replace(
            task,
            scenario=replace(task.scenario, absent=tuple({*task.scenario.absent, "detect.deeprx"})),
        )
        for name, task in REQUESTS.items()
    }
    return {
        (row["request"].partition(":")[0], row["choice"]): row
        for row in scenarios(coarse, small, budget=160)
    }


def test_without_a_wiener_filter_only_a_neural_receiver_serves_a_moving_terminal(choices):
    chosen = choices["DeepRx without a Wiener filter", "oracle, all modules"]
    assert chosen["meets"] and is_neural(chosen["detector"]), chosen
    assert not choices["DeepRx without a Wiener filter", "oracle, classical modules"]["meets"]


def test_on_a_weak_link_a_neural_receiver_serves_a_moving_terminal_and_least_squares_does_not(
    coarse,
):
    """With one DM-RS symbol; the robust Wiener filter is on the edge."""
    task = REQUESTS["DeepRx: a moving terminal, a weak link"]
    workflow = Workflow(
        num_prb=10,
        scs_khz=30,
        bits_per_symbol=4,
        code_rate=0.2,
        decoder_iterations=20,
        detector="deeprx",
    )
    classical = replace(workflow, detector="lmmse", estimator="ls")
    (_, neural, _), (_, squares, _) = judged(
        [(task, workflow), (task, classical)], coarse, RewardConfig()
    )
    assert neural and not squares


def test_only_a_predicted_beam_serves_a_moving_terminal(choices):
    chosen = choices["DeepTx", "oracle, all modules"]
    assert chosen["meets"] and chosen["precoder"] == "deeptx", chosen
    assert not choices["DeepTx", "oracle, classical modules"]["meets"]


def test_where_compute_is_scarce_the_classical_chain_wins_on_delay(choices):
    chosen, neural = (
        choices["classical", "oracle, all modules"],
        choices["classical", "the same with DeepRx small"],
    )
    assert chosen["meets"] and not is_neural(chosen["detector"]), chosen
    assert (
        neural["bler"] <= neural["target_bler"]
        and neural["delay_ms"] > 2 * neural["target_ms"] > 2 * chosen["delay_ms"]
    ), neural


def test_a_neural_receiver_carries_more_on_fewer_pilots(coarse):
    """At a block error rate of at most 10 %, against least squares with whichever number of DM-RS
    symbols is best for it.
    """
    rows = throughput(coarse, (9,), (10.0,), ("LS + LMMSE", "DeepRx small"))
    best = {(row["receiver"], row["num_dmrs"]): row["mbps_per_prb"] for row in rows}
    assert best["DeepRx small", 1] > 1.1 * max(best["LS + LMMSE", 1], best["LS + LMMSE", 2]), best

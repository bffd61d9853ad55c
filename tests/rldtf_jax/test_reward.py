"""Eq. 2: what the reward promises for any measured and required quality of service."""

import jax
import jax.numpy as jnp
import numpy as np
import plain_equations as plain
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rldtf_jax.reward import RewardConfig, fulfilled, margins, reward

QOS = st.tuples(st.floats(0.01, 100), st.floats(0.1, 500), st.floats(1e-8, 0.5))
CONFIGS = st.builds(
    RewardConfig,
    weight_satisfied=st.tuples(*[st.floats(0, 1)] * 3),
    weight_violated=st.tuples(*[st.floats(0, 1)] * 3),
    margin=st.sampled_from(["relative", "absolute"]),
    margin_cap=st.tuples(*[st.floats(0.1, 4)] * 3),
)
SIGN = np.array([-1, 1, -1])  # more throughput is better, less delay and less BER are
NAMES = ("delay", "throughput", "BER")


def one(measured, required, config=RewardConfig()):
    return float(reward(np.float32([measured]), np.float32([required]), config)[0])


def better_by(required, relative_margins):
    """What is measured where the margins over `required` are these: shares of the target, and
    decades of BER.
    """
    delay, throughput, ber = required
    m = relative_margins
    return delay * (1 - m[0]), throughput * (1 + m[1]), ber * 10 ** -m[2]


@given(QOS, QOS, CONFIGS)
def test_equals_the_plain_reading(measured, required, config):
    measured, required = np.float32([measured, required])
    expected = plain.reward(measured.tolist(), required.tolist(), config)
    np.testing.assert_allclose(one(measured, required, config), expected, rtol=1e-4, atol=1e-4)


@given(QOS, QOS)
def test_any_violation_is_above_minus_one_and_below_any_fulfilment(measured, required):
    R, good = one(measured, required), bool(fulfilled(np.float32(measured), np.float32(required)))
    assert R >= 0.35 - 1e-6 if good else -1 < R <= -0.1 + 1e-6


@given(QOS, st.integers(0, 2), st.tuples(*[st.floats(0, 0.9)] * 3), st.floats(0, 0.9))
def test_where_all_targets_are_met_more_margin_never_earns_more(required, i, m, other):
    less, more = list(m), list(m)
    less[i], more[i] = sorted((m[i], other))
    assert (
        one(better_by(required, more), required) <= one(better_by(required, less), required) + 1e-5
    )


@pytest.mark.parametrize("sign", [-1, 1])
@given(QOS, st.integers(0, 2), st.floats(0, 0.9), st.floats(0, 0.9))
def test_where_a_target_is_missed_the_distance_of_no_margin_earns(sign, required, i, near, far):
    near, far = sorted((near, far))
    missed = (i + 1) % 3

    def at(distance):
        m = [0.1, 0.1, 0.1]
        m[i], m[missed] = sign * distance, -0.5
        return one(better_by(required, m), required)

    assert at(far) <= at(near) + 1e-5


@given(QOS)
def test_exactly_met_is_fulfilled_and_earns_the_whole_base(required):
    assert fulfilled(np.float32(required), np.float32(required))
    assert one(required, required) == 1.0


@pytest.mark.parametrize("margin", ["relative", "absolute"])
@pytest.mark.parametrize("i", range(3), ids=NAMES)
def test_a_margin_of_zero_earns_its_whole_bonus_and_a_finite_gradient(margin, i):
    config = RewardConfig(margin=margin)
    required = np.float32([5.0, 20.0, 1e-3])
    measured = required.copy()
    # another target is missed, those of i and the third are met
    measured[(i + 1) % 3] *= (2, 0.5, 2)[(i + 1) % 3]
    R, gradient = jax.value_and_grad(lambda x: reward(x, required, config))(jnp.asarray(measured))
    assert np.isfinite(R) and np.isfinite(gradient).all()
    np.testing.assert_allclose(
        R, plain.reward(measured.tolist(), required.tolist(), config), rtol=1e-5
    )


@given(QOS, QOS)
def test_no_error_at_all_counts_as_the_cap_and_not_as_infinity(measured, required):
    without_errors = (*measured[:2], 0.0)
    assert margins(np.float32(without_errors), np.float32(required))[2] == 2.0
    assert np.isfinite(one(without_errors, required))


@pytest.mark.parametrize("margin", ["relative", "absolute"])
@given(QOS, QOS, st.sampled_from([0.0, 1.0]), st.booleans())
def test_where_no_throughput_is_required_the_reward_is_that_of_its_capped_margin(
    margin, measured, required, got, late
):
    config = RewardConfig(margin=margin)
    measured = np.float32([required[0] * (2 if late else 0.5), got * measured[1], measured[2]])
    required = np.float32([required[0], 0.0, required[2]])
    R, gradient = jax.value_and_grad(lambda x: reward(x, required, config))(jnp.asarray(measured))
    np.testing.assert_allclose(
        R, plain.reward(measured.tolist(), required.tolist(), config), rtol=1e-4, atol=1e-4
    )
    assert np.isfinite(gradient).all()


@given(QOS, QOS)
def test_margins_are_positive_exactly_where_better(measured, required):
    m = np.asarray(margins(np.float32(measured), np.float32(required)))
    better = SIGN * (np.float32(measured) - np.float32(required))
    assert ((m >= 0) == (better >= 0))[better != 0].all()


def test_integers_are_quality_of_service_too():
    assert one((2, 30, 0), (4, 20, 1)) == one((2.0, 30.0, 0.0), (4.0, 20.0, 1.0))


def test_a_batch_is_its_rows():
    rng = np.random.default_rng(0)
    measured, required = rng.uniform(0.1, 3, (2, 7, 3)).astype(np.float32)
    together = np.asarray(reward(measured, required))
    np.testing.assert_array_equal(together, [one(m, r) for m, r in zip(measured, required)])


def test_the_wrong_shape_is_refused_by_name():
    with pytest.raises(ValueError, match=r"measured has shape \(4, 2\)"):
        reward(np.ones((4, 2)), np.ones((4, 3)))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(weight_violated=(0.3, -0.1, 0.3)),
        dict(margin_cap=(1.0, 1.0)),
        dict(margin="logarithmic"),
    ],
)
def test_a_config_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RewardConfig(**wrong)


@given(QOS, QOS, CONFIGS)
def test_numpy_and_jax_say_the_same(measured, required, config):
    ours, theirs = np.float32([measured]), jnp.float32([required])
    plain_R, traced_R = (
        reward(ours, np.asarray(theirs), config),
        jax.jit(reward, static_argnames="config")(ours, theirs, config),
    )
    assert isinstance(plain_R, np.ndarray) and isinstance(traced_R, jax.Array)
    np.testing.assert_allclose(plain_R, traced_R, rtol=1e-5, atol=1e-5)


STEEP = RewardConfig(closeness="steep")


@given(QOS, st.integers(0, 2), st.floats(-0.9, 0.9), st.floats(-0.9, 0.9))
def test_steep_closeness_pays_the_whole_bonus_for_what_is_met_and_less_the_further_a_target_is_missed(  # noqa: E501
    required, i, one_margin, other
):
    less, more = sorted((one_margin, other))
    missed = (i + 1) % 3

    def at(margin):
        m = [0.2, 0.2, 0.2]
        m[i], m[missed] = margin, -0.5
        return one(better_by(required, m), required, STEEP)

    expected = -1 + 0.3 * (1 + np.exp(-0.5) + np.exp(min(less, 0)))
    np.testing.assert_allclose(at(less), expected, atol=2e-3)
    assert at(less) <= at(more) + 1e-5 and (
        at(less) < at(more) - 1e-4 or less > -0.002 or more - less < 0.005
    )


@given(QOS, QOS)
def test_steep_closeness_leaves_what_is_fulfilled_as_it_is_and_every_violation_below_it(
    measured, required
):
    if fulfilled(np.float32(measured), np.float32(required)):
        assert one(measured, required, STEEP) == one(measured, required)
    else:
        assert -1 < one(measured, required, STEEP) <= -0.1 + 1e-6

"""Test bootstrap intervals over records."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedding.evaluation.bootstrap import Estimate, Sample, bootstrap_mean

some_scores = st.lists(st.floats(-1, 1), min_size=2, max_size=30).map(np.array)


def of_own_records(scores: NDArray[np.float64]) -> Sample:
    return Sample(scores, np.arange(len(scores)))


def test_the_interval_of_independent_queries_is_that_of_a_normal_distribution():
    """Expect 1.96 standard errors: the mean of 1,000 numbers is nearly normal."""
    scores = np.random.default_rng(3).random(1000)

    found = bootstrap_mean([of_own_records(scores)])

    error = 1.96 * scores.std() / np.sqrt(len(scores))
    assert found.value == pytest.approx(scores.mean())
    assert (found.low, found.high) == pytest.approx((scores.mean() - error, scores.mean() + error), abs=2e-3)


def test_queries_of_one_record_count_as_one_observation():
    scores = np.random.default_rng(3).random(100)
    alone, five_each = of_own_records(scores), Sample(np.repeat(scores, 5), np.repeat(np.arange(100), 5))

    once, again = bootstrap_mean([alone]), bootstrap_mean([five_each])
    assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))


def test_a_paired_interval_is_narrower_than_two_that_are_apart():
    """Compare two similar models: the difficulty of a query cancels out."""
    generator = np.random.default_rng(3)
    first = generator.random(400)
    second = first + 0.02 + 0.01 * generator.standard_normal(400)

    difference = bootstrap_mean([of_own_records(second - first)])
    apart = bootstrap_mean([of_own_records(first)]), bootstrap_mean([of_own_records(second)])

    assert difference.low is not None
    assert difference.low > 0.015
    assert apart[0].high is not None
    assert apart[1].low is not None
    assert apart[0].high > apart[1].low


def test_two_directions_count_the_same_however_many_queries_each_has():
    forth = Sample(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0, 0, 1, 1]))
    back = Sample(np.array([0.0, 0.0]), np.array([0, 1]))

    assert bootstrap_mean([forth, back]) == Estimate(0.5, 0.5, 0.5)


@given(some_scores)
def test_the_mean_lies_within_its_interval_and_the_interval_within_what_was_seen(
    scores: NDArray[np.float64],
):
    found = bootstrap_mean([of_own_records(scores)])

    assert found.low is not None
    assert found.high is not None
    assert scores.min() - 1e-9 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= scores.max() + 1e-9


def test_the_same_scores_have_the_same_interval():
    scores = np.random.default_rng(3).random(50)

    assert bootstrap_mean([of_own_records(scores)]) == bootstrap_mean([of_own_records(scores)])


def test_one_record_has_no_interval():
    assert bootstrap_mean([Sample(np.array([0.0, 1.0]), np.array([0, 0]))]) == Estimate(0.5, None, None)


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="nothing to average"):
        bootstrap_mean([of_own_records(np.empty(0))])

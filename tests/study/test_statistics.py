"""Means, paired differences and Holm's adjustment, beside SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from ika_lightning.study.statistics import holm, mean, paired


def numbered(values: np.ndarray) -> dict[str, float]:
    return {str(number): float(value) for number, value in enumerate(values)}


def test_a_mean_by_hand() -> None:
    found = mean([2.0, 4.0, 9.0])
    # deviations -3, -1, 4: a variance of 26 / 2
    assert (found.value, found.count) == (5.0, 3) and found.error == pytest.approx(math.sqrt(13 / 3))
    assert mean([7.0]).value == 7.0 and math.isnan(mean([7.0]).error)
    assert math.isnan(mean([]).value) and mean([]).count == 0


@pytest.mark.parametrize("count", [2, 3, 5, 19])
def test_pairs_as_scipy_compares_them(count: int) -> None:
    rng = np.random.default_rng(count)
    ours, theirs = rng.normal(1.0, 2.0, count), rng.normal(0.0, 3.0, count)
    found = paired(numbered(ours), numbered(theirs), less_is_better=False)
    wanted = stats.ttest_rel(ours, theirs)
    interval = wanted.confidence_interval(0.95)
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.gain == pytest.approx(float(np.mean(ours - theirs)))


def test_less_may_be_better() -> None:
    ours, theirs = {"0": 1.0, "1": 2.0, "2": 4.0}, {"0": 2.0, "1": 2.0, "2": 3.0}
    less, more = (paired(ours, theirs, less_is_better=each) for each in (True, False))
    assert (less.wins, less.ties, less.losses) == (1, 1, 1) == (more.losses, more.ties, more.wins)
    assert less.gain == 0.0 == -more.gain and (less.low, less.high) == (-more.high, -more.low)
    lower = paired({"0": 1.0, "1": 5.0}, {"0": 3.0, "1": 9.0}, less_is_better=True)
    assert (lower.gain, lower.wins, lower.losses) == (3.0, 2, 0)


def test_pairs_are_of_the_same_repeat() -> None:
    found = paired({"7": 1.0, "b": 5.0, "c": 0.0}, {"b": 1.0, "7": 2.0, "d": 9.0}, less_is_better=False)
    assert (found.gain, found.count) == (1.5, 2)


def test_too_few_pairs_have_no_interval() -> None:
    one, none = (
        paired({"0": 2.0}, {"0": 1.0}, less_is_better=False),
        paired({"0": 2.0}, {"1": 1.0}, less_is_better=False),
    )
    assert (one.gain, one.wins, one.count) == (1.0, 1, 1) and all(map(math.isnan, (one.low, one.high, one.p)))
    assert none.count == 0 and all(map(math.isnan, (none.gain, none.p)))


def test_no_differences() -> None:
    found = paired({"0": 0.1 + 0.2, "1": 3.0}, {"0": 0.3, "1": 3.0}, less_is_better=False)
    assert (found.gain, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert (found.wins, found.ties, found.losses) == (0, 2, 0)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_equal_differences_tell_no_spread(count: int) -> None:
    """As of an accuracy on a hundred texts: .89 - .88 and .79 - .78 differ by rounding alone."""
    baseline = {str(repeat): 0.88 - 0.1 * repeat for repeat in range(count)}
    found = paired({repeat: value + 0.01 for repeat, value in baseline.items()}, baseline, less_is_better=False)
    assert found.gain == pytest.approx(0.01) and found.p == 2 / 2**count and found.wins == count
    assert math.isnan(found.low) and math.isnan(found.high)


def test_a_wider_level_is_a_wider_interval() -> None:
    ours, theirs = {"0": 1.0, "1": 2.0, "2": 4.0}, {"0": 2.0, "1": 5.0, "2": 3.0}
    wide, narrow = (paired(ours, theirs, less_is_better=True, level=level) for level in (0.99, 0.9))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        theirs = rng.normal(size=5)
        found = paired(numbered(theirs + rng.normal(0.3, 1.0, 5)), numbered(theirs), less_is_better=False)
        held += found.low <= 0.3 <= found.high
    # three standard errors of a share of 0.95 among 1,000
    assert 0.929 <= held / 1000 <= 0.971


class TestHolm:
    def test_by_hand(self) -> None:
        # the smallest of four four times, and none less than the one before it
        given = {"a": 0.02, "b": 0.005, "c": 0.03, "d": 0.04}
        assert holm(given) == pytest.approx({"b": 0.02, "a": 0.06, "c": 0.06, "d": 0.06})

    def test_no_probability_is_above_one(self) -> None:
        assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}

    def test_what_is_not_known_does_not_count(self) -> None:
        found = holm({"a": 0.03, "b": math.nan, "c": 0.01})
        assert math.isnan(found.pop("b")) and found == pytest.approx({"c": 0.02, "a": 0.03})

    def test_of_one_and_of_none(self) -> None:
        assert holm({"a": 0.04}) == {"a": 0.04} and holm({}) == {}

    def test_errors_are_as_rare_as_promised(self) -> None:
        rng = np.random.default_rng(1)
        wrong = sum(min(holm(numbered(rng.uniform(size=7))).values()) <= 0.05 for _ in range(2000))
        assert wrong / 2000 <= 0.065

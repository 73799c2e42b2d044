"""Intervals and tests against published and independently computed values."""

from __future__ import annotations

import pytest
from scipy import stats

from safe_pruner_ros.evaluation.statistics import (
    holm,
    mcnemar_exact,
    paired_difference,
    wilson_interval,
)


def test_wilson_gives_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize(('successes', 'trials'), [(0, 1), (1, 1), (190, 200), (199, 200)])
def test_wilson_agrees_with_scipy(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method='wilson')
    found = wilson_interval(successes, trials)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_trials_knows_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_refuses_more_successes_than_trials() -> None:
    with pytest.raises(ValueError, match=r'\[0, 3\]'):
        wilson_interval(4, 3)


@pytest.mark.parametrize(('first', 'second'), [(1, 9), (9, 1), (0, 6), (5, 5), (12, 30), (3, 0)])
def test_mcnemar_is_the_exact_sign_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second, 0.5).pvalue
    assert mcnemar_exact(first, second) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_without_disagreement_says_nothing() -> None:
    assert mcnemar_exact(0, 0) == 1.0


def _outcomes(both: int, wins: int, losses: int, neither: int) -> list[tuple[bool, bool]]:
    return (
        [(True, True)] * both
        + [(True, False)] * wins
        + [(False, True)] * losses
        + [(False, False)] * neither
    )


def test_paired_difference_gives_published_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 2635, table III, method 10
    found = paired_difference(_outcomes(36, 12, 2, 0))
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert (found.wins, found.losses, found.pairs) == (12, 2, 50)


def test_paired_difference_is_antisymmetric() -> None:
    there = paired_difference(_outcomes(170, 4, 9, 17))
    back = paired_difference(_outcomes(170, 9, 4, 17))
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p_value == back.p_value


def test_identical_outcomes_still_leave_uncertainty() -> None:
    found = paired_difference(_outcomes(200, 0, 0, 0))
    assert found.difference == 0 and found.p_value == 1.0
    assert -0.02 < found.low < 0 < found.high < 0.02


def test_holm_step_by_step() -> None:
    # By hand: 0.01 x 4, 0.02 x 3, then never below what came before: 0.03 x 2, 0.9 x 1.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []

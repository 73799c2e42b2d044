"""Intervals and tests against published and independently computed values."""

from __future__ import annotations

import itertools
import random

import pytest
from scipy import stats

from safe_pruner_ros.evaluation.statistics import (
    clustered_wilson,
    effective_trials,
    holm,
    mcnemar_exact,
    paired_difference,
    sign_flip_exact,
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


# ---- several episodes a scene


def test_one_episode_a_scene_is_an_independent_trial() -> None:
    outcomes = [True] * 7 + [False] * 3
    assert effective_trials(outcomes, range(10)) == 10
    assert clustered_wilson(outcomes, range(10)) == wilson_interval(7, 10)


@pytest.mark.parametrize('solved', [0, 3, 7, 10])
def test_copies_of_a_scene_say_no_more_than_the_scene(solved: int) -> None:
    outcomes = [scene < solved for scene in range(10) for _ in range(4)]
    scenes = [scene for scene in range(10) for _ in range(4)]
    low, high = clustered_wilson(outcomes, scenes)
    once = wilson_interval(solved, 10)
    # Rao and Scott's variance has m - 1 where the binomial one has m.
    assert low <= once[0] + 1e-12 and high >= once[1] - 1e-12
    assert effective_trials(outcomes, scenes) == pytest.approx(10 if solved in (0, 10) else 9)


def test_independent_episodes_of_a_scene_count_nearly_all() -> None:
    draw = random.Random(0)
    outcomes = [draw.random() < 0.6 for _ in range(4000)]
    worth = effective_trials(outcomes, [k // 4 for k in range(4000)])
    assert 3600 < worth <= 4000
    opposed = [True, False] * 50  # less than chance between scenes: not more than was seen
    assert effective_trials(opposed, [k // 2 for k in range(100)]) == 100


def test_sign_flips_by_counting_all_of_them() -> None:
    differences = [3, -1, 2, 2, 0, -1, 4]
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True))
            for signs in itertools.product((1, -1), repeat=7)]  # fmt: skip
    expected = sum(abs(total) >= abs(sum(differences)) for total in sums) / len(sums)
    assert sign_flip_exact(differences) == pytest.approx(expected)
    assert sign_flip_exact([1] * 9 + [-1] * 2 + [0] * 5) == pytest.approx(mcnemar_exact(9, 2))
    assert sign_flip_exact([0, 0]) == sign_flip_exact([]) == 1.0


def test_pairs_of_a_scene_are_no_independent_pairs() -> None:
    """Two scenes lost with all of their four objects are two losses, not eight."""
    outcomes = [(scene >= 2, True) for scene in range(10) for _ in range(4)]
    scenes = [scene for scene in range(10) for _ in range(4)]
    naive, found = paired_difference(outcomes), paired_difference(outcomes, scenes)
    assert (found.wins, found.losses, found.pairs, found.scenes) == (0, 8, 40, 10)
    assert found.difference == naive.difference == -0.2
    assert naive.p_value < 0.01 and found.p_value == 0.5
    assert found.low < naive.low and found.high > naive.high
    assert paired_difference(outcomes, range(40)) == naive

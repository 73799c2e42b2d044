"""Intervals and tests for success rates. Counts in, probabilities out; knows no episodes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 %


def wilson_interval(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """Score interval of a binomial proportion (Wilson 1927), both ends in [0, 1].

    Unlike the textbook interval it stays honest near 0 and 1 and for few trials. (0, 1) without.
    Counts need not be whole: those of `effective_trials` are not.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f'successes must be in [0, {trials}] (trials), got {successes}')
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At 0 and at all the ends are exact; rounding would leave 1e-17.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == trials else min(1.0, (centre + half) / scale)
    return low, high


def effective_trials(values: Sequence[float], scenes: Sequence[Hashable]) -> float:
    """How many independent trials say as much as these values, of which those of one scene are
    alike. In (0, len(values)]; exactly len(values) with one value a scene.

    The number divided by the design effect of Rao and Scott (Biometrics 48, 1992, p. 577): the
    variance of the mean as it follows from whole scenes, over that of independent values. It is
    at least 1 here: chance alone must not narrow an interval. Where all values are equal nothing
    tells how alike a scene's are, and the scenes are counted.
    """
    n, n_scenes = len(values), len(set(scenes))
    if n_scenes == n:
        return n
    mean = sum(values) / n
    spread = sum((value - mean) ** 2 for value in values) / n
    if n_scenes == 1 or spread == 0:
        return n_scenes
    residuals: dict[Hashable, float] = defaultdict(float)
    for value, scene in zip(values, scenes, strict=True):
        residuals[scene] += value - mean
    between = sum(residual * residual for residual in residuals.values()) / n**2
    design_effect = n_scenes / (n_scenes - 1) * between / (spread / n)
    return n / max(1.0, design_effect)


def clustered_wilson(
    outcomes: Sequence[bool], scenes: Sequence[Hashable], z: float = Z95
) -> tuple[float, float]:
    """`wilson_interval` of as many trials as the outcomes are worth (`effective_trials`)."""
    if not outcomes:
        return wilson_interval(0, 0, z)
    successes = sum(outcomes)
    worth = effective_trials(outcomes, scenes)
    # All of them stay all of them: a share times a count may miss it by 1e-16.
    scaled = worth if successes == len(outcomes) else successes * worth / len(outcomes)
    return wilson_interval(scaled, worth, z)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p of paired outcomes, in (0, 1].

    ``only_first``/``only_second``: pairs in which only that one succeeded. Pairs in which both did
    the same say nothing about which is better and do not enter.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f'counts must not be negative, got {only_first}, {only_second}')
    discordant = only_first + only_second
    rarer = min(only_first, only_second)
    tail = sum(math.comb(discordant, k) for k in range(rarer + 1))
    return min(1.0, 2 * tail / 2**discordant)


def sign_flip_exact(differences: Sequence[int]) -> float:
    """Two-sided exact p, in (0, 1], of one difference a scene: how many of all ways to choose
    their signs give a sum at least this far from 0 (Fisher, The Design of Experiments, 1935,
    chapter III). Episodes of one scene may be as alike as they like. McNemar's where all
    differences are -1, 0 or 1.
    """
    sizes = [abs(difference) for difference in differences if difference]
    chances = np.ones(1)  # [k]: that the differences with sign plus sum to k
    for size in sizes:
        wider = np.zeros(len(chances) + size)
        wider[: len(chances)] += chances / 2
        wider[size:] += chances / 2
        chances = wider
    sums = 2 * np.arange(len(chances)) - sum(sizes)
    return min(1.0, float(chances[np.abs(sums) >= abs(sum(differences))].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for how many were looked at, in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class PairedDifference:
    """Success rate of one method minus that of a baseline, on the same episodes.

    ``difference``, ``low``, ``high`` are shares in [-1, 1] (95 % interval); ``p_value`` is
    McNemar's, or `sign_flip_exact` where a scene has several pairs. ``wins``: pairs that only the
    method solved; ``losses``: only the baseline.
    """

    pairs: int
    scenes: int
    wins: int
    losses: int
    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(
    outcomes: Sequence[tuple[bool, bool]],
    scenes: Sequence[Hashable] | None = None,
    z: float = Z95,
) -> PairedDifference:
    """Compare (method, baseline) outcomes of the same episodes; ``scenes`` names the scene of
    each, None: all are different.

    Interval: Newcombe's square-and-add method for paired proportions (Statistics in Medicine 17,
    1998, method 10), built from the two Wilson intervals and their correlation. Several pairs a
    scene count for as many as their differences are worth (`effective_trials`).
    """
    n = len(outcomes)
    if n == 0:
        return PairedDifference(0, 0, 0, 0, 0.0, -1.0, 1.0, 1.0)
    scenes = range(n) if scenes is None else scenes
    by_scene: dict[Hashable, int] = defaultdict(int)
    for (of_method, of_baseline), scene in zip(outcomes, scenes, strict=True):
        by_scene[scene] += of_method - of_baseline
    wins = sum(one and not other for one, other in outcomes)
    losses = sum(other and not one for one, other in outcomes)
    low, high = _newcombe(outcomes, scenes, z)
    return PairedDifference(
        pairs=n,
        scenes=len(by_scene),
        wins=wins,
        losses=losses,
        difference=(wins - losses) / n,
        low=low,
        high=high,
        p_value=mcnemar_exact(wins, losses)
        if len(by_scene) == n
        else sign_flip_exact(list(by_scene.values())),
    )


def _newcombe(
    outcomes: Sequence[tuple[bool, bool]], scenes: Sequence[Hashable], z: float
) -> tuple[float, float]:
    n = effective_trials([int(one) - int(other) for one, other in outcomes], scenes)
    scale = n / len(outcomes)  # exactly 1 with one pair a scene
    both = scale * sum(one and other for one, other in outcomes)
    wins = scale * sum(one and not other for one, other in outcomes)
    losses = scale * sum(other and not one for one, other in outcomes)
    neither = scale * sum(not one and not other for one, other in outcomes)
    first, second = (both + wins) / n, (both + losses) / n
    low1, high1 = wilson_interval(min(both + wins, n), n, z)
    low2, high2 = wilson_interval(min(both + losses, n), n, z)
    phi = _phi(both, wins, losses, neither)
    below = (first - low1) ** 2 + (high2 - second) ** 2
    below -= 2 * phi * (first - low1) * (high2 - second)
    above = (high1 - first) ** 2 + (second - low2) ** 2
    above -= 2 * phi * (high1 - first) * (second - low2)
    difference = first - second
    return (
        max(-1.0, difference - math.sqrt(max(0.0, below))),
        min(1.0, difference + math.sqrt(max(0.0, above))),
    )


def _phi(both: float, wins: float, losses: float, neither: float) -> float:
    """Correlation of the two outcomes, with Newcombe's continuity correction."""
    margins = (both + wins) * (losses + neither) * (both + losses) * (wins + neither)
    if margins == 0:
        return 0.0
    product = both * neither - wins * losses
    if product > 0:
        product = max(product - (both + wins + losses + neither) / 2, 0.0)
    return product / math.sqrt(margins)

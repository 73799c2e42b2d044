"""Intervals and tests for success rates. Counts in, probabilities out; knows no episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054  # two-sided 95 %


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a binomial proportion (Wilson 1927), both ends in [0, 1].

    Unlike the textbook interval it stays honest near 0 and 1 and for few trials. (0, 1) without.
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
    McNemar's. ``wins``: pairs that only the method solved; ``losses``: only the baseline.
    """

    pairs: int
    wins: int
    losses: int
    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(outcomes: Sequence[tuple[bool, bool]], z: float = Z95) -> PairedDifference:
    """Compare (method, baseline) outcomes of the same episodes.

    Interval: Newcombe's square-and-add method for paired proportions (Statistics in Medicine 17,
    1998, method 10), built from the two Wilson intervals and their correlation.
    """
    n = len(outcomes)
    if n == 0:
        return PairedDifference(0, 0, 0, 0.0, -1.0, 1.0, 1.0)
    both = sum(first and second for first, second in outcomes)
    wins = sum(first and not second for first, second in outcomes)
    losses = sum(second and not first for first, second in outcomes)
    neither = n - both - wins - losses
    first, second = (both + wins) / n, (both + losses) / n
    low1, high1 = wilson_interval(both + wins, n, z)
    low2, high2 = wilson_interval(both + losses, n, z)
    phi = _phi(both, wins, losses, neither)
    below = (first - low1) ** 2 + (high2 - second) ** 2
    below -= 2 * phi * (first - low1) * (high2 - second)
    above = (high1 - first) ** 2 + (second - low2) ** 2
    above -= 2 * phi * (high1 - first) * (second - low2)
    difference = first - second
    return PairedDifference(
        pairs=n,
        wins=wins,
        losses=losses,
        difference=difference,
        low=max(-1.0, difference - math.sqrt(max(0.0, below))),
        high=min(1.0, difference + math.sqrt(max(0.0, above))),
        p_value=mcnemar_exact(wins, losses),
    )


def _phi(both: int, wins: int, losses: int, neither: int) -> float:
    """Correlation of the two outcomes, with Newcombe's continuity correction."""
    margins = (both + wins) * (losses + neither) * (both + losses) * (wins + neither)
    if margins == 0:
        return 0.0
    product = both * neither - wins * losses
    if product > 0:
        product = max(product - (both + wins + losses + neither) / 2, 0.0)
    return product / math.sqrt(margins)

"""Means over episodes with an interval; steps of one episode are no independent draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.evaluation.statistics import clustered_wilson, wilson_interval

ROUNDING = 1e-9  # of a mean of shares
FEW_EPISODES = 10  # with fewer a bootstrap interval is far too narrow, so there is none


@dataclass(frozen=True)
class Estimate:
    """``mean`` over episodes, ``low``/``high`` its 95 % interval, NaN where there is none.
    ``infinite``: episodes left out of all of them because their value is infinite."""

    mean: float
    low: float
    high: float
    episodes: int
    infinite: int = 0

    def text(self, style: str = '.3f', scale: float = 1.0) -> str:
        mean, low, high = (f'{scale * v:{style}}' for v in (self.mean, self.low, self.high))
        return f'{mean} [none]' if math.isnan(self.low) else f'{mean} [{low}, {high}]'


def estimate(values: Sequence[float], draws: int = 2000) -> Estimate:
    """One value an episode, NaN where an episode says nothing; NaN when none says anything.

    The interval is a bootstrap over episodes. There is none with fewer than FEW_EPISODES, nor
    where all are equal: how far another one may lie they do not tell.
    """
    known, infinite = _finite(values)
    if not len(known):
        return _nothing(infinite)
    mean = float(known.mean())
    if len(known) < FEW_EPISODES or np.ptp(known) <= ROUNDING:
        return Estimate(mean, math.nan, math.nan, len(known), infinite)
    chosen = np.random.default_rng(0).integers(len(known), size=(draws, len(known)))
    low, high = np.quantile(known[chosen].mean(axis=1), (0.025, 0.975))
    return Estimate(mean, float(low), float(high), len(known), infinite)


def share_estimate(values: Sequence[float]) -> Estimate:
    """`estimate` of shares in [0, 1], with Wilson's interval of as many trials as the episodes
    are worth: share (1 - share) over the variance of the mean, Rao and Scott's design effect.
    Where all are equal, or fewer than FEW_EPISODES, an episode counts as one trial.

    Raises ValueError for a finite value outside [0, 1].
    """
    known, infinite = _finite(values)
    n = len(known)
    if not n:
        return _nothing(infinite)
    if known.min() < -ROUNDING or known.max() > 1 + ROUNDING:
        raise ValueError(f'shares must be in [0, 1], got {known.min():g} to {known.max():g}')
    mean = float(known.mean().clip(0, 1))
    trials = float(n)
    if n >= FEW_EPISODES and np.ptp(known) > ROUNDING:
        trials = max(trials, mean * (1 - mean) / (float(known.var(ddof=1)) / n))
    low, high = wilson_interval(min(mean * trials, trials), trials)
    return Estimate(mean, low, high, n, infinite)


def ratio_estimate(numerators: Sequence[int], denominators: Sequence[int]) -> Estimate:
    """Sum over sum of counts, e.g. key timesteps of all policy steps, with Wilson's interval of as
    many trials as they are worth (`effective_trials`: those of an episode are alike).

    ``episodes``: with a denominator above 0. Raises ValueError for a part larger than its whole.
    """
    outcomes: list[bool] = []
    episodes: list[int] = []
    for number, (part, whole) in enumerate(zip(numerators, denominators, strict=True)):
        if not 0 <= part <= whole:
            raise ValueError(f'numerators must be in [0, {whole}] (denominators), got {part}')
        outcomes += [True] * part + [False] * (whole - part)
        episodes += [number] * whole
    if not outcomes:
        return _nothing(0)
    low, high = clustered_wilson(outcomes, episodes)
    return Estimate(sum(outcomes) / len(outcomes), low, high, len(set(episodes)))


def _finite(values: Sequence[float]) -> tuple[npt.NDArray[np.float64], int]:
    """(the finite ones, how many are infinite)."""
    everything = np.array(values, float)
    return everything[np.isfinite(everything)], int(np.isinf(everything).sum())


def _nothing(infinite: int) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, 0, infinite)

"""Means over episodes with an interval; steps of one episode are no independent draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """``mean`` over episodes, ``low``/``high`` its 95 % bootstrap interval over episodes.
    ``infinite``: episodes left out of all of them because their value is infinite."""

    mean: float
    low: float
    high: float
    episodes: int
    infinite: int = 0

    def text(self, style: str = '.3f') -> str:
        return f'{self.mean:{style}} [{self.low:{style}}, {self.high:{style}}]'


def estimate(values: Sequence[float], draws: int = 2000) -> Estimate:
    """One value an episode, NaN where an episode says nothing; NaN when none says anything."""
    known = np.array([value for value in values if np.isfinite(value)])
    infinite = int(np.isinf(values).sum())
    if not len(known):
        return Estimate(float('nan'), float('nan'), float('nan'), 0, infinite)
    chosen = np.random.default_rng(0).integers(len(known), size=(draws, len(known)))
    low, high = np.quantile(known[chosen].mean(axis=1), (0.025, 0.975))
    return Estimate(float(known.mean()), float(low), float(high), len(known), infinite)


def ratio_estimate(
    numerators: Sequence[float], denominators: Sequence[float], draws: int = 2000
) -> Estimate:
    """Sum over sum, e.g. key timesteps of all policy steps; the interval draws episodes."""
    top, bottom = np.array(numerators, float), np.array(denominators, float)
    if not bottom.sum():
        return Estimate(float('nan'), float('nan'), float('nan'), 0)
    chosen = np.random.default_rng(0).integers(len(top), size=(draws, len(top)))
    below = bottom[chosen].sum(axis=1)
    shares = top[chosen].sum(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(shares, (0.025, 0.975))
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), len(top))

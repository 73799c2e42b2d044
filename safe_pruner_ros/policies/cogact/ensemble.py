"""Adaptive ensemble of overlapping action chunks (CogACT, section 3.4)."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class AdaptiveEnsemble:
    """Averages what the last ``horizon`` chunks say about the same moment.

    The weight of a chunk is exp(alpha * cosine) to the newest chunk's action of that moment, so
    what contradicts the newest counts less. Upstream does this for the first action alone and
    asks the policy once per action; here every row is averaged with the chunks that reach it, and
    rows meet by time stamp. Only for a query at every action, too: of a chunk that is executed in
    part, every row would be half of what was planned a chunk ago (`CogACTFiles` refuses that).
    """

    def __init__(self, horizon: int, alpha: float, period_ns: int) -> None:
        self._n_older, self._alpha, self._period_ns = horizon - 1, alpha, period_ns
        # One more than is averaged: the newest step can be averaged anew (an audit).
        self._chunks: deque[tuple[int, FloatArray]] = deque(maxlen=horizon)

    def clear(self) -> None:
        self._chunks.clear()

    def remember(self, chunk: FloatArray, stamp_ns: int) -> None:
        """``chunk`` [H, n] as predicted at ``stamp_ns``, not yet averaged."""
        if self._chunks and stamp_ns < self._chunks[-1][0]:
            self.clear()  # the clock went back: nothing remembered has a time any more
        self._chunks.append((stamp_ns, chunk))

    def average(self, chunk: FloatArray, stamp_ns: int) -> FloatArray:
        """[H, n] in the units of ``chunk``; changes nothing. Only what was predicted before
        ``stamp_ns`` counts."""
        older = [(stamp, old) for stamp, old in self._chunks if stamp < stamp_ns]
        newest = _cosine(chunk, chunk)
        total = np.ones_like(chunk[:, :1])
        weighted = chunk.copy()
        for older_stamp_ns, old in older[max(0, len(older) - self._n_older) :]:
            same_moment = old[round((stamp_ns - older_stamp_ns) / self._period_ns) :]
            reached = slice(0, len(same_moment))
            likeness = _cosine(same_moment, chunk[reached]) - newest[reached]
            weight = np.exp(self._alpha * likeness)[:, None]
            total[reached] += weight
            weighted[reached] += weight * same_moment
        return weighted / total


def _cosine(a: FloatArray, b: FloatArray) -> FloatArray:
    """By row; 0 where a row is 0. The 1e-7 is upstream's (sim_cogact/adaptive_ensemble.py)."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / (norms + 1e-7))

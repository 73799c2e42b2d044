"""Notices joints that are driven back and forth at their step limit."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.runtime.stamps import NS_PER_S
from safe_pruner_ros.types import FloatArray

WINDOW_NS = NS_PER_S


class OscillationDetector:
    """``max_flips`` reversals of one of ``n_joints`` joints within a second are an oscillation."""

    def __init__(self, n_joints: int, max_flips: int) -> None:
        self._max_flips = max_flips
        self._flips: tuple[deque[int], ...] = tuple(deque() for _ in range(n_joints))
        self._direction = np.zeros(n_joints)

    def clear(self) -> None:
        for flips in self._flips:
            flips.clear()
        self._direction[:] = 0.0

    def update(self, direction: FloatArray, now_ns: int) -> bool:
        """``direction`` [n]: sign of the wanted step where it exceeds the limit, else 0."""
        reversed_now = direction * self._direction < 0.0
        self._direction = np.where(direction != 0.0, direction, self._direction)
        for flips, flipped in zip(self._flips, reversed_now, strict=True):
            if flipped:
                flips.append(now_ns)
            while flips and not 0 <= now_ns - flips[0] <= WINDOW_NS:
                flips.popleft()
        return bool(self.joints().any())

    def joints(self) -> npt.NDArray[np.bool_]:
        return np.array([len(flips) >= self._max_flips for flips in self._flips])

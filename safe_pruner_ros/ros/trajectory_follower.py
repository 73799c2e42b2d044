"""What a joint trajectory controller does with its commands, for the simulated robot.

Positions are linear between waypoints, and the last target is held when commands stop. Safe to
feed from one thread and read from another.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.types import FloatArray, JointLayout


@dataclass(frozen=True)
class Waypoints:
    """``joints`` shall be at ``positions`` [points, joints] at growing ``times_ns`` [points]."""

    joints: tuple[str, ...]
    times_ns: npt.NDArray[np.int64]
    positions: FloatArray


class TrajectoryFollower:
    """Latest waypoints per set of joints -> target positions of the whole layout."""

    def __init__(self, layout: JointLayout, positions: FloatArray) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._targets = np.array(positions, dtype=np.float64)
        self._segments: dict[tuple[int, ...], Waypoints] = {}

    def accept(self, waypoints: Waypoints, now_ns: int) -> None:
        """Replace what the joints of ``waypoints`` followed, from where they should be now."""
        columns = tuple(self._layout.index(name) for name in waypoints.joints)
        # Waypoints whose time has passed are due now; only the last of them counts.
        times_ns = np.maximum(waypoints.times_ns, now_ns)
        with self._lock:
            current = self._at(now_ns)
            self._targets = current
            self._segments = {k: v for k, v in self._segments.items() if not set(columns) & set(k)}
            self._segments[columns] = Waypoints(
                waypoints.joints,
                np.concatenate([[now_ns], times_ns]),
                np.vstack([current[list(columns)], waypoints.positions]),
            )

    def target(self, now_ns: int) -> FloatArray:
        """Positions [n] that the joints shall have at ``now_ns``."""
        with self._lock:
            self._targets = self._at(now_ns)
            return self._targets.copy()

    def hold(self, positions: FloatArray) -> None:
        """Forget every trajectory and stay at ``positions`` [n]."""
        with self._lock:
            self._segments.clear()
            self._targets = np.array(positions, dtype=np.float64)

    def _at(self, now_ns: int) -> FloatArray:
        targets = self._targets.copy()
        for columns, segment in self._segments.items():
            # Relative times stay exact in float64, absolute nanoseconds would not.
            elapsed = (segment.times_ns - segment.times_ns[0]).astype(np.float64)
            moment = float(now_ns - segment.times_ns[0])
            for place, column in enumerate(columns):
                targets[column] = np.interp(moment, elapsed, segment.positions[:, place])
        return targets

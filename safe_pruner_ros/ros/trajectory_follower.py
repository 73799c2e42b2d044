"""What a joint trajectory controller does with its messages, for the simulated robot.

Positions are linear between points, the last target is held when commands stop, and a message that
a careful controller would refuse is refused here, too. Safe to feed from one thread and read from
another.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.ros.conversions import NS_PER_S, InputError, stamp_to_ns
from safe_pruner_ros.types import FloatArray, JointLayout

if TYPE_CHECKING:
    from trajectory_msgs.msg import JointTrajectory

MAX_POINTS = 10_000


@dataclass(frozen=True)
class _Segment:
    """Targets of some joints: ``positions`` [points, joints] at absolute ``times_ns`` [points]."""

    columns: npt.NDArray[np.intp]
    times_ns: npt.NDArray[np.int64]
    positions: FloatArray


class TrajectoryFollower:
    """Latest trajectory per set of joints -> target positions of the whole layout."""

    def __init__(self, layout: JointLayout, positions: FloatArray) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._targets = np.array(positions, dtype=np.float64)
        self._segments: dict[tuple[int, ...], _Segment] = {}

    def accept(self, msg: JointTrajectory, now_ns: int, source: str) -> None:
        """Replace the trajectory of the joints named in ``msg``. Raises InputError.

        A zero stamp means "starts now", as for ros2_controllers.
        """
        segment = self._segment(msg, now_ns, source)
        key = tuple(int(column) for column in segment.columns)
        with self._lock:
            current = self._at(now_ns)[segment.columns]
            self._segments = {k: v for k, v in self._segments.items() if not set(k) & set(key)}
            self._segments[key] = _Segment(
                segment.columns,
                np.concatenate([[now_ns], segment.times_ns]),
                np.vstack([current, segment.positions]),
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
        for segment in self._segments.values():
            # Relative times stay exact in float64, absolute nanoseconds would not.
            elapsed = (segment.times_ns - segment.times_ns[0]).astype(np.float64)
            moment = float(now_ns - segment.times_ns[0])
            for place, column in enumerate(segment.columns):
                targets[column] = np.interp(moment, elapsed, segment.positions[:, place])
        return targets

    def _segment(self, msg: JointTrajectory, now_ns: int, source: str) -> _Segment:
        names = list(msg.joint_names)
        unknown = [name for name in names if name not in self._layout.names]
        if unknown or not names or len(set(names)) != len(names):
            raise InputError(
                'COMMAND_JOINTS',
                f'{source}: joint names {names[:20]} must be different joints of this robot: '
                f'{list(self._layout.names)}',
            )
        if not 0 < len(msg.points) <= MAX_POINTS:
            raise InputError(
                'COMMAND_POINTS', f'{source}: {len(msg.points)} points, expected 1 to {MAX_POINTS}'
            )
        lengths = {len(point.positions) for point in msg.points}
        if lengths != {len(names)}:
            raise InputError(
                'COMMAND_LENGTH',
                f'{source}: {len(names)} joints but points of {sorted(lengths)} positions',
            )
        positions = np.array([point.positions for point in msg.points], dtype=np.float64)
        if not np.isfinite(positions).all():
            raise InputError('COMMAND_NONFINITE', f'{source}: positions are not all finite')
        start_ns = stamp_to_ns(msg.header.stamp, source) or now_ns
        times = [point.time_from_start for point in msg.points]
        offsets = [int(t.sec) * NS_PER_S + int(t.nanosec) for t in times]
        if offsets[0] < 0 or any(b <= a for a, b in zip(offsets, offsets[1:], strict=False)):
            raise InputError(
                'COMMAND_TIMES', f'{source}: time_from_start must grow from point to point'
            )
        columns = np.array([self._layout.index(name) for name in names], dtype=np.intp)
        # Points whose time has passed are due now; only the last of them counts.
        times_ns = np.maximum(start_ns + np.array(offsets, dtype=np.int64), now_ns)
        return _Segment(columns, times_ns, positions)

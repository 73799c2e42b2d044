"""ActionChunk + now -> JointCommand. Owns the seam between chunks; knows no limits.

Actions are indexed by the time of their observation: what should already have happened is skipped.
At a seam the commands start where the arms were last sent and slide over to the new chunk: the
difference between the two at that moment is faded out, so that no command jumps.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import ActionConfig
from safe_pruner_ros.runtime.stamps import CLOCK_JUMP_NS, seconds
from safe_pruner_ros.types import ActionChunk, FloatArray, JointCommand, JointLayout


@dataclass(frozen=True)
class Seam:
    """Where one chunk took over: stamps of its observation and of its first command (node clock,
    ns), and what the cross-fade had to smooth, the largest over the arm joints: the step in
    position [rad] and in velocity [rad/s]. NaN when nothing was sent before."""

    observation_stamp_ns: int
    first_command_ns: int
    position_jump_rad: float
    velocity_jump_rad_s: float

    @property
    def action_age_s(self) -> float:
        """From capture to the first command that answers it."""
        return seconds(self.first_command_ns - self.observation_stamp_ns)


class ActionBuffer:
    """Thread safe: the worker pushes, the control timer reads."""

    def __init__(self, layout: JointLayout, config: ActionConfig, control_period_ns: int) -> None:
        self._names = layout.names
        self._arms = np.array([joint.kind == 'arm' for joint in layout.joints])
        self._config = config
        self._control_period_ns = control_period_ns
        self._lock = threading.Lock()
        self._path: _Path | None = None
        self._sent: tuple[int, FloatArray] | None = None
        self._seam_ns = 0
        self._seam_offset: FloatArray | None = None
        self._jumps: tuple[float, float] | None = None  # of the chunk nobody was commanded by yet
        self.last_seam: Seam | None = None
        self.gap: Reason | None = None  # why the last `command` was None
        self.starved_ticks = 0

    def push(
        self, chunk: ActionChunk, now_ns: int, anchor: FloatArray | None = None
    ) -> Reason | None:
        """Make ``chunk`` the current one, or return why not (the current one then stays).

        ``anchor`` [n]: joints at ``chunk.start_ns``, from which the first action is approached.
        """
        path = self._checked(chunk, anchor)
        if isinstance(path, Reason):
            return path
        if now_ns > path.end_ns:
            return Reason(
                Code.ACTION_LATE,
                f'actions arrived {seconds(now_ns - path.start_ns):.2f} s after their observation '
                f'and reach {seconds(path.end_ns - path.start_ns):.2f} s; the policy is too slow '
                f'for this chunk, use a smaller retention_ratio or a faster device',
            )
        if _is_future(path, now_ns):
            return Reason(Code.ACTION_OUT_OF_ORDER, 'actions answer an observation of the future')
        with self._lock:
            if self._path is not None and path.start_ns < self._path.start_ns:
                return Reason(
                    Code.ACTION_OUT_OF_ORDER, 'actions answer an older observation than the last'
                )
            self._jumps = self._measure_jumps(self._path, path)
            self._path, self._seam_offset = path, None
            if self._sent is not None and self._config.fade_s > 0:
                self._seam_ns, sent = self._sent
                self._seam_offset = sent - path.at(self._seam_ns)
        return None

    def _measure_jumps(self, before: _Path | None, after: _Path) -> tuple[float, float]:
        """Steps in position [rad] and velocity [rad/s] if ``after`` took over without a fade."""
        if self._sent is None:
            return math.nan, math.nan
        seam_ns, sent = self._sent
        velocity = after.velocity(seam_ns)
        if before is not None and seam_ns <= before.end_ns:
            velocity = velocity - before.velocity(seam_ns)
        position = after.at(seam_ns) - sent
        return (
            float(np.abs(position[self._arms]).max(initial=0.0)),
            float(np.abs(velocity[self._arms]).max(initial=0.0)),
        )

    def _checked(self, chunk: ActionChunk, anchor: FloatArray | None) -> _Path | Reason:
        if sorted(chunk.joint_names) != sorted(self._names):
            differing = sorted(set(chunk.joint_names) ^ set(self._names))
            return Reason(
                Code.ACTION_JOINTS,
                f'the policy moves other joints than the robot has: {differing}; choose the '
                f'checkpoint of this robot',
            )
        if len(chunk.positions) == 0:
            return Reason(Code.ACTION_SHAPE, 'the policy returned a chunk without actions')
        order = [chunk.joint_names.index(name) for name in self._names]
        rows = np.asarray(chunk.positions, np.float64)[:, order]
        if not np.isfinite(rows).all():
            columns = np.flatnonzero(~np.isfinite(rows).all(axis=0))
            bad = [self._names[column] for column in columns]
            return Reason(
                Code.ACTION_NONFINITE,
                f'the policy returned NaN or Inf for {bad}; the whole chunk is dropped. Check the '
                f'checkpoint and the precision it runs in',
            )
        first = rows[0] if anchor is None else np.asarray(anchor, np.float64)
        return _Path(np.vstack([first, rows]), chunk.start_ns, chunk.period_ns)

    def command(self, now_ns: int) -> JointCommand | None:
        """Interpolated targets in layout order, cross-faded; None: no chunk, run out, or too old,
        see ``gap``.

        The last action is sent at its full value before the chunk counts as run out.
        """
        with self._lock:
            path = self._path
            self.gap = self._why_none(path, now_ns)
            if path is None or self.gap is not None:
                self.starved_ticks += path is not None
                return None
            positions = path.at(now_ns)
            if self._seam_offset is not None:
                left = 1.0 - seconds(now_ns - self._seam_ns) / self._config.fade_s
                if left <= 0.0:
                    self._seam_offset = None
                else:
                    left = min(left, 1.0)
                    positions = positions + left * left * (3.0 - 2.0 * left) * self._seam_offset
            return JointCommand(positions, self._names, now_ns)

    def _why_none(self, path: _Path | None, now_ns: int) -> Reason | None:
        if path is None:
            return Reason(
                Code.NO_ACTION,
                'no actions: the first chunk is not there yet, or what was there became void',
            )
        if _is_future(path, now_ns):
            return Reason(
                Code.NO_ACTION,
                f'the actions answer an observation {seconds(path.start_ns - now_ns):.2f} s ahead '
                f'of the node clock, which went back; new ones are computed',
            )
        over_s = seconds(now_ns - path.end_ns - self._control_period_ns)
        if over_s > 0:
            return Reason(
                Code.NO_ACTION,
                f'the actions ran out {over_s:.2f} s ago, before the next came; the policy is '
                f'slower than its chunk is long, or waits for a new picture',
            )
        age_s, limit_s = seconds(now_ns - path.start_ns), self._config.max_action_age_s
        if age_s > limit_s:
            return Reason(
                Code.ACTION_OLD,
                f'the actions answer an observation {age_s:.2f} s old (limit '
                f'runtime.actions.max_action_age_s {limit_s:g}) and the next did not come; the '
                f'policy step takes too long, lower policy.execution_horizon or raise the limit',
            )
        return None

    def heading(self, now_ns: int) -> FloatArray | None:
        """The action [n] that `command` is on its way to, without a fade; None: no chunk."""
        with self._lock:
            return None if self._path is None else self._path.next_waypoint(now_ns)

    def executed(self, positions: FloatArray | None, now_ns: int) -> None:
        """What the guard really let through (None: nothing is being sent). Seams start there."""
        with self._lock:
            self._sent = None if positions is None else (now_ns, positions)

    def note_commanded(self, now_ns: int) -> None:
        """A command of the current chunk was sent; the first one completes `last_seam`."""
        with self._lock:
            if self._jumps is not None and self._path is not None:
                self.last_seam = Seam(self._path.start_ns, now_ns, *self._jumps)
                self._jumps = None

    def consumed(self, now_ns: int, execution_horizon: int) -> bool:
        """Whether a new chunk is due: none is there, or ``execution_horizon`` actions are over."""
        return self.slack_ns(now_ns, execution_horizon) <= 0

    def slack_ns(self, now_ns: int, execution_horizon: int) -> int:
        """Time until a new chunk is due; 0 when there is none that can be used."""
        with self._lock:
            path = self._path
            if path is None or _is_future(path, now_ns):
                return 0
            return max(0, path.start_ns + execution_horizon * path.period_ns - now_ns)

    def flush(self) -> None:
        """Drop the chunk; the next `command` is None."""
        with self._lock:
            self._path = self._seam_offset = self._jumps = None

    def reset(self) -> None:
        """`flush`, and forget seams and counts (start of an episode)."""
        self.flush()
        with self._lock:
            self._sent, self.last_seam, self.starved_ticks = None, None, 0


class _Path:
    """Waypoints [1 + chunk_size, n]; waypoint k is due at start_ns + k * period_ns."""

    def __init__(self, waypoints: FloatArray, start_ns: int, period_ns: int) -> None:
        self._waypoints = waypoints
        self.period_ns = period_ns
        self.start_ns = start_ns
        self.end_ns = start_ns + (len(waypoints) - 1) * period_ns

    def at(self, now_ns: int) -> FloatArray:
        """Linear interpolation; constant before the first and after the last waypoint."""
        place = (now_ns - self.start_ns) / self.period_ns
        place = min(max(place, 0.0), len(self._waypoints) - 1.0)
        before = min(int(place), len(self._waypoints) - 2)
        share = place - before
        # A convex combination, unlike a + share * (b - a), cannot overflow.
        mixed: FloatArray = (1.0 - share) * self._waypoints[before] + share * self._waypoints[
            before + 1
        ]
        return mixed

    def next_waypoint(self, now_ns: int) -> FloatArray:
        """The one that is due after ``now_ns``; the last one when all are over."""
        place = max((now_ns - self.start_ns) // self.period_ns, 0)
        waypoint: FloatArray = self._waypoints[min(place + 1, len(self._waypoints) - 1)]
        return waypoint

    def velocity(self, now_ns: int) -> FloatArray:
        """Slope per second at ``now_ns``; zero before the first and after the last waypoint."""
        place = (now_ns - self.start_ns) / self.period_ns
        if not 0.0 <= place < len(self._waypoints) - 1.0:
            return np.zeros(self._waypoints.shape[1])
        before = int(place)
        rise = self._waypoints[before + 1] - self._waypoints[before]
        slope: FloatArray = rise / seconds(self.period_ns)
        return slope


def _is_future(path: _Path, now_ns: int) -> bool:
    return path.start_ns > now_ns + CLOCK_JUMP_NS

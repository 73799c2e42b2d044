"""Whether the arms are where they were sent, and what came of it lately."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import GuardConfig, RobotConfig
from safe_pruner_ros.runtime.joint_samples import JointSamples
from safe_pruner_ros.runtime.stamps import NS_PER_S, seconds
from safe_pruner_ros.types import FloatArray

# An arm joint that moved less than this stands still: above an encoder's noise, far below what a
# slow arm travels within `stall_s`.
STILL_RAD = 0.02


class Tracking:
    """Compares arm joints with their last command; grippers may be stopped by what they hold.

    Two ways to lose one: it is far from its command, or it stands still for a while, not so far
    from it. The latter is what an emergency stop looks like, which no message tells of.
    Not thread safe: the guard locks.
    """

    def __init__(self, robot: RobotConfig, config: GuardConfig) -> None:
        self._config = config
        self._names = robot.layout.names
        self._gripper = robot.layout.is_gripper
        self._is_followed = not robot.dry_run  # a preview moves nothing, so nothing tracks it
        self.reset()

    def reset(self) -> None:
        """Forget earlier losses."""
        self._lost: Reason | None = None
        self._losses_ns: deque[int] = deque()
        self._still: tuple[FloatArray, npt.NDArray[np.int64]] | None = None

    def is_lost(self, sent: FloatArray | None, seen: JointSamples | None, now_ns: int) -> bool:
        """Whether an arm joint was ``seen`` too far from what was ``sent``; not so where one of
        the two is missing, or the joint was not seen lately."""
        return bool(self._far(self._error(sent, seen, now_ns)).any())

    def problem(
        self, sent: FloatArray | None, seen: JointSamples | None, now_ns: int
    ) -> Reason | None:
        """`is_lost` in words, or which joints have stalled. Once a control tick."""
        config, error = self._config, self._error(sent, seen, now_ns)
        far = self._far(error)
        stalled = self._stalled(error, seen, now_ns)
        if far.any():
            lost, text = far, f'(limit {config.max_tracking_error_rad})'
        elif stalled.any():
            lost = stalled
            text = (
                f'and have stood still for {config.stall_s:g} s (limit '
                f'{config.max_stall_error_rad}): blocked, braked or under an emergency stop'
            )
        else:
            return None
        names = ', '.join(name for name, marked in zip(self._names, lost, strict=True) if marked)
        return Reason(
            Code.TRACKING_LOST,
            f'{names} are {rounded(error[lost])} rad from their command {text}; sending ended, '
            f'the next start is soft',
        )

    def note_loss(self, lost: Reason, now_ns: int) -> Reason | None:
        """Count it; a FAULT rather than to push against a blocked arm again and again."""
        losses, config = self._losses_ns, self._config
        self._lost, self._still = lost, None
        losses.append(now_ns)
        while not 0 <= seconds(now_ns - losses[0]) <= config.tracking_window_s:
            losses.popleft()
        if len(losses) < config.max_tracking_losses:
            return None
        return Reason(
            Code.TRACKING_FAILING,
            f'{len(losses)} times within {config.tracking_window_s:g} s the arms were not where '
            f'they were sent, the last time {lost.text}. Remove what blocks them, or check their '
            f'controller, then reset',
        )

    def just_lost(self, now_ns: int) -> Reason | None:
        """The loss itself and the hold after it: long enough for diagnostics to be seen."""
        if self._losses_ns:
            since_s = seconds(now_ns - self._losses_ns[-1])
            if 0 <= since_s <= self._config.tracking_hold_s:
                return self._lost
        return None

    def _error(
        self, sent: FloatArray | None, seen: JointSamples | None, now_ns: int
    ) -> FloatArray:
        """Of the arm joints [rad]; 0 where it is unknown, each joint by itself."""
        if (
            not self._is_followed
            or sent is None
            or seen is None
            or seen.positions.shape != sent.shape
        ):
            return np.zeros(len(self._names))
        error = np.abs(seen.fresh(now_ns, self._config.max_state_age_s) - sent)
        return np.where(np.isfinite(error) & ~self._gripper, error, 0.0)

    def _far(self, error: FloatArray) -> npt.NDArray[np.bool_]:
        return error > self._config.max_tracking_error_rad

    def _stalled(
        self, error: FloatArray, seen: JointSamples | None, now_ns: int
    ) -> npt.NDArray[np.bool_]:
        """Joints that have been ``error`` away and have not moved, both for ``stall_s``."""
        if seen is None or seen.positions.shape != error.shape:
            self._still = None
            return np.zeros(error.shape, dtype=bool)
        measured = seen.positions
        if self._still is None:
            self._still = measured, np.full(error.shape, now_ns, dtype=np.int64)
        pose, since_ns = self._still
        moves = ~(np.abs(measured - pose) <= STILL_RAD)  # also: seen for the first time
        fresh = (error <= self._config.max_stall_error_rad) | moves | (since_ns > now_ns)
        pose, since_ns = np.where(fresh, measured, pose), np.where(fresh, now_ns, since_ns)
        self._still = pose, since_ns
        return now_ns - since_ns >= self._config.stall_s * NS_PER_S


def rounded(values: FloatArray) -> str:
    return ', '.join(f'{value:.4g}' for value in values)

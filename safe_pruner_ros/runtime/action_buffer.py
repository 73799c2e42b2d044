"""ActionChunk + now -> JointCommand. Owns the seam between chunks; knows no limits.

Actions are indexed by the time of their observation: what should already have happened is skipped.
"""

from __future__ import annotations

from safe_pruner_ros.runtime.codes import Reason
from safe_pruner_ros.runtime.config import ActionConfig
from safe_pruner_ros.types import ActionChunk, FloatArray, JointCommand, JointLayout


class ActionBuffer:
    """Thread safe: the worker pushes, the control timer reads."""

    def __init__(self, layout: JointLayout, config: ActionConfig, control_period_ns: int) -> None: ...

    def push(
        self, chunk: ActionChunk, now_ns: int, anchor: FloatArray | None = None
    ) -> Reason | None:
        """Make ``chunk`` the current one, or return why not (the current one then stays).

        ``anchor`` [n]: joints at ``chunk.start_ns``, from which the first action is approached.
        """
        raise NotImplementedError

    def command(self, now_ns: int) -> JointCommand | None:
        """Interpolated targets in layout order, cross-faded; None: no chunk, run out, or too old."""
        raise NotImplementedError

    def executed(self, positions: FloatArray | None, now_ns: int) -> None:
        """What the guard really let through (None: nothing is being sent). Seams start there."""
        raise NotImplementedError

    def consumed(self, now_ns: int, execution_horizon: int) -> bool:
        """Whether a new chunk is due: none is held, or its first ``execution_horizon`` are over."""
        raise NotImplementedError

    def flush(self) -> None:
        """Drop the chunk; the next `command` is None."""
        raise NotImplementedError

"""The only file allowed to alter a command: limits, steps, staleness, soft start, hold, FAULT.

In every state: no NaN, no value outside the limits, no step above ``max_step`` leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import GuardConfig, RobotConfig
from safe_pruner_ros.types import ArmState, JointCommand


@dataclass(frozen=True)
class GuardVerdict:
    """``command`` is what to send, None: send nothing. A hold repeats the last accepted command.

    ``reasons`` is empty for 'pass'; ``is_fault`` is latched until `CommandGuard.reset`.
    """

    action: Literal['pass', 'clamp', 'hold']
    reasons: tuple[Reason, ...]
    command: JointCommand | None
    is_fault: bool = False

    @property
    def codes(self) -> tuple[Code, ...]:
        return tuple(reason.code for reason in self.reasons)


class CommandGuard:
    """Used by the control timer alone; `counts` may be read from other threads."""

    def __init__(self, robot: RobotConfig, config: GuardConfig, control_rate_hz: float) -> None: ...

    def check(
        self,
        command: JointCommand | None,
        state: ArmState | None,
        now_ns: int,
        reasons: Sequence[Reason] = (),
    ) -> GuardVerdict:
        """One control tick. Non-empty ``reasons`` (stale camera, paused, ...) hold the arms."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the last command and the FAULT: the next start is a soft start."""
        raise NotImplementedError

    def take_counts(self) -> dict[str, int]:
        """Ticks by action and by reason code since the last call."""
        raise NotImplementedError

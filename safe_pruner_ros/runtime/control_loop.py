"""Wires buffer, worker, action buffer and guard: what a node needs to call, and nothing of ROS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.runtime.codes import Reason
from safe_pruner_ros.runtime.command_guard import GuardVerdict
from safe_pruner_ros.runtime.config import Config
from safe_pruner_ros.runtime.observation_buffer import SourceStatistics
from safe_pruner_ros.runtime.step_report import LatencyStatistics, StepReport
from safe_pruner_ros.types import CameraImage

LoopState = Literal['RUN', 'HOLD', 'FAULT']


@dataclass(frozen=True)
class LoopStatus:
    """For /diagnostics. ``reasons``: of the last tick; ``warnings``: do not hold the arms."""

    state: LoopState
    reasons: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    sources: tuple[SourceStatistics, ...]
    instruction: str
    policy_step: int
    policy_step_ms: LatencyStatistics
    command_period_ms: LatencyStatistics
    last_report: StepReport | None


class ControlLoop:
    """Threads: store_* and set_instruction from callbacks, `tick` from the control timer, the
    policy in the worker thread. None of them waits for another.

    Parts are public: ``buffer``, ``actions``, ``guard``, ``worker``.
    Raises ConfigError (check_policy_fits) when policy and robot do not fit.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        clock: Callable[[], int],
        on_report: Callable[[StepReport], None] = lambda report: None,
    ) -> None: ...

    def start(self) -> None:
        """Start the worker; the first command follows once everything is fresh."""

    def stop(self, timeout_s: float = 2.0) -> bool:
        """Stop the worker and forget all data; False if the policy still computes."""
        raise NotImplementedError

    def store_image(self, image: CameraImage, receive_ns: int) -> Reason | None:
        """`ObservationBuffer.store_image`, and wake the worker."""
        raise NotImplementedError

    def store_joints(
        self,
        source: str,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        receive_ns: int,
    ) -> Reason | None:
        """`ObservationBuffer.store_joints`."""
        raise NotImplementedError

    def set_instruction(self, text: str) -> Reason | None:
        """`ObservationBuffer.set_instruction`; a change flushes the actions, forces a keyframe."""
        raise NotImplementedError

    def tick(self, now_ns: int) -> GuardVerdict:
        """One control tick, at ``runtime.control_rate_hz``: send ``verdict.command`` if not None.

        ``now_ns`` is the node clock. A jump back clears everything and holds.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Start of an episode, and the way out of FAULT."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def force_keyframe(self) -> None: ...

    def missing(self, now_ns: int) -> tuple[Reason, ...]:
        """Why activation must wait: every required source that has no fresh data."""
        raise NotImplementedError

    def status(self, now_ns: int) -> LoopStatus:
        raise NotImplementedError

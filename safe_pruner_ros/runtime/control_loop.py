"""Wires buffer, worker, action buffer and guard: what a node needs to call, and nothing of ROS."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.runtime.action_buffer import ActionBuffer, Seam
from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.command_guard import (
    MAX_TICK_GAP_S,
    CommandGuard,
    GuardVerdict,
)
from safe_pruner_ros.runtime.config import Config, check_policy_fits
from safe_pruner_ros.runtime.config_runtime import check_action_age
from safe_pruner_ros.runtime.inference_worker import InferenceWorker
from safe_pruner_ros.runtime.observation_buffer import ObservationBuffer, SourceStatistics
from safe_pruner_ros.runtime.retention_control import RetentionController, RetentionState
from safe_pruner_ros.runtime.shadow_audit import (
    Audit,
    AuditCounts,
    ForwardKinematics,
    ShadowAudit,
)
from safe_pruner_ros.runtime.stamps import CLOCK_JUMP_NS, seconds
from safe_pruner_ros.runtime.step_report import RollingStatistics, StepReport
from safe_pruner_ros.types import CameraImage

LoopState = Literal['RUN', 'HOLD', 'FAULT']
_INSTRUCTION_CODES = (Code.INSTRUCTION_EMPTY, Code.INSTRUCTION_REFUSED)


@dataclass(frozen=True)
class LoopStatus:
    """For /diagnostics. ``reasons``: of the last tick; ``warnings``: do not hold the arms."""

    state: LoopState
    reasons: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    sources: tuple[SourceStatistics, ...]
    instruction: str
    policy_step: int
    policy_step_ms: RollingStatistics
    command_period_ms: RollingStatistics
    action_age_ms: RollingStatistics
    seam_jump_rad: RollingStatistics
    starved_ticks: int
    retention: RetentionState
    audit: Audit | None
    audit_counts: AuditCounts
    audit_failure: str
    last_report: StepReport | None


class ControlLoop:
    """Threads: store_* and set_instruction from callbacks, `tick` from the control timer, the
    policy in the worker thread. None of them waits for another; `reset` and `block` come between
    two ticks, never into one.

    Parts are public: ``buffer``, ``actions``, ``guard``, ``worker``. ``clock`` reads the node
    clock, ``steady`` a monotonic one, both in ns.
    Raises ConfigError when policy and robot do not fit (check_policy_fits), or when a chunk is
    executed for longer than its commands may be sent (check_action_age).
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        clock: Callable[[], int],
        on_report: Callable[[StepReport], None] = lambda report: None,
        steady: Callable[[], int] = time.monotonic_ns,
        on_audit: Callable[[Audit], None] = lambda audit: None,
        kinematics: ForwardKinematics | None = None,
    ) -> None:
        spec, runtime = policy.spec, config.runtime
        check_policy_fits(spec, config.robot)
        horizon = min(config.policy.execution_horizon or spec.execution_horizon, spec.chunk_size)
        period_s = config.policy.period_s or spec.period_s
        check_action_age(spec.name, horizon, period_s, runtime.actions)
        self.buffer = ObservationBuffer(config.robot, runtime.buffer)
        self.actions = ActionBuffer(
            config.robot.layout, runtime.actions, runtime.control_period_ns
        )
        self.guard = CommandGuard(config.robot, runtime.guard, runtime.control_rate_hz)
        self.audit = ShadowAudit(runtime.audit, config.robot.layout, horizon, kinematics)
        self.retention = RetentionController(
            runtime.retention, runtime.audit, config.pruner.retention_ratio
        )
        self.worker = InferenceWorker(
            policy,
            self.buffer,
            self.actions,
            runtime.worker,
            config.policy,
            clock,
            self._report,
            self.guard.take_counts,
            steady,
            self.audit,
            None if config.pruner.method == 'unpruned' else self.retention,
            on_audit,
            self.guard.start_pose,
        )
        self.policy_step_ms = RollingStatistics()
        self.command_period_ms = RollingStatistics()
        self.action_age_ms = RollingStatistics()
        self.seam_jump_rad = RollingStatistics()
        self._seam: Seam | None = None
        self._blocked: tuple[tuple[Reason, ...], bool] = ((), False)  # reasons, mute
        self._on_report = on_report
        self._steady = steady
        self._max_clock_stop_s = runtime.worker.max_clock_stop_s
        self._verdict = GuardVerdict('hold', (), None)
        self._is_void = self._is_lost = False
        self._between_ticks = threading.Lock()
        self._forget_clock()

    def _forget_clock(self) -> None:
        self._last_now_ns = 0
        self._last_advance_ns = self._steady()
        self._last_tick_ns: int | None = None

    def start(self) -> None:
        """Start the worker; the first command follows once everything is fresh.

        A new episode for policy and pruner: what they remember may be hours old. The instruction
        stays, as does a FAULT of the policy; `set_instruction` and `reset` change them.
        """
        self._forget_clock()
        self.worker.forget_episode()
        self.worker.start()

    def stop(self, timeout_s: float = 2.0) -> bool:
        """Stop the worker and forget all data but a FAULT; False if the policy still computes."""
        stopped = self.worker.stop(timeout_s)
        with self._between_ticks:
            self.buffer.clear()
            self.guard.forget()
            self.guard.forget_grip()
            self.actions.reset()
        return stopped

    # ---- callbacks

    def store_image(self, image: CameraImage, receive_ns: int) -> Reason | None:
        """`ObservationBuffer.store_image`, and wake the worker."""
        reason = self.buffer.store_image(image, receive_ns)
        if reason is None:
            self.worker.notify()
        return reason

    def store_joints(
        self,
        source: str,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        receive_ns: int,
    ) -> Reason | None:
        """`ObservationBuffer.store_joints`."""
        return self.buffer.store_joints(source, names, positions, stamp_ns, receive_ns)

    def set_instruction(self, text: str) -> Reason | None:
        """`ObservationBuffer.set_instruction`; a change flushes the actions of the old one."""
        before = self.buffer.generation
        reason = self.buffer.set_instruction(text)
        if self.buffer.generation != before:
            self.worker.void()
            self.worker.notify()
        return reason

    # ---- control timer

    def tick(self, now_ns: int) -> GuardVerdict:
        """One control tick, at ``runtime.control_rate_hz``: send ``verdict.command`` if not None.

        ``now_ns`` is the node clock. A jump back, or a long time without a tick, clears everything
        but the instruction and a FAULT, and holds.
        """
        with self._between_ticks:
            return self._tick(now_ns)

    def _tick(self, now_ns: int) -> GuardVerdict:
        reasons = self._clock_reasons(now_ns, self._measure_period())
        if not reasons:
            not_ready = self.buffer.readiness(now_ns)
            reasons = not_ready.reasons if not_ready else ()
        blocked, is_mute = self._blocked
        reasons += blocked
        if is_mute:
            self.guard.forget()
        # Data that was not good enough must not have led to actions: drop what is pending, once.
        if reasons and not self._is_void:
            self.worker.void()
        self._is_void = bool(reasons)
        reasons += self.worker.hold_reasons()
        command = None if reasons else self.actions.command(now_ns)
        if not reasons and command is None and self.actions.gap is not None:
            reasons = (self.actions.gap,)
        verdict = self.guard.check(
            command,
            self.buffer.state(),
            now_ns,
            reasons,
            self.buffer.believed_joints(),
            self.buffer.doubted_joints(),
            self.actions.heading(now_ns),
        )
        # What was planned for arms that did not follow is void as well, once a loss.
        is_lost = Code.TRACKING_LOST in verdict.codes
        if is_lost and not self._is_lost:
            self.worker.void()
        self._is_lost = is_lost
        sent = verdict.command
        self.actions.executed(None if sent is None else sent.positions, now_ns)
        if command is not None and verdict.action != 'hold':
            self.actions.note_commanded(now_ns)
            self._note_seam()
        self._verdict = verdict
        return verdict

    def _note_seam(self) -> None:
        """Into the statistics, once per chunk."""
        seam = self.actions.last_seam
        if seam is None or seam is self._seam:
            return
        self._seam = seam
        self.action_age_ms.add(seam.action_age_s * 1e3)
        if math.isfinite(seam.position_jump_rad):
            self.seam_jump_rad.add(seam.position_jump_rad)

    def _measure_period(self) -> int:
        """Steady time since the tick before, ns; 0 at the first."""
        steady_ns, before_ns = self._steady(), self._last_tick_ns
        self._last_tick_ns = steady_ns
        if before_ns is None:
            return 0
        self.command_period_ms.add((steady_ns - before_ns) * 1e-6)
        return steady_ns - before_ns

    def _clock_reasons(self, now_ns: int, steady_gap_ns: int) -> tuple[Reason, ...]:
        """Watches the node clock against the steady one: gone back, missing, stopped. Both may
        show a gap: a steady clock does not count while the machine sleeps."""
        before_ns, self._last_now_ns = self._last_now_ns, now_ns
        if now_ns != before_ns:
            self._last_advance_ns = self._steady()
        if now_ns < before_ns - CLOCK_JUMP_NS:
            self._begin_anew()
            text = (
                f'the node clock went back by {seconds(before_ns - now_ns):.2f} s; starting anew'
            )
            return (Reason(Code.CLOCK_JUMPED, text),)
        if now_ns <= 0:
            text = 'the node clock is still zero; with use_sim_time, start what sends /clock'
            return (Reason(Code.CLOCK_MISSING, text),)
        gap_s = seconds(max(steady_gap_ns, now_ns - before_ns if before_ns > 0 else 0))
        if gap_s > MAX_TICK_GAP_S:
            self._begin_anew()
            text = (
                f'no control tick for {gap_s:.2f} s (limit {MAX_TICK_GAP_S} s): was the process '
                f'stopped, or the machine asleep or overloaded? Starting anew'
            )
            return (Reason(Code.CONTROL_GAP, text),)
        stopped_s = seconds(self._steady() - self._last_advance_ns)
        if stopped_s > self._max_clock_stop_s:
            text = f'the node clock stands still since {stopped_s:.1f} s; is the simulator paused?'
            return (Reason(Code.CLOCK_STOPPED, text),)
        return ()

    def _begin_anew(self) -> None:
        """What was seen, planned and sent before says nothing about now."""
        self.buffer.clear()
        self.worker.void()
        self._is_void = True
        self.guard.forget()
        self.worker.forget_episode()

    # ---- services

    def reset(self) -> None:
        """Start of an episode, and the way out of FAULT. Earlier images and joints are dropped."""
        with self._between_ticks:
            self.buffer.clear()
            self.guard.reset()
            self.actions.reset()
            # Last: a step that began on what is cleared here must not use the policy's reset up.
            self.worker.reset()

    def pause(self) -> None:
        """Hold the arms and compute nothing."""
        self.worker.pause()

    def resume(self) -> None:
        self.worker.resume()

    def force_keyframe(self) -> None:
        """Run the next policy step unpruned."""
        self.worker.force_keyframe()

    def block(self, reasons: Sequence[Reason] = (), mute: bool = False) -> None:
        """Hold the arms for what only the caller sees, until called without reasons; ``mute``:
        send nothing meanwhile. Nothing of that time counts afterwards, and the start is soft."""
        with self._between_ticks:
            if self._blocked[0] and not reasons:
                self.buffer.clear()
                self.worker.void()
                self.worker.force_keyframe()
                self.guard.forget()
            if self._blocked[1] and not mute:
                self.guard.forget_grip()  # others may have used the robot
            self._blocked = (tuple(reasons), mute)

    # ---- reports

    def missing(self, now_ns: int) -> tuple[Reason, ...]:
        """Why activation must wait: every required source that has no fresh data."""
        not_ready = self.buffer.readiness(now_ns)
        reasons = not_ready.reasons if not_ready else ()
        return tuple(reason for reason in reasons if reason.code not in _INSTRUCTION_CODES)

    def status(self, now_ns: int) -> LoopStatus:
        report = self.worker.last_report
        return LoopStatus(
            state=self._state(),
            reasons=self._verdict.reasons,
            warnings=self.buffer.warnings(now_ns),
            sources=self.buffer.statistics(now_ns),
            instruction=self.buffer.instruction,
            policy_step=report.step if report else 0,
            policy_step_ms=self.policy_step_ms,
            command_period_ms=self.command_period_ms,
            action_age_ms=self.action_age_ms,
            seam_jump_rad=self.seam_jump_rad,
            starved_ticks=self.actions.starved_ticks,
            retention=self.retention.state,
            audit=self.audit.last,
            audit_counts=self.audit.counts,
            audit_failure=self.audit.failure,
            last_report=report,
        )

    def _state(self) -> LoopState:
        if self._verdict.is_fault:
            return 'FAULT'
        return 'HOLD' if self._verdict.action == 'hold' else 'RUN'

    def _report(self, report: StepReport) -> None:
        total_ms = report.latency_ms['total']
        if report.succeeded and math.isfinite(total_ms):
            self.policy_step_ms.add(total_ms)
        self._on_report(report)

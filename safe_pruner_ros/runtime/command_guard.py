"""The only file allowed to alter a command: limits, steps, staleness, soft start, hold, FAULT.

In every state: no NaN, no value outside the limits, no step above ``max_step`` leaves it. A hold
repeats the last accepted command; re-reading the measured pose each tick would drift under load.
The measured pose is used once, to start from.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import GuardConfig, RobotConfig
from safe_pruner_ros.runtime.config_robot import MAX_STEP_RATE_HZ
from safe_pruner_ros.runtime.joint_samples import JointSamples
from safe_pruner_ros.runtime.oscillation import OscillationDetector
from safe_pruner_ros.runtime.stamps import CLOCK_JUMP_NS, NS_PER_S, seconds
from safe_pruner_ros.runtime.tracking import Tracking, rounded
from safe_pruner_ros.types import ArmState, FloatArray, JointCommand

SOFT_START_FLOOR = 0.1  # share of the step limit at the first command of a soft start
# After so long without a tick nobody knows where the arms are: somebody may have moved them.
MAX_TICK_GAP_S = 0.5
# A gripper that moved less since its last command still holds what it held then.
GRIPPER_STILL = 0.05
# Ticks that limited an arm joint by more than clamp_tolerance. Grippers are meant to be limited:
# they are told to close at once, and close as fast as they may.
ARMS_LIMITED = 'arms limited'
BoolArray = npt.NDArray[np.bool_]
FAULT_CODES = frozenset({Code.POLICY_FAILING, Code.TRACKING_FAILING, Code.CLAMPED_TOO_LONG})


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
    """``check`` belongs to the control timer; all methods may be called from other threads."""

    def __init__(self, robot: RobotConfig, config: GuardConfig, control_rate_hz: float) -> None:
        self._config = config
        self._names = robot.layout.names
        self._lower, self._upper = robot.layout.lower, robot.layout.upper
        self._max_velocity = robot.layout.max_velocity
        share = min(1.0, MAX_STEP_RATE_HZ / control_rate_hz)
        self._max_step = share * np.array([joint.max_step for joint in robot.joints])
        self._gripper = robot.layout.is_gripper
        self._tracking = Tracking(robot, config)
        tolerance = np.where(
            self._gripper, config.max_start_outside_gripper, config.max_start_outside_rad
        )
        # The first command must be inside the limits and within one step of the measured pose.
        self._start_tolerance = np.minimum(tolerance, self._max_step)
        self._period_ns = round(NS_PER_S / control_rate_hz)
        self._oscillation = OscillationDetector(len(self._names), config.max_sign_flips)
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """`forget`, and the FAULT and the grip: somebody may have taken out what was held."""
        with self._lock:
            self._fault: Reason | None = None
            self._tracking.reset()
            self.forget()
            self.forget_grip()

    def forget(self) -> None:
        """Forget the last command, keep a FAULT: the next start is soft, from `start_pose`."""
        with self._lock:
            self._last: FloatArray | None = None
            self._last_ns = 0
            self._started_ns = 0
            self._unused_ns = self._period_ns
            self._hold_since_ns: int | None = None
            self._clamps_in_row = 0
            self._oscillation.clear()

    def forget_grip(self) -> None:
        """The grippers' last commands as well (others may use the robot now)."""
        with self._lock:
            self._grip: tuple[FloatArray, FloatArray] | None = None  # last sent, measured then

    def start_pose(self, measured: FloatArray) -> FloatArray:
        """Where a path sets out from a measured pose, both in layout order.

        Arms from there. A gripper that stands as it did when it was last told where to go, from
        that command: where a thing in it stops it, it would begin by letting go.
        """
        with self._lock:
            if self._grip is None or self._grip[0].shape != measured.shape:
                return measured
            sent, then = self._grip
            is_still = self._gripper & (np.abs(measured - then) <= GRIPPER_STILL)
            return np.where(is_still, sent, measured)

    def take_counts(self) -> dict[str, int]:
        """Ticks by action, by reason code and ARMS_LIMITED since the last call."""
        with self._lock:
            counts, self._counts = dict(self._counts), Counter()
        return counts

    def check(
        self,
        command: JointCommand | None,
        state: ArmState | None,
        now_ns: int,
        reasons: Sequence[Reason] = (),
        seen: JointSamples | None = None,
        doubted: JointSamples | None = None,
        heading: FloatArray | None = None,
    ) -> GuardVerdict:
        """One control tick. Non-empty ``reasons`` (stale camera, paused, ...) hold the arms.

        ``command`` None holds too; ``state`` is the newest measured pose in layout order.
        ``seen``: the same joint by joint, for those whose own source speaks; None: as ``state``.
        Whether an arm follows is told by it: the other one's driver may be dead.
        ``doubted``: joints that are not believed yet. Nothing starts from them, but a command far
        from them is not repeated either. ``heading`` [n], layout order: the action that
        ``command`` is on its way to. A start is judged by it, too: the way begins at the measured
        pose.
        """
        if seen is None and state is not None:
            seen = JointSamples.of_state(state)
        with self._lock:
            if self._is_old(now_ns) or self._tracking.is_lost(self._last, doubted, now_ns):
                self.forget()
            verdict = self._judge(command, state, seen, now_ns, tuple(reasons), heading)
            self._note_grip(verdict, seen, now_ns)
            self._counts.update([verdict.action, *(code.value for code in verdict.codes)])
        return verdict

    # ---- one tick

    def _judge(
        self,
        command: JointCommand | None,
        state: ArmState | None,
        seen: JointSamples | None,
        now_ns: int,
        reasons: tuple[Reason, ...],
        heading: FloatArray | None,
    ) -> GuardVerdict:
        if self._fault is None:
            self._fault = next((r for r in reasons if r.code in FAULT_CODES), None)
        if self._fault is not None:
            return self._faulted(reasons)
        if lost := self._tracking.problem(self._last, seen, now_ns):
            # Going on, or even holding, would throw the arm back once it is free again.
            self.forget()
            if fault := self._tracking.note_loss(lost, now_ns):
                self._fault = fault
                return self._faulted(reasons)
        if lost := self._tracking.just_lost(now_ns):
            reasons += (lost,)
        if not reasons:
            reasons = self._stale(command, state, now_ns)
        if reasons or command is None or state is None:
            return self._hold(reasons, now_ns)
        targets = self._targets(command)
        if isinstance(targets, Reason):
            return self._hold((targets,), now_ns)
        if self._last is None:
            if problem := self._start_problem(targets, state.positions, heading):
                return self._hold((problem,), now_ns)
            self._started_ns = now_ns
        return self._limited(targets, state.positions, now_ns)

    def _limited(self, targets: FloatArray, measured: FloatArray, now_ns: int) -> GuardVerdict:
        """Position limits, then the step from the last command (at a start: the measured pose)."""
        start = self.start_pose(measured) if self._last is None else self._last
        inside, outside = np.clip(targets, self._lower, self._upper), self._outside(targets)
        velocity_step, step = self._step_limits(now_ns)
        ramp = self._ramp(now_ns)
        delta = inside - start
        allowed = np.minimum(step, velocity_step) * ramp
        if self._last is None:
            # A pose measured slightly outside its limits comes back in at once (see __init__).
            allowed = np.maximum(allowed, self._outside(measured))
        over = np.abs(delta) > allowed + 1e-9
        if self._oscillation.update(np.where(over, np.sign(delta), 0.0), now_ns):
            reason = Reason(
                Code.OSCILLATION,
                f'{self._which(self._oscillation.joints())} reverse at the step limit; the policy '
                f'is unstable, lower its gain or check the camera order',
            )
            return self._hold((reason,), now_ns)
        sent = np.clip(start + np.clip(delta, -allowed, allowed), self._lower, self._upper)
        reasons = self._clamp_reasons(outside, over, delta, step, velocity_step)
        counted = (outside > self._config.clamp_tolerance) | (
            (np.abs(delta) - allowed > self._config.clamp_tolerance) & (ramp >= 1.0)
        )
        self._clamps_in_row = self._clamps_in_row + 1 if counted.any() else 0
        if (counted & ~self._gripper).any():
            self._counts[ARMS_LIMITED] += 1
        if self._clamps_in_row >= self._config.max_clamps_in_row:
            self._fault = Reason(
                Code.CLAMPED_TOO_LONG,
                f'{self._clamps_in_row} commands in a row had to be clamped at '
                f'{self._which(counted)}; check that the policy fits this robot, then reset',
            )
            return self._faulted((self._fault,))
        self._last, self._last_ns, self._hold_since_ns = sent, now_ns, None
        command = JointCommand(sent, self._names, now_ns)
        return GuardVerdict('clamp' if reasons else 'pass', reasons, command)

    def _note_grip(self, verdict: GuardVerdict, seen: JointSamples | None, now_ns: int) -> None:
        """Where the grippers stand under what is sent. In a hold as well: fingers that were still
        closing when it began stop later, on what they then hold."""
        if verdict.command is None or seen is None:
            return
        sent = verdict.command.positions
        measured = seen.fresh(now_ns, self._config.max_state_age_s)
        if measured.shape != sent.shape:
            return
        before = self._grip or (sent, np.full(sent.shape, np.nan))
        known = np.isfinite(measured)
        self._grip = np.where(known, sent, before[0]), np.where(known, measured, before[1])

    def _hold(self, reasons: tuple[Reason, ...], now_ns: int) -> GuardVerdict:
        if self._hold_since_ns is None:
            self._hold_since_ns = now_ns
        held_s = seconds(now_ns - self._hold_since_ns)
        if self._config.hold_s and held_s > self._config.hold_s:
            # Whoever starts again starts softly, from the measured pose.
            self._last, self._unused_ns = None, self._period_ns
        if self._last is None:
            return GuardVerdict('hold', reasons, None)
        self._last_ns, self._unused_ns = now_ns, 0
        return GuardVerdict('hold', reasons, JointCommand(self._last, self._names, now_ns))

    def _faulted(self, reasons: tuple[Reason, ...]) -> GuardVerdict:
        assert self._fault is not None
        self.forget()
        others = tuple(reason for reason in reasons if reason.code is not self._fault.code)
        return GuardVerdict('hold', (self._fault, *others), None, is_fault=True)

    # ---- what is wrong

    def _stale(
        self, command: JointCommand | None, state: ArmState | None, now_ns: int
    ) -> tuple[Reason, ...]:
        if command is None:
            return (Reason(Code.NO_ACTION, 'no action: the first chunk is not there yet, or the '
                                           'last one ran out before the next came'),)  # fmt: skip
        if state is None:
            return (Reason(Code.STATE_MISSING, 'no measured joints yet'),)
        state_age_s = seconds(now_ns - state.stamp_ns)
        if not -self._config.max_state_age_s <= state_age_s <= self._config.max_state_age_s:
            limit = self._config.max_state_age_s
            text = f'measured joints are {state_age_s:.2f} s old (limit {limit} s)'
            return (Reason(Code.STATE_STALE, text),)
        command_age_s = seconds(now_ns - command.stamp_ns)
        if not -self._config.max_command_age_s <= command_age_s <= self._config.max_command_age_s:
            limit = self._config.max_command_age_s
            text = f'the command is {command_age_s:.2f} s old (limit {limit} s)'
            return (Reason(Code.COMMAND_STALE, text),)
        return ()

    def _is_old(self, now_ns: int) -> bool:
        """Whether the last command is from before a gap, or from a clock that went back."""
        passed_ns = now_ns - self._last_ns
        return self._last is not None and not (
            -CLOCK_JUMP_NS <= passed_ns <= MAX_TICK_GAP_S * NS_PER_S
        )

    def _targets(self, command: JointCommand) -> FloatArray | Reason:
        """Targets in layout order, finite and in a believable unit."""
        given = dict(zip(command.joint_names, np.asarray(command.positions).ravel(), strict=False))
        missing = [name for name in self._names if name not in given]
        if missing or np.asarray(command.positions).shape != (len(command.joint_names),):
            text = f'the command lacks {missing or "values"}; a command needs every joint once'
            return Reason(Code.COMMAND_JOINTS, text)
        targets = np.array([float(given[name]) for name in self._names])
        finite = np.isfinite(targets)
        if not finite.all():
            text = f'targets of {self._which(~finite)} are NaN or Inf; check the policy'
            return Reason(Code.COMMAND_NONFINITE, text)
        tolerance = self._config.gripper_range_tolerance
        wild = self._gripper & ((targets < -tolerance) | (targets > 1.0 + tolerance))
        if wild.any():
            return Reason(
                Code.GRIPPER_RANGE,
                f'{self._which(wild)} should go to {rounded(targets[wild])}, far outside 0..1 '
                f'(closed fraction); the policy uses another unit',
            )
        return targets

    def _start_problem(
        self, targets: FloatArray, measured: FloatArray, heading: FloatArray | None
    ) -> Reason | None:
        if measured.shape != targets.shape:
            text = f'{len(measured)} measured joints for {len(targets)} targets'
            return Reason(Code.STATE_NAMES, text)
        wrong = self._outside(measured) > self._start_tolerance
        if wrong.any():
            return Reason(
                Code.STATE_OUTSIDE_LIMITS,
                f'{self._which(wrong)} stand at {rounded(measured[wrong])}, limits '
                f'{self._lower[wrong].tolist()} to {self._upper[wrong].tolist()}; move the arm '
                f'inside by hand or with the teach pendant',
            )
        error = np.abs(targets - measured)
        if heading is not None:
            error = np.maximum(error, np.abs(heading - measured))
        error = np.where(self._gripper, 0.0, error)
        far = error > self._config.max_start_error_rad
        if far.any():
            return Reason(
                Code.START_ERROR,
                f'the first targets of {self._which(far)} are {rounded(error[far])} '
                f'rad from the measured pose (limit {self._config.max_start_error_rad}); bring '
                f'the arms near the poses that the policy was trained from',
            )
        return None

    def _clamp_reasons(
        self,
        outside: FloatArray,
        over: BoolArray,
        delta: FloatArray,
        step: FloatArray,
        velocity_step: FloatArray,
    ) -> tuple[Reason, ...]:
        size = np.abs(delta)
        checks = (
            (Code.POSITION_LIMIT, outside > 0.0, 'were outside their position limits'),
            (Code.STEP_LIMIT, over & (size > step), 'exceeded max_step'),
            (Code.VELOCITY_LIMIT, over & (size > velocity_step), 'exceeded max_velocity'),
            (
                Code.SOFT_START,
                over & (size <= np.minimum(step, velocity_step)),
                'start softly',
            ),
        )
        return tuple(
            Reason(code, f'{self._which(mask)} {text}')
            for code, mask, text in checks
            if mask.any()
        )

    def _step_limits(self, now_ns: int) -> tuple[FloatArray, FloatArray]:
        """(max_velocity * time, max_step) of this command.

        One command may use at most one period of time, and time counts once: what an early tick
        lacks (the clock of a simulator moves in steps) the late one before it has left over.
        """
        if self._last is not None:
            elapsed_ns = max(now_ns - self._last_ns, 0)
            self._unused_ns = min(self._unused_ns + elapsed_ns, 2 * self._period_ns)
        used_ns = min(self._unused_ns, self._period_ns)
        self._unused_ns -= used_ns
        return self._max_velocity * seconds(used_ns), self._max_step

    def _outside(self, positions: FloatArray) -> FloatArray:
        """How far each joint is beyond its limits; 0 inside."""
        return np.abs(positions - np.clip(positions, self._lower, self._upper))

    def _ramp(self, now_ns: int) -> float:
        if self._config.soft_start_s <= 0:
            return 1.0
        share = seconds(now_ns - self._started_ns) / self._config.soft_start_s
        return min(max(share, SOFT_START_FLOOR), 1.0)

    def _which(self, mask: BoolArray) -> str:
        names = [name for name, marked in zip(self._names, mask, strict=True) if marked]
        return ', '.join(names)

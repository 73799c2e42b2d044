"""What the node knows about itself -> /diagnostics. Each line says what to do, not only what is.

`checks` is a pure function of `NodeFacts`; only `to_message` knows ROS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from safe_pruner_ros.ros.conversions import ns_to_stamp
from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.command_guard import ARMS_LIMITED, MAX_TICK_GAP_S
from safe_pruner_ros.runtime.control_loop import LoopStatus
from safe_pruner_ros.runtime.observation_buffer import SourceStatistics

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray

OK, WARN, ERROR = 0, 1, 2
MIN_RECEIVE_RATIO = 0.9
MAX_CLAMPED_SHARE = 0.1  # a soft start and the end of a reach clamp now and then
CLAMPING = (Code.POSITION_LIMIT, Code.VELOCITY_LIMIT, Code.STEP_LIMIT, Code.SOFT_START)
# Best-effort raw images above this size need the larger shared memory segment.
DEFAULT_SEGMENT_BYTES = 500_000


@dataclass(frozen=True)
class CameraFacts:
    """One view, as the ROS side sees it."""

    receive_ratio: float
    largest_bytes: int
    lost_events: int


@dataclass(frozen=True)
class NodeFacts:
    """Everything that diagnostics are made from. ``silenced``: why nothing is sent until
    ``~/resume``. ``silent_s``: `ControlThread.silent_s` while active."""

    robot: str
    lifecycle: str
    loop: LoopStatus
    views: tuple[str, ...]
    cameras: Mapping[str, CameraFacts]
    dry_run: bool
    listeners: Mapping[str, int]
    silenced: str = ''
    qos_problems: Mapping[str, str] = field(default_factory=dict)
    callback_failures: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    sent_commands: int = 0
    late_ticks: int = 0
    silent_s: float = 0.0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0
    key_timesteps: int = 0
    execution_period_ms: float = math.nan
    audit_limit_rad: float = 0.0
    profile: str = ''


@dataclass(frozen=True)
class Check:
    """One line of /diagnostics."""

    name: str
    level: int
    message: str
    values: Mapping[str, object] = field(default_factory=dict)


def checks(facts: NodeFacts) -> list[Check]:
    """State first, then each camera and joint source, and the rest from policy to node."""
    lines = [_state(facts)]
    for source in facts.loop.sources:
        lines.append(
            _camera(facts, source) if source.name in facts.views else _joints(facts, source)
        )
    own = (_policy, _pruning, _audit, _actions, _guard, _commands, _node)
    return [*lines, *(line(facts) for line in own)]


def to_message(lines: Sequence[Check], robot: str, now_ns: int) -> DiagnosticArray:
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    msg = DiagnosticArray()
    msg.header.stamp = ns_to_stamp(max(now_ns, 0))
    msg.status = [
        DiagnosticStatus(
            level=bytes([line.level]),
            name=f'safe_pruner: {line.name}',
            message=line.message,
            hardware_id=robot,
            values=[KeyValue(key=k, value=_text(v)) for k, v in line.values.items()],
        )
        for line in lines
    ]
    return msg


def _state(facts: NodeFacts) -> Check:
    loop = facts.loop
    values = {
        'lifecycle': facts.lifecycle,
        'state': loop.state,
        'codes': ' '.join(reason.code.value for reason in loop.reasons),
        'instruction': loop.instruction,
        'dry_run': facts.dry_run,
    }
    if facts.lifecycle != 'active':
        text = f'{facts.lifecycle}: no commands are sent'
        waiting = _join(loop.reasons)
        return Check('state', OK, f'{text}; missing: {waiting}' if waiting else text, values)
    if silent := why_silent(facts):
        # What the loop said last is as old as its last tick.
        values |= {'state': 'HOLD', 'codes': silent.code.value}
        return Check('state', ERROR, f'HOLD: {silent}', values)
    if loop.state == 'FAULT':
        text = f'FAULT: {_join(loop.reasons)}; remove the cause, then call ~/reset'
        return Check('state', ERROR, text, values)
    if loop.state == 'HOLD':
        return Check('state', WARN, f'HOLD: {_join(loop.reasons)}', values)
    return Check('state', OK, 'RUN' + (' (dry run)' if facts.dry_run else ''), values)


def why_silent(facts: NodeFacts) -> Reason | None:
    """None: the control thread ticks. Only seen from outside: one that hangs can say nothing."""
    if facts.silent_s <= MAX_TICK_GAP_S:
        return None
    text = (
        f'no command for {facts.silent_s:.1f} s, the control thread hangs or fails; see the log, '
        'look where the arms are, restart the node'
    )
    return Reason(Code.CONTROL_GAP, text)


def _source(facts: NodeFacts, source: SourceStatistics) -> tuple[int, str, dict[str, object]]:
    """Level, text and values that cameras and joint sources share.

    A reason belongs to a source if its text names it; the runtime quotes names.
    """
    values: dict[str, object] = {
        'rate_hz': source.rate_hz,
        'age_s': source.age_s,
        'accepted': source.accepted,
        'refused': sum(source.refused.values()),
    }
    values.update({f'refused {code.value}': n for code, n in source.refused.items()})
    if source.last_refusal is not None:
        values['last refusal'] = str(source.last_refusal)
    for level, reasons in ((ERROR, facts.loop.reasons), (WARN, facts.loop.warnings)):
        own = [reason for reason in reasons if f"'{source.name}'" in reason.text]
        if own:
            return level, _join(own), values
    if source.accepted == 0:
        if source.last_refusal is not None:
            return ERROR, f'every message was refused; {source.last_refusal}', values
        return WARN, 'nothing received; check that the driver runs and the topic name', values
    return OK, f'{source.rate_hz:.1f} Hz', values


def _camera(facts: NodeFacts, source: SourceStatistics) -> Check:
    level, text, values = _source(facts, source)
    camera = facts.cameras[source.name]
    values['image_receive_ratio'] = camera.receive_ratio
    values['lost_events'] = camera.lost_events
    if camera.receive_ratio < MIN_RECEIVE_RATIO:
        text = (
            f'only {camera.receive_ratio:.0%} of the images arrive '
            f'({camera.largest_bytes} bytes each); {_loss_advice(camera, facts.profile)}. {text}'
        )
        level = max(level, WARN)
    return Check(f'camera {source.name}', level, text, values)


def _loss_advice(camera: CameraFacts, profile: str) -> str:
    if camera.largest_bytes > DEFAULT_SEGMENT_BYTES:
        return (
            'the shared memory segment of the camera driver is too small: start the DRIVER with '
            f'FASTRTPS_DEFAULT_PROFILES_FILE={profile}, or use its compressed topic'
        )
    return 'check the load of this machine and the network between camera and this node'


def _joints(facts: NodeFacts, source: SourceStatistics) -> Check:
    level, text, values = _source(facts, source)
    return Check(f'joints {source.name}', level, text, values)


def _policy(facts: NodeFacts) -> Check:
    loop, report = facts.loop, facts.loop.last_report
    statistics = loop.policy_step_ms
    values: dict[str, object] = {
        'policy_step': loop.policy_step,
        'policy_step_ms p50': statistics.p50,
        'policy_step_ms p99': statistics.p99,
        'deadline_ms': facts.execution_period_ms,
    }
    if report is not None:
        values['observation_age_s'] = report.age_s
        if report.error is not None:
            level = ERROR if loop.state != 'RUN' else WARN
            return Check('policy', level, str(report.error), values)
    if statistics.count == 0:
        return Check('policy', OK, 'no policy step yet', values)
    if statistics.p99 > facts.execution_period_ms:
        text = (
            f'a policy step takes {statistics.p50:.0f} ms (p99 {statistics.p99:.0f}), the actions '
            f'in use last {facts.execution_period_ms:.0f} ms: the arms will wait. Lower '
            'pruner.retention_ratio, raise policy.execution_horizon, or use a faster device'
        )
        return Check('policy', WARN, text, values)
    return Check('policy', OK, f'{statistics.p50:.0f} ms a step', values)


def _pruning(facts: NodeFacts) -> Check:
    report = facts.loop.last_report
    trace = None if report is None else report.trace
    if trace is None:
        return Check('pruning', OK, 'no policy step yet')
    rate = facts.key_timesteps / facts.steps if facts.steps else math.nan
    values = {
        'method': trace.method,
        'retention_ratio': trace.retention_ratio,
        'n_visual': trace.n_visual,
        'n_retained': trace.n_retained,
        'keyframe_rate': rate,
        'attention_similarity': trace.attention_similarity,
        'steps_since_keyframe': trace.steps_since_keyframe,
        'target_retention_ratio': facts.loop.retention.ratio,
        'retention_reason': facts.loop.retention.reason,
    }
    if trace.fallback:
        return Check('pruning', WARN, f'all tokens are kept: {trace.fallback}', values)
    if facts.loop.retention.warning:
        return Check('pruning', WARN, facts.loop.retention.warning, values)
    text = f'{trace.method}: {trace.n_retained} of {trace.n_visual} tokens, {rate:.0%} keyframes'
    return Check('pruning', OK, text, values)


def _audit(facts: NodeFacts) -> Check:
    audit, counts = facts.loop.audit, facts.loop.audit_counts
    values: dict[str, object] = {
        'audits': counts.done,
        'postponed': counts.postponed,
        'overran': counts.overran,
        'above_limit': counts.above_limit,
    }
    if facts.loop.audit_failure:
        text = (
            f'the unpruned policy failed: {facts.loop.audit_failure}; the traceback is in the '
            'log. No more audits until ~/reset'
        )
        return Check('audit', WARN, text, values)
    if audit is None:
        if counts.postponed:
            text = (
                'no audit so far: an unpruned step does not fit between two policy steps. Raise '
                'policy.execution_horizon, or judge pruning on recordings (safe-pruner replay)'
            )
            return Check('audit', OK, text, values)
        return Check('audit', OK, 'no audit so far', values)
    deviation = audit.deviation
    values |= {
        'policy_step': audit.step,
        'arms_deviation_rad': deviation.arms_rad,
        'grippers_deviation': deviation.grippers,
        'gripper_flips': deviation.gripper_flips,
        'end_effectors_deviation_mm': deviation.end_effectors_mm,
        'latency_ms': audit.latency_ms,
    }
    text = f'pruned and unpruned actions differ by {deviation.arms_rad:.3f} rad'
    if not math.isnan(deviation.end_effectors_mm):
        text += f', {deviation.end_effectors_mm:.0f} mm'
    limit = facts.audit_limit_rad
    if limit and not deviation.arms_rad <= limit:
        text += (
            f' (limit {limit:g} rad), retention_ratio is {facts.loop.retention.ratio:g} now. If '
            'it goes on, raise pruner.retention_ratio or pruner.similarity_threshold'
        )
        return Check('audit', WARN, text, values)
    return Check('audit', OK, text, values)


def _actions(facts: NodeFacts) -> Check:
    loop = facts.loop
    values: dict[str, object] = {
        'action_age_ms p50': loop.action_age_ms.p50,
        'action_age_ms p99': loop.action_age_ms.p99,
        'seam_position_jump_rad p50': loop.seam_jump_rad.p50,
        'seam_position_jump_rad p99': loop.seam_jump_rad.p99,
        'seams': loop.action_age_ms.count,
        'starved_ticks': loop.starved_ticks,
    }
    if loop.action_age_ms.count == 0:
        return Check('actions', OK, 'no action was commanded yet', values)
    text = f'{loop.action_age_ms.p50:.0f} ms from camera to first command'
    return Check('actions', OK, text, values)


def _guard(facts: NodeFacts) -> Check:
    """What the command guard did since the last reset. A hold has its own line, the state."""
    counts = {name: facts.verdicts.get(name, 0) for name in ('pass', 'clamp', 'hold')}
    values: dict[str, object] = dict(sorted(facts.verdicts.items()))
    sent = counts['pass'] + counts['clamp']
    if not sent:
        return Check('guard', OK, 'no command was checked yet', values)
    share = facts.verdicts.get(ARMS_LIMITED, 0) / sent
    codes = {
        c.value: facts.verdicts.get(c.value, 0) for c in CLAMPING if c.value in facts.verdicts
    }
    if share > MAX_CLAMPED_SHARE:
        found = ', '.join(f'{code} {n}' for code, n in sorted(codes.items(), key=lambda c: -c[1]))
        text = (
            f'{share:.0%} of the commands were limited for an arm (all joints: {found}): the '
            'policy asks for more than the robot file allows. Check units, joint order and '
            'policy.period_s before raising a limit'
        )
        return Check('guard', WARN, text, values)
    return Check('guard', OK, f'{share:.1%} of {sent} commands were limited for an arm', values)


def _commands(facts: NodeFacts) -> Check:
    period = facts.loop.command_period_ms
    values: dict[str, object] = {
        'sent': facts.sent_commands,
        'period_ms p50': period.p50,
        'period_ms p99': period.p99,
        'late_ticks': facts.late_ticks,
    }
    values.update({f'subscribers {topic}': n for topic, n in facts.listeners.items()})
    if silent := why_silent(facts):
        return Check('commands', ERROR, str(silent), values)
    if facts.silenced:
        return Check('commands', ERROR, facts.silenced, values)
    deaf = [topic for topic, n in facts.listeners.items() if n == 0]
    if deaf and not facts.dry_run:
        text = (
            f'nobody listens on {deaf}: nothing is sent. Start the controller of the robot or '
            'correct the topics'
        )
        return Check('commands', WARN, text, values)
    if facts.dry_run:
        text = 'dry run: the robot does not move; set robot.dry_run to false after checking'
        return Check('commands', OK, text, values)
    return Check('commands', OK, f'{facts.sent_commands} sent', values)


def _node(facts: NodeFacts) -> Check:
    problems = [*facts.qos_problems.values()]
    problems += [
        f'{name} raised {count} times, last {text}; see the log'
        for name, (count, text) in facts.callback_failures.items()
    ]
    clock = [r for r in facts.loop.reasons if r.code in (Code.CLOCK_MISSING, Code.CLOCK_JUMPED)]
    problems += [str(reason) for reason in clock]
    if problems:
        return Check('node', ERROR, '; '.join(problems))
    return Check('node', OK, 'no callback failed')


def _join(reasons: Sequence[Reason]) -> str:
    return '; '.join(str(reason) for reason in reasons)


def _text(value: object) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)

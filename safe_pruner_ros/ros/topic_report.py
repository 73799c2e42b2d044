"""What a topic showed while it was watched -> findings. Pure; `topic_watcher.py` watches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from safe_pruner_ros.runtime.codes import Reason
from safe_pruner_ros.runtime.config import BufferConfig, GuardConfig, JointConfig, SinkConfig
from safe_pruner_ros.runtime.finding import Finding
from safe_pruner_ros.runtime.stamps import seconds, usable_stamp


@dataclass(frozen=True)
class Endpoint:
    """A publisher or a subscription of another node. ``refuses``: why its QoS does not match
    ours, '' if it does."""

    node: str
    type_name: str
    refuses: str = ''


@dataclass
class TopicReport:
    """One input topic. ``setting``: where the robot file names it. ``times_ns``: reading of the
    node clock and stamp of each message. ``content``: the last message in words; ``errors``: what
    conversion said of the last one it refused. ``same_type``: topics that would fit. ``joints``:
    of the last message, joint -> rad or closed fraction, as the policy gets it.
    ``max_publishers``: how many may share the topic, one for each source that reads it."""

    subject: str
    setting: str
    topic: str
    type_name: str
    publishers: Sequence[Endpoint]
    times_ns: list[tuple[int, int]] = field(default_factory=list)
    content: str = ''
    errors: list[str] = field(default_factory=list)
    same_type: Sequence[str] = ()
    required: bool = True
    joints: Mapping[str, float] = field(default_factory=dict)
    max_publishers: int = 1

    def problem(self, text: str) -> Finding:
        """Only a note about what the arms do not wait for."""
        return Finding('problem' if self.required else 'note', self.subject, text)

    @property
    def age_s(self) -> float | None:
        """Median age of a message when it arrives; None when none had a stamp."""
        ages_s = [seconds(now - stamp) for now, stamp in self.times_ns if stamp]
        return float(np.median(ages_s)) if ages_s else None

    @property
    def is_deaf(self) -> bool:
        """No message can come: another type, or QoS that does not match."""
        return any(e.refuses or e.type_name != self.type_name for e in self.publishers)


def check_input(
    report: TopicReport, buffer: BufferConfig, max_age_s: float, watched_s: float
) -> Iterator[Finding]:
    """Exists, type, number of publishers, QoS, arrives, rate, content, stamps."""
    if not report.publishers:
        fitting = f' (of this type: {list(report.same_type)})' if report.same_type else ''
        yield report.problem(
            f'nobody publishes {report.topic}; start the driver, or correct {report.setting}'
            f'{fitting}'
        )
        return
    types = sorted({end.type_name for end in report.publishers})
    if types != [report.type_name]:
        yield report.problem(
            f'{report.topic} carries {types}, the robot file expects {report.type_name}; correct '
            f'{report.setting}, or its transport or adapter'
        )
        return
    if len(report.publishers) > report.max_publishers:
        nodes = [end.node for end in report.publishers]
        spare = 'one' if report.max_publishers == 1 else f'{report.max_publishers}'
        yield report.problem(
            f'{report.topic} has {len(nodes)} publishers {nodes}; stop all but {spare}'
        )
    refused = [end.refuses for end in report.publishers if end.refuses]
    if refused:
        yield report.problem(
            f'{report.topic}: QoS does not match ({refused[0]}); set reliability: best_effort '
            f'beside {report.setting}'
        )
        return
    if report.errors:
        yield report.problem(f'{report.errors[-1]}')
    if not report.times_ns:
        yield report.problem(
            f'{report.topic} has a publisher, but no message came in {watched_s:g} s; check the '
            'driver and the network (ros2 topic hz)'
        )
        return
    yield from _check_times(report, buffer, max_age_s, watched_s)


def _check_times(
    report: TopicReport, buffer: BufferConfig, max_age_s: float, watched_s: float
) -> Iterator[Finding]:
    received = np.array([now for now, _ in report.times_ns], np.int64)
    now_ns, stamp_ns = report.times_ns[-1]
    usable = usable_stamp(stamp_ns, now_ns, buffer, report.topic)
    if isinstance(usable, Reason):
        yield report.problem(usable.text)
        return
    age_s = report.age_s or 0.0
    if age_s > max_age_s:
        yield report.problem(
            f'{report.topic}: messages are {age_s:.3f} s old when they arrive, the arms hold '
            f'beyond {max_age_s:g} s; synchronise the clocks, or send less (compressed, smaller)',
        )
        return
    gap_s = seconds(int(np.diff(received).max())) if len(received) > 1 else watched_s
    if gap_s > max_age_s:
        yield report.problem(
            f'{report.topic}: {len(received)} messages in {watched_s:g} s, the longest pause '
            f'{gap_s:.3f} s; the arms hold after {max_age_s:g} s: raise the rate of the driver',
        )
        return
    if not report.errors:
        rate = (len(received) - 1) / max(seconds(int(received[-1] - received[0])), 1e-9)
        text = f'{report.topic}, {rate:.1f} Hz, {1e3 * age_s:.0f} ms old, {report.content}'
        yield Finding('ok', report.subject, text)


def check_pose(
    values: Mapping[str, float], joints: Sequence[JointConfig], guard: GuardConfig
) -> Iterator[Finding]:
    """What the robot measures in our units, joint by joint: only somebody who sees the robot can
    say whether 0.5 is half a radian or half a degree. A pose outside the limits is told."""
    for joint in joints:
        if joint.name not in values:
            continue
        value = values[joint.name]
        is_arm = joint.kind == 'arm'
        shown = f'{value:.3f} closed fraction (0 open, 1 closed)'
        if is_arm:
            shown = f'{value:.3f} rad ({math.degrees(value):.1f} degrees)'
        text = f'{joint.name} = {shown}, limits {joint.lower:g} to {joint.upper:g}'
        tolerance = guard.max_start_outside_rad if is_arm else guard.max_start_outside_gripper
        outside = max(joint.lower - value, value - joint.upper)
        if outside <= 0:
            yield Finding('ok', 'pose', text)
        elif outside <= tolerance:
            yield Finding('note', 'pose', f'{text}: outside by {outside:.3f}; it may move back in')
        else:
            why = 'correct scale, offset or invert of this joint in state_sources and sinks'
            if is_arm:
                why = (
                    f'a robot in degrees needs scale: {math.degrees(1.0):.5f} in state_sources '
                    'and sinks; else correct sign, offset or limits, or bring the joint inside'
                )
            yield Finding('problem', 'pose', f'{text}: OUTSIDE by {outside:.3f}; {why}')


def check_sink(
    sink: SinkConfig,
    type_name: str,
    listeners: Sequence[Endpoint],
    rivals: Sequence[Endpoint],
    dry_run: bool,
) -> Iterator[Finding]:
    """A controller of the right type listens and nobody else commands it."""
    subject = f'sink {sink.name}'
    if rivals:
        nodes = sorted({end.node for end in rivals})
        yield Finding(
            'problem',
            subject,
            f'{nodes} publish on {sink.topic} too; two commanders would fight over the arms: stop '
            'them',
        )
    if not listeners:
        yield Finding(
            'note' if dry_run else 'problem',
            subject,
            f'nobody listens on {sink.topic}; start the controller, or correct '
            f'robot.sinks.{sink.name}.topic',
        )
        return
    types = sorted({end.type_name for end in listeners})
    if types != [type_name]:
        yield Finding(
            'problem',
            subject,
            f'{sink.topic} is read as {types}, the robot file sends {type_name}; correct adapter '
            f'or topic of robot.sinks.{sink.name}',
        )
    elif any(end.refuses for end in listeners):
        refused = next(end.refuses for end in listeners if end.refuses)
        yield Finding('problem', subject, f'{sink.topic}: QoS does not match ({refused})')
    elif not rivals:
        nodes = sorted({end.node for end in listeners})
        yield Finding('ok', subject, f'{sink.topic} is read by {nodes}')

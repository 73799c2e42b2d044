"""What preflight says about topics, on made-up reports: no DDS in here."""

from __future__ import annotations

from typing import Any

import pytest

from safe_pruner_ros.ros.discovery import describe_discovery
from safe_pruner_ros.ros.topic_report import (
    Endpoint,
    TopicReport,
    check_input,
    check_pose,
    check_sink,
)
from safe_pruner_ros.runtime.config import (
    BufferConfig,
    GuardConfig,
    JointConfig,
    JointMapping,
    SinkConfig,
)

IMAGE = 'sensor_msgs/msg/Image'
DRIVER = Endpoint('/driver', IMAGE)
START_NS = 10**18
SINK = SinkConfig('arm', '/arm', (JointMapping('elbow'),))
TRAJECTORY = 'trajectory_msgs/msg/JointTrajectory'


def report(period_s: float = 0.03, age_s: float = 0.01, count: int = 30, **changes: Any) -> Any:
    times = [START_NS + round(k * period_s * 1e9) for k in range(count)]
    stamped = [(now, now - round(age_s * 1e9)) for now in times]
    values = {'publishers': [DRIVER], 'times_ns': stamped, 'content': '64 x 64'} | changes
    return TopicReport('camera head', 'robot.cameras.head.topic', '/head', IMAGE, **values)


def said(made: TopicReport) -> list[str]:
    return [str(finding) for finding in check_input(made, BufferConfig(), 0.3, 1.0)]


def test_a_good_topic_is_measured() -> None:
    assert said(report()) == ['OK       camera head: /head, 33.3 Hz, 10 ms old, 64 x 64']


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'publishers': [], 'same_type': ['/haed']}, ['nobody publishes', "type: ['/haed']"]),
        ({'publishers': [Endpoint('/d', 'x/msg/Y')]}, ["carries ['x/msg/Y']", f'expects {IMAGE}']),
        ({'publishers': [DRIVER, DRIVER]}, ['has 2 publishers', 'stop all but one']),
        ({'publishers': [Endpoint('/d', IMAGE, 'no')]}, ['(no)', 'reliability: best_effort']),
        ({'times_ns': []}, ['no message came in 1 s', 'ros2 topic hz']),
        ({'times_ns': [(START_NS, 0)]}, ['header.stamp is zero']),
        ({'age_s': -2.0}, ['2.000 s ahead of the node clock']),
        ({'age_s': 9.0}, ['another clock', 'use_sim_time']),
        ({'age_s': 0.4}, ['0.400 s old', 'the arms hold beyond 0.3 s']),
        ({'period_s': 0.5, 'count': 3}, ['3 messages in 1 s', 'pause 0.500 s', 'raise the rate']),
        ({'errors': ['bayer is no encoding; correct it']}, ['bayer is no encoding']),
    ],
)
def test_what_would_hold_the_arms_is_a_problem_with_the_next_move(
    changes: dict[str, Any], words: list[str]
) -> None:
    lines = said(report(**changes))
    assert lines[0].startswith('PROBLEM  camera head: ')
    assert all(word in lines[0] for word in words), lines
    assert len(lines) == (2 if 'stop all but one' in words else 1)
    optional = said(report(required=False, **changes))
    assert optional[0].startswith('NOTE     camera head: ')


def test_a_topic_may_have_a_publisher_for_each_source() -> None:
    (line,) = said(report(publishers=[DRIVER, DRIVER], max_publishers=2))
    assert line.startswith('OK')
    line = said(report(publishers=[DRIVER] * 3, max_publishers=2))[0]
    assert line.startswith('PROBLEM') and 'has 3 publishers' in line
    assert line.endswith('stop all but 2')


def sink_lines(listeners: list[Endpoint], rivals: list[Endpoint], dry_run: bool) -> list[str]:
    return [str(f) for f in check_sink(SINK, TRAJECTORY, listeners, rivals, dry_run)]


def test_sinks() -> None:
    controller, rival = Endpoint('/controller', TRAJECTORY), Endpoint('/moveit', TRAJECTORY)
    assert sink_lines([controller], [], False) == [
        "OK       sink arm: /arm is read by ['/controller']"
    ]
    (line,) = sink_lines([controller], [rival], False)
    assert line.startswith("PROBLEM  sink arm: ['/moveit'] publish on /arm too")
    for dry_run, level in ((False, 'PROBLEM'), (True, 'NOTE')):
        (line,) = sink_lines([], [], dry_run)
        assert line.startswith(level) and 'nobody listens on /arm' in line
    (line,) = sink_lines([Endpoint('/c', 'std_msgs/msg/String')], [], True)
    assert line.startswith('PROBLEM') and 'adapter' in line
    (line,) = sink_lines([Endpoint('/c', TRAJECTORY, 'deadline')], [], False)
    assert 'QoS does not match (deadline)' in line


JOINTS = (
    JointConfig('elbow', 'arm', -1.5, 1.5, 2.0, 0.05),
    JointConfig('grip', 'gripper', 0.0, 1.0, 5.0, 0.1),
    JointConfig('elsewhere', 'arm', -1.0, 1.0, 2.0, 0.05),  # another source measures it
)


def pose(**values: float) -> list[str]:
    return [str(finding) for finding in check_pose(values, JOINTS, GuardConfig())]


def test_the_pose_is_shown_in_our_units() -> None:
    assert pose(elbow=0.7854, grip=0.25) == [
        'OK       pose: elbow = 0.785 rad (45.0 degrees), limits -1.5 to 1.5',
        'OK       pose: grip = 0.250 closed fraction (0 open, 1 closed), limits 0 to 1',
    ]


def test_a_pose_outside_the_limits_is_told() -> None:
    """45 from a driver in degrees, percent of a gripper, and what may move back in by itself."""
    elbow, grip = pose(elbow=45.0, grip=87.0)
    assert elbow.startswith('PROBLEM  pose: elbow = 45.000 rad (2578.3 degrees)')
    assert 'OUTSIDE by 43.500; a robot in degrees needs scale: 57.29578' in elbow
    assert grip.startswith('PROBLEM  pose: grip = 87.000') and 'scale, offset or invert' in grip
    elbow, grip = pose(elbow=-1.51, grip=1.05)
    assert elbow.startswith('NOTE     pose: elbow') and grip.startswith('NOTE     pose: grip')


def test_who_can_be_seen_is_said_with_where_it_comes_from() -> None:
    text = describe_discovery({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'})
    assert 'here they are 0 and LOCALHOST, this machine only: scripts/with_env' in text
    text = describe_discovery({'ROS_DOMAIN_ID': '25'})
    assert text.endswith('here they are 25 and SUBNET')
    humble = {'ROS_DISTRO': 'humble', 'ROS_LOCALHOST_ONLY': '1'}
    text = describe_discovery({**humble, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET'})
    assert text.endswith('here they are 0 and 1') and 'RANGE' not in text

"""Drivers of two arms on one topic, over real DDS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ros

TOPIC = '/both/joint_states'
SHARED = """
    - {name: left, topic: TOPIC, joints: [{joint: left_1}, {joint: left_gripper, scale: 100.0}]}
    - {name: right, topic: TOPIC, joints: [{joint: right_1}, {joint: right_gripper}]}
""".replace('TOPIC', TOPIC)
PERIOD_S = 0.02


def shared_yaml(bench: Any) -> str:
    """The test robot, its state sources replaced."""
    head, rest = bench.yaml.split('  state_sources:')
    return f'{head}  state_sources:{SHARED}  sinks:{rest.split("  sinks:")[1]}'


@contextmanager
def two_drivers(robot: Any, apart_s: float = 0.0) -> Iterator[None]:
    """One publishes ``apart_s`` after the other, for ever in the same order."""
    from sensor_msgs.msg import JointState

    out = [robot.node.create_publisher(JointState, TOPIC, 10) for _ in range(2)]
    stop = threading.Event()

    def drive() -> None:
        while not stop.wait(PERIOD_S - apart_s):
            for side, publisher in zip(('left', 'right'), out, strict=True):
                msg = JointState(name=[f'{side}_1', f'{side}_gripper'])
                msg.position = [robot.positions[name] for name in msg.name]
                msg.header.stamp = robot.node.get_clock().now().to_msg()
                publisher.publish(msg)
                if apart_s and side == 'left':
                    stop.wait(apart_s)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2.0)
        for publisher in out:
            robot.node.destroy_publisher(publisher)


@pytest.mark.parametrize('apart_s', [0.0, PERIOD_S / 2])
def test_two_drivers_on_one_topic_reach_run(bench, apart_s) -> None:
    robot = bench.robot
    with two_drivers(robot, apart_s):
        bench.start(shared_yaml(bench))
        assert robot.configure() and robot.activate()
        robot.say('lift')
        robot.wait_state('RUN')
        line = {side: f'safe_pruner: joints {side}' for side in ('left', 'right')}
        bench.wait_for(
            lambda: all(
                float(robot.diagnostics[name][2]['rate_hz']) > 0.7 / PERIOD_S
                for name in line.values()
            ),
            5.0,
            lambda: f'all messages of both; there are {robot.diagnostics}',
        )
        for name in line.values():
            level, text, values = robot.diagnostics[name]
            assert level == 0 and values['refused'] == '0', (text, values)


def test_preflight_takes_as_many_publishers_as_sources(bench, tmp_path: Path) -> None:
    from sensor_msgs.msg import JointState

    from safe_pruner_ros.ros.topic_watcher import watch_topics
    from safe_pruner_ros.runtime.config_yaml import load_config

    (tmp_path / 'shared.yaml').write_text(shared_yaml(bench))
    (tmp_path / 'policy.yaml').write_text('policy: {name: embedded}\n')
    config = load_config(tmp_path / 'shared.yaml', tmp_path / 'policy.yaml')

    def lines() -> list[str]:
        watched = watch_topics(config, 0.5, sim_time=False)
        assert watched is not None
        return [str(f) for f in watched.findings if f.subject.startswith('joints')]

    with two_drivers(bench.robot):
        left, right = lines()
        assert left.startswith(f'OK       joints left: {TOPIC}') and '2 joints' in left
        assert right.startswith(f'OK       joints right: {TOPIC}') and '2 joints' in right
        third = bench.robot.node.create_publisher(JointState, TOPIC, 1)
        try:
            found = lines()
        finally:
            bench.robot.node.destroy_publisher(third)
    problems = [line for line in found if line.startswith('PROBLEM')]
    assert len(problems) == 2 and all('stop all but 2' in line for line in problems), found

"""Tiny random big policies drive the simulated robot through the real node, over real DDS.

Random weights solve nothing and nothing of that kind is claimed: what counts is that commands
leave, stay inside the limits and move the arms, and that the status tells the truth.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.ros

SIM = {'image_height': 64, 'image_width': 64, 'camera_rate_hz': 4.0, 'rate_factor': 0.25}
N_VISUAL = 3 * 16
DOMAIN = 10 + (os.getpid() + 45) % 90  # not that of the other ROS tests of this process


def wait_for(condition: Callable[[], Any], timeout_s: float, what: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            pytest.fail(f'waited {timeout_s} s for {what()}')
        time.sleep(0.02)


class Participant:
    """A context of its own with nodes that are spun in a thread."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.signals import SignalHandlerOptions

        from safe_pruner_ros.ros.lifecycle import StopSignal, make_executor

        self.context = rclpy.Context()
        rclpy.init(
            context=self.context,
            domain_id=DOMAIN,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.stop = StopSignal()
        self._executor = make_executor(self.context)
        self._nodes: list[Any] = []
        self._thread: threading.Thread | None = None

    def spin(self, node: Any) -> None:
        from safe_pruner_ros.ros.lifecycle import spin_until

        self._nodes.append(node)
        self._executor.add_node(node)
        self._thread = threading.Thread(
            target=spin_until, args=(self._executor, self.stop), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        import rclpy

        self.stop.set()
        if self._thread is not None:
            self._thread.join(3.0)
        for node in self._nodes:
            if hasattr(node, 'end'):
                node.end()
            self._executor.remove_node(node)
            node.destroy_node()
        self._executor.shutdown()
        self._nodes.clear()
        gc.collect()  # the lifecycle state machine keeps the node's handle until it is collected
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope='module')
def robot() -> Iterator[Any]:
    from rclpy.parameter import Parameter

    from safe_pruner_ros.ros.sim_node import SimNode

    side = Participant()
    overrides = [Parameter(name, value=value) for name, value in SIM.items()]
    node = SimNode(context=side.context, parameter_overrides=overrides)
    side.spin(node)
    yield node
    side.close()


class Observer:
    """What anybody else in the graph sees."""

    def __init__(self) -> None:
        import rclpy
        from sensor_msgs.msg import JointState
        from trajectory_msgs.msg import JointTrajectory

        from safe_pruner_ros.msg import PruningStatus

        self._side = Participant()
        self.node = rclpy.create_node('observer', context=self._side.context)
        self.commands: list[Any] = []
        self.states: list[Any] = []
        self.status: list[Any] = []
        for topic, kind, received in (
            ('/arm_left/joint_trajectory', JointTrajectory, self.commands),
            ('/arm_right/joint_trajectory', JointTrajectory, self.commands),
            ('/joint_states', JointState, self.states),
            ('/safe_pruner/status', PruningStatus, self.status),
        ):
            self.node.create_subscription(kind, topic, received.append, 100)
        self._side.spin(self.node)

    def transition(self, number: int) -> bool:
        from lifecycle_msgs.srv import ChangeState

        client = self.node.create_client(ChangeState, '/safe_pruner/change_state')
        assert client.wait_for_service(20.0)
        request = ChangeState.Request()
        request.transition.id = number
        future = client.call_async(request)
        wait_for(future.done, 60.0, lambda: f'transition {number}')
        return bool(future.result().success)

    def close(self) -> None:
        self._side.close()


@pytest.fixture
def observer() -> Iterator[Observer]:
    seen = Observer()
    yield seen
    seen.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """The policy node as `safe_pruner_node` makes it, with these parameters."""
    from rclpy.parameter import Parameter

    from safe_pruner_ros.ros.node import SafePrunerNode

    sides: list[Participant] = []

    def start(**parameters: Any) -> Any:
        side = Participant()
        sides.append(side)
        values = {'robot_file': 'sim', 'use_sim_time': True, 'activation_timeout_s': 30.0}
        overrides = [Parameter(n, value=v) for n, v in (values | parameters).items()]
        node = SafePrunerNode(stop=side.stop, context=side.context, parameter_overrides=overrides)
        side.spin(node)
        return node

    yield start
    for side in sides:
        side.close()


def test_it_moves_the_arms_under_the_guard_and_says_what_it_prunes(
    tiny_policy, robot, observer, start
) -> None:
    node = start(policy_file=str(tiny_policy.file))
    assert observer.transition(1) and observer.transition(3)
    spec = node._session.policy.spec
    assert (spec.name, len(spec.joint_names), spec.chunk_size) == (tiny_policy.name, 16, 8)

    wait_for(lambda: observer.states, 10.0, lambda: 'joint states')
    first = dict(zip(observer.states[-1].name, observer.states[-1].position, strict=True))

    def moved() -> float:
        last = observer.states[-1]
        return max(
            abs(value - first[name])
            for name, value in zip(last.name, last.position, strict=True)
            if 'arm' in name
        )

    wait_for(
        lambda: len(observer.status) >= 4 and len(observer.commands) >= 60 and moved() > 0.02,
        60.0,
        lambda: (
            f'motion: {len(observer.status)} steps, {len(observer.commands)} commands, moved '
            f'{moved():.3f} rad; {node._session.loop.status(node._session.now_ns())}'
        ),
    )

    check_commands(observer.commands, node._session.config.robot)
    assert observer.status[0].is_key_timestep and observer.status[0].n_retained == N_VISUAL
    for status in observer.status:
        assert (status.policy, status.method) == (tiny_policy.name, 'safe_pruner')
        assert status.n_visual == N_VISUAL
        assert status.n_retained == (N_VISUAL if status.is_key_timestep else N_VISUAL // 4)
        assert status.instruction == robot._physics.latest.episode.instruction
        assert not status.pruning_fallback
    assert any(not status.is_key_timestep for status in observer.status)
    assert observer.transition(4)  # deactivate: nothing leaves any more
    time.sleep(0.3)
    sent = len(observer.commands)
    time.sleep(0.3)
    assert len(observer.commands) == sent


def check_commands(commands: list[Any], robot: Any) -> None:
    """Finite, inside the limits, no step above max_step: from outside, message by message."""
    joints = {joint.name: joint for joint in robot.joints}
    last: dict[str, float] = {}
    for command in commands:
        (point,) = command.points
        for name, value in zip(command.joint_names, point.positions, strict=True):
            joint = joints[name]
            assert np.isfinite(value) and joint.lower <= value <= joint.upper, (name, value)
            assert abs(value - last.get(name, value)) <= joint.max_step + 1e-9, name
            last[name] = value
    assert set(last) == set(joints)


@pytest.fixture
def look(robot) -> Callable[..., dict[str, str]]:
    """Live preflight with these changes to the configuration -> 'LEVEL text' by subject."""
    import rclpy

    from safe_pruner_ros.ros.resources import config_file
    from safe_pruner_ros.ros.topic_watcher import watch_topics
    from safe_pruner_ros.runtime.config_parameters import override
    from safe_pruner_ros.runtime.config_yaml import load_config

    # The simulator runs at a quarter of the usual speed, so pauses are shorter on its clock.
    generous = {
        'runtime.buffer.max_state_age_s': 0.5,
        'runtime.buffer.max_image_age_s': 1.0,
        'runtime.buffer.max_future_s': 0.5,
    }

    def look(watch_s: float = 1.5, **changes: Any) -> dict[str, str]:
        changes = generous | {name.replace('__', '.'): value for name, value in changes.items()}
        config = override(load_config(config_file('robots', 'sim')), changes)
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=DOMAIN)
        try:
            watched = watch_topics(config, watch_s, True, context)
        finally:
            rclpy.try_shutdown(context=context)
        assert watched is not None
        found: dict[str, str] = {}
        for finding in watched.findings:
            before = f'{found[finding.subject]}\n' if finding.subject in found else ''
            found[finding.subject] = f'{before}{finding.level} {finding.text}'
        assert watched.picture_age_s is None or 0 <= watched.picture_age_s < 9
        return found

    return look


def test_preflight_measures_topics_that_are_good(look) -> None:
    found = look()
    assert not [text for text in found.values() if text.startswith('problem')], found
    assert '64 x 64' in found['camera head'] and ' Hz, ' in found['camera head']
    assert found['joints joint_states'].endswith('16 joints')
    assert found['sink arm_left'] == "ok /arm_left/joint_trajectory is read by ['/sim']"
    assert 'instruction' not in found  # the simulator says it
    assert 'discovery' not in found
    poses = found['pose'].splitlines()
    assert len(poses) == 16 and poses[0].startswith('ok astribot_arm_left_joint_1 = ')
    assert ' rad (' in poses[0] and poses[0].endswith('limits -3 to 3')
    assert 'astribot_gripper_left_joint_L1 = ' in poses[7] and 'closed fraction' in poses[7]


def test_preflight_names_what_is_wrong_with_topics(look) -> None:
    name = 'robot__state_sources__joint_states__joints__astribot_arm_left_joint_1__name'
    found = look(
        0.5,
        robot__cameras__head__topic='/camera/heda/image_raw',
        robot__cameras__left_wrist__transport='compressed',
        robot__cameras__right_wrist__encodings=['bgr8'],
        robot__sinks__arm_left__topic='/arm_lfet/joint_trajectory',
        robot__sinks__arm_right__adapter='joint_state',
        robot__instruction_topic='/task',
        **{name: 'elbow'},
    )
    for subject, words in (
        (
            'camera head',
            ['nobody publishes', 'robot.cameras.head.topic', '/camera/head/image_raw'],
        ),
        ('camera left_wrist', ["carries ['sensor_msgs/msg/Image']", 'CompressedImage']),
        ('camera right_wrist', ["'rgb8'", "['bgr8']"]),
        ('joints joint_states', ["joints ['elbow'] are missing"]),
        ('sink arm_left', ['nobody listens on /arm_lfet/joint_trajectory', 'controller']),
        ('sink arm_right', ['is read as', 'sends sensor_msgs/msg/JointState']),
    ):
        assert found[subject].startswith('problem'), found
        assert all(word in found[subject] for word in words), found[subject]
    assert found['instruction'].startswith('note nobody publishes /task')
    assert 'ROS_AUTOMATIC_DISCOVERY_RANGE' in found['discovery']
    assert look(0.5, robot__dry_run=True, robot__sinks__arm_left__topic='/x')[
        'sink arm_left'
    ].startswith('note nobody listens')


def test_preflight_compares_qos_rates_and_clocks(look, robot) -> None:
    """Best effort cannot be read reliably; a slow camera and another clock hold the arms."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = robot.create_publisher(Image, '/slow', qos)
    topic = {'robot__cameras__head__topic': '/slow'}
    try:
        found = look(0.5, **topic)['camera head']
        assert 'QoS does not match' in found and 'reliability: best_effort' in found
        message = Image(height=2, width=2, encoding='rgb8', step=6, data=bytes(range(12)))
        stop = threading.Event()

        def send() -> None:
            while not stop.wait(0.1):
                publisher.publish(message)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        best_effort = {**topic, 'robot__cameras__head__reliability': 'best_effort'}
        assert 'header.stamp is zero' in look(1.0, **best_effort)['camera head']
        message.header.stamp.sec = 2_000_000_000
        assert 'ahead of the node clock' in look(1.0, **best_effort)['camera head']
        stop.set()
        thread.join()
        assert 'no message came in 0.5 s' in look(0.5, **best_effort)['camera head']
    finally:
        robot.destroy_publisher(publisher)
    found = look(
        1.5, runtime__buffer__max_image_age_s=0.02, runtime__buffer__max_image_age_warn_s=0.01
    )
    assert 'the arms hold' in found['camera head'] and found['camera head'].startswith('problem')

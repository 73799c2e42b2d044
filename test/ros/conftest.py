"""A small robot made of topics, and the real node beside it, over real DDS in one process.

The two sides have their own rclpy context (participant) and executor thread each.
"""

from __future__ import annotations

import gc
import os

# Before rclpy is imported anywhere: a domain of this process alone, on this machine alone.
os.environ['ROS_DOMAIN_ID'] = str(10 + os.getpid() % 90)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_policy import SIZE, FakePolicy

ROBOT_YAML = """
robot:
  name: test_robot
  dry_run: {dry_run}
  joints:
    - {{name: left_1, kind: arm, lower: -2.0, upper: 2.0, max_velocity: 2.0, max_step: 0.04}}
    - {{name: left_gripper, kind: gripper, lower: 0, upper: 1, max_velocity: 5, max_step: 0.1}}
    - {{name: right_1, kind: arm, lower: -2.0, upper: 2.0, max_velocity: 2.0, max_step: 0.04}}
    - {{name: right_gripper, kind: gripper, lower: 0, upper: 1, max_velocity: 5, max_step: 0.1}}
  cameras:
    - {{name: head, topic: /head/image, transport: raw, encodings: [rgb8, bgr8]}}
    - {{name: wrist, topic: /wrist/image/compressed, transport: compressed, encodings: [jpeg]}}
  state_sources:
    - name: body
      topic: /joint_states
      joints:
        - {{joint: left_1}}
        - {{joint: right_1}}
        - {{joint: left_gripper, scale: 100.0}}
        - {{joint: right_gripper}}
  sinks:
    - name: arm_left
      topic: /arm_left/command
      joints: [{{joint: left_1}}, {{joint: left_gripper, scale: 100.0}}]
    - name: arm_right
      topic: /arm_right/command
      adapter: float64_multiarray
      joints: [{{joint: right_1}}, {{joint: right_gripper}}]
runtime:
  # Generous ages: what is tested is what happens when they are exceeded, on any loaded machine.
  guard: {{soft_start_s: 0.1, max_state_age_s: 0.6, max_command_age_s: 0.6}}
  buffer: {{max_state_age_s: 0.6, max_image_age_s: 0.8, max_image_age_warn_s: 0.7, max_skew_s: 0.6,
           max_skew_warn_s: 0.6, max_future_s: 0.5}}
"""


class Robot:
    """Cameras, joints and controllers of the test robot; all of it can break while it runs."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CompressedImage, Image, JointState
        from std_msgs.msg import Float64MultiArray, String
        from trajectory_msgs.msg import JointTrajectory

        from safe_pruner_ros.msg import ActionChunk as ChunkMsg
        from safe_pruner_ros.msg import KeyframeEvent, PruningStatus, SaliencyMap, ShadowAudit

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('robot', context=self.context)
        self.cameras = {'head', 'wrist'}
        self.encoding, self.wrist_share = 'rgb8', 1.0
        self.names = ['right_1', 'torso', 'left_1', 'left_gripper', 'right_gripper']
        self.positions = {'left_1': 0.1, 'right_1': -0.1, 'torso': 9.0,
                          'left_gripper': 50.0, 'right_gripper': 0.5}  # fmt: skip
        self.joints_on = True
        self.brakes_on = False
        self.received: dict[str, list[Any]] = {}
        self._clients: dict[str, Any] = {}  # by service
        self.diagnostics: dict[str, tuple[int, str, dict[str, str]]] = {}
        node = self.node
        self._head = node.create_publisher(Image, '/head/image', 1)
        self._wrist = node.create_publisher(CompressedImage, '/wrist/image/compressed', 1)
        self._joints = node.create_publisher(JointState, '/joint_states', 1)
        self._instruction = node.create_publisher(String, '/instruction', 1)
        listen = {
            '/arm_left/command': JointTrajectory,
            '/arm_right/command': Float64MultiArray,
            '/safe_pruner/preview/arm_left': JointTrajectory,
            '/safe_pruner/status': PruningStatus,
            '/safe_pruner/keyframe': KeyframeEvent,
            '/safe_pruner/action_chunk': ChunkMsg,
            '/safe_pruner/audit': ShadowAudit,
            '/safe_pruner/saliency/wrist': SaliencyMap,
            '/safe_pruner/overlay/head': Image,
        }
        for topic, kind in listen.items():
            self.received[topic] = []
            node.create_subscription(kind, topic, self.received[topic].append, 50)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(node)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._spin, daemon=True),
            threading.Thread(target=self._send, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        import rclpy

        self._stop.set()
        for thread in self._threads:
            thread.join(2.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _spin(self) -> None:
        from rclpy._rclpy_pybind11 import InvalidHandle  # rclpy exports it nowhere else

        while not self._stop.is_set():
            # A test may destroy a publisher while this thread waits on its events.
            with suppress(InvalidHandle):
                self._executor.spin_once(timeout_sec=0.1)

    def _on_diagnostics(self, msg: Any) -> None:
        for status in msg.status:
            values = {item.key: item.value for item in status.values}
            self.diagnostics[status.name] = (status.level[0], status.message, values)

    def _send(self) -> None:
        tick = 0
        while not self._stop.wait(0.02):
            tick += 1
            if self.joints_on:
                self._send_joints()
            if tick % 2 == 0:
                self._send_images(tick)

    def _send_joints(self) -> None:
        from sensor_msgs.msg import JointState

        moved_by = {} if self.brakes_on else self.received
        for command in moved_by.get('/arm_left/command', [])[-1:]:
            values = dict(zip(command.joint_names, command.points[0].positions, strict=True))
            self.positions['left_1'], self.positions['left_gripper'] = (
                values['left_1'], values['left_gripper'],
            )  # fmt: skip
        for command in moved_by.get('/arm_right/command', [])[-1:]:
            self.positions['right_1'], self.positions['right_gripper'] = command.data
        msg = JointState(name=list(self.names))
        msg.position = [self.positions.get(name, 0.0) for name in self.names]
        msg.header.stamp = self.node.get_clock().now().to_msg()
        self._joints.publish(msg)

    def _send_images(self, tick: int) -> None:
        from sensor_msgs.msg import CompressedImage, Image

        from safe_pruner_ros.ros.conversions import camera_image_to_compressed
        from safe_pruner_ros.types import CameraImage

        stamp = self.node.get_clock().now()
        y, x = np.mgrid[:SIZE, :SIZE]
        rgb = np.stack([(x * 7 + tick) % 256, y * 7, x + y], axis=2).astype(np.uint8)
        if 'head' in self.cameras:
            msg = Image(height=SIZE, width=SIZE, encoding=self.encoding, step=3 * SIZE)
            msg.header.stamp, msg.data = stamp.to_msg(), rgb.tobytes()
            self._head.publish(msg)
        if 'wrist' in self.cameras:
            coded = camera_image_to_compressed(CameraImage(rgb, 'wrist', stamp.nanoseconds))
            data = bytes(coded.data)
            coded.data = data[: int(len(data) * self.wrist_share)]
            assert isinstance(coded, CompressedImage)
            self._wrist.publish(coded)

    def is_alone(self) -> bool:
        return 'safe_pruner' not in self.node.get_node_names()

    # ---- what tests do

    def say(self, text: str) -> None:
        from std_msgs.msg import String

        self._instruction.publish(String(data=text))

    def call(self, kind: Any, name: str, request: Any, timeout_s: float = 20.0) -> Any:
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        if not client.service_is_ready():
            assert client.wait_for_service(timeout_s), f'no service {name}'
            # Fast DDS drops an answer whose reader the server has not found within 100 ms
            # (ros2/rmw_fastrtps#842), and a caller cannot see whether it was found.
            time.sleep(0.2)
        future = client.call_async(request)
        wait_for(future.done, timeout_s, f'answer of {name}')
        return future.result()

    def transition(self, number: int) -> bool:
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request()
        request.transition.id = number
        return bool(self.call(ChangeState, '/safe_pruner/change_state', request).success)

    def configure(self) -> bool:
        return self.transition(1)

    def activate(self) -> bool:
        return self.transition(3)

    def trigger(self, name: str) -> Any:
        from std_srvs.srv import Trigger

        return self.call(Trigger, f'/safe_pruner/{name}', Trigger.Request())

    def set_parameter(self, name: str, value: Any) -> Any:
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.call(SetParameters, '/safe_pruner/set_parameters', request).results[0]

    def state(self) -> str:
        """Text of the state line: RUN, HOLD: ..., FAULT: ..."""
        return self.diagnostics.get('safe_pruner: state', (0, '', {}))[1]

    def sent(self) -> int:
        return len(self.received['/arm_left/command'])

    def commands(self) -> np.ndarray:
        """Everything that any command topic ever carried."""
        values = [list(m.points[0].positions) for m in self.received['/arm_left/command']]
        values += [list(m.data) for m in self.received['/arm_right/command']]
        values += [
            list(m.points[0].positions) for m in self.received['/safe_pruner/preview/arm_left']
        ]
        return np.array(values, dtype=float).reshape(-1, 2)

    def wait_state(self, *words: str, timeout_s: float = 8.0) -> str:
        wait_for(
            lambda: all(word in self.state() for word in words), timeout_s,
            lambda: f'state with {words}; it is {self.state()!r}',
        )  # fmt: skip
        return self.state()


def wait_for(
    condition: Callable[[], bool], timeout_s: float, what: str | Callable[[], str]
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f'waited {timeout_s} s for {what() if callable(what) else what}')
        time.sleep(0.01)


@dataclass
class Bench:
    """The robot, and the node that drives it."""

    robot: Robot
    policy: FakePolicy
    start: Callable[..., Any]
    wait_for: Callable[..., None]
    yaml: str = ROBOT_YAML.format(dry_run='false')

    def is_silent(self, seconds: float = 0.5) -> bool:
        """No command on any topic for so long. What was on its way may arrive before."""
        time.sleep(0.1)
        before = len(self.robot.commands())
        time.sleep(seconds)
        return len(self.robot.commands()) == before

    def run(self, **parameters: Any) -> Robot:
        """Bring the node to RUN."""
        self.start(**parameters)
        assert self.robot.configure()
        assert self.robot.activate()
        self.robot.say('lift the block')
        self.robot.wait_state('RUN')
        return self.robot


@pytest.fixture(scope='module')  # no longer: it speaks on topics that other modules listen to
def _robot() -> Iterator[Robot]:
    robot = Robot()
    yield robot
    robot.close()


@pytest.fixture
def bench(tmp_path: Path, _robot: Robot) -> Iterator[Bench]:
    import rclpy
    from rclpy.parameter import Parameter
    from rclpy.signals import SignalHandlerOptions

    from safe_pruner_ros.ros.lifecycle import StopSignal, make_executor, spin_until
    from safe_pruner_ros.ros.node import SafePrunerNode

    context = rclpy.Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    stop, policy = StopSignal(), FakePolicy()
    started: list[Any] = []
    threads: list[threading.Thread] = []

    def start(yaml: str | None = None, **parameters: Any) -> Any:
        robot_file = tmp_path / 'robot.yaml'
        robot_file.write_text(yaml or Bench.yaml)
        (tmp_path / 'policy.yaml').write_text('policy: {name: embedded}\n')
        values = {
            'robot_file': str(robot_file),
            'policy_file': str(tmp_path / 'policy.yaml'),
            'activation_timeout_s': 3.0,
            'diagnostics_rate_hz': 20.0,
        } | {name.replace('__', '.'): value for name, value in parameters.items()}
        node = SafePrunerNode(
            lambda config: policy, stop, context=context,
            parameter_overrides=[Parameter(n, value=v) for n, v in values.items()],
        )  # fmt: skip
        executor = make_executor(context)
        executor.add_node(node)
        thread = threading.Thread(target=spin_until, args=(executor, stop), daemon=True)
        thread.start()
        started.append((node, executor))
        threads.append(thread)
        return node

    for messages in _robot.received.values():
        messages.clear()
    _robot.diagnostics.clear()
    _robot.cameras, _robot.encoding, _robot.wrist_share = {'head', 'wrist'}, 'rgb8', 1.0
    _robot.names = ['right_1', 'torso', 'left_1', 'left_gripper', 'right_gripper']
    _robot.positions.update(left_1=0.1, right_1=-0.1, left_gripper=50.0, right_gripper=0.5)
    _robot.joints_on, _robot.brakes_on = True, False
    yield Bench(_robot, policy, start, wait_for)
    stop.set()
    for thread in threads:
        thread.join(3.0)
    while started:
        node, executor = started.pop()
        node.end()
        executor.remove_node(node)
        executor.shutdown()
        node.destroy_node()
        del node, executor
    gc.collect()  # the lifecycle state machine keeps the node's handle until it is collected
    rclpy.shutdown(context=context)
    wait_for(_robot.is_alone, 5.0, 'the old node to leave')

"""SimNode: the simulated robot on the topics of the real one.

Topics, joint names and units come from the same robot file that the policy node reads, so the two
cannot disagree. It sends images (raw, and JPEG beside them), joint states and /clock, takes the
robot's commands and holds when they stop. It says what it simulates on ``~/status``, and what it
asks for on the instruction topic; it knows no policy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from safe_pruner_ros.ros.conversions import (
    InputError,
    camera_image_to_compressed,
    camera_image_to_message,
    ns_to_stamp,
)
from safe_pruner_ros.ros.guarded import CallbackGuard
from safe_pruner_ros.ros.lifecycle import StopSignal, make_executor, spin_until
from safe_pruner_ros.ros.resources import config_file
from safe_pruner_ros.ros.sim_commands import command_type, read_command
from safe_pruner_ros.ros.sim_loops import CameraLoop, Environment, Episode, Moment, PhysicsLoop
from safe_pruner_ros.runtime.config import RobotConfig, SinkConfig, StateSourceConfig
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.sim.urdf import optical_frame
from safe_pruner_ros.types import CameraImage

OVERVIEW = 'overview'  # a bystander's camera, only rendered when somebody looks
RESET_TIMEOUT_S = 10.0
THREAD_STOP_S = 1.0
STATUS_PERIOD_S = 0.2
CLOCK_PERIOD_S = 0.005

_PARAMETERS: tuple[tuple[str, Any, str], ...] = (
    ('robot_file', 'sim', 'robot whose topics are served: a name in config/robots, or a path'),
    ('task', 'pick_place', 'what is asked for: a name in sim/tasks'),
    ('seed', 0, 'scene of the first episode; set it before ~/reset to choose the next one'),
    ('target', -1, 'object of the scene that is asked for; -1: the one the seed draws'),
    ('image_height', 256, 'height of the pictures [px]'),
    ('image_width', 256, 'width of the pictures [px]'),
    ('camera_rate_hz', 20.0, 'sets of pictures per second of wall time [Hz]'),
    ('jpeg_quality', 90, 'quality of the compressed pictures [1..100]'),
    ('control_period_s', 0.02, 'period of physics and joint states [s of simulated time]'),
    ('rate_factor', 1.0, 'simulated per wall time; 0.5 is half speed'),
)

EnvironmentFactory = Callable[[str, int, int, float], Environment]


def make_dual_arm(task: str, height: int, width: int, control_period_s: float) -> Environment:
    from safe_pruner_ros.sim.env import DualArmEnv

    return DualArmEnv(task, height, width, control_period_s)


class SimNode(Node):
    """``make_environment`` builds the world; tests inject a small one."""

    def __init__(
        self, make_environment: EnvironmentFactory = make_dual_arm, **node_arguments: Any
    ) -> None:
        super().__init__('sim', **node_arguments)
        for name, default, doc in _PARAMETERS:
            self.declare_parameter(name, default, ParameterDescriptor(description=doc))
        self._guard = CallbackGuard(self.get_logger())
        self.failure: BaseException | None = None
        robot: RobotConfig = load_config(config_file('robots', self._value('robot_file'))).robot
        self._robot = robot
        make = partial(
            make_environment,
            self._value('task'),
            self._value('image_height'),
            self._value('image_width'),
            self._value('control_period_s'),
        )
        self._seed, self._target = self._value('seed'), self._value('target')
        self._make_publishers(robot)
        self._physics = PhysicsLoop(
            make,
            self._seed,
            None if self._target < 0 else self._target,
            self._value('rate_factor'),
            self._guard.wrap('physics tick', self._on_tick),
            self._on_failure,
        )
        self._cameras = CameraLoop(
            make,
            lambda: self._physics.latest,
            self._value('camera_rate_hz'),
            self._wanted_views,
            self._guard.wrap('images', self._on_images),
            self._on_failure,
        )
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        for sink in robot.sinks:
            callback = self._guard.wrap(sink.topic, partial(self._on_command, sink))
            self.create_subscription(command_type(sink), sink.topic, callback, qos)
        self.create_service(Trigger, '~/reset', self._on_reset)
        steady = RosClock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(STATUS_PERIOD_S, self._guard.wrap('status', self._tell), clock=steady)
        self.create_timer(CLOCK_PERIOD_S, self._guard.wrap('clock', self._tick), clock=steady)
        self._physics.start()
        self._cameras.start()

    def _make_publishers(self, robot: RobotConfig) -> None:
        self._clock_out = self.create_publisher(Clock, '/clock', 1)
        self._states = {
            source.name: self.create_publisher(JointState, source.topic, 10)
            for source in robot.state_sources
        }
        self._images: dict[str, tuple[Publisher, Publisher]] = {}
        topics = {camera.name: camera.topic for camera in robot.cameras}
        for view, topic in {**topics, OVERVIEW: '/camera/overview/image_raw'}.items():
            base = topic.removesuffix('/compressed')
            self._images[view] = (
                self.create_publisher(Image, base, 2),
                self.create_publisher(CompressedImage, f'{base}/compressed', 2),
            )
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._status = self.create_publisher(String, '~/status', latched)
        # Not latched, but said again to whoever comes later: so that `ros2 topic pub`, which is
        # not latched either, can ask for something else on the same topic.
        self._instruction = self.create_publisher(String, robot.instruction_topic, 1)
        self._told = (0, 0)  # episode, number of listeners

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    # ---- from the loops (their threads)

    def _on_tick(self, moment: Moment) -> None:
        # Time first: a stamp ahead of the receiver's clock is refused.
        self._clock_out.publish(Clock(clock=ns_to_stamp(moment.stamp_ns)))
        for source in self._robot.state_sources:
            self._states[source.name].publish(_joint_state(moment, source, self._robot))

    def _on_images(self, images: Mapping[str, CameraImage]) -> None:
        for view, image in images.items():
            raw, compressed = self._images[view]
            if raw.get_subscription_count():
                raw.publish(camera_image_to_message(image, optical_frame(view)))
            if compressed.get_subscription_count():
                quality = self._value('jpeg_quality')
                compressed.publish(camera_image_to_compressed(image, quality, optical_frame(view)))

    def _wanted_views(self) -> tuple[str, ...]:
        return tuple(
            view
            for view, publishers in self._images.items()
            if any(publisher.get_subscription_count() for publisher in publishers)
        )

    def _on_failure(self, error: BaseException) -> None:
        self._guard.report('simulation', error)
        self.failure = error

    # ---- from the executor

    def _tick(self) -> None:
        if self._physics.latest is not None:
            self._clock_out.publish(Clock(clock=ns_to_stamp(self._physics.clock_ns())))

    def _tell(self) -> None:
        moment = self._physics.latest
        if moment is None:
            return
        episode = moment.episode
        listeners = self._instruction.get_subscription_count()
        news, self._told = (episode.number, listeners) > self._told, (episode.number, listeners)
        if news:
            self._instruction.publish(String(data=episode.instruction))
        self._status.publish(String(data=json.dumps(self._status_of(moment))))

    def _status_of(self, moment: Moment) -> dict[str, Any]:
        return {
            **_describe(moment.episode),
            'stage': moment.stage,
            'success': moment.success,
            'time_s': moment.stamp_ns * 1e-9,
            'lost_ticks': self._physics.lost_ticks,
            'render_ms': self._cameras.render_ms,
        }

    def _on_command(self, sink: SinkConfig, msg: Any) -> None:
        now_ns = self._physics.clock_ns()
        try:
            self._physics.follower.accept(read_command(sink, msg, now_ns), now_ns)
        except InputError as error:
            self.get_logger().error(f'command ignored: {error}', throttle_duration_sec=2.0)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            seed, target = self._value('seed'), self._value('target')
            if (seed, target) == (self._seed, self._target):
                seed += 1
                self.set_parameters([rclpy.Parameter('seed', value=seed)])
            self._seed, self._target = seed, target
            episode = self._physics.reset(seed, None if target < 0 else target, RESET_TIMEOUT_S)
            self._tell()
            response.success, response.message = True, json.dumps(_describe(episode))
        except Exception as error:
            response.success, response.message = False, f'reset failed: {error}'
            self._guard.report('reset', error)
        return response

    def end(self) -> None:
        """Stop both threads; each frees its own environment."""
        for loop in (self._cameras, self._physics):
            loop.request_stop()
        for loop in (self._cameras, self._physics):
            loop.join(THREAD_STOP_S)


def _describe(episode: Episode) -> dict[str, Any]:
    return {
        'episode': episode.number,
        'seed': episode.seed,
        'target': episode.target,
        'instruction': episode.instruction,
    }


def _joint_state(moment: Moment, source: StateSourceConfig, robot: RobotConfig) -> JointState:
    """Measured joints of one source in the units of the robot."""
    positions = dict(zip(robot.layout.names, moment.arm_state.positions, strict=True))
    msg = JointState()
    msg.header.stamp = ns_to_stamp(moment.stamp_ns)
    msg.name = [mapping.robot_name for mapping in source.joints]
    msg.position = [mapping.to_robot(float(positions[mapping.joint])) for mapping in source.joints]
    return msg


def main(argv: Sequence[str] | None = None) -> int:
    """`ros2 run safe_pruner_ros sim_node`."""
    rclpy.init(
        args=None if argv is None else list(argv), signal_handler_options=SignalHandlerOptions.NO
    )
    stop = StopSignal()
    stop.install()
    node: SimNode | None = None
    executor = make_executor()
    try:
        node = SimNode()
        executor.add_node(node)
        began_s = time.monotonic()
        spin_until(executor, stop, until=lambda: node.failure is not None)
        node.get_logger().info(f'served {time.monotonic() - began_s:.0f} s')
        return 1 if node.failure is not None else 0
    finally:
        if node is not None:
            node.end()
            node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())

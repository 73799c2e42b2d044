"""Looks at a robot's topics for some seconds and says what the policy node would miss.

A node of its own that publishes nothing; run it before the policy node, or beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CompressedImage, Image

from safe_pruner_ros.ros.command_sinks import make_sink
from safe_pruner_ros.ros.conversions import (
    compressed_to_camera_image,
    image_to_camera_image,
    stamp_to_ns,
)
from safe_pruner_ros.ros.discovery import describe_discovery
from safe_pruner_ros.ros.inputs import by_topic, joints_qos, newest_only, state_message_type
from safe_pruner_ros.ros.publishers import COMMAND_QOS
from safe_pruner_ros.ros.topic_report import (
    Endpoint,
    TopicReport,
    check_input,
    check_pose,
    check_sink,
)
from safe_pruner_ros.runtime.config import CameraConfig, Config, ConfigError, StateSourceConfig
from safe_pruner_ros.runtime.finding import Finding
from safe_pruner_ros.runtime.joint_mapping import recipients, state_values

# Each is waited for no longer than needed.
DISCOVERY_S = 5.0
FIRST_MESSAGE_S = 5.0
ENDLESS_NS = 2**63 - 1
OWN_NODES = ('safe_pruner', 'safe_pruner_preflight')


@dataclass(frozen=True)
class Watched:
    """``picture_age_s``: of the view whose pictures are oldest when they arrive (median); None
    when no camera that the arms wait for was heard with a stamp."""

    findings: list[Finding]
    picture_age_s: float | None


def watch_topics(
    config: Config, watch_s: float, sim_time: bool, context: Context | None = None
) -> Watched | None:
    """Findings for every camera, joint source, joint, sink and the instruction; None when no
    other node is up. ``sim_time``: stamps are compared with /clock."""
    own = context is None
    if context is None:
        context = Context()
        rclpy.init(context=context)
    watcher = _Watcher(context, sim_time)
    try:
        if not watcher.sees_others():
            return None
        findings = list(watcher.findings(config, watch_s))
        return Watched(findings, watcher.picture_age_s)
    finally:
        watcher.close()
        if own:
            rclpy.try_shutdown(context=context)


class _Watcher:
    def __init__(self, context: Context, sim_time: bool) -> None:
        self.picture_age_s: float | None = None
        self._node = rclpy.create_node(
            OWN_NODES[1],
            context=context,
            parameter_overrides=[Parameter('use_sim_time', value=sim_time)],
        )
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self._spin(DISCOVERY_S, self.sees_others)

    def close(self) -> None:
        self._executor.remove_node(self._node)
        self._executor.shutdown()
        self._node.destroy_node()

    def sees_others(self) -> bool:
        return any(name not in OWN_NODES for name in self._node.get_node_names())

    def _spin(self, spin_s: float, until: Callable[[], bool] = lambda: False) -> None:
        end_s = time.monotonic() + spin_s
        while time.monotonic() < end_s and not until():
            self._executor.spin_once(timeout_sec=0.05)

    def _sees_endpoints(self, config: Config) -> bool:
        node, robot = self._node, config.robot
        inputs = [item.topic for item in (*robot.cameras, *robot.state_sources)]
        return all(node.get_publishers_info_by_topic(topic) for topic in inputs) and all(
            node.get_subscriptions_info_by_topic(sink.topic) for sink in robot.sinks
        )

    def findings(self, config: Config, watch_s: float) -> Iterator[Finding]:
        robot, buffer = config.robot, config.runtime.buffer
        # Endpoints of a node arrive a little after its name.
        self._spin(DISCOVERY_S, lambda: self._sees_endpoints(config))
        cameras = [self._watch_camera(camera) for camera in robot.cameras]
        reports = [(camera, buffer.max_image_age_s) for camera in cameras]
        for group in by_topic(self._node, robot.state_sources):
            for source in group:
                try:
                    reports.append((self._watch_joints(source, group), buffer.max_state_age_s))
                except ConfigError as error:
                    yield Finding('problem', f'joints {source.name}', str(error))
        heard = [r for r, _ in reports if r.publishers and not r.is_deaf]
        self._spin(FIRST_MESSAGE_S, lambda: all(r.times_ns or r.errors for r in heard))
        for report, _ in reports:
            report.times_ns.clear()  # the rate is that of a robot that runs, not that starts
            report.errors.clear()
        self._spin(watch_s)
        for report, max_age_s in reports:
            yield from check_input(report, buffer, max_age_s, watch_s)
            yield from check_pose(report.joints, robot.joints, config.runtime.guard)
        ages_s = [camera.age_s for camera in cameras if camera.required]
        self.picture_age_s = max((age for age in ages_s if age is not None), default=None)
        yield from self._check_sinks(config)
        if not all(report.publishers for report, _ in reports):
            text = f'if what nobody publishes does run, {describe_discovery()}'
            yield Finding('note', 'discovery', text)
        if not self._node.get_publishers_info_by_topic(robot.instruction_topic):
            yield Finding(
                'note',
                'instruction',
                f'nobody publishes {robot.instruction_topic} yet; the arms hold until somebody '
                'does, or until the parameter instruction is set',
            )

    # ---- inputs

    def _watch_camera(self, camera: CameraConfig) -> TopicReport:
        is_compressed = camera.transport == 'compressed'
        convert = compressed_to_camera_image if is_compressed else image_to_camera_image

        def content(msg: Any) -> str:
            height, width = convert(msg, camera.name, camera.encodings).rgb.shape[:2]
            if camera.width and (camera.width, camera.height) != (width, height):
                raise ValueError(
                    f'{camera.topic}: pictures are {width} x {height}, the robot file expects '
                    f'{camera.width} x {camera.height}; correct one of them'
                )
            return f'{width} x {height}'

        report = self._watch(
            f'camera {camera.name}',
            f'robot.cameras.{camera.name}.topic',
            camera.topic,
            CompressedImage if is_compressed else Image,
            newest_only(camera.reliability),
            content,
        )
        report.required = camera.required
        return report

    def _watch_joints(
        self, source: StateSourceConfig, group: Sequence[StateSourceConfig]
    ) -> TopicReport:
        """``group``: the sources on its topic, each of which may have a driver of its own."""

        def content(msg: Any) -> str:
            report.joints = state_values(source, list(msg.name), list(msg.position))
            return f'{len(report.joints)} joints'

        report = self._watch(
            f'joints {source.name}',
            f'robot.state_sources.{source.name}.topic',
            source.topic,
            state_message_type(source),
            joints_qos(group),
            content,
            lambda msg: source in recipients(group, msg.name),
        )
        report.max_publishers = len(group)
        return report

    def _watch(
        self,
        subject: str,
        setting: str,
        topic: str,
        message_type: type,
        qos: QoSProfile,
        content: Callable[[Any], str],
        is_wanted: Callable[[Any], bool] = lambda msg: True,
    ) -> TopicReport:
        type_name = _type_name(message_type)
        infos = self._node.get_publishers_info_by_topic(topic)
        report = TopicReport(
            subject,
            setting,
            topic,
            type_name,
            [_endpoint(info, info.qos_profile, qos) for info in infos],
            same_type=[n for n, t in self._node.get_topic_names_and_types() if type_name in t],
        )

        def receive(msg: Any) -> None:
            if not is_wanted(msg):
                return
            now_ns = int(self._node.get_clock().now().nanoseconds)
            try:
                report.times_ns.append((now_ns, stamp_to_ns(msg.header.stamp, topic)))
                report.content = content(msg)
            except ValueError as error:
                report.errors.append(str(error))

        if all(end.type_name == type_name for end in report.publishers):
            self._node.create_subscription(message_type, topic, receive, qos)
        return report

    # ---- outputs

    def _check_sinks(self, config: Config) -> Iterator[Finding]:
        for sink in config.robot.sinks:
            try:
                message_type = make_sink(sink, 1.0, dry_run=False).message_type
            except ConfigError as error:
                yield Finding('problem', f'sink {sink.name}', str(error))
                continue
            listening = self._node.get_subscriptions_info_by_topic(sink.topic)
            sending = self._node.get_publishers_info_by_topic(sink.topic)
            yield from check_sink(
                sink,
                _type_name(message_type),
                [_endpoint(info, COMMAND_QOS, info.qos_profile) for info in listening],
                [_endpoint(i) for i in sending if i.node_name not in OWN_NODES],
                config.robot.dry_run,
            )


def _type_name(message_type: type) -> str:
    """'sensor_msgs/msg/Image', as the graph has it."""
    package = message_type.__module__.partition('.')[0]
    return f'{package}/msg/{message_type.__name__}'


def _endpoint(
    info: TopicEndpointInfo, sends: QoSProfile | None = None, takes: QoSProfile | None = None
) -> Endpoint:
    """Without both profiles QoS does not matter."""
    refuses = ''
    if sends is not None and takes is not None:
        compatibility, reason = qos_check_compatible(_unbounded(sends), _unbounded(takes))
        refuses = reason if compatibility == QoSCompatibility.ERROR else ''
    return Endpoint(
        f'{info.node_namespace.rstrip("/")}/{info.node_name}', info.topic_type, refuses.strip()
    )


def _unbounded(profile: QoSProfile) -> QoSProfile:
    """The graph reports "no deadline" as an endless one, which the check takes for a deadline."""
    bounds = {
        name: getattr(profile, name)
        for name in ('deadline', 'liveliness_lease_duration')
        if getattr(profile, name).nanoseconds < ENDLESS_NS
    }
    return QoSProfile(
        depth=1,
        reliability=profile.reliability,
        durability=profile.durability,
        liveliness=profile.liveliness,
        **bounds,
    )

"""A node that takes messages as bytes, whatever their type, and hands them on with their time.

Topics are found while it runs, so the order in which robot, policy node and recorder start does
not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)

from safe_pruner_ros.ros.bags.message_definitions import UnknownMessage
from safe_pruner_ros.runtime.config import RobotConfig

DISCOVERY_PERIOD_S = 0.2
QUEUE_DEPTH = 50
LATCHED = DurabilityPolicy.TRANSIENT_LOCAL


def wanted_topics(
    robot: RobotConfig, node: str, extra: Iterable[str] = (), overlays: bool = False
) -> Callable[[str], bool]:
    """Whether a topic belongs into the recording. ``node``: full name of the policy node.

    A camera counts with its raw and its compressed topic only where the robot file names them.
    """
    exact = {robot.instruction_topic, '/clock', '/diagnostics', '/tf', '/tf_static', *extra}
    exact |= {item.topic for item in (*robot.cameras, *robot.state_sources, *robot.sinks)}
    exact |= {'/sim/status', '/robot_description'}
    prefix = f'{node.rstrip("/")}/'

    def is_wanted(topic: str) -> bool:
        if topic.startswith(f'{prefix}overlay/'):
            return overlays
        return topic in exact or topic.startswith(prefix)

    return is_wanted


@dataclass
class TopicRecord:
    """``lost``: messages that DDS numbered and that never came; counted with one publisher."""

    kind: str
    messages: int = 0
    size_bytes: int = 0
    lost: int = 0
    last_number: int = -1


class Recorder(Node):
    """Feeds ``put(topic, log_ns, data)``; `announce` is called before the first of a topic.

    ``begins``: until this topic speaks, only ``always`` is kept; '' keeps everything.
    """

    def __init__(
        self,
        is_wanted: Callable[[str], bool],
        announce: Callable[[str, str, Sequence[Qos]], None],
        put: Callable[[str, int, bytes], None],
        begins: str = '',
        always: Iterable[str] = (),
        **node_arguments: Any,
    ) -> None:
        super().__init__('safe_pruner_record', **node_arguments)
        self.topics: dict[str, TopicRecord] = {}
        self.refused: dict[str, str] = {}
        self._is_wanted, self._announce, self._put = is_wanted, announce, put
        self._begins, self._always = begins, frozenset(always)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # also without /clock
        self.create_timer(DISCOVERY_PERIOD_S, self.discover, clock=steady)

    def discover(self) -> None:
        """Subscribe to what is wanted and has a publisher by now."""
        for topic, kinds in self.get_topic_names_and_types():
            if topic in self.topics or topic in self.refused or not self._is_wanted(topic):
                continue
            if self.count_publishers(topic):
                self._subscribe(topic, kinds)

    def _subscribe(self, topic: str, kinds: Sequence[str]) -> None:
        if len(kinds) != 1:
            self.refused[topic] = f'has several types: {sorted(kinds)}'
            return
        try:
            cls = message_class(kinds[0])
            infos = self.get_publishers_info_by_topic(topic)
            offered = [info.qos_profile for info in infos]
            self._announce(topic, kinds[0], [_to_rosbags(qos) for qos in offered])
        except (ImportError, AttributeError, UnknownMessage) as error:
            self.refused[topic] = f'{kinds[0]} is not installed here ({error})'
            self.get_logger().warning(f'{topic} is not recorded: {self.refused[topic]}')
            return
        self.topics[topic] = TopicRecord(kinds[0])

        def received(data: bytes, info: dict[str, int]) -> None:
            self._received(topic, data, info)

        self.create_subscription(cls, topic, received, _to_match(offered), raw=True)

    def _received(self, topic: str, data: bytes, info: dict[str, int]) -> None:
        if self._begins and topic not in self._always:
            if topic != self._begins:
                return
            self._begins = ''
        # When it arrived, not when this callback came round to it.
        log_ns = int(info.get('received_timestamp') or 0) or time.time_ns()
        record = self.topics[topic]
        number = info.get('publication_sequence_number')
        if number is not None and self.count_publishers(topic) == 1:
            if 0 <= record.last_number < number - 1:
                record.lost += number - 1 - record.last_number
            record.last_number = number
        record.messages += 1
        record.size_bytes += len(data)
        self._put(topic, log_ns, data)


def message_class(kind: str) -> Any:
    """'package/msg/Name' -> its Python class. Raises ImportError or AttributeError."""
    package, _, name = kind.split('/')
    return getattr(import_module(f'{package}.msg'), name)


def _to_match(offered: Sequence[Any]) -> QoSProfile:
    """What every one of the publishers fulfils, as reliable and as latched as all of them are."""
    reliable = all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in offered)
    latched = all(qos.durability == LATCHED for qos in offered)
    return QoSProfile(
        depth=QUEUE_DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=LATCHED if latched else DurabilityPolicy.VOLATILE,
    )


def _to_rosbags(qos: Any) -> Qos:
    def time_of(duration: Any) -> QosTime:
        return QosTime(*divmod(int(duration.nanoseconds), 1_000_000_000))

    return Qos(
        QosHistory(int(qos.history)),
        int(qos.depth),
        QosReliability(int(qos.reliability)),
        QosDurability(int(qos.durability)),
        time_of(qos.deadline),
        time_of(qos.lifespan),
        QosLiveliness(int(qos.liveliness)),
        time_of(qos.liveliness_lease_duration),
        bool(qos.avoid_ros_namespace_conventions),
    )

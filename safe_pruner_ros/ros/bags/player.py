"""Plays a bag onto topics, with /clock, for where `ros2 bag play` is not installed.

Messages leave as the bytes they were recorded as. What a robot would obey is never played.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

from safe_pruner_ros.ros.bags.mapping import IMAGE, JOINT_PREFIX
from safe_pruner_ros.ros.bags.reader import Bag, BagError
from safe_pruner_ros.ros.bags.recorder import message_class
from safe_pruner_ros.ros.bags.source import CLOCK_TOPIC
from safe_pruner_ros.ros.conversions import ns_to_stamp
from safe_pruner_ros.runtime.config import RobotConfig

CLOCK_PERIOD_S = 0.01
WAIT_POLL_S = 0.05
QUEUE_DEPTH = 10


class PlayClock:
    """Steady time -> time of the recording, at ``rate``, with pauses. ``steady`` in ns."""

    def __init__(self, rate: float, steady: Callable[[], int] = time.monotonic_ns) -> None:
        self._rate, self._steady = rate, steady
        self._bag_ns = self._wall_ns = 0
        self.is_paused = False

    def set(self, bag_ns: int) -> None:
        """It is ``bag_ns`` now."""
        self._bag_ns, self._wall_ns = bag_ns, self._steady()

    def now_ns(self) -> int:
        if self.is_paused:
            return self._bag_ns
        return self._bag_ns + round((self._steady() - self._wall_ns) * self._rate)

    def pause(self) -> None:
        self.set(self.now_ns())
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._wall_ns = self._steady()

    def wait_s(self, bag_ns: int) -> float:
        """Wall time until ``bag_ns``; endless while paused."""
        if self.is_paused:
            return float('inf')
        return (bag_ns - self.now_ns()) * 1e-9 / self._rate


@dataclass(frozen=True)
class Route:
    """A topic of the bag and the topics it is played on."""

    topic: str
    kind: str
    outputs: tuple[str, ...]


def plan_routes(
    bag: Bag, robot: RobotConfig, mapping: Mapping[str, str], extra: Iterable[str] = ()
) -> list[Route]:
    """What of ``bag`` the node of ``robot`` reads. ``mapping``: NAME -> topic of the bag, as
    `mapping.parse_map` gives it; the message then goes out on the robot's own topic.

    Raises ValueError for command topics and for what only replay can change, BagError when
    nothing would be played.
    """
    if joints := [name for name in mapping if name.startswith(JOINT_PREFIX)]:
        raise ValueError(f'--map {joints[0]}: play sends messages as they are; rename joints in '
                         'the robot file')  # fmt: skip
    inputs: dict[str, tuple[str, str]] = {
        camera.name: (camera.topic, _image_kind(camera.transport)) for camera in robot.cameras
    }
    inputs |= {source.name: (source.topic, '') for source in robot.state_sources}
    inputs['instruction'] = (robot.instruction_topic, '')
    if unknown := sorted(set(mapping) - set(inputs)):
        raise ValueError(f'--map: nothing to play for {unknown}; known: {sorted(inputs)}')
    commands = {sink.topic for sink in robot.sinks}
    found: dict[str, list[str]] = {}
    for name, (output, kind) in inputs.items():
        topic = mapping.get(name, output)
        if not bag.counts.get(topic):
            continue
        if kind and bag.types[topic] != kind:
            raise ValueError(
                f'{topic} is {bag.types[topic]}, camera {name!r} of robot {robot.name!r} takes '
                f'{kind}; change its transport in the robot file'
            )
        found.setdefault(topic, []).append(output)
    for topic in extra:
        if not bag.counts.get(topic):
            raise ValueError(f'{bag.path}: has no messages on {topic}')
        found.setdefault(topic, []).append(topic)
    for outputs in found.values():
        if moving := sorted(commands.intersection(outputs)):
            raise ValueError(
                f'{moving} are command topics of robot {robot.name!r}; recorded commands are not '
                'played, they could move a robot'
            )
    if not found:
        raise BagError(
            f'{bag.path}: has nothing that robot {robot.name!r} reads; it has {bag.describe()}; '
            'use --map NAME=TOPIC'
        )
    return [
        Route(topic, bag.types[topic], tuple(dict.fromkeys(out))) for topic, out in found.items()
    ]


def _image_kind(transport: str) -> str:
    return 'sensor_msgs/msg/CompressedImage' if transport == 'compressed' else IMAGE


class Player(Node):
    """``clock``: what /clock says, the record time, the newest header stamp, or the bag's own
    /clock ('topic'). Services ~/pause and ~/resume."""

    def __init__(
        self,
        bag: Bag,
        routes: Iterable[Route],
        clock: str,
        rate: float = 1.0,
        latched: Iterable[str] = (),
        **node_arguments: Any,
    ) -> None:
        super().__init__('safe_pruner_play', **node_arguments)
        self._bag, self._clock = bag, clock
        self.play_clock = PlayClock(rate)
        self._routes = {route.topic: route for route in routes}
        self._latched = set(latched)  # of what was said last before the start, too
        self._out: dict[str, list[Any]] = {}
        for route in self._routes.values():
            cls = message_class(route.kind)
            durable = route.topic in self._latched
            self._out[route.topic] = [
                self.create_publisher(cls, output, _qos(durable)) for output in route.outputs
            ]
        self._clock_out = self.create_publisher(Clock, CLOCK_TOPIC, 10)
        self._clock_ns = 0
        self._clock_sent_s = 0.0
        for name, action in (
            ('pause', self.play_clock.pause),
            ('resume', self.play_clock.resume),
        ):
            self.create_service(Trigger, f'~/{name}', _serve(name, action))

    # ---- playing

    def missing_listeners(self) -> list[str]:
        """Topics that nobody listens to yet."""
        publishers = [p for group in self._out.values() for p in group]
        return [p.topic_name for p in publishers if not p.get_subscription_count()]

    def play(self, executor: Executor, stopped: Callable[[], bool], offset_s: float = 0.0) -> int:
        """Once through, from ``offset_s`` on; number of messages that went out.

        Returns early when ``stopped``. Raises BagError where the file breaks off.
        """
        start_ns = self._bag.start_ns + round(offset_s * 1e9)
        topics = {*self._routes, *({CLOCK_TOPIC} if self._clock == 'topic' else ())}
        self._clock_ns = 0  # a loop begins with a jump back
        self.play_clock.set(start_ns)
        before: dict[str, bytes] = {}
        sent = 0
        for topic, log_ns, data in self._bag.serialized(topics):
            if log_ns < start_ns:
                if topic in self._latched:
                    before[topic] = data
                continue
            if not self._wait_until(log_ns, executor, stopped):
                return sent
            for earlier, held in before.items():
                self.send(earlier, held)
            before.clear()
            self._advance(topic, log_ns, data)
            if topic != CLOCK_TOPIC:
                self.send(topic, data)
                sent += 1
        return sent

    def send(self, topic: str, data: bytes) -> None:
        for publisher in self._out[topic]:
            publisher.publish(data)

    def send_clock(self, now_ns: int) -> None:
        self._clock_sent_s = time.monotonic()
        self._clock_out.publish(Clock(clock=ns_to_stamp(now_ns)))

    def _advance(self, topic: str, log_ns: int, data: bytes) -> None:
        """/clock first: a stamp ahead of the receiver's clock is refused."""
        if self._clock == 'record':
            self._clock_ns = log_ns
        elif self._clock == 'topic':
            if topic != CLOCK_TOPIC:
                return
            self._clock_ns = header_stamp_ns(data)
        elif self._routes[topic].kind.startswith('sensor_msgs/'):
            self._clock_ns = max(self._clock_ns, header_stamp_ns(data))
        self.send_clock(self._clock_ns)

    def _wait_until(self, log_ns: int, executor: Executor, stopped: Callable[[], bool]) -> bool:
        """Serve callbacks and /clock until ``log_ns``; False if stopped meanwhile."""
        while True:
            if stopped():
                return False
            wait_s = self.play_clock.wait_s(log_ns)
            if wait_s <= 0:
                return True
            executor.spin_once(timeout_sec=min(wait_s, CLOCK_PERIOD_S))
            if time.monotonic() - self._clock_sent_s >= CLOCK_PERIOD_S:
                self._tick(log_ns)

    def _tick(self, next_ns: int) -> None:
        """Between two messages the record clock goes on; other clocks are known at messages."""
        if self._clock == 'record':
            self._clock_ns = min(self.play_clock.now_ns(), next_ns)
        if self._clock_ns and self._clock != 'topic':
            self.send_clock(self._clock_ns)


def header_stamp_ns(data: bytes) -> int:
    """Stamp at the start of a CDR message whose first field is a Time or a Header; 0 if short."""
    if len(data) < 12:
        return 0
    sec, nanosec = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return max(0, int(sec)) * 1_000_000_000 + int(nanosec)


def wait_for_listeners(player: Player, executor: Executor, timeout_s: float,
                       stopped: Callable[[], bool]) -> list[str]:  # fmt: skip
    """Wait until somebody listens to every topic; those that nobody listens to by then."""
    deadline_s = time.monotonic() + timeout_s
    while (missing := player.missing_listeners()) and time.monotonic() < deadline_s:
        if stopped():
            break
        executor.spin_once(timeout_sec=WAIT_POLL_S)
    return missing


def _qos(is_latched: bool) -> QoSProfile:
    durability = DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE
    return QoSProfile(
        depth=1 if is_latched else QUEUE_DEPTH,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=durability,
    )


def _serve(name: str, action: Callable[[], None]) -> Callable[[Any, Any], Any]:
    def serve(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        action()
        response.success, response.message = True, f'{name} done'
        return response

    return serve

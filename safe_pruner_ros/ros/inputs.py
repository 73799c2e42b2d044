"""Subscriptions of the node: one per view, per topic of joint states, and the instruction.

Callbacks convert and hand over, nothing else. Queues hold one message: the newest wins. Only a
topic that several drivers share needs a longer one (`joints_qos`). During activation the executor
is inside the service call, so `poll` takes the messages by hand.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from safe_pruner_ros.ros.conversions import (
    InputError,
    compressed_to_camera_image,
    image_to_camera_image,
    stamp_to_ns,
)
from safe_pruner_ros.ros.guarded import CallbackGuard
from safe_pruner_ros.ros.lifecycle import undone_on_error
from safe_pruner_ros.ros.receive_meter import ReceiveMeter
from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import (
    CameraConfig,
    ConfigError,
    RobotConfig,
    StateSourceConfig,
)
from safe_pruner_ros.runtime.control_loop import ControlLoop
from safe_pruner_ros.runtime.joint_mapping import recipients

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

_RELIABILITY = {
    'reliable': ReliabilityPolicy.RELIABLE,
    'best_effort': ReliabilityPolicy.BEST_EFFORT,
}
# The executor hands over /clock within a tick of activation; longer means that time went back.
POLLED_CLOCK_S = 1.0
# Messages that wait on a shared topic, for each source: two would do for drivers of one rate.
SHARED_DEPTH = 4


class Source(NamedTuple):
    """A camera or state source, by name, and the topic it is heard on (after remapping)."""

    kind: str
    name: str
    topic: str


def newest_only(
    reliability: str, durability: DurabilityPolicy = DurabilityPolicy.VOLATILE
) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=_RELIABILITY[reliability],
        durability=durability,
    )


def by_topic(
    node: Node, sources: Iterable[StateSourceConfig]
) -> list[tuple[StateSourceConfig, ...]]:
    """Sources that hear the same topic (after remapping, of one type) share a subscription."""
    found: dict[tuple[str, str], list[StateSourceConfig]] = {}
    for source in sources:
        key = (node.resolve_topic_name(source.topic), source.adapter)
        found.setdefault(key, []).append(source)
    return [tuple(group) for group in found.values()]


def joints_qos(sources: Sequence[StateSourceConfig]) -> QoSProfile:
    """For a topic that these sources share.

    DDS keeps the last messages of a topic, not of a publisher: in a queue of one, the driver of
    the right arm that always speaks just after the left one would be all that is ever heard. What
    waited is judged by its own stamp as ever. Best effort matches every publisher.
    """
    wanted = {source.reliability for source in sources}
    qos = newest_only('reliable' if wanted == {'reliable'} else 'best_effort')
    if len(sources) > 1:
        qos.depth = SHARED_DEPTH * len(sources)
    return qos


def state_message_type(source: StateSourceConfig) -> type:
    """Raises ConfigError if the message package of its adapter is not installed."""
    if source.adapter != 'astribot_state':
        return JointState  # type: ignore[no-any-return]
    try:
        message_type: type = importlib.import_module('astribot_msgs.msg').RobotJointState
    except ImportError as error:
        raise ConfigError(
            f'state source {source.name!r} uses the adapter {source.adapter}, which needs '
            f'astribot_msgs ({error}); build that package, source it, and start again'
        ) from error
    return message_type


class Inputs:
    """Feeds a ControlLoop from topics. ``meters`` and ``frame_ids`` (of the last image) by view;
    ``qos_problems`` by topic; ``sources``: every camera, then every state source.
    ``on_instruction`` hears that one came, whatever it says."""

    def __init__(
        self,
        node: LifecycleNode,
        robot: RobotConfig,
        loop: ControlLoop,
        guard: CallbackGuard,
        use_sim_time: bool,
        on_instruction: Callable[[], None],
    ) -> None:
        self._node, self._loop, self._guard = node, loop, guard
        self._on_instruction = on_instruction
        self._polled_clock_ns, self._polled_until_s = 0, 0.0
        self._subscriptions: list[Subscription] = []
        self._clock: Subscription | None = None
        self.meters = {camera.name: ReceiveMeter() for camera in robot.cameras}
        self.frame_ids: dict[str, str] = {}
        self.qos_problems: dict[str, str] = {}
        self.sources: list[Source] = []
        self._instruction_topic = robot.instruction_topic
        self._hears_latched = False
        with undone_on_error(self.destroy):
            for camera in robot.cameras:
                self._subscribe_camera(camera)
            for sources in by_topic(node, robot.state_sources):
                self._subscribe_joints(sources)
            self._subscribe(
                String, robot.instruction_topic, self._instruction, newest_only('reliable')
            )
            if use_sim_time:
                self._clock = self._subscribe(
                    Clock, '/clock', lambda msg: None, newest_only('best_effort')
                )

    def destroy(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def follow_latched_instruction(self) -> None:
        """Listen to a latched instruction as well, once somebody publishes one.

        Not from the start: a transient-local subscription beside every plain `ros2 topic pub`
        makes that command warn that nobody will get its messages.
        """
        if self._hears_latched:
            return
        publishers = self._node.get_publishers_info_by_topic(self._instruction_topic)
        latched = DurabilityPolicy.TRANSIENT_LOCAL
        if any(info.qos_profile.durability == latched for info in publishers):
            self._hears_latched = True
            qos = newest_only('reliable', latched)
            self._subscribe(String, self._instruction_topic, self._instruction, qos)

    # ---- time

    def now_ns(self) -> int:
        """The node clock. After polling, /clock as polled until the node clock has caught up."""
        node_ns = int(self._node.get_clock().now().nanoseconds)
        if self._polled_clock_ns:
            if node_ns < self._polled_clock_ns and time.monotonic() < self._polled_until_s:
                return self._polled_clock_ns
            self._polled_clock_ns = 0
        return node_ns

    def poll(self) -> None:
        """Take what has arrived without an executor (only inside one of its callbacks)."""
        if self._clock is not None:
            taken = self._clock.handle.take_message(self._clock.msg_type, self._clock.raw)
            if taken is not None:
                self._polled_clock_ns = stamp_to_ns(taken[0].clock, '/clock')
                self._polled_until_s = time.monotonic() + POLLED_CLOCK_S
        for subscription in self._subscriptions:
            if subscription is self._clock:
                continue
            for _ in range(subscription.qos_profile.depth):
                taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
                if taken is None:
                    break
                subscription.callback(taken[0])

    # ---- subscriptions

    def _subscribe(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[Any], None],
        qos: QoSProfile,
        on_lost: Callable[[Any], None] | None = None,
    ) -> Subscription:
        events = SubscriptionEventCallbacks(
            incompatible_qos=self._guard.wrap(
                f'qos {topic}', partial(self._incompatible_qos, topic, qos)
            ),
            message_lost=None if on_lost is None else self._guard.wrap(f'lost {topic}', on_lost),
        )
        subscription = self._node.create_subscription(
            message_type, topic, self._guard.wrap(topic, callback), qos, event_callbacks=events
        )
        self._subscriptions.append(subscription)
        return subscription

    def _subscribe_camera(self, camera: CameraConfig) -> None:
        compressed = camera.transport == 'compressed'
        subscription = self._subscribe(
            CompressedImage if compressed else Image,
            camera.topic,
            partial(self._image, camera),
            newest_only(camera.reliability),
            on_lost=lambda event: self.meters[camera.name].lost(event.total_count_change),
        )
        self.sources.append(Source('camera', camera.name, subscription.topic_name))

    def _subscribe_joints(self, sources: Sequence[StateSourceConfig]) -> None:
        subscription = self._subscribe(
            state_message_type(sources[0]),
            sources[0].topic,
            partial(self._joints, sources),
            joints_qos(sources),
        )
        topic = subscription.topic_name
        self.sources += [Source('state source', source.name, topic) for source in sources]

    def _incompatible_qos(self, topic: str, qos: QoSProfile, event: Any) -> None:
        if topic == self._instruction_topic:
            return  # one of the two subscriptions always fits
        self.qos_problems[topic] = (
            f'a publisher of {topic} does not offer what is asked for '
            f'({qos.reliability.name.lower()}); set reliability: best_effort for it in the robot '
            'file'
        )

    # ---- callbacks

    def _image(self, camera: CameraConfig, msg: Any) -> None:
        receive_ns = self.now_ns()
        convert = (
            compressed_to_camera_image
            if camera.transport == 'compressed'
            else image_to_camera_image
        )
        try:
            image = convert(msg, camera.name, camera.encodings)
        except InputError as error:
            self._loop.buffer.refuse(camera.name, Reason(Code.IMAGE_INVALID, str(error)))
            return
        self.frame_ids[camera.name] = msg.header.frame_id
        self.meters[camera.name].image(image.stamp_ns or receive_ns, len(msg.data))
        self._loop.store_image(image, receive_ns)

    def _joints(self, sources: Sequence[StateSourceConfig], msg: Any) -> None:
        receive_ns = self.now_ns()
        for source in recipients(sources, msg.name):
            name = source.name
            try:
                stamp_ns = stamp_to_ns(msg.header.stamp, f'joint states from {name!r}')
            except InputError as error:
                self._loop.buffer.refuse(name, Reason(Code.STAMP_OTHER_CLOCK, str(error)))
                continue
            self._loop.store_joints(name, msg.name, msg.position, stamp_ns, receive_ns)

    def _instruction(self, msg: String) -> None:
        self._on_instruction()
        self._loop.set_instruction(msg.data)

"""What the node says about its policy steps, and where its commands go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.publisher import Publisher
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

from safe_pruner_ros.msg import (
    ActionChunk,
    KeyframeEvent,
    PruningStatus,
    SaliencyMap,
    ShadowAudit,
)
from safe_pruner_ros.policies.policy import PolicySpec
from safe_pruner_ros.ros import report_messages as messages
from safe_pruner_ros.ros.command_sinks import CommandSink
from safe_pruner_ros.ros.discovery import full_name, publishers_of
from safe_pruner_ros.ros.lifecycle import undone_on_error
from safe_pruner_ros.runtime.shadow_audit import Audit, AuditCounts
from safe_pruner_ros.runtime.step_report import StepReport
from safe_pruner_ros.types import JointCommand

# One message in the queue: an old command must not follow a new one.
COMMAND_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE
)


class StepPublishers:
    """Topics of one policy; `publish` runs in the worker thread, after every policy step."""

    def __init__(self, node: LifecycleNode, spec: PolicySpec) -> None:
        self._node, self._views, self._policy = node, spec.views, spec.name
        self._slices = messages.view_slices(spec.views)
        self._made: list[Publisher] = []
        with undone_on_error(self.destroy):
            self._status = self._create(PruningStatus, '~/status')
            self._keyframe = self._create(KeyframeEvent, '~/keyframe')
            self._chunk = self._create(ActionChunk, '~/action_chunk')
            self._audit = self._create(ShadowAudit, '~/audit')
            self._saliency = {
                view.name: self._create(SaliencyMap, f'~/saliency/{view.name}', depth=2)
                for view in spec.views
            }

    def _create(self, message_type: type, topic: str, depth: int = 10) -> Publisher:
        self._made.append(self._node.create_publisher(message_type, topic, depth))
        return self._made[-1]

    def destroy(self) -> None:
        while self._made:
            self._node.destroy_publisher(self._made.pop())

    def publish(self, report: StepReport, now_ns: int) -> None:
        _send(self._status, messages.status_message(report, self._policy, now_ns))
        _send(self._keyframe, messages.keyframe_message(report))
        _send(self._chunk, messages.chunk_message(report))
        for view in self._views:
            if self._saliency[view.name].get_subscription_count():
                saliency = messages.saliency_message(report, view, self._slices[view.name])
                _send(self._saliency[view.name], saliency)

    def publish_audit(self, audit: Audit, counts: AuditCounts) -> None:
        self._audit.publish(messages.audit_message(audit, counts))


class CommandPublishers:
    """Command topics. Lifecycle publishers: they are mute unless the node is active."""

    def __init__(self, node: LifecycleNode, sinks: Sequence[CommandSink]) -> None:
        self._node = node
        self._sinks: list[tuple[CommandSink, LifecyclePublisher]] = []
        self.sent = 0
        with undone_on_error(self.destroy):
            for sink in sinks:
                kind, topic = sink.message_type, sink.topic
                publisher = node.create_lifecycle_publisher(kind, topic, COMMAND_QOS)
                self._sinks.append((sink, publisher))

    def destroy(self) -> None:
        while self._sinks:
            _, publisher = self._sinks.pop()
            self._node.destroy_lifecycle_publisher(publisher)

    def send(self, command: JointCommand) -> None:
        """All messages are made before the first is sent, so that both arms move or none. If
        publishing one of them raises, some arms have theirs and the rest get none."""
        made = [(publisher, sink.build(command)) for sink, publisher in self._sinks]
        for publisher, message in made:
            publisher.publish(message)
        self.sent += 1

    def listeners(self) -> dict[str, int]:
        """Resolved topic -> number of subscriptions."""
        return {p.topic_name: p.get_subscription_count() for _, p in self._sinks}

    def rivals(self) -> dict[str, list[str]]:
        """Resolved topic -> other nodes that publish on it; empty when we are alone."""
        own = full_name(self._node.get_namespace(), self._node.get_name())
        found: dict[str, list[str]] = {}
        made = Counter(publisher.topic_name for _, publisher in self._sinks)
        for topic, n_own in made.items():
            others = publishers_of(self._node, topic)
            for _ in range(min(n_own, others.count(own))):
                others.remove(own)  # as many as we made: one more of the same name is a rival
            if others:
                found[topic] = others
        return found


def _send(publisher: Publisher, message: object | None) -> None:
    if message is not None:
        publisher.publish(message)

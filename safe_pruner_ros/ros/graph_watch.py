"""What no message tells: who else is on our topics. Asked of the ROS graph, from time to time.

A node that was killed stays in the graph until its lease ends (20 s with Fast DDS defaults), so
one that restarts may be seen twice for that long: the arms hold until it is seen once again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rclpy.lifecycle import LifecycleNode

from safe_pruner_ros.ros.inputs import Inputs
from safe_pruner_ros.runtime.codes import Code, Reason


class GraphWatch:
    """``views``: cameras whose pictures count. For the executor thread."""

    def __init__(self, node: LifecycleNode, inputs: Inputs, views: Collection[str]) -> None:
        self._node = node
        self._inputs = [
            source for source in inputs.sources if source.kind != 'camera' or source.name in views
        ]

    def look(self) -> tuple[Reason, ...]:
        """Why the arms must hold now."""
        return self.doubled_inputs()

    def doubled_inputs(self) -> tuple[Reason, ...]:
        """One reason for each camera or state source with more than one publisher.

        Pictures of two cameras under one name, or the zeros of a forgotten joint_state_publisher
        between the measured joints, pass every check of a single message.
        """
        found = []
        for kind, name, topic in self._inputs:
            # Counting is cheap; who it is only matters when there are too many.
            if self._node.count_publishers(topic) > 1:
                nodes = [
                    f'{info.node_namespace.rstrip("/")}/{info.node_name}'
                    for info in self._node.get_publishers_info_by_topic(topic)
                ]
                found.append(_doubled(kind, name, topic, nodes))
        return tuple(reason for reason in found if reason is not None)


def _doubled(kind: str, name: str, topic: str, nodes: Sequence[str]) -> Reason | None:
    if len(nodes) < 2:
        return None  # it left between the two questions
    return Reason(
        Code.INPUT_DOUBLED,
        f'{kind} {name!r}: {topic} has {len(nodes)} publishers ({", ".join(sorted(nodes))}), and '
        'nobody can tell whose messages are true; stop all but one, or give them topics of their '
        'own',
    )

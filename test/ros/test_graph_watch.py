"""How many publishers a topic may have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

from safe_pruner_ros.ros.graph_watch import GraphWatch
from safe_pruner_ros.ros.inputs import Source

SHARED = (
    Source('state source', 'left', '/joint_states'),
    Source('state source', 'right', '/joint_states'),
)


def doubled(sources: tuple[Source, ...], n_publishers: int) -> list[str]:
    drivers = [
        SimpleNamespace(node_namespace='/', node_name=f'driver_{k}') for k in range(n_publishers)
    ]
    node = SimpleNamespace(
        count_publishers=lambda topic: len(drivers),
        get_publishers_info_by_topic=lambda topic: drivers,
    )
    inputs = SimpleNamespace(sources=list(sources))
    watch = GraphWatch(node, None, inputs, ('head',), is_dry_run=True)
    return [str(reason) for reason in watch.doubled_inputs()]


def test_the_drivers_of_two_arms_may_share_a_topic() -> None:
    assert doubled(SHARED, 2) == []
    (text,) = doubled(SHARED, 3)
    assert "state source 'left' and state source 'right': /joint_states has 3" in text
    assert '/driver_0, /driver_1, /driver_2' in text and 'stop all but 2' in text


def test_a_source_of_its_own_has_one_publisher() -> None:
    assert doubled(SHARED[:1], 1) == []
    (text,) = doubled(SHARED[:1], 2)
    assert 'stop all but one' in text
    assert doubled((Source('camera', 'spare', '/spare'),), 2) == []  # not a view of the policy

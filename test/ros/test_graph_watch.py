"""How many publishers a topic may have."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

import rclpy
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from safe_pruner_ros.ros.command_sinks import CommandSink
from safe_pruner_ros.ros.graph_watch import GraphWatch
from safe_pruner_ros.ros.inputs import Source
from safe_pruner_ros.ros.publishers import CommandPublishers

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
        resolve_topic_name=lambda topic: topic,
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


# Left and right exchanged, and a chain: what is heard on /a is /b, and /b has been moved on.
REMAPPED = {'/left': '/right', '/right': '/left', '/a': '/b', '/b': '/c'}


@pytest.fixture
def nodes() -> Iterator[tuple[rclpy.lifecycle.LifecycleNode, rclpy.node.Node]]:
    """Ours, which is remapped, and another one, which is not."""
    contexts = [rclpy.Context(), rclpy.Context()]
    rules = [word for old, new in REMAPPED.items() for word in ('-r', f'{old}:={new}')]
    rclpy.init(args=['node', '--ros-args', *rules], context=contexts[0])
    rclpy.init(args=['node'], context=contexts[1])
    own = rclpy.lifecycle.LifecycleNode('watcher', context=contexts[0])
    other = rclpy.create_node('driver', namespace='/bench', context=contexts[1])
    yield own, other
    own.destroy_node()
    other.destroy_node()
    for context in contexts:
        rclpy.shutdown(context=context)
    gc.collect()  # the lifecycle state machine keeps the node's handle until it is collected


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.ros
@pytest.mark.parametrize('topic', ['/left', '/a', '/plain'])
def test_a_second_publisher_is_seen_under_any_remapping(nodes, topic) -> None:
    own, other = nodes
    heard = own.create_subscription(JointState, topic, lambda msg: None, 1).topic_name
    assert heard == REMAPPED.get(topic, topic)
    watch = GraphWatch(own, None, SimpleNamespace(sources=[Source('camera', 'left', heard)]),
                       ('left',), is_dry_run=True)  # fmt: skip
    for name in set(REMAPPED) | {heard}:  # one for each topic is right
        other.create_publisher(JointState, name, 1)
    wait_until(lambda: own.count_publishers(heard) == 1)
    assert watch.doubled_inputs() == ()
    other.create_publisher(JointState, heard, 1)
    names = '(/bench/driver, /bench/driver)'  # known a bit later than the count
    wait_until(lambda: any(names in reason.text for reason in watch.doubled_inputs()))


@pytest.mark.ros
@pytest.mark.parametrize('topic', ['/left', '/a', '/plain'])
def test_another_commander_is_seen_under_any_remapping(nodes, topic) -> None:
    own, other = nodes
    commands = CommandPublishers(own, [CommandSink('left', topic, JointTrajectory, None)])
    (sent_to,) = commands.listeners()
    assert sent_to == REMAPPED.get(topic, topic)
    wait_until(lambda: own.count_publishers(sent_to) == 1)
    assert commands.rivals() == {}
    other.create_publisher(JointTrajectory, sent_to, 1)
    wait_until(lambda: commands.rivals() == {sent_to: ['/bench/driver']})


def test_a_count_is_enough_where_nobody_tells_the_names() -> None:
    node = SimpleNamespace(
        count_publishers=lambda topic: 2,
        get_publishers_info_by_topic=lambda topic, no_mangle=False: [],
        resolve_topic_name=lambda topic: '/elsewhere',
    )
    inputs = SimpleNamespace(sources=[Source('camera', 'head', '/head')])
    (reason,) = GraphWatch(node, None, inputs, ('head',), is_dry_run=True).doubled_inputs()
    assert '/head has 2 publishers (unknown, unknown)' in reason.text

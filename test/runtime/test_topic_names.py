"""Topics: what the robot file may say is what ROS 2 takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safe_pruner_ros.runtime.config import ConfigError
from safe_pruner_ros.runtime.topic_names import check_topic

GOOD = (
    '/a', 'a', 'A1/b_2', '/_a', 'a__b', '~', '~/a', '~/{node}', '{node}/x', '/x{node}', '{node}1',
    '/{node}/b',
)  # fmt: skip
# Names in a namespace, and none, or one of two slashes, in the root.
NOT_EVERYWHERE = ('{ns}', '{ns}/camera', '{namespace}/camera', '/{ns}/camera')
BAD = (
    '', '/', '/a/', '1a', '/a/1b', '~/1', '/a-b', '/a b', '/a\n', '/é', 'a~', '/a/~', '~{node}',
    '{', '/a}', '{node', '{a b}', '{1x}', '1{node}', '{bad}', '{}', '//a', '/a//b',
)  # fmt: skip


@pytest.mark.parametrize('topic', GOOD)
def test_what_may_be_a_topic(topic):
    check_topic('topic', topic)


@pytest.mark.parametrize('topic', BAD + NOT_EVERYWHERE)
def test_what_may_not(topic):
    with pytest.raises(ConfigError, match=r"^sink 'left': topic .* is no name of a ROS 2 topic"):
        check_topic("sink 'left': topic", topic)


def ros_takes(topic, namespace):
    from rclpy.exceptions import InvalidTopicNameException
    from rclpy.expand_topic_name import expand_topic_name
    from rclpy.validate_full_topic_name import validate_full_topic_name

    try:
        validate_full_topic_name(expand_topic_name(topic, 'node', namespace))
    except (InvalidTopicNameException, ValueError):
        return False
    return True


@pytest.mark.ros
@pytest.mark.parametrize('topic', GOOD + BAD)
@pytest.mark.parametrize('namespace', ['/', '/ns'])
def test_ros_agrees(topic, namespace):
    assert ros_takes(topic, namespace) is (topic in GOOD)


@pytest.mark.ros
@pytest.mark.parametrize('topic', NOT_EVERYWHERE)
def test_ros_does_not_take_a_namespace_in_every_namespace(topic):
    assert not ros_takes(topic, '/')


@pytest.mark.parametrize(
    ('what', 'changes', 'words'),
    [
        ('cameras', {'topic': '/wrist/ima-ge'}, "camera 'wrist': topic '/wrist/ima-ge'"),
        ('cameras', {'name': 'wrist-left'}, "overlay topic, and '~/overlay/wrist-left'"),
        ('state_sources', {'topic': ''}, "state source 'right': topic ''"),
        ('sinks', {'topic': '/com mand'}, "sink 'right': topic '/com mand'"),
        ('sinks', {'name': 'arm-right'}, "preview topic, and '~/preview/arm-right'"),
    ],
)
def test_the_entry_is_named(kit, what, changes, words):
    first, second = getattr(kit.robot(), what)
    with pytest.raises(ConfigError, match=words):
        kit.robot(**{what: (first, replace(second, **changes))})


def test_the_instruction_topic_is_named(kit):
    with pytest.raises(ConfigError, match="instruction_topic '/in struction' is no"):
        kit.robot(instruction_topic='/in struction')

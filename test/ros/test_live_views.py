"""What people look at: overlays of the running node, and the layouts that name its topics."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.ros

CONFIG = Path(__file__).parents[2] / 'config'
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
# Not ours: robot_state_publisher's, which the launch file starts.
FOREIGN = {'/robot_description'}


def rviz_topics() -> Iterator[tuple[str, str]]:
    types = {'rviz_default_plugins/Image': IMAGE, 'rviz_default_plugins/RobotModel': ''}
    view = yaml.safe_load((CONFIG / 'pick_place.rviz').read_text())
    for display in view['Visualization Manager']['Displays']:
        for key in ('Topic', 'Description Topic'):
            if key in display:
                yield display[key]['Value'], types[display['Class']]


def foxglove_paths() -> Iterator[str]:
    for panel in json.loads((CONFIG / 'foxglove_layout.json').read_text())['configById'].values():
        yield from (path['value'] for path in panel.get('paths', []))
        for key in ('topicPath', 'topicToRender'):
            if key in panel:
                yield panel[key]
        if 'imageMode' in panel:
            yield panel['imageMode']['imageTopic']


def plotjuggler_paths() -> Iterator[str]:
    root = ET.parse(CONFIG / 'plotjuggler_layout.xml').getroot()
    yield from (curve.get('name', '') for curve in root.iter('curve'))
    for topics in root.iter('selected_topics'):
        yield from topics.get('value', '').split(';')


@pytest.fixture
def offered(bench) -> dict[str, list[str]]:
    """Topic -> types of the configured node on the simulated robot, as others see them."""
    from safe_pruner_ros.ros.resources import config_file
    from safe_pruner_ros.runtime.config_yaml import load_config

    robot = load_config(config_file('robots', 'sim')).robot
    bench.policy.views = tuple(camera.name for camera in robot.cameras)
    bench.policy.joint_names = robot.layout.names
    bench.start(robot_file='sim')
    assert bench.robot.configure()
    topics: dict[str, list[str]] = {}

    def seen() -> bool:
        topics.update(bench.robot.node.get_topic_names_and_types())
        return '/safe_pruner/overlay/right_wrist/compressed' in topics

    bench.wait_for(seen, 5.0, lambda: f'the topics of the node in {sorted(topics)}')
    return topics


def has_field(message_type: str, field: str) -> bool:
    package, _, name = message_type.split('/')
    message = getattr(importlib.import_module(f'{package}.msg'), name)
    return field in message.get_fields_and_field_types()


def test_layouts_name_topics_and_fields_that_exist(offered) -> None:
    wrong = [
        (topic, kind)
        for topic, kind in rviz_topics()
        if topic not in FOREIGN and kind not in offered.get(topic, [])
    ]
    for path in {*foxglove_paths(), *plotjuggler_paths()}:
        # Foxglove separates the field by a dot, PlotJuggler by a slash.
        found = [t for t in offered if re.fullmatch(re.escape(t) + r'([./]\w+)?', path)]
        topic = max(found, key=len, default='')
        field = path[len(topic) + 1 :]
        if not topic or (field and not has_field(offered[topic][0], field)):
            wrong.append((path, ''))
    assert not wrong
    assert len(list(foxglove_paths())) > 10 and len(list(plotjuggler_paths())) > 10


def test_overlays_come_raw_and_compressed_with_the_stamp_of_their_picture(bench) -> None:
    from sensor_msgs.msg import CompressedImage

    robot = bench.robot
    coded: list[CompressedImage] = []
    robot.node.create_subscription(
        CompressedImage, '/safe_pruner/overlay/head/compressed', coded.append, 10
    )
    bench.run()
    bench.wait_for(lambda: len(coded) >= 4, 8.0, 'compressed overlays')
    raw = robot.received['/safe_pruner/overlay/head']
    bench.wait_for(lambda: len(raw) >= 4, 5.0, 'raw overlays')
    stamps = {image.stamp_ns for o in bench.policy.observations for image in o.images.values()}
    for message in (*raw, *coded):
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec in stamps
    picture = np.frombuffer(bytes(raw[-1].data), np.uint8).reshape(
        raw[-1].height, raw[-1].width, 3
    )
    assert raw[-1].width >= 320 and raw[-1].height > raw[-1].width  # a caption below
    assert picture[-1].max() < 40 and picture[raw[-1].width :].max() > 180


def test_only_what_somebody_looks_at_is_drawn(bench, monkeypatch) -> None:
    from safe_pruner_ros.ros.overlay_publisher import OverlayPublishers

    drawn: list[str] = []
    draw = OverlayPublishers._draw

    def spy(publishers, report, trace, view):
        drawn.append(view.name)
        return draw(publishers, report, trace, view)

    monkeypatch.setattr(OverlayPublishers, '_draw', spy)
    bench.run()
    bench.wait_for(lambda: len(drawn) >= 4, 8.0, 'overlays')
    assert set(drawn) == {'head'}  # nobody subscribes to that of the wrist


def test_a_picture_that_cannot_be_drawn_stops_no_arm(bench, monkeypatch) -> None:
    from safe_pruner_ros.ros import overlay_publisher

    def fails(*rest: object) -> None:
        raise ValueError('no ink')

    monkeypatch.setattr(overlay_publisher, 'overlay', fails)
    robot = bench.run()
    bench.wait_for(
        lambda: 'no ink' in robot.diagnostics.get('safe_pruner: node', (0, '', {}))[1],
        8.0,
        'the failure in diagnostics',
    )
    sent = robot.sent()
    bench.wait_for(lambda: robot.sent() > sent + 20, 3.0, 'commands')
    assert robot.state() == 'RUN'

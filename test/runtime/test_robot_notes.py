"""What preflight and the log say of a robot file that is allowed and rarely right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safe_pruner_ros.runtime.config import RobotConfig
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.runtime.robot_notes import robot_notes

ROBOTS = Path(__file__).parents[2] / 'config' / 'robots'


def shipped(name: str) -> RobotConfig:
    return load_config(ROBOTS / f'{name}.yaml').robot


@pytest.mark.parametrize('name', ['aloha', 'astribot_s1'])
def test_nothing_is_to_be_said_of_the_real_robots(name: str) -> None:
    assert list(robot_notes(shipped(name))) == []


def test_a_copy_of_the_simulators_file_says_what_it_allows() -> None:
    (note,) = robot_notes(shipped('sim'))
    assert 'simulated: true' in note and 'shipped weights' in note


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'scale': -1.0}, 'read with scale -1, offset 0 and commanded with scale 1, offset 0'),
        ({'offset': 0.5}, 'read with scale 1, offset 0.5 and commanded with scale 1, offset 0'),
    ],
)
def test_a_joint_that_is_commanded_otherwise_than_it_is_read(change, text) -> None:
    """The guard compares in our units: of the two conversions it sees neither."""
    robot = shipped('aloha')
    source = robot.state_sources[0]
    mapping = replace(source.joints[1], **change)
    changed = replace(source, joints=(source.joints[0], mapping, *source.joints[2:]))
    (note,) = robot_notes(replace(robot, state_sources=(changed, *robot.state_sources[1:])))
    assert text in note and repr(mapping.joint) in note and 'jump' in note

"""The shipped files load, agree with the simulator and the policy, and are careful by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.runtime.config import ConfigError
from safe_pruner_ros.runtime.config_runtime import check_action_age
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.sim import robot as sim_robot
from safe_pruner_ros.sim.scene import VIEWS

CONFIG = Path(__file__).parents[2] / 'config'
POLICY = CONFIG / 'policies' / 'embedded.yaml'
ROBOTS = sorted((CONFIG / 'robots').glob('*.yaml'))


@pytest.mark.parametrize('path', ROBOTS, ids=lambda path: path.stem)
def test_loads_with_the_policy(path):
    config = load_config(path, POLICY)
    assert config.robot.name == path.stem
    assert config.robot.dry_run is (path.stem != 'sim')
    assert [camera.name for camera in config.robot.cameras] == list(VIEWS)
    assert config.pruner.method == 'diverse_forecast'
    assert config.pruner.retention_ratio == 0.25


@pytest.mark.parametrize('path', sorted(POLICY.parent.glob('*.yaml')), ids=lambda path: path.stem)
def test_shipped_policies_execute_what_is_young_enough_to_be_sent(path):
    config = load_config(CONFIG / 'robots' / 'sim.yaml', path)
    deployment = config.policy.deployment
    horizon = deployment.execution_horizon or deployment.chunk_size or 1  # OpenVLA has one action
    period_s = deployment.period_s
    if config.policy.name == 'embedded':
        spec = build_policy('embedded', 'unpruned', {}).spec
        horizon, period_s = spec.execution_horizon, spec.period_s
    check_action_age(path.stem, horizon, period_s, config.runtime.actions)


def test_sim_file_is_the_simulator():
    robot = load_config(CONFIG / 'robots' / 'sim.yaml').robot
    layout = sim_robot.joint_layout()
    assert robot.layout == layout  # names, order, kinds, limits and speeds
    # One command may use the whole speed of the joint, and little more.
    steps = np.array([joint.max_step for joint in robot.joints])
    assert (steps >= layout.max_velocity * 0.02 - 1e-12).all()
    for view in VIEWS[1:]:
        side = view.removesuffix('_wrist')
        assert robot.camera(view).moving_joints == sim_robot.arm_joint_names(side)


def test_s1_file_has_the_same_joints_and_narrow_limits():
    robot = load_config(CONFIG / 'robots' / 'astribot_s1.yaml').robot
    layout = sim_robot.joint_layout()
    assert robot.layout.names == layout.names
    assert robot.layout.lower.tolist() == layout.lower.tolist()
    assert robot.layout.upper.tolist() == layout.upper.tolist()
    assert {camera.transport for camera in robot.cameras} == {'compressed'}
    for sink in robot.sinks:
        assert sink.adapter == 'astribot_controller'
        expected = [f'astribot_{sink.name}_joint_{n}' for n in range(1, 8)]
        if sink.name.startswith('gripper'):
            expected = [f'astribot_{sink.name}_joint_L1']
            assert sink.joints[0].to_robot(1.0) == 100.0
        assert [mapping.robot_name for mapping in sink.joints] == expected


def test_aloha_is_fourteen_with_grippers():
    robot = load_config(CONFIG / 'robots' / 'aloha.yaml').robot
    assert len(robot.joints) == 14
    assert np.flatnonzero(robot.layout.is_gripper).tolist() == [6, 13]
    grip = robot.sinks[1].joints[0]
    assert grip.to_robot(0.0) == pytest.approx(0.058)
    assert grip.to_robot(1.0) == pytest.approx(0.01844)


@pytest.mark.parametrize(
    ('right', 'words'),
    [
        ('/follower_right/joint_states', r"'follower_left' and 'follower_right'.*'waist'"),
        ('/follower_right/arm_controller', r"'arm_left' and 'arm_right'.*'waist'"),
        ('/cam_right_wrist/camera', r"'left_wrist' and 'right_wrist' have the same topic"),
    ],
)
def test_an_entry_that_was_copied_with_the_topic_of_the_other_arm(tmp_path, right, words):
    text = (CONFIG / 'robots' / 'aloha.yaml').read_text()
    assert right in text
    (tmp_path / 'aloha.yaml').write_text(text.replace(right, right.replace('right', 'left')))
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / 'aloha.yaml')

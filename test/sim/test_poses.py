"""Posed scenes: what the vision tower's pictures show."""

from __future__ import annotations

import numpy as np
import pytest

from safe_pruner_ros.sim.cameras import LID
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.poses import HEIGHT_RANGE_M, random_arms
from safe_pruner_ros.sim.scene import TABLE_TOP_M
from safe_pruner_ros.sim.tasks.task import contains
from safe_pruner_ros.training.pictures import pose_scene


@pytest.fixture(scope='module')
def env():
    with DualArmEnv(image_height=64, image_width=64) as env:
        yield env


def test_hands_are_above_the_table_and_joints_within_limits(env):
    heights = []
    for seed in range(20):
        env.reset(seed)
        arms = random_arms(env, np.random.default_rng(seed))
        assert (arms >= env.layout.lower).all() and (arms <= env.layout.upper).all()
        env.place_arms(arms)
        np.testing.assert_allclose(env.state().positions, arms, atol=1e-9)
        heights.extend(env.hand_positions()[:, 2] - TABLE_TOP_M)
    assert min(heights) > 0.5 * HEIGHT_RANGE_M[0]
    assert np.median(heights) < HEIGHT_RANGE_M[1]


def test_both_fingers_move_together(env):
    env.reset(0)
    arms = env.state().positions
    arms[[7, 15]] = 0.8
    env.place_arms(arms)
    assert env.state().positions[7] == pytest.approx(0.8)
    joints = [f'astribot_gripper_left_joint_{finger}1' for finger in 'LR']
    left, right = (env._data.joint(name).qpos[0] for name in joints)
    assert left == pytest.approx(right)


def test_posed_scenes_show_every_state_of_the_box():
    """Lids at any angle, and things in the box, also when the seed's own scene has neither."""
    with DualArmEnv('pack_doll', image_height=64, image_width=64) as env:
        lids, inside = [], 0
        for seed in range(40):
            pose_scene(env, seed)
            world = env.world()
            lids.append(world.lid_rad)
            inside += any(contains(world, i) for i in range(len(env.objects)))
            shown = (env.segmentation('head') == LID).sum()
            assert shown > 0 or world.lid_rad > 1.0, 'only a lid on edge can hide'
    assert min(lids) < 0.3 and max(lids) > 1.6 and np.std(lids) > 0.35
    assert 3 <= inside <= 12


def test_a_posed_scene_depends_on_its_seed_alone(env):
    pictures = []
    for seed in (3, 4, 3):
        pose_scene(env, seed)
        pictures.append(env.render('left_wrist'))
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert (pictures[0] != pictures[1]).any()

"""DualArmEnv: joints, determinism, input checks, task judgement."""

from __future__ import annotations

import subprocess
import sys

import mujoco
import numpy as np
import pytest

from safe_pruner_ros.sim.env import DualArmEnv, home_positions
from safe_pruner_ros.sim.scene import N_SLOTS, TABLE_TOP_M

S1_LEFT = ((-3, 3), (-1.4, 0.4), (-3, 1.4), (0, 2.4), (-2, 2), (-0.6, 0.6), (-1.4, 1.4))
S1_RIGHT = (*S1_LEFT[:2], (-1.4, 3), *S1_LEFT[3:])
FINGERPRINT = """
import hashlib
import numpy as np
from safe_pruner_ros.sim.env import DualArmEnv, home_positions
with DualArmEnv(image_height=64, image_width=64) as env:
    env.reset(11)
    for tick in range(25):
        env.step(home_positions() + 0.02 * tick)
    digest = hashlib.sha256(env.save_state().physics.tobytes())
    for view in env.views:
        digest.update(env.render(view).tobytes())
    print(digest.hexdigest())
"""


@pytest.fixture(scope='module')
def env():
    with DualArmEnv(image_height=96, image_width=96) as env:
        yield env


def test_joint_names_and_limits_are_those_of_the_s1(env):
    arms = {'left': S1_LEFT, 'right': S1_RIGHT}
    names, limits = [], []
    for side, table in arms.items():
        names += [f'astribot_arm_{side}_joint_{n}' for n in range(1, 8)]
        names.append(f'astribot_gripper_{side}_joint_L1')
        limits += [*table, (0, 1)]
    assert env.layout.names == tuple(names)
    np.testing.assert_array_equal(np.stack([env.layout.lower, env.layout.upper], 1), limits)
    for name, limit in zip(names, limits, strict=True):
        if 'gripper' not in name:
            np.testing.assert_array_equal(env._model.joint(name).range, limit)


def test_home_is_mirror_symmetric(env):
    env.reset(0)
    for _ in range(60):
        env.step(home_positions())
    left, right = env.world().hands
    np.testing.assert_allclose(left * (1, -1, 1), right, atol=1e-3)


def test_two_environments_agree_bit_for_bit(env):
    with DualArmEnv(image_height=96, image_width=96) as other:
        env.reset(123)  # a different history must not show
        for _ in range(7):
            env.step(home_positions() + 0.3)
        for each in (env, other):
            each.reset(5)
            for tick in range(30):
                each.step(home_positions() + 0.01 * tick)
        assert env.instruction == other.instruction
        np.testing.assert_array_equal(env.save_state().physics, other.save_state().physics)
        for view in env.views:
            np.testing.assert_array_equal(env.render(view), other.render(view))
            np.testing.assert_array_equal(env.segmentation(view), other.segmentation(view))


def test_two_processes_agree_bit_for_bit():
    runs = {
        subprocess.run(
            [sys.executable, '-c', FINGERPRINT], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_a_target_override_leaves_the_scene_alone(env):
    env.reset(9)
    drawn, images = env.target_index, [env.render(view) for view in env.views]
    sentences = set()
    for target in range(N_SLOTS):
        env.reset(9, target=target)
        assert env.target_index == target
        assert env.objects[target].name in env.instruction
        sentences.add(env.instruction)
        for view, image in zip(env.views, images, strict=True):
            np.testing.assert_array_equal(env.render(view), image)
    assert len(sentences) == N_SLOTS
    env.reset(9)
    assert env.target_index == drawn


def test_restored_state_goes_on_as_before(env):
    env.reset(2)
    for _ in range(10):
        env.step(home_positions() + 0.1)
    saved = env.save_state()
    ends = []
    for _ in range(2):
        env.restore_state(saved)
        for _ in range(20):
            env.step(home_positions() - 0.1)
        ends.append((env.save_state().physics, env.render('head'), env.time_ns))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    np.testing.assert_array_equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2] == 30 * 20_000_000


@pytest.mark.parametrize(
    'bad', [np.full(16, np.nan), np.r_[np.zeros(15), np.inf], np.zeros(14), np.zeros((1, 16))]
)
def test_bad_targets_are_refused_and_nothing_moves(env, bad):
    env.reset(1)
    before = env.save_state()
    with pytest.raises(ValueError, match='positions must be'):
        env.step(bad)
    np.testing.assert_array_equal(before.physics, env.save_state().physics)


def test_targets_beyond_limits_are_clipped_and_speed_is_limited(env):
    env.reset(1)
    start = env.state().positions
    env.step(np.full(16, 100.0))
    moved = np.abs(env.save_state().command - start)
    assert (moved <= env.layout.max_velocity * env.control_period_s + 1e-3).all()
    for _ in range(200):
        env.step(np.full(16, 100.0))
    assert (env.save_state().command <= env.layout.upper).all()
    assert (env.state().positions <= env.layout.upper).all()


def test_scenes_hold_a_distractor_of_the_same_colour_and_one_of_the_same_shape(env):
    templates = set()
    for seed in range(40):
        env.reset(seed)
        target = env.objects[env.target_index]
        others = [o for o in env.objects if o is not target]
        assert len({o.name for o in env.objects}) == N_SLOTS
        assert any(o.colour == target.colour for o in others)
        assert any(o.shape == target.shape for o in others)
        places = np.array([(o.x_m, o.y_m) for o in env.objects])
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(N_SLOTS)
        assert gaps.min() >= 0.09
        assert len(env.instruction.split()) <= 11
        assert env.instruction == env.instruction.lower()
        templates.add(env.instruction.replace(target.name, '{}'))
        assert not env.success
        assert env.stage == 'reach'
    assert len(templates) == 6


def test_success_needs_the_target_and_only_the_target_in_the_tray(env):
    env.reset(3)
    target, other = env.target_index, (env.target_index + 1) % N_SLOTS
    tray = env.world().receptacle_position
    start = env.object_position(target)
    assert not env.success

    env.place_object(other, tray + np.array([0.04, 0.04, 0.035]))
    settle(env)
    assert not env.success

    env.place_object(target, tray + np.array([-0.04, -0.04, 0.035]))
    settle(env)
    assert not env.success  # the other one is still in there

    env.place_object(other, start)
    settle(env)
    assert env.success
    assert env.stage == 'done'

    env.place_object(target, tray + np.array([0, 0, 0.15]))
    assert not env.success  # above the tray is not in it


def settle(env):
    for _ in range(25):
        env.step(home_positions())


def test_segmentation_labels_match_what_is_there(env):
    env.reset(4)
    labels = env.segmentation('head')
    assert labels.shape == (96, 96)
    assert set(np.unique(labels)) <= {-3, -2, -1, *range(N_SLOTS)}
    assert {-3, -2, -1} <= set(np.unique(labels))
    image = env.render('head').astype(int)
    for index, item in enumerate(env.objects):
        if item.colour in ('red', 'blue') and (labels == index).sum() > 5:
            pixel = image[labels == index].mean(axis=0)
            assert np.argmax(pixel) == {'red': 0, 'blue': 2}[item.colour]


def test_objects_are_free_bodies(env):
    """Nothing but contact can connect a hand and an object."""
    model = env._model
    assert model.neq == 2
    assert (model.eq_type == mujoco.mjtEq.mjEQ_JOINT).all()
    for index in range(N_SLOTS):
        body = model.body(f'object_{index}')
        assert model.body_parentid[body.id] == 0
        assert model.jnt_type[body.jntadr[0]] == mujoco.mjtJoint.mjJNT_FREE
    env.reset(0)
    assert all(env.object_position(i)[2] > TABLE_TOP_M for i in range(N_SLOTS))


def test_unknown_names_are_explained(env):
    with pytest.raises(ValueError, match='unknown task'):
        DualArmEnv(task='fold_shirt')
    with pytest.raises(ValueError, match='target must be'):
        env.reset(0, target=7)
    with pytest.raises(ValueError, match='unknown view'):
        env.render('torso')

"""ScriptedExpert: solves scenes, recovers, changes its mind, holds by friction."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.expert import ScriptedExpert
from safe_pruner_ros.sim.rollouts import execute, run_expert
from safe_pruner_ros.sim.scene import TABLE_TOP_M


@pytest.fixture(scope='module')
def env():
    with DualArmEnv(image_height=64, image_width=64) as env:
        yield env


def drive(env, expert, target, until, max_chunks=40):
    """Let the expert act for ``target`` until ``until()``; False when it never came."""
    command = env.state().positions
    for _ in range(max_chunks):
        for row in expert.chunk(target)[:4]:
            execute(env, command, row)
            command = row
            if until():
                return True
    return False


@pytest.mark.parametrize('period_s', [0.2, 0.012])
def test_ticks_that_do_not_fill_a_waypoint_are_refused(period_s):
    env = SimpleNamespace(control_period_s=period_s)  # nothing else is touched
    with pytest.raises(ValueError, match=f'must divide the 0.1 s .* got {period_s}'):
        execute(env, np.zeros(16), np.ones(16))
    with pytest.raises(ValueError, match=f'must divide the 0.1 s .* got {period_s}'):
        run_expert(env, 0)


def test_solves_fresh_scenes(env):
    episodes = [run_expert(env, seed) for seed in range(20_000, 20_020)]
    assert [e.seed for e in episodes if not e.success] == []
    assert np.mean([e.n_steps for e in episodes]) < 60


def test_solves_scenes_under_noise(env):
    episodes = [run_expert(env, seed, noise_rad=0.04) for seed in range(21_000, 21_010)]
    assert sum(e.success for e in episodes) >= 9


def test_chunks_are_smooth_within_limits_and_repeatable(env):
    expert = ScriptedExpert(env)
    env.reset(8)
    chunk = expert.chunk(env.target_index)
    assert chunk.shape == (8, 16)
    assert chunk.dtype == np.float64
    np.testing.assert_array_equal(chunk, expert.chunk(env.target_index))
    np.testing.assert_array_equal(chunk, ScriptedExpert(env).chunk(env.target_index))
    assert (chunk >= env.layout.lower).all()
    assert (chunk <= env.layout.upper).all()
    arms = ~env.layout.is_gripper
    path = np.vstack([env.state().positions, chunk])[:, arms]
    assert np.abs(np.diff(path, axis=0)).max() < 1.2 * 0.13


def test_asking_does_not_move_anything(env):
    expert = ScriptedExpert(env)
    env.reset(8)
    before = env.save_state().physics
    for target in range(4):
        expert.chunk(target)
        expert.phase(target)
    np.testing.assert_array_equal(before, env.save_state().physics)


def test_the_near_arm_acts_and_the_other_stays_home(env):
    expert = ScriptedExpert(env)
    sides = set()
    for seed in range(6):
        env.reset(seed)
        home = env.world().hands
        target = env.target_index
        near = 0 if env.object_position(target)[1] > 0 else 1
        sides.add(near)
        assert drive(env, expert, target, lambda: env.stage == 'lift')
        world = env.world()
        assert world.gripped[near, target]
        assert np.linalg.norm(world.hands[1 - near] - home[1 - near]) < 0.06
    assert sides == {0, 1}


def test_each_object_of_a_scene_can_be_asked_for(env):
    for target in range(4):
        assert run_expert(env, seed=31, target=target).success


def test_a_change_of_target_puts_the_wrong_object_back(env):
    expert = ScriptedExpert(env)
    env.reset(12)
    wrong = (env.target_index + 1) % 4
    assert drive(env, expert, wrong, lambda: env.world().positions[wrong, 2] > TABLE_TOP_M + 0.07)
    assert expert.phase(env.target_index) in ('give_back', 'above')
    assert drive(env, expert, env.target_index, lambda: env.success)


def test_a_held_object_survives_two_seconds_without_commands(env):
    expert = ScriptedExpert(env)
    for seed in (0, 1, 2, 3):
        env.reset(seed)
        target = env.target_index
        assert drive(env, expert, target, lambda: env.stage == 'carry')
        hold = env.save_state().command
        height = env.object_position(target)[2]
        for _ in range(100):
            env.step(hold)
        assert env.world().gripped[:, target].any()
        assert env.object_position(target)[2] > height - 0.01


def test_only_the_grip_holds_an_object_up(env):
    expert = ScriptedExpert(env)
    env.reset(1)
    target = env.target_index
    assert drive(env, expert, target, lambda: env.stage == 'carry')
    opened = np.where(env.layout.is_gripper, 0.0, env.save_state().command)
    for _ in range(40):
        env.step(opened)
    assert not env.world().gripped[:, target].any()
    assert env.object_position(target)[2] < TABLE_TOP_M + 0.05

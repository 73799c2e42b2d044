"""What is recorded of an episode, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.expert import ScriptedExpert
from safe_pruner_ros.sim.tasks.task import has_fallen
from safe_pruner_ros.training.demonstrations import expert_episode, policy_episode, record_frame


@pytest.fixture(scope='module')
def env():
    with DualArmEnv('pack_doll', image_height=64, image_width=64) as env:
        yield env


def _drop(env, index):
    env.place_object(index, np.array([2.0, 2.0, -50.0]))


def test_a_frame_says_where_everything_is(env):
    env.reset(3)
    env.place_lid(0.7)
    expert = ScriptedExpert(env)
    frame = record_frame(env, expert, expert.chunk(env.target_index))
    np.testing.assert_allclose(frame.receptacle, [*env.scene.receptacle_xy, 0.7], atol=1e-6)
    assert frame.labels[0].object_index == env.target_index
    assert {label.object_index for label in frame.labels} == {0, 1, 2, 3}


def test_what_has_fallen_off_the_table_is_not_asked_for(env):
    env.reset(3)
    fallen = (env.target_index + 1) % 4
    _drop(env, fallen)
    expert = ScriptedExpert(env)
    frame = record_frame(env, expert, expert.chunk(env.target_index))
    assert fallen not in {label.object_index for label in frame.labels}
    assert np.abs(frame.object_positions).max() < 2


def test_an_episode_that_the_expert_fails_is_no_demonstration(env, monkeypatch):
    assert len(expert_episode(env, 3, 0.0, stride=8)) > 8
    place = env.place_object

    def fall(self, seed, target=None, reset=DualArmEnv.reset):
        reset(self, seed, target)
        place(self.target_index, np.array([2.0, 2.0, -50.0]))

    monkeypatch.setattr(DualArmEnv, 'reset', fall)
    assert expert_episode(env, 3, 0.0, stride=80) == []


def test_a_policy_gets_the_time_of_its_task(env):
    stay = np.tile(env.state().positions, (8, 1))
    frames = policy_episode(env, 3, lambda env: stay, horizon=8)
    assert len(frames) == 240 / 8
    acted = []

    def act(env):
        acted.append(1)
        _drop(env, env.target_index)
        return stay

    assert len(policy_episode(env, 3, act, horizon=8)) == len(acted) == 1
    assert has_fallen(env.world(), env.target_index)


def test_an_episode_ends_where_the_expert_has_no_label(env):
    stay = np.tile(env.state().positions, (8, 1))

    def act(env):
        other = (env.target_index + 1) % 4
        env.place_object(other, env.world().receptacle_position + np.array([0.0, 0.0, 0.03]))
        return stay

    assert len(policy_episode(env, 3, act, horizon=8)) == 1

"""What a closed-loop episode executes and counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from safe_pruner_ros.evaluation.rollout import RolloutSettings, run_episode
from safe_pruner_ros.policies.policy import PolicyOutput, PolicySpec, PruningTrace, ViewSpec
from safe_pruner_ros.types import ActionChunk, Observation


def ramp(observation: Observation, step: int) -> np.ndarray:
    """Rows (g, a): 'a' rises by 0.1 a row from where it was seen."""
    (start,) = observation.state.ordered(['a'])
    rises = start + 0.1 * np.arange(1, 9)
    return np.stack([np.zeros(8), rises], axis=1)


def test_waypoints_are_interpolated_and_mapped_by_name(env, make_policy) -> None:
    result = run_episode(make_policy(ramp), env, 7, settings=RolloutSettings(max_policy_steps=2))
    moved = np.array(env.commands)
    assert len(moved) == 2 * 4 * 5  # policy steps x execution horizon x ticks a period
    np.testing.assert_allclose(moved[:, 0], 0.5 + 0.02 * np.arange(1, 41))  # no jump at the seam
    np.testing.assert_array_equal(moved[:, 1], 0)
    assert env.resets == [(7, None)]
    assert result.policy_steps == 2 and not result.success and result.stage == 'reach'
    assert result.duration_s == pytest.approx(0.8)


def test_observation_names_what_was_measured(env, make_policy) -> None:
    policy = make_policy(ramp)
    run_episode(policy, env, 0, asked_object=1, settings=RolloutSettings(max_policy_steps=2))
    first, second = policy.seen
    assert first.instruction == 'put object 1 in the tray'
    np.testing.assert_allclose(first.state.ordered(policy.spec.joint_names), [0.0, 0.5])  # (g, a)
    assert list(first.images) == ['head']
    assert second.stamp_ns == 400_000_000 and second.images['head'].rgb[0, 0, 0] == 20
    assert policy.resets == 1


def test_matches_the_execution_of_the_demonstrations(env, make_policy) -> None:
    from safe_pruner_ros.sim.rollouts import execute

    def uneven(observation: Observation, step: int) -> np.ndarray:
        return np.random.default_rng(step).random((8, 2))

    policy = make_policy(uneven)
    run_episode(policy, env, 0, settings=RolloutSettings(max_policy_steps=3))
    executed = np.array(env.commands)
    env.reset(0)
    command = env.state().positions
    for step in range(3):
        waypoints = uneven(policy.seen[step], step)[:4, ::-1]
        for waypoint in waypoints:
            execute(env, command, waypoint)
            command = waypoint
    np.testing.assert_allclose(executed, np.array(env.commands), atol=1e-12)


def test_stops_at_the_waypoint_of_success(make_env, make_policy) -> None:
    env = make_env(goal=0.5 + 0.6)
    result = run_episode(make_policy(ramp), env, 0)
    assert result.success and result.stage == 'done' and result.stages == ('reach', 'done')
    assert result.policy_steps == 2 and len(env.commands) == 6 * 5


def test_counts_key_timesteps_in_every_mean(env, make_policy) -> None:
    settings = RolloutSettings(max_policy_steps=4)
    result = run_episode(make_policy(ramp), env, 0, settings=settings, macs=lambda trace: 2.0)
    assert result.keyframes == 2 and result.keyframe_steps == (0, 3)
    assert result.keyframe_reasons == ('first step', 'first step')
    assert result.retained_tokens_mean == pytest.approx((10 + 3 + 3 + 10) / 4)
    assert result.pruning_ratio_mean == pytest.approx(0.35)
    assert result.latency_ms_p50 == 11.5 and result.macs_mean == 2.0


def test_latency_of_key_timesteps_is_told_apart(env, make_policy) -> None:
    policy = make_policy(ramp)
    predict, slow = policy.predict, {0: 90.0, 3: 110.0}  # key timesteps take long, as they do

    def timed(observation: Observation) -> PolicyOutput:
        step = policy.step
        return replace(predict(observation), latency_ms={'total': slow.get(step, 10.0 + step)})

    policy.predict = timed
    result = run_episode(policy, env, 0, settings=RolloutSettings(max_policy_steps=4))
    assert result.latency_ms_mean == pytest.approx((90 + 11 + 12 + 110) / 4)
    assert (result.latency_ms_key_p50, result.latency_ms_pruned_p50) == (100.0, 11.5)
    assert result.latency_ms_p50 == 51.0
    short = run_episode(policy, env, 0, settings=RolloutSettings(max_policy_steps=1))
    assert short.latency_ms_key_p50 == 90.0 and np.isnan(short.latency_ms_pruned_p50)


def test_latency_lets_the_old_chunk_go_on_and_skips_late_actions(env, make_policy) -> None:
    def absolute(observation: Observation, step: int) -> np.ndarray:
        # joint a should follow its clock: 0.5 at t = 0, rising by one a second
        times = observation.stamp_ns * 1e-9 + 0.1 * np.arange(1, 9)
        return np.stack([np.zeros(8), 0.5 + times], axis=1)

    settings = RolloutSettings(max_policy_steps=3, latency_ticks=7)
    run_episode(make_policy(absolute), env, 0, settings=settings)
    moved = np.array(env.commands)[:, 0]
    np.testing.assert_allclose(moved[:7], 0.5)  # nothing to execute yet
    # Late by 7 ticks = 140 ms: the row due at 100 ms is skipped, the one due at 200 ms is met.
    np.testing.assert_allclose(moved[9:], 0.5 + 0.02 * np.arange(10, 61))


def test_a_policy_that_raises_fails_the_episode(env, make_policy) -> None:
    def breaks(observation: Observation, step: int) -> np.ndarray:
        if step == 2:
            raise RuntimeError('out of ideas')
        return ramp(observation, step)

    result = run_episode(make_policy(breaks), env, 0)
    assert not result.success and result.error == 'RuntimeError: out of ideas'
    assert result.policy_steps == 2 and len(env.commands) == 40


def test_nan_is_never_executed(env, make_policy) -> None:
    result = run_episode(make_policy(lambda o, s: np.full((8, 2), np.nan)), env, 0)
    assert 'NaN' in result.error and not env.commands
    assert np.isnan(result.retained_tokens_mean) and np.isnan(result.latency_ms_p50)


def test_refuses_what_cannot_work(env, make_policy) -> None:
    with pytest.raises(ValueError, match='execution_horizon'):
        run_episode(make_policy(ramp), env, 0, settings=RolloutSettings(execution_horizon=9))
    with pytest.raises(ValueError, match='latency_ticks must be below 20'):
        run_episode(make_policy(ramp), env, 0, settings=RolloutSettings(latency_ticks=20))
    with pytest.raises(ValueError, match='max_policy_steps'):
        RolloutSettings(max_policy_steps=0)
    policy = make_policy(ramp)
    policy.spec = PolicySpec('odd', (), ('g', 'b'), 8, 0.1, 4)
    with pytest.raises(ValueError, match="'b'"):
        run_episode(policy, env, 0)


class ExpertPolicy:
    """The scripted expert behind the policy protocol: it looks at the world, not at pictures."""

    def __init__(self, env) -> None:
        from safe_pruner_ros.sim.expert import ScriptedExpert

        self._env, self._expert = env, ScriptedExpert(env)
        view = ViewSpec('head', 64, 64, 2, 2)
        self.spec = PolicySpec('expert', (view,), env.layout.names, 8, 0.1, 4)

    def check_instruction(self, instruction: str) -> None: ...

    def force_keyframe(self) -> None: ...

    def forget_plans(self) -> None: ...

    def reset(self) -> None: ...

    def predict(self, observation: Observation) -> PolicyOutput:
        rows = self._expert.chunk(self._env.target_index)
        assert observation.images['head'].rgb.shape == (64, 64, 3)
        chunk = ActionChunk(rows, self.spec.joint_names, observation.stamp_ns, round(1e8))
        trace = PruningTrace(
            'unpruned', 1.0, 4, np.arange(4), False, '', float('nan'), float('nan'), 0
        )
        return PolicyOutput(chunk, trace, {'total': 1.0})


def test_expert_solves_the_real_robot() -> None:
    from safe_pruner_ros.sim.env import DualArmEnv

    with DualArmEnv(image_height=64, image_width=64) as env:
        result = run_episode(ExpertPolicy(env), env, seed=500_000)
    assert result.success, result
    assert result.stages[0] == 'reach' and result.stages[-1] == 'done'
    assert result.policy_steps <= 15


def test_an_episode_may_take_the_time_of_its_task(env, make_policy):
    assert run_episode(make_policy(ramp), env, 0).policy_steps == 5  # 2 s in steps of 4 x 0.1 s
    settings = RolloutSettings(execution_horizon=3)
    assert run_episode(make_policy(ramp), env, 0, settings=settings).policy_steps == 7


def test_subtasks_are_asked_before_every_policy_step(env, make_policy):
    times = []

    def subtask():
        times.append(env.time_ns)
        return 'pick' if len(times) < 3 else 'place'

    result = run_episode(make_policy(ramp), env, 0, subtask=subtask)
    assert result.subtasks == ('pick', 'pick', 'place', 'place', 'place')
    assert len(result.subtasks) == result.policy_steps
    assert times == [step * 400_000_000 for step in range(5)]
    assert run_episode(make_policy(ramp), env, 0).subtasks == ()

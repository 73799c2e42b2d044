"""Replay: every method sees the same observations, and the numbers are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from safe_pruner_ros.evaluation.plan import build_cells
from safe_pruner_ros.evaluation.replay.metrics import (
    Limits,
    command_track,
    evaluate_replay,
    percentiles,
)
from safe_pruner_ros.evaluation.replay.replay import Lane, build_lanes, replay
from safe_pruner_ros.evaluation.replay.report import write_report
from safe_pruner_ros.policies.policy import PolicyOutputError
from safe_pruner_ros.types import (
    ArmState,
    CameraImage,
    Joint,
    JointCommand,
    JointLayout,
    Observation,
)

MS = 1_000_000
LAYOUT = JointLayout((Joint('a', 'arm', -9.0, 9.0, 9.0), Joint('g', 'gripper', 0.0, 1.0, 9.0)))


def observations(count: int = 6) -> list[Observation]:
    rgb = np.zeros((4, 4, 3), np.uint8)
    return [
        Observation(
            {'head': CameraImage(rgb, 'head', k)},
            ArmState(np.zeros(2), LAYOUT.names, k),
            'lift it',
            k,
        )
        for k in range(0, count * 400 * MS, 400 * MS)
    ]


def rows(arm: float, gripper: float):
    """Chunks in the policy's order (g, a)."""
    return lambda observation, step: np.tile([gripper, arm], (8, 1))


@pytest.fixture
def lanes(make_policy):
    def pruned(observation, step):
        chunk = np.tile([0.2, 1.0], (8, 1))
        if step == 3:
            chunk[2] = [0.9, 1.5]  # executed: closed instead of open, and half a radian off
            chunk[6] = [0.9, 9.0]  # not executed
        return chunk

    return [
        Lane('unpruned', 'unpruned', 1.0, make_policy(rows(1.0, 0.2))),
        Lane('other', 'other', 0.3, make_policy(pruned)),
    ]


def test_two_variants_of_one_method_are_two_lanes():
    cells = build_cells(['unpruned', 'fastv', 'fastv:queries=last'], [0.3], {})

    class Unpruned:
        def with_pruner(self, method, settings):
            return method, dict(settings)

    lanes = build_lanes(cells, Unpruned())
    assert [lane.name for lane in lanes] == ['unpruned', 'fastv 0.3', 'fastv:queries=last 0.3']
    assert lanes[2].policy == ('fastv', {'queries': 'last', 'retention_ratio': 0.3})


def test_all_lanes_see_the_same_and_only_executed_targets_count(lanes):
    seen = observations()
    record = replay(seen, LAYOUT, lanes)
    for lane in lanes:
        assert lane.policy.seen[2:] == seen  # two steps of warm-up, forgotten by a reset
        assert lane.policy.resets == 2
    report = evaluate_replay(record, [], 12.5, Limits())
    unpruned, other = report['methods']
    assert unpruned['deviation_rad'] == {'n': 24, 'p50': 0.0, 'p99': 0.0, 'max': 0.0}
    assert other['deviation_rad']['max'] == other['deviation_per_joint']['a']['max'] == 0.5
    assert other['deviation_rad']['p50'] == 0 and other['gripper_flips'] == 1
    assert other['deviation_per_joint']['g']['max'] == pytest.approx(0.7)
    assert other['keyframe_steps'] == [0, 3] and other['keyframe_reasons'] == {'first step': 2}
    assert other['retained_tokens_mean'] == pytest.approx((2 * 10 + 4 * 3) / 6)
    assert other['latency_ms']['max'] == 15 and other['missed_deadlines'] == 3
    assert other['end_effector_mm'] is None and 'versus_commands' not in other
    assert report['passed'] and report['duration_s'] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ('limits', 'names'),
    [
        (Limits(max_deviation_rad=0.4), ['max_deviation_rad']),
        (Limits(max_deviation_rad=0.5), []),
        (Limits(max_gripper_flips=0), ['max_gripper_flips']),
        (Limits(max_missed_deadlines=2), ['max_missed_deadlines']),
        (Limits(max_latency_p99_ms=5, max_deviation_p99_rad=0.1),
         ['max_deviation_p99_rad', 'max_latency_p99_ms']),
    ],
)  # fmt: skip
def test_limits(limits, names, lanes):
    report = evaluate_replay(replay(observations(), LAYOUT, lanes), [], 12.5, limits)
    found = report['methods'][1]['exceeded']
    assert [text.split(':')[0] for text in found] == names
    assert report['passed'] is not bool(names)


def test_a_failed_step_is_counted_and_keeps_no_limit(lanes):
    def fails(observation, step):
        if observation.stamp_ns == 800 * MS:
            raise PolicyOutputError('NaN')
        return np.tile([0.2, 1.0], (8, 1))

    lanes[1].policy.rows = fails
    record = replay(observations(), LAYOUT, lanes)
    report = evaluate_replay(record, [], 100, Limits(max_deviation_rad=1.0))
    other = report['methods'][1]
    assert other['deviation_rad'] == {'n': 20, 'p50': 0.0, 'p99': 0.0, 'max': 0.0}
    assert [f['step'] for f in other['failed_steps']] == [2] and not report['passed']


@pytest.mark.parametrize('first_good', [5, 6])
def test_without_a_reference_nobody_keeps_a_limit(first_good, lanes, tmp_path):
    def fails(observation, step):
        if observation.stamp_ns < first_good * 400 * MS:
            raise PolicyOutputError('NaN')
        return np.tile([0.2, 1.0], (8, 1))

    lanes[0].policy.rows = fails
    lanes[1].policy.rows = rows(1.0, 0.2)
    record = replay(observations(), LAYOUT, lanes)
    assert len(record.baseline.steps) == 6  # the first of them failed in the warm-up, too
    report = evaluate_replay(record, [], 100, Limits(max_gripper_flips=0))
    unpruned, other = report['methods']
    assert not report['passed']
    assert f'no reference for {first_good} of 6 steps' in other['exceeded'][-1]
    assert unpruned['exceeded'] == [f'{first_good} policy steps failed; see failed_steps']
    assert other['compared_steps'] == 6 - first_good == other['deviation_rad']['n'] // 4
    assert (other['speedup'] is None) == (first_good == 6)
    _, page = write_report(tmp_path, record, report, [], has_video=False)
    text = page.read_text()
    assert '<th>failed</th><th>compared steps</th>' in text
    assert f'<td>other</td><td>0</td><td>{6 - first_good}</td>' in text
    assert evaluate_replay(record, [], 100, Limits())['passed']


def test_recorded_commands_are_followed_in_time():
    start = 1_700_000_000_000_000_000
    commands = [
        JointCommand(np.array([k * 0.1]), ('a',), start + k * 20 * MS) for k in range(11)
    ] + [JointCommand(np.array([7.0]), ('a',), start + 5_000 * MS)]
    due = start + np.array([[-10, 10, 30, 200, 3_000, 5_000, 5_001]], np.int64) * MS
    track = command_track(commands, LAYOUT, due)
    expected = [math.nan, 0.05, 0.15, 1.0, math.nan, math.nan, math.nan]
    assert np.allclose(track[0, :, 0], expected, equal_nan=True)
    assert np.isnan(track[..., 1]).all()


def test_percentiles_of_nothing():
    assert percentiles(np.array([np.nan]))['max'] is None

"""Calibration: the most pruning under the limit is chosen, and nobody judges his own choice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, resolved_settings
from safe_pruner_ros.evaluation.observation_store import ObservationStore
from safe_pruner_ros.evaluation.replay.calibration import (
    Outcome,
    Setting,
    calibrate,
    choose,
    grid,
    sweep,
)
from safe_pruner_ros.evaluation.replay.calibration_report import (
    pruner_block,
    summarize,
    write_calibration,
)
from safe_pruner_ros.evaluation.replay.metrics import Limits
from safe_pruner_ros.policies.policy import PolicyOutputError
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.runtime.pruner_settings import effective_settings
from safe_pruner_ros.types import ArmState, CameraImage, Joint, JointLayout, Observation

ROBOT = Path(__file__).parents[2] / 'config' / 'robots' / 'sim.yaml'
LAYOUT = JointLayout((Joint('a', 'arm', -9.0, 9.0, 9.0), Joint('g', 'gripper', 0.0, 1.0, 9.0)))


def observations(count: int = 4, first: int = 0) -> list[Observation]:
    rng = np.random.default_rng(first)
    found = []
    for k in range(count):
        rgb = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        stamp_ns = first + k * 400_000_000
        found.append(
            Observation(
                {'head': CameraImage(rgb, 'head', stamp_ns)},
                ArmState(rng.standard_normal(2), LAYOUT.names, stamp_ns),
                'lift it',
                stamp_ns,
            )
        )
    return found


@pytest.fixture
def policy(make_policy):
    """Off by 0.1 rad for each tenth of the tokens that is pruned, times what the scene says."""
    ratio = [1.0]

    def rows(observation, step):
        scale = 3.0 if observation.stamp_ns >= 10**12 else 1.0
        return np.tile([0.2, 1.0 + scale * (1.0 - ratio[0])], (8, 1))

    found = make_policy(rows)
    found.update_pruner = lambda **changes: ratio.__setitem__(0, changes['retention_ratio'])
    found.with_pruner = lambda method: make_policy(lambda seen, step: np.tile([0.2, 1.0], (8, 1)))
    return found


def outcome(setting: Setting, recording: str, kept: float, p99: float, limit: float) -> Outcome:
    numbers = {
        'deviation_rad': {'p50': 0.0, 'p99': p99, 'max': 2 * p99},
        'exceeded': ['max_deviation_p99_rad'] if p99 > limit else [],
        'gripper_flips': 0,
        'keyframes': 1,
    }
    return Outcome(setting, recording, 10, kept, numbers)


def unpruned(*recordings: str, exceeded: str = '') -> list[Outcome]:
    found = [outcome(Setting(1.0), name, 1.0, 0.0, 1.0) for name in recordings]
    return [
        replace(o, numbers={**o.numbers, 'exceeded': [exceeded][: len(exceeded)]}) for o in found
    ]


def test_every_setting_is_compared_with_retention_one(policy) -> None:
    settings = grid([0.9, 0.5], None)
    limits = Limits(max_deviation_p99_rad=0.2)
    easy, hard = observations(), observations(first=10**12)
    outcomes, unpruned = sweep(policy, {'easy': easy, 'hard': hard}, LAYOUT, settings, limits)
    found = {
        (o.recording, o.setting.retention_ratio): o.numbers['deviation_rad']['max']
        for o in outcomes
    }
    expected = {
        ('easy', 0.9): 0.1, ('easy', 0.5): 0.5, ('hard', 0.9): 0.3, ('hard', 0.5): 1.5,
    }  # fmt: skip
    assert found == pytest.approx(expected)
    assert [o.keeps_limits for o in outcomes] == [True, False, False, False]
    assert not any('speedup' in o.numbers for o in outcomes)  # of two passes, minutes apart
    assert [(o.recording, o.keeps_limits) for o in unpruned] == [('easy', True), ('hard', True)]


def test_the_unpruned_policy_is_judged_by_latency_and_failures(policy, make_policy) -> None:
    settings, seen = grid([0.9], None), {'one': observations()}
    _, (slow,) = sweep(policy, seen, LAYOUT, settings, Limits(max_latency_p99_ms=5.0))
    assert slow.numbers['exceeded'] == ['max_latency_p99_ms: 12.97, limit 5']

    def fails(observation, step):
        raise PolicyOutputError('NaN')

    policy.with_pruner = lambda method: make_policy(fails)
    (pruned,), _ = sweep(policy, seen, LAYOUT, settings, Limits(max_gripper_flips=9))
    assert 'no reference for 4 of 4 steps' in pruned.numbers['exceeded'][0]


def test_the_choice_is_the_most_pruning_that_holds_everywhere() -> None:
    much, some, little = (Setting(r, 0.5) for r in (0.1, 0.3, 0.7))
    rows = [
        outcome(much, 'a', 0.2, 0.01, 0.02), outcome(much, 'b', 0.2, 0.03, 0.02),
        outcome(some, 'a', 0.4, 0.02, 0.02), outcome(some, 'b', 0.4, 0.01, 0.02),
        outcome(little, 'a', 0.8, 0.0, 0.02), outcome(little, 'b', 0.8, 0.0, 0.02),
    ]  # fmt: skip
    assert choose(rows) == some
    assert choose([o for o in rows if o.recording == 'a']) == much
    # Tokens kept count, not the ratio asked for: a threshold that never prunes is no pruning.
    always = Setting(0.1, 1.0)
    assert (
        choose([*rows, outcome(always, 'a', 1.0, 0, 1), outcome(always, 'b', 1.0, 0, 1)]) == some
    )


def test_no_recording_judges_its_own_choice() -> None:
    """'a' alone would prune much, which fails on 'b': the judgement on 'b' says so."""
    much, some = Setting(0.1), Setting(0.3)
    rows = [
        outcome(much, 'a', 0.1, 0.01, 0.02), outcome(much, 'b', 0.1, 0.03, 0.02),
        outcome(some, 'a', 0.3, 0.01, 0.02), outcome(some, 'b', 0.3, 0.01, 0.02),
    ]  # fmt: skip
    result = calibrate(rows, unpruned('a', 'b'))
    assert result.chosen == some
    by_recording = {item.recording: item for item in result.judgements}
    assert by_recording['b'].setting == much and not by_recording['b'].passed
    assert by_recording['a'].setting == some and by_recording['a'].passed
    assert not result.passed
    report = summarize(result, {'max_deviation_p99_rad': 0.02})
    assert report['judged_by'] == 'each recording by the choice of the others'
    assert report['chosen'] == {'retention_ratio': 0.3} and not report['passed']


def test_one_recording_is_said_to_be_hopeful(tmp_path) -> None:
    some = Setting(0.3, 0.5)
    result = calibrate([outcome(some, 'only', 0.4, 0.01, 0.02)], unpruned('only'))
    assert result.passed and result.judgements == ()
    report = summarize(result, {'max_deviation_p99_rad': 0.02})
    _, page = write_calibration(tmp_path, result, report)
    text = page.read_text()
    assert 'There is one recording' in text and '<script' not in text and text.count('<svg') == 1
    assert 'the only recording made the choice' in (tmp_path / 'calibration.json').read_text()


def test_nothing_keeps_the_limits(tmp_path) -> None:
    rows = [outcome(Setting(0.3), name, 0.4, 0.1, 0.02) for name in 'ab']
    result = calibrate(rows, unpruned('a', 'b', exceeded='max_latency_p99_ms: 9, limit 5'))
    assert result.chosen is None and not result.passed
    assert not any(item.passed for item in result.judgements)  # nothing was chosen, nothing held
    report = summarize(result, {'max_deviation_p99_rad': 0.02})
    json_path, page = write_calibration(tmp_path, result, report)
    written = json.loads(json_path.read_text())
    assert written['chosen'] is None and written['unpruned'][1]['recording'] == 'b'
    assert [item['passed'] for item in written['judgements']] == [False, False]
    text = page.read_text()
    assert 'No setting keeps the limits' in text
    assert '<td>nothing to judge; unpruned EXCEEDS max_latency_p99_ms: 9, limit 5</td>' in text
    assert 'on a the unpruned policy exceeds max_latency_p99_ms' in text


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'unpruned'])
def test_the_proposed_lines_are_all_settings(method, tmp_path) -> None:
    given = {
        'retention_ratio': 0.4, 'pruning_layer': 2, 'seed': 5, 'queries': 'last',
        'relevant_share': 0.25, 'similarity_threshold': 0.5, 'alpha': 0.7, 'norm': 'none',
        'max_keyframe_age': None, 'deep_layers': (-2, -1),
    }  # fmt: skip
    stated = {name: value for name, value in given.items() if name in accepted_settings(method)}
    assert len(stated) > 1
    settings = resolved_settings(method, stated)
    path = tmp_path / 'policy.yaml'
    path.write_text(pruner_block(method, settings))
    read = effective_settings(load_config(ROBOT, path).pruner)
    never = {name: 0 for name in ('max_keyframe_age', 'keyframe_interval') if name in settings}
    assert read == settings | never  # None, of which a file knows nothing


def test_grids() -> None:
    assert len(grid([0.5, 0.3], [0.3, 0.9])) == 4 and len(grid([0.5], None)) == 1
    for ratios, taus, message in (
        ([1.0], None, 'in (0, 1), got 1.0'),
        ([0.5], [1.5], 'in [0, 1], got 1.5'),
        ([], None, 'nothing to try'),
        ([0.5], [], 'nothing to try'),
    ):
        with pytest.raises(ValueError) as refused:
            grid(ratios, taus)
        assert message in str(refused.value)


def test_the_store_gives_back_what_it_was_given(tmp_path) -> None:
    store, given = ObservationStore(tmp_path), observations(3)
    store.fill(given)
    for _ in range(2):  # more than once
        assert len(store) == 3
        for one, other in zip(given, store, strict=True):
            assert one.stamp_ns == other.stamp_ns and one.instruction == other.instruction
            assert np.array_equal(one.state.positions, other.state.positions)
            assert other.images['head'].stamp_ns == one.images['head'].stamp_ns
            assert np.array_equal(one.images['head'].rgb, other.images['head'].rgb)

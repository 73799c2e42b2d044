"""Calibration: the most pruning under the limit is chosen, and nobody judges his own choice."""

from __future__ import annotations

import json

import numpy as np
import pytest

from safe_pruner_ros.evaluation.observation_store import ObservationStore
from safe_pruner_ros.evaluation.replay.calibration import (
    Outcome,
    Setting,
    calibrate,
    choose,
    grid,
    sweep,
)
from safe_pruner_ros.evaluation.replay.calibration_report import summarize, write_calibration
from safe_pruner_ros.evaluation.replay.metrics import Limits
from safe_pruner_ros.types import ArmState, CameraImage, Joint, JointLayout, Observation

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
    return found


def outcome(setting: Setting, recording: str, kept: float, p99: float, limit: float) -> Outcome:
    numbers = {
        'deviation_rad': {'p50': 0.0, 'p99': p99, 'max': 2 * p99},
        'exceeded': ['max_deviation_p99_rad'] if p99 > limit else [],
        'gripper_flips': 0,
        'keyframes': 1,
    }
    return Outcome(setting, recording, 10, kept, numbers)


def test_every_setting_is_compared_with_retention_one(policy) -> None:
    settings = grid([0.9, 0.5], None)
    limits = Limits(max_deviation_p99_rad=0.2)
    easy, hard = observations(), observations(first=10**12)
    outcomes = sweep(policy, {'easy': easy, 'hard': hard}, LAYOUT, settings, limits)
    found = {
        (o.recording, o.setting.retention_ratio): o.numbers['deviation_rad']['max']
        for o in outcomes
    }
    expected = {
        ('easy', 0.9): 0.1, ('easy', 0.5): 0.5, ('hard', 0.9): 0.3, ('hard', 0.5): 1.5,
    }  # fmt: skip
    assert found == pytest.approx(expected)
    assert [o.keeps_limits for o in outcomes] == [True, False, False, False]


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
    result = calibrate(rows)
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
    result = calibrate([outcome(some, 'only', 0.4, 0.01, 0.02)])
    assert result.passed and result.judgements == ()
    report = summarize(result, {'max_deviation_p99_rad': 0.02})
    _, page = write_calibration(tmp_path, result, report)
    text = page.read_text()
    assert 'There is one recording' in text and '<script' not in text and text.count('<svg') == 1
    assert 'the only recording made the choice' in (tmp_path / 'calibration.json').read_text()


def test_nothing_keeps_the_limits(tmp_path) -> None:
    rows = [outcome(Setting(0.3), name, 0.4, 0.1, 0.02) for name in 'ab']
    result = calibrate(rows)
    assert result.chosen is None and not result.passed
    report = summarize(result, {'max_deviation_p99_rad': 0.02})
    json_path, page = write_calibration(tmp_path, result, report)
    assert json.loads(json_path.read_text())['chosen'] is None
    assert 'No setting keeps the limits' in page.read_text()


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

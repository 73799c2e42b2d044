"""Analyses of subtasks and key timesteps, their estimates and files, on small made-up episodes:
against plain loops and numbers worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.recordings import LAYERS, D, V, recording, shuffled_scene
from matplotlib import pyplot as plt

from safe_pruner_ros.cli import main
from safe_pruner_ros.core.catalog import build_pruner, resolved_settings
from safe_pruner_ros.core.safe_pruner import SafePrunerConfig
from safe_pruner_ros.evaluation.analysis import command
from safe_pruner_ros.evaluation.analysis.command import core_cues
from safe_pruner_ros.evaluation.analysis.estimates import (
    estimate,
    ratio_estimate,
    share_estimate,
)
from safe_pruner_ros.evaluation.analysis.keyframes import detection_cases, keyframe_rows
from safe_pruner_ros.evaluation.analysis.recording import collect, load, save
from safe_pruner_ros.evaluation.analysis.subtasks import (
    boundaries_of,
    replay_detections,
    score_detection,
    score_episode,
)
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.results import ResultsError
from safe_pruner_ros.evaluation.statistics import wilson_interval
from safe_pruner_ros.evaluation.worker import forget_warm

RNG = np.random.default_rng(3)


# ---- subtasks


def best_matching(boundaries: Sequence[int], detections: Sequence[int], tolerance: int):
    """(most matches, smallest distance) by trying every assignment."""
    best = (0, 0)
    short, long = sorted((boundaries, detections), key=len)
    for chosen in itertools.permutations(long, len(short)):
        for used in itertools.product((True, False), repeat=len(short)):
            pairs = [(a, b) for a, b, u in zip(short, chosen, used, strict=True) if u]
            if all(abs(a - b) <= tolerance for a, b in pairs):
                best = max(best, (len(pairs), -sum(abs(a - b) for a, b in pairs)))
    return best


def test_matching_is_the_best_there_is() -> None:
    for _ in range(60):
        true = RNG.choice(np.arange(1, 12), size=RNG.integers(0, 4), replace=False).tolist()
        found = RNG.choice(np.arange(1, 12), size=RNG.integers(0, 5), replace=False).tolist()
        tolerance = int(RNG.integers(0, 4))
        delays = score_episode(true, found, tolerance).delays
        assert (len(delays), -sum(map(abs, delays))) == best_matching(true, found, tolerance)


def test_precision_recall_and_delay_by_hand() -> None:
    assert boundaries_of(['pick', 'pick', 'place', 'pick', 'pick']) == (2, 3)
    assert score_episode([4], [0, 5], 1).delays == (1,)  # step 0 is no detection
    assert score_episode([4], [0, 5], 1).n_detections == 1
    assert score_episode([4], [3], 1).delays == (-1,)
    episodes = [((3, 8), (4, 6, 8), 12), ((5,), (), 10), ((), (2,), 5)]
    score = score_detection(episodes, tolerance=1)
    assert (score.n_boundaries, score.n_detections, score.n_matched) == (3, 4, 2)
    assert score.precision.mean == pytest.approx(2 / 4) and score.recall.mean == pytest.approx(
        2 / 3
    )
    assert score.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert score.delay_mean == 0.5 and score.delay_median == 0.5
    assert score.rate == pytest.approx(4 / (11 + 9 + 4))


def test_chance_of_a_detection() -> None:
    # One boundary at 5, one detection anywhere in 1..9, within 1 step: 4, 5 and 6 of nine.
    score = score_detection([((5,), (9,), 10)] * 20, tolerance=1)
    assert score.recall.mean == 0
    assert score.chance_recall == pytest.approx(3 / 9, abs=0.02)
    nothing = score_detection([((), (), 4)], 1)
    assert math.isnan(nothing.precision.mean) and math.isnan(nothing.f1)


@pytest.mark.parametrize(
    ('boundaries', 'detections', 'tolerance', 'message'),
    [([1], [1], -1, 'tolerance'), ([1, 1], [2], 1, 'boundaries'), ([1], [-2], 1, 'detections')],
)
def test_wrong_scores_are_refused(boundaries, detections, tolerance, message) -> None:
    with pytest.raises(ValueError, match=message):
        score_episode(boundaries, detections, tolerance)


@pytest.mark.parametrize('method', ['safe_pruner', 'diverse_forecast'])
def test_replay_sees_where_attention_jumps(method: str) -> None:
    def found(**settings: Any) -> tuple[int, ...]:
        return replay_detections(scene, build_pruner(method, LAYERS, **settings))

    features = np.repeat(RNG.normal(size=(1, V, D)), 6, axis=0)
    looks = np.full((6, LAYERS, V), 0.01)
    looks[:3, :, 2] = 1.0
    looks[3:, :, 9] = 1.0  # elsewhere from step 3 on
    scene = recording(looks, features, ['pick'] * 3 + ['place'] * 3)
    assert found(similarity_threshold=0.9) == (3,)
    assert found(similarity_threshold=0.0) == ()
    # renewed, but nothing was detected
    assert found(similarity_threshold=0.0, max_keyframe_age=1) == ()


# ---- key timesteps


def episode(steps: int, keys: dict[int, str], method: str = 'safe_pruner') -> dict[str, Any]:
    """Its subtask changes at step 3."""
    return {
        'task': 'pick_place', 'method': method, 'retention_ratio': 0.3,
        'policy_steps': steps, 'keyframes': len(keys), 'keyframe_steps': list(keys),
        'keyframe_reasons': list(keys.values()),
        'subtasks': ['pick'] * 3 + ['place'] * (steps - 3),
    }  # fmt: skip


def test_keyframe_rows_by_hand() -> None:
    first = episode(10, {0: 'first step', 4: 'subtask boundary', 6: 'stale'})
    rows = keyframe_rows([first, episode(20, {0: 'first step'}), episode(9, {}, 'random')])
    assert len(rows) == 1 and rows[0].episodes == 2
    assert rows[0].share.mean == pytest.approx(4 / 30) and rows[0].per_episode == 2
    assert rows[0].gap_mean == 3
    assert rows[0].reasons == {'first step': 0.5, 'subtask boundary': 0.25, 'stale': 0.25}


def test_key_timesteps_of_two_checkpoints_are_not_pooled() -> None:
    often = episode(10, dict.fromkeys(range(5), 'stale')) | {'config': {'checkpoint': 'aa'}}
    rarely = episode(10, {0: 'first step'}) | {'config': {'checkpoint': 'bb'}}
    rows = {row.variant: row.share.mean for row in keyframe_rows([often, rarely])}
    assert rows == {'safe_pruner (checkpoint aa)': 0.5, 'safe_pruner (checkpoint bb)': 0.1}
    assert list(detection_cases([often, rarely])) == [
        'pick_place, safe_pruner (checkpoint aa) at 0.3',
        'pick_place, safe_pruner (checkpoint bb) at 0.3',
    ]


def test_boundaries_of_an_episode_without_key_timesteps_were_missed() -> None:
    seen = episode(10, {0: 'first step', 4: 'subtask boundary', 6: 'stale'})
    missed, never = episode(8, {}), episode(9, {}, 'random')
    unnamed = episode(7, {2: 'subtask boundary'}) | {'subtasks': ()}
    cases = detection_cases([seen, missed, never, unnamed])
    assert cases == {'pick_place, safe_pruner at 0.3': [((3,), (4,), 10), ((3,), (), 8)]}


# ---- estimates, files


def test_intervals_draw_episodes() -> None:
    found = estimate([0.0, 1.0] * 200 + [float('nan')])
    assert found.mean == 0.5 and found.episodes == 400
    half = 1.96 * 0.5 / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert math.isnan(estimate([]).mean) and math.isnan(ratio_estimate([0], [0]).mean)
    assert ratio_estimate([1, 3], [10, 10]).mean == 0.2


@pytest.mark.parametrize('share', [0.0, 1.0])
def test_shares_at_the_ends_have_an_interval(share: float) -> None:
    """Twelve episodes, all alike: as good as twelve trials, however many steps they had."""
    low, high = wilson_interval(12 * share, 12)
    for found in (
        share_estimate([share] * 12),
        ratio_estimate([round(8 * share)] * 12, [8] * 12),
    ):
        assert (found.mean, found.low, found.high, found.episodes) == (share, low, high, 12)
    assert high - low > 0.2


def test_shares_away_from_the_ends_follow_the_episodes() -> None:
    values = np.random.default_rng(5).beta(2, 6, size=400)
    wilson, drawn = share_estimate(values), estimate(values)
    assert wilson.low == pytest.approx(drawn.low, abs=3e-3)
    assert wilson.high == pytest.approx(drawn.high, abs=3e-3)
    alike = ratio_estimate([10] * 20 + [0] * 20, [10] * 40)  # all or nothing: 40 trials, not 400
    low, high = wilson_interval(20, 40)
    assert (alike.low, alike.high) == pytest.approx((low, high), abs=0.01)
    for refused in (lambda: share_estimate([1.2]), lambda: ratio_estimate([2], [1])):
        with pytest.raises(ValueError, match=r'must be in \[0, 1\]'):
            refused()


def test_no_interval_from_a_handful_of_episodes() -> None:
    for values in ([0.1, 0.2, 0.3], [0.5] * 50):
        found = estimate(values)
        assert math.isnan(found.low) and math.isnan(found.high) and not math.isnan(found.mean)
        assert found.text().endswith('[none]')
    assert estimate([0.0, 1.0] * 5).text('.1f', 100).startswith('50.0 [')
    few, wide = share_estimate([0.4, 0.41, 0.42]), wilson_interval(0.41 * 3, 3)
    assert (few.low, few.high) == pytest.approx(wide)


def test_episodes_without_a_finite_value_are_counted() -> None:
    found = estimate([1.0, float('inf'), float('nan'), 3.0, float('inf')])
    assert (found.mean, found.episodes, found.infinite) == (2.0, 2, 2)
    nothing = estimate([float('inf')])
    assert math.isnan(nothing.mean) and (nothing.episodes, nothing.infinite) == (0, 1)


def test_fastv_as_evaluated_is_among_the_cues() -> None:
    cues, baseline = core_cues(SafePrunerConfig())
    queries = resolved_settings('fastv', {})['queries']
    assert f'{queries} rows, layer 2 (FastV, as evaluated)' in cues and baseline in cues
    assert "last row, layer 2 (FastV's release)" in cues


def test_another_policy_or_device_is_refused(tmp_path: Path, capsys) -> None:
    for more, message in (
        (['--policy-file', 'openvla'], "the policy file asks for 'openvla'"),
        (['--device', 'cuda'], "made on the CPU, got device 'cuda'"),
    ):
        command = ['analyse', 'forecast', *more, '--out', str(tmp_path / 'out')]
        assert main(command) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_the_record_says_which_policy(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, '_forecast', lambda request: ({}, 'said', plt.figure()))
    asked = ['--checkpoint', str(checkpoint), '--out', str(tmp_path)]
    assert main(['analyse', 'forecast', *asked]) == 0
    record = json.loads((tmp_path / 'forecast.json').read_text())
    facts = PolicySource(checkpoint=str(checkpoint)).facts()
    assert record | facts == record and facts['device'] == 'cpu'


def test_recordings_survive_the_disk(tmp_path: Path) -> None:
    scene, path = shuffled_scene(3, RNG), tmp_path / '7.npz'
    save(scene, path, {'task': 'pick_place'})
    found = load(path, {'task': 'pick_place'})
    np.testing.assert_array_equal(found.features, scene.features)
    np.testing.assert_array_equal(found.saliency['last'], scene.saliency['last'])
    assert (found.views, found.subtasks, found.success) == (scene.views, scene.subtasks, True)
    with pytest.raises(ResultsError, match='was recorded with'):
        load(path, {'task': 'pack_doll'})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ResultsError, match='not a recording'):
        load(path)


def test_collects_once_what_an_unpruned_policy_attends_to(
    checkpoint: Path, tmp_path: Path
) -> None:
    policy = PolicySource(checkpoint=str(checkpoint))
    found = next(iter(collect(tmp_path, [500_000], policy=policy, n_jobs=1)))
    forget_warm()
    steps, layers, visual = found.saliency['action'].shape
    assert (layers, visual) == (5, 192) and found.features.shape[:2] == (steps, visual)
    assert len(found.subtasks) == steps > 1 and found.subtasks[0] == 'pick'
    for saliency in found.saliency.values():  # shares of a softmax over all tokens
        assert (saliency > 0).all() and (saliency.sum(axis=-1) < 1).all()
    before = (tmp_path / '500000.npz').stat().st_mtime_ns
    again = next(iter(collect(tmp_path, [500_000], policy=policy)))
    np.testing.assert_array_equal(again.features, found.features)
    assert (tmp_path / '500000.npz').stat().st_mtime_ns == before

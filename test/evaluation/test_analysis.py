"""Analyses on small made-up episodes, against plain loops and numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.evaluation.analysis.core_tokens import (
    core_token_loss,
    core_tokens,
    dropped_share,
    early_cue,
    random_row,
    safe_cue,
)
from safe_pruner_ros.evaluation.analysis.estimates import estimate, ratio_estimate
from safe_pruner_ros.evaluation.analysis.forecast import (
    cosine_and_kl,
    forecast_accuracy,
    same_subtask,
)
from safe_pruner_ros.evaluation.analysis.keyframes import detection_cases, keyframe_rows
from safe_pruner_ros.evaluation.analysis.recording import QUERIES, Recording, collect, load, save
from safe_pruner_ros.evaluation.analysis.subtasks import (
    boundaries_of,
    replay_detections,
    score_detection,
    score_episode,
)
from safe_pruner_ros.evaluation.results import ResultsError
from safe_pruner_ros.evaluation.worker import forget_warm

V, D, LAYERS = 12, 6, 5
RNG = np.random.default_rng(3)


def recording(
    saliency: np.ndarray, features: np.ndarray, subtasks: Sequence[str], seed: int = 0
) -> Recording:
    """Two views of six tokens; ``saliency`` [T, L, V] for every query group."""
    views = (ViewGrid('head', 2, 3), ViewGrid('wrist', 2, 3))
    groups = {queries: saliency.astype(np.float32) for queries in QUERIES}
    return Recording(seed, True, views, features.astype(np.float32), groups, tuple(subtasks))


def shuffled_scene(n_steps: int) -> Recording:
    """Each token keeps its feature and saliency but moves to another place at every step."""
    things, looks = RNG.normal(size=(V, D)), RNG.random((LAYERS, V)) + 0.01
    orders = [RNG.permutation(V) for _ in range(n_steps)]
    return recording(
        np.stack([looks[:, order] for order in orders]),
        np.stack([things[order] for order in orders]),
        ['pick'] * n_steps,
    )


# ---- forecast


def test_cosine_and_kl_by_hand() -> None:
    cosine, kl = cosine_and_kl(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    assert cosine == pytest.approx(4 / (math.sqrt(10) * math.sqrt(2)))
    assert kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    p, q = RNG.random(V), RNG.random(V)
    assert cosine_and_kl(p, q)[1] == pytest.approx(stats.entropy(p, q))
    assert cosine_and_kl(p, 7 * p) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert cosine_and_kl(np.array([1.0, 1.0]), np.array([1.0, 0.0]))[1] == math.inf
    assert all(map(math.isnan, cosine_and_kl(np.zeros(2), np.ones(2))))


def test_things_that_moved_are_forecast_exactly_by_matching_only() -> None:
    rows = forecast_accuracy([shuffled_scene(4)], [3, 4], early_layer=2, max_lag=2)
    by = {(row.lag, row.saliency, row.how): row for row in rows}
    assert len(by) == 2 * 2 * 3
    for lag, name in itertools.product((1, 2), ('early', 'deep')):
        assert by[lag, name, 'matched'].cosine.mean == pytest.approx(1.0, abs=1e-6)
        assert by[lag, name, 'matched'].kl.mean == pytest.approx(0.0, abs=1e-6)
        assert by[lag, name, 'in place'].kl.mean > 0.05
    assert by[1, 'deep', 'matched'].pairs == 3 and by[2, 'deep', 'matched'].pairs == 2


def test_pairs_do_not_cross_a_subtask_boundary() -> None:
    scene = shuffled_scene(5)
    parted = recording(scene.saliency['action'], scene.features, 'aabba')
    within = forecast_accuracy([parted], [4], max_lag=4)
    assert {(row.lag, row.pairs) for row in within} == {(1, 2)}  # 0-1 and 2-3
    anywhere = forecast_accuracy([parted], [4], max_lag=4, within_subtask=False)
    assert {(row.lag, row.pairs) for row in anywhere} == {(1, 4), (2, 3), (3, 2), (4, 1)}
    assert same_subtask('aabba', 2, 3) and not same_subtask('aabba', 0, 4)  # back to 'a' by then


# ---- core tokens


def test_core_tokens_are_the_top_tenth() -> None:
    assert core_tokens(np.array([0.1, 0.9, 0.5, 0.9]), 0.5).tolist() == [1, 3]
    assert core_tokens(np.ones(30)).tolist() == [0, 1, 2]
    assert core_tokens(np.arange(4.0)).tolist() == [3]  # at least one
    assert dropped_share(np.array([0, 3]), np.array([1, 3])) == 0.5


def test_loss_of_core_tokens_is_that_of_a_plain_count() -> None:
    saliency = RNG.random((3, LAYERS, V))
    scene = recording(saliency, RNG.normal(size=(3, V, D)), 'abc')
    rows = core_token_loss([scene], {'early': early_cue('action', 2)}, [0.25, 0.75], 2)
    for row, keep in zip(rows[:2], (9, 3), strict=True):
        dropped = []
        for step in range(3):
            kept = set(sorted(range(V), key=lambda v: -saliency[step, 2, v])[:keep])
            for layer in (0, 1, 3, 4):
                best = max(range(V), key=lambda v: saliency[step, layer, v])
                dropped.append(best not in kept)  # a tenth of twelve tokens is one
        assert row.dropped.mean == pytest.approx(np.mean(dropped))
        assert row.any_dropped.mean == pytest.approx(np.mean(dropped))
    assert [row.cue for row in rows[2:]] == ['random (exact)'] * 2


def test_chance_is_exact() -> None:
    row = random_row(0.5, 30)  # 15 of 30 kept, 3 core
    assert row.dropped.mean == 0.5
    assert row.any_dropped.mean == pytest.approx(1 - stats.hypergeom(30, 3, 15).pmf(3))
    assert random_row(0.95, 30).any_dropped.mean == 1.0  # 2 kept, 3 core


def test_a_perfect_forecast_drops_nothing_that_it_has_room_for() -> None:
    scene = shuffled_scene(4)
    deep = scene.saliency['action'].copy()
    deep[:, 3:] = deep[:, 3:4]  # both deep layers look at the same
    deep[:, :3] = 0.01 + 1e-4 * RNG.random(deep[:, :3].shape)  # early ones at nothing
    scene = recording(deep, scene.features, scene.subtasks)
    cue = safe_cue({'deep_layers': (3, 4), 'alpha': 0.0}, lag=2)
    assert cue(scene, 1, 0.25) is None
    for step in (2, 3):
        retained = cue(scene, step, 0.25)
        assert len(retained) == 3
        assert dropped_share(retained, core_tokens(deep[step, 4], 0.25)) == 0


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


def test_recordings_survive_the_disk(tmp_path: Path) -> None:
    scene, path = shuffled_scene(3), tmp_path / '7.npz'
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
    found = next(iter(collect(tmp_path, [500_000], checkpoint=str(checkpoint), n_jobs=1)))
    forget_warm()
    steps, layers, visual = found.saliency['action'].shape
    assert (layers, visual) == (5, 192) and found.features.shape[:2] == (steps, visual)
    assert len(found.subtasks) == steps > 1 and found.subtasks[0] == 'pick'
    for saliency in found.saliency.values():  # shares of a softmax over all tokens
        assert (saliency > 0).all() and (saliency.sum(axis=-1) < 1).all()
    before = (tmp_path / '500000.npz').stat().st_mtime_ns
    again = next(iter(collect(tmp_path, [500_000], checkpoint=str(checkpoint))))
    np.testing.assert_array_equal(again.features, found.features)
    assert (tmp_path / '500000.npz').stat().st_mtime_ns == before
